"""How much work is done, counted and not timed: bytes decoded, volumes read, plans compiled, memory allocated."""

import gzip
import threading
import tracemalloc
from collections import Counter
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import gpumask.engine.stream
import gpumask.extraction
import gpumask.kernels.segments
from gpumask import MultiNiftiLabelsMasker, NiftiLabelsMasker, transform_together
from gpumask.bids import Run
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.executors import run_cohort
from gpumask.cohort.writer import write_run as extract_run
from gpumask.images.decoding import Decoder
from gpumask.images.volumes import Volumes

SHAPE, N_VOLUMES, N_REGIONS = (10, 12, 9), 50, 8
AFFINE = np.diag([-3.0, 3.0, 3.5, 1.0])
CLEANED = {"smoothing_fwhm": 6, "detrend": True, "high_pass": 0.01, "t_r": 2.0, "standardize": "zscore_sample"}
SUFFIXES = (".nii", ".nii.gz")
MOVED = AFFINE + np.array([[0, 0, 0, 1.0]] * 3 + [[0] * 4])  # labels to resample to

pytestmark = pytest.mark.filterwarnings("ignore:Resampling images at transform time")


def write_run(path, n_volumes=N_VOLUMES, shape=SHAPE, seed=0):
    values = np.random.default_rng(seed).normal(500, 40, (*shape, n_volumes)).astype(np.int16)
    values[0, 0, 0], values[-1, -1, -1] = 0, 5000  # the range of each volume, as a skull's or a vessel's voxels set it
    image = nib.Nifti1Image(values, AFFINE)
    image.header.set_zooms((3.0, 3.0, 3.5, 2.0))
    image.to_filename(path)
    return path


def write_atlas(path, shape=SHAPE, seed=0, affine=AFFINE):
    labels = np.random.default_rng(seed).integers(0, N_REGIONS + 1, shape).astype(np.int16)
    nib.Nifti1Image(labels, affine).to_filename(path)
    return path


@pytest.fixture(params=SUFFIXES)
def run(request, tmp_path):
    return write_run(tmp_path / f"bold{request.param}")


@pytest.fixture
def packed(tmp_path):
    return write_run(tmp_path / "bold.nii.gz")


@pytest.fixture
def atlas(tmp_path):
    return write_atlas(tmp_path / "atlas.nii.gz")


@pytest.fixture
def confounds(tmp_path):
    path = tmp_path / "confounds.tsv"
    values = np.random.default_rng(0).normal(size=(N_VOLUMES, 3))
    pd.DataFrame(values, columns=["a", "b", "c"]).to_csv(path, sep="\t", index=False)
    return path


@pytest.fixture
def events(monkeypatch):
    """What happens, in order: "compile", "confounds", and ("read", index) of each volume of a run."""
    happened, chunks = [], Volumes.chunks

    def read(self, *args):
        for chunk in chunks(self, *args):
            if self.n_volumes > 1:  # not an atlas
                happened.extend(("read", chunk.start + k) for k in range(len(chunk.data)))
            yield chunk

    def recorded(name, function):
        def call(*args, **options):
            happened.append(name)
            return function(*args, **options)

        return call

    monkeypatch.setattr(Volumes, "chunks", read)
    monkeypatch.setattr(gpumask.plans, "compile_plan", recorded("compile", gpumask.plans.compile_plan))
    monkeypatch.setattr(gpumask.settings, "Cleaner", recorded("confounds", gpumask.settings.Cleaner))
    return happened


@pytest.fixture
def decoded(monkeypatch):
    """Bytes that came out of the decoder, by file."""
    counts, read = Counter(), Decoder._read

    def counted(self, target):
        n = read(self, target)
        counts[str(self._path)] += n
        return n

    monkeypatch.setattr(Decoder, "_read", counted)
    return counts


HEADER = 352  # bytes that each opening decodes, to know the sizes of the extensions


def reads_of(events):
    return [event[1] for event in events if event != "compile" and event[0] == "read"]


def masker(atlas, **parameters):
    return NiftiLabelsMasker(str(atlas), device="cpu", **parameters)


# Reading

PASSES = {
    "mean": ({}, 1),
    "6 mm and cleaning": (CLEANED, 1),
    "median of smoothed volumes": ({"strategy": "median", "smoothing_fwhm": 6}, 1),
    "resampled to the labels": ({"resampling_target": "labels"}, 1),
    # As documented: the run's range of values, or its components, must be known beforehand.
    "maximum of resampled volumes": ({"resampling_target": "labels", "strategy": "maximum"}, 2),
    "high-variance confounds": ({"high_variance_confounds": True}, 3),
}


@pytest.mark.parametrize("work", PASSES)
def test_each_volume_is_read_once(tmp_path, run, events, work):
    parameters, passes = PASSES[work]
    labels = write_atlas(tmp_path / "labels.nii", affine=MOVED if "resampled" in work else AFFINE)
    masker(labels, **parameters).fit_transform(str(run))
    assert reads_of(events) == [*range(N_VOLUMES)] * passes


@pytest.mark.parametrize("n_atlases", [1, 5])
def test_several_atlases_are_one_pass(tmp_path, run, events, n_atlases):
    atlases = [write_atlas(tmp_path / f"{k}.nii.gz", seed=k) for k in range(n_atlases)]
    maskers = [masker(path, smoothing_fwhm=6).fit(str(run)) for path in atlases]
    transform_together(maskers, str(run))
    assert reads_of(events) == [*range(N_VOLUMES)]


@pytest.mark.parametrize("n_atlases", [1, 5])
def test_each_byte_is_decoded_once(tmp_path, packed, decoded, n_atlases):
    atlases = [write_atlas(tmp_path / f"{k}.nii", seed=k) for k in range(n_atlases)]
    maskers = [masker(path, **CLEANED).fit(str(packed)) for path in atlases]
    of_fit = Counter(decoded)
    assert of_fit == {**{str(atlas): HEADER for atlas in atlases}, str(packed): n_atlases * HEADER}
    transform_together(maskers, str(packed))
    assert decoded - of_fit == {str(packed): HEADER + len(gzip.decompress(packed.read_bytes()))}


def test_confounds_come_before_the_first_volume(run, atlas, confounds, events):
    masker(atlas, **CLEANED).fit_transform(str(run), confounds=str(confounds))
    assert events.index("confounds") < events.index(("read", 0))
    assert events.count("confounds") == 1


def test_wrong_confounds_read_no_volume(tmp_path, packed, atlas, events, decoded):
    path = tmp_path / "short.tsv"
    pd.DataFrame(np.zeros((N_VOLUMES - 1, 2)), columns=["a", "b"]).to_csv(path, sep="\t", index=False)
    extractor = masker(atlas).fit(str(packed))
    with pytest.raises(ValueError, match=str(N_VOLUMES)):
        extractor.transform(str(packed), confounds=str(path))
    configuration = Configuration((AtlasFile(atlas),), tmp_path, confounds={"columns": ["*"]}, device="cpu")
    record = extract_run(configuration, Run(packed, path))
    assert f"has {N_VOLUMES - 1} rows, but" in record.error
    assert f"has {N_VOLUMES} volumes" in record.error
    assert reads_of(events) == []
    assert decoded[str(packed)] <= 3 * HEADER  # by `fit`, `transform` and `extract_run`


# Compiling


def test_one_plan_for_all_runs_of_a_grid(tmp_path, atlas, events):
    runs = [str(write_run(tmp_path / f"{k}.nii", seed=k)) for k in range(4)]
    extractor = masker(atlas, smoothing_fwhm=6)
    for path in runs:
        extractor.fit(runs[0]) if path == runs[0] else None
        extractor.transform(path)
    assert events.count("compile") == 1


def test_a_worker_folds_once(monkeypatch, tmp_path, run, atlas):
    """While this thread reads the first volumes; of a plan that `memory` keeps, nothing is left to fold."""
    threads, fold = [], gpumask.kernels.segments.fold
    monkeypatch.setattr(
        gpumask.kernels.segments, "fold", lambda *args: threads.append(threading.current_thread().name) or fold(*args)
    )
    extractor = masker(atlas, smoothing_fwhm=6).fit(str(run))
    first = extractor.transform(str(run))
    np.testing.assert_array_equal(extractor.transform(str(run)), first)
    assert [name.rpartition("_")[0] for name in threads] == ["gpumask-reduce"]
    threads.clear()
    for _ in range(2):
        kept = masker(atlas, smoothing_fwhm=6, memory=str(tmp_path / "cache")).fit(str(run))
        kept.memory_.cache(gpumask.extraction._run).clear(warn=False)  # but not the plan
        np.testing.assert_array_equal(kept.transform(str(run)), first)
    assert threads == [threading.current_thread().name]


def test_one_plan_for_a_list_of_runs(tmp_path, atlas, events):
    runs = [str(write_run(tmp_path / f"{k}.nii", seed=k)) for k in range(4)]
    MultiNiftiLabelsMasker(str(atlas), smoothing_fwhm=6, device="cpu").fit_transform(runs)
    assert events.count("compile") == 1


def test_one_plan_for_a_cohort(tmp_path, atlas, events):
    runs = [Run(write_run(tmp_path / f"sub-{k}_bold.nii.gz", seed=k)) for k in range(4)]
    configuration = Configuration((AtlasFile(atlas),), tmp_path / "out", {"smoothing_fwhm": 6}, device="cpu")
    records = list(run_cohort(configuration, runs))
    assert [record.error for record in records] == [""] * 4
    assert events.count("compile") == 1
    assert Counter(reads_of(events)) == dict.fromkeys(range(N_VOLUMES), 4)  # several threads read at a time
    events.clear()
    configuration = replace(configuration, out_dir=tmp_path / "single", parameters={"smoothing_fwhm": 5})
    records = [extract_run(configuration, run) for run in runs]
    assert [record.error for record in records] == [""] * 4
    assert events.count("compile") == 1
    assert reads_of(events) == [*range(N_VOLUMES)] * 4


def test_memory_keeps_plans_and_signals(tmp_path, atlas, events):
    runs = [str(write_run(tmp_path / f"{k}.nii", seed=k)) for k in range(2)]
    signals = [
        masker(atlas, smoothing_fwhm=6, memory=str(tmp_path / "cache")).fit_transform(runs[k]) for k in (0, 1, 0)
    ]
    assert events.count("compile") == 1
    assert reads_of(events) == [*range(N_VOLUMES)] * 2  # the third are signals that were kept
    np.testing.assert_array_equal(signals[2], signals[0])
    masker(atlas, smoothing_fwhm=5, memory=str(tmp_path / "cache")).fit_transform(runs[0])
    assert events.count("compile") == 2


# Memory

WIDE, LONG, LONGER = (20, 22, 18), 250, 1000
MEMORY = {
    "mean": {},
    "6 mm and cleaning": CLEANED,
    "median": {"strategy": "median"},
    "maximum of smoothed volumes": {"strategy": "maximum", "smoothing_fwhm": 6},
    "resampled to the labels": {"resampling_target": "labels"},
}


@pytest.fixture(scope="module")
def long_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    return {
        suffix: [write_run(folder / f"bold{n_volumes}{suffix}", n_volumes, WIDE) for n_volumes in (LONG, LONGER)]
        for suffix in SUFFIXES
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("work", MEMORY)
@pytest.mark.parametrize("n_atlases", [1, 5])
def test_no_4d_float_array(tmp_path, monkeypatch, long_runs, work, suffix, n_atlases):
    """Peak memory is far below the size of the run as float32, and the same for a run four times as long."""
    monkeypatch.setattr(gpumask.engine.stream, "n_cores", lambda: 1)  # with more, it is chance how many chunks meet
    affine, peaks = MOVED if "resampled" in work else AFFINE, []
    atlases = [write_atlas(tmp_path / f"{k}.nii", WIDE, k, affine) for k in range(n_atlases)]
    for path in long_runs[suffix]:
        maskers = [masker(atlas, **MEMORY[work]).fit(str(path)) for atlas in atlases]
        transform_together(maskers, str(path))  # compiles, and imports what is imported late
        tracemalloc.start()
        transform_together(maskers, str(path))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < LONGER * np.prod(WIDE) * 4 / 4
    # Signals grow, and what their cleaning takes; reading may be a chunk ahead or not.
    signals = (LONGER - LONG) * n_atlases * N_REGIONS * 8
    assert peaks[1] - peaks[0] < 12 * signals + 0.3 * peaks[0]
