"""A cohort through gpumask and through nilearn with joblib, on the same cores: runs per minute.

    python -m benchmarks.cohort [--runs 16] [--volumes 200] [--rounds 3] [--folder DIR] [--json FILE]

Each run has two atlases, a brain mask of its own, 12 confounds, detrending, a band-pass filter and z-scores; the time
series are written as TSV files by both. gpumask writes coverage, correlations and sidecars besides, each to the disk
(fsync), and reads a run once for both atlases; nilearn's masker reads it for each. A third way is gpumask's with six
denoisings, each with all of these outputs. Each measurement is a process of its
own, imports and all, the ways in turn; the numbers are compared before anything is timed. The files are read once
before, so they are in the system's cache for all. CPU time (user and system, of all processes) is measured too: other
work on the machine, and a slow disk, change it less.
"""

import argparse
import json
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import inputs
from gpumask.files import appearing_together, write
from gpumask.tables import json_lines

CLEANING = {"detrend": True, "low_pass": 0.1, "high_pass": 0.01, "standardize": "zscore_sample"}
N_REGIONS = (116, 416)
N_DENOISINGS = 6
DENOISED = f"gpumask, {N_DENOISINGS} denoisings"
SPACE = "MNI152NLin2009cAsym"


def make(folder, n_runs, n_volumes, *, tiny=False):
    """Make a folder of derivatives, `d`, with copies of one compressed run, and atlases; once."""
    import nibabel as nib
    import numpy as np
    import pandas as pd

    if (folder / "made.json").exists():
        return
    made = inputs.Inputs(folder / "inputs", tiny=tiny)
    for n_regions in N_REGIONS:
        shutil.copyfile(made.atlas(n_regions), folder / f"atlas-P{n_regions}_dseg.nii.gz")
    atlas, bold, n_volumes = nib.load(made.atlas(N_REGIONS[-1])), made.bold(n_volumes), made.n_volumes(n_volumes)
    brain, rng = np.asarray(atlas.dataobj) > 0, np.random.default_rng(1)
    for k in range(1, n_runs + 1):
        func = folder / "d" / f"sub-{k:03}" / "func"
        func.mkdir(parents=True)
        stem = f"{func}/sub-{k:03}_task-rest"
        shutil.copyfile(bold, f"{stem}_space-{SPACE}_desc-preproc_bold.nii.gz")
        mask = (brain & (rng.random(brain.shape) > 0.001)).astype(np.uint8)
        nib.Nifti1Image(mask, atlas.affine).to_filename(f"{stem}_space-{SPACE}_desc-brain_mask.nii.gz")
        values = np.cumsum(rng.normal(size=(n_volumes, 12)), axis=0)
        table = pd.DataFrame(values, columns=[f"c{j:02}" for j in range(12)])
        table.to_csv(f"{stem}_desc-confounds_timeseries.tsv", sep="\t", index=False)
    (folder / "made.json").write_text(json.dumps({"runs": n_runs, "volumes": n_volumes, "shape": made.shape}))


def by_nilearn(folder, out, n_jobs):
    """Time series of all runs by nilearn's masker, `n_jobs` processes."""
    from joblib import Parallel, delayed

    images = sorted(folder.glob("d/sub-*/func/*_bold.nii.gz"))
    Parallel(n_jobs=n_jobs)(delayed(one_by_nilearn)(folder, image, out) for image in images)


def one_by_nilearn(folder, image, out):
    """One run by nilearn's masker, an atlas after the other."""
    import warnings

    import pandas as pd
    from nilearn.maskers import NiftiLabelsMasker

    warnings.simplefilter("ignore")
    stem = image.name.partition("_desc-")[0]
    mask = image.with_name(f"{stem}_desc-brain_mask.nii.gz")
    confounds = image.with_name(f"{stem.partition('_space-')[0]}_desc-confounds_timeseries.tsv")
    for n_regions in N_REGIONS:
        masker = NiftiLabelsMasker(
            str(folder / f"atlas-P{n_regions}_dseg.nii.gz"), mask_img=str(mask), t_r=inputs.T_R, **CLEANING
        )
        signals = masker.fit_transform(str(image), confounds=str(confounds))
        path = out / f"{stem}_atlas-P{n_regions}_stat-mean_timeseries.tsv"
        pd.DataFrame(signals, columns=list(masker.region_names_.values())[: signals.shape[1]]).to_csv(
            path, sep="\t", index=False, na_rep="n/a"
        )


def by_gpumask(folder, out, n_procs, denoisings=()):
    """A cohort as by ``gpumask cohort``."""
    from gpumask.bids import find_runs
    from gpumask.cohort.configuration import AtlasFile, Configuration
    from gpumask.cohort.executors import run_cohort

    atlases = tuple(AtlasFile(folder / f"atlas-P{n_regions}_dseg.nii.gz") for n_regions in N_REGIONS)
    confounds = {} if denoisings else {"columns": ["c*"]}
    parameters = {**CLEANING, "min_coverage": None}
    configuration = Configuration(atlases, out, parameters, confounds, denoisings, device="cpu")
    runs, problems = find_runs(folder / "d", require_confounds=True)
    bad = [*problems, *(record.error for record in run_cohort(configuration, runs, n_procs=n_procs) if record.error)]
    if bad:
        raise SystemExit(f"not all runs are good: {bad[0]}")


def with_denoisings(folder, out, n_procs):
    """The same, cleaned in six ways."""
    from gpumask.confounds.denoising import Denoising

    by_gpumask(
        folder, out, n_procs, tuple(Denoising(f"d{k}", {"columns": [f"c*[0-{k}]"]}) for k in range(N_DENOISINGS))
    )


WAYS = {"gpumask": by_gpumask, "nilearn": by_nilearn, DENOISED: with_denoisings}


def in_a_process(way, n_workers, folder, out):
    """Wall-clock seconds of a whole process, and CPU seconds of it and its workers."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.cohort",
        "--one",
        way,
        str(n_workers),
        "--folder",
        folder,
        "--out",
        out,
    ]
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    before, started = _cpu_seconds(), time.perf_counter()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return time.perf_counter() - started, _cpu_seconds() - before


def _cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compare(folder):
    """Largest difference of any number, relative to the largest of its table; SystemExit beyond the contract."""
    import numpy as np
    import pandas as pd

    worst = 0.0
    for theirs in sorted((folder / "nilearn").glob("*_timeseries.tsv")):
        (ours,) = (folder / "gpumask").rglob(theirs.name)
        ours, theirs = pd.read_table(ours), pd.read_table(theirs)
        if ours.shape != theirs.shape:
            raise SystemExit(f"tables of {ours.shape} and {theirs.shape}")
        worst = max(worst, float(np.abs(ours.to_numpy() - theirs.to_numpy()).max() / np.abs(theirs.to_numpy()).max()))
    if not worst < 1e-5:
        raise SystemExit(f"results differ by {worst:.1e} of the largest signal")
    return worst


def main(argv=None):
    """Compare, time and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cohort", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=16, help="runs of the cohort (default: 16)")
    parser.add_argument("--volumes", type=int, default=200, help="volumes of each (default: 200)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each way (default: 3)")
    parser.add_argument("--procs", type=int, nargs="+", default=[1, 2], help="processes (default: 1 2)")
    parser.add_argument("--folder", type=Path, help="where inputs are made and kept (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="write all measurements here")
    parser.add_argument("--tiny", action="store_true", help="a small grid, to see that it works")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "N"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        WAYS[options.one[0]](options.folder, options.out, int(options.one[1]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(exist_ok=True, parents=True)
        make(folder, options.runs, options.volumes, tiny=options.tiny)
        made = json.loads((folder / "made.json").read_text())
        for way in ("gpumask", "nilearn"):
            in_a_process(way, max(options.procs), folder, folder / way)
        difference = compare(folder)
        ways = [(way, n) for n in options.procs for way in WAYS]
        seconds, cpu = ({f"{way} {n}": [] for way, n in ways} for _ in range(2))
        for _ in range(options.rounds):
            for way, n in ways:
                wall, used = in_a_process(way, n, folder, folder / way)
                seconds[f"{way} {n}"].append(wall)
                cpu[f"{way} {n}"].append(used)
        report = {
            **made,
            "atlases": N_REGIONS,
            "cores": _cores(),
            "machine": platform.processor() or platform.machine(),
            "difference": difference,
            "seconds": seconds,
            "cpu_seconds": cpu,
        }
        if options.json:
            with appearing_together([options.json]) as (part,):
                write(part, json_lines(report))
        print(_table(report, options.procs))


def _cores():
    from gpumask.process import n_cores

    return n_cores()


def _table(report, procs):
    n_runs = report["runs"]
    shape = " x ".join(map(str, (*report["shape"], report["volumes"])))
    lines = [
        f"{n_runs} runs of {shape} int16 (.nii.gz), atlases of {' and '.join(map(str, report['atlases']))} regions; "
        f"{report['cores']} cores; medians of {len(next(iter(report['seconds'].values())))}; numbers within "
        f"{report['difference']:.0e}",
        "",
        "| processes | gpumask, runs/min | nilearn + joblib, runs/min | ratio "
        f"| {N_DENOISINGS} denoisings / one | CPU time |",
        "|---|---|---|---|---|---|",
    ]
    for n in procs:
        ours, theirs, several = (report["seconds"][f"{way} {n}"] for way in WAYS)
        speeds = (60 * n_runs / statistics.median(times) for times in (ours, theirs))
        ratio = statistics.median(their / our for our, their in zip(ours, theirs, strict=True))
        longer = statistics.median(own / our for our, own in zip(ours, several, strict=True))
        one, six = (report["cpu_seconds"][f"{way} {n}"] for way in ("gpumask", DENOISED))
        more = statistics.median(own / our for our, own in zip(one, six, strict=True))
        name = f"{n} (a thread per core)" if n == 1 else n
        lines.append(
            f"| {name} | {' | '.join(f'{speed:.1f}' for speed in speeds)} | {ratio:.1f}x | {longer:.2f} | {more:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
