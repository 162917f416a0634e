"""``--config FILE.toml`` of both commands: the same options as on the command line."""

import argparse
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from gpumask import __version__, cli
from gpumask.cli.config import lines_of, named_path, read_config
from gpumask.cli.parser import options_of, parse

from . import cohorts

OPTIONS = options_of("cohort")
OF_EXTRACT = options_of("extract")
# Values for options whose metavar or type doesn't say what they accept.
VALUES = {
    "dummy-scans": ["auto", 4],
    "background-label": [0.5],
    "strategy": ["median"],
    "output-type": ["n/a"],
    "shard": ["2/3"],
    "device": ["cuda:0,cuda:1"],
    "min-coverage": [0, 0.25, 1],
    "nprocs": [3],
    "nthreads": [2],
    "space": ["MNI152NLin2009cAsym:res-2"],
    "confounds-columns": [["trans_*", 'a "quoted" \\ näme\t\x7f']],
    "atlas": [["A=a.nii", "b=c.nii"], ["x.nii"]],
}
POSITIONALS = {"cohort": ["d", "out", "participant"], "extract": ["a_bold.nii", "b_bold.nii"]}
CASES = [(command, name) for command, options in (("cohort", OPTIONS), ("extract", OF_EXTRACT)) for name in options]


def values_of(name, command="cohort"):
    action = options_of(command)[name]
    if name in VALUES:
        return VALUES[name]
    if action.nargs == 0:
        return [True]
    if action.choices:
        return [action.choices[-1]]
    if action.type in (None, str, Path, named_path):
        return [["a", "b c"]] if action.nargs == "+" else ["some/where = #1.x"]
    return [7, 0.125]


def toml(value):
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, str):
        escaped = "".join(f"\\u{ord(char):04x}" if ord(char) < 32 or char in '"\\\x7f' else char for char in value)
        return f'"{escaped}"'
    return str(value).lower()


def parsed(command, *words):
    return parse([command, *POSITIONALS[command], *words])


def cohort(*words):
    return parsed("cohort", *words)


def config(folder, text):
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return f"--config={path}"


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [(command, name, value) for command, name in CASES for value in values_of(name, command)],
)
@pytest.mark.parametrize("spelling", ["-", "_"])
def test_every_option_is_as_on_the_command_line(tmp_path, command, name, value, spelling):
    action = options_of(command)[name]
    words = [] if value is True else [str(one) for one in (value if isinstance(value, list) else [value])]
    if len(words) == 1 and not isinstance(value, list):
        expected = vars(parsed(command, f"--{name}={words[0]}"))
    else:
        expected = vars(parsed(command, f"--{name}", *words))
    option = config(tmp_path, f"{name.replace('-', spelling)} = {toml(value)}\n")
    found = vars(parsed(command, option))
    assert {**found, "config": None} == expected
    assert found != vars(parsed(command)) | {"config": found["config"]} or action.default in (value, *words)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in OPTIONS for value in values_of(name)])
def test_what_is_written_repeats_the_command(tmp_path, monkeypatch, name, value):
    monkeypatch.chdir(tmp_path)
    args = cohort(config(tmp_path, f"{name} = {toml(value)}\n"))
    lines = list(lines_of(args, OPTIONS, ["gpumask cohort d out\nparticipant"]))
    assert lines[0] == "# gpumask cohort d out\\nparticipant\n"
    again = vars(cohort(config(tmp_path, "".join(lines))))
    if name in ("shard", "dry-run"):
        assert again[OPTIONS[name].dest] == OPTIONS[name].default
        return
    for dest, expected in vars(args).items():
        paths = expected if isinstance(expected, list) else [expected]
        if any(isinstance(path, Path) for path in paths) and dest not in ("source", "out_dir", "config"):
            expected = [tmp_path / path for path in paths]
            expected = expected if OPTIONS[name].nargs else expected[0]
        assert again[dest] == (list(expected) if isinstance(expected, tuple) else expected) or (
            not again[dest] and not expected
        )


def test_paths_are_written_so_that_the_folder_doesnt_matter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.nii", "b=c.nii", "list.toml"):
        Path(name).touch()
    args = cohort("--atlas", "A=a.nii", "b=c.nii", "--lut", "no.tsv", "--seeds", "S=list.toml", "--space", "a.nii")
    written = tomllib.loads("".join(lines_of(args, OPTIONS, [])))
    assert written["atlas"] == [f"A={tmp_path}/a.nii", f"{tmp_path}/b=c.nii"]
    assert written["lut"] == [f"{tmp_path}/no.tsv"]
    assert written["seeds"] == [f"S={tmp_path}/list.toml"]
    assert written["space"] == "a.nii"


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("low-pass = 0.1", "--low-pass 0.2", {"low_pass": 0.2}),
        ('atlas = ["a", "b"]', "--atlas c", {"atlas": ["c"]}),
        ('atlas = ["a", "b"]', "--atlas c --atlas d", {"atlas": ["c", "d"]}),
        ("verbose = true", "-q", {"verbosity": "quiet"}),
        ("verbose = true\nquiet = false", "", {"verbosity": "verbose"}),
        ("quiet = false\nverbose = true", "", {"verbosity": "verbose"}),
        ('dummy-scans = "auto"', "--dummy-scans 3", {"dummy_scans": 3}),
        ('run-id = "01"', "", {"runs": ["01"]}),
        ("", "", {}),
    ],
)
def test_the_command_line_wins(tmp_path, text, words, expected):
    args = vars(cohort(config(tmp_path, text), *words.split()))
    assert {name: args[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("detrnd = true", "unknown key 'detrnd'. Did you mean 'detrend'? Expected options: participant-label, "),
        ('config = "other.toml"', "unknown key 'config'. "),
        ("version = true", "unknown key 'version'. "),
        ("[execution]\nnprocs = 2", "unknown key 'execution'. Expected options: "),
        ("detrend = 1", "detrend = 1: expected true or false"),
        ('detrend = "yes"', 'detrend = "yes": expected true or false'),
        ("low-pass = true", "low-pass = true: expected a number"),
        ('low_pass = "0.1"', 'low_pass = "0.1": expected a number, without quotes'),
        ("low-pass = -1", "low-pass = -1: expected a positive number, got '-1'"),
        ("low-pass = nan", "low-pass = nan: expected a positive number, got 'nan'"),
        ("low-pass = [0.1]", "low-pass = [0.1]: expected a number"),
        ("nprocs = 2.5", "nprocs = 2.5: expected a whole number"),
        ('min-coverage = "half"', 'min-coverage = "half": expected a number'),
        ("dummy-scans = 1.5", "dummy-scans = 1.5: expected auto or a number of volumes, got '1.5'"),
        ("space = 3", "space = 3: expected text in quotes"),
        ('space = "a\\u0000"', 'space = "a\\u0000": expected text without the character NUL'),
        ("store = ['a.parquet']", 'store = ["a.parquet"]: expected text in quotes'),
        ("atlas = []", "atlas = []: expected a list of one or more"),
        ("atlas = [['a']]", 'atlas = [["a"]]: expected text in quotes'),
        ("atlas = {A = 'a.nii'}", "atlas = {'A': 'a.nii'}: expected a list of one or more"),
        ("task-id = [1]", "task-id = [1]: expected text in quotes"),
        ("space = 2020-01-01", "space = 2020-01-01: expected text in quotes"),
        ("strategy = 'avg'", 'strategy = "avg": expected one of mean, sum, median, minimum, maximum, variance, '),
        ("verbose = true\nquiet = true", "verbose and quiet exclude each other. Keep one."),
        ("min-dof = 2\nmin_dof = 3", "min-dof and min_dof exclude each other. Keep one."),
        ("low-pass 0.1", "{path} isn't TOML: "),
    ],
)
def test_what_is_wrong_is_said_with_its_key(tmp_path, capsys, text, message):
    option = config(tmp_path, text)
    path = option.partition("=")[2]
    assert cli.main(["cohort", "d", "out", "participant", option]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    expected = message.format(path=path) if "{path}" in message else f"{path}: {message}"
    assert err.startswith(f"gpumask cohort: error: {expected}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [("no.toml", "--config: no such file: no.toml"), (".", "--config: . is a folder, expected a regular file")],
)
def test_no_file(tmp_path, monkeypatch, capsys, name, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["cohort", "d", "out", "participant", "--config", name]) == 2
    assert capsys.readouterr().err == f"gpumask cohort: error: {message}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("overwrit = true", "unknown key 'overwrit'. Did you mean 'overwrite'? Expected options: atlas, "),
        ("nprocs = 2", "unknown key 'nprocs'. "),  # of the other command
        ('runs = ["a.nii"]', "unknown key 'runs'. "),  # they aren't options
        ("t-r = 0", "t-r = 0: expected a positive number, got '0'"),
    ],
)
def test_what_is_wrong_for_extract(tmp_path, capsys, text, message):
    option = config(tmp_path, text)
    assert cli.main(["extract", "a_bold.nii", option]) == 2
    assert capsys.readouterr().err.startswith(f"gpumask extract: error: {tmp_path / 'config.toml'}: {message}")


def test_extract_by_a_file_is_as_by_options(tmp_path, monkeypatch):
    """Where the command line has an option of the file, it wins; runs may follow any option."""
    monkeypatch.chdir(tmp_path)
    cohorts.make_cohort(tmp_path / "d", 2, bad=False)
    cohorts.make_atlases(tmp_path)
    runs = sorted(map(str, Path("d").rglob("*_bold.nii.gz")))
    words = ["--detrend", "--confounds", "auto", "--confounds-columns", "csf", "--relmat", "--out", "by options"]
    assert cli.main(["extract", *runs, "--atlas", "T=atlas-Toy_dseg.nii.gz", "--quiet", *words]) == 0
    Path("c.toml").write_text(
        'atlas = ["T=atlas-Toy_dseg.nii.gz"]\ndetrend = true\nconfounds = "auto"\nconfounds_columns = ["csf"]\n'
        'relmat = ["pearson"]\nout = "no"\nquiet = true\n'
    )
    assert cli.main(["extract", "--config", "c.toml", "--out", "by file", *runs]) == 0
    by_options, by_file = (cohorts.outputs(tmp_path / name) for name in ("by options", "by file"))
    assert len(by_file) == 8
    assert by_file == by_options
    assert not Path("no").exists()


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "c.toml").write_bytes(b'\xef\xbb\xbfspace = "a"')  # a byte-order mark is none of it
    assert read_config(tmp_path / "c.toml", OPTIONS) == {"space": "a"}
    (tmp_path / "c.toml").write_bytes(b'space = "\xe4"')
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path))}/c\.toml isn't TOML: 'utf-8' codec"):
        read_config(tmp_path / "c.toml", OPTIONS)


def test_options_have_values_of_one_kind():
    """What `read_config` handles: flags, single values and lists of one or more ("*": also none, on a command line)."""
    assert {action.nargs for action in OPTIONS.values()} == {0, None, "+", "*"}
    assert all(isinstance(action, argparse.Action) for action in OPTIONS.values())


def test_the_file_of_a_cohort_repeats_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cohorts.make_cohort(tmp_path / "my d", 4, bad=False)
    cohorts.make_atlases(tmp_path)
    words = "--atlas Own=atlas-Toy_dseg.nii.gz --detrend --participant-label 02 --min-time 0 --dummy-scans 2"
    assert cli.main(["cohort", "my d", "out", "participant", *shlex.split(words)]) == 0
    about, command, *_ = (tmp_path / "out" / "logs" / "config.toml").read_text().splitlines()
    expected = f"# gpumask cohort '{tmp_path}/my d' {tmp_path}/out participant --config {tmp_path}/out/logs/config.toml"
    assert about == f"# Options of the last command (gpumask {__version__}). To repeat it:"
    assert command == expected
    monkeypatch.chdir("/")
    capsys.readouterr()
    first = cohorts.outputs(tmp_path / "out")
    words = shlex.split(command.removeprefix("# gpumask "))
    assert cli.main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 done, 2 skipped (done before), 0 failed"
    words[2] = str(tmp_path / "again")
    assert cli.main(words) == 0
    assert cohorts.outputs(tmp_path / "again") == first
    lines = [(tmp_path / name / "logs" / "config.toml").read_text().splitlines()[2:] for name in ("out", "again")]
    assert lines[0] == lines[1]


def test_a_dry_run_and_a_shard_leave_no_trace_in_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cohorts.make_cohort(tmp_path / "d", 2, bad=False)
    cohorts.make_atlases(tmp_path)
    words = ["cohort", "d", "out", "participant", "--atlas", "atlas-Toy_dseg.nii.gz"]
    assert cli.main([*words, "--dry-run"]) == 0
    assert not Path("out").exists()
    assert cli.main([*words, "--shard", "1/2"]) == 0
    assert "shard" not in tomllib.loads(Path("out/logs/config.toml").read_text())
