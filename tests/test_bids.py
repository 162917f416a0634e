"""Finding runs by names, in folders that look as fMRIPrep's do, and names and metadata of what is made of them."""

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gpumask import __version__
from gpumask.bids import Problem, Run, find_runs, read_manifest
from gpumask.bids.metadata import RepetitionTime, metadata_files, repetition_time
from gpumask.bids.names import atlas_name, output_name, run_name
from gpumask.bids.sidecars import sidecar, write_dataset_description

MNI = "MNI152NLin2009cAsym"
RUN = f"sub-01_task-rest_space-{MNI}_res-2"


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        folder.joinpath(name).touch()


def add_run(root, name, space=f"space-{MNI}_res-2", but=(), version=25):
    """The files that fMRIPrep writes of a run, without those whose names contain one of `but`."""
    owner = re.match("(sub-[^_]+)(?:_(ses-[^_]+))?", name)
    of_space = f"{name}_{space}" if space else name
    confounds = "timeseries" if version >= 20 else "regressors"
    names = [
        f"{of_space}_desc-preproc_bold.nii.gz",
        f"{of_space}_desc-preproc_bold.json",
        f"{of_space}_desc-brain_mask.nii.gz",
        f"{of_space}_desc-brain_mask.json",
        f"{of_space}_boldref.nii.gz",
        f"{of_space}_desc-aseg_dseg.nii.gz",
        f"{name}_desc-confounds_{confounds}.tsv",
        f"{name}_desc-confounds_{confounds}.json",
        f"{name}_desc-hmc_boldref.nii.gz",
        f"{name}_from-orig_to-boldref_mode-image_desc-hmc_xfm.txt",
        f"{name}_space-fsLR_den-91k_bold.dtseries.nii",
        f"{name}_space-fsLR_den-91k_bold.json",
        f"{name}_hemi-L_space-fsaverage5_bold.func.gii",
        f"{name}_hemi-L_space-fsaverage5_bold.json",
        f"{name}_desc-carpetplot_bold.svg",
    ]
    folder = root.joinpath(*filter(None, owner.groups()), "func")
    touch(folder, *(file for file in names if not any(part in file for part in but)))
    return folder


@pytest.fixture
def root(tmp_path):
    """A data set with all that fMRIPrep puts beside the runs, and none yet."""
    root = tmp_path / "fmriprep"
    touch(root, ".bidsignore", "sub-01.html", "CITATION.md")
    write_json(root / "dataset_description.json", {"GeneratedBy": [{"Name": "fMRIPrep", "Version": "25.1.0"}]})
    touch(root / "sub-01" / "anat", "sub-01_desc-preproc_T1w.nii.gz", "sub-01_hemi-L_pial.surf.gii")
    touch(root / "sub-01" / "figures", "sub-01_task-rest_desc-carpetplot_bold.svg")
    touch(root / "logs", "CITATION.html")
    touch(root / "sourcedata" / "freesurfer" / "sub-01" / "mri", "aseg.mgz")
    return root


def names(runs):
    return [run.name for run in runs]


# Runs that are found


def test_all_files_of_a_run(root):
    folder = add_run(root, "sub-01_task-rest")
    assert find_runs(root) == (
        [
            Run(
                path=f"{folder}/{RUN}_desc-preproc_bold.nii.gz",
                confounds=f"{folder}/sub-01_task-rest_desc-confounds_timeseries.tsv",
                mask=f"{folder}/{RUN}_desc-brain_mask.nii.gz",
                sidecar=f"{folder}/{RUN}_desc-preproc_bold.json",
                name=RUN,
                folder="sub-01/func",
                source=str(root),
            )
        ],
        [],
    )


def test_sessions_tasks_and_runs_are_sorted(root):
    stems = [
        "sub-01_ses-post_task-rest_run-2",
        "sub-01_ses-post_task-rest_run-1",
        "sub-01_ses-baseline_task-nback_acq-mb4_dir-AP",
        "sub-01_ses-baseline_task-nback_acq-mb4_dir-PA",
        "sub-10_task-rest",
        "sub-02_task-rest",
    ]
    for stem in stems:
        add_run(root, stem)
    found, problems = find_runs(root)
    assert problems == []
    assert names(found) == [f"{stem}_space-{MNI}_res-2" for stem in sorted(stems)]
    assert [run.folder for run in found] == ["sub-01/ses-baseline/func"] * 2 + ["sub-01/ses-post/func"] * 2 + [
        "sub-02/func",
        "sub-10/func",
    ]
    for run in found:
        stem = run.name.removesuffix(f"_space-{MNI}_res-2")
        assert Path(run.confounds).name == f"{stem}_desc-confounds_timeseries.tsv"
        assert Path(run.mask).name == f"{run.name}_desc-brain_mask.nii.gz"


def test_old_names_of_confounds(root):
    folder = add_run(root, "sub-01_task-rest", version=1)
    assert find_runs(root)[0][0].confounds == f"{folder}/sub-01_task-rest_desc-confounds_regressors.tsv"


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"participants": ["sub-02"]}, ["sub-02_ses-a_task-rest_run-01"]),
        ({"participants": ["02", "sub-01"], "tasks": ["task-nback"]}, ["sub-01_ses-a_task-nback"]),
        ({"sessions": ["ses-b"]}, ["sub-01_ses-b_task-rest_run-1"]),
        ({"runs": ["1"]}, ["sub-01_ses-b_task-rest_run-1", "sub-02_ses-a_task-rest_run-01"]),
        ({"runs": ["run-01"], "sessions": ["a"]}, ["sub-02_ses-a_task-rest_run-01"]),
        ({"runs": [1], "sessions": ["a"]}, ["sub-02_ses-a_task-rest_run-01"]),
    ],
)
def test_filters(root, filters, expected):
    stems = (
        "sub-01_ses-a_task-nback",
        "sub-01_ses-b_task-rest_run-1",
        "sub-02_ses-a_task-rest_run-01",
        "sub-03_task-rest",
    )
    for stem in stems:
        add_run(root, stem)
    found, problems = find_runs(root, **filters)
    assert names(found) == [f"{stem}_space-{MNI}_res-2" for stem in expected]
    assert [Path(problem.path).name for problem in problems] == (["sub-02"] if "tasks" in filters else [])


@pytest.mark.parametrize(
    ("given", "space"),
    [
        ("T1w", "space-T1w"),
        ("MNIPediatricAsym:cohort-2", "space-MNIPediatricAsym_cohort-2_res-1"),
        ("MNIPediatricAsym:cohort-1", "space-MNIPediatricAsym_cohort-1_res-1"),
        ("space-MNIPediatricAsym_cohort-1_res-1", "space-MNIPediatricAsym_cohort-1_res-1"),
        (MNI, f"space-{MNI}"),
        (f"{MNI}:res-2", f"space-{MNI}_res-2"),
        ("func", ""),
    ],
)
def test_spaces(root, given, space):
    for every in (
        "space-T1w",
        "space-MNIPediatricAsym_cohort-1_res-1",
        "space-MNIPediatricAsym_cohort-2_res-1",
        f"space-{MNI}",
        f"space-{MNI}_res-2",
        "",
    ):
        folder = add_run(root, "sub-01_task-rest", every)
    found, problems = find_runs(root, space=given)
    stem = "_".join(filter(None, ("sub-01_task-rest", space)))
    assert (names(found), problems) == ([stem], [])
    assert found[0].mask == f"{folder}/{stem}_desc-brain_mask.nii.gz"
    assert found[0].sidecar == f"{folder}/{stem}_desc-preproc_bold.json"


def test_single_echoes_are_passed_over(root):
    folder = add_run(root, "sub-01_task-rest")
    touch(folder, *(f"sub-01_task-rest_echo-{i}_desc-preproc_bold.nii.gz" for i in (1, 2, 3)))
    found, problems = find_runs(root)
    assert (names(found), problems) == ([RUN], [])
    assert Path(found[0].confounds).name == "sub-01_task-rest_desc-confounds_timeseries.tsv"


@pytest.mark.parametrize("spaces", [["space-MNI152NLin6Asym"], ["space-MNI152NLin6Asym", "space-T1w", ""]])
@pytest.mark.parametrize("label", ["1", "01"])
def test_a_first_echo_that_is_the_only_image_is_the_run(root, spaces, label):
    """Single-echo data that their names number."""
    for space in spaces:
        folder = add_run(root, "sub-01_task-rest", space, but=["preproc"])
        stem = "_".join(filter(None, (f"sub-01_task-rest_echo-{label}", space)))
        touch(folder, f"{stem}_desc-preproc_bold.nii.gz", f"{stem}_desc-preproc_bold.json")
    [run], problems = find_runs(root, space="MNI152NLin6Asym")
    stem = f"sub-01_task-rest_echo-{label}_space-MNI152NLin6Asym"
    assert problems == []
    assert (run.name, run.path) == (stem, f"{folder}/{stem}_desc-preproc_bold.nii.gz")
    assert Path(run.mask).name == "sub-01_task-rest_space-MNI152NLin6Asym_desc-brain_mask.nii.gz"
    assert Path(run.confounds).name == "sub-01_task-rest_desc-confounds_timeseries.tsv"
    assert Path(run.sidecar).name == f"{stem}_desc-preproc_bold.json"


def test_a_second_echo_alone_isnt_the_run(root):
    folder = add_run(root, "sub-01_task-rest", but=["preproc"])
    touch(folder, "sub-01_task-rest_echo-2_desc-preproc_bold.nii.gz")
    assert problems_of(root)[0][1].startswith("has only single-echo images, no combined one: ")


def test_images_of_ica_aroma(root):
    folder = add_run(root, "sub-01_task-rest")
    add_run(root, "sub-02_task-rest")
    touch(folder, f"{RUN}_desc-smoothAROMAnonaggr_bold.nii.gz", f"{RUN}_desc-smoothAROMAnonaggr_bold.json")
    [run], [problem] = find_runs(root, desc="smoothAROMAnonaggr")
    assert (run.name, run.path) == (RUN, f"{folder}/{RUN}_desc-smoothAROMAnonaggr_bold.nii.gz")
    assert Path(run.sidecar).name == f"{RUN}_desc-smoothAROMAnonaggr_bold.json"
    assert Path(run.mask).name == f"{RUN}_desc-brain_mask.nii.gz"
    assert problem.reason == "has no matching *_desc-smoothAROMAnonaggr_bold.nii.gz"
    assert [run.path.endswith(f"{RUN}_desc-preproc_bold.nii.gz") for run in find_runs(root)[0]] == [True, False]


def test_no_images_of_ica_aroma(root):
    add_run(root, "sub-01_task-rest")
    message = error_of(root, desc="smoothAROMAnonaggr")
    assert message.startswith(f"{root} has no *_desc-smoothAROMAnonaggr_bold.nii.gz in sub-*/[ses-*/]func of 1 ")


def test_problems_have_the_names_of_the_space_that_was_asked_for(root):
    add_run(root, "sub-01_task-rest", but=["mask"])
    for space in ("space-T1w", ""):
        add_run(root, "sub-02_task-rest_run-1", space)
    add_run(root, "sub-03_task-rest", but=["preproc"])
    touch(add_run(root, "sub-04_task-rest", but=["preproc"]), "sub-04_task-rest_echo-2_desc-preproc_bold.nii.gz")
    touch(root / "sub-05")
    _, problems = find_runs(root, space=f"{MNI}:res-2")
    of_space = f"space-{MNI}_res-2"
    assert [problem.name for problem in problems] == [
        RUN,
        f"sub-02_task-rest_run-1_{of_space}",
        f"sub-03_task-rest_{of_space}",
        f"sub-04_task-rest_{of_space}",
        "sub-05",
    ]
    assert find_runs(root, space="T1w")[1][0].name == "sub-01_task-rest_space-T1w"


def test_a_mask_that_isnt_needed(root):
    add_run(root, "sub-01_task-rest", but=["mask", "confounds"])
    found, problems = find_runs(root, require_mask=False)
    assert (found[0].mask, found[0].confounds, problems) == (None, None, [])


def test_metadata_is_inherited_from_the_nearest(root):
    add_run(root, "sub-01_task-rest_run-1", but=["bold.json"])
    add_run(root, "sub-01_task-rest_run-2", but=["bold.json"])
    add_run(root, "sub-02_task-nback", but=["bold.json"])
    touch(root, "bold.json", "task-rest_bold.json", "task-rest_acq-x_bold.json")
    touch(root / "sub-01", "sub-01_task-rest_run-2_bold.json")
    sidecars = [run.sidecar for run in find_runs(root)[0]]
    assert sidecars == [
        f"{root}/{name}" for name in ("task-rest_bold.json", "sub-01/sub-01_task-rest_run-2_bold.json", "bold.json")
    ]


def test_files_behind_links_that_lead_nowhere_are_found(root):
    """DataLad lists files that it has not fetched as such links."""
    folder = add_run(root, "sub-01_task-rest", but=["preproc_bold.nii"])
    folder.joinpath(f"{RUN}_desc-preproc_bold.nii.gz").symlink_to("../../.git/annex/objects/not-here")
    assert names(find_runs(root)[0]) == [RUN]


def test_a_relative_root(root, monkeypatch):
    add_run(root, "sub-01_task-rest")
    monkeypatch.chdir(root.parent)
    assert find_runs("fmriprep") == find_runs(root)


# Problems


def problems_of(root, **options):
    """What is wrong in a data set that also has a good run."""
    add_run(root, "sub-99_task-rest")
    found, problems = find_runs(root, space=f"{MNI}:res-2", **options)
    assert names(found) == [f"sub-99_task-rest_space-{MNI}_res-2"]
    return [(problem.path.removeprefix(f"{root}/"), problem.reason) for problem in problems]


def test_no_mask(root):
    add_run(root, "sub-01_task-rest", but=["mask"])
    image, reason = (
        f"sub-01/func/{RUN}_desc-preproc_bold.nii.gz",
        f"has no brain mask: expected {RUN}_desc-brain_mask.nii.gz next to it",
    )
    assert problems_of(root) == [(image, reason)]
    touch(root / "sub-01" / "func", "sub-01_task-rest_space-T1w_desc-brain_mask.nii.gz")
    assert problems_of(root) == [(image, f"{reason}, found only sub-01_task-rest_space-T1w_desc-brain_mask.nii.gz")]


def test_no_confounds(root):
    add_run(root, "sub-01_task-rest_run-1", but=["confounds"])
    add_run(root, "sub-01_task-rest_run-2")
    reason = "has no confounds: expected sub-01_task-rest_run-1_desc-confounds_timeseries.tsv next to it"
    stem = f"sub-01_task-rest_run-1_space-{MNI}_res-2"
    add_run(root, "sub-99_task-rest")
    found, problems = find_runs(root, require_confounds=True)
    assert problems == [Problem(f"{root}/sub-01/func/{stem}_desc-preproc_bold.nii.gz", reason)]
    assert len(found) == 2


@pytest.mark.parametrize(
    ("second", "what"),
    [
        (f"{RUN}_desc-preproc_bold.nii", "image"),
        (f"{RUN}_desc-brain_mask.nii", "brain mask"),
        ("sub-01_task-rest_desc-confounds_regressors.tsv", "confounds"),
    ],
)
def test_two_candidates(root, second, what):
    folder = add_run(root, "sub-01_task-rest")
    touch(folder, second)
    first = {
        "image": f"{RUN}_desc-preproc_bold.nii.gz",
        "brain mask": f"{RUN}_desc-brain_mask.nii.gz",
        "confounds": "sub-01_task-rest_desc-confounds_timeseries.tsv",
    }[what]
    candidates = ", ".join(sorted((first, second)))
    [(path, reason)] = problems_of(root)
    assert path.startswith(f"sub-01/func/{RUN}_desc-preproc_bold.nii")
    assert reason == f"has 2 candidates for its {what}, expected one: {candidates}"


def test_two_candidates_for_metadata(root):
    add_run(root, "sub-01_task-rest_run-1", but=["preproc_bold.json"])
    touch(root, "task-rest_bold.json", "run-1_bold.json")
    [(_, reason)] = problems_of(root)
    assert reason == "has 2 candidates for its metadata, expected one: run-1_bold.json, task-rest_bold.json"


def test_no_image_in_the_space(root):
    add_run(root, "sub-01_task-rest", "space-T1w")
    path = "sub-01/func/sub-01_task-rest_space-T1w_desc-preproc_bold.nii.gz"
    assert problems_of(root) == [(path, f"has no image in space {MNI}:res-2, only in T1w")]


def test_single_echoes_alone(root):
    folder = add_run(root, "sub-01_task-rest", but=["preproc"])
    echoes = [f"sub-01_task-rest_echo-{i}_desc-preproc_bold.nii.gz" for i in (1, 2)]
    touch(folder, *echoes)
    reason = f"has only single-echo images, no combined one: {', '.join(echoes)}"
    assert problems_of(root) == [(f"sub-01/func/{echoes[0]}", reason)]


def test_confounds_alone(root):
    add_run(root, "sub-01_task-rest", but=["preproc"])
    path = "sub-01/func/sub-01_task-rest_desc-confounds_timeseries.tsv"
    assert problems_of(root) == [(path, "has no matching *_desc-preproc_bold.nii.gz")]


def test_a_participant_without_runs(root):
    assert problems_of(root) == [("sub-01", "has no preprocessed run")]
    assert problems_of(root, tasks=["rest"]) == []  # most may not have every task
    problems = problems_of(root, tasks=["rest"], participants=["01", "99"])
    assert problems == [("sub-01", "has no preprocessed run of those chosen")]


@pytest.mark.parametrize(
    "name",
    [
        "sub-02_task-rest_space-X_desc-preproc_bold.nii.gz",
        "sub-01_task-a_task-b_desc-preproc_bold.nii.gz",
        "sub-01_task-re st_desc-preproc_bold.nii",
    ],
)
def test_names_that_are_none_of_bids(root, name):
    touch(add_run(root, "sub-01_task-rest"), name)
    reason = "isn't a BIDS name for sub-01/func: expected sub-01_[task-<label>_...], each once"
    add_run(root, "sub-99_task-rest")
    found, problems = find_runs(root)
    assert problems == [Problem(f"{root}/sub-01/func/{name}", reason)]
    assert len(found) == 2


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs permissions, which root has all of")
def test_a_folder_that_cant_be_listed(root):
    folder = add_run(root, "sub-01_task-rest")
    folder.chmod(0)
    try:
        assert problems_of(root) == [("sub-01/func", "can't be listed: Permission denied")]
    finally:
        folder.chmod(0o755)


def test_a_file_in_place_of_a_folder(root):
    touch(root / "sub-03", "func")
    assert ("sub-03/func", "can't be listed: Not a directory") in problems_of(root)


# Errors


def error_of(*args, **options):
    with pytest.raises(ValueError) as caught:
        find_runs(*args, **options)
    return str(caught.value)


def test_several_spaces(root):
    add_run(root, "sub-01_task-rest")
    add_run(root, "sub-02_task-rest")
    add_run(root, "sub-02_task-rest", "space-T1w")
    listed = f"{MNI}:res-2 (2 runs), T1w (1 run)"
    assert error_of(root) == f"The images in {root} are in several spaces: {listed}. Choose one: space (--space)."
    message = f"{root} has no images in space MNI. Its images are in: {listed}."
    assert error_of(root, space="MNI") == message
    add_run(root, "sub-02_task-rest", f"space-{MNI}_res-1")
    message = f"{root} has images of several kinds in space {MNI}. Its images are in: {MNI}:res-1 (1 run), {listed}."
    assert error_of(root, space=MNI) == message


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"participants": ["sub-1", "07"]}, "sub-07, sub-1. Of the 2 there: 01, 02."),
        ({"participants": ["x"]}, "sub-x. Of the 2 there: 01, 02."),
        ({"tasks": ["res"]}, "task-res. Of the 2 there: rest."),
        ({"sessions": ["a"]}, "ses-a. There is none at all."),
        ({"runs": ["3"]}, "run-3. Of the 1 there: 1."),
    ],
)
def test_labels_that_arent_there(root, filters, message):
    add_run(root, "sub-01_task-rest_run-1")
    add_run(root, "sub-02_task-nback")
    assert error_of(root, **filters) == f"{root} has no {message}"


def test_folders_that_are_no_derivatives(tmp_path, root):
    (tmp_path / "HCP" / "100307" / "MNINonLinear").mkdir(parents=True)
    assert error_of(tmp_path / "HCP") == (
        f"{tmp_path}/HCP has no folders sub-*: expected fMRIPrep's folder of derivatives. For another layout, such as "
        "HCP's, list the runs in a TSV file (column bold)."
    )
    assert error_of(tmp_path) == (
        f"{tmp_path} has no folders sub-*: expected fMRIPrep's folder of derivatives. Did you mean {tmp_path}/fmriprep?"
    )
    touch(tmp_path / "raw" / "sub-1" / "func", "sub-1_task-rest_bold.nii.gz", "sub-1_task-rest_bold.json")
    message = (
        f"{tmp_path}/raw has no *_desc-preproc_bold.nii.gz in sub-*/[ses-*/]func of 1 participant(s): "
        "expected the derivatives of fMRIPrep, not raw data."
    )
    assert error_of(tmp_path / "raw") == message
    assert error_of(tmp_path / "raw", tasks=["rest"]) == message
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "nowhere"))):
        find_runs(tmp_path / "nowhere")


# What it costs


def test_each_folder_is_listed_once_and_no_file_is_touched(root, monkeypatch):
    for i in range(1, 21):
        for session in "ab":
            add_run(root, f"sub-{i:02}_ses-{session}_task-rest")
    listed = []
    scandir = os.scandir

    def counted(path):
        listed.append(str(path))
        return scandir(path)

    def forbidden(*args, **kwargs):
        raise AssertionError(args)

    monkeypatch.setattr(os, "scandir", counted)
    for name in ("stat", "lstat", "open"):
        monkeypatch.setattr(os, name, forbidden)
    monkeypatch.setattr("builtins.open", forbidden)
    found, problems = find_runs(root)
    monkeypatch.undo()
    assert (len(found), problems) == (40, [])
    folders = [root, *root.glob("sub-*/"), *root.glob("sub-*/ses-*/"), *root.glob("sub-*/ses-*/func/")]
    assert sorted(listed) == sorted(str(folder) for folder in folders if folder.is_dir())


def test_the_time_grows_as_the_number_of_files(tmp_path):
    """Four times as many runs in one folder: 16 times the seconds if every file were compared with every other."""
    seconds = []
    for n in (300, 1200):
        root = tmp_path / str(n)
        for i in range(n):
            add_run(root, f"sub-01_task-rest_run-{i}", but=["fsLR", "fsaverage", "xfm", "svg"])
        started = time.process_time()
        found, problems = find_runs(root)
        seconds.append(time.process_time() - started)
        assert (len(found), problems) == (n, [])
    assert seconds[1] < 10 * seconds[0]


# Manifests


def write_manifest(folder, *lines):
    path = folder / "runs.tsv"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_manifest(tmp_path):
    results = tmp_path / "100307" / "MNINonLinear" / "Results"
    touch(results, "rfMRI_REST1_LR_hp2000_clean.nii.gz", "Movement_Regressors.txt", "brainmask_fs.2.nii.gz")
    touch(tmp_path, "sub-1_ses-a_task-rest_desc-clean_bold.nii.gz", "plain.nii.gz", "other.nii")
    prefix = "100307/MNINonLinear/Results"
    manifest = write_manifest(
        tmp_path,
        "bold\tname\tconfounds\tmask\tt_r",
        f"{prefix}/rfMRI_REST1_LR_hp2000_clean.nii.gz\tsub-100307_task-rest_dir-LR\t{prefix}/Movement_Regressors.txt\t"
        f"{prefix}/brainmask_fs.2.nii.gz\t0.72",
        "",
        "sub-1_ses-a_task-rest_desc-clean_bold.nii.gz\tn/a\t\tn/a\t",
        f"{tmp_path}/plain.nii.gz\t\t\t\tn/a",
        "other.nii\tmy.run-2\t\t\t2",
    )
    assert read_manifest(manifest) == (
        [
            Run(
                f"{results}/rfMRI_REST1_LR_hp2000_clean.nii.gz",
                f"{results}/Movement_Regressors.txt",
                f"{results}/brainmask_fs.2.nii.gz",
                0.72,
                name="sub-100307_task-rest_dir-LR",
                folder="sub-100307/func",
            ),
            Run(f"{tmp_path}/sub-1_ses-a_task-rest_desc-clean_bold.nii.gz", folder="sub-1/ses-a/func"),
            Run(f"{tmp_path}/plain.nii.gz"),
            Run(f"{tmp_path}/other.nii", t_r=2.0, name="my.run-2"),
        ],
        [],
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a.nii\t\t", "has 3 cells, expected 4"),
        ("\tx.tsv\t\t", "has no bold image"),
        ("b.nii\t\t\t", "names a bold file that isn't there: {folder}/b.nii"),
        ("a.nii\tx.tsv\t\t", "names a confounds file that isn't there: {folder}/x.tsv"),
        ("a.nii\t\t2,0\t", "has the t_r '2,0': expected a positive number of seconds"),
        ("a.nii\t\t-2\t", "has the t_r '-2': expected a positive number of seconds"),
        ("a.nii\t\tinf\t", "has the t_r 'inf': expected a positive number of seconds"),
        ("a.nii\t\t\t../x", "has the name '../x': expected letters, digits, and _ - + . between them"),
    ],
)
def test_lines_of_a_manifest_that_cant_be_taken(tmp_path, line, reason):
    touch(tmp_path, "a.nii", "good.nii")
    manifest = write_manifest(tmp_path, "bold\tconfounds\tt_r\tname", line, "good.nii\t\t\t")
    found, problems = read_manifest(manifest)
    assert [Path(run.path).name for run in found] == ["good.nii"]
    path = line.split("\t")[0] or str(manifest)
    assert problems == [Problem(path, f"line 2 of {manifest} {reason.format(folder=tmp_path)}")]


def test_one_name_for_all_lines_of_a_manifest_is_told_briefly(tmp_path):
    """Each message listed all lines: 40 000 equal names took 10 GB."""
    (tmp_path / "r.nii").touch()
    (tmp_path / "runs.tsv").write_text("bold\tname\n" + "r.nii\tx\n" * 1000)
    found, problems = read_manifest(tmp_path / "runs.tsv")
    assert found == []
    assert len(problems) == 1000
    assert problems[-1].reason == (
        f"line 1001 of {tmp_path / 'runs.tsv'} would be written under the name x, as would all of the lines 2, 3, 4, "
        "5, 6 and 995 more: give unique ones in the column name"
    )


def test_names_in_a_manifest_are_unique(tmp_path):
    for subject in ("100307", "100408"):
        touch(tmp_path / subject, "rfMRI_REST1_LR.nii.gz")
    touch(tmp_path, "other.nii.gz")
    lines = [f"{subject}/rfMRI_REST1_LR.nii.gz" for subject in ("100307", "100408")]
    manifest = write_manifest(tmp_path, "bold", *lines, "other.nii.gz")
    found, problems = read_manifest(manifest)
    assert [run.path for run in found] == [f"{tmp_path}/other.nii.gz"]
    reason = (
        "would be written under the name rfMRI_REST1_LR, as would all of the lines 2, 3: "
        "give unique ones in the column name"
    )
    assert problems == [
        Problem(f"{tmp_path}/{line}", f"line {n} of {manifest} {reason}") for n, line in enumerate(lines, 2)
    ]


def test_a_manifest_with_one_name_for_all_is_refused_in_linear_memory(tmp_path):
    touch(tmp_path, "a.nii")
    manifest = write_manifest(tmp_path, "bold", *["a.nii"] * 3000)
    found, problems = read_manifest(manifest)
    assert not found
    assert problems[7].reason == (
        f"line 9 of {manifest} would be written under the name a, as would all of the lines 2, 3, 4, 5, 6 and 2995 "
        "more: give unique ones in the column name"
    )
    assert len(problems) == 3000


@pytest.mark.parametrize("first", ["a.nii.gz", "bold,confounds", "bold\tconfound", "bold\tmask\tmask"])
def test_first_line_of_a_manifest(tmp_path, first):
    manifest = write_manifest(tmp_path, first)
    with pytest.raises(ValueError) as caught:
        read_manifest(manifest)
    assert str(caught.value) == (
        f"{manifest} begins with the line {first!r}. Expected the names of the columns, separated by tabs, each once: "
        "bold, and any of confounds, mask, t_r, name, atlas, lut, atlas_NAME, lut_NAME."
    )


# Names


def test_names_of_outputs():
    run = Run("x/sub-01_task-rest_space-MNI_cohort-1_res-2_desc-preproc_bold.nii.gz")
    stem = "sub-01_task-rest_space-MNI_cohort-1_atlas-A_res-2_stat"
    assert output_name(run, "A", "mean") == f"{stem}-mean_timeseries.tsv"
    assert output_name(run, "A", "mean", extension=".json") == f"{stem}-mean_timeseries.json"
    assert output_name(run, "A", "coverage", "bold") == f"{stem}-coverage_bold.tsv"
    assert output_name(run, "A", "pearson_correlation", "relmat") == f"{stem}-pearsoncorrelation_relmat.tsv"
    assert output_name(run, "A", "mean", entity="seg") == f"{stem}-mean_timeseries.tsv".replace("atlas-", "seg-")
    assert output_name(Run("x.nii", name="y"), "A", "mean") == "y_atlas-A_stat-mean_timeseries.tsv"
    assert output_name(Run("odd_res-2.x.nii"), "A", "mean") == "odd_res-2.x_atlas-A_stat-mean_timeseries.tsv"


def test_names_keep_to_the_schema_of_bids(root):
    """But for "stat", "timeseries" and "relmat", which are XCP-D's and in proposals to BIDS only."""
    schema = pytest.importorskip("bidsschematools.schema").load_schema()
    for stem in ("sub-01_task-rest_acq-x_dir-AP_run-1", "sub-02_ses-b_task-rest_run-02"):
        add_run(root, stem)
    add_run(root, "sub-03_task-rest", f"space-{MNI}_den-x")
    order = [schema.objects.entities[entity].name for entity in schema.rules.entities]
    formats = {entity.name: entity.format for entity in schema.objects.entities.values()}
    for space in (f"{MNI}:res-2", f"{MNI}:den-x"):
        for run in find_runs(root, space=space)[0]:
            for atlas in ("Schaefer2018_7n", "4S156"):
                name = output_name(run, atlas_name(f"atlas-{atlas}_dseg.nii.gz"), "coverage", "bold")
                pairs = [part.split("-") for part in name.removesuffix("_stat-coverage_bold.tsv").split("_")]
                places = [order.index(entity) for entity, _ in pairs]
                assert places == sorted(set(places)), name
                for entity, label in pairs:
                    assert re.fullmatch(schema.objects.formats[formats[entity]].pattern, label), name
    assert "bold" in schema.objects.suffixes


# Metadata


def write_json(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_repetition_time(tmp_path):
    image = tmp_path / "a_bold.nii.gz"
    assert repetition_time(Run(image), None) == RepetitionTime(None, None)
    assert repetition_time(Run(image), 3.0) == (3.0, "header", ())
    write_json(tmp_path / "a_bold.json", {"RepetitionTime": 2.5})
    other = write_json(tmp_path / "other.json", {"RepetitionTime": 1})
    assert repetition_time(Run(image), 3.0)[:2] == (2.5, "JSON")
    assert repetition_time(Run(image, sidecar=other), None) == (1.0, "JSON", ())
    assert repetition_time(Run(image, sidecar=other, t_r=0.8), 3.0)[:2] == (0.8, "given")
    write_json(other, {"TaskName": "rest"})
    assert repetition_time(Run(image, sidecar=other), 3.0) == (3.0, "header", ())


@pytest.mark.parametrize(("session", "task"), [("", "rest"), ("ses-b/", "rest"), ("ses-b/", "other")])
def test_a_single_image_inherits_the_metadata_that_find_runs_finds(root, session, task):
    folder = root / f"sub-01/{session}func"
    stem = f"sub-01_{session.replace('/', '_')}task-{task}"
    add_run(root, stem, but=("preproc_bold.json",))
    write_json(root / "task-rest_bold.json", {"RepetitionTime": 2.0})
    [run] = find_runs(root)[0]
    assert repetition_time(Run(run.path), None) == repetition_time(run, None)
    assert repetition_time(Run(run.path), None).seconds == (2.0 if task == "rest" else None)
    nearest = write_json(folder / "bold.json", {"RepetitionTime": 1.0})
    assert metadata_files(Run(run.path))[0] == nearest
    assert find_runs(root)[0][0].sidecar == str(nearest)
    elsewhere = root.parent / Path(run.path).name
    write_json(root.parent / "task-rest_bold.json", {"RepetitionTime": 2.0})
    assert metadata_files(Run(elsewhere)) == []  # not in a data set's folders
    for name in ("sub-01_bold.json", f"task-{task}_bold.json"):
        write_json(folder / name, {})
    with pytest.raises(ValueError, match=re.escape(f"{run.path} has 2 candidates for its metadata, expected one: ")):
        metadata_files(Run(run.path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"RepetitionTime": 0}', "has the RepetitionTime 0: expected a positive number of seconds"),
        ('{"RepetitionTime": "x"}', "has the RepetitionTime 'x': expected a positive number of seconds"),
        ('{"RepetitionTime": true}', "has the RepetitionTime True: expected a positive number of seconds"),
        ('{"RepetitionTime": NaN}', "has the RepetitionTime nan: expected a positive number of seconds"),
        ("[2]", "holds a JSON list: expected an object"),
        ("", "isn't JSON: Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_bad_metadata(tmp_path, content, reason):
    path = tmp_path / "a.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        repetition_time(Run(tmp_path / "a.nii.gz"), None)
    assert str(caught.value) == f"{path} {reason}"


def test_a_sidecar_that_is_named_must_be_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        repetition_time(Run(tmp_path / "a.nii.gz", sidecar=tmp_path / "b.json"), None)


def test_sidecar(root, tmp_path):
    folder = add_run(root, "sub-01_task-rest")
    image = {"TaskName": "Resting state", "RepetitionTime": 2, "SkullStripped": False, "StartTime": 0.9}
    write_json(folder / f"{RUN}_desc-preproc_bold.json", image)
    [run] = find_runs(root)[0]
    content = sidecar(
        run,
        t_r=2.0,
        confounds=["trans_x", "csf"],
        high_pass=0.01,
        low_pass=0.1,
        atlas=[tmp_path / "my atlas.nii"],
        configuration="c0ffee",
        Volumes=[0, 2],
    )
    at = "bids:preprocessed:sub-01/func"
    assert content == {
        "RepetitionTime": 2.0,
        "TaskName": "Resting state",
        "StartTime": 0.9,
        "SoftwareFilters": {
            "Butterworth": {"High-pass cutoff (Hz)": 0.01, "Low-pass cutoff (Hz)": 0.1, "Order": 5, "Passes": 2}
        },
        "NuisanceParameters": ["trans_x", "csf"],
        "Sources": [
            f"{at}/{RUN}_desc-preproc_bold.nii.gz",
            f"{at}/{RUN}_desc-brain_mask.nii.gz",
            f"{at}/sub-01_task-rest_desc-confounds_timeseries.tsv",
            f"file://{tmp_path}/my%20atlas.nii",
        ],
        "ConfigurationHash": "c0ffee",
        "Volumes": [0, 2],
    }
    assert list(json.loads(json.dumps(content))) == list(content)


def test_sidecar_of_a_run_of_no_data_set(tmp_path):
    content = sidecar(
        Run(tmp_path / "sub-1_task-rest_bold.nii"), sources=[tmp_path / "out" / "t.tsv"], out_dir=tmp_path / "out"
    )
    assert content == {
        "TaskName": "rest",
        "SoftwareFilters": "n/a",
        "NuisanceParameters": [],
        "Sources": ["bids::t.tsv"],
    }
    assert sidecar(Run(tmp_path / "x.nii"))["Sources"] == [f"file://{tmp_path}/x.nii"]


def test_dataset_description(tmp_path):
    source, out = tmp_path / "fmriprep", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    preprocessor = {"Name": "fMRIPrep", "Version": "25.1.0", "CodeURL": "https://github.com/nipreps/fmriprep"}
    write_json(source / "dataset_description.json", {"Name": "fMRIPrep", "GeneratedBy": [preprocessor]})
    path = write_dataset_description(out, source, configuration="c0ffee")
    expected = {
        "Name": "gpumask: region time series",
        "BIDSVersion": "1.11.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "gpumask", "Version": __version__}, preprocessor],
        "DatasetLinks": {"preprocessed": f"file://{source}"},
        "ConfigurationHash": "c0ffee",
    }
    assert json.loads(path.read_text()) == expected
    write_dataset_description(out, source, configuration="decaf")
    assert json.loads(path.read_text()) == {**expected, "ConfigurationHash": "decaf"}
    assert sorted(file.name for file in out.iterdir()) == [".bidsignore", "dataset_description.json"]
    (out / ".bidsignore").write_text("mine\n")
    write_dataset_description(out, source)
    assert (out / ".bidsignore").read_text() == "mine\n"


def test_required_fields_of_the_description(tmp_path):
    schema = pytest.importorskip("bidsschematools.schema").load_schema()
    rules = schema.rules.json.dataset
    content = json.loads(write_dataset_description(tmp_path, tmp_path).read_text())
    levels = {**rules.dataset_description.fields, **rules.derivative_description.fields}
    required = {key for key, level in levels.items() if level == "required"}
    assert required >= {"Name", "BIDSVersion", "GeneratedBy"}
    assert required <= set(content)
    assert content["DatasetType"] in schema.objects.metadata.DatasetType.enum


def test_dataset_description_of_an_old_preprocessor(tmp_path):
    (tmp_path / "source").mkdir()
    old = {"PipelineDescription": {"Name": "fMRIPrep", "Version": "1.5.0"}}
    write_json(tmp_path / "source" / "dataset_description.json", old)
    content = json.loads(write_dataset_description(tmp_path, tmp_path / "source").read_text())
    assert content["GeneratedBy"] == [{"Name": "gpumask", "Version": __version__}, old["PipelineDescription"]]


def test_folder_of_another_program(tmp_path):
    path = write_json(tmp_path / "dataset_description.json", {"GeneratedBy": [{"Name": "fMRIPrep"}]})
    before = path.read_bytes()
    with pytest.raises(ValueError) as caught:
        write_dataset_description(tmp_path)
    assert str(caught.value) == (
        f"{path} describes a data set that gpumask didn't make. Choose another folder for the outputs."
    )
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_outputs_of_another_data_set(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    write_dataset_description(tmp_path, tmp_path / "a")
    with pytest.raises(ValueError) as caught:
        write_dataset_description(tmp_path, tmp_path / "b")
    assert str(caught.value) == (
        f"{tmp_path} has outputs of file://{tmp_path}/a, and now those of file://{tmp_path}/b were to be added. "
        "Choose another folder for them."
    )
    content = json.loads(write_dataset_description(tmp_path).read_text())  # as for a manifest
    assert content["DatasetLinks"] == {"preprocessed": f"file://{tmp_path}/a"}


def describe_often(out, source, number):
    for i in range(20):
        write_dataset_description(out, source, configuration=f"{number}-{i}" * 500)


def test_many_processes_write_the_description(tmp_path):
    part = tmp_path / ".gpumask-dataset_description.json.part"
    part.write_text("what a killed process has left" * 10_000)
    write_dataset_description(tmp_path, tmp_path)
    assert not part.exists()
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=describe_often, args=(tmp_path, tmp_path, i)) for i in range(3)]
    for process in processes:
        process.start()
    path = tmp_path / "dataset_description.json"
    n_read = 0
    while any(process.is_alive() for process in processes):
        assert json.loads(path.read_text())["DatasetType"] == "derivative"  # never empty, never half
        n_read += 1
    assert n_read > 10
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(tmp_path.iterdir()) == [tmp_path / ".bidsignore", path]


def test_a_full_disk_leaves_the_old_description(tmp_path, monkeypatch):
    path = write_dataset_description(tmp_path, configuration="old")
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_dataset_description(tmp_path, configuration="new")
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [tmp_path / ".bidsignore", path]


# A reader as those of XCP-D's outputs are


def read_like_xcp_d(out, run, atlas):
    """Series (a column per region), coverage connectivity, metadata and sources of a run, found by XCP-D's names."""
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    pattern = f"{run}*_atlas-{atlas}_*stat-"
    [series] = out.rglob(f"{pattern}mean_timeseries.tsv")
    [coverage] = out.rglob(f"{pattern}coverage_bold.tsv")
    [relmat] = out.rglob(f"{pattern}pearsoncorrelation_relmat.tsv")
    metadata = json.loads(series.with_suffix(".json").read_text())
    sources = []
    for uri in metadata["Sources"]:
        _, dataset, path = uri.split(":", 2)
        root = description["DatasetLinks"][dataset].removeprefix("file://")
        sources.append(Path(root, path))
    return (
        pd.read_table(series, na_values="n/a"),
        pd.read_table(coverage, index_col="Node")["coverage"],
        pd.read_table(relmat, index_col="Node"),
        metadata,
        sources,
    )


REGIONS = ["LH_Vis_1", "RH_Vis_1"]
SERIES = np.array([[1.5, np.nan], [2.5, np.nan], [4.0, np.nan]])


@pytest.fixture
def outputs(root, tmp_path):
    """All outputs of a run, as pandas writes them."""
    metadata = {"RepetitionTime": 2.0, "SpatialReference": "x", "Resolution": "2 mm"}
    write_json(add_run(root, "sub-01_task-rest") / f"{RUN}_desc-preproc_bold.json", metadata)
    [run] = find_runs(root)[0]
    out = tmp_path / "out"
    (out / run.folder).mkdir(parents=True)
    write_dataset_description(out, root)
    index = pd.Index(REGIONS, name="Node")
    series = pd.DataFrame(SERIES, columns=REGIONS)
    for stat, suffix, table in (
        ("mean", "timeseries", series),
        ("coverage", "bold", pd.DataFrame({"coverage": [1.0, 0.25]}, index)),
        ("pearsoncorrelation", "relmat", series.corr().set_axis(index)),
    ):
        path = out / run.folder / output_name(run, "4S156Parcels", stat, suffix)
        table.to_csv(path, sep="\t", na_rep="n/a", index=stat != "mean")
        write_json(path.with_suffix(".json"), sidecar(run, t_r=repetition_time(run, None).seconds))
    return out, run


def test_a_reader_of_xcp_d_finds_everything(outputs):
    out, run = outputs
    series, coverage, relmat, metadata, sources = read_like_xcp_d(out, "sub-01_task-rest", "4S156Parcels")
    np.testing.assert_array_equal(series.to_numpy(), SERIES)
    assert list(series) == list(coverage.index) == list(relmat) == list(relmat.index) == REGIONS
    assert metadata["RepetitionTime"] == 2.0
    assert sources == [Path(run.path), Path(run.mask), Path(run.confounds)]
    assert all(path.is_file() for path in sources)


def test_the_validator_of_bids_has_no_errors(outputs):
    """It is a program of its own (``pip install bids-validator-deno``)."""
    program = shutil.which("bids-validator-deno")
    if program is None:
        pytest.skip("bids-validator-deno isn't installed")
    out, run = outputs

    def errors():
        answer = subprocess.run([program, "--json", out], stdout=subprocess.PIPE, text=True)
        issues = json.loads(answer.stdout)["issues"]["issues"]
        return {(issue["code"], issue["location"]) for issue in issues if issue["severity"] == "error"}

    (out / "cohort.html").touch()
    (out / "logs").mkdir()
    (out / "logs" / "runs-host-1.jsonl").touch()
    assert errors() == set()
    typo = out / run.folder / "sub-01_tsk-rest_bold.json"
    typo.write_text("{}")
    assert {location for _, location in errors()} == {f"/{run.folder}/{typo.name}"}


def test_run_name_is_that_given():
    assert run_name(Run("sub-1_task-x_desc-y_bold.nii", name="z")) == "z"
    assert run_name(Run("sub-1_task-x_desc-y_bold.nii")) == "sub-1_task-x"
