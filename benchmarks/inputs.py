"""The benchmark's inputs, made once in a folder: runs on a 2 mm grid, atlases on it, confounds."""

import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

SHAPE = (97, 115, 97)  # MNI152NLin2009cAsym at 2 mm, the usual output space of fMRIPrep
AFFINE = np.array([[2.0, 0, 0, -96], [0, 2, 0, -132], [0, 0, 2, -78], [0, 0, 0, 1]])
T_R = 2.0


def brain():
    """Boolean volume: an ellipsoid of 1.6 litres, about a brain's."""
    axes = [np.linspace(-1, 1, n) for n in SHAPE]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    return (x / 0.76) ** 2 + (y / 0.78) ** 2 + (z / 0.72) ** 2 < 1


def parcellation(n_regions, seed=0):
    """Label volume (int32) that cuts the brain into compact regions around random centres, of mixed sizes."""
    mask, rng = brain(), np.random.default_rng(seed)
    voxels = np.argwhere(mask)
    centres = voxels[rng.choice(len(voxels), n_regions, replace=False)]
    marks = np.zeros(SHAPE, np.int32)
    marks[tuple(centres.T)] = np.arange(1, n_regions + 1)
    nearest = ndimage.distance_transform_edt(marks == 0, return_distances=False, return_indices=True)
    return np.where(mask, marks[tuple(nearest)], 0).astype(np.int32)


def volumes(n_volumes, dtype, seed=0):
    """BOLD-like volumes, shape (x, y, z): smooth anatomy, slow networks and noise of 1 % in the brain."""
    rng = np.random.default_rng(seed)

    def smooth_map(width):
        values = ndimage.gaussian_filter(rng.normal(size=SHAPE).astype(np.float32), width)
        return values / values.std()

    anatomy = np.where(brain(), 9000 + 1500 * smooth_map(3), 0).astype(np.float32)
    networks = [0.01 * anatomy * smooth_map(6) for _ in range(6)]
    courses = ndimage.gaussian_filter1d(rng.normal(size=(n_volumes, len(networks))), 2, axis=0)
    courses = (courses / courses.std()).astype(np.float32)
    noise = (0.01 * anatomy + 3 * (anatomy == 0)).astype(np.float32)
    for course in courses:
        volume = anatomy + noise * rng.standard_normal(SHAPE, dtype=np.float32)
        for network, strength in zip(networks, course, strict=True):
            volume += strength * network
        yield (np.abs(np.rint(volume)) if np.dtype(dtype).kind == "i" else volume).astype(dtype)


def bold(folder, n_volumes=200, dtype="int16", suffix=".nii.gz"):
    """Path of a run in `folder`, made if it isn't there."""
    path = Path(folder) / f"bold_T{n_volumes}_{dtype}{suffix}"
    if path.exists():
        return path
    if suffix == ".nii.gz":
        plain, part = bold(folder, n_volumes, dtype, ".nii"), path.with_suffix(".part")
        with plain.open("rb") as source, gzip.open(part, "wb", compresslevel=6) as target:
            shutil.copyfileobj(source, target, 1 << 20)
    else:
        header = nib.Nifti1Header()
        header.set_data_dtype(dtype)
        header.set_data_shape((*SHAPE, n_volumes))
        header.set_sform(AFFINE, "mni")
        header.set_zooms((2, 2, 2, T_R))
        header.set_xyzt_units("mm", "sec")
        header["vox_offset"], header["magic"] = 352, b"n+1"
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            file.write(header.binaryblock + bytes(4))
            for volume in volumes(n_volumes, dtype):
                file.write(volume.tobytes(order="F"))
    part.rename(path)
    return path


def atlas(folder, n_regions=400, dtype="int32"):
    """Path of an atlas in `folder`, made if it isn't there."""
    path = Path(folder) / f"atlas_{n_regions}_{dtype}.nii.gz"
    if not path.exists():
        nib.Nifti1Image(parcellation(n_regions).astype(dtype), AFFINE).to_filename(path)
    return path


def confounds(folder, n_volumes=200, n_columns=24):
    """Path of a table of confounds in `folder`, made if it isn't there."""
    path = Path(folder) / f"confounds_T{n_volumes}.tsv"
    if not path.exists():
        values = np.cumsum(np.random.default_rng(1).normal(size=(n_volumes, n_columns)), axis=0)
        pd.DataFrame(values, columns=[f"c{k}" for k in range(n_columns)]).to_csv(path, sep="\t", index=False)
    return path
