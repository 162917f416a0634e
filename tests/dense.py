"""Small CIFTI-2 files, and their regions' statistics by definition."""

import warnings

import nibabel as nib
import numpy as np
from nibabel import cifti2

LEFT, RIGHT = "CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT"
STEM, THALAMUS = "CIFTI_STRUCTURE_BRAIN_STEM", "CIFTI_STRUCTURE_THALAMUS_LEFT"
N_VERTICES = 60
SHAPE = (7, 8, 6)
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 2, 0, -8], [0, 0, 2, -6], [0, 0, 0, 1]])
INTENTS = {"series": "DENSE_SERIES", "labels": "DENSE_LABELS", "scalars": "DENSE_SCALARS"}
T_R = 0.72


def surface(vertices, structure=LEFT, n_vertices=N_VERTICES):
    """A brain model of vertices."""
    return cifti2.BrainModelAxis.from_surface(np.asarray(vertices), n_vertices, name=structure)


def voxels(ijk, structure=STEM, affine=AFFINE, shape=SHAPE):
    """A brain model of voxels."""
    return cifti2.BrainModelAxis(structure, voxel=np.asarray(ijk), affine=affine, volume_shape=shape)


def models(rng=None, *, share=0.7, with_voxels=True):
    """Brain models of two surfaces and two structures of voxels; a random part of each, in random order of voxels."""
    rng = rng or np.random.default_rng(0)

    def some(n):
        return np.sort(rng.permutation(n)[: max(int(share * n), 1)])

    axis = surface(some(N_VERTICES)) + surface(some(N_VERTICES), RIGHT)
    if with_voxels:
        ijk = np.stack(np.unravel_index(rng.permutation(np.prod(SHAPE))[: int(50 * share)], SHAPE), axis=1)
        axis = axis + voxels(ijk[: len(ijk) // 2]) + voxels(ijk[len(ijk) // 2 :], THALAMUS)
    return axis


def identities(axis):
    """What each grayordinate is: structure and vertex, or the voxel's indices."""
    found = []
    for name, vertex, ijk, is_surface in zip(axis.name, axis.vertex, axis.voxel, axis.surface_mask, strict=True):
        found.append((name, int(vertex)) if is_surface else tuple(ijk.tolist()))
    return found


def table(keys, names=None):
    """A label table with a colour per key."""
    names = names or {}
    return {0: ("???", (1.0, 1.0, 1.0, 0.0))} | {
        int(k): (names.get(k, f"Parcel {k}"), (k % 7 / 7, k % 5 / 5, k % 3 / 3, 1.0)) for k in keys if k
    }


def dense_image(kind, columns, axis, data, dtype=None):
    """A CIFTI-2 image in memory, of the data's dtype; data of shape (n_columns, n_grayordinates)."""
    data = np.asarray(data)
    image = cifti2.Cifti2Image(data, (columns, axis), dtype=dtype or data.dtype)
    image.nifti_header.set_intent(f"NIFTI_INTENT_CONNECTIVITY_{INTENTS[kind]}")
    return image


def series_image(data, axis, t_r=T_R):
    return dense_image("series", cifti2.SeriesAxis(0, t_r, len(data)), axis, data)


def labels_image(labels, axis, names=("atlas",), tables=None, dtype=np.float32):
    labels = np.atleast_2d(labels)
    tables = tables or [table(np.unique(row[np.isfinite(row)])) for row in labels]
    return dense_image("labels", cifti2.LabelAxis(list(names), tables), axis, labels.astype(dtype))


def scalars_image(data, axis, names=None):
    names = names or [f"map {k}" for k in range(len(data))]
    return dense_image("scalars", cifti2.ScalarAxis(names), axis, data)


def save(image, path):
    """Write an image; return its path."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nib.save(image, path)
    return path


def recoded(path, dtype, stored, slope=None, inter=None):
    """Rewrite a file's values with a dtype of any byte order and a scale; `stored` as (n_columns, n_grayordinates).

    The whole header takes the dtype's byte order, as NIfTI has only one.
    """
    content = path.read_bytes()
    with path.open("rb") as file:
        header = nib.Nifti2Header.from_fileobj(file, check=False)
    start = int(header["vox_offset"])
    block = nib.Nifti2Header(header.binaryblock, check=False)
    block.set_data_dtype(np.dtype(dtype))
    block["scl_slope"], block["scl_inter"] = (np.nan if slope is None else slope), (np.nan if inter is None else inter)
    block["vox_offset"] = start
    middle = bytearray(content[540:start])
    if np.dtype(dtype).byteorder == ">":
        block = block.as_byteswapped(">")
        position = 4
        while position < len(middle):
            size = int.from_bytes(middle[position : position + 4], "little")
            for at in (position, position + 4):
                middle[at : at + 4] = middle[at : at + 4][::-1]
            position += size
    values = np.ascontiguousarray(np.asarray(stored).T).astype(dtype)
    path.write_bytes(block.binaryblock + bytes(middle) + values.tobytes())
    return path


def by_definition(data, axis, labels, atlas_axis, strategy="mean", nan_policy="zero", background=0):
    """Signals, shape (n_times, n_regions), and the number of grayordinates of each region, in atlas and run.

    `data` are the run's values, shape (n_times, n_grayordinates), `labels` the atlas's. One number at a time.
    """
    place = {identity: k for k, identity in enumerate(identities(axis))}
    ids = sorted({float(label) for label in labels} - {background})
    signals, counts = np.full((len(data), len(ids)), np.nan), []
    of = {"mean": np.mean, "sum": np.sum, "median": np.median, "minimum": np.min, "maximum": np.max}
    of |= {"variance": np.var, "standard_deviation": np.std}
    atlas = identities(atlas_axis)
    for column, label in enumerate(ids):
        own = [atlas[k] for k in np.flatnonzero(labels == label)]
        found = sorted(place[identity] for identity in own if identity in place)
        counts.append((len(own), len(found)))
        for t, volume in enumerate(np.asarray(data, np.float64)):
            values = volume[found]
            values = np.where(np.isfinite(values), values, 0) if nan_policy == "zero" else values[np.isfinite(values)]
            if len(values) or strategy == "sum":
                signals[t, column] = of[strategy](values)
    return ids, signals, np.array(counts)
