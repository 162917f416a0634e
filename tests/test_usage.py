"""Wrong usage of the command line: exit status 2 before anything is read or written, in dry runs too."""

import importlib.util
import shlex
import subprocess
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from gpumask import __version__, cli
from gpumask.cohort import writer

from . import cohorts

COHORT = "cohort d out participant --atlas atlas-Toy_dseg.nii.gz"
EXTRACT = "extract run.nii.gz --atlas atlas-Toy_dseg.nii.gz --confounds table.tsv --out o"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A cohort of two runs, a run of its own with a table, and two atlases."""
    monkeypatch.chdir(tmp_path)
    for name in ("ID", "COUNT", "MIN", "STEP"):
        monkeypatch.delenv(f"SLURM_ARRAY_TASK_{name}", raising=False)
    cohorts.make_cohort(tmp_path / "d", 2, bad=False)
    cohorts.make_atlases(tmp_path)
    first = next((tmp_path / "d").rglob("*run-1*_bold.nii.gz"))
    (tmp_path / "run.nii.gz").write_bytes(first.read_bytes())
    (tmp_path / "table.tsv").write_bytes(next((tmp_path / "d").rglob("*run-1*.tsv")).read_bytes())
    return tmp_path


def run(line):
    return cli.main(shlex.split(line))


def everything(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.fixture
def refused(folder, capsys, monkeypatch):
    """Run a command that must exit 2, leaving the folder as it was and no image read; returns its message."""

    def refuse(line):
        with monkeypatch.context() as patch:
            patch.setattr(writer, "open_run", lambda path: pytest.fail(f"{path} was read"))
            before = everything(folder)
            assert run(line) == 2
            assert everything(folder) == before
        return capsys.readouterr().err

    return refuse


in_dry_runs_too = pytest.mark.parametrize("dry", ["", " --dry-run"])


@in_dry_runs_too
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--confounds-strategy simpel", "Unknown confounds strategy 'simpel'. Expected one of simple, scrubbing, "),
        ("--confounds-strategy simple+gs", "Unknown confounds strategy 'simple+gs'"),
        ("--confounds-strategy simple --confounds-columns csf", "--confounds-strategy and --confounds-columns exclude"),
        ("--store x.csv", "--store: expected FILE.parquet, got x.csv"),
        ("--store x", "--store: expected FILE.parquet, got x"),
        ("--store no/x.parquet", "--store: no such folder: no"),
        ("--min-coverage 2", "`min_coverage` must be a share"),
        ("--space func --space T1w", "argument --space: given twice, expected once"),
        ("--low-pass 0.1 --low-pass 0.2", "argument --low-pass: given twice, expected once"),
        ("--store=--", "argument --store: expected one argument"),
        ("--confounds-strategy=--", "argument --confounds-strategy: expected one argument"),
        ("--lut a.tsv b.tsv", "--lut: expected one for each --atlas, got 2 for 1"),
        ("--nprocs 0", "--nprocs: expected 1 or more"),
        ("--shard 3/2", "--shard: expected a shard from 1 to 2"),
        ("--space T1w", "has no images in space T1w"),
        ("--confounds-strategy ica_aroma", "has no *_desc-smoothAROMAnonaggr_bold.nii.gz"),
    ],
)
def test_cohort(refused, options, message, dry):
    assert message in refused(f"{COHORT} {options}{dry}")


@in_dry_runs_too
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("d", "OUT_DIR: d is the folder of the inputs. Give another one, such as d/derivatives/gpumask"),
        ("d/.", "OUT_DIR: d is the folder of the inputs"),
        ("link", "OUT_DIR: link is the folder of the inputs"),
        ("d/sub-01", "OUT_DIR: d/sub-01 is in a subject's folder of the inputs"),
        ("d/sub-01/func/new", "OUT_DIR: d/sub-01/func/new is in a subject's folder of the inputs"),
        ("d/sub-99", "OUT_DIR: d/sub-99 is in a subject's folder of the inputs"),
        ("d/derivatives/../sub-01/new", "OUT_DIR: d/derivatives/../sub-01/new is in a subject's folder"),
        ("table.tsv", "OUT_DIR: table.tsv is a file, expected a folder"),
        ("table.tsv/new", "table.tsv is a file, expected a folder"),
        ("other", "describes a data set that gpumask didn't make. Choose another folder for the outputs."),
    ],
)
def test_output_folders(folder, refused, out, message, dry):
    (folder / "link").symlink_to("d")
    (folder / "other").mkdir()
    (folder / "other" / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "fMRIPrep"}]}')
    error = refused(f"cohort d {out} participant --atlas atlas-Toy_dseg.nii.gz{dry}")
    assert error.startswith("gpumask cohort: error: ")
    assert message in error


def test_a_summary_isnt_written_to_the_inputs(refused):
    assert "OUT_DIR: d is the folder of the inputs" in refused("cohort d d group")


def test_derivatives_in_the_folder_of_the_inputs(folder):
    assert run("cohort d d/derivatives/gpumask participant --atlas atlas-Toy_dseg.nii.gz") == 0
    assert len(list((folder / "d" / "derivatives").rglob("*stat-mean_timeseries.tsv"))) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--confounds-strategy simpel", "Unknown confounds strategy 'simpel'"),
        ("--confounds-strategy simple --confounds-columns csf", "exclude each other"),
        ("--confounds-strategy ica_aroma", "ica_aroma: expected images *_desc-smoothAROMAnonaggr_bold, got run.nii.gz"),
        ("--t-r 1 --t-r 2", "argument --t-r: given twice, expected once"),
        ("--lut a.tsv b.tsv", "--lut: expected one for each --atlas, got 2 for 1"),
        ("--fd-threshold 0", "argument --fd-threshold: expected a positive number"),
    ],
)
def test_extract(refused, options, message):
    assert message in refused(f"{EXTRACT} {options}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--out table.tsv", "--out: table.tsv is a file, expected a folder"),
        ("--out table.tsv/x", "is a file, expected a folder"),
        ("--confounds no.tsv", "--confounds: no such file: no.tsv"),
        ("--confounds-strategy simple", "--confounds-strategy: requires --confounds (auto: "),
        ("--fd-threshold 0.5", "--fd-threshold: requires --confounds (auto: "),
        ("--atlas-x", "unrecognized arguments: --atlas-x. Did you mean --atlas?"),
    ],
)
def test_extract_without_a_table(refused, line, message):
    assert message in refused(f"extract run.nii.gz --atlas atlas-Toy_dseg.nii.gz {line}")


@pytest.mark.parametrize(
    ("package", "line", "pip"),
    [
        ("nilearn", f"{COHORT} --confounds-strategy simple", "pip install 'gpumask[fmriprep]'"),
        ("nilearn", f"{COHORT} --confounds-strategy simple --dry-run", "pip install 'gpumask[fmriprep]'"),
        ("nilearn", f"{EXTRACT} --confounds-strategy simple", "pip install 'gpumask[fmriprep]'"),
        ("distributed", f"{COHORT} --dask-scheduler tcp://x:1 --dry-run", "pip install 'gpumask[dask]'"),
        ("pyarrow", f"{COHORT} --store x.parquet --dry-run", "pip install 'gpumask[parquet]'"),
        ("matplotlib", f"{COHORT} --figures --dry-run", "pip install 'gpumask[report]'"),
    ],
)
def test_missing_extras(refused, monkeypatch, package, line, pip):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else found(name, *rest)
    )
    assert pip in refused(line)


# Spelling


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("--confound", "--confounds"),
        ("--tr", "--t-r"),
        ("--TR", "--t-r"),
        ("--smoothing", "--smoothing-fwhm"),
        ("--fwhm", "--smoothing-fwhm"),
        ("--lowpass=0.1", "--low-pass"),
        ("--standardise", "--standardize"),
        ("-atlas", "--atlas"),
        ("--confounds_collumns", "--confounds-columns"),
    ],
)
def test_an_unknown_option_suggests_the_nearest(refused, word, near):
    """Even where a required option lacks, which argparse would complain of first."""
    for line in (f"extract run.nii.gz {word} x", f"{EXTRACT} {word} x"):
        assert f". Did you mean {near}?" in refused(line)


def test_an_option_that_is_like_no_other(refused):
    assert refused(f"{EXTRACT} --qqq").endswith("error: unrecognized arguments: --qqq\n")


def test_negative_numbers_and_short_options_are_no_typos(folder):
    assert run(f"{EXTRACT} --background-label -1 --confounds-columns csf -vv") == 0


# What works


@pytest.mark.parametrize("command", ["", "extract", "cohort", "info", "demo"])
def test_versions(capsys, command):
    assert run(f"{command} --version") == 0
    assert capsys.readouterr().out == f"gpumask {__version__}\n"


A, B = "atlas-Toy_dseg.nii.gz", "Own=atlas-Fine_dseg.nii.gz"


@pytest.mark.parametrize(
    "words",
    [
        f"d out participant --atlas {A} {B}",
        f"d out participant --atlas {A} --atlas {B}",
        f"--atlas {A} {B} d out participant",  # as before several were taken
        f"--atlas {A} {B} --detrend d out participant",
        f"d out participant --participant-label 01 --participant-label sub-01 --atlas {A} {B}",
        f"--participant-label 01 d out participant --atlas {A} {B}",
        f"--task-id rest --atlas {A} {B} --no-relmat d out participant",
        f"d out --atlas {A} {B} --task-id rest --participant-label 01 participant",
        f"d out --task-id rest --no-relmat participant --atlas {A} {B}",
    ],
)
def test_several_atlases(folder, words):
    assert run(f"cohort {words}") == 0
    tables = [path.name.split("atlas-")[1] for path in (folder / "out").rglob("*_timeseries.tsv")]
    assert sorted(tables) == ["Own_stat-mean_timeseries.tsv"] * 2 + ["Toy_stat-mean_timeseries.tsv"] * 2


def test_participants_given_in_parts_are_all_used(folder):
    cohorts.make_cohort(folder / "e", 6, bad=False)
    assert run(f"cohort e out participant --participant-label 01 --participant-label 03 --atlas {A}") == 0
    assert {path.name for path in (folder / "out").glob("sub-*")} == {"sub-01", "sub-03"}


def test_confounds_given_in_parts_are_all_used(folder):
    (folder / "second.nii.gz").write_bytes((folder / "run.nii.gz").read_bytes())
    line = f"extract run.nii.gz second.nii.gz --atlas {A} --out o --confounds-columns csf"
    assert run(f"{line} --confounds table.tsv --confounds table.tsv") == 0


@pytest.mark.parametrize(
    ("words", "n_runs", "n_atlases"),
    [
        (f"run.nii.gz second.nii.gz --atlas {A} {B}", 2, 2),
        (f"run.nii.gz --atlas {A} --atlas {B} --detrend", 1, 2),
        (f"--atlas {A} run.nii.gz second.nii.gz", 2, 1),  # as before several were taken
        (f"--detrend --atlas {A} run.nii.gz --t-r 2", 1, 1),
        (f"--atlas={A} run.nii.gz", 1, 1),
    ],
)
def test_several_atlases_of_extract(folder, capsys, words, n_runs, n_atlases):
    (folder / "second.nii.gz").write_bytes((folder / "run.nii.gz").read_bytes())
    assert run(f"extract {words} --out o") == 0
    assert capsys.readouterr().out.count("\n") == n_runs * n_atlases
    assert len(list((folder / "o").glob("*_timeseries.tsv"))) == n_runs * n_atlases
    for name in ("atlas-Toy", "atlas-Own")[:n_atlases]:  # as if alone
        label = A if name == "atlas-Toy" else B
        assert run(f"extract run.nii.gz --atlas {label} --out p {'--detrend' * ('--detrend' in words)}") == 0
        table = f"run_{name}_stat-mean_timeseries.tsv"
        assert (folder / "o" / table).read_bytes() == (folder / "p" / table).read_bytes()


def test_verbose(folder, capsys):
    (folder / "broken.nii.gz").write_bytes((folder / "run.nii.gz").read_bytes()[:3000])
    line = f"extract run.nii.gz broken.nii.gz --atlas {A} --out o"
    assert run(line) == 1
    assert "Traceback" not in capsys.readouterr().err
    for option in ("-v", "--verbose"):
        assert run(f"{line} --overwrite {option}") == 1
        error = capsys.readouterr().err
        assert "Traceback (most recent call last):\n" in error
        assert "run.nii.gz: read 0." in error
        assert "wrote run_atlas-Toy_stat-mean_timeseries.tsv" in error
    assert run(f"{COHORT} -v") == 0
    assert capsys.readouterr().err.count(" reduce ") == 2
    assert run("cohort no out participant -v --atlas no.nii") == 2
    assert "Traceback" in capsys.readouterr().err


def test_module_with_warnings_as_errors(folder):
    words = ["-W", "error", "-m", "gpumask", "cohort", "--atlas", A, "d", "out", "participant"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "0/2 runs [00:00<?]\n")


# Confounds of extract as cohort has them


def columns_without(table, confounds, kept=slice(None)):
    """Residuals of a least-squares fit with an intercept, by NumPy."""
    design = np.column_stack([np.ones(len(confounds)), confounds])[kept]
    return table[kept] - design @ np.linalg.lstsq(design, table[kept], rcond=None)[0]


def of_extract(folder, options, out):
    assert run(f"extract run.nii.gz --atlas {A} --out {out} {options}") == 0
    return pd.read_table(folder / out / "run_atlas-Toy_stat-mean_timeseries.tsv").to_numpy()


def test_derivatives_and_censoring(folder):
    """n/a in the first row of derivatives is the value below it; volumes that move are left out."""
    raw = of_extract(folder, "", "raw")
    table = pd.read_table("table.tsv", na_values="n/a").bfill()
    kept = np.flatnonzero(~(pd.read_table("table.tsv", na_values="n/a")["framewise_displacement"] > 0.5))
    assert len(kept) == 39
    cases = {
        "--confounds table.tsv": (list(table), slice(None)),
        "--confounds table.tsv --confounds-columns trans_*": (["trans_x", "trans_x_derivative1"], slice(None)),
        "--confounds table.tsv --confounds-columns csf --fd-threshold 0.5 --min-time 0": (["csf"], kept),
        "--confounds table.tsv --fd-threshold 0.5 --min-time 0": (list(table), kept),
    }
    for number, (options, (columns, rows)) in enumerate(cases.items()):
        expected = columns_without(raw, table[columns].to_numpy(), rows)
        found = of_extract(folder, options, f"o{number}")
        found = found - found.mean(axis=0)
        np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(raw).max())


def test_the_same_as_cohort(folder):
    image = next((folder / "d").rglob("*run-1*_bold.nii.gz"))
    mask = next((folder / "d").rglob("*run-1*_mask.nii.gz"))
    options = f"--atlas {A} --confounds-columns trans_x* csf --fd-threshold 0.5 --min-time 0 --high-pass 0.02"
    lut = A.replace(".nii.gz", ".tsv")
    assert run(f"extract {image} --mask {mask} --lut {lut} --confounds auto --out o {options}") == 0
    assert run(f"cohort d out participant --min-coverage 0 {options}") == 0
    [table] = (folder / "o").glob("*_timeseries.tsv")
    of_cohort = pd.read_table(next((folder / "out").rglob(table.name))).dropna(axis=1, how="all")
    pd.testing.assert_frame_equal(of_cohort, pd.read_table(table), check_exact=True)


def test_strategies_of_extract(folder):
    nilearn = pytest.importorskip("nilearn.interfaces.fmriprep")
    from nilearn.signal import clean

    rng = np.random.default_rng(0)
    names = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    names += ["csf", "white_matter", "global_signal"]
    table = pd.DataFrame(rng.normal(size=(40, len(names))), columns=names)
    for name in names:
        table[f"{name}_derivative1"] = table[name].diff()
        table[f"{name}_power2"] = table[name] ** 2
        table[f"{name}_derivative1_power2"] = table[f"{name}_derivative1"] ** 2
    table["cosine00"] = np.cos(np.pi * (np.arange(40) + 0.5) / 40)
    table["framewise_displacement"] = [np.nan, *rng.uniform(0, 0.1, 39)]
    stem = "sub-01_task-rest"
    table.to_csv(f"{stem}_desc-confounds_timeseries.tsv", sep="\t", index=False, na_rep="n/a")
    (folder / f"{stem}_desc-confounds_timeseries.json").write_text("{}")
    image = folder / f"{stem}_desc-preproc_bold.nii.gz"
    (folder / "run.nii.gz").rename(image)
    line = f"extract {image.name} --atlas {A} --out"
    assert run(f"{line} raw") == 0
    assert run(f"{line} o --confounds auto --confounds-strategy simple --standardize zscore_sample") == 0
    confounds, _ = nilearn.load_confounds_strategy(str(image), "simple")
    [raw], [found] = ([pd.read_table(path).to_numpy() for path in (folder / o).glob("*.tsv")] for o in ("raw", "o"))
    expected = clean(raw, confounds=confounds, detrend=False, standardize="zscore_sample")
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_ica_aroma(folder):
    """Of the images that it has denoised, and not of others next to them."""
    pytest.importorskip("nilearn")
    for image in (folder / "d").rglob("*preproc_bold.nii.gz"):
        img = nib.load(image)
        data = np.asanyarray(img.dataobj) + 100 * np.sin(np.arange(40))
        cohorts.save(str(image).replace("preproc", "smoothAROMAnonaggr"), data.astype("f4"), img.affine, 2.0)
    rng = np.random.default_rng(0)
    confounds = rng.normal(size=(40, 3))
    table = pd.DataFrame(confounds, columns=["csf", "white_matter", "cosine00"])
    for path in (folder / "d").rglob("*_timeseries.tsv"):
        table.to_csv(path, sep="\t", index=False)
        path.with_suffix(".json").write_text("{}")
    assert run(f"{COHORT} --confounds-strategy ica_aroma --min-coverage 0") == 0
    for path in (folder / "out").rglob("*_timeseries.tsv"):
        name = path.name.partition("_atlas-")[0]
        [image] = (folder / "d").rglob(f"{name}_desc-smoothAROMAnonaggr_bold.nii.gz")
        assert run(f"extract {image} --atlas {A} --lut {A[:-7]}.tsv --out raw --mask {mask_of(image)} --overwrite") == 0
        raw = pd.read_table(next((folder / "raw").glob(f"{name}_*.tsv")))
        found = pd.read_table(path)[raw.columns].to_numpy()
        expected = columns_without(raw.to_numpy(), confounds)
        np.testing.assert_allclose(found - found.mean(axis=0), expected, atol=1e-3)


def mask_of(image):
    return str(image).replace("smoothAROMAnonaggr_bold", "brain_mask")


# Lengths


@pytest.mark.parametrize("n_rows", [38, 39, 41, 60])
@pytest.mark.parametrize(
    "options",
    ["--confounds-columns csf", "--fd-threshold 0.5", "--confounds-columns csf --fd-threshold 0.5"],
)
def test_one_message_for_other_lengths(folder, capsys, options, n_rows):
    """Whether the row of the volume that moves is in the table or beyond the run."""
    image, table = next((folder / "d").rglob("*run-1*_bold.nii.gz")), next((folder / "d").rglob("*run-1*.tsv"))
    rows = pd.read_table(table, dtype=str, keep_default_na=False)
    rows = pd.concat([rows, rows, rows])[1 : n_rows + 1]
    rows["framewise_displacement"] = [*["0.1"] * (n_rows - 1), "0.9"]
    rows.to_csv(table, sep="\t", index=False)
    message = f"error: {table} has {n_rows} rows, but {image} has 40 volumes."
    assert run(f"{COHORT} {options}") == 1
    assert message in capsys.readouterr().err
    assert run(f"extract {image} --atlas {A} --confounds auto --out o {options}") == 1
    assert message in capsys.readouterr().err
    (folder / "runs.tsv").write_text(f"bold\tconfounds\n{image}\t{table}\n")
    assert run(f"cohort runs.tsv of_list participant --atlas {A} {options}") == 1
    assert message in capsys.readouterr().err


def test_too_few_volumes_for_a_filter(folder, capsys):
    """A band of order 5 has 11 taps, and 3 times as many volumes are added at the ends: more are needed."""
    nib.save(nib.load("run.nii.gz").slicer[..., :33], "short.nii.gz")
    line = f"--atlas {A} --low-pass 0.1 --high-pass 0.01 --out o"
    assert run(f"extract short.nii.gz {line}") == 1
    assert "short.nii.gz: error: 33 volumes are left, but this filter needs 34 or more." in capsys.readouterr().err
    nib.save(nib.load("run.nii.gz").slicer[..., :34], "long.nii.gz")
    assert run(f"extract long.nii.gz {line}") == 0


def test_too_few_volumes_left_by_censoring(folder, capsys):
    table = pd.read_table("table.tsv", na_values="n/a")
    table.loc[:7, "framewise_displacement"] = 0.9
    table.to_csv("table.tsv", sep="\t", index=False)
    line = f"{EXTRACT} --confounds-columns csf --fd-threshold 0.5 --min-time 0 --low-pass 0.1 --high-pass 0.01"
    assert run(line) == 1
    assert "32 volumes are left, but this filter needs 34 or more" in capsys.readouterr().err
