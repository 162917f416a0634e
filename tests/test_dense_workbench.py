"""The numbers of `wb_command -cifti-parcellate`, where Connectome Workbench is installed."""

import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest

from gpumask import NiftiLabelsMasker
from tests import dense

pytestmark = pytest.mark.skipif(shutil.which("wb_command") is None, reason="needs connectome-workbench (Debian)")


@pytest.mark.parametrize(
    ("method", "strategy"),
    [
        ("MEAN", "mean"),
        ("MEDIAN", "median"),
        ("STDEV", "standard_deviation"),
        ("MIN", "minimum"),
        ("MAX", "maximum"),
        ("SUM", "sum"),
    ],
)
def test_parcellates_like_workbench(tmp_path, method, strategy):
    rng = np.random.default_rng(0)
    axis = dense.models(rng)
    data = (rng.standard_normal((30, len(axis))) * 5 + 100).astype(np.float32)
    data[:, 4] = 0  # a hole
    labels = rng.choice([0, 3, 4, 17, 2000], len(axis))
    run = dense.save(dense.series_image(data, axis), tmp_path / "run.dtseries.nii")
    atlas = dense.save(dense.labels_image(labels, axis), tmp_path / "atlas.dlabel.nii")
    out = tmp_path / "out.ptseries.nii"
    command = ["wb_command", "-cifti-parcellate", run, atlas, "COLUMN", out, "-method", method]
    subprocess.run(command, check=True, capture_output=True)
    known = nib.load(out)
    masker = NiftiLabelsMasker(atlas, strategy=strategy)
    signals = masker.fit_transform(run)
    assert masker.get_feature_names_out() == list(known.header.get_axis(1).name)
    np.testing.assert_allclose(signals, known.get_fdata(), rtol=1e-6)  # both float32
