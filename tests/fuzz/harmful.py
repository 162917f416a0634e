"""``python -m tests.fuzz.harmful``: work that must be reported as a fault; exits with 1 if any isn't."""

import os
import time
import warnings

import numpy as np

from . import bounded
from .verdicts import refusal


def _refuse(error):
    return refusal(error, "run.nii")


HARM = {
    "names no file": lambda: _refuse(ValueError("something is wrong")),
    "ended by signal 9": lambda: os.kill(os.getpid(), 9),
    "ended by signal 14": lambda: time.sleep(60),
    "ended by signal 24": lambda: all(True for _ in iter(int, 1)),  # processor time
    "MemoryError": lambda: np.ones(2**27).sum(),  # 1 GB
    "KeyError: 'run.nii'": lambda: _refuse(KeyError("run.nii")),
    "UnicodeDecodeError": lambda: _refuse(UnicodeDecodeError("utf-8", b"run.nii", 0, 1, "invalid start byte")),
    "RuntimeWarning: overflow": lambda: warnings.warn("overflow", RuntimeWarning, stacklevel=1),
    "a line of 10000 characters": lambda: _refuse(ValueError("run.nii".ljust(10_000))),
}

if __name__ == "__main__":
    bounded.CPU_SECONDS = bounded.SECONDS = 1
    assert bounded.bounded(lambda: _refuse(ValueError("run.nii is wrong")))[:2] == ("ValueError", "")
    for expected, work in HARM.items():
        if expected == "ended by signal 24":
            bounded.SECONDS = 20
        report = bounded.bounded(work)
        assert report.outcome == "fault", (expected, report)
        assert expected in report.fault, (expected, report)
