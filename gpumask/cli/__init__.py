"""The command line. Heavy imports are inside functions: ``--help`` and ``--version`` are quick."""

import logging
import os
import sys
from collections.abc import Sequence

from gpumask.cli import cohort, extract, info
from gpumask.cli.output import LEVELS, configured
from gpumask.cli.parser import parse

_COMMANDS = {"extract": extract.command, "cohort": cohort.command, "demo": extract.demo, "info": info.command}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        If None, the process's arguments.

    Returns
    -------
    int
        0: done. 1: some runs failed, the others are written. 2: wrong usage, nothing started. 130: interrupted. 143:
        terminated.
    """
    try:
        words = sys.argv[1:] if argv is None else argv
        args = parse(words)
        with configured(LEVELS.get(getattr(args, "verbosity", None) or "", logging.INFO)):
            code = _COMMANDS[args.command](args)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # from argparse, for --help too
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("gpumask: interrupted", file=sys.stderr, flush=True)
        return 130
    except BrokenPipeError:  # the reader of the output has left, as in `gpumask info | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at the end
        return 1
