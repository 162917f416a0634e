"""Filter files of fMRIPrep: which runs they choose, and what is wrong in them."""

import json

import pytest

from gpumask.bids import find_runs
from gpumask.bids.filters import read_filters

SPACE = "space-MNI152NLin2009cAsym"
STEMS = (
    "sub-01_ses-a_task-nback_acq-fast",
    "sub-01_ses-b_task-rest_run-1",
    "sub-02_ses-a_task-rest_run-01",
    "sub-02_ses-a_task-rest_dir-AP_run-2",
    "sub-03_task-rest",
)


@pytest.fixture
def root(tmp_path):
    for stem in STEMS:
        folder = tmp_path.joinpath("d", *(part for part in stem.split("_") if part[:3] in ("sub", "ses")), "func")
        folder.mkdir(parents=True, exist_ok=True)
        for ending in ("desc-preproc_bold.nii.gz", "desc-brain_mask.nii.gz"):
            (folder / f"{stem}_{SPACE}_{ending}").touch()
    return tmp_path / "d"


def written(folder, content):
    path = folder / "filter.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("bold", "expected"),
    [
        ({}, STEMS),
        ({"session": "a"}, [STEMS[0], STEMS[3], STEMS[2]]),
        ({"session": None}, STEMS[4:]),
        ({"session": ["b", None]}, [STEMS[1], STEMS[4]]),
        ({"session": "*"}, [STEMS[0], STEMS[1], STEMS[3], STEMS[2]]),
        ({"subject": ["02", "sub-03"], "direction": None}, [STEMS[2], STEMS[4]]),
        ({"datatype": "func", "suffix": "bold", "task": ["rest"], "run": 1}, [STEMS[1], STEMS[2]]),
        ({"run": [1, "2"], "ses": "a"}, [STEMS[3], STEMS[2]]),
        ({"acquisition": "fast"}, STEMS[:1]),
        ({"acquisition": "*"}, STEMS[:1]),
        ({"dir": "AP"}, [STEMS[3]]),
    ],
)
def test_runs_of_a_filter(root, tmp_path, bold, expected):
    filters = read_filters(written(tmp_path, {"t1w": {"session": "b"}, "bold": bold}))
    runs, problems = find_runs(root, filters=filters)
    assert sorted(run.name for run in runs) == sorted(f"{stem}_{SPACE}" for stem in expected)
    assert problems == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"blod": {}}, "{path} has filters of 'blod', expected 'bold', or images to ignore (t1w, t2w, flair, fmap, "),
        (
            {"t1w": {}},
            '{path}: expected {{"bold": {{"session": "01", "task": ["rest"]}}}}, or other entities, but it is',
        ),
        (
            {"bold": ["rest"]},
            '{path}: expected {{"bold": {{"session": "01", "task": ["rest"]}}}}, or other entities, got',
        ),
        (
            {"bold": {"sesion": "a"}},
            "{path}: 'bold': 'sesion' isn't an entity of runs. Expected any of subject, session",
        ),
        ({"bold": {"space": "T1w"}}, "recording. Choose the space with --space."),
        ({"bold": {"task": []}}, "{path}: 'bold': 'task' is an empty list, which no run has. Expected labels"),
        ({"bold": {"task": 1}}, "{path}: 'bold': 'task' has the value 1, expected a label in quotes, null, or a list"),
        ({"bold": {"run": True}}, "'run' has the value True"),
        ({"bold": {"task": [["rest"]]}}, "'task' has the value ['rest']"),
        ({"bold": {"task": ""}}, "'task' has the value ''"),
        ({"bold": {"ses": "a", "session": "b"}}, "{path}: 'bold': 'session' is given twice, as 'ses' too. Keep one."),
        ({"bold": {"suffix": "T1w"}}, "{path}: 'bold': 'suffix' is 'T1w', expected 'bold': others aren't read."),
        ("[]", "{path} holds a JSON list: expected an object"),
        ("{", "{path} isn't JSON: "),
    ],
)
def test_wrong_filter_files(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(ValueError) as caught:
        read_filters(path)
    assert message.format(path=path) in str(caught.value)


def test_labels_that_no_run_has(root):
    with pytest.raises(ValueError, match=r"has no acq-slow\. Of the 1 there: fast\.$"):
        find_runs(root, filters={"acq": {"slow"}})
    with pytest.raises(ValueError, match=r"has no ses-c\. Of the 2 there: a, b\.$"):
        find_runs(root, filters={"ses": {"c", ""}})


def test_no_run_with_all_labels(root):
    with pytest.raises(
        ValueError, match=r"has no preprocessed run of all that is chosen: task nback; run absent, \*; dir AP\.$"
    ):
        find_runs(root, filters={"run": {"*", ""}, "dir": {"AP"}}, tasks=["nback"])
    with pytest.raises(ValueError, match=r"/d has no preprocessed run of all that is chosen: ce \*\.$"):
        find_runs(root, filters={"ce": {"*"}})


def test_one_entity_is_chosen_once(root):
    message = "task is chosen twice, by a filter (--bids-filter-file) and by --task-id. Give one."
    with pytest.raises(ValueError) as caught:
        find_runs(root, filters={"task": {"rest"}}, tasks=["rest"])
    assert str(caught.value) == message
