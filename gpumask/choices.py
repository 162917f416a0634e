"""Values that options may have; imported by everything that offers or checks them, and importing nothing."""

STRATEGIES = ("mean", "sum", "median", "minimum", "maximum", "variance", "standard_deviation")
LINEAR = ("mean", "sum")
STANDARDIZE = ("zscore_sample", "zscore", "psc")
TARGETS = ("data", "labels", None)
NAN_POLICIES = ("zero", "omit")
