"""Runs of which some denoisings can't be used: what was written is on the page, in the tables and in the store."""

import json
import re

import pandas as pd
import pytest

from gpumask import cli
from gpumask.bids import find_runs
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.executors import run_cohort
from gpumask.cohort.group import summarize
from gpumask.cohort.page.logs import without_folder
from gpumask.cohort.page.pictures import histograms
from gpumask.confounds.denoising import Denoising

from . import cohorts
from .test_cohort_page import Cohort, page_of, rows_below, totals

pytest.importorskip("matplotlib")

MOTION, TISSUE = (Denoising(name, {"columns": [column]}) for name, column in (("motion", "trans_x"), ("tissue", "csf")))
RUNS = [f"sub-01_task-rest_run-{k}_space-{cohorts.SPACE}" for k in (1, 2)]


@pytest.fixture
def made(tmp_path):
    """A cohort of two runs; the second one's confounds lack what a denoising needs."""
    cohorts.make_cohort(tmp_path / "d", 2, bad=False)
    atlas = AtlasFile(cohorts.make_atlases(tmp_path)[0])
    runs, _ = find_runs(tmp_path / "d")
    confounds = pd.read_table(runs[1].confounds)
    confounds.drop(columns="csf").to_csv(runs[1].confounds, sep="\t", index=False, na_rep="n/a")
    options = {"figures": True, "denoisings": (MOTION, TISSUE), "device": "cpu", "min_time": 0}
    return Configuration((atlas,), tmp_path / "out", {}, **options), runs, confounds


def test_what_was_written_is_shown_next_to_the_failure(made):
    configuration, runs, confounds = made
    out = configuration.out_dir
    for attempt in range(2):  # the second one writes nothing: only the unusable denoising is left
        records = {record.run: record for record in run_cohort(configuration, runs)}
        assert records[runs[0]].status == ("skipped" if attempt else "done")
        assert records[runs[1]].status == "failed"
        summarize(out, 2)
        page = page_of(out, 2)
        text = (out / "cohort.html").read_text("utf-8")
        skipped = [("1", "of these skipped, as done before")] * attempt
        assert totals(text) == [("1", "done"), *skipped, ("1", "failed"), ("1", "of these partly done")]
        assert "1 of them is partly done: outputs of other denoisings, or of an earlier attempt, exist." in page.text
        (failure,) = rows_below(page, "Run", "Error")[:1]
        assert failure[0] == f"{RUNS[1]}partly done"
        assert failure[1].startswith("tissue: sub-01_task-rest_run-2_desc-confounds_timeseries.tsv has no column csf.")
        rows = [row[:4] for row in rows_below(page, "Run", "Figures", "Denoising", "Outcome")]
        lacking = "partly done: tissue: sub-01_task-rest_run-2_desc-confounds_timeseries.tsv has no column csf. Its 4"
        assert [row[:3] for row in rows] == [
            [RUNS[1], "1", "motion"],
            [RUNS[0], "1", "motion"],
            [RUNS[0], "1", "tissue"],
        ]
        assert rows[0][3].startswith(lacking)
        assert [row[3] for row in rows[1:]] == ["done", "done"]
        assert len(list((out / "figures").glob("*.png"))) == 3
        assert "6 regions, 2 runs." in page.text
        assert "Of 2 runs. Stages overlap" in page.text
        assert "Denoising motion: 2 runs" in page.texts
        assert "Denoising tissue: 1 run" in page.texts
    confounds.to_csv(runs[1].confounds, sep="\t", index=False, na_rep="n/a")
    assert [record.status for record in run_cohort(configuration, runs)] == ["skipped", "done"]
    page_of(out, 2)
    assert totals((out / "cohort.html").read_text("utf-8"))[0] == ("2", "done")
    assert "of them is partly done" not in page_of(out, 2).text


def test_tables_and_store_have_what_was_written(made, tmp_path):
    pytest.importorskip("pyarrow")
    configuration, runs, _ = made
    list(run_cohort(configuration, runs))
    summarize(configuration.out_dir)
    assert "Mean over 2 runs, by Fisher z." in (configuration.out_dir / "cohort.html").read_text("utf-8")
    table = pd.read_table(configuration.out_dir / "group_quality.tsv")
    assert list(zip(table["name"], table["denoising"], strict=True)) == [
        (RUNS[0], "motion"),
        (RUNS[0], "tissue"),
        (RUNS[1], "motion"),
    ]
    paths, refused = cohorts.write_store(configuration.out_dir, tmp_path / "c.parquet")
    assert refused == {}
    names = {path.name.partition("desc-")[2]: sorted(pd.read_parquet(path)["name"].unique()) for path in paths}
    assert names == {"motion.parquet": RUNS, "tissue.parquet": RUNS[:1]}


def test_last_line_of_the_command(made, tmp_path, capsys):
    """Also if nothing is written any more: what was written before is still there."""
    for name, column in (("motion", "trans_x"), ("tissue", "csf")):
        (tmp_path / f"{name}.json").write_text(json.dumps({"columns": [column]}))
    words = ["cohort", tmp_path / "d", tmp_path / "o", "participant", "--atlas", tmp_path / "atlas-Toy_dseg.nii.gz"]
    words += ["--denoise", tmp_path / "motion.json", tmp_path / "tissue.json", "--min-time=0", "--device=cpu"]
    for done in ("1 done", "0 done, 1 skipped (done before)"):
        assert cli.main(list(map(str, words))) == 1
        assert capsys.readouterr().out.splitlines()[-1] == f"{done}, 1 failed (1 partly done)"


def test_warnings_of_a_run_are_counted_once(tmp_path):
    """The line of a partly finished run and its record have the same ones."""
    cohort = Cohort(tmp_path / "out")
    cohort.done("sub-1", warnings=["Be careful."])
    cohort.failed("sub-1", "b: no csf", warnings=["Be careful.", "Be more careful."])
    rows = page_of(cohort.out).rows
    assert sorted(rows[rows.index(["Runs", "Warning"]) + 1 :]) == [["1", "Be careful."], ["1", "Be more careful."]]


def test_a_run_without_numbers_has_one_row(tmp_path):
    cohort = Cohort(tmp_path / "out")
    cohort.done("sub-1", quality={}, atlases={})
    cohort.failed("sub-1", "/data/sub-1_desc-preproc_bold.nii.gz is gone.")
    assert rows_below(page_of(cohort.out), "Run", "Outcome") == [["sub-1", "failed: … is gone."]]


@pytest.mark.parametrize(
    ("message", "run", "expected"),
    [
        ("a: /d/s/x.tsv has no csf, /d/s/y is '/d/s/z'", "/d/s/b.nii", "a: x.tsv has no csf, y is 'z'"),
        ("/e/d/s/x and /d/s2/x", "/d/s/b.nii", "/e/d/s/x and /d/s2/x"),  # other folders
        ("d/x and e/d/x", "d/b.nii", "x and e/d/x"),
        ("/x is gone", "/b.nii", "/x is gone"),
        ("a/b", "b.nii", "a/b"),
        ("/d.s/x /dXs/x", "/d.s/b.nii", "x /dXs/x"),
    ],
)
def test_folders_of_runs_are_left_out_of_messages(message, run, expected):
    assert without_folder(message, run) == expected


def test_histograms_count_runs(tmp_path):
    """Rows are runs times denoisings; the displacement is the same for all of them."""
    from matplotlib.axes import Axes

    drawn, hist = [], Axes.hist
    cohort = Cohort(tmp_path / "out")
    for k, kept in enumerate([90, 80, 70]):
        numbers = {"volumes": 100, "volumes_kept": kept, "fd_mean": 0.1 * k, "atlases": {}}
        names = ("a", "b", "c")[: 3 - k]  # the last run lacks two
        censored = {**numbers, "volumes_kept": kept - 20}
        cohort.done(f"sub-{k}", quality={name: censored if name == "b" else numbers for name in names})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Axes, "hist", lambda axes, values, **how: drawn.append(list(values)) or hist(axes, values, **how))
        page = page_of(cohort.out)
    assert page.labels[0] == (
        "distribution over runs of volumes kept, a, volumes kept, b, volumes kept, c, mean FD, mm"
    )
    assert drawn[:4] == [[90, 80, 70], [70, 60], [90], pytest.approx([0, 0.1, 0.2], abs=1e-6)]


def test_equal_numbers_have_no_axis_below_0():
    from matplotlib.axes import Axes

    spans, hist = [], Axes.hist
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Axes, "hist", lambda axes, *v, **how: spans.append((drawn := hist(axes, *v, **how))[1]) or drawn)
        histograms([("mean FD", [0.04, 0.04]), ("other", [0.04, 0.05])])
    assert [(span[0], span[-1]) for span in spans] == [pytest.approx((0.036, 0.044)), pytest.approx((0.04, 0.05))]


def test_denoisings_that_keep_the_same_share_a_histogram(tmp_path):
    cohort = Cohort(tmp_path / "out")
    for k in range(3):
        numbers = {"volumes": 100, "volumes_kept": 90 + k, "atlases": {}}
        cohort.done(f"sub-{k}", quality={f"d{n}": numbers for n in range(9)})
    assert page_of(cohort.out).labels[0] == "distribution over runs of volumes kept"
    many = {f"d{n}": {"volumes": 100, "volumes_kept": n, "atlases": {}} for n in range(9)}
    cohort.done("sub-4", quality=many)
    page = page_of(cohort.out)
    assert page.labels[0].count("volumes kept") == 5
    assert "And 4 more denoisings." in page.text


def test_each_section_has_a_link(made):
    configuration, runs, _ = made
    list(run_cohort(configuration, runs[:1]))
    summarize(configuration.out_dir)
    text = (configuration.out_dir / "cohort.html").read_text("utf-8")
    links = re.findall("<a href='#([a-z]+)'>([^<]*)</a>", text)
    assert [heading for _, heading in links] == [
        *("Failures", "Runs", "Coverage", "Mean connectivity", "Motion in connectivity"),
        *("What was done", "Timings", "Warnings"),
    ]
    assert [key for key, _ in links] == re.findall("<h2 id='([^']*)'", text)
