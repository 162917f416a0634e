"""GIFTI series with GIFTI labels, against their definition, one number at a time; and files that lie."""

import gzip
import re
import warnings

import nibabel as nib
import numpy as np
import pytest

from gpumask import MultiNiftiLabelsMasker, NiftiLabelsMasker, NiftiMapsMasker, NiftiMasker, transform_together
from gpumask.choices import STRATEGIES
from gpumask.images.errors import ImageError
from gpumask.images.gifti import is_gifti, read_gifti
from gpumask.images.grayordinates import open_dense
from gpumask.signal import clean
from tests import dense, surfaces

N, T = 50, 20


@pytest.fixture
def made(tmp_path):
    """A series and labels of a left hemisphere: paths and values."""
    rng = np.random.default_rng(0)
    data = (rng.standard_normal((T, N)) + 100).astype("f4")
    values = rng.choice([0, 1, 4, 7], N).astype("i4")
    return (
        surfaces.series(tmp_path / "lh.func.gii", data),
        surfaces.labels(tmp_path / "lh.label.gii", values),
        data,
        values,
    )


def error_of(function, *arguments):
    with pytest.raises((ImageError, ValueError)) as error:
        function(*arguments)
    return str(error.value)


STATISTICS = {"mean": np.mean, "sum": np.sum, "median": np.median, "minimum": np.min, "maximum": np.max}
STATISTICS |= {"variance": np.var, "standard_deviation": np.std}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equals_the_definition(made, strategy):
    run, atlas, data, values = made
    signals = NiftiLabelsMasker(atlas, strategy=strategy, dtype="f8").fit_transform(run)
    np.testing.assert_allclose(signals, surfaces.by_definition(data, values, STATISTICS[strategy]), rtol=1e-9)


@pytest.mark.parametrize("dtype", ["f4", "i4", "u1", "f8"])
@pytest.mark.parametrize(
    "options", [{}, {"encoding": "base64"}, {"encoding": "ascii"}, {"big": True}, {"encoding": "base64", "big": True}]
)
@pytest.mark.parametrize("form", ["arrays", "one array", "one array by columns"])
def test_forms_of_files(tmp_path, made, dtype, options, form):
    """What programs write: text or base64, either byte order, an array for each time point or for all."""
    *_, atlas, _, values = made
    data = np.random.default_rng(1).integers(0, 250, (T, N)).astype(dtype)
    path = tmp_path / "hemi-L_bold.func.gii"
    if form == "arrays":
        surfaces.series(path, data, **options)
    else:
        one = surfaces.array(data.T, order="F" if "columns" in form else "C", **options)
        path.write_text(surfaces.document([one]))
    image = open_dense(path)
    assert image.n_volumes == T
    assert image.t_r is None
    assert image.dtype.str[1:] == dtype
    np.testing.assert_array_equal(image.rows(0, N), data.T)
    signals = NiftiLabelsMasker(atlas).fit_transform(path)
    np.testing.assert_allclose(signals, surfaces.by_definition(data, values), rtol=1e-6)


@pytest.mark.parametrize("intent", ["NONE", "NORMAL", "ESTIMATE"])
def test_intents_of_series(tmp_path, made, intent):
    run, atlas, data, _ = made
    other = surfaces.series(tmp_path / "hemi-L_desc-other.func.gii", data, intent=intent)
    masker = NiftiLabelsMasker(atlas)
    np.testing.assert_array_equal(masker.fit_transform(other), masker.fit_transform(run))


def test_nibabels_files_and_images(tmp_path, made):
    run, atlas, data, _ = made
    expected = NiftiLabelsMasker(atlas).fit_transform(run)
    image = surfaces.in_memory(data)
    before = [array.data.copy() for array in image.darrays]
    np.testing.assert_array_equal(NiftiLabelsMasker(nib.load(atlas)).fit_transform(image), expected)
    for array, own in zip(image.darrays, before, strict=True):
        np.testing.assert_array_equal(array.data, own)
    nib.save(image, tmp_path / "saved.func.gii")
    np.testing.assert_array_equal(NiftiLabelsMasker(str(atlas)).fit_transform(tmp_path / "saved.func.gii"), expected)


def test_cleaning_coverage_and_cache(tmp_path, made):
    run, atlas, data, values = made
    options = {"detrend": True, "standardize": "zscore_sample", "low_pass": 0.1, "t_r": 2.0}
    confounds = np.random.default_rng(2).normal(size=(T, 2))
    masker = NiftiLabelsMasker(atlas, memory=tmp_path / "cache", **options)
    expected = clean(surfaces.by_definition(data, values), confounds=confounds, **options)
    for _ in range(2):
        np.testing.assert_allclose(masker.fit_transform(run, confounds=confounds), expected, atol=1e-5)
    assert masker.coverage_["voxels"].tolist() == [(values == k).sum() for k in (1, 4, 7)]
    assert (masker.coverage_["fraction"] == 1).all()
    other = surfaces.labels(tmp_path / "lh.other.label.gii", np.roll(values, 3))
    both = [NiftiLabelsMasker(one).fit() for one in (atlas, other)]
    for own, together in zip(both, transform_together(both, run), strict=True):
        np.testing.assert_array_equal(together, own.transform(run))


def test_names_colours_and_images(tmp_path, made):
    run, _, _, values = made
    names = {1: "<V1>", 4: "préfrontal", 7: "7"}
    atlas = surfaces.labels(tmp_path / "hemi-L_atlas.label.gii", values, names=names)
    masker = NiftiLabelsMasker(atlas).set_output(transform="pandas")
    signals = masker.fit_transform(run)
    assert signals.columns.tolist() == ["<V1>", "préfrontal", "7"]
    assert masker.lut_["color"].tolist()[1:] == ["#243300", "#92cc00", "#006600"]  # of 1, 4 and 7
    for image in (masker.labels_img_, masker.region_atlas_):
        nib.save(image, tmp_path / "lh.again.label.gii")
        again = NiftiLabelsMasker(tmp_path / "lh.again.label.gii").set_output(transform="pandas")
        assert again.fit_transform(run).equals(signals)
        assert again.lut_.equals(masker.lut_)
        assert again.labels_img_.darrays[0].meta["Name"] == "map 0"
    series = masker.inverse_transform(signals)
    assert isinstance(series, nib.GiftiImage)
    assert series.meta["AnatomicalStructurePrimary"] == "CortexLeft"
    expected = np.zeros((T, N), "f4")
    for column, k in enumerate((1, 4, 7)):
        expected[:, values == k] = signals.iloc[:, [column]]
    np.testing.assert_array_equal([array.data for array in series.darrays], expected)
    nib.save(series, tmp_path / "lh.inverse.func.gii")
    np.testing.assert_allclose(masker.transform(tmp_path / "lh.inverse.func.gii"), signals, rtol=1e-6)
    (one,) = masker.inverse_transform(signals.iloc[0]).darrays
    np.testing.assert_array_equal(one.data, expected[0])


def test_colours_out_of_range(tmp_path, made):
    """They decide nothing but colours, so they are no error."""
    *_, values = made
    rows = '<Label Key="0">none</Label><Label Key="1" Red="255" Green="-3" Blue="0.5" Alpha="nan">one</Label>'
    path = tmp_path / "lh.label.gii"
    path.write_text(
        surfaces.document([surfaces.array(np.minimum(values, 1), "LABEL")], table=f"<LabelTable>{rows}</LabelTable>")
    )
    assert NiftiLabelsMasker(path).fit().lut_["color"].tolist() == ["#ffffff", "#ff0080"]


def test_report_and_many_runs(made):
    run, atlas, data, values = made
    masker = MultiNiftiLabelsMasker(atlas).fit()
    for signals in masker.transform([run, surfaces.in_memory(data)]):
        np.testing.assert_allclose(signals, surfaces.by_definition(data, values), rtol=1e-6)
    pytest.importorskip("matplotlib")
    assert "<td>CIFTI_STRUCTURE_CORTEX_LEFT</td><td>surface of 50 vertices</td>" in masker.generate_report().html


def test_structures_of_other_names(tmp_path, made):
    _, _, data, values = made
    for number, side in enumerate(["CortexRight", "Cerebellum", "HippocampusLeft"]):
        atlas = surfaces.labels(tmp_path / f"{number}.label.gii", values, side)
        masker = NiftiLabelsMasker(atlas).fit()
        assert masker.labels_img_.meta["AnatomicalStructurePrimary"] == side
        signals = masker.transform(surfaces.series(tmp_path / f"{number}.func.gii", data, side))
        np.testing.assert_allclose(signals, surfaces.by_definition(data, values), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("sub-01_task-rest_hemi-L_space-fsaverage5_bold", "L"), ("hemi-R_bold", "R"), ("lh.thickness", "L"),
        ("a.rh.b", "R"),
        ("100307.L.MyelinMap.32k_fs_LR", "L"), ("sub-01_hemi-R.32k_fs_LR", "R"), ("lh_to_rh", None), ("lh.to.rh", None),
        ("sub-LR_bold", None), ("highlh.x", None),
    ],
)  # fmt: skip
def test_hemisphere_by_name(tmp_path, made, name, side):
    *_, data, _ = made
    path = surfaces.series(tmp_path / f"{name}.func.gii", data, side="")
    if side is None:
        assert error_of(open_dense, path) == (
            f"{path} doesn't state its hemisphere: it has no AnatomicalStructurePrimary, nor hemi-L or hemi-R in its "
            "name. Set it: wb_command -set-structure FILE CORTEX_LEFT."
        )
    else:
        assert open_dense(path).grid.surfaces[0].structure == (dense.LEFT if side == "L" else dense.RIGHT)


def test_several_maps(tmp_path, made):
    run, _, data, values = made
    maps = np.stack([values, np.roll(values, 5)])
    atlas = surfaces.labels(tmp_path / "lh.two.label.gii", maps)
    assert error_of(NiftiLabelsMasker(atlas).fit) == (
        f"{atlas} has 2 maps: choose one with label_map (--label-map), by name or index. Its maps: 0 'map 0', 1 'map "
        "1'."
    )
    signals = NiftiLabelsMasker(atlas, label_map="map 1").fit_transform(run)
    np.testing.assert_allclose(signals, surfaces.by_definition(data, maps[1]), rtol=1e-6)


def test_maps_of_weights(tmp_path, made):
    run, _, data, _ = made
    weights = np.random.default_rng(3).random((3, N)).astype("f4")
    maps = surfaces.series(tmp_path / "lh.maps.func.gii", weights, intent="NONE")
    masker = NiftiMapsMasker(maps)
    signals = masker.fit_transform(run)
    expected = np.linalg.lstsq(weights.T.astype("f8"), data.T.astype("f8"), rcond=None)[0].T
    np.testing.assert_allclose(signals, expected, rtol=1e-5)
    painted = [array.data for array in masker.inverse_transform(signals).darrays]
    np.testing.assert_allclose(painted, signals @ weights, rtol=1e-4)


def test_with_cifti(tmp_path, made):
    """A hemisphere's labels apply to grayordinates, and labels of grayordinates to a hemisphere."""
    run, atlas, data, values = made
    own = np.array([3, 8, 11, 30])
    axis = dense.surface(own, dense.LEFT, N) + dense.surface([1, 2], dense.RIGHT, N)
    some = dense.save(dense.series_image(np.pad(data[:, own], ((0, 0), (0, 2))), axis), tmp_path / "a.dtseries.nii")
    masker = NiftiLabelsMasker(atlas, keep_all_regions=True)
    signals = masker.fit_transform(some)
    for column, k in enumerate((1, 4, 7)):
        chosen = own[values[own] == k]
        if len(chosen):
            np.testing.assert_allclose(signals[:, column], data[:, chosen].mean(axis=1), rtol=1e-6)
        else:
            assert np.isnan(signals[:, column]).all()
    assert masker.coverage_["covered"].tolist() == [(values[own] == k).sum() for k in (1, 4, 7)]
    labels = dense.save(dense.labels_image([1, 1, 2, 2, 5, 5], axis), tmp_path / "a.dlabel.nii")
    with pytest.warns(UserWarning, match="has no grayordinate of 1 of 3 labels of .*: 5. They have no column"):
        signals = NiftiLabelsMasker(labels).fit_transform(run)
    expected = np.stack([data[:, [3, 8]].mean(axis=1), data[:, [11, 30]].mean(axis=1)], axis=1)
    np.testing.assert_allclose(signals, expected, rtol=1e-6)


# Errors


def test_hemispheres_and_meshes_that_differ_are_named(tmp_path, made):
    run, atlas, data, values = made
    right = surfaces.series(tmp_path / "rh.func.gii", data, "R")
    assert error_of(NiftiLabelsMasker(atlas).fit_transform, right) == (
        f"{right} and {atlas} have no grayordinate in common: CIFTI_STRUCTURE_CORTEX_RIGHT of 50 vertices in the first "
        "file, CIFTI_STRUCTURE_CORTEX_LEFT of 50 vertices in the second. Use files of the same space."
    )
    coarse = surfaces.labels(tmp_path / "lh.coarse.label.gii", values[:40])
    assert error_of(NiftiLabelsMasker(coarse).fit_transform, run) == (
        f"{run} and {coarse} have different meshes: the surface CIFTI_STRUCTURE_CORTEX_LEFT has 50 vertices in the "
        "first file, and 40 in the second. Resample one of them (wb_command -cifti-resample, or for GIFTI "
        "-metric-resample, -label-resample)."
    )


def test_contradictory_hemispheres(tmp_path, made):
    *_, data, _ = made
    path = surfaces.series(tmp_path / "hemi-L_bold.func.gii", data, "R")
    assert error_of(open_dense, path) == (
        f"{path} contradicts itself: its AnatomicalStructurePrimary is CortexRight, but by its name it is "
        "CIFTI_STRUCTURE_CORTEX_LEFT. Correct one of them (wb_command -set-structure)."
    )
    path = surfaces.series(tmp_path / "a.func.gii", data, "Cortex of cats")
    assert error_of(open_dense, path) == (
        f"{path} has the AnatomicalStructurePrimary 'Cortex of cats', expected one such as CortexLeft (wb_command "
        "-set-structure)."
    )
    arrays = [surfaces.array(data[0], items={"AnatomicalStructurePrimary": "CortexRight"})]
    path.write_text(surfaces.document(arrays))
    assert error_of(open_dense, path) == (
        f"{path} contradicts itself: its AnatomicalStructurePrimary is CortexLeft and CortexRight. Create the file "
        "again."
    )
    path.write_text(surfaces.document(arrays, side=""))
    assert open_dense(path).grid.surfaces[0].structure == dense.RIGHT


def test_kinds_that_are_mixed_up(tmp_path, made):
    run, atlas, data, _ = made
    assert error_of(NiftiLabelsMasker(run).fit) == (
        f"{run} holds dense series (.dtseries.nii, .func.gii), expected dense labels (.dlabel.nii, .label.gii)."
    )
    assert error_of(NiftiLabelsMasker(atlas).fit().transform, atlas) == (
        f"{atlas} holds dense labels (.dlabel.nii, .label.gii), expected dense series (.dtseries.nii, .func.gii)."
    )
    for img, name in ((run, run), ([run, run], run), (nib.load(run), "in-memory image")):
        assert error_of(NiftiMasker().fit, img) == (
            f"{name} is a GiftiImage, expected an image of volumes (NIfTI, Analyze or MGH). Only maskers of labels and "
            "of maps read grayordinates, one file at a time."
        )
    expected = (
        "expected only NIFTI_INTENT_LABEL (.label.gii), or those of a series (.func.gii): NIFTI_INTENT_TIME_SERIES, "
        "NIFTI_INTENT_NONE, NIFTI_INTENT_NORMAL, NIFTI_INTENT_ESTIMATE."
    )
    mesh = tmp_path / "lh.surf.gii"
    points = surfaces.array(np.zeros((N, 3), "f4"), "POINTSET")
    triangles = surfaces.array(np.zeros((4, 3), "i4"), "TRIANGLE")
    mesh.write_text(surfaces.document([points, triangles]))
    assert (
        error_of(open_dense, mesh) == f"{mesh} has arrays of NIFTI_INTENT_POINTSET, NIFTI_INTENT_TRIANGLE, {expected}"
    )
    for other in ("NODE_INDEX", "LABEL", "SHAPE", "VECTOR"):
        mesh.write_text(surfaces.document([surfaces.array(data[0], other), surfaces.array(data[1])]))
        assert error_of(open_dense, mesh).startswith(f"{mesh} has arrays of NIFTI_INTENT_")
    mesh.write_text(surfaces.document([]))
    assert error_of(open_dense, mesh) == f"{mesh} has no arrays, {expected}"


def test_labels_without_a_table(tmp_path, made):
    *_, values = made
    path = tmp_path / "lh.label.gii"
    path.write_text(surfaces.document([surfaces.array(values, "LABEL")]))
    assert error_of(NiftiLabelsMasker(path).fit) == (
        f"{path} has no label table. Create the file again (wb_command -metric-label-import)."
    )
    path.write_text(surfaces.document([surfaces.array(values, "LABEL")], table=surfaces.table([0, 1, 4, 4, 7])))
    assert error_of(NiftiLabelsMasker(path).fit) == (
        f"The label table of {path} has several rows of a label: 4. Create the file again."
    )
    floats = np.where(values == 4, 4.5, values).astype("f4")
    path.write_text(surfaces.document([surfaces.array(floats, "LABEL")], table=surfaces.table([0, 1, 7])))
    assert error_of(NiftiLabelsMasker(path).fit) == (
        f"{path} has labels that aren't whole numbers of 32 bits: 4.5. Save the labels again."
    )


def broken(data):
    """Documents that are wrong, and what the error must say."""
    whole = surfaces.document([surfaces.array(row) for row in data])
    one = surfaces.array(data[0])
    yield "cut", whole[: len(whole) // 2], "ExpatError: no element found: "
    yield "cut at the end", whole[:-9], "ExpatError: unclosed token: "
    yield (
        "lying Dim0",
        surfaces.document([surfaces.array(data[0], dims=(N + 1,))]),
        "ValueError: cannot reshape array of",
    )
    yield (
        "too few arrays",
        surfaces.document([one], n=3),
        "ValueError: it has 1 arrays, but its NumberOfDataArrays is 3",
    )
    yield "too many arrays", surfaces.document([one, one], n=1), "ValueError: it has 2 arrays, but its NumberOfDataArr"
    yield "not GIFTI", "<html></html>", "ValueError: it has no element GIFTI"
    yield "not XML", "n+1 text", "ExpatError: syntax error: "
    yield "cut gzip", whole.replace("</Data>", "", 1).replace(one[-60:], one[-80:]), "ExpatError: mismatched tag: "
    yield "bad base64", re.sub(r"<Data>.{9}", "<Data>*", whole, count=1), ""
    yield "unknown type", whole.replace("TYPE_FLOAT32", "TYPE_FLOAT23"), "KeyError: 'NIFTI_TYPE_FLOAT23'"
    yield "unknown intent", whole.replace("TIME_SERIES", "TIME"), "KeyError: 'NIFTI_INTENT_TIME'"
    yield "dimensions", whole.replace('Dimensionality="1"', 'Dimensionality="2"'), "AssertionError"
    yield (
        "ASCII",
        surfaces.document([surfaces.array(data[0], encoding="ascii").replace("<Data>", "<Data>x ")]),
        "ValueError",
    )


@pytest.mark.parametrize("number", range(13))
def test_broken_files(tmp_path, made, number):
    *_, data, _ = made
    case, text, expected = list(broken(data))[number]
    path = tmp_path / "lh.broken.func.gii"
    path.write_text(text)
    said = error_of(open_dense, path)
    assert said.startswith(f"{path} can't be read as GIFTI: {expected}"), (case, said)
    assert said.endswith(". Copy or create the file again."), said


def test_arrays_that_do_not_fit(tmp_path, made):
    *_, data, _ = made
    path = tmp_path / "lh.func.gii"
    for arrays, shapes in [
        ([data[0], data[1, :40]], "(40,), (50,)"), ([data, data], "(20, 50)"), ([data[None]], "(1, 20, 50)")
    ]:  # fmt: skip
        path.write_text(surfaces.document([surfaces.array(array) for array in arrays]))
        assert error_of(open_dense, path) == (
            f"{path} has arrays of the shapes {shapes}, expected a value per vertex in each, or one array of "
            "(vertices, time points). Create the file again."
        )
    path.write_text(surfaces.document([surfaces.array(data[:, :0])]))
    assert error_of(open_dense, path) == f"The image is empty. {path} has 0 time points or maps of 20 vertices."
    path.write_text(surfaces.document([re.sub(r"<Data>.*</Data>", "", surfaces.array(data[0]))]))
    assert error_of(open_dense, path) == f"{path} has an array without values. Copy or create the file again."


def test_other_files_are_not_read(tmp_path, made):
    """An external file could be any file."""
    *_, data, _ = made
    (tmp_path / "values.dat").write_bytes(data[0].tobytes())
    path = tmp_path / "lh.func.gii"
    text = surfaces.array(data[0]).replace("GZipBase64Binary", "ExternalFileBinary")
    text = re.sub(r"<Data>.*</Data>", "<Data/>", text.replace('ExternalFileName=""', 'ExternalFileName="values.dat"'))
    path.write_text(surfaces.document([text]))
    assert nib.load(path).darrays[0].data.shape == (N,)  # nibabel reads it
    assert error_of(open_dense, path) == (
        f"{path} has values in another file (ExternalFileBinary), expected them in the file (wb_command -gifti-convert "
        "GZIP_BASE64_BINARY)."
    )


def test_files_that_are_no_gifti_files(tmp_path, made):
    run, *_ = made
    packed = tmp_path / "lh.func.gii.gz"
    packed.write_bytes(gzip.compress(run.read_bytes()))
    assert error_of(open_dense, packed) == (
        f"{packed} isn't a .gii file. Decompress it (gunzip): GIFTI values are usually compressed already."
    )
    lacking, empty, folder = (tmp_path / f"{name}.func.gii" for name in ("lacking", "empty", "folder"))
    empty.touch()
    folder.mkdir()
    assert error_of(open_dense, lacking) == f"File not found: '{lacking}'"
    assert error_of(open_dense, empty).startswith(f"{empty} is empty (0 bytes), expected an image file.")
    assert error_of(open_dense, folder) == f"{folder} is a directory, expected an image file."
    assert not is_gifti(3)
    assert not is_gifti(tmp_path / "a.nii")


def test_warns_of_nothing(made):
    run, atlas, *_ = made
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NiftiLabelsMasker(atlas).fit_transform(run)
        assert read_gifti(str(run))[0].kind == "series"
