"""The benchmark's inputs, made once in a folder: runs on a 2 mm grid, atlases on it, confounds."""

import gzip
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from benchmarks import grayordinates

T_R = 2.0
AFFINES = ("same", "shifted", "oblique")

# Real atlases, by their number of regions; taken from a folder beside the repository where it exists.
REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "atlases"
REAL_FILES = {
    116: "Schaefer2018_100Parcels_7Networks_order_Tian_Subcortex_S1_MNI152NLin6Asym_2mm.nii.gz",
    416: "Schaefer2018_400Parcels_7Networks_order_Tian_Subcortex_S1_MNI152NLin6Asym_2mm.nii.gz",
    454: "Schaefer2018_400Parcels_7Networks_order_Tian_Subcortex_S4_3T_MNI152NLin2009cAsym_2mm.nii.gz",
    1000: "Schaefer1000_space-MNI152NLin6_res-2x2x2.nii.gz",
    1177: "DS01216_space-MNI152NLin6_res-2x2x2.nii.gz",
    6272: "DS06481_space-MNI152NLin6_res-2x2x2.nii.gz",
    70262: "DS72784_space-MNI152NLin6_res-2x2x2.nii.gz",
}


class Inputs:
    """Files in a folder, each made when it is first asked for.

    Parameters
    ----------
    folder : path-like
        Files that are there already are taken as they are.
    tiny : bool
        Whether to make everything small (8 mm voxels, half the volumes, a region for 100): for tests of the
        benchmark itself.
    """

    def __init__(self, folder, *, tiny=False):
        self.tiny = tiny
        self.folder = Path(folder).resolve() / ("tiny" if tiny else "")
        self.folder.mkdir(parents=True, exist_ok=True)
        # MNI152NLin2009cAsym at 2 mm, the usual output space of fMRIPrep.
        self.shape, size = ((25, 29, 25), 8.0) if tiny else ((97, 115, 97), 2.0)
        self.affine = np.array([[size, 0, 0, -96], [0, size, 0, -132], [0, 0, size, -78], [0, 0, 0, 1]])

    def n_volumes(self, n):
        """Volumes of a run that has `n` of them in full size."""
        return max(n // 2, 1) if self.tiny else n

    def bold(self, n_volumes=200, dtype="int16", suffix=".nii.gz", first=None):
        """Path of a run; with `first`, of only so many volumes from its beginning."""
        n_volumes, first = self.n_volumes(n_volumes), first and self.n_volumes(first)
        plain = self._made(f"bold_T{n_volumes}_{dtype}.nii", lambda part: self._write_run(part, n_volumes, dtype))
        if first is not None:
            plain = self._made(f"{plain.stem}_first{first}.nii", lambda part: _write_first(part, plain, first))
        if suffix == ".nii":
            return plain
        return self._made(f"{plain.name}.gz", lambda part: _compress(part, plain))

    def atlas(self, n_regions=416, dtype="int32", affine="same"):
        """Path of a label image on the run's grid, "shifted" by half a millimetre, or rotated by 5 degrees."""
        if n_regions not in REAL_FILES:
            msg = f"no atlas of {n_regions} regions, expected one of {sorted(REAL_FILES)}"
            raise ValueError(msg)
        name = f"atlas_{self.source_of_atlas(n_regions)}{n_regions}_{dtype}_{affine}.nii.gz"
        return self._made(name, lambda part: self._write_atlas(part, n_regions, dtype, affine))

    def maps(self, n_maps=113, voxel=2.0):
        """Path of probabilistic maps that overlap, uint8 percent, with `voxel` sizes in mm."""
        n_maps = max(n_maps // 20, 2) if self.tiny else n_maps
        return self._made(f"maps_{n_maps}_{voxel:g}mm.nii", lambda part: self._write_maps(part, n_maps, voxel))

    def mask(self):
        """Path of a brain mask on the run's grid."""

        def write(part):
            nib.Nifti1Image(self._brain().astype(np.uint8), self.affine).to_filename(f"{part}.nii")
            Path(f"{part}.nii").rename(part)

        return self._made("mask.nii", write)

    def seeds(self, n_seeds=264):
        """Coordinates in mm of seeds in the brain: a list of lists."""
        inside = np.argwhere(ndimage.binary_erosion(self._brain(), iterations=1 if self.tiny else 5))
        chosen = np.random.default_rng(2).choice(len(inside), max(n_seeds // 20, 2) if self.tiny else n_seeds, False)
        return nib.affines.apply_affine(self.affine, inside[chosen]).tolist()

    def source_of_atlas(self, n_regions):
        """Whether an atlas is "real" or "synthetic"."""
        return "real" if not self.tiny and (REAL / REAL_FILES[n_regions]).is_file() else "synthetic"

    def confounds(self, n_volumes=200, n_columns=24):
        """Path of a table of confounds."""
        n_volumes = self.n_volumes(n_volumes)
        n_columns = min(n_columns, n_volumes // 8)

        def write(part):
            values = np.cumsum(np.random.default_rng(1).normal(size=(n_volumes, n_columns)), axis=0)
            pd.DataFrame(values, columns=[f"c{k}" for k in range(n_columns)]).to_csv(part, sep="\t", index=False)

        return self._made(f"confounds_T{n_volumes}.tsv", write)

    def dense_series(self, n_volumes=400, number=0, *, space="91k"):
        """Path of a float32 series of grayordinates of a space, see `grayordinates.SPACES`; several by `number`."""
        n_volumes = max(n_volumes // 20, 10) if self.tiny else n_volumes
        name, chosen = f"dense_{space}_T{n_volumes}_{number}.dtseries.nii", self._grayordinates
        return self._made(
            name, lambda part: grayordinates.write_series(part, n_volumes, grayordinates.models(space)[chosen], number)
        )

    def dense_atlas(self, n_parcels=379, *, space="91k"):
        """Path of an atlas of grayordinates; see `grayordinates.parcellation`."""
        chosen = self._grayordinates

        def write(part):
            labels, names = grayordinates.parcellation(n_parcels, space)
            labels = labels[chosen]
            names = {label: names[label] for label in np.unique(labels).tolist() if label}
            grayordinates.write_atlas(part, labels, names, grayordinates.models(space)[chosen])

        return self._made(f"dense_{space}_{n_parcels}.dlabel.nii", write)

    @property
    def _grayordinates(self):
        return slice(None, None, 50 if self.tiny else None)

    def check_disk(self, n_bytes):
        """Raise OSError if the folder's disk has no room for `n_bytes`."""
        free = shutil.disk_usage(self.folder).free
        if free < n_bytes:
            sizes = f"{free / 1e9:.1f} GB free, the inputs take up to {n_bytes / 1e9:.1f} GB"
            msg = f"{self.folder} has {sizes}: use another --folder, or shorter runs"
            raise OSError(msg)

    def _made(self, name, write):
        path = self.folder / name
        if not path.exists():
            part = self.folder / f"part-{name}"
            part.unlink(missing_ok=True)  # of a killed benchmark, or someone's link
            write(part)
            with part.open("rb") as file:
                os.fsync(file.fileno())  # lest the system writes while the first measurement is made
            part.rename(path)
        return path

    def _write_run(self, path, n_volumes, dtype):
        self.check_disk(2 * np.prod(self.shape) * n_volumes * np.dtype(dtype).itemsize)
        header = nib.Nifti1Header()
        header.set_data_dtype(dtype)
        header.set_data_shape((*self.shape, n_volumes))
        header.set_sform(self.affine, "mni")
        header.set_zooms((*np.diag(self.affine)[:3], T_R))
        header.set_xyzt_units("mm", "sec")
        header["vox_offset"], header["magic"] = 352, b"n+1"
        with path.open("wb") as file:
            file.write(header.binaryblock + bytes(4))
            for volume in self._volumes(n_volumes, dtype):
                file.write(volume.tobytes(order="F"))

    def _volumes(self, n_volumes, dtype, seed=0):
        """BOLD-like volumes, shape (x, y, z): smooth anatomy, slow networks and noise of 1 % in the brain.

        As int16 they compress to 0.8 bytes a voxel, between a native run (0.76) and a preprocessed one (1.04).
        """
        rng = np.random.default_rng(seed)

        def smooth_map(width):
            values = ndimage.gaussian_filter(rng.normal(size=self.shape).astype(np.float32), width)
            return values / values.std()

        brain = self._brain()
        anatomy = np.where(brain, 9000 + 1500 * smooth_map(3), 0).astype(np.float32)
        # Of few volumes so little would be left after cleaning that nilearn's rounding to float32 showed.
        strength = 0.1 if self.tiny else 0.01
        networks = [strength * anatomy * smooth_map(6) for _ in range(6)]
        courses = ndimage.gaussian_filter1d(rng.normal(size=(n_volumes, len(networks))), 2, axis=0)
        courses = (courses / courses.std()).astype(np.float32)
        noise = (0.01 * anatomy + 3 * (anatomy == 0)).astype(np.float32)
        for course in courses:
            volume = anatomy + noise * rng.standard_normal(self.shape, dtype=np.float32)
            for network, now in zip(networks, course, strict=True):
                volume += now * network
            yield (np.abs(np.rint(volume)) if np.dtype(dtype).kind == "i" else volume).astype(dtype)

    def _brain(self):
        """Boolean volume: an ellipsoid of 1.9 litres, about a brain's."""
        x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in self.shape), indexing="ij", sparse=True)
        return (x / 0.76) ** 2 + (y / 0.78) ** 2 + (z / 0.72) ** 2 < 1

    def _write_atlas(self, path, n_regions, dtype, affine):
        real = self.source_of_atlas(n_regions) == "real"
        labels = (
            self._real_labels(n_regions) if real else self._cut(max(n_regions // 100, 3) if self.tiny else n_regions)
        )
        nib.Nifti1Image(labels.astype(dtype), _moved(self.affine, affine)).to_filename(f"{path}.nii.gz")
        Path(f"{path}.nii.gz").rename(path)

    def _write_maps(self, path, n_maps, voxel):
        """The regions of a cut brain, each blurred by 5 mm, volume by volume."""
        labels, size = self._cut(n_maps), self.affine[0, 0]
        step = 8.0 if self.tiny else voxel
        shape = tuple(round(n * size / step) for n in self.shape)
        affine = self.affine @ np.diag([step / size] * 3 + [1])
        header = nib.Nifti1Header()
        header.set_data_dtype(np.uint8)
        header.set_data_shape((*shape, n_maps))
        header.set_sform(affine, "mni")
        header["vox_offset"], header["magic"] = 352, b"n+1"
        with path.open("wb") as file:
            file.write(header.binaryblock + bytes(4))
            for label in range(1, n_maps + 1):
                blurred = ndimage.gaussian_filter((labels == label).astype(np.float32), 5 / 2.355 / size, truncate=3)
                if shape != self.shape:
                    blurred = ndimage.zoom(blurred, [a / b for a, b in zip(shape, self.shape, strict=True)], order=1)
                file.write(np.rint(100 * blurred).astype(np.uint8).tobytes(order="F"))

    def _real_labels(self, n_regions):
        """A real atlas on the grid: all of them have 2 mm voxels, so that nearest neighbours only shift and flip it."""
        img = nib.load(REAL / REAL_FILES[n_regions])
        mapping = np.linalg.inv(img.affine) @ self.affine
        labels = np.asanyarray(img.dataobj)
        labels = ndimage.affine_transform(labels, mapping[:3, :3], mapping[:3, 3], self.shape, order=0)
        labels = np.rint(labels).astype(np.int32)
        found = len(np.unique(labels)) - 1
        if found != n_regions:
            msg = f"{REAL_FILES[n_regions]} has {found} regions on the grid, expected {n_regions}"
            raise ValueError(msg)
        return labels

    def _cut(self, n_regions, seed=0):
        """Label volume (int32) that cuts the brain into compact regions around random centres, of mixed sizes."""
        brain, rng = self._brain(), np.random.default_rng(seed)
        voxels = np.argwhere(brain)
        centres = voxels[rng.choice(len(voxels), n_regions, replace=False)]
        marks = np.zeros(self.shape, np.int32)
        marks[tuple(centres.T)] = np.arange(1, n_regions + 1)
        nearest = ndimage.distance_transform_edt(marks == 0, return_distances=False, return_indices=True)
        return np.where(brain, marks[tuple(nearest)], 0).astype(np.int32)


def _moved(affine, how):
    if how == "same":
        return affine
    moved = np.eye(4)
    if how == "shifted":
        moved[:3, 3] = 0.5
    else:
        angle = np.deg2rad(5)
        moved[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return moved @ affine


def _write_first(path, run, n_volumes):
    """The first volumes of an uncompressed run, byte by byte."""
    header = nib.load(run).header.copy()
    header.set_data_shape((*header.get_data_shape()[:3], n_volumes))
    header["vox_offset"] = 352  # nibabel clears it when it loads
    volume_bytes = int(np.prod(header.get_data_shape()[:3])) * header.get_data_dtype().itemsize
    with run.open("rb") as source, path.open("wb") as target:
        source.seek(352)
        target.write(header.binaryblock + bytes(4))
        for _ in range(n_volumes):
            target.write(source.read(volume_bytes))


def _compress(path, run):
    # Level 1 is nibabel's, and so fMRIPrep's.
    with run.open("rb") as source, gzip.open(path, "wb", compresslevel=1) as target:
        shutil.copyfileobj(source, target, 1 << 20)
