"""The group step of a large cohort: `gpumask cohort OUT OUT group` of made runs, with time and peak memory.

    python -m benchmarks.group [--runs 40000] [--regions 100] [--denoisings 2] [--folder DIR] [--store] [--tangent]

gpumask processes a few small runs. Each further one is a record of its own, whose outputs are hard links to theirs: so
the files of many runs are all there, in the form that gpumask writes, and take little space. They are in the system's
cache: what a disk needs to read them isn't measured.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.cohort import SPACE

_MADE = 20  # runs that gpumask processes


def make(folder, n_runs, n_regions, n_denoisings, n_volumes):
    """Make a cohort's output folder of `n_runs` runs, ``out``; once."""
    if (folder / "made.json").exists():
        return
    _process(folder, n_regions, n_denoisings, n_volumes)
    out, records, draw = folder / "out", sorted(folder.glob("out/logs/*.json")), random.Random(0)
    for k in range(_MADE, n_runs):
        record = records[k % _MADE]
        earlier, own = record.name.partition("_")[0], f"sub-{k:05}"
        (out / own / "func").mkdir(parents=True)
        text = record.read_text()
        for path in (output["path"] for output in json.loads(text)["outputs"]):
            os.link(out / path, out / path.replace(earlier, own))
        content = json.loads(text.replace(earlier, own))
        for numbers in content["quality"].values():  # of its own, as far as they aren't counts
            numbers.update({name: of * draw.uniform(0.5, 2) for name, of in numbers.items() if isinstance(of, float)})
        record.with_name(record.name.replace(earlier, own)).write_text(json.dumps(content, indent=2))
    (folder / "made.json").write_text(json.dumps({"runs": n_runs}))


def _process(folder, n_regions, n_denoisings, n_volumes):
    import nibabel as nib
    import numpy as np
    import pandas as pd

    rng, affine, size = np.random.default_rng(0), np.diag([3.0, 3.0, 3.0, 1.0]), round((8 * n_regions) ** (1 / 3)) + 1
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.arange(size**3).reshape(size, size, size) * n_regions // size**3 + 1
    nib.Nifti1Image(labels.astype(np.int16), affine).to_filename(folder / "atlas-Made_dseg.nii.gz")
    for k in range(_MADE):
        func = folder / "d" / f"sub-{k:05}" / "func"
        func.mkdir(parents=True)
        stem = f"{func}/sub-{k:05}_task-rest"
        image = nib.Nifti1Image(rng.integers(500, 900, (size, size, size, n_volumes)).astype(np.int16), affine)
        image.header.set_zooms((3, 3, 3, 2))
        image.header.set_xyzt_units("mm", "sec")
        image.to_filename(f"{stem}_space-{SPACE}_desc-preproc_bold.nii.gz")
        mask = (labels > k % min(7, n_regions)) & (rng.random(labels.shape) > 0.1)
        nib.Nifti1Image(mask.astype(np.uint8), affine).to_filename(f"{stem}_space-{SPACE}_desc-brain_mask.nii.gz")
        table = pd.DataFrame(rng.normal(size=(n_volumes, 3)), columns=["csf", "white_matter", "trans_x"])
        table["framewise_displacement"] = [np.nan, *rng.gamma(2, 0.02 * (1 + k % 5), n_volumes - 1)]
        table.to_csv(f"{stem}_desc-confounds_timeseries.tsv", sep="\t", index=False, na_rep="n/a")
    denoisings = []
    for k in range(n_denoisings):
        path = folder / f"d{k}.toml"
        path.write_text(
            f"columns = {json.dumps(['csf', 'white_matter', 'trans_x'][: 1 + k % 3])}\nfd_threshold = 0.5\n"
        )
        denoisings.append(f"d{k}={path}")
    words = ["cohort", folder / "d", folder / "out", "participant", f"--atlas={folder / 'atlas-Made_dseg.nii.gz'}"]
    words += ["--denoise", *denoisings, "--min-time", "0", "--min-dof", "0", "--device", "cpu", "--quiet"]
    subprocess.run([sys.executable, "-m", "gpumask", *map(str, words)], check=True)


def main(argv=None):
    """Make the folder, summarize it, and print what that took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.group", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=40_000, help="runs of the cohort (default: 40000)")
    parser.add_argument("--regions", type=int, default=100, help="regions of the atlas (default: 100)")
    parser.add_argument("--denoisings", type=int, default=2, help="denoisings of each run (default: 2)")
    parser.add_argument("--volumes", type=int, default=30, help="volumes of each run (default: 30)")
    parser.add_argument("--folder", type=Path, help="where the cohort is made and kept (default: a temporary folder)")
    parser.add_argument("--store", action="store_true", help="write a Parquet file too")
    parser.add_argument("--tangent", action="store_true", help="write the tangent space too")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        make(folder, options.runs, options.regions, options.denoisings, options.volumes)
        words = ["cohort", folder / "d", folder / "out", "group"]
        words += [f"--store={folder / 'out' / 'all.parquet'}"] * options.store + ["--tangent"] * options.tangent
        started = time.perf_counter()
        command = [sys.executable, "-m", "gpumask", *map(str, words)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        seconds, process.returncode = time.perf_counter() - started, os.waitstatus_to_exitcode(status)
        if status:
            raise SystemExit(f"{command} ended with the status {process.returncode}")
        page = (folder / "out" / "cohort.html").stat().st_size
    print(
        f"{options.runs} runs of {options.denoisings} denoisings and {options.regions} regions: {seconds:.1f} s, "
        f"{used.ru_utime + used.ru_stime:.1f} s of CPU, {used.ru_maxrss / 1024:.0f} MB, page {page / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
