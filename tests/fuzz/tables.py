"""Mutated tables and JSON files; signals cleaned by a table without doubt are compared with a regression."""

import contextlib
import gzip
import json
import shutil

import nibabel as nib
import numpy as np

from gpumask import NiftiLabelsMasker

from .. import cohorts
from . import mutations
from .verdicts import FaultError, check_message, refusal, run_cli

_SHAPE, _N = (5, 4, 3), 24


class Tables:
    """Confounds, look-up tables, lists of runs, and JSON metadata next to an image."""

    def __init__(self, folder):
        rng = np.random.default_rng(1)
        self._folder = folder
        cohorts.make_cohort(folder / "d", 2, bad=False, shape=_SHAPE, n_volumes=_N)
        self._atlas, _ = cohorts.make_atlases(folder, _SHAPE)
        self._func = folder / "d" / "sub-01" / "func"
        self._run = next(self._func.glob("*run-1*_bold.nii.gz"))
        self._plain = folder / "plain.nii"  # next to no table
        image = nib.load(self._run)
        self._values = np.asarray(image.dataobj, float)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine), self._plain)
        self._labels = np.asarray(nib.load(self._atlas).dataobj)
        self._matrix = rng.normal(size=(_N, 3)).round(3)
        self._whole = {path: path.read_bytes() for path in (folder / "d").rglob("*") if path.is_file()}
        self._lut = b"index\tname\tcolour\n" + b"".join(
            b"%d\tRegion%d\tred\n" % (n, n) for n in np.unique(self._labels) if n
        )

    def draw(self, rng):
        """What is mutated, and the work that uses it."""
        for path, content in self._whole.items():
            path.write_bytes(content)
        kinds = (self._confounds, self._confounds, self._lookup, self._manifest, self._metadata, self._dataset)
        return mutations.pick(rng, kinds)(rng)

    def _confounds(self, rng):
        separator, suffix = ("\t", ".tsv") if rng.integers(2) else (",", ".csv")
        lines = [
            separator.join(("trans_x", "csf", "framewise_displacement")),
            *(separator.join(map(repr, row)) for row in self._matrix.tolist()),
        ]
        content, what = mutations.of_table(rng, "\n".join(lines).encode() + b"\n", separator)
        if rng.integers(4) == 0:
            content, suffix = gzip.compress(content), suffix + ".gz"
        path = self._folder / f"confounds{suffix}"
        path.write_bytes(content)
        if rng.integers(3) == 0:
            words = ["extract", self._plain, "--atlas", self._atlas, "--confounds", path, "--out", self._folder / "out"]
            words += [
                "--overwrite",
                "--min-time",
                "0",
                "--device",
                "cpu",
                *(["--fd-threshold", "0.5"] if rng.integers(2) else []),
            ]
            return f"extract --confounds *{suffix}: {what}", lambda: self._command(words, path)

        def use():
            try:
                signals = NiftiLabelsMasker(self._atlas, device="cpu").fit().transform(self._plain, confounds=path)
            except Exception as error:
                return refusal(error, path)
            matrix = strict_matrix(content, separator)
            return self._cleaned(signals, matrix)

        return f"confounds*{suffix}: {what}", use

    def _cleaned(self, signals, matrix):
        if not np.isfinite(signals).all():
            msg = "signals aren't finite"
            raise FaultError(msg)
        if matrix is None or np.abs(matrix).max() > 1e6:
            return "numbers"
        raw = np.stack([self._values[self._labels == n].mean(0) for n in np.unique(self._labels) if n], axis=1)
        spread = matrix.std(axis=0)
        centered = (matrix - matrix.mean(axis=0))[:, spread > 1e-9]
        expected = raw - centered @ np.linalg.lstsq(centered, raw - raw.mean(axis=0), rcond=1e-9)[0]
        if not np.allclose(signals, expected, 1e-6, 1e-6):
            msg = f"signals differ by up to {np.abs(signals - expected).max()}"
            raise FaultError(msg)
        return "equal"

    def _lookup(self, rng):
        content, what = mutations.of_table(rng, self._lut)
        path = self._folder / "lut.tsv"
        path.write_bytes(content)
        if rng.integers(2):
            words = ["extract", self._plain, "--atlas", self._atlas, "--lut", path, "--out", self._folder / "out"]
            return f"--lut: {what}", lambda: self._command([*words, "--overwrite", "--device", "cpu"], path)

        def use():
            try:
                NiftiLabelsMasker(self._atlas, lut=path, device="cpu").fit()
            except Exception as error:
                return refusal(error, path)
            return "names"

        return f"lut: {what}", use

    def _manifest(self, rng):
        path = self._folder / "runs.tsv"
        rows = [("bold", "confounds", "mask", "t_r", "name")]
        for run in sorted(self._func.glob("*_bold.nii.gz")):
            stem = run.name.split("_space-")[0]
            mask = run.with_name(run.name.replace("desc-preproc_bold", "desc-brain_mask"))
            rows.append((run, run.with_name(f"{stem}_desc-confounds_timeseries.tsv"), mask, "2.0", stem))
        text = "".join("\t".join(map(str, row)) + "\n" for row in rows)
        content, what = mutations.of_table(rng, text.encode())
        path.write_bytes(content)
        words = ["cohort", path, self._folder / "cohort", "participant", "--atlas", self._atlas, "--device", "cpu"]
        words += ["--min-time", "0", *(["--dry-run"] if rng.integers(2) else [])]
        return f"list of runs: {what}", lambda: self._command(words, path, self._func)

    def _metadata(self, rng):
        path = self._run.with_name(self._run.name.replace(".nii.gz", ".json"))
        rich = json.dumps(
            {**json.loads(self._whole[path]), "SliceTiming": [0.0, 0.5], "SkullStripped": True, "StartTime": 0.97}
        )
        content, what = mutations.of_json(rng, rich.encode())
        path.write_bytes(content)
        words = ["extract", self._run, "--atlas", self._atlas, "--out", self._folder / "out", "--overwrite"]
        words += ["--device", "cpu", *(["--high-pass", "0.01"] if rng.integers(2) else [])]
        return f"metadata: {what}", lambda: self._command(words, path)

    def _dataset(self, rng):
        path = self._folder / "d" / "dataset_description.json"
        whole = {"Name": "made", "BIDSVersion": "1.9.0", "GeneratedBy": [{"Name": "fMRIPrep", "Version": "24.1"}]}
        content, what = mutations.of_json(rng, json.dumps(whole).encode())
        path.write_bytes(content)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._folder / "derived")
        words = ["cohort", self._folder / "d", self._folder / "derived", "participant", "--atlas", self._atlas]
        return f"dataset_description.json: {what}", lambda: self._command([*words, "--device", "cpu"], path, self._func)

    def _command(self, words, *names):
        code, _, said = run_cli(words)
        if code:
            check_message(said, *names)
        return f"status {code}"


def strict_matrix(content, separator):
    """Values of a table that has no doubt: ASCII, a first line of names, then rows of as many plain numbers."""
    try:
        text = content.decode("ascii")
        names, *rows = (line.split(separator) for line in text.removesuffix("\n").split("\n"))
        if any(char in text for char in "\"'#\r\v\x1c\0 _") or not all(name[:1].isalpha() for name in names):
            return None
        if not all(len(row) == len(names) and all(set(cell) <= set("0123456789.-") for cell in row) for row in rows):
            return None
        return np.array(rows, float)
    except (ValueError, UnicodeDecodeError, gzip.BadGzipFile):
        return None
