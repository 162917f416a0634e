"""CIFTI-2 images made of results: signals of parcels, and values of grayordinates.

`.ptseries.nii`, `.pconn.nii` and `.pscalar.nii` describe their parcels by the vertices and voxels of the atlas. CIFTI-2
has no colours of parcels there, so the keys and colours of the label table stand in the file's metadata, in the format
that `wb_command -cifti-label-import` reads.
"""

import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import nibabel as nib
import numpy as np
from nibabel import cifti2

from gpumask.images.cifti_headers import XML_CODE
from gpumask.images.dense_atlas import DenseAtlas, DenseMaps
from gpumask.images.gifti import surface_labels, surface_values

TABLE = "LabelTable"
"""Name of the metadata that hold keys and colours of parcels."""
_SERIES, _SCALARS, _PARCELS = (f"CIFTI_INDEX_TYPE_{name}" for name in ("SERIES", "SCALARS", "PARCELS"))


class Parcels:
    """Some regions of an atlas, as CIFTI-2 describes parcels.

    Parameters
    ----------
    atlas : DenseAtlas
    ids : sequence of int
        Label of each parcel: the columns of signals.
    names : sequence of str
        Of the parcels; where several are equal, their labels are appended, because Workbench requires unique names.

    Attributes
    ----------
    names : list of str
    """

    def __init__(self, atlas: DenseAtlas, ids: Sequence[int], names: Sequence[str]) -> None:
        ids, names = [int(label) for label in ids], [str(name) for name in names]
        if len(ids) != len(names):
            msg = f"{len(names)} names of {len(ids)} parcels of {atlas.grid.name}, expected one for each."
            raise ValueError(msg)
        self.names = _unique(names, ids)
        surfaces = [cifti2.Cifti2Surface(one.structure, one.n_vertices) for one in atlas.grid.surfaces]
        parts = [part.to_xml() for part in _volumes(atlas.grid.volume) + surfaces]
        self._xml = b"".join([*parts, *_parcels(atlas, ids, self.names)])
        self._metadata = cifti2.Cifti2MetaData({TABLE: _table(atlas, ids, self.names)}).to_xml()

    def __len__(self) -> int:
        return len(self.names)

    def series(self, signals: np.ndarray, t_r: float, start: float = 0.0) -> "CiftiFile":
        """Return signals as a file to save as `.ptseries.nii`.

        Parameters
        ----------
        signals : ndarray, shape (n_times, n_parcels)
        t_r : float
            Seconds between the rows.
        start : float
            Seconds at the first row.

        Returns
        -------
        CiftiFile
            Of float32.

        Raises
        ------
        ValueError
            If `signals` has another shape, or `t_r` isn't above 0.
        """
        signals = np.asarray(signals)
        self._check(signals.shape, (len(signals), len(self)), "signals")
        columns = series_map(len(signals), t_r, start).to_xml()
        return self._file([columns, self._map("1")], signals, "SERIES", "ConnParcelSries")

    def connectivity(self, matrix: np.ndarray) -> "CiftiFile":
        """Return a matrix, shape (n_parcels, n_parcels), as a file of float32 to save as `.pconn.nii`."""
        self._check(np.shape(matrix), (len(self), len(self)), "matrix")
        return self._file([self._map("0,1")], matrix, "", "ConnParcels")

    def scalars(self, values: np.ndarray, names: Sequence[str]) -> "CiftiFile":
        """Return values, shape (n_names, n_parcels), as a file of float32 to save as `.pscalar.nii`."""
        self._check(np.shape(values), (len(names), len(self)), "values")
        columns = scalars_map(names).to_xml()
        return self._file([columns, self._map("1")], values, "SCALAR", "ConnParcelScalr")

    def _check(self, shape, expected, what):
        if shape != expected:
            msg = f"The {what} of {len(self)} parcels must have the shape {expected}, got {shape}."
            raise ValueError(msg)

    def _map(self, dimensions):
        start = f'<MatrixIndicesMap AppliesToMatrixDimension="{dimensions}" IndicesMapToDataType="{_PARCELS}">'
        return start.encode() + self._xml + b"</MatrixIndicesMap>"

    def _file(self, maps, values, kind, name):
        xml = b'<CIFTI Version="2"><Matrix>' + self._metadata + b"".join(maps) + b"</Matrix></CIFTI>"
        intent = f"PARCELLATED_{kind}".removesuffix("_")
        return CiftiFile(xml, np.asarray(values, np.float32), f"NIFTI_INTENT_CONNECTIVITY_{intent}", name)


@dataclass(frozen=True, eq=False)
class CiftiFile:
    """A CIFTI-2 file of a header that is text already: nibabel's image copies and checks each vertex several times.

    Attributes
    ----------
    xml : bytes
    values : ndarray, shape (n_columns, n_rows)
    intent, name : str
        NIfTI intent, and its name by CIFTI-2.
    """

    xml: bytes
    values: np.ndarray
    intent: str
    name: str

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        header = nib.Nifti2Header()
        header.set_data_dtype(self.values.dtype)
        header.set_intent(self.intent, name=self.name)
        header.extensions.append(nib.nifti1.Nifti1Extension(XML_CODE, self.xml))
        header.set_data_shape((1, 1, 1, 1, *self.values.shape))
        file = io.BytesIO()
        header.write_to(file)  # with the extension
        file.write(bytes(header.get_data_offset() - file.tell()))
        file.write(self.values.tobytes(order="F"))
        return file.getvalue()

    def to_filename(self, path: str | os.PathLike) -> None:
        """Write the file."""
        Path(path).write_bytes(self.to_bytes())


def _unique(names, ids):
    """Names with their labels appended where they aren't unique, or empty; all names, if that doesn't suffice."""
    labelled = [f"{name} {label}".strip() for name, label in zip(names, ids, strict=True)]
    counts = Counter(names)
    some = [n if n and counts[n] == 1 else other for n, other in zip(names, labelled, strict=True)]
    return some if len(set(some)) == len(some) else labelled


def _volumes(grid):
    """The grid of voxels as CIFTI-2 describes it: a list of one element, or of none without voxels."""
    if grid is None:
        return []
    return [cifti2.Cifti2Volume(grid.shape, cifti2.Cifti2TransformationMatrixVoxelIndicesIJKtoXYZ(-3, grid.affine))]


def _parcels(atlas, ids, names):
    grid, labels = atlas.grid, atlas.labels
    order = np.argsort(labels, kind="stable")
    starts, stops = (np.searchsorted(labels[order], ids, side) for side in ("left", "right"))
    is_voxel = np.zeros(grid.n_grayordinates, bool)
    is_voxel[grid.positions] = True
    ijk = np.zeros((grid.n_grayordinates, 3), np.int64)
    ijk[grid.positions] = grid.voxels
    for name, start, stop in zip(names, starts, stops, strict=True):
        own = order[start:stop]  # ascending
        parts = [f"<Parcel Name={quoteattr(name)}>"]
        for surface in grid.surfaces:
            first, last = np.searchsorted(own, [surface.start, surface.start + len(surface.vertices)])
            if first < last:
                vertices = np.sort(surface.vertices[own[first:last] - surface.start])
                parts.append(f'<Vertices BrainStructure="{surface.structure}">{_text(vertices)}</Vertices>')
        if len(voxels := ijk[own[is_voxel[own]]]):
            parts.append(f"<VoxelIndicesIJK>{_text(voxels.ravel())}</VoxelIndicesIJK>")
        yield "".join([*parts, "</Parcel>"]).encode()


def _text(numbers):
    return " ".join(map(str, numbers.tolist()))


def _table(atlas, ids, names):
    """Names, keys and colours, for wb_command -cifti-label-import."""
    colours = dict(zip(atlas.table["index"], atlas.table["color"], strict=True))
    lines = []
    for label, name in zip(ids, names, strict=True):
        red, green, blue = bytes.fromhex(colours.get(label, "#ffffff")[1:])
        lines.append(f"{name}\n{label} {red} {green} {blue} 255\n")
    return "".join(lines)


def series_map(n_times: int, t_r: float, start: float = 0.0) -> Any:
    """Return the map of the first dimension of a series; ValueError if `t_r`, in seconds, isn't finite and above 0."""
    if not 0 < t_r < np.inf:
        msg = f"A CIFTI-2 series needs the seconds between its time points, above 0, got t_r={t_r!r}."
        raise ValueError(msg)
    of_series = {"number_of_series_points": n_times, "series_start": float(start), "series_step": float(t_r)}
    return cifti2.Cifti2MatrixIndicesMap([0], _SERIES, series_exponent=0, series_unit="SECOND", **of_series)


def scalars_map(names: Sequence[str]) -> Any:
    """Return the map of the first dimension of scalars."""
    return cifti2.Cifti2MatrixIndicesMap([0], _SCALARS, maps=[cifti2.Cifti2NamedMap(name) for name in names])


def dense_labels(atlas: DenseAtlas, labels: np.ndarray) -> nib.Cifti2Image | nib.GiftiImage:
    """Return labels of the atlas's grayordinates as an image of one map and its kind, with its name and table."""
    columns = atlas.header.columns
    named = list(columns.named_maps)[atlas.number]
    if atlas.header.is_gifti:
        return surface_labels(atlas.grid, labels, named.map_name, named.label_table)
    only = cifti2.Cifti2MatrixIndicesMap([0], columns.indices_map_to_data_type, maps=[named])
    rows = atlas.header.xml.matrix.get_index_map(1)
    return cifti_image([only, rows], labels.astype(np.int32)[np.newaxis], "DENSE_LABELS", "ConnDenseLabel")


def dense_values(atlas: DenseAtlas | DenseMaps, values: np.ndarray, t_r: float) -> nib.Cifti2Image | nib.GiftiImage:
    """Return values of the grayordinates of an atlas as dense scalars, or as a dense series.

    Parameters
    ----------
    atlas : DenseAtlas or DenseMaps
        Decides whether the image is CIFTI-2 or GIFTI.
    values : ndarray, shape (n_grayordinates,) or (n_times, n_grayordinates)
        Scalars of one map, or a series.
    t_r : float
        Seconds between time points of a series; not used for scalars, nor by GIFTI.
    """
    if atlas.header.is_gifti:
        return surface_values(atlas.grid, values)
    rows = atlas.header.xml.matrix.get_index_map(1)  # without its axis, which takes 0.1 s to make
    if values.ndim == 1:
        maps = [scalars_map(["signals"]), rows]
        return cifti_image(maps, values[np.newaxis], "DENSE_SCALARS", "ConnDenseScalar")
    return cifti_image([series_map(len(values), t_r), rows], values, "DENSE_SERIES", "ConnDenseSeries")


def cifti_image(maps: Sequence[Any], values: np.ndarray, intent: str, name: str) -> nib.Cifti2Image:
    """Return an image of index maps and the matrix that they describe, with the intent and its name by CIFTI-2."""
    matrix = cifti2.Cifti2Matrix()
    matrix.extend(maps)
    image = nib.Cifti2Image(values, nib.Cifti2Header(matrix), dtype=values.dtype)
    image.nifti_header.set_intent(f"NIFTI_INTENT_CONNECTIVITY_{intent}", name=name)
    return image
