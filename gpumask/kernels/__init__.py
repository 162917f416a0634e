"""The numerical kernels: arrays in, arrays out, in the same library and on the same device.

They accept arrays of NumPy, CuPy and any other library that follows the array-API standard, need no files or images,
and can be used alone. Time is the first axis and voxels the last, flat in the order in which NIfTI stores them.

Arrays of libraries that only support DLPack, such as PyTorch and JAX, are computed by NumPy or CuPy, without a copy,
and results are that library's again (float32 in JAX, unless its 64-bit types are enabled). Lists, tables and masked
arrays are errors.
"""

from gpumask.kernels.cleaning import (
    cosine_drifts,
    detrend,
    high_variance_confounds,
    interpolate_censored,
    orthonormal_basis,
    regress_out,
    standardize,
)
from gpumask.kernels.filtering import butterworth_sos, fft_filtfilt
from gpumask.kernels.resampling import CubicResampling, resample_cubic
from gpumask.kernels.segments import (
    STRATEGIES,
    Segments,
    segment_maximum,
    segment_mean,
    segment_median,
    segment_minimum,
    segment_standard_deviation,
    segment_sum,
    segment_variance,
)
from gpumask.kernels.smoothing import fwhm_to_sigma, gaussian_smooth, smoothing_matrix

__all__ = [
    "STRATEGIES",
    "CubicResampling",
    "Segments",
    "butterworth_sos",
    "cosine_drifts",
    "detrend",
    "fft_filtfilt",
    "fwhm_to_sigma",
    "gaussian_smooth",
    "high_variance_confounds",
    "interpolate_censored",
    "orthonormal_basis",
    "regress_out",
    "resample_cubic",
    "segment_maximum",
    "segment_mean",
    "segment_median",
    "segment_minimum",
    "segment_standard_deviation",
    "segment_sum",
    "segment_variance",
    "smoothing_matrix",
    "standardize",
]
