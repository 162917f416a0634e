"""Region signals of dense CIFTI-2 series, against their definition, one number at a time."""

import warnings

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from gpumask import (
    MultiNiftiLabelsMasker,
    NiftiLabelsMasker,
    NiftiMapsMasker,
    NiftiMasker,
    NiftiSpheresMasker,
    clean_img,
    correlation_maps,
    smooth_img,
    transform_together,
)
from gpumask.choices import STRATEGIES
from gpumask.engine import series as engine
from gpumask.engine.dense_regions import DenseLabelRegions
from gpumask.engine.plan import compile_plan
from gpumask.images.dense_atlas import load_dense_atlas
from gpumask.images.grayordinates import open_dense
from gpumask.kernels import compiled
from gpumask.signal import clean
from tests import dense, helpers

N_TIMES = 150


@pytest.fixture
def made(tmp_path):
    """A series and an atlas of different brain models: paths, values and axes."""
    return make(tmp_path, np.random.default_rng(3))


def make(folder, rng, n_times=N_TIMES, *, holes=0, share=0.7):
    axis, atlas_axis = dense.models(rng, share=share), dense.models(rng, share=share)
    data = (rng.standard_normal((n_times, len(axis))) + 50).astype(np.float32)
    data[rng.integers(0, n_times, holes), rng.integers(0, len(axis), holes)] = rng.choice(
        [np.nan, np.inf, -np.inf], holes
    )
    labels = rng.choice([0, 1, 2, 5, 900], len(atlas_axis))
    run = dense.save(dense.series_image(data, axis), folder / "run.dtseries.nii")
    atlas = dense.save(dense.labels_image(labels, atlas_axis), folder / "atlas.dlabel.nii")
    return run, atlas, data, axis, labels, atlas_axis


@pytest.mark.parametrize("nan_policy", ["zero", "omit"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equals_the_definition(tmp_path, strategy, nan_policy):
    run, atlas, *made = make(tmp_path, np.random.default_rng(1), holes=40)
    masker = NiftiLabelsMasker(atlas, strategy=strategy, nan_policy=nan_policy, dtype="f8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        signals = masker.fit_transform(run)
    ids, expected, counts = dense.by_definition(*made, strategy, nan_policy)
    np.testing.assert_allclose(signals, expected, rtol=1e-12, atol=1e-12)
    assert list(masker.region_ids_.values())[1:] == ids
    np.testing.assert_array_equal(masker.coverage_[["voxels", "covered"]], counts)


def test_non_finite_values_that_count_as_zero_are_warned_about(tmp_path):
    run, atlas, *_ = make(tmp_path, np.random.default_rng(1), holes=5)
    with pytest.warns(UserWarning, match="^Non-finite values detected. These values will be replaced with zeros.$"):
        NiftiLabelsMasker(atlas).fit_transform(run)


@pytest.mark.parametrize(
    ("dtype", "slope", "inter"),
    [
        *((dtype, None, None) for dtype in ("<f4", ">f4", "<f8", ">f8", "u1", "<i4", ">u2", "<i8")),
        ("<i2", 0.25, 100.0),
        (">i2", -0.5, 3.0),
        ("<f4", 2.0, 0.0),
    ],
)
@pytest.mark.parametrize("strategy", ["mean", "sum", "minimum", "median", "standard_deviation"])
def test_dtypes_byte_orders_and_scales(made, strategy, dtype, slope, inter):
    run, atlas, data, *rest = made
    stored = np.rint(data * 2).astype(dtype)
    dense.recoded(run, dtype, stored, slope, inter)
    values = stored.astype(np.float64) * (1 if slope is None else slope) + (inter or 0)
    np.testing.assert_array_equal(nib.load(run).get_fdata(), values)  # the helper writes what it says
    signals = NiftiLabelsMasker(atlas, strategy=strategy, dtype="f8").fit_transform(run)
    np.testing.assert_allclose(signals, dense.by_definition(values, *rest, strategy)[1], rtol=1e-12)


def test_odd_offset(made):
    """Values may start at a byte that isn't a multiple of their size."""
    run, atlas, _, *_rest = made
    expected = NiftiLabelsMasker(atlas).fit_transform(run)
    content = bytearray(run.read_bytes())
    start = int.from_bytes(content[168:176], "little")
    content[168:176] = (start + 1).to_bytes(8, "little")
    run.write_bytes(content[:start] + b"\0" + content[start:])
    np.testing.assert_array_equal(NiftiLabelsMasker(atlas).fit_transform(run), expected)


@pytest.mark.parametrize("seed", range(40))
def test_draws_of_brain_models(tmp_path, seed):
    """Grayordinates are matched by what they are, wherever they are in the two files."""
    rng = np.random.default_rng(seed)
    axis, atlas_axis = (
        shuffled(dense.models(rng, share=rng.uniform(0.2, 1), with_voxels=rng.random() < 0.8), rng) for _ in "12"
    )
    data = rng.standard_normal((3, len(axis)))
    labels = rng.choice([0, 1, 2, 3, 40], len(atlas_axis))
    labels[0] = 1
    run = dense.save(dense.series_image(data, axis), tmp_path / "run.dtseries.nii")
    atlas = dense.save(dense.labels_image(labels, atlas_axis), tmp_path / "atlas.dlabel.nii")
    _ids, expected, counts = dense.by_definition(data, axis, labels, atlas_axis)
    masker = NiftiLabelsMasker(atlas, keep_all_regions=True)
    if not counts[:, 1].any():
        with pytest.raises(ValueError, match="no grayordinate"):
            masker.fit_transform(run)
        return
    signals = masker.fit_transform(run)
    np.testing.assert_allclose(signals, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(masker.coverage_["fraction"], counts[:, 1] / counts[:, 0])
    assert masker.plan_.counts.tolist() == counts[:, 1].tolist()


def shuffled(axis, rng):
    """The structures in another order, some missing, and the grayordinates of each in any order."""
    parts = [part for _, _, part in axis.iter_structures()]
    chosen = rng.permutation(len(parts))[: rng.integers(1, len(parts) + 1)]
    parts = [parts[k][rng.permutation(len(parts[k]))] for k in chosen]
    result = parts[0]
    for part in parts[1:]:
        result = result + part
    return result


def test_cortex_and_medial_wall_atlases_fit_91k(tmp_path):
    """An atlas of cortex only, or of all vertices of a mesh, is applied to a run without medial wall."""
    rng = np.random.default_rng(0)
    run_axis = dense.surface(np.arange(0, 60, 2)) + dense.voxels([[1, 2, 3]])
    data = rng.standard_normal((4, len(run_axis)))
    run = dense.save(dense.series_image(data, run_axis), tmp_path / "run.dtseries.nii")
    for vertices in (np.arange(0, 60, 2), np.arange(60)):
        labels = np.where(vertices < 30, 1, 2)
        atlas = dense.labels_image(labels, dense.surface(vertices))
        masker = NiftiLabelsMasker(atlas)
        signals = masker.fit_transform(run)
        np.testing.assert_allclose(
            signals, np.stack([data[:, :15].mean(1), data[:, 15:30].mean(1)], axis=1), rtol=1e-12
        )
        assert masker.coverage_["fraction"].tolist() == [30 / len(vertices)] * 2


def test_same_bits_for_any_block_and_number_of_threads(tmp_path, monkeypatch):
    run, atlas, *_ = make(tmp_path, np.random.default_rng(2), holes=10)
    monkeypatch.setattr(engine, "_LEAST_TIMES", 16)
    series = open_dense(run)
    regions = DenseLabelRegions(load_dense_atlas(atlas)).on(series.grid, "data", "found")
    for strategy in STRATEGIES:
        plan = compile_plan(regions.segments, series.grid, strategy=strategy)
        (expected,) = engine.run_series([plan], series, n_threads=1)
        for size, n_threads, tile in [(1, 1, 8), (7, 3, 8000), (50, 2, 1), (10**6, 5, 10**6)]:
            monkeypatch.setattr(engine, "_TILE_BYTES", tile)
            (signals,) = engine.run_series([plan], series, size=size, n_threads=n_threads)
            assert signals.signals.tobytes() == expected.signals.tobytes()
            assert signals.non_finite


@helpers.needs_compiled
@pytest.mark.parametrize("strategy", ["minimum", "maximum", "median"])
@pytest.mark.parametrize(("slope", "inter"), [(None, None), (0.37, -1.3), (-0.37, 2.0)])
@pytest.mark.parametrize("dtype", ["<f4", "<i2", "<f8"])
def test_same_bits_in_place_and_gathered(tmp_path, monkeypatch, strategy, slope, inter, dtype):
    """Values that are read where the file has them give the bits of those that are gathered, next to holes too."""
    run, atlas, data, *_ = make(tmp_path, np.random.default_rng(8))
    stored = (100 * data).astype(dtype)
    if dtype != "<i2":
        stored[[3, 90], [5, 60]] = np.nan, np.inf
    dense.recoded(run, dtype, stored, slope, inter)
    signals = []
    for in_place in (engine.reads_in_place, lambda *_: False):
        monkeypatch.setattr(engine, "reads_in_place", in_place)
        masker = NiftiLabelsMasker(atlas, strategy=strategy, nan_policy="omit", dtype="f8")
        signals.append(masker.fit_transform(run).tobytes())
    assert signals[0] == signals[1]


def test_several_atlases_have_the_bits_of_each_alone(tmp_path):
    run, atlas, _, _, labels, atlas_axis = make(tmp_path, np.random.default_rng(2))
    other = dense.labels_image(labels[::-1], atlas_axis)
    maskers = [NiftiLabelsMasker(img, strategy=s).fit() for img in (atlas, other) for s in ("mean", "sum", "median")]
    alone = [masker.transform(run) for masker in maskers]
    together = transform_together(maskers, run)
    assert [signals.tobytes() for signals in together] == [signals.tobytes() for signals in alone]


@helpers.needs_compiled
def test_same_bits_without_the_compiled_loops(tmp_path, monkeypatch):
    run, atlas, *_ = make(tmp_path, np.random.default_rng(2))
    expected = NiftiLabelsMasker(atlas).fit_transform(run)
    monkeypatch.setattr(compiled, "extension", None)
    assert NiftiLabelsMasker(atlas).fit_transform(run).tobytes() == expected.tobytes()


def test_cleaning_is_that_of_volumes(made):
    run, atlas, data, *rest = made
    rng = np.random.default_rng(0)
    confounds = pd.DataFrame(rng.standard_normal((N_TIMES, 2)), columns=["a", "b"])
    keep = np.flatnonzero(rng.random(N_TIMES) < 0.9)
    options = {"detrend": True, "standardize": "zscore_sample", "low_pass": 0.1, "high_pass": 0.01, "t_r": dense.T_R}
    signals = NiftiLabelsMasker(atlas, dtype="f8", **options).fit_transform(run, confounds=confounds, sample_mask=keep)
    raw = dense.by_definition(data, *rest)[1]
    expected = clean(raw, confounds=confounds, sample_mask=keep, **options)
    np.testing.assert_allclose(signals, expected, rtol=1e-9, atol=1e-9)


def test_output_names_and_colours(made):
    run, atlas, *_ = made
    masker = NiftiLabelsMasker(atlas).set_output(transform="pandas")
    frame = masker.fit_transform(run)
    assert list(frame.columns) == ["Parcel 1", "Parcel 2", "Parcel 5", "Parcel 900"]
    assert masker.lut_["name"].tolist() == ["Background", *frame.columns]
    # table() gives key 1 the colour (1/7, 1/5, 1/3).
    assert masker.lut_["color"].tolist()[:2] == ["#ffffff", "#243355"]
    assert frame.dtypes.tolist() == [np.float32] * 4
    assert NiftiLabelsMasker(atlas, labels=list("abcd")).fit().lut_["name"].tolist() == ["Background", *"abcd"]


def test_labels_img_is_made_when_it_is_used(made, tmp_path):
    """nibabel takes half a second for it."""
    run, atlas, _, _, labels, atlas_axis = made
    masker = NiftiLabelsMasker(atlas)
    assert not hasattr(masker, "labels_img_")
    for values in (labels, labels[::-1]):
        dense.save(dense.labels_image(values, atlas_axis), atlas)
        masker.fit(run)
        assert "labels_img_" not in vars(masker)
        np.testing.assert_array_equal(masker.labels_img_.get_fdata(), [values])
        assert masker.labels_img_ is masker.labels_img_
        assert masker.labels_img_.header.get_axis(1) == atlas_axis


def test_labels_without_an_entry_are_called_unknown(tmp_path, made):
    run, _, _, axis, *_ = made
    labels = np.where(np.arange(len(axis)) % 2, 3, 4)
    image = dense.labels_image(labels, axis, tables=[dense.table([3, 77])])
    with pytest.warns(
        UserWarning, match=r"^The label table of in-memory image doesn't fit .*1 label .*'unknown'\): 4\."
    ):
        masker = NiftiLabelsMasker(image).fit()
    assert masker.lut_["name"].tolist() == ["Parcel 3", "unknown"]
    assert masker.transform(run).shape == (N_TIMES, 2)


def test_lost_regions(made):
    run, _, data, axis, *_ = made
    vertices = np.arange(dense.N_VERTICES)
    lost = int(np.setdiff1d(vertices, axis.vertex[axis.name == dense.LEFT])[0])
    labels = np.where(vertices == lost, 8, 6)
    image = dense.labels_image(labels, dense.surface(vertices))
    with pytest.warns(UserWarning, match="has no grayordinate of 1 of 2 labels") as caught:
        signals = NiftiLabelsMasker(image).fit_transform(run)
    assert [str(one.message) for one in caught] == [
        f"{run} has no grayordinate of 1 of 2 labels of in-memory image: 8. They have no column; "
        "keep_all_regions=True keeps it."
    ]
    assert signals.shape == (N_TIMES, 1)
    signals = NiftiLabelsMasker(image, keep_all_regions=True).fit_transform(run)
    assert np.isnan(signals[:, 1]).all()
    np.testing.assert_allclose(signals[:, 0], data[:, axis.name == dense.LEFT].mean(axis=1), rtol=1e-6)
    masker = NiftiLabelsMasker(image, min_coverage=0.99, keep_all_regions=True)
    assert np.isnan(masker.fit_transform(run)).all()


def test_in_memory_images(made):
    run, atlas, data, axis, _labels, _atlas_axis = made
    expected = NiftiLabelsMasker(atlas).fit_transform(run)
    loaded, in_memory = nib.load(run), dense.series_image(data, axis)
    for img in (loaded, in_memory, dense.series_image(np.asfortranarray(data), axis), open_dense(run)):
        np.testing.assert_array_equal(NiftiLabelsMasker(nib.load(atlas)).fit_transform(img), expected)


def test_memory_and_many_runs(made, tmp_path):
    run, atlas, *_ = made
    expected = NiftiLabelsMasker(atlas).fit_transform(run)
    for _ in range(2):
        signals = NiftiLabelsMasker(atlas, memory=tmp_path / "cache").fit_transform(run)
        assert signals.tobytes() == expected.tobytes()
    several = MultiNiftiLabelsMasker(atlas).fit().transform([run, run])
    assert [signals.tobytes() for signals in several] == [expected.tobytes()] * 2


def test_progress_ends_at_the_number_of_time_points(made):
    run, atlas, *_ = made
    for strategy in ("mean", "median"):
        calls = []
        NiftiLabelsMasker(atlas, strategy=strategy).fit().transform_single_imgs(run, progress=calls.append)
        assert calls == sorted(calls)
        assert calls[-1] == N_TIMES


def test_explains(made):
    run, atlas, *_ = made
    masker = NiftiLabelsMasker(atlas)
    masker.fit_transform(run)
    n, covered = len(nib.load(run).header.get_axis(1)), masker.coverage_["covered"].sum()
    assert masker.explain().splitlines()[:2] == [
        f"4 regions, {covered} grayordinates of {n}",
        "direct: mean of the stored grayordinates",
    ]
    assert masker.region_atlas_.shape == masker.labels_img_.shape == (1, len(nib.load(atlas).header.get_axis(1)))


# Maps


@pytest.fixture
def maps(tmp_path):
    """A series, and three overlapping maps of more grayordinates than it has: paths, values and axes."""
    rng = np.random.default_rng(7)
    axis, maps_axis = dense.models(rng, share=0.6), dense.models(rng, share=1.0)
    data = rng.standard_normal((20, len(axis))) + 9
    weights = rng.random((3, len(maps_axis))) * (rng.random((3, len(maps_axis))) < 0.5)
    run = dense.save(dense.series_image(data, axis), tmp_path / "run.dtseries.nii")
    path = dense.save(dense.scalars_image(weights, maps_axis), tmp_path / "maps.dscalar.nii")
    place = {identity: k for k, identity in enumerate(dense.identities(maps_axis))}
    known = [place.get(identity, -1) for identity in dense.identities(axis)]
    own = np.where(np.array(known) >= 0, weights[:, known], 0)
    return run, path, data, weights, own


def test_maps_are_least_squares(maps):
    run, path, data, weights, own = maps
    masker = NiftiMapsMasker(path)
    signals = masker.fit_transform(run)
    np.testing.assert_allclose(signals, np.linalg.lstsq(own.T, data.T, rcond=None)[0].T, rtol=1e-10)
    np.testing.assert_allclose(masker.coverage_["fraction"], own.sum(1) / weights.sum(1))
    assert masker.coverage_["voxels"].tolist() == (weights > 0).sum(1).tolist()
    assert masker.coverage_["covered"].tolist() == (own > 0).sum(1).tolist()
    assert "least squares: one matrix after sums over the maps; rank 3 of 3" in masker.explain()


def test_weighted_means(maps):
    run, path, data, _, own = maps
    signals = NiftiMapsMasker(path, strategy="weighted_mean").fit_transform(run)
    np.testing.assert_allclose(signals, data @ own.T / own.sum(1), rtol=1e-12)
    changed = NiftiMapsMasker(path).fit()
    changed.strategy = "weighted_mean"
    np.testing.assert_array_equal(changed.transform(run), signals)


def test_maps_of_a_series(maps, tmp_path):
    run, path, *_ = maps
    image = nib.load(path)
    series = dense.series_image(image.get_fdata(), image.header.get_axis(1))
    np.testing.assert_array_equal(NiftiMapsMasker(series).fit_transform(run), NiftiMapsMasker(path).fit_transform(run))


def test_bad_maps(maps):
    run, path, *_ = maps
    axis = nib.load(run).header.get_axis(1)
    with pytest.raises(ValueError, match=r"^Overlap detected in the maps\."):
        NiftiMapsMasker(path, allow_overlap=False).fit_transform(run)
    negative = dense.scalars_image(np.where(np.arange(len(axis)) == 3, -2.0, 1.0)[np.newaxis], axis, ["odd"])
    with pytest.raises(ValueError, match=r"without negative weights, but map 'odd' of in-memory image has -2\.0\. Use"):
        NiftiMapsMasker(negative, strategy="weighted_mean").fit_transform(run)
    present = axis.vertex[axis.name == dense.LEFT]
    absent = np.setdiff1d(np.arange(dense.N_VERTICES), present)[0]
    elsewhere = dense.scalars_image(np.eye(2), dense.surface([present[0], absent]), ["a", "b"])
    for strategy in ("least_squares", "weighted_mean"):
        with pytest.raises(
            ValueError, match=r"has no grayordinate with a weight of these maps of in-memory image: b\."
        ):
            NiftiMapsMasker(elsewhere, strategy=strategy).fit_transform(run)
    for parameters in ({"mask_img": "a.nii"}, {"keep_masked_maps": True}, {"resampling_target": "maps"}):
        with pytest.raises(ValueError, match=f"^{next(iter(parameters))}=.* has no meaning for grayordinates: "):
            NiftiMapsMasker(path, **parameters).fit()


# Errors


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"smoothing_fwhm": 4},
            "smoothing_fwhm=4 has no meaning for grayordinates: smoothing needs the surfaces: wb_command "
            "-cifti-smoothing has them.",
        ),
        (
            {"resampling_target": "labels"},
            "resampling_target='labels' has no meaning for grayordinates: they are matched by vertex and voxel, not "
            "resampled: use 'data', or None for equal ones.",
        ),
        ({"keep_masked_labels": True}, "keep_masked_labels=True has no meaning for grayordinates: they have no mask."),
        (
            {"mask_img": "mask.nii"},
            "mask_img='mask.nii' has no meaning for grayordinates: a mask of volumes doesn't apply to them: set labels "
            "outside it to the background.",
        ),
    ],
)
def test_parameters_without_a_meaning(made, parameters, message):
    run, atlas, *_ = made
    with pytest.raises(ValueError) as error:
        NiftiLabelsMasker(atlas, **parameters).fit_transform(run)
    assert str(error.value) == message


def test_volumes_and_grayordinates_cannot_be_mixed(made, tmp_path):
    run, atlas, *_ = made
    volumes = helpers.save(tmp_path / "bold.nii", np.random.default_rng(0).random((6, 7, 8, 3)))
    labels = helpers.save(tmp_path / "labels.nii", helpers.blocks())
    to_volumes = f"{volumes} has voxels, the regions of {atlas} grayordinates. Pass a dense series (.dtseries.nii, "
    to_volumes += ".func.gii), or"
    to_series = f"{run} has grayordinates, the regions of {labels} voxels. Pass an image of volumes, or"
    for regions, img, message in [(atlas, volumes, to_volumes), (labels, run, to_series)]:
        masker = NiftiLabelsMasker(regions)
        for call in (masker.fit, masker.fit_transform, masker.fit().transform):
            with pytest.raises(ValueError) as error:
                call(img)
            assert str(error.value) == f"{message} regions of the run's kind."
    with pytest.raises(ValueError, match=r"^.* has grayordinates, the regions are spheres in volumes\. Pass an image"):
        NiftiSpheresMasker([(0, 0, 0)], radius=3).fit().transform(run)
    for call in (
        NiftiMasker().fit,
        NiftiSpheresMasker([(0, 0, 0)], radius=3).fit,
        clean_img,
        lambda img: smooth_img(img, 4),
        lambda img: correlation_maps(NiftiLabelsMasker(atlas).fit(), img, mask_img=labels),
        lambda img: NiftiLabelsMasker(atlas).fit_transform([img, img]),  # a list is of volumes
    ):
        for img in (run, nib.load(run)):
            with pytest.raises(ValueError) as error:
                call(img)
            assert str(error.value) == (
                f"{run} holds grayordinates (CIFTI-2), expected an image of volumes (NIfTI, Analyze or MGH). Only "
                "maskers of labels and of maps read grayordinates, one file at a time."
            )
    with pytest.raises(ValueError, match=rf"^{run} has grayordinates, the regions of {labels} voxels\."):
        NiftiMasker(mask_img=labels).fit().transform(run)
    with pytest.raises(ValueError, match=r"^label_map='a' is for dense labels \(\.dlabel"):
        NiftiLabelsMasker(labels, label_map="a").fit()


def test_resampling_target_none_needs_equal_grayordinates(made):
    run, atlas, data, axis, *_ = made
    with pytest.raises(
        ValueError, match=r"^.*run\.dtseries\.nii and .*atlas\.dlabel\.nii have different grayordinates: CIFTI_"
    ):
        NiftiLabelsMasker(atlas, resampling_target=None).fit_transform(run)
    own = dense.labels_image(np.ones(len(axis)), axis)
    signals = NiftiLabelsMasker(own, resampling_target=None).fit_transform(run)
    np.testing.assert_allclose(signals[:, 0], data.mean(axis=1), rtol=1e-6)


def test_different_meshes_and_grids_are_named(made, tmp_path):
    run, *_ = made
    other = dense.labels_image(np.ones(5), dense.surface(np.arange(5), n_vertices=164))
    with pytest.raises(ValueError) as error:
        NiftiLabelsMasker(other).fit_transform(run)
    assert str(error.value) == (
        f"{run} and in-memory image have different meshes: the surface {dense.LEFT} has 60 vertices in the first file, "
        "and 164 in the second. Resample one of them (wb_command -cifti-resample, or for GIFTI -metric-resample, "
        "-label-resample)."
    )
    other = dense.labels_image([1], dense.voxels([[1, 1, 1]], affine=np.diag([3.0, 3, 3, 1])))
    with pytest.raises(
        ValueError, match=r"have their voxels on different grids: shapes \(7, 8, 6\) and \(7, 8, 6\), aff"
    ):
        NiftiLabelsMasker(other).fit_transform(run)
    other = dense.labels_image(np.ones(5), dense.surface(np.arange(5), "CIFTI_STRUCTURE_CEREBELLUM"))
    with pytest.raises(
        ValueError, match="have no grayordinate in common: CIFTI_STRUCTURE_CORTEX_LEFT of 60 vertices, CI"
    ):
        NiftiLabelsMasker(other).fit_transform(run)


def test_nilearn_has_no_such_masker(made):
    _, atlas, *_ = made
    with pytest.raises(ValueError) as error:
        NiftiLabelsMasker(atlas).fit().to_nilearn()
    assert str(error.value) == (
        f"to_nilearn doesn't support grayordinates, which {atlas} has. Use regions of volumes for it."
    )
