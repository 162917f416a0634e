"""One run through the masker: gpumask and nilearn side by side, results compared before anything is timed.

    python -m benchmarks.masker [--rounds 5] [--volumes 200] [--folder DIR]

"first" is `fit_transform` in a new process: compiling the plan and touching memory for the first time are in it. "next"
is `transform` of one more run with the same masker, as in a cohort. Each measurement is a process of its own, gpumask's
and nilearn's in turn, and peak memory is that of its extractions above what the imports took. The files are read once
before, so they are in the system's cache for both. "floor" is the time to decompress the very file with isal and do
nothing else.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from benchmarks import inputs

FULL = {
    "smoothing_fwhm": 6,
    "detrend": True,
    "low_pass": 0.1,
    "high_pass": 0.01,
    "t_r": inputs.T_R,
    "standardize": "zscore_sample",
}
CASES = {
    "mean, .nii": (".nii", {"standardize": None}),
    "mean, .nii.gz": (".nii.gz", {"standardize": None}),
    "6 mm + cleaning, .nii": (".nii", FULL),
    "6 mm + cleaning, .nii.gz": (".nii.gz", FULL),
}


def _peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def extract(tool, case, folder, n_volumes, save=None):
    """Time an extraction and the next one in this process: seconds, and the peak of memory above the imports in MB."""
    import numpy as np

    if tool == "gpumask":
        from gpumask import NiftiLabelsMasker
    else:
        from nilearn.maskers import NiftiLabelsMasker
    suffix, parameters = CASES[case]
    run = str(inputs.bold(folder, n_volumes, suffix=suffix))
    confounds = str(inputs.confounds(folder, n_volumes)) if parameters is FULL else None
    masker = NiftiLabelsMasker(labels_img=str(inputs.atlas(folder)), **parameters)
    imports = _peak_mb()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        signals = masker.fit_transform(run, confounds=confounds)
        between = time.perf_counter()
        masker.transform(run, confounds=confounds)
        end = time.perf_counter()
    if save:
        np.save(save, signals)
    return {"first": between - start, "next": end - between, "peak_mb": _peak_mb() - imports}


def floor(path):
    """Seconds to decompress a file into one reused buffer."""
    from isal import igzip

    buffer = bytearray(1 << 20)
    start = time.perf_counter()
    with igzip.open(path) as file:
        while file._buffer.readinto(buffer):
            pass
    return time.perf_counter() - start


def in_a_process(*arguments):
    """Run this module with `arguments` and return the JSON that it prints."""
    command = [sys.executable, "-m", "benchmarks.masker", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(case, folder, n_volumes):
    """Largest difference between both results, relative to the largest signal; SystemExit beyond the contract."""
    import numpy as np

    with tempfile.TemporaryDirectory() as out:
        saved = {}
        for tool in ("gpumask", "nilearn"):
            in_a_process("--one", tool, case, "--folder", folder, "--volumes", n_volumes, "--save", f"{out}/{tool}.npy")
            saved[tool] = np.load(f"{out}/{tool}.npy")
    ours, theirs = saved["gpumask"], saved["nilearn"]
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        raise SystemExit(f"{case}: {ours.dtype} {ours.shape}, nilearn has {theirs.dtype} {theirs.shape}")
    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not difference < 1e-5:
        raise SystemExit(f"{case}: results differ by {difference:.1e} of the largest signal")
    return difference


def main(argv=None):
    """Compare, time and print a table of medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.masker", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (default: 5)")
    parser.add_argument("--volumes", type=int, default=200, help="length of the run (default: 200)")
    parser.add_argument("--folder", type=Path, help="where inputs are made and kept (default: a temporary folder)")
    parser.add_argument("--one", nargs=2, metavar=("TOOL", "CASE"), help=argparse.SUPPRESS)
    parser.add_argument("--save", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        print(json.dumps(extract(*options.one, options.folder, options.volumes, options.save)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(exist_ok=True, parents=True)
        for suffix in (".nii", ".nii.gz"):
            inputs.bold(folder, options.volumes, suffix=suffix)
        inputs.atlas(folder)
        inputs.confounds(folder, options.volumes)
        shape = " x ".join(map(str, (*inputs.SHAPE, options.volumes)))
        print(f"{shape} int16, 400 regions; medians of {options.rounds} rounds; peak memory above the imports\n")
        print("| work | | gpumask | nilearn | ratio | of the floor | memory: gpumask | nilearn | difference |")
        print("|---|---|---|---|---|---|---|---|---|")
        for case, (suffix, _) in CASES.items():
            difference = compare(case, folder, options.volumes)
            rounds = {"gpumask": [], "nilearn": [], "floor": []}
            for _ in range(options.rounds):
                for tool in ("gpumask", "nilearn"):
                    one = ("--one", tool, case, "--folder", folder, "--volumes", options.volumes)
                    rounds[tool].append(in_a_process(*one))
                rounds["floor"].append(floor(inputs.bold(folder, options.volumes)) if suffix == ".nii.gz" else None)
            for which in ("first", "next"):
                print(_row(case, which, difference, rounds), flush=True)


def _row(case, which, difference, rounds):
    def median(tool, key):
        return statistics.median(one[key] for one in rounds[tool])

    def ratio(tool):
        pairs = zip(rounds[tool], rounds["gpumask"], strict=True)
        return statistics.median(theirs[which] / ours[which] for theirs, ours in pairs)

    above = "-"
    if rounds["floor"][0]:
        pairs = zip(rounds["gpumask"], rounds["floor"], strict=True)
        above = f"{statistics.median(one[which] / floor for one, floor in pairs):.2f}x"
    seconds = (f"{median(tool, which):.2f} s" for tool in ("gpumask", "nilearn"))
    memory = (f"{median(tool, 'peak_mb'):.0f} MB" for tool in ("gpumask", "nilearn"))
    cells = (case, which, *seconds, f"{ratio('nilearn'):.1f}x", above, *memory, f"{difference:.0e}")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
