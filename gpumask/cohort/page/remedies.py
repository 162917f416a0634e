"""What to do about errors whose messages don't say it: those of the system, and of libraries."""

import re

_REMEDIES = {
    r"No space left on device|Disk quota exceeded": "Free space for the output folder, and repeat the command.",
    r"Permission denied|Operation not permitted|Read-only file system": "Allow reading the file, or writing to the "
    "folder, and repeat the command.",
    r"Input/output error|Stale file handle|Transport endpoint|Connection (reset|refused|timed out)": "The file system "
    "failed: repeat the command. If it fails again, copy the file to a local disk.",
    r"Too many open files": "Raise the limit (ulimit -n), or use a smaller --nprocs.",
    r"Unable to allocate|[Oo]ut of memory|OutOfMemory|MemoryError|bad_alloc": "Repeat the command with a smaller "
    "--nprocs, or with more memory per job.",
    r"is truncated|corrupt|Not a gzipped file|CRC check failed|Compressed file ended": "Copy or create the file again, "
    "then repeat the command.",
    r"No such file or directory": "Bring the file back, or remove the run from the list, and repeat the command.",
    r"No module named|cannot import name": "Install the package where the runs are processed, and repeat the command.",
}
_PATTERN = re.compile("|".join(f"({pattern.replace('(', '(?:')})" for pattern in _REMEDIES))


def remedy(message: str) -> str:
    """What to do about an error, or an empty text if its message has to say it."""
    found = _PATTERN.search(message)
    return list(_REMEDIES.values())[found.lastindex - 1] if found and found.lastindex else ""
