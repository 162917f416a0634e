"""Atlases of all kinds and denoisings, extracted in one read, have the bytes of each of them alone."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from gpumask.cli import main
from gpumask.confounds.tables import MOTION

from .helpers import save

SHAPE, N, AFFINE = (8, 7, 6), 60, np.diag([3.0, 3.0, 3.0, 1.0])
ATLASES = {
    "Combined": "--atlas Combined={0}/cortex.nii+{0}/subcortex.nii",
    "Plain": "--atlas Plain={0}/cortex.nii",
    "Maps": "--atlas Maps={0}/maps.nii",
    "Seeds": "--seeds Seeds={0}/seeds.tsv",
}
DENOISINGS = {
    "filtered": 'columns = ["csf", "trans_*"]\nfd_threshold = 0.32\nmotion_filter = "lowpass:6"\nlow_pass = 0.1\n',
    "motion": 'columns = ["csf"]\nfd_threshold = 0.32\nstandardize = "zscore_sample"\noutput_type = "interpolated"\n',
}
RUNS = (1, 2, 3)


def labels(n, seed, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, n + 1, shape).astype(np.int16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three runs, two with the same atlas of their own and one with a NaN; lists with and without these atlases."""
    folder, rng = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    rows = ["bold\tconfounds\tatlas_Own"]
    for k in RUNS:
        stem = f"sub-{k}_task-rest"
        data = rng.normal(1000, 10, (*SHAPE, N)).astype(np.float32)
        data[2, 3, 4, 5] = np.nan if k == 2 else 0
        save(folder / f"{stem}_bold.nii", data, AFFINE, 2.0)
        save(folder / f"sub-{k}_seg.nii", labels(5, min(k, 2)), AFFINE)
        motion = rng.standard_normal((N, 6)).cumsum(axis=0) * np.repeat([0.06, 0.001], 3)
        displacement = np.abs(np.diff(motion, axis=0)) @ np.repeat([1, 50], 3)
        table = pd.DataFrame(motion, columns=MOTION)
        table["csf"], table["framewise_displacement"] = rng.standard_normal(N), np.append(np.nan, displacement)
        table.to_csv(folder / f"{stem}_desc-confounds_timeseries.tsv", sep="\t", na_rep="n/a", index=False)
        rows.append(f"{stem}_bold.nii\t{stem}_desc-confounds_timeseries.tsv\tsub-{k}_seg.nii")
    (folder / "own.tsv").write_text("\n".join(rows) + "\n")
    (folder / "runs.tsv").write_text("".join(row.rpartition("\t")[0] + "\n" for row in rows))
    save(folder / "cortex.nii", labels(6, 50), AFFINE)
    save(folder / "subcortex.nii", labels(4, 51, (6, 6, 6)), np.diag([3.5, 3.5, 3.5, 1.0]))
    nib.save(nib.Nifti1Image(rng.random((*SHAPE, 3)).astype(np.float32), AFFINE), folder / "maps.nii")
    (folder / "seeds.tsv").write_text("x\ty\tz\tname\n9\t9\t9\ta\n15\t12\t9\tb\n")
    for name, text in DENOISINGS.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


def cohort(folder, out, runs, atlases, denoisings):
    """All tables of the runs, by path."""
    words = {"--atlas": [], "--seeds": [], "--denoise": [f"{name}={folder}/{name}.toml" for name in denoisings]}
    for name in atlases:
        option, path = ATLASES[name].format(folder).split()
        words[option].append(path)
    chosen = [word for option, paths in words.items() if paths for word in (option, *paths)]
    more = ["--device", "cpu", "--min-time", "0", "--smoothing-fwhm", "4", "--relmat", "pearson", "partial", "-q"]
    # By default as one of the parts of a cohort, after which no page is written.
    command = ["cohort", folder / runs, folder / out, "participant", "--shard", "1/1", *chosen, *more]
    assert main(list(map(str, command))) == 0
    tables = Path(folder, out).rglob("sub-*.tsv")
    return {path.relative_to(folder / out).as_posix(): path.read_bytes() for path in tables}


@pytest.fixture(scope="module")
def together(folder):
    return cohort(folder, "together", "own.tsv", ATLASES, DENOISINGS)


def test_all_at_once_have_the_bytes_of_each_alone(folder, together):
    for k in RUNS:
        filtered, motion = (f"sub-{k}/func/sub-{k}_task-rest_desc-{name}_outliers.tsv" for name in DENOISINGS)
        assert together[filtered] != together[motion], "the motion filter keeps more volumes"
    alone = {}
    for name in DENOISINGS:
        for atlas in ATLASES:
            alone |= cohort(folder, f"{name}{atlas}", "runs.tsv", [atlas], [name])
        alone |= cohort(folder, f"{name}Own", "own.tsv", [], [name])
    assert alone == together
    assert len(together) == len(RUNS) * len(DENOISINGS) * (4 * (len(ATLASES) + 1) + 1)


def test_added_one_after_the_other_they_have_the_same_bytes(folder, together):
    first, second = DENOISINGS
    for runs, atlases, names in (
        ("runs.tsv", ["Plain"], [first]),
        ("own.tsv", ["Maps"], [second]),
        ("runs.tsv", ["Seeds"], [second]),
        ("own.tsv", ATLASES, DENOISINGS),
    ):
        in_turn = cohort(folder, "in_turn", runs, atlases, names)
    assert in_turn == together
