"""Slow definitions of what the kernels compute: loops over voxels in float64, sharing no code with the package."""

import math

import numpy as np
import scipy.ndimage

STRATEGIES = ("mean", "sum", "median", "minimum", "maximum", "variance", "standard_deviation")


def statistic(strategy, values, weights=None):
    """One region of one volume; `values` and `weights` are lists of Python floats."""
    weights = [1.0] * len(values) if weights is None else weights
    total = math.fsum(v * w for v, w in zip(values, weights, strict=True))
    if strategy == "sum":
        return total
    if not values:
        return math.nan
    if strategy == "mean":
        return total / math.fsum(weights)
    if strategy == "minimum":
        return min(values)
    if strategy == "maximum":
        return max(values)
    if strategy == "median":
        ordered, n = sorted(values), len(values)
        return ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2
    mean = total / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / len(values)
    return variance if strategy == "variance" else math.sqrt(variance)


def region_signals(volumes, labels, ids, strategy):
    """Statistic of each region of each volume, shape (n_volumes, n_regions); `volumes` is (n_volumes, n_voxels)."""
    signals = np.empty((len(volumes), len(ids)))
    for t, volume in enumerate(volumes):
        for r, label in enumerate(ids):
            inside = [float(value) for value, of in zip(volume, labels, strict=True) if of == label]
            signals[t, r] = statistic(strategy, inside)
    return signals


def weighted_signals(volumes, voxels, weights, strategy):
    """As `region_signals`, of lists of voxels and weights per region."""
    return np.array(
        [
            [statistic(strategy, [float(volume[v]) for v in vs], ws) for vs, ws in zip(voxels, weights, strict=True)]
            for volume in volumes
        ]
    )


def mirrored(index, n):
    """The voxel that stands beyond the border: ... c b a a b c | a b c | c b a a b c ..."""
    while not 0 <= index < n:
        index = -1 - index if index < 0 else 2 * n - 1 - index
    return index


def smooth_line(line, sigma, truncate=4.0):
    """Gaussian smoothing of one line of voxels."""
    if sigma == 0:
        return [float(value) for value in line]
    n, radius = len(line), int(truncate * sigma + 0.5)
    kernel = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]
    total = math.fsum(kernel)
    return [
        math.fsum(float(line[mirrored(i + k, n)]) * kernel[k + radius] / total for k in range(-radius, radius + 1))
        for i in range(n)
    ]


def smooth(volume, sigmas, truncate=4.0):
    """Gaussian smoothing of every line along every axis."""
    volume = np.array(volume, dtype=np.float64)
    for axis, sigma in enumerate(sigmas):
        lines = np.moveaxis(volume, axis, -1)
        for index in np.ndindex(lines.shape[:-1]):
            lines[index] = smooth_line(lines[index].tolist(), sigma, truncate)
    return volume


def resample(volumes, matrix, offset, shape, clip=None):
    """Cubic resampling, volume by volume; `volumes` is (n_volumes, x, y, z)."""
    out = np.stack(
        [scipy.ndimage.affine_transform(v.astype(np.float64), matrix, offset, shape, order=3) for v in volumes]
    )
    return out if clip is None else np.clip(out, *clip)


def flat(volumes):
    """Shape (n_volumes, x, y, z) to (n_volumes, n_voxels), x fastest."""
    return np.stack([np.asarray(volume).ravel(order="F") for volume in volumes])
