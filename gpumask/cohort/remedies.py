"""What to do about errors of runs whose messages don't say it: those of the system, of libraries, and of tables."""

import re

_REMEDIES = {
    r"No space left on device|Disk quota exceeded": "Free space for the output folder, and repeat the command.",
    r"Permission denied|Operation not permitted|Read-only file system": "Allow reading the file, or writing to the "
    "folder, and repeat the command.",
    r"Input/output error|Stale file handle|Transport endpoint|Connection (reset|refused|timed out)": "The file system "
    "failed: repeat the command. If it fails again, copy the file to a local disk.",
    r"Too many open files": "Raise the limit (ulimit -n), or have fewer runs at a time (cohort: --nprocs, --nthreads).",
    r"Unable to allocate|[Oo]ut of memory|OutOfMemory|MemoryError|bad_alloc": "Give the job more memory, or have "
    "fewer runs at a time (cohort: --nprocs, --nthreads).",
    r"is truncated|corrupt|Not a gzipped file|CRC check failed|Compressed file ended": "Copy or create the file again, "
    "then repeat the command.",
    r"No such file or directory": "Bring the file back, or remove the run from the list, and repeat the command.",
    r"No module named|cannot import name": "Install the package where the runs are processed, and repeat the command.",
    r"has \d+ rows, but .* has \d+ volumes": "Give the confounds of this run: a row per volume of the image.",
    r"has no column .*\. Its \d+ columns include": "Request columns that the tables of all runs have, or leave the run "
    "out.",
    r"censors all \d+ volumes": "Leave the run out, or censor less.",
    r"only NaN, infinite values and 0 in volume": "Create the image again, or leave the run out.",
    r"is a 3D image, expected a run": "Leave it out, or give the run's 4D image.",
}
_PATTERN = re.compile("|".join(f"({pattern.replace('(', '(?:')})" for pattern in _REMEDIES))


def remedy(message: str) -> str:
    """What to do about an error, or an empty text if its message has to say it."""
    found = _PATTERN.search(message)
    words = list(_REMEDIES.values())[found.lastindex - 1] if found and found.lastindex else ""
    return "" if words.partition(",")[0].rstrip(".") in message else words
