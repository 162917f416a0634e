"""The cohort's page and the maskers' reports in a real browser: no errors, and what a reader clicks works."""

import json

import numpy as np
import pytest

from gpumask import NiftiLabelsMasker, NiftiMapsMasker, NiftiSpheresMasker
from gpumask.cohort.page import write_page
from gpumask.reports.figures import new_figure, to_png

from . import cohorts, helpers
from .browser import PROGRAM, Browser

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here: apt-get install chromium")
ROWS = "[...document.querySelectorAll('#all tbody tr')]"
LINES = """(cell) => {
  const range = document.createRange();
  range.selectNodeContents(cell);
  return new Set([...range.getClientRects()].map((part) => part.top)).size;
}"""
NAMES = f"{ROWS}.map((row) => row.cells[0].textContent)"


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """250 runs, two of them failed; the names and errors of some try to be HTML."""
    out = tmp_path_factory.mktemp("page") / "out"
    (out / "logs").mkdir(parents=True)
    (out / "figures").mkdir()
    lines = []
    for k in range(250):
        name = f"sub-{k:03}_task-rest_run-1"
        figure = f"figures/{name} #1.png"
        values = {"volumes": 200, "volumes_kept": 50 + (k * 37) % 150, "degrees_of_freedom": 40.0 + k}
        record = cohorts.record(name, [(figure, 1, "m")], **values)
        if k in (3, 77):
            lines.append(
                {**record, "status": "failed", "error": "<img src=x onerror=alert(1)> No space left on device"}
            )
        else:
            (out / "logs" / f"{name}.json").write_text(json.dumps(record))
    hostile = cohorts.record("sub-x", [("javascript:alert(1)//.png", 1, "m")], volumes_kept=1)
    (out / "logs" / "sub-x.json").write_text(json.dumps(hostile))
    (out / "logs" / "runs-host-1.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (out / "figures" / "sub-007_task-rest_run-1 #1.png").write_bytes(to_png(new_figure((2, 1))))
    kind = {"atlas": "A", "denoising": "24p", "stat": "pearsoncorrelation", "remark": "of a sample " * 9}
    numbers = {"runs": 250, "runs_used": 240, "edges": 79800, "median_abs_r": 0.0712, "share_significant": 0.08125}
    write_page(out, motion=[{**kind, **numbers, "share_significant_fdr": 0.0}])
    return out


@pytest.fixture
def page(browser, out):
    browser.problems.clear()
    browser.open(out / "cohort.html")
    browser.wait("'ready' in document.documentElement.dataset")
    yield browser
    assert browser.problems == []


def click(browser, what):
    browser.value(f"{what}.click()")


def test_sorting(page):
    kept = {f"sub-{k:03}_task-rest_run-1": 50 + (k * 37) % 150 for k in range(250) if k not in (3, 77)}
    up = sorted({**kept, "sub-x": 1}.items(), key=lambda item: item[1])
    column = "[...document.querySelectorAll('#all th')].find((head) => head.textContent === 'Volumes kept')"
    for button, ranks in (("ascending", up), ("descending", up[::-1])):
        click(page, f"{column}.querySelector('button')")
        assert page.value(f"{column}.getAttribute('aria-sort')") == button
        index = page.value(f"{column}.cellIndex")
        shown = page.value(f"{ROWS}.map((row) => Number(row.cells[{index}].textContent))")
        assert shown == [number for _, number in ranks[:100]]
    for n in (200, 250):
        click(page, "document.querySelector('.tools button')")
        assert page.value(f"{ROWS}.length") == min(n + 1, 251) if n == 250 else 200
    names = page.value(NAMES)
    assert set(names[-2:]) == {"sub-003_task-rest_run-1", "sub-077_task-rest_run-1"}  # n/a is last
    assert page.value("document.querySelectorAll('.tools')[1].hidden")


@pytest.mark.parametrize(
    ("text", "names"),
    [("SUB-00 rest", [0, 1, 2, 4, 5, 6, 7, 8, 9, 3]), ("space left", [3, 77]), ("nothing", []), ("  ", None)],
)
def test_search(page, text, names):
    page.value(f"document.querySelector('input').value = {text!r}")
    page.value("document.querySelector('input').dispatchEvent(new Event('input'))")
    found = page.value(NAMES)
    if names is None:
        assert len(found) == 100
    else:
        assert set(found) == {f"sub-{k:03}_task-rest_run-1" for k in names}
        assert page.value("document.querySelector('output').textContent") == f"{len(names)} of 251 rows"


def test_a_run_by_its_address(page, out):
    page.open(f"{(out / 'cohort.html').as_uri()}#run=sub-007")
    page.wait(f"{ROWS}.length === 1")
    assert page.value("document.querySelectorAll('#all img').length") == 0
    opener = f"{ROWS}[0].cells[1].querySelector('button')"
    click(page, opener)
    page.wait(f"{ROWS}[1].querySelector('img')?.naturalWidth === 200")
    assert page.value(f"{ROWS}[1].querySelector('a').getAttribute('href')").endswith("run-1%20%231.png")
    assert page.value(f"{opener}.getAttribute('aria-expanded')") == "true"
    click(page, opener)
    assert page.value(f"{ROWS}.length") == 1
    assert page.value(f"{opener}.getAttribute('aria-expanded')") == "false"


@pytest.mark.parametrize("width", [400, 640])
def test_runs_and_figures_are_in_view(page, out, width):
    """The run's name stays while the table is scrolled sideways; figures are next to it."""
    page.open(out / "cohort.html", width=width)
    page.wait("'ready' in document.documentElement.dataset")
    left = "document.querySelector('#all').parentElement.getBoundingClientRect().left"
    run = f"{ROWS}[0].cells[0].getBoundingClientRect()"
    assert page.value(f"{ROWS}[4].cells[1].querySelector('button').getBoundingClientRect().right") < width
    assert page.value("document.querySelector('#all thead tr').cells[1].textContent") == "Figures"
    click(page, f"{ROWS}[4].cells[1].querySelector('button')")
    page.value("document.querySelector('#all').parentElement.scrollLeft = 150")
    assert page.value("document.querySelector('#all').parentElement.scrollLeft") == 150
    assert page.value(f"{run}.left - {left}") == 0
    assert page.value(f"{ROWS}[5].querySelector('img').getBoundingClientRect().left - {left}") >= 0
    page.problems.clear()  # the picture doesn't exist


def test_pictures_are_loaded_when_they_are_opened(page):
    """Not when the page is printed, either; 249 of 250 would be missing."""
    assert page.printed().startswith(b"%PDF")


def test_texts_of_others_stay_texts(page):
    assert page.value("document.querySelectorAll('img').length") == 0
    click(page, "document.querySelector('#failures ~ table summary, #failures ~ div summary')")
    page.value("document.querySelector('input').value = 'sub-x'")
    page.value("document.querySelector('input').dispatchEvent(new Event('input'))")
    click(page, f"{ROWS}[0].querySelector('button')")
    page.wait(f"{ROWS}[1].querySelector('a')")
    assert page.value(f"{ROWS}[1].querySelector('a').href").startswith("file:///")
    page.problems.clear()  # the picture doesn't exist


def test_scripts_of_others_are_refused(page):
    page.value("document.body.insertAdjacentHTML('beforeend', '<img src=data: onerror=\"window.done = 1\">')")
    page.wait("document.images[0].complete")
    assert page.value("window.done") is None
    assert any("Content Security Policy" in problem for problem in page.problems)
    page.problems.clear()


@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_fits_the_window(page, out, width, dark):
    page.open(out / "cohort.html", width=width, dark=dark)
    assert page.value("document.documentElement.scrollWidth <= innerWidth")
    background = page.value("getComputedStyle(document.documentElement).colorScheme")
    assert background == "light dark"
    ink = page.value("getComputedStyle(document.querySelector('svg text, svg g, svg')).color")
    assert (ink == "rgb(255, 255, 255)") == dark
    # Pictures have no ground of their own: white ones would shine in the dark.
    grounds = "[...document.querySelectorAll('svg [id^=patch_] path')].map((path) => getComputedStyle(path).fill)"
    assert "rgb(255, 255, 255)" not in page.value(grounds)
    # Names of matrices are broken between words only, numbers nowhere.
    assert page.value(f"({LINES})(document.querySelector('.whole'))") <= 3
    cells = "[...document.querySelectorAll('#qcfc ~ .wide')][0].querySelectorAll('td.n')"
    assert page.value(f"[...{cells}].map((cell) => cell.textContent.replace(/\\s/g, ' '))") == [
        *("250", "240", "79 800", "0.071", "8.1 %", "0.0 %"),
    ]
    assert set(page.value(f"[...{cells}].map({LINES})")) == {1}


def test_without_scripts(page, out):
    page.open(out / "cohort.html", script=False)
    text = (out / "cohort.html").read_text("utf-8")
    assert text.count("<tr><td>sub-") == 100
    assert text.count("<td class=figures><a href='./figures/sub-") == 97  # two rows failed, one is sub-x
    assert "./figures/sub-000_task-rest_run-1%20%231.png" in text
    assert page.printed().startswith(b"%PDF")


def reports():
    rng = np.random.default_rng(0)
    data = helpers.image(rng.normal(100, 20, (9, 10, 8, 6)).astype("f4"), np.diag([-2.0, 2, 3, 1]))
    labels = np.zeros((9, 10, 8), "i2")
    for k in range(3):
        labels[3 * k : 3 * k + 2, 2:7, 1:6] = k + 1
    maps = np.stack([labels == k for k in (1, 2, 3)], axis=-1).astype("f4")
    yield NiftiLabelsMasker(helpers.image(labels, data.affine)), data
    mask = helpers.image(np.ones((9, 10, 8), "u1"), data.affine)
    yield NiftiMapsMasker(helpers.image(maps, data.affine), mask_img=mask), data
    yield NiftiSpheresMasker([(-4.0, 6.0, 9.0), (-10.0, 10.0, 9.0)], radius=4), data


@pytest.mark.parametrize("dark", [False, True])
def test_reports(browser, tmp_path, dark):
    browser.problems.clear()
    for masker, run in reports():
        masker.fit(run)
        masker.transform(run)
        masker.generate_report().save_as_html(tmp_path / "report.html")
        for width in (400, 1200):
            browser.open(tmp_path / "report.html", width=width, dark=dark)
            assert browser.value("document.images[0].naturalWidth") > 300
            assert browser.value("document.documentElement.scrollWidth <= innerWidth")
            assert (browser.value("getComputedStyle(document.body).color") == "rgb(255, 255, 255)") == dark
            # Numbers and names of parameters aren't broken into lines of a few characters.
            cells = "[...document.querySelectorAll('td.n:not(:empty), th:first-child')]"
            assert set(browser.value(f"{cells}.map({LINES})")) == {1}
        assert browser.printed().startswith(b"%PDF")
    assert browser.problems == []
