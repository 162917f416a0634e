"""Which library decodes gzip, and that the choice changes neither values nor errors nor warnings."""

import gzip
import io
import multiprocessing
import os
import re
import struct
import subprocess
import sys
import warnings
import zlib

import joblib
import nibabel as nib
import numpy as np
import pytest

from gpumask import MultiNiftiLabelsMasker, process
from gpumask.cli import main
from gpumask.cohort import executors
from gpumask.images import gzip_decoders
from gpumask.images.errors import ImageError
from gpumask.images.volumes import open_volumes

from .helpers import image

pytest.importorskip("rapidgzip")
SHAPE = (20, 20, 20, 60)
VALUES = np.random.default_rng(0).normal(1000, 50, SHAPE).astype("i2")
ROWS = VALUES.reshape(-1, SHAPE[3], order="F").T


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    path = tmp_path_factory.mktemp("raw") / "run.nii"
    nib.save(image(VALUES), path)
    return path.read_bytes()


def bgzf(content):
    """As bgzip writes it: members of up to 64 KiB that say how long they are, and an empty one at the end."""
    pieces = [content[i : i + 60_000] for i in range(0, len(content), 60_000)] + [b""]
    members = []
    for piece in pieces:
        compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
        deflated = compressor.compress(piece) + compressor.flush()
        header = b"\x1f\x8b\x08\x04" + bytes(4) + b"\x00\xff\x06\x00BC\x02\x00" + struct.pack("<H", len(deflated) + 25)
        members.append(header + deflated + struct.pack("<II", zlib.crc32(piece), len(piece)))
    return b"".join(members)


FORMS = {
    "one member": gzip.compress,
    "stored": lambda content: gzip.compress(content, 0),
    "members": lambda content: gzip.compress(content[:500_000]) + gzip.compress(content[500_000:]),
    "more members": lambda content: gzip.compress(content) + gzip.compress(b"more") + gzip.compress(b""),
    "bgzf": bgzf,
}


def outcome(path, decoder, monkeypatch, n=7):
    """What reading the run gives: the values or the error, and the warnings."""
    monkeypatch.setenv("GPUMASK_DECODER", decoder)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        try:
            result = np.concatenate([chunk.data for chunk in open_volumes(path).chunks(n)]).tobytes()
        except ImageError as error:
            result = re.sub(r"0x\w+|\d{12,}", "", str(error))
    return result, [str(w.message) for w in record]


def assert_alike(path, content, monkeypatch, what):
    path.write_bytes(content)
    result = outcome(path, "rapidgzip", monkeypatch)
    assert result == outcome(path, "isal", monkeypatch), what
    return result


def flipped(content, position, bit):
    changed = bytearray(content)
    changed[position] ^= 1 << bit
    return bytes(changed)


@pytest.mark.parametrize("form", FORMS)
def test_good_files_have_the_same_values(raw, tmp_path, monkeypatch, form):
    path = tmp_path / "run.nii.gz"
    assert assert_alike(path, FORMS[form](raw), monkeypatch, form) == (ROWS.tobytes(), [])
    for n in (1, 60):
        assert outcome(path, "rapidgzip", monkeypatch, n) == (ROWS.tobytes(), [])


@pytest.mark.parametrize("form", FORMS)
def test_truncated_files_have_the_same_errors(raw, tmp_path, monkeypatch, form):
    """rapidgzip 0.16.2 ends without an error at members whose header or last block is cut."""
    content, path = FORMS[form](raw), tmp_path / "run.nii.gz"
    of_image = len(gzip.compress(raw)) if form == "more members" else len(content)
    for n in (1, 4, 8, 9, 10, 11, 13, 18, 20, 28, 33, 60, *range(99, len(content), len(content) // 7)):
        result, _ = assert_alike(path, content[: len(content) - n], monkeypatch, n)
        assert isinstance(result, str) or len(content) - n >= of_image or (form == "bgzf" and n <= 28), n


@pytest.mark.parametrize("form", FORMS)
def test_flipped_bits_have_the_same_errors(raw, tmp_path, monkeypatch, form):
    content, path = FORMS[form](raw), tmp_path / "run.nii.gz"
    rng, n = np.random.default_rng(0), len(content)
    places = [*range(0, 20, 2), 3, n - 10, n - 7, n - 3, *rng.integers(20, n, 10)]
    for position in places:
        result, said = assert_alike(path, flipped(content, position, rng.integers(8)), monkeypatch, position)
        if not isinstance(result, str):
            assert (result, len(said)) in ((ROWS.tobytes(), 0), (ROWS.tobytes(), 1)), position


@pytest.mark.parametrize("form", FORMS)
def test_other_trailing_bytes_have_the_same_warnings(raw, tmp_path, monkeypatch, form):
    content, path = FORMS[form](raw), tmp_path / "run.nii.gz"
    start = content[:9]  # of another member
    for extra, n_warnings in ((b"\0", 0), (bytes(6), 0), (bytes(16), 1), (b"x", 1), (start, 1), (bytes(9999), 1)):
        result, said = assert_alike(path, content + extra, monkeypatch, extra[:20])
        if extra != start:
            assert (result, len(said)) == (ROWS.tobytes(), n_warnings), extra[:20]


def test_shorter_and_longer_images(raw, tmp_path, monkeypatch):
    path = tmp_path / "run.nii.gz"
    result, _ = assert_alike(path, gzip.compress(raw[:-10]), monkeypatch, "shorter")
    assert result == (
        f"{path} is truncated: it ends 10 bytes before the end of a volume that its header promises. "
        "Copy or create the file again."
    )
    assert assert_alike(path, gzip.compress(raw + bytes(10**6)), monkeypatch, "longer") == (ROWS.tobytes(), [])


class Rapid:
    """Stands for rapidgzip: returns `wrong` bytes, and fails after 100 000 of them."""

    def __init__(self, wrong, error):
        self.wrong, self.error, self.closed = wrong, error, 0

    def RapidgzipFile(self, descriptor, parallelization):  # noqa: N802
        self.file, self.n = os.fdopen(os.dup(descriptor), "rb"), 0
        self.content = io.BytesIO(gzip.decompress(self.file.read()))
        return self

    def readinto(self, target):
        if self.n > 100_000:
            raise self.error
        got = self.content.readinto(target)
        target[got // 2] ^= self.wrong
        self.n += got
        return got

    def close(self):
        self.file.close()
        self.closed += 1


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("Resource temporarily unavailable")])
def test_failing_threads_leave_it_to_isal(raw, tmp_path, monkeypatch, error):
    path = tmp_path / "run.nii.gz"
    path.write_bytes(gzip.compress(raw))
    rapid = Rapid(0, error)
    monkeypatch.setattr(gzip_decoders, "_rapidgzip", lambda: rapid)
    assert outcome(path, "rapidgzip", monkeypatch) == (ROWS.tobytes(), [])
    assert rapid.closed == 1


def test_other_bytes_than_those_of_isal_are_an_error(raw, tmp_path, monkeypatch):
    path = tmp_path / "run.nii.gz"
    path.write_bytes(gzip.compress(raw))
    monkeypatch.setattr(gzip_decoders, "_rapidgzip", lambda: Rapid(1, ValueError("failed")))
    monkeypatch.setattr(gzip_decoders, "igzip", gzip)
    assert outcome(path, "rapidgzip", monkeypatch)[0] == (
        f"{path} was decoded to other bytes by rapidgzip than by gzip. Set GPUMASK_DECODER=isal, and report it."
    )


# Closing


READ = """
import sys
from gpumask.images.volumes import open_volumes
chunks = open_volumes(sys.argv[1]).chunks(1)
next(chunks)
"""


@pytest.mark.parametrize(
    ("rest", "status", "said"),
    [
        ("", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("import builtins; builtins.kept = chunks; 1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("sys.kept = chunks; sys.chunks_too = [chunks]; chunks.itself = 1", 1, "'itself'"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT); list(chunks)", -2, "KeyboardInterrupt"),
        (
            "import signal; signal.signal(signal.SIGALRM, signal.default_int_handler)\n"
            "signal.setitimer(signal.ITIMER_REAL, 0.02)\nwhile True: list(open_volumes(sys.argv[1]).chunks(1))",
            -2,
            "KeyboardInterrupt",
        ),
        ("import threading; threading.Thread(target=list, args=[chunks]).start(); sys.exit(3)", 3, ""),
    ],
)
def test_closed_on_every_way_out(raw, tmp_path, rest, status, said):
    """A file of rapidgzip that isn't closed would abort the process (status -6)."""
    path = tmp_path / "run.nii.gz"
    path.write_bytes(gzip.compress(raw))
    done = subprocess.run(
        [sys.executable, "-c", READ + rest, path],
        env={**os.environ, "GPUMASK_DECODER": "rapidgzip"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "terminate" not in done.stderr


# The choice


@pytest.fixture
def sixteen_cores(monkeypatch):
    monkeypatch.delenv("GPUMASK_DECODER", raising=False)
    monkeypatch.setattr(process, "n_cores", lambda: 16)
    monkeypatch.setattr(gzip_decoders, "_LEAST_BYTES", 0)


def test_choice(sixteen_cores, monkeypatch):
    assert gzip_decoders.choose() == ("rapidgzip", "16 threads for a single run; isal where several run at a time")
    with process.several_runs:
        assert gzip_decoders.choose() == ("isal", "several runs at a time")
    monkeypatch.setattr(process, "n_cores", lambda: 96)
    assert gzip_decoders.choose().reason.startswith("16 threads")
    monkeypatch.setattr(process, "n_cores", lambda: 3)
    assert gzip_decoders.choose() == ("isal", "rapidgzip is for 4 cores or more, this process may use 3")
    for name in ("isal", "rapidgzip", "zlib"):
        monkeypatch.setenv("GPUMASK_DECODER", name)
        assert gzip_decoders.choose() == (name, "by GPUMASK_DECODER")


def test_choice_without_packages(sixteen_cores, monkeypatch):
    monkeypatch.setattr(gzip_decoders, "_rapidgzip", lambda: None)
    how = "a single run is faster on 16 cores with rapidgzip: pip install 'gpumask[fast]'"
    assert gzip_decoders.choose() == ("isal", how)
    monkeypatch.setattr(gzip_decoders, "igzip", gzip)
    assert gzip_decoders.choose() == ("zlib", "twice as fast: pip install isal")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("pigz", ValueError, "GPUMASK_DECODER=pigz: expected isal, rapidgzip or zlib. Correct or unset it."),
        *(
            (name, ImportError, f"GPUMASK_DECODER={name}: this package isn't installed. Run: {how}, or unset it.")
            for name, how in (("isal", "pip install isal"), ("rapidgzip", "pip install 'gpumask[fast]'"))
        ),
    ],
)
def test_decoder_that_cannot_be_used(raw, tmp_path, monkeypatch, capsys, name, error, message):
    path = tmp_path / "run.nii"
    path.write_bytes(raw)
    monkeypatch.setenv("GPUMASK_DECODER", name)
    monkeypatch.setattr(gzip_decoders, "_rapidgzip", lambda: None)
    monkeypatch.setattr(gzip_decoders, "igzip", gzip)
    with pytest.raises(error) as caught:
        open_volumes(path)
    assert str(caught.value) == message
    arguments = ["extract", str(path), "--atlas", str(path), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert main(["info"]) == 0
    assert re.search(rf"^gzip decoder +can't be used: {re.escape(message)}$", capsys.readouterr().out, re.MULTILINE)


def decoder_of(path):
    chunks = open_volumes(path).chunks(1)
    before = gzip_decoders.ParallelGzip._latest
    next(chunks)
    was_parallel = gzip_decoders.ParallelGzip._latest is not before
    chunks.close()
    return was_parallel


def test_files_that_are_decoded_in_parallel(raw, tmp_path, sixteen_cores, monkeypatch):
    path = tmp_path / "run.nii.gz"
    path.write_bytes(gzip.compress(raw))
    first = open_volumes(path).chunks(1)
    next(first)
    assert not decoder_of(path)
    first.close()
    assert decoder_of(path)
    for name, value in (("_LEAST_BYTES", 1 << 24), ("_LARGEST_RATIO", 1)):  # too small; would take too much memory
        with monkeypatch.context() as patch:
            patch.setattr(gzip_decoders, name, value)
            assert not decoder_of(path)
    monkeypatch.setenv("GPUMASK_DECODER", "rapidgzip")
    assert decoder_of(path)


def test_worker_processes_are_not_alone():
    assert process.is_alone()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert not pool.apply(process.is_alone)
    assert joblib.Parallel(n_jobs=2)([joblib.delayed(process.is_alone)()] * 2) == [False, False]


def test_runs_of_a_multi_masker(raw, tmp_path, sixteen_cores, monkeypatch):
    path, seen = tmp_path / "run.nii.gz", []
    path.write_bytes(gzip.compress(raw))
    original = gzip_decoders.choose
    monkeypatch.setattr(gzip_decoders, "choose", lambda: seen.append(original()) or seen[-1])
    labels = np.zeros(SHAPE[:3], "i2")
    labels[2:5] = 1
    masker = MultiNiftiLabelsMasker(image(labels)).fit()
    with joblib.parallel_config("threading"):
        for n_jobs, name in ((1, "rapidgzip"), (2, "isal")):
            seen.clear()
            masker.transform_imgs([path, path], n_jobs=n_jobs)
            assert {choice.name for choice in seen} == {name}


def test_cohorts_use_isal(monkeypatch):
    seen = []
    monkeypatch.setattr("gpumask.cohort.writer._attempt", lambda *_: seen.append(process.is_alone()) or None)
    monkeypatch.setattr("gpumask.cohort.writer.logged", lambda *_: None)
    executors.process(None, None)
    assert seen == [False]
    assert process.is_alone()
