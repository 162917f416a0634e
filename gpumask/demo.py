"""The inputs of ``gpumask demo``: a real run from nibabel's wheel, and an atlas cut from it."""

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from gpumask.files import appearing_together, write

_CUTS = (2, 3, 3)  # pieces along x, y and z


def example_run() -> Path:
    """Path of the EPI run in nibabel's test data: 20 volumes of 17 x 21 x 3 voxels."""
    path = Path(nib.__file__).parent / "tests" / "data" / "functional.nii"
    if not path.is_file():
        msg = f"nibabel is installed without its test data ({path}). Reinstall it with pip."
        raise FileNotFoundError(msg)
    return path


def write_atlas(run: str | os.PathLike, folder: Path) -> tuple[Path, Path]:
    """Cut the bright part of a run into boxes; write them as a label image and its look-up table.

    Parameters
    ----------
    run : str or path-like
        A 4D NIfTI image.
    folder : Path
        Created if missing.

    Returns
    -------
    atlas, lut : Path
    """
    img = nib.Nifti1Image.from_filename(run)
    mean = np.asarray(img.dataobj).mean(axis=3)
    bright = mean > 0.5 * np.percentile(mean, 98)
    pieces = [np.arange(n) * cuts // n for n, cuts in zip(mean.shape, _CUTS, strict=True)]
    x, y, z = np.meshgrid(*pieces, indexing="ij")
    labels = np.where(bright, 1 + x + _CUTS[0] * (y + _CUTS[1] * z), 0).astype(np.int16)
    index = np.unique(labels[labels > 0])
    names = [f"x{(i - 1) % 2}_y{(i - 1) // 2 % 3}_z{(i - 1) // 6}" for i in index]
    folder.mkdir(parents=True, exist_ok=True)
    atlas, lut = folder / "atlas-boxes_dseg.nii.gz", folder / "atlas-boxes_dseg.tsv"
    table = pd.DataFrame({"index": index, "name": names}).to_csv(sep="\t", index=False)
    with appearing_together([atlas, lut]) as parts:
        write(parts[0], [gzip.compress(nib.Nifti1Image(labels, img.affine).to_bytes(), mtime=0)])
        write(parts[1], [table])
    return atlas, lut
