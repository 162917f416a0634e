"""Absurd arguments of the masker and of the command line."""

import os
import traceback

import numpy as np

from gpumask import NiftiLabelsMasker
from gpumask.backend import DeviceError
from gpumask.confounds.sample_masks import AllVolumesRemovedError
from gpumask.images.errors import DimensionError, ImageError

from .. import cohorts
from . import absurd
from .mutations import pick
from .verdicts import FaultError, check_message, run_cli, shown

_SHAPE = (5, 4, 3)
_REFUSALS = (ValueError, TypeError, IndexError, ImageError, DimensionError, AllVolumesRemovedError, DeviceError)
_OURS = (
    "gpumask",
    "sklearn",
    "<",
)  # where an error is raised: scikit-learn and NumPy's `dtype` have messages of their own


class Options:
    """One or two absurd arguments among good ones."""

    def __init__(self, folder):
        self._folder = folder
        cohorts.make_cohort(folder / "d", 2, bad=False, shape=_SHAPE, n_volumes=absurd.N)
        self._atlas, _ = cohorts.make_atlases(folder, _SHAPE)
        self._run = next((folder / "d").rglob("*_bold.nii.gz"))
        self._table = next((folder / "d").rglob("*timeseries.tsv"))
        parameters = [name for name in NiftiLabelsMasker().get_params() if name not in ("memory", "verbose")]
        self._names = [*parameters, "confounds", "confounds", "sample_mask", "sample_mask", "clean_args"]
        os.chdir(folder)  # for relative paths

    def draw(self, rng):
        """What is absurd, and the work that uses it."""
        return pick(rng, (self._masker, self._masker, self._command))(rng)

    def _masker(self, rng):
        names = rng.choice(self._names, int(rng.integers(1, 3)), replace=False)
        given = {str(name): pick(rng, absurd.VALUES) for name in names}
        if "clean_args" in given and rng.integers(2):
            given["clean_args"] = {pick(rng, absurd.CLEANING): given["clean_args"]}
        what = ", ".join(f"{name}={value!r:.60}" for name, value in given.items())
        return what, lambda: self._extract(given)

    def _extract(self, given):
        parameters = {"labels_img": self._atlas, "device": "cpu", "t_r": 2.0, **given}
        passed = {name: parameters.pop(name) for name in ("confounds", "sample_mask") if name in parameters}
        try:
            signals = NiftiLabelsMasker(**parameters).fit().transform(self._run, **passed)
        except OSError as error:
            check_message(str(error), *np.unique([str(value) for value in given.values()]), *absurd.PATHS)
            return type(error).__name__
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1].filename
            if type(error) not in _REFUSALS or not any(name in where for name in _OURS):
                raise FaultError(shown(error)) from error
            check_message(str(error))
            return type(error).__name__
        if signals.ndim != 2:
            msg = f"signals of shape {signals.shape}"
            raise FaultError(msg)
        return "numbers"

    def _command(self, rng):
        command = pick(rng, ("extract", "cohort"))
        options = absurd.OF_COHORT if command == "cohort" else absurd.OF_EXTRACT
        strange = {pick(rng, options): pick(rng, absurd.WORDS) for _ in range(int(rng.integers(1, 3)))}
        given = {"--atlas": self._atlas, "--device": "cpu"}
        if command == "cohort":
            words = ["cohort", self._folder / "d", self._folder / "c", "participant", "--dry-run"]
        else:
            words = ["extract", self._run, "--overwrite"]
            given |= {"--out": self._folder / "e", "--confounds": self._table}
        words += [f"{name}={value}" for name, value in {**given, **strange}.items()]
        what = " ".join([command, *(f"{name}={value!r:.60}" for name, value in strange.items())])
        return what, lambda: f"status {run_cli(words)[0]}"
