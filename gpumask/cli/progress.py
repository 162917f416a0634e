"""Progress bars on a terminal; if standard error isn't one, lines for a cohort. With --quiet, nothing."""

import os
import sys
import threading
from typing import TYPE_CHECKING

from tqdm import tqdm

from gpumask.bids.names import run_name
from gpumask.bids.runs import Run
from gpumask.cli.output import output, shows_results

if TYPE_CHECKING:
    from gpumask.cohort.record import Record

_OPTIONS = {"leave": False, "dynamic_ncols": True, "miniters": 0, "smoothing": 0}
_SECONDS_PER_LINE = 30  # where lines stay, as in the log of a batch job


class _Bar(tqdm):
    monitor_interval = 0  # no thread


_Bar.set_lock(threading.RLock())  # the default one is shared by processes, and slow to import
output.paused = _Bar.external_write_mode


class _Lines:
    """A file for a bar: what it draws becomes lines of standard error."""

    def write(self, text):
        if text := text.strip():
            print(text, file=sys.stderr, flush=True)

    def flush(self):
        """Nothing is kept back."""


def _is_terminal():
    """Whether standard error is a terminal with a size. Those of ``script`` in a batch job have none for a bar."""
    if not sys.stderr.isatty():
        return False
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except OSError:
        return True


class RunProgress:
    """A bar per run, which counts volumes."""

    def __init__(self, n_runs: int) -> None:
        self._n_runs, self._number = n_runs, 0
        self._run: Run | None = None
        self._bar: _Bar | None = None

    def __call__(self, run: Run, done: int, total: int) -> None:
        """Show that `done` of `total` volumes of a run are done."""
        if self._bar is None or run is not self._run:
            self.close()
            self._run, self._number = run, self._number + 1
            name = f"{self._number}/{self._n_runs} {run_name(run)[:32]}"  # leaves room for the bar in 80 columns
            disable = None if shows_results() else True  # None: unless standard error is a terminal
            self._bar = _Bar(desc=name, total=total, unit=" vol", disable=disable, **_OPTIONS)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


def _bar(total, what):
    """A bar; where standard error isn't a terminal with a size, a line at once, and then one every 30 s at most."""
    is_terminal = _is_terminal()
    layout = "{desc} |{bar}| [{elapsed}<{remaining}]" if is_terminal else "{desc} [{elapsed}<{remaining}]"
    where = {} if is_terminal else {"file": _Lines(), "mininterval": _SECONDS_PER_LINE}
    hidden = not shows_results()
    return _Bar(desc=f"0/{total} {what}", total=total, bar_format=layout, disable=hidden, **where, **_OPTIONS)


class CountProgress:
    """A bar that counts things of one kind, such as files: as `_bar`, from the first call on; a context manager."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: _Bar | None = None

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""
        if self._bar is None:
            self._bar = _bar(total, self._what)
        self._bar.set_description_str(f"{done}/{total} {self._what}", refresh=False)
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> "CountProgress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


class CohortProgress:
    """A bar of all runs of a cohort, as `_bar`, which also advances within runs; any thread may call it.

    The time left is estimated from runs that take time: skipped ones don't count.
    """

    def __init__(self, n_runs: int) -> None:
        self._shares: dict[Run, float] = {}
        self._n_finished, self._n_failed, self._n_volumes = 0, 0, 0
        self._bar = _bar(n_runs, "runs")

    def __call__(self, run: Run, share: float) -> None:
        """Show that a share, from 0 to 1, of a run is done."""
        with _Bar.get_lock():
            self._shares[run] = share
            self._advance()

    def finish(self, record: "Record") -> None:
        """Count a finished run."""
        if self._bar.disable:
            return
        with _Bar.get_lock():
            self._shares.pop(record.run, None)
            self._n_finished += 1
            self._n_failed += record.status == "failed"
            self._n_volumes += record.n_volumes
            self._bar.initial += record.status not in ("done", "failed")
            speed = self._n_volumes / max(self._bar.format_dict["elapsed"], 1e-9)
            numbers = f"{self._n_finished}/{self._bar.total} runs, {self._n_failed} failed, {speed:.0f} volumes/s"
            self._bar.set_description_str(numbers, refresh=False)
            self._advance()

    def _advance(self):
        self._bar.update(self._n_finished + sum(self._shares.values()) - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()
