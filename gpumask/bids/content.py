"""Files whose content isn't here: what git-annex, DataLad and Git LFS leave in place of files they haven't fetched."""

import os
import stat

from gpumask.inputs import open_file

_LONGEST_POINTER = 1024  # bytes
_POINTERS = {
    b"/annex/objects/": "is a git-annex pointer whose content isn't here (datalad get)",
    b"version https://git-lfs.github.com/spec/": "is a Git LFS pointer whose content isn't here (git lfs pull)",
}


def absence(path: str | os.PathLike) -> str | None:
    """The reason why a listed file has no content here; None if it has, or if no such file exists."""
    try:
        state = os.stat(path)  # noqa: PTH116
    except OSError:
        return "is a link whose content isn't here (datalad get)" if os.path.islink(path) else None  # noqa: PTH114
    if stat.S_ISREG(state.st_mode) and state.st_size <= _LONGEST_POINTER:
        with open_file(path) as file:
            start = file.read(64)
        return next((reason for pointer, reason in _POINTERS.items() if start.startswith(pointer)), None)
    return None


def check_content(*paths: str | os.PathLike | None) -> None:
    """Raise a FileNotFoundError for the first of some files whose content isn't here; None is skipped.

    Files that don't exist are left to those who open them.
    """
    for path in paths:
        if path is not None and (reason := absence(path)):
            msg = f"{os.fspath(path)} {reason}"
            raise FileNotFoundError(msg)
