"""What an outcome may be: a documented error that names the file, or no other warning than gpumask's own."""

import contextlib
import io
import traceback
import warnings

from gpumask import cli
from gpumask.confounds.sample_masks import AllVolumesRemovedError
from gpumask.images.errors import DimensionError, ImageError

LONGEST = 6000  # characters of a line; some messages repeat a word of the command line, here of up to 5000
_DOCUMENTED = (ValueError, ImageError, DimensionError, AllVolumesRemovedError)  # and OSError
_NOT_OURS = ("MemoryError", "Unable to allocate", "Traceback", "can't start new thread")


class FaultError(Exception):
    """What gpumask must not do."""


def shown(error):
    """An error's traceback; the end of a long one."""
    return "".join(traceback.format_exception(error))[-5000:]


def refusal(error, *names):
    """The outcome of a refused input; a fault if the error isn't a documented one, or names none of the files."""
    if not (isinstance(error, OSError) or type(error) in _DOCUMENTED):
        raise FaultError(shown(error))
    check_message(str(error), *names)
    return type(error).__name__


def check_message(said, *names):
    """A fault if a message names none of the files, is about memory, or is too long."""
    longest = max(said.splitlines(), key=len, default="")
    problem = None
    if names and not any(str(name) in said for name in names):
        problem = "names no file"
    elif any(word in said for word in _NOT_OURS):
        problem = "out of memory, or a traceback"
    elif len(longest) > LONGEST:
        problem = f"a line of {len(longest)} characters"
    if problem:
        msg = f"{problem}: {said[:1000]}"
        raise FaultError(msg)


def check_warnings(caught):
    """A fault if NumPy or another library warns; nibabel leaves MGH files open, and nilearn announces a removal."""
    for one in caught:
        allowed = issubclass(one.category, UserWarning | ResourceWarning) or "keep_masked_labels" in str(one.message)
        if not allowed:
            msg = f"{one.category.__name__}: {one.message}, {one.filename}:{one.lineno}"
            raise FaultError(msg)


def run_cli(words):
    """Status, output and messages of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        code = cli.main(list(map(str, words)))
    check_warnings(caught)
    check_message(out.getvalue())
    check_message(err.getvalue())
    if code not in (0, 1, 2) or (code and not err.getvalue().strip()):
        msg = f"status {code}, with the message: {err.getvalue()[:2000]!r}"
        raise FaultError(msg)
    return code, out.getvalue(), err.getvalue()
