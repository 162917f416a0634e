"""Mutated dense series and label atlases (CIFTI-2); signals are compared with means of what nibabel reads."""

import re

import nibabel as nib
import numpy as np

from gpumask import NiftiLabelsMasker

from .. import dense
from . import mutations
from .verdicts import FaultError, refusal

_WORDS = (b"0", b"-1", b"1e3", b"1.5", b"nan", b"", b"99999999999", b"2147483648", b"60", b"x")


class Grayordinates:
    """A series and an atlas of few grayordinates; one of them is mutated."""

    def __init__(self, folder):
        rng = np.random.default_rng(0)
        axis, atlas_axis = dense.models(rng), dense.models(rng)
        self._paths = {"run": folder / "run.dtseries.nii", "atlas": folder / "atlas.dlabel.nii"}
        stored = rng.integers(0, 200, (6, len(axis)))
        labels = dense.labels_image(rng.choice([0, 1, 2, 900], len(atlas_axis)), atlas_axis)
        self._made = {}
        for dtype in ("<f4", "<i2", ">i2"):
            dense.save(labels, self._paths["atlas"])
            dense.save(dense.series_image(stored.astype("f4"), axis), self._paths["run"])
            if dtype != "<f4":
                dense.recoded(self._paths["run"], dtype, stored, 0.5, 3.0)
            self._made[dtype] = {role: path.read_bytes() for role, path in self._paths.items()}

    def draw(self, rng):
        """What is mutated, and the work that uses it."""
        dtype = mutations.pick(rng, list(self._made))
        role = mutations.pick(rng, ("run", "atlas"))
        data, what = self._made[dtype][role], []
        of = mutations.pick(rng, ("header", "XML", "XML", "XML bytes", "bytes"))
        for _ in range(int(rng.integers(1, 3))):
            data, how = self._mutated(rng, data, of)
            what.append(how)
        for each, path in self._paths.items():
            path.write_bytes(data if each == role else self._made[dtype][each])
        return f"{dtype}, {role}: {'; '.join(what)}", self._use

    def _mutated(self, rng, data, of):
        if of == "header":
            return mutations.of_header(rng, data, nib.Nifti2Header.template_dtype)
        start, stop = data.find(b"<CIFTI"), data.rfind(b"</CIFTI>")
        if of == "bytes" or start < 0:
            return mutations.of_bytes(rng, data)
        xml = data[start:stop]
        if of == "XML bytes":  # of the same length, so that the values stay where they are
            changed, how = mutations.of_bytes(rng, xml)
            changed = changed[: len(xml)].ljust(len(xml))
        else:
            word = mutations.pick(rng, list(re.finditer(rb"-?[\d.]+|[A-Z_]{5,}|\w+=\"[^\"]*\"", xml)))
            new = mutations.pick(rng, _WORDS) if rng.integers(2) else mutations.pick(rng, re.findall(rb"[\w.-]+", xml))
            changed, how = xml[: word.start()] + new + xml[word.end() :], f"{word[0]!r} at {word.start()} = {new!r}"
            changed = changed.rstrip()[: len(xml)].ljust(len(xml))
        return data[:start] + changed + data[stop:], how

    def _use(self):
        masker = NiftiLabelsMasker(self._paths["atlas"], device="cpu", reports=False)
        try:
            signals = masker.fit().transform(self._paths["run"])
        except Exception as error:
            return refusal(error, *self._paths.values())
        with np.errstate(all="ignore"):
            try:
                run, atlas = (nib.load(path) for path in self._paths.values())
                values, labels = run.get_fdata(), atlas.get_fdata()[0]
                axes = run.header.get_axis(1), atlas.header.get_axis(1)
            except Exception as error:
                msg = f"signals, but nibabel can't read the files: {type(error).__name__}: {error}"
                raise FaultError(msg) from error
            expected = dense.by_definition(values, axes[0], labels, axes[1])[1]
            expected = expected[:, ~np.isnan(expected).all(axis=0)]
            if signals.shape != expected.shape:
                msg = f"signals have shape {signals.shape}, expected {expected.shape}"
                raise FaultError(msg)
            decided = np.isfinite(expected) & (np.abs(expected) < 1e30)
            sizes = np.abs(np.where(np.isfinite(values), values, 0)).max(axis=1, keepdims=True)
            wrong = decided & ~(np.abs(signals - expected) <= 1e-5 * sizes + 1e-30)
            if wrong.any():
                msg = f"{wrong.sum()} signals differ, first {signals[wrong][0]}, expected {expected[wrong][0]}"
                raise FaultError(msg)
        return "equal"
