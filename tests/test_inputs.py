"""What a named file turns out to be: a device, a pipe that stays silent, gigabytes, JSON that isn't as it should be."""

import contextlib
import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from gpumask import cli
from gpumask.bids import Run, read_manifest
from gpumask.bids.content import absence
from gpumask.bids.metadata import repetition_time
from gpumask.bids.names import label_of
from gpumask.bids.sidecars import check_dataset_description, write_dataset_description
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.page import write_page
from gpumask.cohort.writer import process, write_run
from gpumask.confounds.censoring import non_steady_volumes
from gpumask.confounds.fmriprep import fmriprep_confounds
from gpumask.confounds.sample_masks import kept_volumes
from gpumask.confounds.tables import confounds_matrix, read_table
from gpumask.images.errors import ImageError
from gpumask.images.lookup import read_lookup_table
from gpumask.images.opening import image_files
from gpumask.images.volumes import open_volumes
from gpumask.inputs import read_bytes, read_json
from gpumask.text_tables import read_rows

from . import helpers

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no named pipes")


class HungError(BaseException):
    """Nothing ended the wait."""


def interrupt(*_):
    raise HungError


@pytest.fixture(autouse=True)
def no_test_hangs():
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 30)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("gpumask.inputs._PATIENCE", 0.2)


def make_pipe(path):
    os.mkfifo(path)


def make_device(path):
    path.symlink_to("/dev/zero")


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as one, contextlib.chdir(path.parent):  # names of sockets are short
        one.bind(path.name)


A_PIPE = "is a pipe, expected a regular file. Give the path of one."
AN_IMAGE = "an image is read more than once. Save it in a file."
KINDS = {"a pipe": make_pipe, "a device": make_device, "a socket": make_socket, "a folder": Path.mkdir}


@pytest.fixture(params=KINDS)
def irregular(request, tmp_path, monkeypatch):
    """A function that makes a file that isn't one; its attribute `kind` says what."""
    monkeypatch.chdir(tmp_path)

    def make(name):
        KINDS[request.param](tmp_path / name)
        return tmp_path / name

    make.kind = request.param
    return make


def message_of(call, *arguments, error=ValueError):
    with pytest.raises(error) as caught:
        call(*arguments)
    return str(caught.value)


# Files that aren't regular


def test_json_and_lookup_tables_are_regular_files(irregular):
    path = irregular("a.x")
    expected = f"{path} is {irregular.kind}, expected a regular file. Give the path of one."
    assert message_of(read_json, path) == expected
    assert message_of(read_lookup_table, path) == expected
    assert absence(path) is None


def test_tables_are_regular_files_or_pipes(irregular, impatient):
    path = irregular("a.tsv")
    for read in (read_table, read_manifest):
        if irregular.kind == "a pipe":
            message = message_of(read, path, error=TimeoutError)
            assert message == f"{path} is a pipe, and no writer came for 0.2 s. Write to it, or give a file."
        else:
            expected = "expected a regular file or a pipe. Give the path of one."
            assert message_of(read, path) == f"{path} is {irregular.kind}, {expected}"


def test_metadata_of_a_run(irregular):
    path = irregular("a.json")
    expected = f"{path} is {irregular.kind}, expected a regular file. Give the path of one."
    assert message_of(repetition_time, Run(path.with_name("a.nii.gz")), None) == expected


def test_json_next_to_a_confounds_table(irregular):
    """nilearn opens it."""
    pytest.importorskip("nilearn")
    path = irregular("sub-1_desc-confounds_timeseries.json")
    table = path.with_suffix(".tsv")
    table.write_text("a\tb\n1\t2\n")
    expected = f"{path} is {irregular.kind}, expected a regular file. Give the path of one."
    assert message_of(lambda: fmriprep_confounds("a.nii", table, strategy="simple")) == expected


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz", "a.mnc"])
def test_images(irregular, name):
    path = irregular(name)
    expected = (
        f"{path} is {irregular.kind}, expected a regular file: an image is read more than once. Save it in a file."
    )
    if irregular.kind == "a folder":
        expected = f"{path} is a directory, expected an image file."
    assert message_of(open_volumes, path, error=ImageError) == expected


@pytest.mark.parametrize("other", [".hdr", ".mat"])
def test_partners_of_images(irregular, other):
    nib.save(nib.Nifti1Pair(np.zeros((2, 2, 2), "i2"), np.eye(4)), "a.img")
    Path(f"a{other}").unlink(missing_ok=True)
    path = irregular(f"a{other}")
    expected = (
        f"{path} is {irregular.kind}, expected a regular file: an image is read more than once. Save it in a file."
    )
    assert message_of(open_volumes, path.with_name("a.img"), error=ImageError) == expected


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("a.nii", []),
        ("a.nii.gz", []),
        ("a.img", ["a.hdr", "a.mat"]),
        ("a.hdr", ["a.img", "a.mat"]),
        ("b.HEAD", ["b.BRIK.gz"]),
        ("c.par", ["c.rec"]),
        ("d.tsv", []),
    ],
)
def test_files_of_an_image(tmp_path, name, others):
    for one in (
        "a.nii",
        "a.nii.gz",
        "a.img",
        "a.hdr",
        "a.mat",
        "b.HEAD",
        "b.BRIK.gz",
        "c.par",
        "c.rec",
        "c.hdr",
        "d.tsv",
    ):
        (tmp_path / one).touch()
    assert image_files(tmp_path / name) == [str(tmp_path / one) for one in (name, *others)]


@pytest.mark.parametrize("column", ["bold", "confounds", "mask"])
def test_files_in_a_list_of_runs(irregular, column):
    path = irregular("x.nii")
    Path("a.nii").touch()
    row = {"bold": "a.nii", column: "x.nii"}
    Path("list.tsv").write_text("\t".join(row) + "\n" + "\t".join(row.values()) + "\n")
    _, (problem,) = read_manifest("list.tsv")
    what = f"names a {column} file that is {irregular.kind}, expected a regular file: {path}"
    assert problem.reason == f"line 2 of {path.with_name('list.tsv')} {what}"


@pytest.mark.parametrize("option", ["--atlas", "--lut", "--mask"])
def test_options(irregular, capsys, option):
    irregular("x")
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), "i2"), np.eye(4)), "a.nii")
    others = [] if option == "--atlas" else ["--atlas", "a.nii"]
    assert cli.main(["extract", "a.nii", *others, option, "x", "--out", "o"]) == 2
    message = f"gpumask extract: error: {option}: x is {irregular.kind}, expected a regular file\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("what", ["atlas", "lut", "mask"])
def test_files_of_a_configuration(irregular, what):
    path = irregular("x.tsv")
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), "i2"), np.eye(4)), "a.nii")
    atlas = AtlasFile(path if what == "atlas" else "a.nii", path if what == "lut" else None)
    message = message_of(lambda: Configuration((atlas,), "o", mask=path if what == "mask" else None))
    assert message == f"{path} is {irregular.kind}, expected a regular file. Give the path of one."


def test_lookup_table_that_is_found(irregular, capsys):
    """Next to the atlas, by its name."""
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), "i2"), np.eye(4)), "a.nii")
    path = irregular("a.tsv")
    assert cli.main(["extract", "a.nii", "--atlas", "a.nii", "--out", "o"]) == 2
    expected = f"gpumask extract: error: {path} is {irregular.kind}, expected a regular file. Give the path of one.\n"
    assert capsys.readouterr().err == expected


def test_records_and_logs(irregular):
    """They count as unreadable; the page is written without them."""
    Path("out/logs").mkdir(parents=True)
    for name in ("sub-1.json", "runs-host-1.jsonl", "unusable"):
        irregular(f"out/logs/{name}")
    text = write_page("out").read_text("utf-8")
    assert "unreadable: 2 (first in logs/runs-host-1.jsonl)" in re.sub("<[^>]*>", "", text)


def test_long_name_in_a_list_of_runs_is_a_problem(tmp_path):
    (tmp_path / "a.nii").touch()
    (tmp_path / "list.tsv").write_text(f"bold\n{'x' * 300}\na.nii\n")
    runs, (problem,) = read_manifest(tmp_path / "list.tsv")
    assert [run.path for run in runs] == [str(tmp_path / "a.nii")]
    assert problem.reason.startswith(f"line 2 of {tmp_path / 'list.tsv'} names a bold file that isn't there: ")


# Pipes


def writing(path, *parts, pause=0.0):
    """Write parts to a pipe in a thread, each after a pause."""

    def write():
        time.sleep(pause)
        with open(path, "wb", buffering=0) as file:  # noqa: PTH123
            for part in parts:
                file.write(part)
                time.sleep(pause)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("pause", [0, 0.1])
def test_pipe_is_read_whole(tmp_path, pause):
    """More than a pipe holds; the writer comes late, and pauses."""
    make_pipe(tmp_path / "p")
    parts = [bytes([i]) * 100_000 for i in range(4)]
    thread = writing(tmp_path / "p", *parts, pause=pause)
    assert read_bytes(tmp_path / "p", most=400_000, pipes=True) == b"".join(parts)
    thread.join()


def test_writer_may_have_left(tmp_path):
    """Of ``<(command)``: the command has ended before the pipe is opened."""
    reading, writing_end = os.pipe()
    os.write(writing_end, b"a\tb\n1\t2\n")
    os.close(writing_end)
    assert read_table(Path(f"/dev/fd/{reading}")).to_numpy().tolist() == [[1, 2]]
    os.close(reading)


def test_silent_writer(tmp_path, impatient):
    make_pipe(tmp_path / "p")
    holder = os.open(tmp_path / "p", os.O_RDWR)
    os.write(holder, b"a\tb\n1\t")
    message = message_of(read_table, tmp_path / "p", error=TimeoutError)
    assert message == f"{tmp_path / 'p'} is a pipe, and its writer was silent for 0.2 s. Write to it, or give a file."
    os.close(holder)


@pytest.mark.parametrize("has_writer", [False, True])
def test_signals_end_the_wait(tmp_path, has_writer):
    make_pipe(tmp_path / "p")
    holder = os.open(tmp_path / "p", os.O_RDWR) if has_writer else None
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    start = time.monotonic()
    with pytest.raises(HungError):
        read_table(tmp_path / "p")
    assert time.monotonic() - start < 5
    if holder is not None:
        os.close(holder)


@pytest.mark.parametrize("command", ["extract a.nii --atlas a.nii --out o --confounds p", "cohort p o participant"])
def test_terminating_a_command_that_waits(tmp_path, command):
    make_pipe(tmp_path / "p")
    helpers.save(tmp_path / "a.nii", np.ones((2, 2, 2), "i2"))
    words = command if "--atlas" in command else f"{command} --atlas a.nii"
    waiting = subprocess.Popen([sys.executable, "-m", "gpumask", *words.split()], cwd=tmp_path)
    writer = None
    while writer is None:  # opening it succeeds once the command has
        with contextlib.suppress(OSError):
            writer = os.open(tmp_path / "p", os.O_WRONLY | os.O_NONBLOCK)
        assert waiting.poll() is None
        time.sleep(0.05)
    waiting.terminate()
    assert waiting.wait(5) in (-signal.SIGTERM, 143)
    os.close(writer)


def test_pipe_in_a_cohort_fails_its_run_at_once(tmp_path, monkeypatch):
    """Its table is read several times."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.nii", "b.nii"):
        helpers.save(name, np.random.default_rng(0).normal(100, 1, (4, 4, 4, 20)).astype("f4"))
    helpers.save("l.nii", np.arange(64, dtype="i2").reshape(4, 4, 4) % 3)
    make_pipe("p")
    atlas = AtlasFile("l.nii")
    configuration = Configuration((atlas,), "o", confounds={"columns": ["csf"]}, relmats=())
    (tmp_path / "o/logs").mkdir(parents=True)
    record = write_run(configuration, Run("a.nii", "p"))
    assert record.error == f"p {A_PIPE}"
    assert process(configuration, Run("b.nii", "p")).error == f"p {A_PIPE}"


def test_pipe_without_end(tmp_path):
    make_pipe(tmp_path / "p")
    thread = writing(tmp_path / "p", bytes(200_000))
    message = message_of(lambda: read_bytes(tmp_path / "p", most=100_000, pipes=True))
    assert message.startswith(f"{tmp_path / 'p'} has more than 100000 bytes, the most that are read of such a file.")
    thread.join()


def test_confounds_from_a_shell(tmp_path, monkeypatch, capsys):
    """``--confounds <(command)``: read several times by the code, but only once from the pipe."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    rng = np.random.default_rng(0)
    helpers.save("r.nii", rng.normal(100, 1, (4, 4, 4, 20)).astype("f4"))
    helpers.save("a.nii", np.arange(64, dtype="i2").reshape(4, 4, 4) % 3)
    rows = np.column_stack([rng.normal(size=20), np.arange(20) < 2])
    np.savetxt("c.tsv", rows, header="csf\tnon_steady_state_outlier00", delimiter="\t", comments="")

    def extract(confounds):
        words = f"extract r.nii --atlas a.nii --out o --overwrite --confounds {confounds}"
        assert cli.main(words.split()) == 0
        assert "18/20 volumes kept (2 dummy scans)" in capsys.readouterr().out
        assert list((tmp_path / "tmp").iterdir()) == []
        return (tmp_path / "o/r_atlas-a_stat-mean_timeseries.tsv").read_bytes()

    expected = extract("c.tsv")
    for content in (Path("c.tsv").read_bytes(), gzip.compress(Path("c.tsv").read_bytes())):
        reading, writing_end = os.pipe()
        os.write(writing_end, content)
        os.close(writing_end)
        assert extract(f"/dev/fd/{reading}") == expected
        os.close(reading)


# Sizes


def test_size_of_a_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_bytes(path, most=5) == b"12345"
    expected = "has more than 4 bytes, the most that are read of such a file. Is it the right one?"
    assert message_of(lambda: read_bytes(path, most=4)) == f"{path} {expected}"


def test_json_of_gigabytes(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**33)
    tracemalloc.start()
    assert "has more than 16777216 bytes" in message_of(read_json, tmp_path / "a.json")
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


@pytest.mark.parametrize("cell", [b"1\t2\n", b"1"])
def test_table_that_decompresses_to_gigabytes(tmp_path, monkeypatch, cell):
    """256 members of 4 MiB are 1 GiB; 8 MiB are read of it, twice: in pieces and joined."""
    monkeypatch.setattr("gpumask.text_tables.MOST_BYTES", 1 << 23)
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress(cell * ((1 << 22) // len(cell))) * 256)
    assert path.stat().st_size < 1 << 23
    tracemalloc.start()
    assert message_of(read_table, path).startswith(f"{path} has more than 8388608 bytes")
    assert tracemalloc.get_traced_memory()[1] < 5 << 23
    tracemalloc.stop()


TABLE = "Expected a table of confounds with a column per signal and a row per volume."


@pytest.mark.parametrize("end", ["\n", "\r"])
def test_too_many_lines(tmp_path, end):
    path = tmp_path / "a.tsv"
    path.write_text(f"1{end}" * (2**20 + 1), newline="")
    message = f"{path} has {2**20 + 1} lines, more than the {2**20} that are read of a table. {TABLE}"
    assert message_of(read_table, path) == message


def test_too_many_cells(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("a\tb\n" + "\t" * 2**23)
    message = f"{path} has {2**23 + 3} cells, more than the {2**23} that are read of a table. {TABLE}"
    assert message_of(read_table, path) == message


def test_too_many_columns(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("a\tb\n1\t2\n" + "1\t" * 2**16 + "2\n")
    message = message_of(read_table, path)
    assert message.startswith(f"{path}, line 3: has 65537 cells, more than the 65536 that are read of a row.")


@pytest.mark.parametrize("quote", ["", '"'])
def test_long_cells(tmp_path, quote):
    """The csv module refuses more than 128 KiB, but names no file."""
    path = tmp_path / "a.tsv"
    for n, is_read in ((2**17, True), (2**17 + 1, False)):
        path.write_text(f"index\tname\n{quote}1{quote}\tA\n2\t{quote}{'x' * n}{quote}\n")
        if is_read:
            assert read_lookup_table(path) == {"index": [1, 2], "name": ["A", "x" * n]}
        else:
            message = message_of(read_lookup_table, path)
            assert message.startswith(f"{path}, line 3: ")
            assert "131073 characters, more than the 131072" in message or "field larger than field limit" in message
            assert len(message) < 500


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('index\tname\n"1"\t"A"\n2\t"B\n3\tC\n', 3),
        ('index\tname\n1\t"A\n"2"\t"B"\n', 2),
        ('"index","name"\n1,"A"x\n', 2),
        ('"index","name"\n# no\n\n1,"A\nB', 4),
    ],
)
def test_unclosed_quotes_among_quoted_cells(tmp_path, text, line):
    path = tmp_path / "a.tsv"
    path.write_text(text)
    message = message_of(read_lookup_table, path)
    assert message.startswith(f"{path}, line {line}: the quotes of {text.splitlines()[line - 1]!r} make no sense (")
    assert message.endswith("but other lines have quoted cells. Close the quote, or double those within a cell.")


def test_inches_arent_unclosed(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('index\tname\n1\t3" left\n2\t"B\n')
    assert read_rows(path, "x").cells[1:] == [["1", '3" left'], ["2", '"B']]


# Numbers


@pytest.mark.parametrize("digits", [309, 400, 5000])
@pytest.mark.parametrize("sign", ["", "-"])
def test_integers_of_many_digits(tmp_path, digits, sign):
    path = tmp_path / "a.tsv"
    path.write_text(f"a\tb\n1\t2\n3\t{sign}{'9' * digits}\n")
    message = message_of(confounds_matrix, path, 2)
    what = "NaN, infinite values or text are in column 'b' (volume 1)."
    assert message.startswith(f"Confounds must be finite numbers; {what} File: {path}.")
    if digits < 4300:
        frame = pd.DataFrame({"b": [2, int(f"{sign}{'9' * digits}")]})
        assert message_of(confounds_matrix, frame, 2).startswith(f"Confounds must be finite numbers; {what}")


def test_integers_beyond_int64(tmp_path):
    path = tmp_path / "a.tsv"
    cells = ["9223372036854775807", "9223372036854775808", "-9223372036854775809", "1" * 25]
    path.write_text("framewise_displacement\n" + "\n".join(cells) + "\n")
    np.testing.assert_array_equal(confounds_matrix(path, 4)[:, 0], [float(cell) for cell in cells])
    _, kept = fmriprep_confounds("a.nii", path, fd_threshold=9)
    np.testing.assert_array_equal(kept, [2])


def test_numbers_of_rows_of_many_digits(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text(f"a\tb\n{'1' * 5000}\t1\t2\n{'2' * 5000}\t1\t2\n")
    message = message_of(read_table, path)
    assert message.startswith(f"{path}, line 2: has 3 cells, expected 2")


@pytest.mark.parametrize("index", ["1e400", "1" * 400, "1" * 5000, "nan"])
def test_index_of_a_lookup_table(tmp_path, index):
    path = tmp_path / "a.tsv"
    path.write_text(f"index\tname\n1\tA\n{index}\tB\n")
    message = message_of(read_lookup_table, path)
    assert message.startswith(f"{path}, line 3: the index is '{index[:3]}")
    assert message.endswith("', expected a number: a region's label in the image.")
    assert len(message) < len(str(path)) + 200


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300, -1e300, 2.0**63])
def test_sample_masks(value):
    with pytest.raises(
        (TypeError, IndexError), match=r"sample_mask 1 of 1 (must hold integers|contains invalid index)"
    ):
        kept_volumes([0.0, value], [4])


def test_many_labels_that_occur_twice(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("index\tname\n" + "".join(f"{i}\tA\n{i}\tB\n" for i in range(10_000)))
    message = message_of(read_lookup_table, path)
    assert message.startswith(f"{path} has several rows for [0, 1, 2, ")
    assert message.endswith(", 9998, 9999]. Each region's index must occur once.")
    assert len(message) < len(str(path)) + 300


def test_runs_of_many_digits():
    assert label_of("run", "0" * 5000 + "1" * 5000) == "1" * 5000
    assert label_of("run", "000") == "0"


def test_text_among_non_steady_volumes(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("non_steady_state_outlier00\n1\n0\nyes\n")
    what = "the column non_steady_state_outlier00 has the text 'yes' for volume 2, expected 0 or 1."
    assert message_of(non_steady_volumes, path) == f"{path}: {what}"


# JSON

SECONDS = "expected a positive number of seconds"
NINES = "9" * 27


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"RepetitionTime": %s}' % (b"9" * 400), f"has the RepetitionTime inf: {SECONDS}"),
        (b'{"RepetitionTime": -%s}' % (b"9" * 5000), f"has the RepetitionTime -inf: {SECONDS}"),
        (b'{"RepetitionTime": Infinity}', f"has the RepetitionTime inf: {SECONDS}"),
        (
            b'{"RepetitionTime": "%s"}' % (b"9" * 400),
            f"has the RepetitionTime '{NINES}...{NINES}': {SECONDS}",
        ),
        (b'{"RepetitionTime": [[2]]}', f"has the RepetitionTime [[2]]: {SECONDS}"),
        (b'{"VolumeTiming": [0, NaN]}', "has the VolumeTiming [0, nan]: expected a list of seconds"),
        (b'{"VolumeTiming": [0, 1e400]}', "has the VolumeTiming [0, inf]: expected a list of seconds"),
        (b'{"VolumeTiming": "012"}', "has the VolumeTiming '012': expected a list of seconds"),
        (b'{"VolumeTiming": {"0": 1}}', "has the VolumeTiming {'0': 1}: expected a list of seconds"),
        (b"[" * 100_000, "isn't JSON that can be read: its brackets are nested too deeply. Create the file again."),
        (b'{"a":' * 100_000, "isn't JSON that can be read: its brackets are nested too deeply. Create the file again."),
        (
            b'{"a": {"Name": 2, "Name": 3}}',
            "has two values for the key 'Name'. Keep one.",
        ),
        (b'{\n"Name": "\xc4"}', "isn't JSON: line 2 has the byte 0xc4, expected UTF-8. Save it so."),
        ('{"a": 1}'.encode("utf-16"), "isn't JSON: line 1 has the byte 0xff, expected UTF-8. Save it so."),
        (b"3", "holds a JSON int: expected an object"),
        (b"null", "holds a JSON NoneType: expected an object"),
        (b'{"a": 1', "isn't JSON: Expecting ',' delimiter: line 1 column 8 (char 7)"),
    ],
)
def test_metadata_are_one_error(tmp_path, content, reason):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert message_of(repetition_time, Run(tmp_path / "a.nii.gz"), None) == f"{path} {reason}"


def test_json_with_a_mark_and_the_same_value_twice(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": [1, 2], "b": 1, "a": [1, 2]}')
    assert read_json(path) == {"a": [1, 2], "b": 1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"GeneratedBy": "gpumask"}, "has the GeneratedBy 'gpumask': expected a list of objects"),
        ({"GeneratedBy": ["gpumask"]}, "has the GeneratedBy ['gpumask']: expected a list of objects"),
        ({"GeneratedBy": {"Name": "gpumask"}}, "has the GeneratedBy {'Name': 'gpumask'}: expected a list of objects"),
        ({"PipelineDescription": "x"}, "has the PipelineDescription 'x': expected an object"),
        ({"GeneratedBy": [{"Name": "gpumask"}], "DatasetLinks": [1]}, "has the DatasetLinks [1]: expected an object"),
    ],
)
def test_descriptions_of_data_sets(tmp_path, content, reason):
    path = tmp_path / "dataset_description.json"
    path.write_text(json.dumps(content))
    assert message_of(check_dataset_description, tmp_path) == f"{path} {reason}"
    if "DatasetLinks" not in content:
        (tmp_path / "out").mkdir()
        assert message_of(write_dataset_description, tmp_path / "out", tmp_path) == f"{path} {reason}"
