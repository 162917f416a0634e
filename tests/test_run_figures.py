"""Figures of a run: what is drawn is what was given, nothing global is touched, and wrong shapes are told."""

import io
import sys
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from gpumask.cli import main
from gpumask.reports import figures
from gpumask.reports.figures import draw_carpet, draw_connectivity, draw_cuts, new_figure, run_figure, to_png
from gpumask.reports.networks import network_of, networks

from .cohorts import SPACE, make_atlases, make_cohort

matplotlib = pytest.importorskip("matplotlib")

AFFINE = np.array([[2.0, 0, 0, -10], [0, 3, 0, -20], [0, 0, 4, -30], [0, 0, 0, 1]])
NAMES = ["a", "$b_", "c"]


def volume():
    return np.random.default_rng(0).uniform(100, 200, (9, 10, 8))


def regions():
    labels = np.zeros((9, 10, 8), "i2")
    for k in range(3):
        labels[3 * k : 3 * k + 2, 2:7, 1:6] = k + 1
    return labels


def signals(n_volumes=20):
    values = np.random.default_rng(1).normal(50, 3, (n_volumes, 3))
    values[:, 1] = np.nan
    return values


def whole(seed=0):
    values = signals() + seed
    matrix = np.full((3, 3), np.nan)
    matrix[::2, ::2] = [[1, -0.5], [-0.5, 1]]
    motion = np.append(np.nan, np.linspace(0, 1, 24))
    return run_figure(
        values, matrix, regions(), volume(), AFFINE,
        title="sub-1_task-$x", names=NAMES, t_r=2.0, displacement=motion, kept=np.arange(3, 23),
    )  # fmt: skip


def shown(axes):
    """The values of the picture in axes, NaN where masked."""
    return np.ma.filled(np.ma.asarray(axes.images[-1].get_array(), dtype=float), np.nan)


def test_cuts_go_through_the_middle_of_the_regions():
    figure = new_figure((6, 2))
    draw_cuts(figure, regions(), volume(), AFFINE)
    assert [axes.get_title() for axes in figure.axes] == ["x = -2 mm", "y = -8 mm", "z = -18 mm"]
    for axis, (axes, middle) in enumerate(zip(figure.axes, (4, 4, 3), strict=True)):
        below, above = axes.images
        assert np.array_equal(below.get_array(), np.take(volume(), middle, axis).T)
        cut = np.take(regions(), middle, axis).T
        drawn = np.ma.asarray(above.get_array())
        assert np.array_equal(np.ma.getmaskarray(drawn), cut == 0)
        colours = {label: set(drawn[cut == label].tolist()) for label in np.unique(cut[cut > 0])}
        assert all(len(values) == 1 for values in colours.values())
        assert len({min(values) for values in colours.values()}) == len(colours)
        assert axes.get_aspect() == [4 / 3, 4 / 2, 3 / 2][axis]


def test_cuts_are_the_same_however_the_array_lies():
    expected = new_figure((6, 2))
    draw_cuts(expected, regions(), volume(), AFFINE)
    turned = AFFINE @ np.array([[0, -1.0, 0, 8], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    figure = new_figure((6, 2))
    draw_cuts(figure, regions().transpose(2, 0, 1)[:, ::-1], volume().transpose(2, 0, 1)[:, ::-1], turned)
    for axes, other in zip(figure.axes, expected.axes, strict=True):
        assert axes.get_title() == other.get_title()
        assert axes.get_aspect() == other.get_aspect()
        for drawn, image in zip(axes.images, other.images, strict=True):
            np.testing.assert_array_equal(np.ma.filled(drawn.get_array(), -1), np.ma.filled(image.get_array(), -1))


@pytest.mark.parametrize("background", [0, -1])
def test_cuts_without_regions_or_image(background):
    figure = new_figure((6, 2))
    draw_cuts(figure, np.full((4, 6, 8), background), None, np.eye(4), background_label=background)
    assert [axes.get_title() for axes in figure.axes] == ["x = 2 mm", "y = 3 mm", "z = 4 mm"]
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 1]
    assert all(np.isnan(shown(axes)).all() for axes in figure.axes)


def test_carpet_is_standardized_and_leaves_dropped_volumes_empty():
    kept = np.array([0, 1, 3, 4, 6])
    values = np.array([[1.0, 7, np.nan], [2, 7, 1], [3, 7, 1], [4, 7, 2], [5, 7, 3]])
    figure = new_figure((6, 4))
    draw_carpet(figure, values, t_r=0.5, displacement=np.arange(8.0), kept=kept)
    motion, carpet = figure.axes[:2]
    drawn = shown(carpet)
    assert drawn.shape == (3, 8)
    np.testing.assert_allclose(drawn[0, kept], (values[:, 0] - 3) / np.sqrt(2), rtol=1e-14)
    assert np.isnan(drawn[0, [2, 5, 7]]).all()
    assert np.isnan(drawn[1:]).all()
    (line,) = motion.lines
    assert line.get_xdata().tolist() == [0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75]
    assert line.get_ydata().tolist() == list(range(8))
    assert carpet.get_xlim() == motion.get_xlim() == (0, 4)
    assert (carpet.get_xlabel(), motion.get_ylabel()) == ("time, s", "FD, mm")


def test_carpet_alone_counts_volumes():
    figure = new_figure((6, 4))
    draw_carpet(figure, np.random.default_rng(0).normal(size=(7, 2)))
    assert len(figure.axes) == 2  # with the colour bar's
    assert figure.axes[0].get_xlabel() == "volume"
    assert figure.axes[0].get_xlim() == (0, 7)


def texts(figure):
    """All texts in a figure that say something, its legends' too."""
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def colour_of(figure, label):
    """The colour of an entry in a figure's legends."""
    (patch,) = [p for legend in figure.legends for p in legend.get_patches() if p.get_label() == label]
    return patch.get_facecolor()


def drawn_at(figure, axes, x, y):
    """The colour that a point of axes has in the picture."""
    pixels = matplotlib.image.imread(io.BytesIO(to_png(figure)), format="png")
    column, row = axes.transData.transform((x, y))
    return pixels[int(pixels.shape[0] - row), int(column)]


@pytest.mark.parametrize("flipped", [False, True])
def test_left_and_right_are_where_the_affine_says(flipped):
    """A mark at the right end of the brain (the largest x in mm) is at the side called R."""
    labels, affine = np.zeros((9, 10, 8), "i2"), AFFINE.copy()
    labels[1, 5, 4], labels[7, 5, 4] = 1, 2
    right = 2
    if flipped:
        affine[0] *= -1
        right = 1
    figure = new_figure((6, 2))
    draw_cuts(figure, labels, None, affine)
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["P", "A", "L", "R", "L", "R"]
    for axes in figure.axes[1:]:
        drawn = np.ma.asarray(axes.images[-1].get_array())
        columns = np.flatnonzero(~np.ma.getmaskarray(drawn).all(axis=0))
        assert columns.tolist() == [1, 7]
        order = np.random.default_rng(0).permutation(256)
        assert drawn[:, 7].compressed().tolist() == [order[right]]
        left, right_text = axes.texts
        assert left.get_position()[0] < right_text.get_position()[0]


def test_outline_of_the_mask():
    mask = np.zeros((9, 10, 8), bool)
    mask[2:7, 1:9, 2:6] = True
    figure = new_figure((6, 2))
    draw_cuts(figure, regions(), volume(), AFFINE, mask=mask)
    for axes, limits in zip(figure.axes, [(1, 8, 2, 5), (2, 6, 2, 5), (2, 6, 1, 8)], strict=True):
        (outline,) = [c for c in axes.collections if len(c.get_paths()[0].vertices)]
        vertices = outline.get_paths()[0].vertices
        (left, below), (right, above) = vertices.min(axis=0), vertices.max(axis=0)
        assert (left, right, below, above) == (limits[0] - 0.5, limits[1] + 0.5, limits[2] - 0.5, limits[3] + 0.5)
    figure = new_figure((6, 2))
    draw_cuts(figure, regions(), volume(), AFFINE, mask=np.ones((9, 10, 8)))
    assert not any(len(axes.collections) for axes in figure.axes)


def test_carpet_says_what_is_censored_and_what_is_missing():
    kept = np.array([0, 1, 4, 5, 6, 7])
    values = np.random.default_rng(0).normal(size=(6, 3))
    values[:, 2] = np.nan
    motion = np.array([np.nan, 0.1, 0.9, 0.7, 0.2, 0.1, 0.1, 0.2])
    figure = new_figure((6, 4))
    draw_carpet(figure, values, displacement=motion, kept=kept, fd_threshold=0.5)
    assert "6/8 volumes kept, mean FD 0.33 mm" in texts(figure)
    threshold = figure.axes[0].lines[1]
    assert set(threshold.get_ydata()) == {0.5}
    assert figure.axes[0].get_ylim()[1] > 0.5
    carpet = figure.axes[1]
    np.testing.assert_allclose(drawn_at(figure, carpet, 3.0, 0.5), colour_of(figure, "censored"), atol=0.01)
    np.testing.assert_allclose(drawn_at(figure, carpet, 5.5, 2.5), colour_of(figure, "n/a"), atol=0.01)
    figure = new_figure((6, 4))
    draw_carpet(figure, values[:, :2])
    assert figure.legends == []
    assert "6/6 volumes kept" in texts(figure)


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("7Networks_LH_Vis_1", "LH Vis"),
        ("17Networks_RH_DefaultA_PFCd_2", "RH DefaultA"),
        ("LH_SomMot_14", "LH SomMot"),
        ("LH-Pu", None),
        ("Left Thalamus", None),
        ("LH_Vis", None),
        ("7Networks_MH_Vis_1", None),
        ("12", None),
    ],
)
def test_networks_by_names(name, network):
    assert network_of(name) == network


def test_networks_at_the_axes():
    names = [f"7Networks_{h}_{n}_{k}" for h in ("LH", "RH") for n, c in (("Vis", 30), ("Cont", 20)) for k in range(c)]
    names.insert(50, "LH-Pu")
    assert networks(names) == [("LH Vis", 0, 30), ("LH Cont", 30, 50), ("RH Vis", 51, 81), ("RH Cont", 81, 101)]
    figure = new_figure((6, 6))
    draw_connectivity(figure, np.eye(101), names)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["LH Vis", "LH Cont", "RH Vis", "RH Cont"]
    assert axes.get_yticks().tolist() == [14.5, 39.5, 65.5, 90.5]
    assert networks(["LH_Vis_1", "LH-Pu"]) == networks([]) == []


@pytest.mark.parametrize("n_names", [0, 3, 41])
def test_connectivity(n_names):
    n_regions = n_names or 5
    matrix = np.corrcoef(np.random.default_rng(0).normal(size=(n_regions, 9)))
    matrix[1] = matrix[:, 1] = np.nan
    figure = new_figure((6, 6))
    draw_connectivity(figure, matrix, [f"${k}_" for k in range(n_names)])
    axes = figure.axes[0]
    np.testing.assert_array_equal(shown(axes), matrix)
    assert axes.images[0].get_clim() == (-1, 1)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert (labels == [rf"\${k}_" for k in range(n_names)]) == (n_names == 3)
    assert to_png(figure).startswith(b"\x89PNG")


def test_whole_figure_is_drawn_without_pyplot():
    before = dict(matplotlib.rcParams)
    pyplot = sys.modules.get("matplotlib.pyplot")
    open_before = pyplot.get_fignums() if pyplot else []
    png = to_png(whole())
    assert dict(matplotlib.rcParams) == before
    assert open_before == (pyplot.get_fignums() if pyplot else [])
    pixels = matplotlib.image.imread(io.BytesIO(png), format="png")
    assert pixels.shape[:2] == (1400, 1000)
    assert (np.ptp(pixels[..., :3], axis=-1) > 0.3).mean() > 0.05


def test_threads_draw_the_same_bytes():
    alone = [to_png(whole(seed), dpi=40) for seed in range(2)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: to_png(whole(seed % 2), dpi=40), range(4)))
    assert together == alone * 2


def test_nothing_given_is_changed():
    given = {"labels": regions(), "image": volume(), "affine": AFFINE.copy(), "signals": signals(), "matrix": np.eye(3)}
    copies = {name: array.copy() for name, array in given.items()}
    for array in given.values():
        array.flags.writeable = False
    to_png(run_figure(**given, title=""), dpi=30)
    for name, array in given.items():
        np.testing.assert_array_equal(array, copies[name])


def test_a_run_of_one_volume_and_of_none():
    for n_volumes in (1, 0):
        figure = new_figure((6, 4))
        draw_carpet(figure, np.ones((n_volumes, 2)), displacement=np.zeros(3), kept=np.arange(n_volumes))
        assert np.isnan(shown(figure.axes[1])).all()
        assert to_png(figure, dpi=30).startswith(b"\x89PNG")


@pytest.mark.parametrize("image_shape", [(9, 10, 7), (9, 10)])
def test_shapes_of_cuts(image_shape):
    with pytest.raises(ValueError) as error:
        draw_cuts(new_figure((1, 1)), regions(), np.zeros(image_shape), AFFINE)
    assert str(error.value) == (f"Expected labels and image of the same 3D shape, got (9, 10, 8) and {image_shape}.")


@pytest.mark.parametrize(
    ("shape", "options", "got"),
    [
        ((5, 3), {"displacement": np.zeros(4)}, "(5, 3), 5 kept volumes up to 4, and 4 volumes"),
        ((5, 3), {"kept": [0, 2]}, "(5, 3), 2 kept volumes up to 2, and 3 volumes"),
        ((2, 3), {"kept": [-1, 2]}, "(2, 3), 2 kept volumes up to 2, and 3 volumes"),
        ((5,), {}, "(5,), 5 kept volumes up to 4, and 5 volumes"),
    ],
)
def test_shapes_of_carpets(shape, options, got):
    with pytest.raises(ValueError) as error:
        draw_carpet(new_figure((1, 1)), np.zeros(shape), **options)
    assert str(error.value) == (
        f"Expected signals of shape (kept volumes, regions) and motion of all volumes, got signals of shape {got}."
    )


@pytest.mark.parametrize(("shape", "names"), [((3, 2), ()), ((3,), ()), ((3, 3), ["a"])])
def test_shapes_of_matrices(shape, names):
    with pytest.raises(ValueError) as error:
        draw_connectivity(new_figure((1, 1)), np.zeros(shape), names)
    assert str(error.value) == (
        f"Expected a square matrix and a name per region, got the shape {shape} and {len(names)} names."
    )


def test_figures_of_a_cohort(tmp_path, monkeypatch):
    make_cohort(tmp_path / "d", 2, bad=False)
    atlases = make_atlases(tmp_path)
    given = []
    monkeypatch.setattr(
        figures, "run_figure", lambda *arrays, **rest: given.append((arrays, rest)) or new_figure((1, 1))
    )
    words = ["cohort", tmp_path / "d", tmp_path / "out", "participant", "--device", "cpu", "--figures"]
    words += ["--atlas", atlases[1], "--confounds-columns", "csf", "--fd-threshold", "0.5", "--min-time", "0"]
    assert main([str(word) for word in words]) == 0
    names = [f"sub-01_task-rest_run-{k}_space-{SPACE}_atlas-Fine_stat-mean_timeseries" for k in (1, 2)]
    assert sorted(path.name for path in (tmp_path / "out" / "figures").iterdir()) == [f"{name}.png" for name in names]
    for (signals, matrix, labels, mean, affine), rest in given:
        name = rest["title"]
        func = tmp_path / "d" / "sub-01" / "func"
        run = nib.load(func / f"{name.partition('_atlas')[0]}_desc-preproc_bold.nii.gz")
        table = pd.read_table(tmp_path / "out" / "sub-01" / "func" / f"{name}.tsv")
        np.testing.assert_array_equal(signals, table.to_numpy())
        np.testing.assert_allclose(matrix, table.corr().to_numpy(), atol=1e-6)
        np.testing.assert_allclose(mean, run.get_fdata().mean(axis=-1), rtol=1e-12)
        np.testing.assert_array_equal(affine, run.affine)
        assert labels.shape == run.shape[:3]
        assert rest["names"] == list(table)
        assert rest["fd_threshold"] == 0.5
        assert (rest["t_r"], rest["kept"].tolist()) == (2.0, [k for k in range(40) if k != 7])
        confounds = pd.read_table(func / f"{name.partition('_space')[0]}_desc-confounds_timeseries.tsv")
        np.testing.assert_allclose(rest["displacement"], confounds["framewise_displacement"], rtol=1e-12)
    assert sorted(rest["title"] for _, rest in given) == names


def test_without_matplotlib(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError) as error:
        whole()
    message = "Missing package 'matplotlib' for figures. Run: pip install 'gpumask[report]'"
    assert str(error.value) == message
    (tmp_path / "a.nii").touch()
    words = ["cohort", tmp_path / "d", tmp_path / "out", "participant", "--atlas", tmp_path / "a.nii", "--figures"]
    assert main([str(word) for word in words]) == 2
    assert capsys.readouterr().err == f"gpumask cohort: error: {message}\n"
    assert not (tmp_path / "out").exists()
