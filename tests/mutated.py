"""A pytest plugin that runs the tests on a package with one fault in it, named in the environment variable MUTANT."""

import importlib
import json
import os
from pathlib import Path


def apply(module, before, after):
    """Execute the text of a module anew, with the only `before` in it replaced by `after`.

    It is one of ``gpumask.kernels``, or named in full.
    """
    module = importlib.import_module(module if "." in module else f"gpumask.kernels.{module}")
    path = Path(module.__file__)
    text = path.read_text("utf-8")
    if text.count(before) != 1:
        msg = f"{path.name} has {text.count(before)} of {before!r}, not one: bring the mutant up to date."
        raise LookupError(msg)
    exec(compile(text.replace(before, after), path, "exec"), vars(module))


if "MUTANT" in os.environ:
    apply(*json.loads(os.environ["MUTANT"]))
