"""Dense series on a GPU, or an emulated one: the CPU's signals."""

import contextlib

import numpy as np
import pytest

from gpumask import NiftiLabelsMasker, transform_together
from gpumask.choices import STRATEGIES
from tests import dense

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [">f4", "<f8", "<i2", "u1"])
def test_signals_of_the_cpu(tmp_path, dtype):
    rng = np.random.default_rng(0)
    axis = dense.models(rng)
    values = np.rint(rng.standard_normal((70, len(axis))) * 20 + 100).astype(dtype)
    run = dense.save(dense.series_image(values.astype("f4"), axis), tmp_path / "run.dtseries.nii")
    if values.dtype.kind == "f":
        values[3, 5], values[60, 9] = np.nan, np.inf
    dense.recoded(run, dtype, values, 0.5, 10)
    atlas = dense.labels_image(np.arange(len(axis)) % 5, axis)

    def maskers(device):
        options = [(strategy, policy) for strategy in STRATEGIES for policy in ("zero", "omit")]
        return [NiftiLabelsMasker(atlas, strategy=s, nan_policy=p, device=device, dtype="f8").fit() for s, p in options]

    on_gpu, on_cpu = maskers("cuda"), maskers("cpu")
    with pytest.warns(UserWarning, match="^Non-finite") if values.dtype.kind == "f" else contextlib.nullcontext():
        expected = transform_together(on_cpu, run)
    with pytest.warns(UserWarning, match="^Non-finite") if values.dtype.kind == "f" else contextlib.nullcontext():
        both = transform_together([*on_gpu, *on_cpu], run)
    for masker, signals, reference in zip(on_gpu + on_cpu, both, expected * 2, strict=True):
        np.testing.assert_allclose(signals, reference, rtol=1e-10, atol=1e-10)
        if masker.strategy in ("mean", "sum") and values.dtype.kind != "f":
            assert signals.tobytes() == reference.tobytes()
    assert on_gpu[0].plan_.device.startswith("cuda:")
