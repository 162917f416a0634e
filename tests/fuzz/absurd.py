"""Arguments that nobody means, for the masker's parameters and for options of the command line."""

from pathlib import Path

import numpy as np

from .mutations import HUGE

N = 24  # volumes of the run that they are used with
VALUES = (
    None, True, -1, 0, 1, 2, 10**9, 2**63, -(2**63), 10**400, 0.5, 2.0, 1e-300, 1e8, 1e308, -1e308,
    float("nan"), float("inf"), -float("inf"), np.nan, np.int8(3), np.float32("nan"), 1j,
    "", "x", "\0", b"x", "x" * 3000, "auto", "zscore", "psc", "mean", "cpu", "cuda:-1", "cuda:99999999999999999999",
    [], [[]], {}, {"x": 1}, (), {1, 2}, range(N), ["x"] * 3, [float("nan")] * N, [N], [-1], [0, 0],
    np.array([1, 2]), np.array([]), np.array(3), np.zeros(N), np.zeros((N, 2)), np.zeros((0, 3)), np.zeros((2, 2, 2)),
    np.full(N, 1e308), np.array(["x"] * N), np.arange(N), np.ones(N, bool), Path("x"), len, object(),
)  # fmt: skip
PATHS = [value for value in ["x", *VALUES] if isinstance(value, str) and value]  # of which lists of files are made
CLEANING = (
    "ensure_finite", "extrapolate", "runs", "filter", "x",
    "butterworth__padlen", "butterworth__padtype", "butterworth__copy", "butterworth__order",
)  # fmt: skip
WORDS = (
    "-1", "0", "1e400", "nan", "inf", "-inf", "1e308", "1e-320", "1e8", HUGE, "\u0663", "1_0", "0x10", "1,5", "1/0",
    "0/1", "10/9", f"{HUGE}/1", "", " ", "x", "x" * 2000, "\u00e9", "\udcff", "--", "-", "=", "auto", "../..",
    "/dev/null", "NaN", "None", "*", "[", "\n", "%s",
)  # fmt: skip
BOTH = (
    "--strategy", "--smoothing-fwhm", "--low-pass", "--high-pass", "--standardize", "--confounds-strategy",
    "--confounds-columns", "--fd-threshold", "--dummy-scans", "--min-time", "--min-dof", "--device", "--atlas", "--lut",
)  # fmt: skip
OF_EXTRACT = (*BOTH, "--background-label", "--resampling-target", "--t-r", "--confounds", "--mask", "--out")
OF_COHORT = (
    *BOTH, "--participant-label", "--session-id", "--task-id", "--run-id", "--space", "--shard", "--min-coverage",
    "--nprocs", "--store",
)  # fmt: skip
