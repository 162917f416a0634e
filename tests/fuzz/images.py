"""Mutated runs, atlases and masks; signals are compared with means of what nibabel reads."""

import bz2
import gzip

import nibabel as nib
import numpy as np
from backports import zstd

from gpumask import NiftiLabelsMasker

from . import mutations
from .verdicts import FaultError, refusal

_AFFINE = np.diag([2.0, 2.5, 3.0, 1.0])
_SHAPE = (5, 4, 3)
_FORMATS = {  # image class, suffixes of header and data
    "NIfTI-1": (nib.Nifti1Image, (".nii",)),
    "NIfTI-1 gzip": (nib.Nifti1Image, (".nii.gz",)),
    "NIfTI-1 zstd": (nib.Nifti1Image, (".nii.zst",)),
    "NIfTI-1 bzip2": (nib.Nifti1Image, (".nii.bz2",)),
    "NIfTI-2": (nib.Nifti2Image, (".nii",)),
    "NIfTI-2 gzip": (nib.Nifti2Image, (".nii.gz",)),
    "pair": (nib.Nifti1Pair, (".hdr", ".img")),
    "pair gzip": (nib.Nifti1Pair, (".hdr.gz", ".img.gz")),
    "Analyze": (nib.AnalyzeImage, (".hdr", ".img")),
    "SPM": (nib.Spm99AnalyzeImage, (".hdr", ".img")),
    "MGH": (nib.MGHImage, (".mgh",)),
    "MGH gzip": (nib.MGHImage, (".mgz",)),
}
_CODERS = {".gz": gzip, ".mgz": gzip, ".zst": zstd, ".bz2": bz2}


class Images:
    """A run, an atlas and a mask in one format; one of them is mutated."""

    def __init__(self, folder):
        rng = np.random.default_rng(0)
        labels = np.zeros(_SHAPE, "i2")
        labels[:2], labels[2:4], labels[4:, :, 1:] = 1, 2, 7
        mask = np.ones(_SHAPE, "u1")
        mask[:, 0, 0] = 0
        stored = rng.integers(0, 200, (*_SHAPE, 6)).astype("i2")
        self._folder, self._made = folder, {}
        for name, (kind, suffixes) in _FORMATS.items():
            for dtype in ("i2", "f4", "scaled"):
                if dtype == "scaled" and not getattr(kind.header_class, "has_data_slope", False):
                    continue
                run = stored.astype("f4" if dtype == "scaled" else dtype)
                images = {"run": kind(run, _AFFINE), "atlas": kind(labels, _AFFINE), "mask": kind(mask, _AFFINE)}
                for image in images.values():
                    if "NIfTI" in name:
                        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a comment" * 5))
                if dtype == "scaled":
                    images["run"].set_data_dtype("u1")  # nibabel chooses the slope
                self._made[name, dtype] = {role: self._written(image, suffixes) for role, image in images.items()}

    def _written(self, image, suffixes):
        """Content of the files by suffix, decompressed."""
        for path in self._folder.iterdir():
            path.unlink()
        image.to_filename(self._folder / f"x{suffixes[-1]}")
        found = {}
        for path in sorted(self._folder.iterdir()):
            suffix = path.name.removeprefix("x")
            coder = self._coder(suffix)
            found[suffix] = coder.decompress(path.read_bytes()) if coder else path.read_bytes()
        return found

    def _coder(self, suffix):
        return next((coder for end, coder in _CODERS.items() if suffix.endswith(end)), None)

    def draw(self, rng):
        """What is mutated, and the work that uses it."""
        name, dtype = mutations.pick(rng, list(self._made))
        role = mutations.pick(rng, ("run", "run", "run", "atlas", "mask"))
        target = mutations.pick(rng, (None, "data", "labels"))
        kind, suffixes = _FORMATS[name]
        made = {each: dict(contents) for each, contents in self._made[name, dtype].items()}
        suffix = mutations.pick(rng, list(made[role]))
        data, what = made[role][suffix], []
        of_header = suffix == suffixes[0] and rng.integers(2)
        for _ in range(int(rng.integers(1, 4))):
            if of_header:
                data, how = mutations.of_header(rng, data, kind.header_class.template_dtype)
            else:
                data, how = mutations.of_bytes(rng, data)
            what.append(how)
            if rng.integers(2):
                break
        coder = self._coder(suffix)
        if coder and rng.integers(3) == 0:  # the compressed bytes instead
            data = made[role][suffix]
            data, how = (
                mutations.of_gzip(rng, data) if coder is gzip and rng.integers(2) else
                mutations.of_bytes(rng, coder.compress(data))
            )  # fmt: skip
            what, coder = [f"compressed: {how}"], None
        content = coder.compress(data) if coder else data
        for path in self._folder.iterdir():
            path.unlink()
        for each, contents in made.items():
            for other, whole in contents.items():
                packer = self._coder(other)
                packed = packer.compress(whole) if packer else whole
                (self._folder / f"{each}{other}").write_bytes(content if (each, other) == (role, suffix) else packed)
        paths = {each: self._folder / f"{each}{suffixes[-1]}" for each in made}
        description = f"{name} {dtype}, {role}{suffix}, target {target}: {'; '.join(what)}"
        return description, lambda: self._use(paths, target)

    def _use(self, paths, target):
        masker = NiftiLabelsMasker(
            paths["atlas"],
            mask_img=paths["mask"],
            resampling_target=target,
            device="cpu",
            reports=False,
            min_coverage=0,
        )
        try:
            signals = masker.fit().transform(paths["run"])
        except Exception as error:
            return refusal(error, *(self._folder / f"{role}." for role in paths))
        return self._compared(np.atleast_2d(signals), paths)

    def _compared(self, signals, paths):
        """Compare signals with means of what nibabel reads, where no resampling and rounding is in play."""
        with np.errstate(all="ignore"):
            try:
                expected, sizes = slow_means(*paths.values())
            except UndecidedError as reason:
                return str(reason)
            if signals.shape != expected.shape:
                msg = f"signals have shape {signals.shape}, expected {expected.shape}"
                raise FaultError(msg)
            tolerance = (1e-5 if signals.dtype == np.float32 else 1e-9) * sizes + 1e-30
            decided = np.isfinite(sizes) & (sizes < 1e30)
            wrong = decided & ~(np.abs(signals - expected) <= tolerance)
            if wrong.any():
                first = f"{signals[wrong][0]}, expected {expected[wrong][0]}"
                msg = f"{wrong.sum()} signals differ, first at {np.argwhere(wrong)[0].tolist()}: {first}"
                raise FaultError(msg)
        return "equal" if decided.all() else "equal where finite"


class UndecidedError(Exception):
    """Why there is no expected value."""


def slow_means(run, atlas, mask):
    """Means of a run's regions from nibabel's arrays, and means of the absolute values, shape (volumes, regions)."""
    try:
        images = [nib.load(path) for path in (run, atlas, mask)]
        values, labels, mask = (np.asanyarray(image.dataobj).astype(float) for image in images)
    except MemoryError:
        reason = "numbers, too large for nibabel"
        raise UndecidedError(reason) from None
    except Exception as error:
        msg = f"signals, but nibabel can't read the files: {type(error).__name__}: {error}"
        raise FaultError(msg) from error
    labels = labels[..., 0] if labels.ndim == 4 else labels
    shapes = {image.shape[:3] for image in images}
    if len(shapes) > 1 or not all(np.allclose(image.affine, images[0].affine, 1e-7, 0) for image in images):
        reason = "resampled"
        raise UndecidedError(reason)
    finite = labels[np.isfinite(labels)]
    if (finite != np.rint(finite)).any():
        reason = "labels that aren't whole"
        raise UndecidedError(reason)
    inside = np.isfinite(mask) & (mask != 0)
    inside = inside.all(axis=3) if mask.ndim == 4 else inside
    if images[2].dataobj.inter != 0:
        reason = "a mask with an intercept"
        raise UndecidedError(reason)
    labels = np.where(np.isfinite(labels) & inside, labels, 0)
    values = np.where(np.isfinite(values), values, 0)
    values = values[..., None] if values.ndim == 3 else values
    regions = [values[labels == label] for label in np.unique(labels) if label]
    return tuple(
        np.stack([change(region).mean(axis=0) for region in regions], axis=1) for change in (np.asarray, np.abs)
    )
