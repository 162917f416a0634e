"""Random cases for the comparisons with nilearn's maskers: small images, confounds, and what both must agree on.

``GPUMASK_DRAWS`` sets the number of cases of each test (default 150).
"""

import gzip
import os

import nibabel as nib
import numpy as np
import pandas as pd

N_DRAWS = int(os.environ.get("GPUMASK_DRAWS", "150"))

# Where cases are known to differ: (what is not compared, for which facts, why).
BITWISE = (
    "all",
    lambda f: f["butterworth"] and f["censored"],
    "nilearn inverts the indices of the kept volumes bitwise, interpolates others and returns wrong volumes",
)
SCALED_AUTO = (
    "all",
    lambda f: f["kind"] == "scaled" and f["dtype"] == "auto",
    'nilearn fails with dtype="auto" on every scaled image: an AttributeError',
)
UNSIGNED = (
    "values",
    lambda f: f["resampled"] and f["stored"].kind == "u" and f.get("kind") != "scaled",
    "nilearn rounds resampled unsigned integers to integers",
)
ALL_EXPLAINED = (
    "values",
    lambda f: f["n_kept"] < 2 + f["detrend"] + f["n_confounds"] + bool(f["standardize"]),
    "a trend or confounds explain so few volumes in full; nilearn leaves, or scales to variance 1, rounding noise",
)


class Draw:
    """Random choices from a seed."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def pick(self, *options):
        return options[self.rng.integers(len(options))]

    def maybe(self, probability):
        return bool(self.rng.random() < probability)

    def affine(self):
        """Affine of a straight, mirrored or oblique grid, and which of these it is."""
        affine = np.diag([*(self.pick(2.0, 2.5, 3.0) for _ in range(3)), 1.0])
        orientation = self.pick("straight", "straight", "mirrored", "oblique")
        if orientation == "mirrored":
            affine[0, 0] *= -1
        if orientation == "oblique":
            cos, sin = np.cos(0.3), np.sin(0.3)
            affine[:2, :2] = np.array([[cos, -sin], [sin, cos]]) @ affine[:2, :2]
        affine[:3, 3] = [-20, 10, 5]
        return affine, orientation

    def run(self, data, affine, path, *, is_3d, scaled):
        """A run of the volumes `data`, in one of the forms that users pass."""
        imgs = nib.Nifti1Image(data[..., 0] if is_3d else data, affine, dtype=data.dtype)
        form = self.pick("array", "array", "nii", "nii.gz", "list")
        if scaled or form.startswith("nii"):
            path = path.with_name(f"{path.name}.{form if form.startswith('nii') else 'nii'}")
            slope, inter = (self.pick(0.5, 75.538, -0.25), self.pick(0, 0, 1200.5)) if scaled else (1, 0)
            save(imgs, path, slope, inter)
            return self.pick(path, str(path), nib.load(path))
        if form == "list" and not is_3d:
            return [nib.Nifti1Image(volume, affine, dtype=data.dtype) for volume in np.moveaxis(data, -1, 0)]
        return imgs

    def grid_near(self, shape, affine, *, shift=1.0):
        """Shape and affine of another grid that covers about the same space."""
        other_shape, other = tuple(self.rng.integers(5, 12, 3).tolist()), affine.copy()
        other[:3, :3] *= np.array(shape) / np.array(other_shape)
        other[:3, 3] += self.rng.uniform(-1, 1, 3) * shift
        return other_shape, other

    def confounds(self, n_volumes):
        """Confounds in one of the forms that users pass, or None."""
        if not self.maybe(0.4):
            return None
        values = self.rng.normal(size=(n_volumes, 3)) * [1, 10, 0.1] + [0, 5, 1]
        return self.pick(values, pd.DataFrame(values, columns=list("abc")), [values, values[:, :1] ** 2])

    def sample_mask(self, n_volumes):
        """Indices of the kept volumes, one boolean per volume, or None."""
        if not self.maybe(0.25):
            return None
        kept = np.sort(self.rng.choice(n_volumes, max(1, n_volumes - 3), replace=False))
        return self.pick(kept, np.isin(np.arange(n_volumes), kept))


def mask_on(shape, affine, kind, leaving_out):
    """Mask of a `kind`: a "box", "4D", on "other grid", or a box without the voxels `leaving_out`; None for "none"."""
    if kind == "none":
        return None
    mask = np.zeros(shape, "u1")
    mask[1:-1, :-1, 1:] = 1
    if kind.startswith("no "):
        mask[leaving_out] = 0
    if kind == "4D":
        mask = np.stack([mask, np.ones_like(mask)], axis=-1)
    shift = np.zeros((4, 4))
    shift[:3, 3] = 0.5 * (kind == "other grid")
    return nib.Nifti1Image(mask, affine + shift)


def save(img, path, slope, inter):
    """Save the image's stored values, in their byte order, under a header that scales them."""
    data = np.asarray(img.dataobj)
    header = img.header.as_byteswapped("<" if data.dtype.isnative else ">")
    header.set_slope_inter(slope, inter)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    content = header.binaryblock + bytes(4) + data.tobytes(order="F")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def not_compared(known, facts):
    """What isn't compared in a case with these facts."""
    return {what for what, applies, _ in known if applies(facts)}


def both_failed(ours, theirs, facts, length=30):
    """Whether both outcomes are errors, which are then compared: the class, and the start of the message."""
    if not (isinstance(ours, Exception) or isinstance(theirs, Exception)):
        return False
    if type(theirs).__name__ == "BoundingBoxError":  # nilearn's own class of a ValueError
        theirs = ValueError(str(theirs))
    assert type(ours).__name__ == type(theirs).__name__, (facts, ours, theirs)
    # A filter is checked before overlaps are found. "padlen" is SciPy's, where ours says how many volumes are needed.
    earlier = facts["butterworth"] and str(theirs).startswith(("These spheres", "Overlap"))
    if not earlier and "padlen" not in str(theirs):
        assert str(ours)[:length] == str(theirs)[:length], (facts, ours, theirs)
    return True


def tolerance(facts, signals):
    """The difference that rounding may make: nilearn computes in float32 for integers and float32."""
    if signals.dtype.kind == "i":
        return 1  # cut off, on either side of a whole number
    cleaned = facts["standardize"] or facts["detrend"] or facts["butterworth"] or facts["n_confounds"]
    single = signals.dtype == np.float32 or facts["stored"] != np.float64
    relative = (1e-5 if cleaned else 1e-6) if single else (1e-9 if cleaned else 1e-12)
    if facts["high_variance_confounds"] and single:
        relative *= 10  # nilearn finds them in float32
    return relative * max(1.0, np.abs(signals).max(initial=0.0))
