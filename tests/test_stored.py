"""Records, log lines and listings that gpumask hasn't written: they count as absent, whatever they hold."""

import copy
import json
import random
import re
import sys

import pytest

from gpumask.bids import find_runs
from gpumask.bids.runs import Problem, Run
from gpumask.cohort import stored
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.executors import run_cohort
from gpumask.cohort.page import write_page
from gpumask.cohort.record import Listing, Record, failed, is_done, log_problems, unusable
from gpumask.cohort.stored import read_attempts, read_listings, read_record

from . import cohorts

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a cohort needs POSIX locks")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Configuration and runs of a finished cohort, and the record of the first run."""
    folder = tmp_path_factory.mktemp("finished")
    cohorts.make_cohort(folder / "d", 2, bad=False)
    atlas = cohorts.make_atlases(folder)[0]
    configuration = Configuration((AtlasFile(atlas),), folder / "out", {"detrend": True}, device="cpu")
    runs, _ = find_runs(folder / "d")
    assert [record.status for record in run_cohort(configuration, runs)] == ["done", "done"]
    record = folder / "out" / "logs" / f"{runs[0].name}.json"
    return configuration, runs, record, record.read_text("utf-8")


def nested(depth):
    return json.loads("[" * depth + "]" * depth)


def changed(key, value):
    def change(record):
        record[key] = value
        return json.dumps(record)

    return change


def output(**values):
    def change(record):
        record["outputs"][0] |= values
        return json.dumps(record)

    return change


def description(**values):
    def change(record):
        next(iter(record["made"].values())).update(values)
        return json.dumps(record)

    return change


TOO_LARGE = "has more than 4194304 bytes, the most that are read of such a file. Is it the right one?"
HOSTILE = {
    "isn't JSON that can be read: its brackets are nested too deeply. Create the file again": "[" * 100_000,
    "isn't JSON: Expecting value: line 1 column 1 (char 0)": "",
    TOO_LARGE: lambda record: json.dumps(record) + " " * 2**22,
    "holds a JSON list: expected an object": "[]",
    "lacks 'made'": lambda record: json.dumps({key: value for key, value in record.items() if key != "made"}),
    "has the status 'failed', expected 'done'": changed("status", "failed"),
    "has another 'status' than gpumask writes": changed("status", ["done"]),
    "has another 'time' than gpumask writes": changed("time", "9"),
    "has the name 'x', expected 'sub-01_task-rest_run-1_space-MNI152NLin2009cAsym'": changed("name", "x"),
    "has another 'run' than gpumask writes": changed("run", "/" * 5000),
    "has another 'seconds' than gpumask writes": changed("seconds", {f"stage {k}": 1.0 for k in range(5000)}),
    "has an output without a description in 'made'": output(made="unheard of"),
    "has a description of another atlas than those in 'atlases'": description(atlas="Other"),
    "has a description of another denoising than those in 'quality'": description(denoising="other"),
    "has another 'outputs' than gpumask writes": [
        *(
            output(path=path)
            for path in ("", "/etc/passwd", "../x", "a/../../x", "a\0b", "\ud800", 3, None, "x" * 5000)
        ),
        *(output(size=size) for size in (-1, 1.0, True, "1", 10**400)),
        *(changed("outputs", value) for value in (None, {}, ["x"], [{}], "x")),
        lambda record: json.dumps({**record, "outputs": record["outputs"] * 2}),
    ],
}
LEFT = {"volumes": 40, "volumes_kept": 40, "atlases": {}}
SAME_MESSAGE = {
    "volumes": [10**400, -1, 1.5, True, None, "40"],
    "volumes_kept": [10**9, None],
    "dummy_scans": [[]],
    "degrees_of_freedom": [float("inf"), float("nan"), "many", 10**400],
    "repetition_time": [float("-inf"), {}],
    "seconds": [{"total": float("inf")}, {"total": float("nan")}, {"read": "1"}, {"read": 1e300}, None, [], {"x": 1}],
    "atlases": [None, {"Toy": 1}, {"Toy": nested(500)}],
    "warnings": [None, "text", [1], ["x"] * 101, ["x" * 2001]],
    "error": [None, "x" * 2001],
    "traceback": [[], "x" * 20_001],
    "configuration": [None, "c" * 65],
    "inputs": [None, {"x": nested(500)}],
    "made": [None, [], {"m": {}}, {"m": None}],
    "quality": [
        *(
            None,
            [],
            {"": None},
            {"": {}},
            {"": {"atlases": []}},
            {"x" * 256: LEFT},
            {"\ud800": LEFT},
        ),
        {str(k): LEFT for k in range(1001)},
        *({"": {key: value for key, value in LEFT.items() if key != missing}} for missing in LEFT),
        *({"": {**LEFT, name: value}} for name in ("fd_mean", "volumes") for value in ("1", True, 1e9, [], -1e9)),
        *(
            {"": {**LEFT, "atlases": {"A": {"tsnr": value}}}}
            for value in (float("nan"), float("inf"), -1e9, "1", 10**400)
        ),
        *({"": {**LEFT, "volumes": 1.5}}, {"": {**LEFT, "volumes_kept": -1}}),
        *(
            {"": {**LEFT, "unheard_of": 1}},
            {"": {**LEFT, "atlases": {"A": {"fd_mean": 1}}}},
            {"": {**LEFT, "atlases": {"A": 1}}},
        ),
    ],
    "name": ["", None, ["x"], "\udce9"],
    "run": ["", 0],
}


def hostile_contents():
    for error, contents in HOSTILE.items():
        for content in contents if isinstance(contents, list) else [contents]:
            yield error, content
    for key, values in SAME_MESSAGE.items():
        for value in values:
            yield f"has another {key!r} than gpumask writes", changed(key, value)
    wrong = {"files": [], "settings": None, "confounds": nested(500), "atlas": None}
    for key, value in [*wrong.items(), *(("denoising", value) for value in (["x"], 3, {}, None))]:
        yield "has another 'made' than gpumask writes", description(**{key: value})


@pytest.mark.parametrize(("error", "content"), list(hostile_contents()))
def test_a_record_that_gpumask_has_not_written_is_none(finished, error, content):
    _, _, path, text = finished
    path.write_text(content if isinstance(content, str) else content(json.loads(text)))
    try:
        with pytest.raises(ValueError, match="isn't the record of a run") as raised:
            read_record(path)
    finally:
        path.write_text(text)
    remedy = "The next cohort command does the run again."
    start = f"{path} isn't the record of a run: "
    message = str(raised.value)
    assert message == f"{start}{error}{'' if error.endswith('?') else '.'} {remedy}"


@pytest.mark.parametrize(
    "content", ["[" * 100_000, changed("seconds", {"total": float("inf")}), changed("volumes", 10**400)]
)
def test_every_command_goes_on_without_such_a_record(finished, tmp_path, content):
    """The page counts it, the store refuses it, and the next command does the run again."""
    configuration, runs, path, text = finished
    path.write_text(content if isinstance(content, str) else content(json.loads(text)))
    assert [is_done(configuration, run) for run in runs] == [False, True]
    page = write_page(configuration.out_dir).read_text("utf-8")
    assert "<b>1</b>done" in page
    assert f"Log lines and records skipped as unreadable: 1 (first in logs/{path.name})." in page
    pytest.importorskip("pyarrow")
    _, refused = cohorts.write_store(configuration.out_dir, tmp_path / "s.parquet")
    assert list(refused) == [f"logs/{path.name}"]
    assert refused[f"logs/{path.name}"].startswith("isn't the record of a run: ")
    assert sorted(record.status for record in run_cohort(configuration, runs)) == ["done", "skipped"]
    assert all(is_done(configuration, run) for run in runs)
    assert json.loads(path.read_text())["outputs"] == json.loads(text)["outputs"]


def test_mutated_records_are_read_or_refused(finished, tmp_path):
    """Seeded mutations of bytes and of values: a ValueError, or a record that all readers can use."""
    (tmp_path / "logs").mkdir()
    configuration, runs, path, text = finished
    rng = random.Random(0)
    values = [None, True, -1, 1e308, 10**30, "", "x" * 9999, [], {}, [[]], {"": {}}, "\ud800", float("nan")]
    n_read = 0
    for number in range(300):
        if number % 2:
            record = json.loads(text)
            parent, key = rng.choice(list(places(record)))
            parent[key] = copy.deepcopy(rng.choice(values))
            content = json.dumps(record).encode()
        else:
            data = bytearray(text.encode())
            for _ in range(rng.randint(1, 3)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            content = bytes(data)
        path.write_bytes(content)
        is_done(configuration, runs[0])
        try:
            record = read_record(path)
        except ValueError:
            continue
        n_read += 1
        (tmp_path / "logs" / f"m{number}.json").write_text(json.dumps({**record, "name": f"m{number}"}))
    path.write_text(text)
    assert 50 < n_read < 250
    page = write_page(tmp_path).read_text("utf-8")
    assert f"<b>{n_read}</b>done" in page
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match="has no finished runs"):  # their tables are elsewhere
        cohorts.write_store(tmp_path, tmp_path / "s.parquet")


def places(value):
    """Every (object or list, key) in a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from places(value[key])


def line(**values):
    content = cohorts.record("sub-1")
    return json.dumps({key: content[key] for key in ("time", "status", "run", "name", "error")} | values).encode()


def test_log_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "_MOST_BYTES", 1000)
    good = line()
    bad = [
        *(b"[" * 900, b"\0" * 20, b"\xff\xfe", b"", b"null", b"{}"),
        *(line(status="no"), line(status=[]), line(name=""), line(time="later"), line(error=3), line(volumes=-1)),
        *(line(error="x" * 1000), line(error="x" * 2500), line(error="x" * 5000)),  # longer than a line may be
    ]
    path = tmp_path / "a.jsonl"
    lines = [one for wrong in bad for one in (wrong, good)]
    path.write_bytes(b"\n".join(lines))
    found = list(read_attempts(path))
    assert [attempt is not None for _, attempt in found] == [one is good for one in lines]
    assert [offset for offset, _ in found] == [sum(len(one) + 1 for one in lines[:k]) for k in range(len(lines))]


def test_a_listing_that_gpumask_has_not_written_is_none(finished, tmp_path):
    path = tmp_path / "unusable"
    time = "2026-11-22T10:00:00.000+00:00"
    good = {"/d": {"time": time, "names": ["sub-1"]}}
    path.write_text(json.dumps(good))
    assert unusable(tmp_path) == read_listings(path) == good
    for content, error in {
        "[" * 100_000: "isn't JSON that can be read: its brackets are nested too deeply.",
        "[]": "holds a JSON list: expected an object",
        '{"/d": 1}': "holds a JSON int: expected an object",
        '{"/d": {}}': "lacks 'time'",
        json.dumps({"/d": {"time": time, "names": "x"}}): "has another 'names' than gpumask writes",
        json.dumps({"/d": {"time": 10**400, "names": []}}): "has another 'time' than gpumask writes",
    }.items():
        path.write_text(content)
        assert unusable(tmp_path) == {}
        with pytest.raises(ValueError, match=re.escape(f"{path} isn't a list of unusable runs: {error}")):
            read_listings(path)


def test_what_is_written_is_read(finished):
    """Messages and names of any length are shortened when they are written, so the reader accepts them."""
    configuration, _, path, text = finished
    assert read_record(path) == json.loads(text)
    logs = configuration.out_dir / "logs"
    long = [Problem("/d/" + "p" * 300_000, "r" * 300_000), Problem("/d/x", "r", "n" * 300_000)]
    log_problems(configuration, long, Listing("/d", long))
    (log,) = logs.glob("*.jsonl")
    attempts = [attempt for _, attempt in read_attempts(log)]
    assert None not in attempts
    assert unusable(logs)["/d"]["names"] == [attempt["name"] for attempt in attempts[-2:]]
    (logs / "unusable").unlink()


def test_long_messages_lose_their_middles():
    error = ValueError("a" * 100_000 + "b" * 100_000)
    record = failed(Run("x"), error, [f"{k}{'w' * 5000}" for k in range(150)])
    assert record.error == "a" * 998 + "..." + "b" * 998
    assert len(record.traceback) <= 20_000
    assert record.traceback.startswith("ValueError: aaa")
    assert record.traceback.endswith("bbb\n")
    assert len(record.warnings) == 100
    assert record.warnings[-1] == "51 more warnings."
    assert record.warnings[98] == "98" + "w" * 996 + "..." + "w" * 998
    assert all(len(message) <= 2000 for message in record.warnings)
    assert Record(Run("x"), "failed", error="e" * 2000).error == "e" * 2000
    assert Record(Run("x"), "failed", error="short").error == "short"
