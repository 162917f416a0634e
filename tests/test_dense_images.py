"""Opening dense CIFTI-2 files: what is read, and one clear error for each kind of bad file."""

import gzip
import re

import nibabel as nib
import numpy as np
import pytest
from nibabel import cifti2

from gpumask.images import cifti_headers
from gpumask.images.cifti_images import dense_labels
from gpumask.images.dense_atlas import load_dense_atlas, load_dense_maps
from gpumask.images.errors import DimensionError, ImageError
from gpumask.images.grayordinates import is_dense, open_dense
from gpumask.images.runs import open_run
from tests import dense


@pytest.fixture
def series(tmp_path):
    axis = dense.models()
    data = np.random.default_rng(0).standard_normal((5, len(axis))).astype(np.float32)
    return dense.save(dense.series_image(data, axis), tmp_path / "run.dtseries.nii")


@pytest.fixture
def labels(tmp_path):
    axis = dense.models()
    values = np.stack([np.arange(len(axis)) % 4, np.arange(len(axis)) % 3])
    return dense.save(dense.labels_image(values, axis, ("Glasser", "Yeo")), tmp_path / "two.dlabel.nii")


def edited_xml(path, old, new):
    """Replace text of the XML by text that isn't longer."""
    content = path.read_bytes()
    assert content.count(old) >= 1
    assert len(new) <= len(old)
    path.write_bytes(content.replace(old, new.ljust(len(old)) if new.endswith(b">") else new, 1))
    assert len(path.read_bytes()) == len(content)


def edited_header(path, **fields):
    """Set fields of the NIfTI header."""
    with path.open("rb") as file:
        header = nib.Nifti2Header(file.read(540), check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + path.read_bytes()[540:])


def test_opens_what_nibabel_opens(series):
    image, known = open_dense(series), nib.load(series)
    assert (image.n_volumes, image.grid.n_grayordinates) == known.shape
    np.testing.assert_array_equal(image.rows(3, 9), known.get_fdata()[:, 3:9].T)
    assert image.t_r == dense.T_R
    assert image.dtype == np.float32
    axis, models = known.header.get_axis(1), image.grid
    assert [(s.structure, s.n_vertices) for s in models.surfaces] == list(axis.nvertices.items())
    for surface in models.surfaces:
        own = slice(surface.start, surface.start + len(surface.vertices))
        np.testing.assert_array_equal(surface.vertices, axis.vertex[own])
    np.testing.assert_array_equal(models.voxels, axis.voxel[~axis.surface_mask])
    np.testing.assert_array_equal(models.positions, np.flatnonzero(~axis.surface_mask))
    np.testing.assert_allclose(models.volume.affine, axis.affine)
    assert models.volume.shape == axis.volume_shape


def test_equal_brain_models_are_parsed_once(series, tmp_path, monkeypatch):
    """Runs of a study differ in their metadata and lengths."""
    known = nib.load(series)
    other = dense.series_image(np.ones((9, known.shape[1])), known.header.get_axis(1), t_r=2.0)
    other.header.matrix.metadata = cifti2.Cifti2MetaData({"Provenance": "<MatrixIndicesMap> & more"})
    path = dense.save(other, tmp_path / "other.dtseries.nii")
    first, parsed = open_dense(series), []
    monkeypatch.setattr(cifti_headers, "parse_brain_models", lambda *args: parsed.append(args))
    image = open_dense(path)
    assert not parsed
    assert image.grid.surfaces is first.grid.surfaces
    assert (first.n_volumes, first.t_r, first.grid.name) == (5, dense.T_R, str(series))
    assert (image.n_volumes, image.t_r, image.grid.name) == (9, 2.0, str(path))
    assert image.header.xml.matrix.metadata["Provenance"] == "<MatrixIndicesMap> & more"
    np.testing.assert_array_equal(image.header.xml.get_axis(1).vertex, known.header.get_axis(1).vertex)


def test_brain_models_quoted_in_metadata(tmp_path):
    """wb_command quotes metadata as CDATA, in which anything may stand."""
    quoted = b'<![CDATA[<MatrixIndicesMap x="CIFTI_INDEX_TYPE_BRAIN_MODELS"></MatrixIndicesMap>]]>'
    image = dense.series_image(np.ones((2, 3)), dense.surface([1, 2, 3]))
    image.header.matrix.metadata = cifti2.Cifti2MetaData({"Provenance": "x" * len(quoted)})
    path = dense.save(image, tmp_path / "run.dtseries.nii")
    edited_xml(path, b"x" * len(quoted), quoted)
    assert open_dense(path).grid.surfaces[0].vertices.tolist() == [1, 2, 3]
    edited_xml(path, b"CIFTI_INDEX_TYPE_BRAIN_MODELS", b"CIFTI_INDEX_TYPE_BRAIN_MODEL_")
    assert open_dense(path).grid.surfaces[0].vertices.tolist() == [1, 2, 3]


def test_parsed_brain_models_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(cifti_headers, "_N_PARSED", 2)
    for n in range(5):
        path = dense.save(dense.series_image(np.ones((2, 1)), dense.surface([n])), tmp_path / "a.dtseries.nii")
        open_dense(path)
    assert len(cifti_headers._parsed) == 2


def test_volumes_in_metres(series):
    """The unit of the affine is in the XML: 10 to the exponent, in metres."""
    content = series.read_bytes()
    assert b'MeterExponent="-3"' in content
    series.write_bytes(content.replace(b'MeterExponent="-3"', b'MeterExponent="-2"'))
    np.testing.assert_allclose(open_dense(series).grid.volume.affine[:3], 10 * dense.AFFINE[:3])


def test_a_series_that_is_not_in_seconds_has_no_repetition_time(tmp_path):
    columns = cifti2.SeriesAxis(0, 1.0, 2, unit="HERTZ")
    path = dense.save(
        dense.dense_image("series", columns, dense.surface([1]), np.ones((2, 1))), tmp_path / "a.dtseries.nii"
    )
    assert open_dense(path).t_r is None


def test_is_dense(series, labels, tmp_path):
    renamed = series.with_name("bold.nii")
    renamed.write_bytes(series.read_bytes())
    volume = tmp_path / "volume.nii"
    nib.save(nib.Nifti2Image(np.zeros((2, 2, 2)), np.eye(4)), volume)
    small = tmp_path / "small.nii"
    small.write_bytes(b"abc")
    yes = [
        series,
        str(labels),
        renamed,
        nib.load(series),
        open_dense(series),
        "nowhere.dscalar.nii",
        "a.dtseries.nii.gz",
    ]
    assert all(map(is_dense, yes))
    assert not any(map(is_dense, [volume, small, tmp_path, "nowhere.nii", [series], None, 3, "a.ptseries.nii"]))


def error_of(call, *args, **kwargs):
    with pytest.raises(ValueError) as error:
        call(*args, **kwargs)
    return str(error.value)


def test_compressed(series):
    path = series.with_name("run.dtseries.nii.gz")
    path.write_bytes(gzip.compress(series.read_bytes()))
    assert error_of(open_dense, path) == (
        f"{path} isn't a .nii file: CIFTI-2 files aren't compressed, because their grayordinates are read where they "
        "lie. Decompress it (gunzip), or save it with the extension .nii."
    )


def test_compressed_without_its_name(series, tmp_path):
    """Nibabel opens it as an image of six dimensions."""
    path = tmp_path / "bold.nii.gz"
    path.write_bytes(gzip.compress(series.read_bytes()))
    for img in (path, nib.load(path)):
        with pytest.raises(DimensionError) as error:
            open_run(img)
        assert str(error.value).endswith(
            f" {path} has shape {nib.load(path).shape}, expected (x, y, z) or (x, y, z, time). CIFTI-2 files have such "
            "shapes: pass the path of the decompressed file (.dtseries.nii)."
        )


@pytest.mark.parametrize("suffix", ["dtseries", "dlabel"])
def test_volumes_under_the_name_of_grayordinates(tmp_path, suffix):
    path = tmp_path / "image.nii"
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), "i2"), np.eye(4)), path)
    path = path.rename(tmp_path / f"image.{suffix}.nii")
    assert error_of(open_run, path) == (
        f"{path} has volumes by its header (NIfTI-1), but its name is that of CIFTI-2. Pass a dense file."
    )


def test_missing_empty_folder_and_truncated(series, tmp_path):
    assert error_of(open_dense, "none.dtseries.nii") == "File not found: 'none.dtseries.nii'"
    assert error_of(open_dense, "sub-*.dtseries.nii") == (
        "File not found: 'sub-*.dtseries.nii'. Patterns stand for lists of volumes: pass the path of one file."
    )
    (tmp_path / "folder.dtseries.nii").mkdir()
    assert "is a directory" in error_of(open_dense, tmp_path / "folder.dtseries.nii")
    (tmp_path / "empty.dtseries.nii").write_bytes(b"")
    assert "is empty (0 bytes)" in error_of(open_dense, tmp_path / "empty.dtseries.nii")
    content = series.read_bytes()
    image = open_dense(series)
    for n in (100, 300, 545, 700, 2000, len(content) - 1):
        series.write_bytes(content[:n])
        message = error_of(open_dense, series)
        assert message.startswith(str(series)) or f" of {series} " in message
        assert "Copy or create the file again" in message
    with pytest.raises(ImageError, match="is truncated or its header is wrong: by shape and dtype"):
        image.rows(0, image.grid.n_grayordinates)


@pytest.mark.parametrize(
    ("intent", "found"),
    [
        (0, "0 (NIFTI_INTENT_NONE)"),
        (1500, "1500"),
        (2001, "2001 (NIFTI_INTENT_TIME_SERIES)"),
        (3001, "3001 (NIFTI_INTENT_CONNECTIVITY_DENSE)"),
        (3004, "3004 (NIFTI_INTENT_CONNECTIVITY_PARCELLATED_SERIES)"),
    ],
)
def test_wrong_intent(series, intent, found):
    edited_header(series, intent_code=intent)
    assert error_of(open_dense, series) == (
        f"{series} has the NIfTI intent {found}, expected one of dense CIFTI-2 files: 3002 (.dtseries.nii), "
        "3007 (.dlabel.nii), 3006 (.dscalar.nii). Pass a dense file."
    )


def test_intent_against_xml(series, labels):
    edited_header(series, intent_code=3007)
    assert error_of(open_dense, series) == (
        f"{series} contradicts itself: by its NIfTI intent (3007) it holds dense labels, by its XML dense series. "
        "Create the file again."
    )
    assert error_of(open_dense, labels) == (
        f"{labels} holds dense labels (.dlabel.nii, .label.gii), expected dense series (.dtseries.nii, .func.gii)."
    )
    edited_header(labels, intent_code=3000)  # as nibabel writes files: the XML decides
    assert open_dense(labels, ("labels",)).n_volumes == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            b'NumberOfSeriesPoints="5"',
            b'NumberOfSeriesPoints="6"',
            r"contradicts itself: its matrix has the shape \(5, 119\), ",
        ),
        (
            b'SurfaceNumberOfVertices="60"',
            b'SurfaceNumberOfVertices="20"',
            "has the vertex [0-9]+ of a mesh of 20, expected",
        ),
        (
            b'IndexOffset="42"',
            b'IndexOffset="41"',
            "CORTEX_RIGHT has the grayordinates from 41 to 82, expected from 42 on",
        ),
        (b'IndexCount="42"', b'IndexCount="41"', "has 42 vertices, but by its index count 41"),
        (b"<VertexIndices>0", b"<VertexIndices>4", "has a vertex twice"),
        (b'"CIFTI_STRUCTURE_CORTEX_RIGHT"', b'"CIFTI_STRUCTURE_CORTEX_LEFT" ', "CORTEX_LEFT has two surfaces"),
        (b'VolumeDimensions="7,8,6"', b'VolumeDimensions="7,8,2"', "has voxels outside the volume of shape"),
        (
            b'"CIFTI_STRUCTURE_BRAIN_STEM"',
            b'"CIFTI_STRUCTURE_BRAIN_STAM"',
            "isn't a structure of CIFTI-2",
        ),
        (
            b"CIFTI_MODEL_TYPE_VOXELS",
            b"CIFTI_MODEL_TYPE_VOXEL_",
            "has the model type 'CIFTI_MODEL_TYPE_VOXEL_'",
        ),
        (b'VolumeDimensions="7,8,6"', b'VolumeDimensions="7,8,x"', "can't be parsed: ValueError"),
        (b"CIFTI_INDEX_TYPE_SERIES", b"CIFTI_INDEX_TYPE_PARCEL", "can't be parsed|maps CIFTI"),
        (b"</Matrix>", b"</Motrix>", r"The CIFTI-2 header of .* can't be parsed: ExpatError: mismatched tag"),
    ],
)
def test_xml_that_lies(series, old, new, message):
    edited_xml(series, old, new)
    with pytest.raises(ImageError, match=message) as error:
        open_dense(series)
    assert str(series) in str(error.value)


def with_xml(path, xml):
    """Rewrite a file with another XML."""
    with path.open("rb") as file:
        header = nib.Nifti2Header.from_fileobj(file, check=False)
    values = path.read_bytes()[int(header.get_data_offset()) :]
    header.extensions[:] = [nib.nifti1.Nifti1Extension(32, xml)]
    header["vox_offset"] = 0
    with path.open("wb") as file:
        header.write_to(file)
        file.write(bytes(header.get_data_offset() - file.tell()) + values)
    return path


def xml_of(path):
    return nib.load(path).nifti_header.extensions[0].content


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        (b"VertexIndices", "CIFTI_STRUCTURE_CORTEX_LEFT has 2 elements VertexIndices"),
        (b"VoxelIndicesIJK", "CIFTI_STRUCTURE_BRAIN_STEM has 2 elements VoxelIndicesIJK"),
        (b"Volume", "the header has 2 elements Volume"),
    ],
)
def test_element_twice(series, tag, message):
    xml = xml_of(series)
    start, stop = xml.index(b"<" + tag), xml.index(b"</" + tag + b">") + len(tag) + 3
    with_xml(series, xml[:stop] + xml[start:stop] + xml[stop:])
    assert error_of(open_dense, series) == (
        f"The brain models of {series} are wrong: {message}. Copy or create the file again."
    )


@pytest.mark.parametrize("seed", range(6))
def test_brain_models_as_nibabel_parses_them(tmp_path, seed):
    """However the numbers are laid out: lines, tabs, zeros in front, a plus, comments; NumPy reads most, not all."""
    rng = np.random.default_rng(seed)
    axis = dense.models(rng)
    path = dense.save(dense.series_image(np.ones((2, len(axis))), axis), tmp_path / "a.dtseries.nii")
    signs = [b"", b"0", b"+"][: 2 + seed % 2]

    def laid_out(match):
        first, numbers, last = match.groups()
        pairs = ((rng.choice([b" ", b"\n", b"\t", b"  \r\n"]), rng.choice(signs)) for _ in numbers.split())
        words = (b"".join([*pair, number]) for pair, number in zip(pairs, numbers.split(), strict=True))
        return first + b"\n <!-- 7 8 -->" + b"".join(words) + last

    xml = re.sub(rb"(<V(?:ertexIndices|oxelIndicesIJK)>)(.*?)(</)", laid_out, xml_of(path), flags=re.DOTALL)
    models = open_dense(with_xml(path, xml)).grid
    for surface in models.surfaces:
        own = slice(surface.start, surface.start + len(surface.vertices))
        np.testing.assert_array_equal(surface.vertices, axis.vertex[own])
        assert set(axis.name[own]) == {surface.structure}
    np.testing.assert_array_equal(models.voxels, axis.voxel[~axis.surface_mask])
    assert models.volume.shape == axis.volume_shape


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (b"-1", "CORTEX_LEFT has the vertex -1"),
        (b"60", "CORTEX_LEFT has the vertex 60 of a mesh of 60, expected from 0 to 59"),
        (b"18446744073709551617", "has the vertex 9223372036854775807 of a mesh of 60"),
        (b"1e1", "can't be parsed: ValueError: invalid literal for int"),
        (b"1.0", "can't be parsed: ValueError: invalid literal for int"),
        (b"", "has 41 vertices, but by its index count 42"),
    ],
)
def test_wrong_vertices(series, number, message):
    xml = re.sub(rb"<VertexIndices>\s*[0-9]+", b"<VertexIndices>" + number, xml_of(series), count=1)
    assert message in error_of(open_dense, with_xml(series, xml))


def test_voxel_twice(tmp_path):
    image = dense.series_image(np.ones((2, 2)), dense.voxels([[1, 1, 1], [1, 1, 2]]))
    path = dense.save(image, tmp_path / "run.dtseries.nii")
    edited_xml(path, b"1 1 2", b"1 1 1")
    assert error_of(open_dense, path) == (
        f"The brain models of {path} are wrong: a voxel occurs twice. Copy or create the file again."
    )


@pytest.mark.parametrize("start", [b"", bytes(12), b"\x1c\x02\0\0n+1\0\r\n\x1a\n", b"\x1c\x02\0\0n+2\0\n\x1a\n\0"])
def test_no_header_at_the_start(series, start):
    """Then nibabel reads the size of the extensions anywhere, and asks for as much memory."""
    series.write_bytes(start + series.read_bytes()[12:])
    assert error_of(open_dense, series) == (
        f"{series} doesn't start with a NIfTI-2 header, expected a CIFTI-2 file. Copy or create the file again."
    )


def test_other_broken_headers(series):
    content = series.read_bytes()
    for fields, message in [
        ({"vox_offset": 1024}, "is wrong: its extensions have [0-9]+ bytes or more"),
        ({"datatype": 128, "bitpix": 24}, "holds values of type .*, expected integers or real floats"),
        ({"datatype": 9999}, "can't be read as CIFTI-2"),
        ({"dim": [4, 1, 1, 1, 5, 119, 1, 1]}, r"has the shape \(1, 1, 1, 5\), expected \(1, 1, 1, 1, "),
        ({"scl_slope": 1, "scl_inter": np.inf}, "can't be read as CIFTI-2"),
    ]:
        series.write_bytes(content)
        edited_header(series, **fields)
        with pytest.raises(ImageError, match=message):
            open_dense(series)
    start = int.from_bytes(content[168:176], "little")
    series.write_bytes(content[:540] + b"\0\0\0\0" + bytes(start - 544) + content[start:])
    assert error_of(open_dense, series) == (
        f"{series} has no CIFTI-2 header (NIfTI extension 32). Copy or create the file again."
    )


def test_chosen_map(labels):
    values = nib.load(labels).get_fdata()
    for chosen, number in [("Glasser", 0), ("Yeo", 1), (0, 0), (np.int64(1), 1)]:
        atlas = load_dense_atlas(labels, label_map=chosen)
        np.testing.assert_array_equal(atlas.labels, values[number])
        assert atlas.number == number
    maps = "Its maps: 0 'Glasser', 1 'Yeo'."
    assert error_of(load_dense_atlas, labels) == (
        f"{labels} has 2 maps: choose one with label_map (--label-map), by name or index. {maps}"
    )
    assert error_of(load_dense_atlas, labels, label_map="yeo") == f"{labels} has no map called 'yeo'. {maps}"
    for wrong in (2, -1):
        assert error_of(load_dense_atlas, labels, label_map=wrong) == f"{labels} has no map {wrong}. {maps}"
    for wrong in (True, 1.0, ["Yeo"]):
        with pytest.raises(TypeError, match=rf"^`label_map` must be .*Got: {type(wrong).__name__}$"):
            load_dense_atlas(labels, label_map=wrong)


def test_two_maps_of_one_name(tmp_path):
    axis = dense.surface([1, 2])
    image = dense.labels_image([[1, 2], [3, 4]], axis, ("a", "a"))
    assert "has several maps called 'a'" in error_of(load_dense_atlas, image, label_map="a")
    atlas = load_dense_atlas(image, label_map=1)
    assert atlas.named_table["index"] == [3, 4]
    table = dense_labels(atlas, atlas.labels).header.get_axis(0).label[0]
    assert set(table) == {0, 3, 4}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, np.nan, np.nan], "{} has NaN as the label of 2 grayordinates, expected a whole number."),
        ([1, 2.5, 3], "{} has labels that aren't whole numbers of 32 bits: 2.5. Save the labels again."),
        ([1, np.inf, 3], "{} has labels that aren't whole numbers of 32 bits: inf. Save the labels again."),
        ([0, 0, 0], "Image has no label. Every grayordinate of {} is background (0)."),
    ],
)
def test_bad_labels(tmp_path, values, message):
    path = dense.save(dense.labels_image(values, dense.surface([1, 2, 3])), tmp_path / "a.dlabel.nii")
    assert error_of(load_dense_atlas, path) == message.format(path)


@pytest.mark.parametrize("name", ["Parcel 1", "Parcel 2"])
def test_two_names_of_a_label(labels, name):
    """Also of a map that isn't chosen, and if both are equal."""
    content = labels.read_bytes()
    row = re.findall(rb'<Label Key="2" [^>]*>Parcel 2</Label>', content)[-1]
    other = row.replace(b'"2"', b'"1"').replace(b"Parcel 2", name.encode())
    head, _, tail = content.rpartition(row)
    labels.write_bytes(head + other + tail)
    assert error_of(load_dense_atlas, labels, 0, "Glasser") == (
        f"The label table of {labels} has several rows of a label: 1. Create the file again."
    )


def test_labels_without_a_table(tmp_path):
    path = dense.save(dense.labels_image([1, 2, 3], dense.surface([1, 2, 3])), tmp_path / "a.dlabel.nii")
    content = path.read_bytes()
    start, stop = content.index(b"<LabelTable>"), content.index(b"</LabelTable>") + len(b"</LabelTable>")
    path.write_bytes(content[:start] + b"<LabelTable />".ljust(stop - start) + content[stop:])
    assert error_of(load_dense_atlas, path) == (
        f"{path} has no label table. Create the file again (wb_command -cifti-label-import)."
    )


def test_maps(tmp_path):
    axis = dense.surface([1, 2, 3])
    path = dense.save(
        dense.scalars_image(np.array([[1.0, 0, 0.5], [0, np.nan, 2]]), axis, ["a", "b"]), tmp_path / "a.dscalar.nii"
    )
    with pytest.warns(UserWarning, match=rf"^{re.escape(str(path))} has weights that aren't finite\."):
        maps = load_dense_maps(path)
    np.testing.assert_array_equal(maps.weights, [[1, 0, 0.5], [0, 0, 2]])
    assert maps.names == ["a", "b"]
    empty = dense.scalars_image(np.array([[1.0, 0, 0], [0, 0, 0]]), axis)
    assert error_of(load_dense_maps, empty) == "in-memory image has maps that are 0 everywhere: 1. Remove them."
    with pytest.raises(
        ImageError,
        match=r"holds dense labels \(\.dlabel\.nii, \.label\.gii\), expected dense scalars \(\.dscalar\.nii, ",
    ):
        load_dense_maps(dense.labels_image([1, 2, 3], axis))


@pytest.mark.parametrize("pair", [(0, 1), (1, 0)])
def test_other_kinds_of_cifti(tmp_path, pair):
    """A series with its axes exchanged, and a parcellated one, aren't dense series."""
    axes = (cifti2.SeriesAxis(0, 1, 2), dense.surface([1, 2, 3]))
    if pair == (1, 0):
        image = cifti2.Cifti2Image(np.ones((3, 2)), axes[::-1], dtype=np.float64)
    else:
        parcels = cifti2.ParcelsAxis.from_brain_models([("a", axes[1])])
        image = cifti2.Cifti2Image(np.ones((2, 1)), (axes[0], parcels), dtype=np.float64)
    path = dense.save(image, tmp_path / "x.dtseries.nii")
    with pytest.raises(
        ImageError, match=r"maps CIFTI_INDEX_TYPE_[A-Z_]+ to CIFTI_INDEX_TYPE_[A-Z_]+, expected series,"
    ):
        open_dense(path)


@pytest.mark.parametrize("seed", range(20))
def test_changed_bytes_are_errors_that_name_the_file(tmp_path, labels, series, seed):
    """Whatever a few wrong bytes in a header do, it is one of the errors that a user can read."""
    rng = np.random.default_rng(seed)
    for source, read in ((series, open_dense), (labels, lambda path: load_dense_atlas(path, label_map=0))):
        content = source.read_bytes()
        end = int.from_bytes(content[168:176], "little")
        path = tmp_path / source.name
        for _ in range(20):
            changed = bytearray(content)
            for at in rng.integers(4, end, rng.integers(1, 4)):
                changed[at] = rng.choice(np.frombuffer(b'0123456789-." <>\0', np.uint8))
            path.write_bytes(changed)
            try:
                read(path)
            except ValueError as error:
                assert str(path) in str(error)  # noqa: PT017 - not every change is an error


@pytest.mark.parametrize(
    "attribute", [b"IndexOffset", b"IndexCount", b"SurfaceNumberOfVertices", b"ModelType", b"SeriesStep"]
)
def test_missing_attributes(series, attribute):
    edited_xml(series, b" " + attribute, b" X" + attribute[1:])
    with pytest.raises(ImageError) as error:
        open_dense(series)
    assert str(series) in str(error.value)
