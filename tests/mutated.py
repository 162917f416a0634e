"""A pytest plugin that runs the tests on a package with one fault in it, named in the environment variable MUTANT.

`outcome` and `are_green` start such processes: a kernel that leaves its arrays behind ends its process.
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def apply(module, before, after):
    """Execute the text of ``gpumask.<module>`` anew, with the only `before` in it replaced by `after`."""
    module = importlib.import_module(f"gpumask.{module}")
    path = Path(module.__file__)
    text = path.read_text("utf-8")
    if text.count(before) != 1:
        msg = f"{path.name} has {text.count(before)} of {before!r}, not one: bring the mutant up to date."
        raise LookupError(msg)
    exec(compile(text.replace(before, after), path, "exec"), vars(module))


def outcome(arguments, mutant=None, **environment):
    """Exit status and output of a Python process at the root of the repository; a mutant is module, before, after."""
    path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry)])
    environment = {**os.environ, "PYTHONPATH": path, "GPUMASK_TEST_CUPY": "require", **environment}
    if mutant:
        environment["MUTANT"] = json.dumps(mutant)
    process = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )
    output = process.stdout + process.stderr
    assert "g++ failed" not in output, f"the mutant doesn't compile, so it proves nothing:\n{output}"
    assert "LookupError" not in output, output
    return process.returncode, output


def are_green(checks, options, mutant=None):
    """Whether tests pass on the emulated GPU with these options; `checks` are arguments of pytest."""
    arguments = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "cpucuda_pytest", "-p", "tests.mutated"]
    arguments += ["-W", "ignore::ResourceWarning", "-W", "ignore::pytest.PytestUnraisableExceptionWarning", *checks]
    status, output = outcome(arguments, mutant, ACT=options)
    assert status in (0, 1) or status < 0, output  # passed, failed, or ended by a signal
    return status == 0


if "MUTANT" in os.environ:
    apply(*json.loads(os.environ["MUTANT"]))
