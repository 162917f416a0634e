"""Finding dense series by names, and the names and metadata of what is made of them."""

import json

import pytest

from gpumask.bids import Run, find_runs
from gpumask.bids.metadata import metadata_files, repetition_time
from gpumask.bids.names import atlas_name, output_name, run_name
from gpumask.bids.sidecars import sidecar

from .test_bids import add_run, touch

STEM = "sub-01_task-rest_space-fsLR_den-91k"


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "fmriprep"
    for name in ("sub-01_task-rest", "sub-01_task-rest_run-2", "sub-02_ses-a_task-nback"):
        add_run(root, name)
    return root


def only_problem(problems):
    (problem,) = problems
    return problem


def test_dense_series_with_their_confounds_and_metadata(root):
    runs, problems = find_runs(root, grayordinates=True, require_confounds=True)
    assert problems == []
    assert [run_name(run) for run in runs] == [
        STEM,
        "sub-01_task-rest_run-2_space-fsLR_den-91k",
        "sub-02_ses-a_task-nback_space-fsLR_den-91k",
    ]
    func = f"{root}/sub-01/func"
    assert runs[0] == Run(
        f"{func}/{STEM}_bold.dtseries.nii",
        confounds=f"{func}/sub-01_task-rest_desc-confounds_timeseries.tsv",
        sidecar=f"{func}/{STEM}_bold.json",
        name=STEM,
        folder="sub-01/func",
        source=str(root),
    )


def test_volumes_are_found_as_if_there_were_no_dense_series(root):
    runs, problems = find_runs(root)
    assert problems == []
    assert {run.path.rpartition("_")[2] for run in runs} == {"bold.nii.gz"}
    assert all(run.mask for run in runs)


@pytest.mark.parametrize("second", ["91k", "170k"])
def test_two_densities_are_two_spaces(root, second):
    for name in ("sub-01_task-rest", "sub-01_task-rest_run-2"):
        touch(root / "sub-01/func", f"{name}_space-fsLR_den-170k_bold.dtseries.nii")
    touch(root / "sub-02/ses-a/func", "sub-02_ses-a_task-nback_space-fsLR_den-170k_bold.dtseries.nii")
    listed = r"fsLR:den-170k \(3 runs\), fsLR:den-91k \(3 runs\)"
    with pytest.raises(ValueError, match=f"are in several spaces: {listed}"):
        find_runs(root, grayordinates=True)
    runs, _ = find_runs(root, grayordinates=True, space=f"fsLR:den-{second}")
    assert [f"_den-{second}_" in run.path for run in runs] == [True] * 3


@pytest.mark.parametrize("name", ["desc-preproc_bold.dtseries.nii", "bold.dtseries.nii.gz"])
def test_two_candidates_of_one_density(root, name):
    touch(root / "sub-01/func", f"{STEM}_{name}")
    runs, problems = find_runs(root, grayordinates=True)
    assert len(runs) == 2
    assert "2 candidates for its image, expected one" in only_problem(problems).reason
    assert only_problem(problems).name == STEM


def test_a_name_with_desc_preproc(root):
    func = root / "sub-03/func"
    touch(func, "sub-03_task-a_space-fsLR_den-91k_desc-preproc_bold.dtseries.nii")
    touch(func, "sub-03_task-b_space-fsLR_den-91k_desc-denoised_bold.dtseries.nii")  # XCP-D's: not fMRIPrep's
    runs, problems = find_runs(root, grayordinates=True, participants=["03"])
    assert [run_name(run) for run in runs] == ["sub-03_task-a_space-fsLR_den-91k"]
    assert problems == []


@pytest.mark.parametrize(
    "name", ["sub-02_task-rest_bold.dtseries.nii", "sub-01_a-b_a-b_bold.dtseries.nii.gz", "x_bold.dtseries.nii"]
)
def test_names_that_arent_bids(root, name):
    touch(root / "sub-01/func", name)
    _, problems = find_runs(root, grayordinates=True)
    assert "isn't a BIDS name for sub-01/func" in only_problem(problems).reason
    assert find_runs(root)[1] == []  # it isn't a volume's


def test_volumes_alone(tmp_path):
    add_run(tmp_path, "sub-01_task-rest", but=["dtseries"])
    with pytest.raises(ValueError) as caught:
        find_runs(tmp_path, grayordinates=True)
    assert str(caught.value) == (
        f"{tmp_path} has no *_bold.dtseries.nii in sub-*/[ses-*/]func of 1 participant(s): expected the derivatives "
        "of fMRIPrep with --cifti-output, for atlases of grayordinates (.dlabel.nii). It has "
        "*_desc-preproc_bold.nii.gz, for atlases of volumes."
    )


def test_dense_series_alone(tmp_path):
    add_run(tmp_path, "sub-01_task-rest", but=["preproc_bold"])
    with pytest.raises(ValueError) as caught:
        find_runs(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} has no *_desc-preproc_bold.nii.gz in sub-*/[ses-*/]func of 1 participant(s): expected the "
        "derivatives of fMRIPrep, not raw data. It has *_bold.dtseries.nii, for atlases of grayordinates (.dlabel.nii)."
    )


def test_a_run_without_a_dense_series(root):
    (root / f"sub-01/func/{STEM}_bold.dtseries.nii").unlink()
    runs, problems = find_runs(root, grayordinates=True)
    assert len(runs) == 2
    assert only_problem(problems).reason == "has no matching *_bold.dtseries.nii"


def test_names_of_outputs_are_those_of_xcp_d():
    run = Run(f"/x/{STEM}_bold.dtseries.nii")
    expected = "sub-01_task-rest_space-fsLR_atlas-Glasser_den-91k_stat-mean_timeseries"
    assert output_name(run, "Glasser", "mean") == f"{expected}.tsv"
    assert output_name(run, "Glasser", "mean", extension=".ptseries.nii") == f"{expected}.ptseries.nii"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean.dtseries.nii", "rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean"),
        ("sub-1_task-rest_space-fsLR_den-91k_desc-denoised_bold.dtseries.nii", "sub-1_task-rest_space-fsLR_den-91k"),
        ("UPPER.DTSERIES.NII", "UPPER"),
        ("a.dtseries.nii.gz", "a"),
        ("a.dtseries.img", "a.dtseries"),  # only .nii has such a part
        ("my.dlabels.nii", "my.dlabels"),
    ],
)
def test_names_of_runs(name, expected):
    assert run_name(Run(name)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tpl-fsLR_atlas-Gordon_den-32k_dseg.dlabel.nii", "Gordon"),
        (
            "Q1-Q6_RelatedValidation210.CorticalAreas.32k_fs_LR.dlabel.nii",
            "Q1Q6RelatedValidation210CorticalAreas32kfsLR",
        ),
        ("ICA_d25.dscalar.nii", "ICAd25"),
        ("tpl-fsaverage_hemi-L_den-10k_atlas-Yeo_seg-7n_dseg.label.gii", "Yeo7nL"),
        ("lh.aparc.label.gii", "lhaparc"),
    ],
)
def test_names_of_atlases(name, expected):
    assert atlas_name(name) == expected


def test_metadata_next_to_and_above_the_series(root):
    (root / "task-rest_bold.json").write_text('{"RepetitionTime": 2, "TaskName": "rest"}')
    own = root / f"sub-01/func/{STEM}_bold.json"
    own.write_text(json.dumps({"RepetitionTime": 0.8, "Density": "91k", "SpatialReference": {"volume": "MNI"}}))
    run = Run(str(root / f"sub-01/func/{STEM}_bold.dtseries.nii"))
    assert metadata_files(run) == [own, root / "task-rest_bold.json"]
    found = find_runs(root, grayordinates=True, runs=[], participants=["01"])[0][0]
    assert metadata_files(found) == metadata_files(run)
    content = sidecar(found, t_r=0.8)
    assert (content["Density"], content["SpatialReference"]) == ("91k", {"volume": "MNI"})


def test_header_and_json_contradict_each_other(root):
    (root / f"sub-01/func/{STEM}_bold.json").write_text('{"RepetitionTime": 800}')
    (run, *_) = find_runs(root, grayordinates=True)[0]
    with pytest.raises(ValueError, match=r"contradict each other: 800 s in .*, 0.8 s in the header of"):
        repetition_time(run, 0.8)
