"""Atlases and masks in other spaces than the runs, by their names or by where they are."""

import shlex

import nibabel as nib
import numpy as np
import pytest

from gpumask import cli
from gpumask.bids import Run
from gpumask.bids.spaces import space_contradiction, stated_space
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.configuration import Configuration, check_spaces
from gpumask.cohort.executors import run_cohort

from . import cohorts

RUN = "sub-01_task-rest_{}desc-preproc_bold.nii.gz"


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("tpl-MNI152NLin6Asym_res-02_atlas-Schaefer2018_dseg.nii.gz", "MNI152NLin6Asym"),
        ("tpl-MNI152NLin6Asym_space-MNI152NLin2009cAsym_res-02_dseg.nii.gz", "MNI152NLin2009cAsym"),  # is there now
        ("atlas-A_space-MNI152NLin6_res-2x2x2.nii.gz", "MNI152NLin6Asym"),
        ("space-MNI152NLin6ASym_dseg.nii.gz", "MNI152NLin6Asym"),  # as BIDS spells it
        ("space-mni152nlin2009casym_dseg.nii.gz", "MNI152NLin2009cAsym"),
        ("tpl-MNIPediatricAsym_cohort-3_res-1_dseg.nii.gz", "MNIPediatricAsym:cohort-3"),
        ("space-MNIInfant+2_dseg.nii.gz", "MNIInfant:cohort-2"),
        ("sub-01_task-rest_space-func_bold.nii.gz", "bold"),
        ("Schaefer2018_400Parcels_Tian_Subcortex_S4_3T_MNI152NLin2009cAsym_2mm.nii.gz", "MNI152NLin2009cAsym"),
        ("MNI152NLin6Asym_to_MNI152NLin2009cAsym.nii.gz", None),
        ("Schaefer2018_400Parcels_7Networks_order_FSLMNI152_2mm.nii.gz", None),
        ("atlas-Schaefer_dseg.nii.gz", None),
        ("fsl.nii", None),
    ],
)
def test_stated_spaces(name, space):
    found = stated_space(name)
    assert (found and found.name) == space


A, B = "MNI152NLin6Asym", "MNI152NLin2009cAsym"


@pytest.mark.parametrize(
    ("atlas", "run", "expected"),
    [
        (f"tpl-{A}_dseg.nii.gz", f"space-{A}_res-2_", None),
        (f"tpl-{A}_dseg.nii.gz", "space-MNI152NLin6_", None),
        (f"tpl-{A}_dseg.nii.gz", f"space-{B}_", True),
        (f"a_{B}_2mm.nii.gz", f"space-{A}_", True),
        ("tpl-MNI152NLin2009aAsym_dseg.nii.gz", f"space-{B}_", True),
        ("tpl-MNI152NLin2009cSym_dseg.nii.gz", f"space-{B}_", True),
        ("tpl-fsLR_dseg.nii.gz", f"space-{A}_", True),
        (f"tpl-{A}_dseg.nii.gz", "space-T1w_", True),
        ("tpl-MNI152NLin6Sym_dseg.nii.gz", f"space-{A}_", True),
        ("tpl-MNIInfant_cohort-1_dseg.nii.gz", "space-MNIInfant_cohort-2_", True),
        ("tpl-MNIInfant+1_dseg.nii.gz", "space-MNIInfant_cohort-01_", None),
        ("tpl-MNIInfant_dseg.nii.gz", "space-MNIInfant_cohort-2_", None),
        ("tpl-MyStudy_dseg.nii.gz", f"space-{A}_", False),  # neither is known to be the other
        (f"tpl-{A}_dseg.nii.gz", "space-MNI_", False),
        ("tpl-MyStudy_dseg.nii.gz", "space-mystudy_", None),
        ("a_dseg.nii.gz", f"space-{A}_", None),
        (f"tpl-{A}_dseg.nii.gz", "", None),  # not stated
        ("sub-01_space-T1w_dseg.nii.gz", "space-T1w_", None),
        ("sub-02_space-T1w_dseg.nii.gz", "space-T1w_", True),  # another subject's
        ("sub-01_space-bold_dseg.nii.gz", "", None),
        ("sub-02_space-bold_dseg.nii.gz", "", True),
        (f"sub-02_space-{A}_dseg.nii.gz", f"space-{A}_", None),
    ],
)
def test_contradictions(atlas, run, expected):
    found = space_contradiction(atlas, RUN.format(run))
    assert (found and found[1]) == expected


def test_native_runs_without_an_entity():
    assert space_contradiction("sub-01_space-T1w_dseg.nii.gz", "sub-01_task-rest_bold.nii.gz")[1] is True
    assert space_contradiction("sub-01_space-T1w_dseg.nii.gz", "rest.nii.gz") is None


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cohort in MNI152NLin2009cAsym, and an atlas named as in MNI152NLin6Asym."""
    monkeypatch.chdir(tmp_path)
    cohorts.make_cohort(tmp_path / "d", 2, bad=False)
    cohorts.make_atlases(tmp_path)
    for path in tmp_path.glob("atlas-Toy_dseg.*"):
        path.rename(path.name.replace("atlas-", f"tpl-{A}_atlas-"))
    return tmp_path


def run(line):
    return cli.main(shlex.split(line))


ATLAS = f"tpl-{A}_atlas-Toy_dseg.nii.gz"


def images(folder):
    return " ".join(str(path) for path in sorted(folder.rglob("*preproc_bold.nii.gz")))


@pytest.mark.parametrize("option", ["", "--dry-run"])
def test_cohort_refuses_another_template(folder, capsys, option):
    assert run(f"cohort d out participant --atlas atlas-Fine_dseg.nii.gz {ATLAS} {option}") == 2
    error = capsys.readouterr().err
    assert f"{ATLAS} is in the space {A}, " in error
    assert f"in {cohorts.SPACE}. Give the one of the run's space, or --allow-space-mismatch" in error
    assert not (folder / "out").exists()


def test_extract_refuses_another_template(folder, capsys):
    assert run(f"extract {images(folder)} --atlas {ATLAS} --out o") == 2
    assert f"is in the space {A}" in capsys.readouterr().err
    assert not (folder / "o").exists()


def test_allowed_it_is_a_warning_and_the_same_numbers(folder, capsys):
    assert run(f"extract {images(folder)} --atlas {ATLAS} --out o --allow-space-mismatch") == 0
    assert capsys.readouterr().err.count(f"is in the space {A}") == 2
    assert run(f"cohort d out participant --atlas {ATLAS} --allow-space-mismatch") == 0
    assert capsys.readouterr().err.count(f"is in the space {A}") == 2
    (folder / ATLAS).rename("atlas-Toy_dseg.nii.gz")
    (folder / ATLAS.replace(".nii.gz", ".tsv")).rename("atlas-Toy_dseg.tsv")
    assert run(f"extract {images(folder)} --atlas atlas-Toy_dseg.nii.gz --out p") == 0
    assert "space" not in capsys.readouterr().err
    for one, other in zip(*(sorted((folder / out).glob("*.tsv")) for out in "op"), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_names_that_arent_known_only_warn(folder, capsys):
    (folder / ATLAS).rename("tpl-Study_atlas-Toy_dseg.nii.gz")
    line = "cohort d out participant --atlas tpl-Study_atlas-Toy_dseg.nii.gz"
    assert run(f"{line} --dry-run") == 0
    assert capsys.readouterr().err.count("is in the space Study, ") == 1
    assert run(line) == 0
    assert capsys.readouterr().err.count(f"in {cohorts.SPACE}: the same?") == 2


def test_masks_have_spaces_too(folder, capsys):
    mask = next((folder / "d").rglob("*_desc-brain_mask.nii.gz"))
    mask.rename(folder / f"tpl-{A}_desc-brain_mask.nii.gz")
    line = f"extract {images(folder)} --atlas atlas-Fine_dseg.nii.gz --mask tpl-{A}_desc-brain_mask.nii.gz --out o"
    assert run(line) == 2
    assert f"tpl-{A}_desc-brain_mask.nii.gz is in the space {A}" in capsys.readouterr().err
    assert run(f"{line} --allow-space-mismatch") == 0


def test_python_s_cohorts_are_checked(folder):
    image = images(folder).split()[0]
    configuration = Configuration((AtlasFile(ATLAS),), "out")
    with pytest.raises(ValueError, match="is in the space MNI152NLin6Asym"):
        list(run_cohort(configuration, [Run(image)]))
    assert not (folder / "out").exists()
    assert len(check_spaces(Configuration((AtlasFile(ATLAS),), "out", allow_space_mismatch=True), [Run(image)])) == 1


# By where they are


@pytest.mark.parametrize(
    ("shift", "share"),
    [(0, None), (3, None), (7, "30%"), (9, "10%")],  # planes of 10 that are outside
)
def test_an_atlas_that_a_native_run_barely_covers(folder, capsys, shift, share):
    rng = np.random.default_rng(0)
    affine = np.diag([3.0, 3, 3, 1])
    nib.save(nib.Nifti1Image(rng.normal(100, 1, (10, 8, 6, 5)).astype("f4"), affine), "sub-01_task-rest_bold.nii.gz")
    labels = np.tile([[[1, 2, 3, 4, 5, 6]]], (10, 8, 1)).astype("i2")
    affine[0, 3] = 3.0 * shift
    nib.save(nib.Nifti1Image(labels, affine), "tpl-MNI152NLin6Asym_atlas-Far_dseg.nii.gz")
    line = "extract sub-01_task-rest_bold.nii.gz --atlas tpl-MNI152NLin6Asym_atlas-Far_dseg.nii.gz --out o"
    assert run(line) == 0
    error = capsys.readouterr().err
    assert (f"covers only {share} of the atlas" in error) == (share is not None)


def test_a_slab_of_the_same_space_is_no_reason_to_warn(folder, capsys):
    (folder / "atlas-Fine_dseg.nii.gz").rename(f"tpl-{B}_atlas-Fine_dseg.nii.gz")
    image = images(folder).split()[0]
    img = nib.load(image)
    nib.save(img.slicer[:2], image)
    assert run(f"extract {image} --atlas tpl-{B}_atlas-Fine_dseg.nii.gz --out o") == 0
    assert "covers only" not in capsys.readouterr().err
