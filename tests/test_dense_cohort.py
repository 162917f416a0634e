"""A cohort of grayordinates: killed and resumed, in several processes, and on a GPU, with the same bytes each time."""

import json
import signal
import sys
from collections import Counter

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from gpumask.bids import find_runs
from gpumask.cohort.atlas_file import AtlasFile
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.executors import run_cohort
from tests import cohorts, dense

N_RUNS, N_TIMES = 20, 150
BAD = {3: "cut", 8: "not CIFTI", 13: "no confounds"}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a cohort needs POSIX locks")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs of two kinds of brain models, some of them bad; two atlases; and the outputs of an undisturbed cohort."""
    folder, rng = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    axes = [dense.models(np.random.default_rng(seed), share=0.9) for seed in (1, 2)]
    for k in range(N_RUNS):
        func = folder / "d" / f"sub-{k // 2 + 1:02}" / "func"
        func.mkdir(parents=True, exist_ok=True)
        run = f"sub-{k // 2 + 1:02}_task-rest_run-{k % 2 + 1}"
        axis = axes[k % 2]
        data = rng.normal(1000, 30, (N_TIMES, len(axis))).astype("f4")
        path = dense.save(dense.series_image(data, axis, 2.0), func / f"{run}_space-fsLR_den-91k_bold.dtseries.nii")
        if BAD.get(k) == "cut":
            path.write_bytes(path.read_bytes()[:-1000])
        elif BAD.get(k) == "not CIFTI":
            path.write_bytes(b"not CIFTI" * 100)
        if BAD.get(k) != "no confounds":
            table = pd.DataFrame(
                {"csf": rng.normal(size=N_TIMES), "framewise_displacement": rng.uniform(0, 0.4, N_TIMES)}
            )
            table.loc[[7, 20], "framewise_displacement"] = 0.9
            table.to_csv(func / f"{run}_desc-confounds_timeseries.tsv", sep="\t", index=False)
        (func / f"{run}_space-fsLR_den-91k_bold.json").write_text(json.dumps({"RepetitionTime": 2.0}))
    atlas_axis = dense.models(np.random.default_rng(3), share=0.9)
    labels, weights = rng.integers(0, 6, len(atlas_axis)), rng.random((3, len(atlas_axis)))
    dense.save(dense.labels_image(labels, atlas_axis), folder / "atlas-Toy_dseg.dlabel.nii")
    dense.save(dense.scalars_image(weights, atlas_axis), folder / "atlas-Maps_probseg.dscalar.nii")
    runs, _ = find_runs(folder / "d", grayordinates=True, require_confounds=False)
    assert len(runs) == N_RUNS
    assert statuses(configured(folder, "undisturbed"), runs) == {"done": N_RUNS - len(BAD), "failed": len(BAD)}
    files = cohorts.outputs(folder / "undisturbed")
    assert sum(name.endswith(".ptseries.nii") for name in files) == N_RUNS - len(BAD)
    return folder, runs, files


def configured(folder, out, device="cpu"):
    atlases = tuple(
        AtlasFile(folder / name) for name in ("atlas-Toy_dseg.dlabel.nii", "atlas-Maps_probseg.dscalar.nii")
    )
    confounds = {"columns": ["csf"], "fd_threshold": 0.5}
    return Configuration(atlases, folder / out, {"detrend": True}, confounds=confounds, device=device, cifti=True)


def statuses(configuration, runs, **options):
    return Counter(record.status for record in run_cohort(configuration, runs, **options))


def test_killed_at_random_moments(made):
    folder, runs, files = made
    ends = cohorts.killed_at_random_moments(configured(folder, "killed"), runs, n=20, longest=0.2)
    assert ends.count(signal.SIGKILL) >= 10
    assert ends[-1] == 0
    cohorts.check_whole(folder / "killed", files, runs)


def test_processes(made):
    """Two processes write the bytes of one, and have nothing to do a second time."""
    folder, runs, files = made
    configuration = configured(folder, "processes")
    n_good = N_RUNS - len(BAD)
    assert statuses(configuration, runs, n_procs=2) == {"done": n_good, "failed": len(BAD)}
    records = [json.loads(path.read_text()) for path in folder.glob("processes/logs/sub-*.json")]
    assert len({record["pid"] for record in records if record["status"] == "done"}) == 2
    cohorts.check_whole(folder / "processes", files, runs)
    assert statuses(configuration, runs) == {"skipped": n_good, "failed": len(BAD)}
    cohorts.check_whole(folder / "processes", files, runs)


@pytest.mark.gpu
def test_on_a_gpu(made):
    """Twice the same bytes, and the numbers of the CPU."""
    folder, runs, files = made
    outs = [folder / "gpu", folder / "gpu again"]
    for out in outs:
        assert statuses(configured(folder, out.name, "cuda"), runs)["done"] == N_RUNS - len(BAD)
    found = cohorts.outputs(outs[0])
    assert cohorts.outputs(outs[1]) == found
    assert found.keys() == files.keys()
    described = [json.loads(found[name]) for name in found if name.endswith("stat-mean_timeseries.json")]
    assert {one["Device"] for one in described} == {"cuda"}
    for name in found:
        ours, theirs = outs[0] / name, folder / "undisturbed" / name
        if name.endswith("timeseries.tsv"):
            np.testing.assert_allclose(pd.read_table(ours), pd.read_table(theirs), rtol=0, atol=1e-5)
        elif name.endswith(".nii"):
            np.testing.assert_allclose(nib.load(ours).get_fdata(), nib.load(theirs).get_fdata(), rtol=0, atol=1e-4)
