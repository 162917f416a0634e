"""Plans compiled once, and kept for the next run."""

import threading
from typing import TYPE_CHECKING

from gpumask.engine.plan import Plan, compile_plan
from gpumask.engine.regions import Regions, RegionsOnGrid
from gpumask.images.brain_models import BrainModels
from gpumask.images.grid import Grid
from gpumask.process import versions
from gpumask.settings import Settings

if TYPE_CHECKING:
    import joblib


def plan_key(regions: Regions, grid: Grid | BrainModels, settings: Settings) -> tuple:
    """Return everything that a plan depends on: versions, regions, grid of the runs, settings."""
    return versions(), regions.identity, grid.key, tuple(settings.in_space.items())


class Plans:
    """Regions on grids and their plans, compiled once and kept for the next run. Safe to share between threads.

    Parameters
    ----------
    n_kept : int
        Number of plans to keep. The oldest one is dropped first.
    """

    def __init__(self, n_kept: int = 4):
        self._n_kept, self._lock = n_kept, threading.Lock()
        # For each key also the plan as it is run, by the requested device and that of the run.
        self._kept: dict[tuple, tuple[RegionsOnGrid, Plan, dict[tuple[str, str], Plan]]] = {}

    def get(
        self,
        regions: Regions,
        grid: Grid | BrainModels,
        settings: Settings,
        memory: "joblib.Memory | None" = None,
        *,
        device: str = "cpu",
        data_on: str = "cpu",
    ) -> tuple[RegionsOnGrid, Plan]:
        """Return the regions on the grid of a run and the plan for them, compiling it if necessary.

        Parameters
        ----------
        regions : Regions
        grid : Grid or BrainModels
            Of the run, and of the kind of the regions.
        settings : Settings
        memory : joblib.Memory, optional
            Cache of compiled plans on disk.
        device : {"auto", "cpu", "cuda", "cuda:N"}
        data_on : str
            Device of the run. For both see `gpumask.engine.plan.Plan.on`.

        Raises
        ------
        ValueError
            If no region is left, the grids differ and `resampling_target` is None, or `nan_policy` or the two devices
            don't fit.
        DeviceError
            If a requested GPU is unusable.
        """
        key = regions, grid.key, tuple(settings.in_space.items())
        with self._lock:  # waiting threads would compile the same plan
            if key not in self._kept:
                made = *_place(regions, grid, settings, memory), {}
                while len(self._kept) >= self._n_kept:
                    self._kept.pop(next(iter(self._kept)))
                self._kept[key] = made
            on_grid, plan, on_devices = self._kept[key]
            if (device, data_on) not in on_devices:
                on_devices[device, data_on] = plan.on(device, data_on)
            return on_grid, on_devices[device, data_on]

    def forget(self, regions: Regions) -> None:
        """Drop the plans of regions that won't be used again: a plan keeps them in memory."""
        with self._lock:
            self._kept = {key: kept for key, kept in self._kept.items() if key[0] is not regions}

    def __reduce__(self):
        return Plans, (self._n_kept,)


def _place(regions, grid, settings, memory):
    chosen = settings.in_space
    on_grid = regions.on(grid, chosen["target"], chosen["keep"])
    if memory is None:
        return on_grid, _compile(None, on_grid=on_grid, settings=settings)
    compiled = memory.cache(_compile, ignore=["on_grid", "settings"])
    return on_grid, compiled(plan_key(regions, grid, settings), on_grid=on_grid, settings=settings)


def _compile(key, *, on_grid, settings):
    """Compile a plan; cached by `key`."""
    return compile_plan(
        on_grid.segments,
        on_grid.grid,
        grid=on_grid.run_grid,
        smoothing_fwhm=settings.smoothing_fwhm or None,
        strategy=settings.strategy,
        nan_policy=settings.nan_policy,
    )
