"""The page of a cohort: its numbers, whatever the logs have gone through, and pictures that show what they say."""

import base64
import html
import io
import json
import re
import sys
import time
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest

from gpumask.cohort import page as cohort_page
from gpumask.cohort.group import summarize
from gpumask.cohort.page import coverage, logs, write_page

from . import cohorts

EMPTY = ("meta", "br", "input", "img")

pytest.importorskip("matplotlib")


class Checker(HTMLParser):
    """Raises where tags don't nest; collects the texts by the tag that they are in, and the pictures."""

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.rows, self.images, self.labels, self.outside, self.scripts = (
            [],
            [],
            [],
            [],
            [],
            [],
            [],
        )

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in EMPTY:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "svg":
            self.labels.append(attributes["aria-label"])
        self._look_outside(tag, attributes)

    def handle_startendtag(self, tag, attributes):
        self._look_outside(tag, dict(attributes))

    def _look_outside(self, tag, attributes):
        links = [value for key, value in attributes.items() if key in ("href", "src", "xlink:href")]
        self.images += [link for link in links if link.startswith("data:image/png;base64,")]
        self.outside += [link for link in links if not link.startswith(("data:", "#", "./"))]
        self.scripts += [attributes] * (tag == "script")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            return
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def page_of(out, n_runs=None):
    path = write_page(out, n_runs)
    assert path == out / "cohort.html"
    assert not list(out.glob(".gpumask*"))
    checker = Checker()
    checker.feed(path.read_text("utf-8"))
    checker.close()
    assert checker.open == []
    assert checker.outside == []
    assert checker.scripts in ([{}], [{"type": "text/plain", "id": "rows"}, {}])
    checker.text = re.sub(r"\s+", " ", "".join(checker.texts))
    return checker


def rows_below(page, *headings):
    """Rows of the table with these first headings."""
    start = next(k for k, row in enumerate(page.rows) if tuple(row[: len(headings)]) == headings)
    rows = page.rows[start + 1 :]
    end = next((k for k, row in enumerate(rows) if len(row) != len(page.rows[start])), len(rows))
    return rows[:end]


def totals(page):
    return re.findall(r"<li class='\w*'><b>(\S+)</b>([^<]*)", page)


class Cohort:
    """An output folder, with logs as `gpumask cohort` writes them."""

    def __init__(self, out):
        self.out, self.clock = out, 0
        self.logs = out / "logs"
        self.logs.mkdir(parents=True)

    def line(self, name, status, *, log="runs-host-1", **values):
        self.clock += 1
        time = f"2026-11-22T10:{self.clock // 60:02}:{self.clock % 60:02}.000+00:00"
        content = {**cohorts.record(name), "time": time, "status": status, **values}
        for of_records in ("configuration", "inputs", "outputs", "made", "host", "pid"):
            content.pop(of_records)
        with (self.logs / f"{log}.jsonl").open("a") as file:
            file.write(json.dumps(content) + "\n")
        return content

    def done(self, name, coverage=None, *, nodes=None, **values):
        values = {"seconds": {"read": 1.0, "reduce": 0.5, "clean": 0.1, "write": 0.2, "total": 2.0}, **values}
        content = self.line(name, "done", **values)
        outputs = []
        for atlas, shares in (coverage or {}).items():
            path = self.out / "sub" / f"{name}_atlas-{atlas}_res-2_stat-coverage_bold.tsv"
            path.parent.mkdir(exist_ok=True)
            cells = ["n/a" if np.isnan(share) else f"{share}" for share in shares]
            rows = zip(nodes or [f"r{k}" for k in range(len(cells))], cells, strict=True)
            path.write_text("Node\tcoverage\n" + "".join(f"{node}\t{cell}\n" for node, cell in rows), "utf-8")
            outputs.append((path.relative_to(self.out).as_posix(), path.stat().st_size, "m1"))
        record = {**cohorts.record(name, outputs), **content, **values}
        (self.logs / f"{name}.json").write_text(json.dumps(record))

    def failed(self, name, error="It is truncated.", **values):
        self.line(name, "failed", error=error, traceback=f"Traceback:\n  in f\nOSError: {error}", **values)


@pytest.fixture
def cohort(tmp_path):
    return Cohort(tmp_path / "out")


def test_totals(cohort):
    for name in ("sub-1", "sub-2", "sub-3", "sub-4"):
        cohort.done(name)
    cohort.failed("sub-5")
    cohort.failed("sub-3", "Failed when done again.")
    cohort.failed("sub-6")
    cohort.line("sub-1", "skipped")
    cohort.line("sub-2", "taken", log="runs-host-2")
    cohort.done("sub-6")  # at last
    cohort.line("sub-7", "taken", log="runs-host-2")
    page = page_of(cohort.out, 10)
    text = (cohort.out / "cohort.html").read_text("utf-8")
    assert totals(text) == [
        ("4", "done"),
        ("1", "of these skipped, as done before"),
        ("2", "failed"),
        ("1", "of these partly done"),
        ("4", "left"),
        ("1", "taken by another process"),
    ]
    assert "Failures: 2" in page.text
    assert [row[0] for row in rows_below(page, "Run", "Error")] == ["sub-3partly done", "sub-5"]
    assert "left" not in dict(totals(write_page(cohort.out).read_text("utf-8"))).values()


def test_failures_are_told_and_escaped(cohort):
    cohort.failed("sub-1", "No <mask> & 'no' \"table\" for /data/sub-1_desc-preproc_bold.nii.gz")
    page = page_of(cohort.out)
    text = (cohort.out / "cohort.html").read_text("utf-8")
    assert "<mask>" not in text
    summary = re.search("<summary>(.*?)</summary><pre>(.*?)</pre>", text, re.DOTALL)
    assert html.unescape(summary[1]) == "No <mask> & 'no' \"table\" for sub-1_desc-preproc_bold.nii.gz"
    assert html.unescape(summary[2]) == (
        "/data/sub-1_desc-preproc_bold.nii.gz\n2026-11-22T10:00:01.000+00:00\nTraceback:\n  in f\n"
        "OSError: No <mask> & 'no' \"table\" for /data/sub-1_desc-preproc_bold.nii.gz"
    )
    assert "<details>" in text
    assert page.labels == []


def test_thousands_of_failures(cohort):
    for number in range(1234):
        run = f"/data/sub-{number:05}_desc-preproc_bold.nii.gz"
        cohort.failed(f"sub-{number:05}", f"{run}: {number} of 200 volumes" if number % 2 else "No space left")
    page = page_of(cohort.out)
    assert "Failures: 1\u202f234" in "".join(page.texts)
    assert ["617", "No space left"] in page.rows
    grouped = next(row for row in page.rows if row[1].startswith("<run>"))
    assert grouped[0] == "617"
    assert grouped[1] == "<run>: N of N volumesas in: /data/sub-00001_desc-preproc_bold.nii.gz: 1 of 200 volumes"
    shown = rows_below(page, "Run", "Error")
    assert [row[0] for row in shown[:301]] == [*(f"sub-{number:05}" for number in range(300)), "Run"]
    assert "And 934 more, in logs/*.jsonl." in page.text


def test_lines_that_were_cut_or_are_no_lines(cohort):
    cohort.done("sub-1")
    cohort.failed("sub-2")
    log = cohort.logs / "runs-host-1.jsonl"
    whole = log.read_bytes()
    log.write_bytes(b"\0" * 20 + b"\n" + b"\xff\xfe\n" + whole + b'[1, 2]\n{"name": "x"}\nnull\n' + whole[:70])
    (cohort.logs / "sub-3.json").write_text('{"status": "do')
    page = page_of(cohort.out)
    assert "unreadable: 7 (first in logs/runs-host-1.jsonl)" in page.text
    assert ("1", "failed") in totals((cohort.out / "cohort.html").read_text("utf-8"))
    log.write_bytes(whole[:-1])  # the last line is whole, but for its end
    assert "unreadable: 1 (first in logs/sub-3.json)" in page_of(cohort.out).text


@pytest.mark.parametrize("seconds", [{}, {"total": 0.0}])
def test_records_with_little_in_them(cohort, seconds):
    cohort.done("sub-1", {"A": [0.5]}, seconds=seconds, volumes=0)
    page = page_of(cohort.out)
    assert "volumes per second" not in page.text
    assert "1 region, 1 run" in page.text


def test_logged_as_done_without_a_record(cohort):
    cohort.done("sub-1")
    cohort.done("sub-2")
    (cohort.logs / "sub-2.json").unlink()
    page = page_of(cohort.out)
    assert "Logged as done, but without a record: 1 run (first: sub-2), to be done again." in page.text


def test_configurations(cohort):
    cohort.done("sub-1")
    assert "The runs were done with" not in page_of(cohort.out).text
    cohort.done("sub-2", configuration="c2")
    cohort.done("sub-3", configuration="c2")
    assert "The runs were done with 2 configurations: c2 (2), c1 (1)." in page_of(cohort.out).text


def test_warnings_by_kind(cohort):
    for number in range(4):
        run = f"/data/sub-{number}_desc-preproc_bold.nii.gz"
        cohort.done(
            f"sub-{number}", warnings=[f"{run}: {number + 3} voxels of {run} are lost", "Be <careful>"][: number + 1]
        )
    cohort.failed("sub-5", warnings=["Be <careful>"])
    page = page_of(cohort.out)
    rows = page.rows[page.rows.index(["Runs", "Warning"]) + 1 :]
    first = "/data/sub-0_desc-preproc_bold.nii.gz"
    assert rows == [
        ["4", f"<run>: N voxels of <run> are lostas in: {first}: 3 voxels of {first} are lost"],
        ["4", "Be <careful>"],
    ]


def test_timings(cohort):
    for number, total in enumerate([1.0, 2.0, 4.0]):
        cohort.done(f"sub-{number}", seconds={"read": 10.0 * total, "total": total}, volumes=120)
    cohort.failed("sub-9", seconds={"total": 1000.0})
    page = page_of(cohort.out)
    assert ["read, s", "11", "20", "38", "40"] in page.rows
    assert ["total, s", "1.1", "2", "3.8", "4"] in page.rows
    assert ["volumes per second", "33", "60", "114", "120"] in page.rows


def picture_of(page):
    """The pixels of the first picture, which is the coverage; next is its colour bar."""
    from matplotlib.image import imread

    return imread(io.BytesIO(base64.b64decode(page.images[0].partition(",")[2])), format="png")


def as_coverage(pixels):
    """Values that viridis shows by these colours; NaN where there is none."""
    from matplotlib import colormaps

    table = colormaps["viridis"](np.arange(256))
    nearest = np.abs(pixels[..., None, :3] - table[:, :3]).sum(axis=-1).argmin(axis=-1) / 255.0
    return np.where(pixels[..., 3] > 0.5, nearest, np.nan)


def test_picture_shows_the_coverage(cohort):
    shares = np.random.default_rng(0).uniform(0, 1, (9, 6)).round(3)
    shares[4, 2] = np.nan
    for number, share in enumerate(shares):
        cohort.done(f"sub-{number}", {"A": share})
    page = page_of(cohort.out)
    np.testing.assert_allclose(as_coverage(picture_of(page)), shares.T, atol=0.01)
    assert "6 regions, 9 runs." in page.text
    assert f"Mean coverage {np.nanmean(shares):.3f}" in page.text
    assert "coverage of regions (rows) in runs (columns)" in page.labels


@pytest.mark.parametrize("bins", [(3, 4), (400, 600)])
def test_bins_and_least_covered(cohort, monkeypatch, bins):
    monkeypatch.setattr(coverage, "_PICTURE", bins)
    rng = np.random.default_rng(1)
    shares = rng.uniform(0.6, 1, (10, 7)).round(3)
    shares[3] = 0.25
    shares[[0, 8], 5] = [0.125, np.nan]
    for number, share in enumerate(shares):
        cohort.done(f"sub-{number}", {"A": share})
    page = page_of(cohort.out)
    if bins == (3, 4):
        starts, columns = [0, 2, 4], np.arange(10) * 4 // 10
        expected = np.array(
            [[np.nanmean(shares[columns == c, a:b]) for c in range(4)] for a, b in zip(starts, [2, 4, 7], strict=True)]
        )
        np.testing.assert_allclose(as_coverage(picture_of(page)), expected, atol=0.01)
        assert "a pixel is the mean of up to 3 regions of 3 runs" in page.text
    else:
        assert "a point is the mean" not in page.text
    regions = page.rows.index(["Region, least covered first", "Mean", "Runs below 0.5"])
    assert page.rows[regions + 1] == ["r5", f"{np.nanmean(shares[:, 5]):.3f}", "3"]
    runs = page.rows.index(["Run, least covered first", "Mean", "Regions below 0.5"])
    assert page.rows[runs + 1] == ["sub-3", "0.250", "7"]
    assert {row[0] for row in page.rows[runs + 2 : runs + 4]} == {"sub-0", "sub-8"}


def test_an_atlas_each_and_tables_that_dont_fit(cohort):
    for number in range(3):
        cohort.done(f"sub-{number}", {"A": [0.5, 1.0], "B": [0.25]})
    cohort.done("sub-3", {"A": [0.5, 1.0]}, nodes=["r0", "$r_{9}$"])
    cohort.done("sub-4", {"A": [0.5, 1.0]})
    (cohort.out / "sub" / "sub-4_atlas-A_res-2_stat-coverage_bold.tsv").unlink()
    cohort.done("sub-5", {"A": [0.5, 1.0]})
    (cohort.out / "sub" / "sub-5_atlas-A_res-2_stat-coverage_bold.tsv").write_text("Node\tcoverage\nr0\tx\nr1")
    page = page_of(cohort.out)
    assert "2 regions, 3 runs. Skipped, as unreadable or with other regions: 3 tables (first: sub-3)." in page.text
    assert "1 region, 3 runs. Mean coverage 0.250." in page.text
    assert page.labels.count("coverage of regions (rows) in runs (columns)") == 2


@pytest.mark.parametrize("share", [[], [np.nan, np.nan]])
def test_no_coverage_at_all(cohort, share):
    cohort.done("sub-1", {"A": share})
    assert f"{len(share)} regions, 1 run." in page_of(cohort.out).text


def test_region_names_that_look_like_formulas(cohort):
    cohort.done("sub-1", {"A": [0.5, 1.0]}, nodes=["$a_b", "$\\frac$ <b>" + "x" * 50])
    assert "$\\frac$ <b>" in page_of(cohort.out).text


def test_no_runs(tmp_path):
    (tmp_path / "a <b> & c" / "logs").mkdir(parents=True)
    page = page_of(tmp_path / "a <b> & c", 0)
    assert "Cohort a <b> & c" in page.texts
    assert "Failures" in page.texts
    assert "No finished runs." in page.text
    assert "No coverage tables." in page.text


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        write_page(tmp_path / "none")
    assert str(error.value) == (f"No such folder: {tmp_path / 'none'}. Expected the output folder of a cohort.")


def test_a_folder_of_others_is_left_alone(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        summarize(tmp_path)
    assert str(error.value) == f"No such folder: {tmp_path / 'logs'}. Expected the output folder of a cohort."
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib(cohort, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    cohort.done("sub-1", {"A": [0.5, 1.0]})
    page = page_of(cohort.out)
    assert page.labels == page.images == []
    assert page.text.count("For a picture here: pip install 'gpumask[report]', and rewrite the page.") == 3
    assert ["r0", "0.500", "0"] in page.rows


def test_the_old_page_stays_if_the_new_one_cant_be_written(cohort, monkeypatch):
    path = write_page(cohort.out)
    before = path.read_bytes()

    def fail(part, lines):
        part.write_text("half")
        msg = "No space left on device"
        raise OSError(28, msg)

    monkeypatch.setattr(cohort_page, "write", fail)
    with pytest.raises(OSError, match="No space left"):
        write_page(cohort.out)
    assert path.read_bytes() == before
    assert not list(cohort.out.glob(".gpumask*"))


# Hostile logs


def test_a_long_word_takes_linear_time():
    """A word of slashes took 40 s with 200 kB; messages are shorter now, and the pattern is linear besides."""
    counter, cohort = Counter(), logs.Cohort()
    for word in ("/" * 200_000, "/a" * 100_000, "1" * 200_000, "1." * 100_000, "a" * 200_000):
        begin = time.process_time()
        logs._count(counter, cohort, [word], {"run": "/data/x", "name": "x"})
        assert time.process_time() - begin < 2
    assert (counter["<path>"], counter["N"], counter["a" * 200_000], counter.total()) == (2, 1, 1, 5)


def test_messages_differ_by_words_with_two_slashes(cohort):
    """As the pattern of whole paths had it: a word of two or more slashes is a path, another isn't."""
    for number, error in enumerate(["/a/b: x", "c/d/e: x", "mm/s x", "1/2 x", "3/4 x", "(/a/b) //d x", "/q/r/ //s x"]):
        cohort.failed(f"sub-{number}", error)
    rows = page_of(cohort.out).rows
    kinds = {row[1].partition("as in")[0]: row[0] for row in rows[rows.index(["Runs", "Error"]) + 1 :][:4]}
    assert kinds == {"<path> x": "2", "mm/s x": "1", "N/N x": "2", "<path> <path> x": "2"}


def test_work_is_linear_in_the_number_of_runs(tmp_path):
    """Four times as many runs: at most about four times the lines of Python that are run."""
    counts = [lines_run(tmp_path / str(n), n) for n in (100, 400)]
    assert counts[1] < 5 * counts[0]


def lines_run(out, n):
    cohort = Cohort(out)
    for k in range(n):
        cohort.failed(f"sub-{k:04}_func", f"{k} {'x' * k}", listing="/data")
        cohort.done(f"sub-{k:04}_task-a", warnings=[f"{'w' * k}"])
    (cohort.logs / "unusable").write_text(
        json.dumps(
            {"/data": {"time": "2026-11-23T10:00:00.000+00:00", "names": [f"sub-{k:04}_func" for k in range(n)]}}
        )
    )
    count = 0

    def trace(frame, event, _):
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        logs.read_logs(cohort.logs)
    finally:
        sys.settrace(before)
    return count


def test_other_messages_are_counted_together(cohort, monkeypatch):
    monkeypatch.setattr(logs, "_KINDS", 2)
    for number, letter in enumerate("aabbccd"):
        cohort.done(f"sub-{number}", warnings=[letter])
    rows = page_of(cohort.out).rows
    assert sorted(rows[rows.index(["Runs", "Warning"]) + 1 :]) == [["2", "a"], ["2", "b"], ["3", "Other messages"]]


def test_a_hundred_atlases(cohort, monkeypatch):
    monkeypatch.setattr(coverage, "_ATLASES", 2)
    cohort.done("sub-1", {"A": [0.5], "B": [0.5], "C": [0.5], "D": [0.5]})
    page = page_of(cohort.out)
    assert len(page.labels) == 2 + 2  # and the runs and the timings
    assert "And 2 more atlases, in tables *_stat-coverage_bold.tsv." in page.text


@pytest.mark.parametrize("text", ["Node\tcoverage\nr0\tinf\n", "Node\tcoverage\nr0\t1e9\n", "Node\tcoverage\nr0\t-1\n"])
def test_coverage_that_is_none(cohort, text):
    cohort.done("sub-1", {"A": [0.5]})
    cohort.done("sub-2", {"A": [0.5]})
    table = next(cohort.out.glob("sub/sub-2_*.tsv"))
    table.write_text(text)
    record = cohort.logs / "sub-2.json"
    content = json.loads(record.read_text())
    content["outputs"][0]["size"] = len(text)
    record.write_text(json.dumps(content))
    assert "Skipped, as unreadable or with other regions: 1 table (first: sub-2)." in page_of(cohort.out).text


def test_coverage_of_another_size_than_recorded(cohort):
    cohort.done("sub-1", {"A": [0.5]})
    table = next(cohort.out.glob("sub/*.tsv"))
    table.write_text(table.read_text() + "r1\t0.5\n")
    assert "Skipped, as unreadable or with other regions: 1 table (first: sub-1)." in page_of(cohort.out).text


@pytest.mark.parametrize(
    "totals", [[1e9 - 1, np.nextafter(1e9 - 1, 0)], [0.0, 1e-300], [1e-3, 1e9 - 1], [999999999] * 2]
)
def test_any_seconds_have_a_picture(cohort, totals):
    for number, total in enumerate(totals):
        cohort.done(f"sub-{number}", seconds={"total": total}, volumes=10**9 - 1)
    assert len(page_of(cohort.out).labels) == 2


def test_a_log_that_is_a_folder_is_unreadable(cohort):
    cohort.done("sub-1")
    (cohort.logs / "runs-x.jsonl").mkdir()
    (cohort.logs / "x.json").mkdir()
    assert "skipped as unreadable: 2 (first in logs/runs-x.jsonl)" in page_of(cohort.out).text


def test_overlaps_of_any_type(tmp_path):
    """Texts of records are shown as they are, and a few of them only."""
    (tmp_path / "logs").mkdir()
    given = [None, 7, ["<b>no</b>", 3, {"a": 1}, *map(str, range(30))], ["x" * 10**5]]
    for k, overlaps in enumerate(given):
        record = cohorts.record(f"sub-{k}", [(f"sub-{k}_atlas-A_stat-coverage_bold.tsv", 1, "m")])
        record["atlases"] = {"A": {"regions": 3, "overlaps": overlaps}}
        (tmp_path / "logs" / f"sub-{k}.json").write_text(json.dumps(record))
    texts = page_of(tmp_path).texts
    assert "<b>no</b>" in texts
    assert [str(k) for k in range(30) if str(k) in texts[texts.index("A") :]][:9] == list(map(str, range(9)))
    assert max(map(len, texts)) < 10**4
