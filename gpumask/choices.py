"""The choices that users have, by name. It imports nothing, so ``--help`` stays quick."""

STRATEGIES = ("mean", "sum", "median", "minimum", "maximum", "variance", "standard_deviation")
LINEAR = ("mean", "sum")  # the strategies that are linear in the voxels
STANDARDIZE = ("zscore_sample", "zscore", "psc")
TARGETS = ("data", "labels", None)
NAN_POLICIES = ("zero", "omit")
