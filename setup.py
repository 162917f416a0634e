"""The C extension, whose flags depend on the Python that builds it. Everything else is in pyproject.toml."""

import sysconfig

from setuptools import Extension, setup

# One wheel with the stable ABI serves all versions of Python. Free-threaded Python 3.13 and 3.14 have no stable ABI.
is_stable = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    ext_modules=[
        Extension(
            "gpumask.kernels._compiled",
            sources=[
                "gpumask/kernels/c/arrays.c",
                "gpumask/kernels/c/module.c",
                "gpumask/kernels/c/resampling.c",
                "gpumask/kernels/c/segments.c",
                "gpumask/kernels/c/smoothing.c",
                "gpumask/kernels/c/weights.c",
            ],
            depends=["gpumask/kernels/c/arrays.h", "gpumask/kernels/c/bands.h"],
            # Fused multiply-adds would give other bits than scipy's sums.
            extra_compile_args=["-O3", "-ffp-contract=off", "-fvisibility=hidden"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")] if is_stable else [],
            py_limited_api=is_stable,
            optional=True,  # without a C compiler, NumPy and SciPy take its place
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if is_stable else {},
)
