"""The HTML report: well-formed, escaped, with a picture that shows something, before and after a transform."""

import base64
import html
import io
import pickle
import re
import sys
import warnings
import webbrowser
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError

from gpumask import MultiNiftiLabelsMasker, NiftiLabelsMasker, NiftiMapsMasker, NiftiSpheresMasker
from gpumask.reports.parameters import parameter_words

from . import dense, helpers

pyplot = pytest.importorskip("matplotlib.pyplot")

AFFINE = np.diag([-2.0, 2, 3, 1])
MODELS = dense.models()


def image(data, affine=AFFINE):
    return helpers.image(data, affine)


def labels(ids=(1, 2, 5), dtype="i2"):
    values = np.zeros((9, 10, 8), dtype)
    for k, i in enumerate(ids):
        values[3 * k : 3 * k + 2, 2:7, 1:6] = i
    return image(values)


@pytest.fixture
def run():
    data = np.random.default_rng(0).normal(100, 20, (9, 10, 8, 6)).astype("f4")
    return image(data)


class Checker(HTMLParser):
    """Raises where tags don't nest; collects texts by the tag that they are in."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.texts, self.images = [], [], {}, []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1], []).append(data)


def parsed(report):
    checker = Checker()
    checker.feed(str(report))
    checker.close()
    assert checker.open == []
    assert checker.seen.count("html") == checker.seen.count("title") == checker.seen.count("h1") == 1
    return checker


def picture(report):
    """The report's picture as an array of RGBA values from 0 to 1."""
    (img,) = parsed(report).images
    kind, _, content = img["src"].partition(",")
    assert kind == "data:image/png;base64"
    return pyplot.imread(io.BytesIO(base64.b64decode(content, validate=True)), format="png")


def is_coloured(pixels):
    return (np.ptp(pixels[..., :3], axis=-1) > 0.2).mean()


@pytest.mark.parametrize("when", ["fit alone", "fit", "transform"])
@pytest.mark.parametrize("masked", [False, True])
def test_page_and_picture(run, when, masked):
    mask = np.ones((9, 10, 8), "u1")
    mask[3:6] = 0
    masker = NiftiLabelsMasker(labels(), mask_img=image(mask) if masked else None)
    masker.fit(None if when == "fit alone" else run)
    if when == "transform" and masked:
        with pytest.warns(UserWarning, match="following labels were removed"):
            masker.transform(run)
    elif when == "transform":
        masker.transform(run)
    report = masker.generate_report()
    page, pixels = parsed(report), picture(report)
    assert is_coloured(pixels) > 0.01
    under = ((np.ptp(pixels[..., :3], axis=-1) < 0.05) & (pixels[..., 0] > 0.1)).mean()  # gray; titles are white
    assert (under > 0.1) == (when != "fit alone")
    lost = when == "transform" and masked
    assert page.texts["h2"] == (["Last run"] if when == "transform" else []) + [f"Regions: {3 - lost}", "Parameters"]
    rows = re.findall(r"<td class=n>(\d+)</td><td>(\w+)</td><td class=n>(\d+)</td><td class=n>(\d+)</td>", report.html)
    expected = [(str(i), str(i), "50", "600") for i in (1, 2, 5)]
    assert rows == [row for row in expected if not (lost and row[0] == "2")]
    assert set(masker.get_params()) <= set(page.texts["th"])
    if when == "transform":
        assert "direct: mean of the stored voxels" in "".join(page.texts["pre"])


@pytest.mark.parametrize("keep", [False, True])
def test_lost_regions_are_named(run, keep):
    mask = np.ones((9, 10, 8), "u1")
    mask[3:6] = 0
    mask[6, 2:6] = 0  # 20 of the third's 50 voxels
    masker = NiftiLabelsMasker(
        labels(), labels=["one", "<two>", "three"], mask_img=image(mask), keep_all_regions=keep, min_coverage=0.75
    )
    assert "Lost" not in masker.fit(run).generate_report().html
    if keep:
        masker.transform(run)
    else:
        with pytest.warns(UserWarning, match="following labels were removed"):
            masker.transform(run)
    report = masker.generate_report().html
    assert "Lost, as too little is inside the field of view and the mask: &lt;two&gt;, three.</p>" in report


def boxes():
    """Three maps that don't overlap, and a mask without the second one."""
    values = labels().get_fdata()
    maps = np.stack([values == k for k in (1, 2, 5)], axis=-1).astype("f4")
    mask = np.ones((9, 10, 8), "u1")
    mask[3:6] = 0
    return image(maps), image(mask)


@pytest.mark.parametrize("keep", [False, True])
def test_lost_maps_are_named_too(run, keep):
    maps, mask = boxes()
    masker = NiftiMapsMasker(maps, mask_img=mask, keep_masked_maps=keep, min_coverage=0.5).fit(run)
    assert "Lost" not in masker.generate_report().html
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masker.transform(run)
    assert masker.n_elements_ == 2 + keep
    report = masker.generate_report().html
    assert "Lost, as too little is inside the field of view and the mask: niftimapsmasker1.</p>" in report


@pytest.mark.parametrize("kind", ["labels", "maps", "spheres"])
@pytest.mark.parametrize("other_grid", [False, True])
def test_the_mask_is_outlined(run, kind, other_grid):
    """In white, also one of another grid; a mask that is 1 everywhere has no outline."""
    maps, _ = boxes()
    halves = np.zeros((9, 10, 8), "u1")
    halves[:, 2:8, 1:7] = 1
    white = []
    for values in (np.ones((9, 10, 8), "u1"), halves):
        mask = image(values)
        if other_grid:
            halved = np.diag([0.5, 0.5, 0.5, 1])
            halved[:3, 3] = -0.25
            mask = image(np.kron(values, np.ones((2, 2, 2), "u1")), AFFINE @ halved)
        masker = {
            "labels": lambda mask: NiftiLabelsMasker(labels(), mask_img=mask),
            "maps": lambda mask: NiftiMapsMasker(maps, mask_img=mask, resampling_target="data"),
            "spheres": lambda mask: NiftiSpheresMasker([(-8.0, 10, 12)], radius=5, mask_img=mask),
        }[kind](mask)
        masker.fit(run)
        masker.transform(run)
        white.append((picture(masker.generate_report())[..., :3] > 0.95).all(axis=-1).sum())
    assert white[1] > white[0] + 300


def test_seeds_before_a_transform_are_drawn_like_cuts(run):
    """On black, as other pictures: a white one would shine in the dark. Each seed has a colour of its own."""
    seeds = [(-8.0, 10, 12), (0, 0, 0), (10, 4, 8)]
    pixels = picture(NiftiSpheresMasker(seeds, radius=5).fit(run).generate_report())
    assert np.median(pixels[..., :3]) == 0
    coloured = pixels[..., :3][np.ptp(pixels[..., :3], axis=-1) > 0.9]
    assert len(np.unique(coloured.round(1), axis=0)) >= 3


@pytest.mark.filterwarnings("ignore:3 of 4 labels in in-memory image aren't whole numbers")
@pytest.mark.parametrize("ids", [(0.5, 1.25, 3.75), (-3.0, 4.0, 1e9)])
def test_labels_that_are_no_small_integers(run, ids):
    report = (masker := NiftiLabelsMasker(labels(ids, "f8"))).fit(run).generate_report()
    assert is_coloured(picture(report)) > 0.01
    masker.transform(run)
    report = masker.generate_report()
    assert is_coloured(picture(report)) > 0.01
    assert all(f"<td class=n>{i:.12g}</td>" in report.html for i in ids)
    assert report.html.count("<td class=n>50</td>") == 3


@pytest.mark.parametrize("form", ["path", "3D", "list", "another grid", "resampled", "oblique", "NaN"])
def test_runs_of_any_kind(run, form, tmp_path):
    data, options = run.get_fdata(), {}
    if form == "path":
        nib.save(run, tmp_path / "run.nii.gz")
        run = tmp_path / "run.nii.gz"
    elif form == "3D":
        run = image(data[..., 0])
    elif form == "list":
        run = [image(data[..., 0]), image(data[..., 1])]
    elif form == "another grid":
        run = image(data, AFFINE @ np.diag([1.5, 1.5, 1.5, 1]))
    elif form == "resampled":
        options = {"resampling_target": "labels"}
        run = image(data[:7], AFFINE)
    elif form == "oblique":
        turned = np.array([[0, 1, 0, 0], [1, 0.1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        run = image(data.swapaxes(0, 1), AFFINE @ turned)
    elif form == "NaN":
        data[0] = np.nan
        run = image(data)
    masker = NiftiLabelsMasker(labels(), **options).fit(run)
    assert is_coloured(picture(masker.generate_report())) > 0.005
    if form == "resampled":
        with pytest.warns(UserWarning, match="Resampling images"):
            masker.transform(run)
    elif form == "NaN":
        with pytest.warns(UserWarning, match="Non-finite"):
            masker.transform(run)
    else:
        masker.transform(run)
    assert is_coloured(picture(masker.generate_report())) > 0.005


def test_a_run_that_lies_elsewhere_is_not_shown(run):
    elsewhere = AFFINE + np.array([[0, 0, 0, 4.0], *np.zeros((3, 4))])
    masker = NiftiLabelsMasker(labels(), resampling_target="labels").fit(image(run.get_fdata(), elsewhere))
    with_run = picture(NiftiLabelsMasker(labels()).fit(run).generate_report())
    alone = picture(NiftiLabelsMasker(labels()).fit().generate_report())
    np.testing.assert_array_equal(picture(masker.generate_report()), alone)
    assert not np.array_equal(with_run, alone)


def test_text_is_escaped(run):
    names = ["<b>one</b>", "two & 'three'", '</td><script>alert("5")</script>']
    masker = NiftiLabelsMasker(labels(), labels=names, clean_args={"filter": "butterworth"}).fit(run)
    report = masker.generate_report(title="<i>title</i> & more")
    page = parsed(report)
    assert not {"b", "i", "script"} & set(page.seen)
    assert [name for name in page.texts["td"] if name in names] == names
    assert page.texts["title"] == page.texts["h1"] == ["<i>title</i> & more"]
    assert html.escape(names[2]) in report.html


def method(table):
    """A function as a parameter."""


def parameters(masker):
    report = masker.generate_report().html.partition("<h2>Parameters</h2>")[2]
    return {name: html.unescape(words) for name, words in re.findall("<tr><th>(.*?)</th><td>(.*?)</td></tr>", report)}


@pytest.mark.parametrize("form", ["image", "file", "path", "loaded", "pair"])
def test_images_among_the_parameters(run, form, tmp_path):
    path, own = tmp_path / "my <atlas>.nii", labels()
    nib.save(own, path)
    data = np.asanyarray(own.dataobj)
    given, words = {
        "image": (labels(), "in-memory image of shape (9, 10, 8)"),
        "file": (str(path), repr(str(path))),
        "path": (path, str(path)),
        "loaded": (nib.load(path), str(path)),
        "pair": ((data, AFFINE), "(ndarray of shape (9, 10, 8), ndarray of shape (4, 4))"),
    }[form]
    found = parameters(NiftiLabelsMasker(given, smoothing_fwhm=3.0).fit(run))
    assert (found["labels_img"], found["smoothing_fwhm"], found["mask_img"]) == (words, "3.0", "None")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (pd.DataFrame({"index": [1, 2], "name": ["a", "b"]}), "DataFrame of shape (2, 2)"),
        (np.arange(3.0), "ndarray of shape (3,)"),
        ([image(np.ones((2, 3, 4))), "a.nii"], "[in-memory image of shape (2, 3, 4), 'a.nii']"),
        ((1.5,), "(1.5,)"),
        ({"mask": image(np.ones((2, 3, 4))), "n": 3}, "{'mask': in-memory image of shape (2, 3, 4), 'n': 3}"),
        (method, "method"),
        (object(), "object"),
        (nib.GiftiImage(), "in-memory GIFTI image"),
        (dense.scalars_image(np.zeros((1, len(MODELS))), MODELS), f"in-memory image of shape (1, {len(MODELS)})"),
        ("x" * 300, f"'{'x' * 199}..."),
        ([(0.0, 1.0, 2.0)] * 10**5, f"[{'(0.0, 1.0, 2.0), ' * 12}"[:200] + "..."),
    ],
)
def test_values_of_parameters(value, words):
    assert parameter_words(value) == words


def test_titles(run):
    for masker_class in (NiftiLabelsMasker, MultiNiftiLabelsMasker):
        page = parsed(masker_class(labels()).fit(run).generate_report())
        assert page.texts["title"] == page.texts["h1"] == [masker_class.__name__]


def test_colours(run):
    pictures = [picture(NiftiLabelsMasker(labels(), cmap=c).fit().generate_report()) for c in (None, "hsv", "gray")]
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert is_coloured(pictures[2]) == 0


def test_written_opened_and_shown(run, tmp_path, monkeypatch):
    report = NiftiLabelsMasker(labels(), labels=["ä", "β", "c"]).fit(run).generate_report()
    missing = tmp_path / "missing" / "report.html"
    message = f"{missing} can't be written: {missing.parent} isn't a folder. Make it first."
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        report.save_as_html(missing)
    report.save_as_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == str(report) == report.html
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    report.open_in_browser(tmp_path / "other.html")
    assert opened == [(tmp_path / "other.html").as_uri()]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    report.open_in_browser()
    assert opened[1].startswith("file:///")
    assert opened[1].endswith(".html")
    frame = report._repr_html_()
    assert html.unescape(re.search(r'srcdoc="(.*?)" width', frame, re.DOTALL)[1]) == report.html


def test_why_there_is_no_report(run, monkeypatch):
    masker = NiftiLabelsMasker(labels())
    with pytest.raises(NotFittedError):
        masker.generate_report()
    masker.fit(run)
    with pytest.raises(ValueError) as error:
        masker.generate_report(engine="brainsprite")
    assert str(error.value) == "`engine` must be 'matplotlib', got 'brainsprite'."
    with pytest.raises(ValueError) as error:
        NiftiLabelsMasker(labels(), reports=False).fit(run).generate_report()
    assert str(error.value) == "generate_report needs reports=True, but the masker has reports=False."
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError) as error:
        masker.generate_report()
    assert str(error.value) == "Missing package 'matplotlib' for figures. Run: pip install 'gpumask[report]'"


@pytest.mark.parametrize("method", ["fit", "transform"])
def test_pickles_drop_the_run(run, method):
    masker = NiftiLabelsMasker(labels()).fit(run if method == "fit" else None)
    if method == "transform":
        masker.transform(run)
    assert masker._report_run is run
    content = pickle.dumps(masker)
    lean = pickle.dumps(NiftiLabelsMasker(labels(), reports=False).fit())
    assert len(content) < len(lean) + run.get_fdata().nbytes / 4
    copy = pickle.loads(content)
    assert getattr(copy, "_report_run", None) is None
    assert is_coloured(picture(copy.generate_report())) > 0.01


def test_reports_false_keeps_no_run(run):
    masker = NiftiLabelsMasker(labels(), reports=False).fit(run)
    masker.transform(run)
    assert masker._report_run is None


def test_figures_are_no_ones_business(run):
    """Nothing is left open in pyplot, whatever backend the user has."""
    before, backend = pyplot.get_fignums(), pyplot.get_backend()
    NiftiLabelsMasker(labels()).fit(run).generate_report()
    assert (pyplot.get_fignums(), pyplot.get_backend()) == (before, backend)
