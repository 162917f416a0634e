"""The command line: arguments, output, exit codes and silence where it is due."""

import argparse
import io
import json
import logging
import os
import re
import shlex
import subprocess
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from gpumask import NiftiLabelsMasker, __version__, choices, cli, devices
from gpumask.cli.output import configured, refuse
from gpumask.cli.parser import build_parser, options_of
from gpumask.cli.values import number, positive
from gpumask.images import gzip_decoders
from gpumask.kernels import compiled
from gpumask.kernels.segments import STRATEGIES
from gpumask.settings import Settings

BOLD = "sub-1_task-rest_desc-preproc_bold.nii.gz"
TABLE = "sub-1_task-rest_atlas-Toy_stat-mean_timeseries.tsv"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A current directory with an atlas, a mask, a look-up table, three runs (one is broken) and confounds."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    labels = np.zeros((6, 5, 4), np.int16)
    labels[:2], labels[2:4], labels[4:] = 3, 7, 12
    nib.save(nib.Nifti1Image(labels, np.eye(4)), "atlas-Toy_dseg.nii.gz")
    pd.DataFrame({"index": [3, 7, 12], "name": [3, 7, 12]}).to_csv("atlas-Toy_dseg.tsv", sep="\t", index=False)
    nib.save(nib.Nifti1Image((labels != 12).astype(np.uint8), np.eye(4)), "mask.nii.gz")
    pd.DataFrame({"index": [3, 7, 12], "name": ["left", "mid", "right"]}).to_csv("lut.tsv", sep="\t", index=False)
    for name in (BOLD, "other.nii"):
        img = nib.Nifti1Image(rng.integers(100, 900, (6, 5, 4, 40)).astype(np.int16), np.eye(4))
        img.header.set_xyzt_units("mm", "sec")
        img.header["pixdim"][4] = 2.0
        nib.save(img, name)
    (tmp_path / "broken.nii.gz").write_bytes((tmp_path / BOLD).read_bytes()[:3000])
    table = pd.DataFrame(rng.normal(size=(40, 2)), columns=["trans_x", "csf"])
    table["fd"] = [np.nan, *range(39)]
    table.to_csv("confounds.tsv", sep="\t", index=False, na_rep="n/a")
    return tmp_path


def run(line):
    return cli.main(shlex.split(line))


def values(path):
    return np.loadtxt(path, skiprows=1)


def test_extract(folder, capsys):
    assert run(f"extract {BOLD} other.nii --atlas atlas-Toy_dseg.nii.gz") == 0
    out, err = capsys.readouterr()
    assert err == ""
    other = "other_atlas-Toy_stat-mean_timeseries.tsv"
    assert re.fullmatch(
        rf"{TABLE}\t40 volumes x 3 regions\t\d+\.\d\d s\n{other}\t40 volumes x 3 regions\t\d+\.\d\d s\n", out
    )
    for image, table in ((BOLD, TABLE), ("other.nii", other)):
        assert np.array_equal(values(table), NiftiLabelsMasker("atlas-Toy_dseg.nii.gz").fit_transform(image))


def test_every_option_reaches_the_masker(folder):
    line = (
        f"extract {BOLD} --atlas atlas-Toy_dseg.nii.gz --lut lut.tsv --mask mask.nii.gz --confounds confounds.tsv "
        "--confounds-columns csf trans_x --smoothing-fwhm 2.5 --low-pass 0.2 --high-pass 0.02 --t-r 1.5 --detrend "
        "--standardize psc --strategy sum --resampling-target labels --background-label 7 --device cpu --out a/b"
    )
    assert run(line) == 0
    path = folder / "a" / "b" / TABLE.replace("mean", "sum")
    sidecar = json.loads(path.with_suffix(".json").read_text())
    expected = {
        "smoothing_fwhm": 2.5,
        "low_pass": 0.2,
        "high_pass": 0.02,
        "detrend": True,
        "standardize": "psc",
        "strategy": "sum",
        "resampling_target": "labels",
        "background_label": 7,
    }
    assert {name: sidecar["MaskerParameters"][name] for name in expected} == expected
    assert (sidecar["RepetitionTime"], sidecar["RepetitionTimeSource"], sidecar["Device"]) == (1.5, "given", "cpu")
    files = {"labels_img": "atlas-Toy_dseg.nii.gz", "lut": "lut.tsv", "mask_img": "mask.nii.gz"}
    assert sorted(sidecar["Sources"]) == sorted(
        (folder / name).as_uri() for name in (BOLD, "confounds.tsv", *files.values())
    )
    assert sidecar["NuisanceParameters"] == ["csf", "trans_x"]
    assert path.read_text().splitlines()[0] == "left"
    confounds = pd.read_table("confounds.tsv")[["csf", "trans_x"]]
    # 3 is the only region: 7 is the background, and 12 is not in the mask.
    reference = NiftiLabelsMasker(**files, **expected, t_r=1.5)
    with pytest.warns(UserWarning, match="following labels were removed"):
        expected = reference.fit_transform(BOLD, confounds=confounds)[:, 0]
    assert expected.dtype == np.float32
    assert np.array_equal(values(path).astype(np.float32), expected)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ("--resampling-target none", {"resampling_target": None}),
        ("--resampling-target data", {"resampling_target": "data"}),
        ("--background-label 7.5", {"background_label": 7.5}),
        ("--background-label -1", {"background_label": -1}),
        ("", {"standardize": None, "detrend": False, "resampling_target": "data"}),
    ],
)
def test_how_options_are_read(folder, options, parameters):
    assert run(f"extract {BOLD} --atlas atlas-Toy_dseg.nii.gz {options}") == 0
    sidecar = json.loads((folder / TABLE).with_suffix(".json").read_text())
    assert {name: sidecar["MaskerParameters"][name] for name in parameters} == parameters
    assert (sidecar["RepetitionTime"], sidecar["RepetitionTimeSource"]) == (2.0, "header")


def test_choices_are_those_of_the_settings():
    assert tuple(STRATEGIES) == choices.STRATEGIES
    options = build_parser()._subparsers._group_actions[0].choices["extract"]._option_string_actions
    assert tuple(options["--maps-strategy"].choices) == tuple(choices.MAPS_STRATEGIES)
    for name in ("standardize", "strategy", "resampling_target"):
        with pytest.raises(ValueError, match=f"'{name}' must be one of") as error:
            Settings(**{name: "other"})
        offered = {None if text == "none" else text for text in options[f"--{name.replace('_', '-')}"].choices}
        (listed,) = re.findall(r"\(.*?\)", str(error.value))
        assert offered - {None} == set(re.findall(r"'(\w+)'", listed)) - {choices.VOXEL}
        for choice in offered:
            Settings(**{name: choice})


def test_a_failed_run_is_1_and_the_others_are_written(folder, capsys):
    assert run(f"extract broken.nii.gz {BOLD} no.nii --atlas atlas-Toy_dseg.nii.gz") == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{TABLE}\t")
    first, second = err.splitlines()
    assert first.startswith("broken.nii.gz: error: broken.nii.gz is truncated")
    assert second == "no.nii: error: No such file: no.nii"
    assert (folder / TABLE).exists()


def test_existing_outputs_fail_unless_overwritten(folder, capsys):
    assert run(f"extract {BOLD} --atlas atlas-Toy_dseg.nii.gz") == 0
    before = (folder / TABLE).read_bytes()
    assert run(f"extract {BOLD} --atlas atlas-Toy_dseg.nii.gz --detrend") == 1
    assert capsys.readouterr().err == (
        f"{BOLD}: error: {folder / TABLE} already exists. To replace it: overwrite=True (--overwrite).\n"
    )
    assert (folder / TABLE).read_bytes() == before
    assert run(f"extract {BOLD} --atlas atlas-Toy_dseg.nii.gz --detrend --overwrite") == 0
    assert (folder / TABLE).read_bytes() != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--confounds-columns csf tran_x", "confounds.tsv has no column tran_x. Its 3 columns include trans_x."),
        (
            "--confounds-columns fd",
            "confounds.tsv: Confounds must be finite numbers; NaN, infinite values or text are in column 'fd' "
            "(volume 0, 1). fMRIPrep writes n/a in the first volumes of derivatives",
        ),
        (
            "",
            "confounds.tsv: Confounds must be finite numbers; NaN, infinite values or text are in column 'fd' "
            "(volume 0, 1).",
        ),
    ],
)
def test_bad_confounds_fail_their_run(capsys, options, message):
    table = pd.read_table("confounds.tsv")
    table.loc[1, "fd"] = np.nan
    table.to_csv("confounds.tsv", sep="\t", index=False, na_rep="n/a")
    line = f"extract {BOLD} --atlas atlas-Toy_dseg.nii.gz --confounds confounds.tsv {options}"
    assert run(line) == 1
    assert capsys.readouterr().err.startswith(f"{BOLD}: error: {message}")


def test_a_first_volume_without_derivatives_is_filled_as_in_a_cohort(folder):
    assert run(f"extract {BOLD} --atlas atlas-Toy_dseg.nii.gz --confounds confounds.tsv") == 0
    confounds = pd.read_table("confounds.tsv", dtype=str).astype(float).bfill()  # exact with pandas 2 too
    expected = NiftiLabelsMasker("atlas-Toy_dseg.nii.gz").fit_transform(BOLD, confounds=confounds)
    assert np.array_equal(values(TABLE), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (f"{BOLD} --atlas no.nii", "--atlas: no such file: no.nii"),
        (f"{BOLD} --mask no.nii", "--mask: no such file: no.nii"),
        (f"{BOLD} --lut no.tsv", "--lut: no such file: no.tsv"),
        (f"{BOLD} --lut confounds.tsv", "{folder}/confounds.tsv must have the columns 'index' and 'name'"),
        (f"{BOLD} --atlas broken.nii.gz", "{folder}/broken.nii.gz is truncated"),
        (f"{BOLD} --atlas lut.tsv", "{folder}/lut.tsv can't be read as an image"),
        (f"{BOLD} --device gpu", "`device` must be 'auto', 'cpu', 'cuda' or 'cuda:N'"),
        (f"{BOLD} --device cuda", "device='cuda' was requested, but can't be used: none here. Buy one. Or use"),
        (f"{BOLD} other.nii --confounds c.tsv", "--confounds: expected one table per run, got 1 for 2 run(s)"),
        (f"{BOLD} --confounds-columns csf", "--confounds-columns: requires --confounds"),
        (f"{BOLD} --low-pass 0.1 --high-pass 0.1", "--high-pass (0.1 Hz) must be lower than --low-pass (0.1 Hz)"),
        (f"{BOLD} {BOLD}", f"{BOLD} and {BOLD} would both be written to {{folder}}/{TABLE}. Give them different"),
        (f"{BOLD} --out lut.tsv", "--out: lut.tsv is a file, expected a folder"),
    ],
)
def test_wrong_usage_is_2_before_anything_runs(folder, capsys, monkeypatch, options, message):
    status = devices.CudaStatus(problem="none here", remedy="Buy one.")
    monkeypatch.setattr(devices, "cuda_status", lambda _: status)
    atlas = "" if "--atlas" in options else "--atlas atlas-Toy_dseg.nii.gz"
    before = set(folder.iterdir())
    assert run(f"extract {options} {atlas}") == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"gpumask extract: error: {message.replace('{folder}', str(folder))}")
    assert err.count("\n") == 1
    assert out == ""
    assert set(folder.iterdir()) == before


def test_unwritable_folder_exits_2(capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *args: False)
    assert run(f"extract {BOLD} --atlas atlas-Toy_dseg.nii.gz --out results") == 2
    assert capsys.readouterr().err == "gpumask extract: error: --out: no permission to write to results\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("extract --atlas a.nii", "the following arguments are required: RUN"),
        (f"extract {BOLD} --atlas a.nii --strategy mode", "argument --strategy: invalid choice: 'mode'"),
        (f"extract {BOLD} --atlas a.nii --t-r 0", "argument --t-r: expected a positive number, got '0'"),
        (f"extract {BOLD} --atlas a.nii --low-pass nan", "argument --low-pass: expected a positive number, got 'nan'"),
        (f"extract {BOLD} --atlas a.nii --smoothing-fwhm 1e8", "expected a width of at most 1000 mm, got '1e8'"),
        (f"extract {BOLD} --atlas a.nii --smoothing-fwhm x", "expected a positive number, got 'x'"),
        (f"extract {BOLD} --atlas a.nii --background-label x", "argument --background-label: invalid"),
        (f"extract {BOLD} --atlas a.nii --over", "unrecognized arguments: --over"),
    ],
)
def test_arguments_that_cannot_be_parsed_are_2(capsys, line, message):
    assert run(line) == 2
    assert message in capsys.readouterr().err


def test_version_and_help(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"gpumask {__version__}\n"
    assert run("--help") == run("extract --help") == 0
    out = capsys.readouterr().out
    assert all(f"--{name}" in out for name in options_of("extract"))


def test_warnings_are_lines_that_name_the_run(capsys):
    data = nib.load(BOLD).get_fdata()
    data[0, 0, 0, :2] = np.nan
    nib.save(nib.Nifti1Image(data.astype(np.float32), np.diag([1, 1, 1.01, 1])), "nan.nii")
    assert run(f"extract nan.nii {BOLD} --atlas atlas-Toy_dseg.nii.gz --mask mask.nii.gz") == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": warning: ")[0] for line in lines].count("nan.nii") == 2
    assert sum(line.startswith(f"{BOLD}: warning: After applying mask to the labels image, the") for line in lines) == 1
    assert sum("Non-finite values detected." in line for line in lines) == 1
    assert len(lines) == 3


def test_warnings_about_the_atlas_name_it(capsys):
    labels = nib.load("atlas-Toy_dseg.nii.gz").get_fdata()
    labels[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(labels, np.eye(4)), "nan.nii")
    assert run(f"extract {BOLD} --atlas nan.nii --lut lut.tsv") == 0
    assert capsys.readouterr().err == (
        "nan.nii: warning: Non-finite values detected. These values will be replaced with zeros.\n"
    )


def test_interruption_is_130_and_leaves_nothing_half_written(folder, capsys, monkeypatch):
    def interrupted(number):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    assert run(f"extract {BOLD} --atlas atlas-Toy_dseg.nii.gz --out o") == 130
    assert capsys.readouterr().err == "gpumask: interrupted\n"
    assert list((folder / "o").iterdir()) == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run(f"extract {BOLD} other.nii broken.nii.gz --atlas atlas-Toy_dseg.nii.gz") == 1
    drawn = terminal.getvalue()
    assert "\n" not in drawn.partition("broken.nii.gz: error")[0]
    lines = drawn.replace("\n", "\r").split("\r")
    bars = [line for line in lines if line.strip() and "error" not in line]
    assert bars[0] == "1/3 sub-1_task-rest:   0%|          | 0/40 [00:00<?, ? vol/s]"
    assert any(line.startswith("2/3 other:   0%|") for line in bars)
    assert drawn.endswith("\n")
    error = next(i for i, line in enumerate(lines) if "broken.nii.gz: error" in line)
    assert not lines[error - 1].strip()  # the bar is blanked before anything else is shown
    assert capsys.readouterr().out.count("\n") == 2


def test_the_command_in_a_pipe(folder):
    command = [sys.executable, "-W", "error", "-c", "import sys; from gpumask.cli import main; sys.exit(main())"]
    line = ["extract", BOLD, "no.nii", "--atlas", "atlas-Toy_dseg.nii.gz"]
    done = subprocess.run([*command, *line], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith(f"{TABLE}\t40 volumes x 3 regions\t")
    assert done.stderr == "no.nii: error: No such file: no.nii\n"


def test_a_reader_that_leaves_early_gets_no_traceback():
    code = "import sys; from gpumask.cli import main; sys.exit(main(['info']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_importing_the_command_line_is_cheap():
    code = (
        "import sys, gpumask.cli; print(gpumask.cli.main(['--help'])); "
        "print(sorted({'numpy', 'scipy', 'nibabel', 'sklearn', 'pandas', 'cupy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("0\n[]\n")


def test_extract_imports_only_what_it_needs():
    heavy = ("sklearn", "scipy.signal", "scipy.stats", "scipy.interpolate", "pandas", "joblib", "nilearn", "matplotlib")
    code = (
        "import sys, gpumask.cli; print(gpumask.cli.main(sys.argv[1:])); "
        f"print(sorted(set({heavy}) & set(sys.modules)))"
    )
    line = f"extract {BOLD} --atlas atlas-Toy_dseg.nii.gz --lut lut.tsv --detrend --standardize psc --device cpu"
    command = [sys.executable, "-c", code, *line.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith(" s\n0\n[]\n")
    assert done.stderr == ""


def test_info_without_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(devices, "cuda_status", lambda _: devices.CudaStatus(problem="none here", remedy="Buy one."))
    monkeypatch.setattr(devices, "driver_cuda_version", lambda: None)
    monkeypatch.setattr(gzip_decoders, "igzip", gzip_decoders.gzip)
    monkeypatch.setattr(compiled, "problem", ImportError("no such symbol"))
    assert run("info") == 0
    facts = dict(re.split("  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["gpumask"] == __version__
    assert facts["numpy"] == np.__version__
    assert {"python", "scipy", "nibabel", "nilearn", "isal"} < facts.keys()
    assert any(name.startswith("cupy") for name in facts)
    assert facts["driver"] == "no NVIDIA driver found"
    assert facts["GPU"] == "can't be used: none here"
    assert facts["remedy"] == "Buy one."
    assert facts["gzip decoder"].startswith("zlib")
    assert facts["kernels"].startswith("NumPy and SciPy, several times slower")
    assert int(facts["cores"]) > 0


def test_info_with_a_gpu(capsys, monkeypatch):
    status = devices.CudaStatus(devices=("H100", "A2"))
    monkeypatch.setattr(devices, "cuda_status", lambda _: status)
    monkeypatch.setattr(devices, "driver_cuda_version", lambda: (13, 1))
    assert run("info") == 0
    out = capsys.readouterr().out
    assert re.search(r"^driver +CUDA 13\.1$", out, re.MULTILINE)
    assert re.search(r"^cuda:0 +H100\ncuda:1 +A2$", out, re.MULTILINE)
    assert "remedy" not in out


def test_info_with_a_good_gpu_and_a_bad_one(capsys, monkeypatch):
    def status(index):
        bad = ("CUDA device 0 computes wrong results", "Check it.") if index == 0 else ()
        return devices.CudaStatus(("H100", "A2"), *bad)

    monkeypatch.setattr(devices, "cuda_status", status)
    assert run("info") == 0
    facts = dict(re.split("  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["cuda:0"] == "H100, can't be used: CUDA device 0 computes wrong results"
    assert (facts["remedy"], facts["cuda:1"]) == ("Check it.", "A2")


def test_numbers():
    assert [number(text) for text in ("7", "-7", "7.5")] == [7, -7, 7.5]
    assert positive("1e-2") == 0.01
    with pytest.raises(argparse.ArgumentTypeError, match="got 'inf'"):
        positive("inf")


def test_the_real_run(data, folder, capsys):
    bold = data / "sub-02_task-oneback_run-1_bold.nii.gz"
    atlas = data / "sub-02_space-bold_atlas-Schaefer100TianS1_dseg.nii.gz"
    confounds = data / "sub-02_task-oneback_run-1_desc-confounds_timeseries.tsv"
    line = f"extract {bold} --atlas {atlas} --high-pass 0.01 --confounds {confounds} --confounds-columns rot_x rot_y"
    assert run(line) == 0
    path = folder / "sub-02_task-oneback_run-1_atlas-Schaefer100TianS1_stat-mean_timeseries.tsv"
    assert capsys.readouterr().out.startswith(f"{path.name}\t156 volumes x 116 regions\t")
    reference = NiftiLabelsMasker(atlas, high_pass=0.01, t_r=2.0)
    expected = reference.fit_transform(bold, confounds=pd.read_table(confounds)[["rot_x", "rot_y"]])
    assert np.array_equal(values(path), expected)


def test_an_error_without_a_message_is_named(capsys):
    with configured(logging.INFO):
        assert refuse("cohort", MemoryError()) == 2
    assert capsys.readouterr().err == "gpumask cohort: error: MemoryError\n"
