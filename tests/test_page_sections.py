"""Sections of the cohort's page: the table of runs, what was done, remedies; whatever records say."""

import base64
import json
import re
import zlib

import pytest

from gpumask import cli
from gpumask.cohort.page import pictures, runs, write_page
from gpumask.cohort.page.processing import Methods, expanded
from gpumask.cohort.remedies import remedy
from gpumask.confounds.denoising import preset_confounds

from . import cohorts
from .test_cohort_page import page_of, rows_below

pytest.importorskip("matplotlib")
SETTINGS = {
    "smoothing_fwhm": 6.0, "strategy": "mean", "resampling_target": "data", "keep_all_regions": True,
    "min_coverage": 0.5, "nan_policy": "omit", "standardize": "zscore_sample", "standardize_confounds": True,
    "detrend": True, "low_pass": 0.08, "high_pass": 0.01, "clean_args": None,
}  # fmt: skip
HOW = {
    "version": "0.2.0", "atlas": "A", "background_label": 0, "files": {"/atlases/a.nii": "ab" * 32},
    "settings": SETTINGS, "confounds": {"columns": ["csf", "csf_derivative1", "trans_x"], "fd_threshold": 0.5},
    "dummy_scans": "auto",
}  # fmt: skip


def put(out, name, how=HOW, *, volumes_kept=100, **values):
    (out / "logs").mkdir(parents=True, exist_ok=True)
    record = {**cohorts.record(name, volumes_kept=volumes_kept), "made": {"m": how}, **values}
    if "quality" not in values:
        names = [str(how.get("denoising", "")) for how in record["made"].values()]
        record["quality"] = dict.fromkeys(names, record["quality"][""])
    (out / "logs" / f"{name}.json").write_text(json.dumps(record))


def packed(out):
    """Rows in the page, as a browser unpacks them."""
    text = (out / "cohort.html").read_text("utf-8")
    content = text.partition("<script type='text/plain' id='rows'>")[2].partition("</script>")[0]
    _, *rows = map(json.loads, zlib.decompress(base64.b64decode(content)).decode().splitlines())
    return rows


@pytest.mark.parametrize("columns", [["trans_*", "cosine0?"], ["csf", "rot_[xy]"]])
def test_patterns_of_columns_are_not_counted(tmp_path, columns):
    put(tmp_path, "sub-0", {**HOW, "confounds": {"columns": columns}})
    rows = {row[0]: row[1] for row in page_of(tmp_path).rows if len(row) == 2}
    assert rows["Confounds"] == ", ".join(columns)


def test_what_was_done_in_words(tmp_path):
    for number in range(3):
        put(tmp_path, f"sub-{number}")
    page = page_of(tmp_path)
    rows = {row[0]: row[1] for row in page.rows if len(row) == 2}
    assert rows["Atlas A"] == "labels, 3 columns: a.nii (SHA-256 abababababab…)"
    assert rows["Smoothing"] == "Gaussian, FWHM 6 mm"
    assert rows["Confounds"] == "csf (each with its derivative) and trans_x (3 columns)"
    assert rows["Censoring"] == "volumes with framewise displacement above 0.5 mm"
    assert rows["Filter"] == "Butterworth, 0.01 to 0.08 Hz"
    assert "Further settings" not in rows
    text = (tmp_path / "logs" / "CITATION.md").read_text("utf-8")
    paragraph = next(line for line in text.splitlines() if line.startswith("Time series of 3 runs"))
    assert paragraph in page.texts
    for words in (
        "with gpumask 0.2.0",
        "the atlas A (3 columns)",
        "kernel of 6 mm FWHM",
        "above 0.5 mm were censored",
        "frequencies above 0.01 Hz and below 0.08 Hz",
        "Confounds from the tables of fMRIPrep [5] were removed from the signals by linear regression",
        "The confounds are csf (each with its derivative) and trans_x.",
        "after filtering them like the signals [7]",
        "Regions less than 50% within the field of view and the brain mask are missing values.",
    ):
        assert words in paragraph
    assert "CC0" in text
    references = [line for line in text.splitlines() if line[:1].isdigit()]
    assert [int(line.partition(".")[0]) for line in references] == list(range(1, 8))
    assert "10.1002/hbm.24528" in references[6]


def test_each_denoising_is_described(tmp_path):
    other = {**HOW, "denoising": "raw", "confounds": {}, "settings": {**SETTINGS, "low_pass": None, "detrend": False}}
    put(tmp_path, "sub-1", made={"m": HOW, "n": other})
    put(tmp_path, "sub-2")
    page = page_of(tmp_path)
    assert [text for text in page.texts if text.endswith((": 1 run", ": 2 runs"))] == [
        "Settings: 2 runs",
        "Denoising raw: 1 run",
    ]
    filters = [row[1] for row in page.rows if row[0] == "Filter"]
    assert filters == ["Butterworth, 0.01 to 0.08 Hz", "Butterworth, above 0.01 Hz"]
    assert [row[1] for row in page.rows if row[0] == "Confounds"][1] == "none are removed"


def test_what_denoisings_share_is_said_once(tmp_path):
    """In the tables and in the paragraphs, whose references are numbered in the order of the text."""
    own = {
        "motion": {"columns": ["trans_x"], "fd_threshold": 0.5},
        "strategy": {"strategy": "scrubbing+gsr", "scrub": 5},
        "raw": {},
    }
    made = {name: {**HOW, "denoising": name, "confounds": confounds} for name, confounds in own.items()}
    made["loose"] = {**made["motion"], "denoising": "loose", "settings": {**SETTINGS, "low_pass": 0.1}}
    put(tmp_path, "sub-1", made=made)
    put(tmp_path, "sub-2", made={"motion": made["motion"]})
    page = page_of(tmp_path)
    text = (tmp_path / "logs" / "CITATION.md").read_text("utf-8")
    shared, *paragraphs = [line for line in text.partition("# References")[0].splitlines()[4:] if line]
    assert all(paragraph in page.texts for paragraph in (shared, *paragraphs))
    assert shared == (
        "Time series were extracted with gpumask 0.2.0, which computes what the maskers of nilearn compute [1], and "
        "uses NumPy [2], SciPy [3] and NiBabel [4]. Regions are those of the atlas A (3 columns). Each signal is the "
        "mean of the region's voxels. Volumes were smoothed with a Gaussian kernel of 6 mm FWHM. Mean and linear "
        "trend of each signal were removed. Signals were standardized to zero mean and unit variance (sample standard "
        "deviation). Regions less than 50% within the field of view and the brain mask are missing values."
    )
    steady = "Volumes that the confounds tables of fMRIPrep [5] mark as non-steady state were dropped."
    spline = "Censored volumes were replaced by a cubic spline for the filter, and removed after it."
    removed = (
        "Confounds from the tables of fMRIPrep [5] were removed from the signals by linear regression, after filtering "
        "them like the signals [7]."
    )
    band = "A Butterworth filter passed frequencies above 0.01 Hz and below 0.08 Hz."
    above = "Volumes with a framewise displacement [6] above 0.5 mm were censored."
    motion = f"({{}}): {steady} {above} {{}} {spline} {removed} The confounds are trans_x."
    assert paragraphs[0] == f"Denoising motion {motion.format('2 runs', band)}"
    assert paragraphs[1].startswith(
        f"Denoising strategy (1 run): {steady} Segments of fewer than 5 volumes between censored ones were censored "
        f'too. {band} {spline} {removed} The confounds are those of nilearn\'s strategy "scrubbing", with the global '
        "signal [8], [9], [6], [10]: the six motion parameters, their derivatives, and the squares of both, the mean"
    )
    assert paragraphs[2] == f"Denoising raw (1 run): {band}"
    assert paragraphs[3] == f"Denoising loose {motion.format('1 run', band.replace('0.08', '0.1'))}"
    numbers = [int(line.partition(".")[0]) for line in text.partition("# References")[2].splitlines() if line]
    assert numbers == list(range(1, 11))
    for what, n in (("gpumask", 1), ("Atlas A", 1), ("Smoothing", 1), ("Trend", 1), ("Filter", 4), ("Confounds", 4)):
        assert [row[0] for row in page.rows].count(what) == n


PUBLISHED = {
    "9p": ["Ciric 2017"],
    "24p": ["Friston 1996", "Satterthwaite 2013", "Ciric 2017"],
    "36p": ["Satterthwaite 2013", "Ciric 2017"],
    "simple": ["Friston 1996", "Satterthwaite 2013", "Wang 2024"],
    "scrubbing": ["Friston 1996", "Satterthwaite 2013", "Power 2012", "Wang 2024"],
    "acompcor50": ["Behzadi 2007", "Muschelli 2014", "Friston 1996", "Satterthwaite 2013", "Wang 2024"],
}


@pytest.mark.parametrize("preset", [*PUBLISHED, "24p+gsr", "acompcor50+gsr"])
def test_the_sources_of_a_preset_are_cited(tmp_path, capsys, preset):
    """The same as `gpumask info --denoise` lists."""
    confounds = preset_confounds(preset)
    if "columns" in confounds:
        confounds["columns"] = confounds["columns"][::-1]  # their order isn't part of a preset
    put(tmp_path, "sub-1", {**HOW, "confounds": {**confounds, "fd_threshold": 0.3}})
    page = page_of(tmp_path)
    text, _, listing = (tmp_path / "logs" / "CITATION.md").read_text("utf-8").partition("# References")
    sentence = re.search(r"The confounds(?: are those of nilearn's strategy| \().*?(?:\.$|\. )", text, re.MULTILINE)[0]
    references = dict(line.split(". ", 1) for line in listing.splitlines() if line)
    before = sentence.partition(":")[0] if "strategy" in confounds else sentence.partition(")")[0]
    cited = [references[number] for number in re.findall(r"\[(\d+)\]", before)]
    plain = preset.removesuffix("+gsr")
    assert [f"{line.split()[0]} {re.search(r'[(](....)[)]', line)[1]}" for line in cited] == PUBLISHED[plain]
    assert ("global signal" in expanded_text(sentence)) == (preset in ("9p", "36p", "24p+gsr", "acompcor50+gsr"))
    if "columns" in confounds:
        assert sentence.startswith(f"The confounds ({preset} [")
        (confounds_row,) = (row[1] for row in page.rows if row[0] == "Confounds")
        assert confounds_row.endswith(f"columns; the preset {preset})")
    assert cli.main(["info", "--denoise"]) == 0
    lines = capsys.readouterr().out.splitlines()
    line = lines[next(k for k, line in enumerate(lines) if line.startswith(f"{plain} ")) + 1]
    assert line.strip().startswith(f"({'; '.join(PUBLISHED[plain])}")


def expanded_text(sentence):
    return sentence.replace("global_signal", "global signal")


@pytest.mark.parametrize("columns", [["csf", 7], "csf", {"a": 1}, preset_confounds("24p")["columns"][1:]])
def test_other_confounds_cite_no_preset(tmp_path, columns):
    put(tmp_path, "sub-1", {**HOW, "confounds": {"columns": columns}})
    page_of(tmp_path)
    text = (tmp_path / "logs" / "CITATION.md").read_text("utf-8")
    assert not any(author in text for author in ("Friston", "Satterthwaite", "Ciric", "Wang HT"))


def test_alike_denoisings_are_as_described_above(tmp_path):
    """Such as two that differ only in what has no words."""
    made = {name: {**HOW, "denoising": name} for name in ("a", "{numpy} {0}")}
    put(tmp_path, "sub-1", made=made | {"c": {**HOW, "background_label": 7}})
    page = page_of(tmp_path)
    paragraphs = [text for text in page.texts if text.endswith("All is as described above.")]
    assert paragraphs == [
        "Denoising a (1 run): All is as described above.",
        "Denoising {numpy} {0} (1 run): All is as described above.",
        "1 run, without the name of a denoising: All is as described above.",
    ]


def test_other_atlases_of_the_same_name_are_described_apart(tmp_path):
    own = {**HOW, "files": {}, "atlas": "Own"}
    for number, n_columns in enumerate((84, 85, 85)):
        regions = f"{n_columns} (SHA-256 ab...)"
        made = {"a": HOW, f"own{n_columns}": {**own, "regions_of_all_runs": regions}}
        put(tmp_path, f"sub-{number}", made=made, atlases={"A": {"regions": 3}, "Own": {"regions": n_columns}})
    page = page_of(tmp_path)
    assert [row for row in page.rows if row[0].startswith("Atlas ")] == [
        ["Atlas A", "labels, 3 columns: a.nii (SHA-256 abababababab…)"],
        ["Atlas Own", "labels, 84 columns: an image of each run"],
        ["Atlas Own", "labels, 85 columns: an image of each run"],
    ]
    assert "the atlases A (3 columns), Own (84 columns, each run's own image)." in " ".join(page.texts)
    assert [text for text in page.texts if text.endswith((": 2 runs", ": 3 runs"))] == [
        "Settings: 3 runs",
        "Settings: 2 runs",
    ]


def test_a_bare_description_claims_nothing(tmp_path):
    put(tmp_path, "sub-1", {"atlas": "A", "files": {}, "settings": {}})
    page_of(tmp_path)
    text = (tmp_path / "logs" / "CITATION.md").read_text("utf-8")
    for word in ("smoothed", "Butterworth", "censored", "dropped", "Confounds", "standardized", "trend"):
        assert word not in text


@pytest.mark.parametrize("value", [None, True, -1, 10**400, 1e308, "", "<b>x", "\ud800", [], [[1]], {"a": {}}])
def test_descriptions_of_any_type(tmp_path, value):
    hostile = dict.fromkeys(SETTINGS, value)
    wrong = {**HOW, "version": value, "denoising": value, "dummy_scans": value, "output_type": value, "radius": value}
    put(tmp_path, "sub-1", {**wrong, "kind": value, "settings": hostile, "confounds": value})
    put(tmp_path, "sub-2", {**wrong, "confounds": {"columns": value, "strategy": value, "fd_threshold": value}})
    put(tmp_path, "sub-3", {**wrong, "confounds": {"columns": [value], "scrub": value, "std_dvars_threshold": value}})
    put(tmp_path, "sub-5", {**HOW, "parts": value})
    put(tmp_path, "sub-6", {**HOW, "parts": [value, value]})
    put(tmp_path, "sub-4", {**HOW, "files": {"x": value}}, atlases={"A": {"regions": value, "coverage_median": value}})
    page_of(tmp_path)


def test_ways_of_processing_are_bounded():
    methods = Methods()
    for number in range(1000):
        methods.add({**cohorts.record("a"), "made": {"m": {**HOW, "version": f"{number}"}}})
    assert (len(methods.processings), methods.n_more) == (20, 980)


def test_columns_are_named_together():
    motion = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    endings = ("", "_derivative1", "_power2", "_derivative1_power2")
    columns = [name + ending for name in motion for ending in endings] + ["a_comp_cor_00", "csf", "csf_power2"]
    assert expanded(columns) == (
        "trans_x, trans_y, trans_z, rot_x, rot_y, rot_z (each with its derivative, and the squares of both) and "
        "a_comp_cor_00 and csf (each with its square)"
    )


def test_table_of_runs(tmp_path):
    quality = {"volumes": 100, "volumes_kept": 75, "fd_mean": 0.21456, "removed_fd": 25, "degrees_of_freedom": 30.25}
    put(tmp_path, "sub-1", quality={"": {**quality, "atlases": {"A": {"regions_lost": 2, "tsnr": 41.26}}}})
    put(tmp_path, "sub-2", volumes_kept=10)
    page = page_of(tmp_path)
    (heads,) = [row for row in page.rows if row[:2] == ["Run", "Outcome"]]
    shown = [dict(zip(heads, row, strict=True)) for row in rows_below(page, "Run", "Outcome")]
    assert [row["Run"] for row in shown] == ["sub-2", "sub-1"]  # the smaller share first
    assert shown[1]["Mean FD, mm"] == "0.215"
    assert shown[1]["Degrees of freedom"] == "30.2"
    assert (shown[1]["Regions lost"], shown[1]["Temporal signal-to-noise ratio"]) == ("2", "41.3")
    assert shown[0]["Mean FD, mm"] == "n/a"
    assert "Removed, DVARS" not in heads  # nowhere
    assert "distribution over runs of volumes kept, mean FD, mm" in page.labels


def test_several_denoisings_are_rows_with_their_figures(tmp_path):
    one = {"volumes": 100, "atlases": {}}
    made = {name: {**HOW, "denoising": name} for name in "ab"}
    outputs = [{"path": f"figures/{name}{k}.png", "size": 1, "made": name} for k in range(2) for name in "ab"]
    quality = {"a": {**one, "volumes_kept": 90}, "b": {**one, "volumes_kept": 80}}
    put(tmp_path, "sub-1", quality=quality, made=made, outputs=outputs)
    rows = rows_below(page_of(tmp_path), "Run", "Figures", "Denoising", "Outcome")
    assert [row[:4] for row in rows] == [["sub-1", "1 2", "b", "done"], ["sub-1", "1 2", "a", "done"]]
    addresses = [addresses for _, _, addresses in packed(tmp_path)]
    assert addresses == [[f"./figures/{name}{k}.png" for k in range(2)] for name in "ba"]


def test_addresses_of_figures_stay_in_the_folder(tmp_path):
    paths = ["javascript:alert(1)//.png", "figures/a b#?%.png", "figures/'\"><x>.png", "//host/x.png"[2:]]
    outputs = [{"path": path, "size": 1, "made": "m"} for path in paths]
    put(tmp_path, "sub-1", outputs=outputs)
    write_page(tmp_path)
    ((_, _, addresses),) = packed(tmp_path)
    assert addresses == [
        "./javascript%3Aalert%281%29//.png",
        "./figures/a%20b%23%3F%25.png",
        "./figures/%27%22%3E%3Cx%3E.png",
        "./host/x.png",
    ]


def test_rows_are_as_many_as_fit(tmp_path, monkeypatch):
    for number in range(40):
        put(tmp_path, f"sub-{number:02}", volumes_kept=number)
    monkeypatch.setattr(runs, "_PER_BLOCK", 10)
    monkeypatch.setattr(runs, "_MOST_BYTES", 200)
    page = page_of(tmp_path)
    rows = packed(tmp_path)
    assert 0 < len(rows) < 40
    assert f"These are the first {len(rows)} of 40 rows." in page.text
    assert [texts[0] for texts, _, _ in rows] == [f"sub-{number:02}" for number in range(len(rows))]


@pytest.mark.parametrize(
    ("error", "start"),
    [
        ("[Errno 28] No space left on device: '/out/x'", "Free space"),
        ("[Errno 13] Permission denied", "Allow"),
        ("Unable to allocate 3 GiB", "Give the job more memory"),
        ("/x.nii.gz is truncated or corrupt: EOFError", "Copy or create the file again"),
        ("Too many open files", "Raise the limit"),
        ("Connection timed out", "The file system failed"),
        ("c.tsv has 27 rows, but r.nii has 30 volumes.", "Give the confounds of this run"),
        ("c.tsv has no column csf. Its 2 columns include a, b.", "Request columns"),
        ("c.tsv has no column csf, which the confounds strategy 'simple' needs. Add it to the table.", ""),
        ("c.tsv censors all 30 volumes, as motion or non-steady state.", "Leave the run out, or censor less."),
        ("r.nii: only NaN, infinite values and 0 in volume 5.", "Create the image again"),
        ("r.nii is a 3D image, expected a run: a 4D image.", "Leave it out"),
        ("r.nii is truncated or corrupt. Copy or create the file again.", ""),
        ("The mask has another grid. Use the mask of the same space.", ""),
        ("", ""),
    ],
)
def test_remedies(error, start):
    found = remedy(error)
    assert found.startswith(start)
    assert bool(found) == bool(start)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("sub-01_ses-2_task-rest_run-3_space-X", "sub-01\nses-2\nrun-3"),
        ("sub-01_task-rest", "sub-01"),
        ("my run $1", r"my run \$1"),
    ],
)
def test_coverage_is_labelled_by_run(name, label):
    assert pictures._run_label(name) == label
