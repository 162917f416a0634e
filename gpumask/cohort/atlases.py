"""The atlases of a configuration as a process has loaded them, with the plans compiled from them."""

import contextlib
import os
import threading
from weakref import WeakKeyDictionary

from gpumask import devices
from gpumask.bids.runs import Run
from gpumask.cohort.configuration import Configuration
from gpumask.cohort.kinds import LoadedAtlas, OwnLabels, load_kind
from gpumask.cohort.own_atlases import OwnAtlas, file_of
from gpumask.engine.regions import Regions
from gpumask.images.brain_models import BrainModels
from gpumask.images.grid import Grid
from gpumask.images.labels import load_mask
from gpumask.images.opening import image_hashes
from gpumask.inputs import sha256
from gpumask.plans import Plans

_KEPT_OWN = 8  # runs of one subject follow each other, and threads are at different subjects


class LoadedAtlases:
    """The atlases of a configuration, loaded once per process, and the plans compiled from them.

    Attributes
    ----------
    atlases : dict of LoadedAtlas
        By name; without those of which each run has its own, see `of_run`.
    notes : list of str
        Messages about the regions' names: image and look-up table disagree, or an atlas has no table.
    """

    def __init__(self, configuration):
        self._devices = configuration.device
        self._files, self._mask = configuration.files, configuration.mask
        self._resamples = configuration.settings.resampling_target == "data"
        self.atlases: dict[str, LoadedAtlas] = {}
        self._own = [atlas for atlas in configuration.atlases if isinstance(atlas, OwnAtlas)]
        self._loaded_own: dict[tuple, OwnLabels] = {}
        for atlas in (atlas for atlas in configuration.atlases if not isinstance(atlas, OwnAtlas)):
            with contextlib.ExitStack() as stack:
                for file in atlas.files:
                    stack.enter_context(self._as_hashed(file))
                self.atlases[atlas.name] = load_kind(
                    atlas, configuration.maps_strategy, configuration.settings.resampling_target
                )
        self.notes = [note for atlas in self.atlases.values() for note in atlas.notes]
        self._n_kept = min([atlas.kept_masks for atlas in self.atlases.values()], default=OwnLabels.kept_masks)
        self.plans = Plans(n_kept=self._n_kept * len(configuration.atlases))
        self._regions: WeakKeyDictionary[LoadedAtlas, dict[tuple, Regions]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def device(self, turn: int) -> str:
        """Return the device whose turn it is, for `gpumask.devices.resolve_device`."""
        split = devices.split_devices(self._devices)
        return split[turn % len(split)]

    @contextlib.contextmanager
    def _as_hashed(self, path):
        """Context to read a file in; ValueError if it isn't, or doesn't stay, the one that the configuration hashed."""
        hashes = self._files[os.fspath(path)] if path else {}
        before = [_state(file) for file in hashes]
        for file, expected in hashes.items():
            if (found := sha256(file)) != expected:
                raise _changed(file, f"its SHA-256 is {found[:16]}..., expected {expected[:16]}...")
        try:
            yield
        finally:
            for file, state in zip(hashes, before, strict=True):
                if _state(file) != state:
                    raise _changed(file, "it was written to while it was read")

    def of_run(self, run: Run) -> dict[str, LoadedAtlas]:
        """The atlases of a run, by name; the same objects for files of the same content, of which a few are kept."""
        own = {atlas.name: self._load_own(atlas, file_of(atlas, run)) for atlas in self._own}
        return {**self.atlases, **own}

    def _load_own(self, atlas, file):
        hashes = image_hashes(file.path)
        key = atlas.name, *hashes.values()
        with self._lock:
            if key not in self._loaded_own:
                loaded = OwnLabels(file, atlas)
                if image_hashes(file.path) != hashes:
                    msg = f"{file.path} was changed while it was read. Run it again."
                    raise OSError(msg)
                while len(self._loaded_own) >= _KEPT_OWN * len(self._own):
                    dropped = self._loaded_own.pop(next(iter(self._loaded_own)))
                    for regions in self._regions.pop(dropped, {}).values():
                        self.plans.forget(regions)
                self._loaded_own[key] = loaded
            return self._loaded_own[key]

    def regions(
        self, mask: str | os.PathLike | None, grid: Grid | BrainModels, atlases: dict[str, LoadedAtlas] | None = None
    ) -> dict[str, Regions]:
        """Regions by atlas, within a mask, for runs of a grid; the same objects for the same atlas, mask file and grid.

        `atlases` are those of the run, see `of_run`; if None, those of all runs.
        """
        atlases = self.atlases if atlases is None else atlases
        # A mask of the configuration is read once per grid; a run's own may be another file for the next run.
        of_all = mask is not None and mask == self._mask
        within = mask and (os.fspath(mask), None if of_all else _state(mask))
        of_grid = (grid.shape, grid.affine.tobytes()) if isinstance(grid, Grid) else (grid.key,)
        key = within, *of_grid
        with self._lock:
            made = {name: self._regions.setdefault(atlas, {}) for name, atlas in atlases.items()}
            if missing := [name for name, of_one in made.items() if key not in of_one]:
                with self._as_hashed(mask if of_all else None):
                    inside, mask_grid = load_mask(mask) if mask else (None, None)
                meeting = grid if self._resamples and isinstance(grid, Grid) else None
                for name in missing:
                    while len(made[name]) >= self._n_kept:
                        made[name].pop(next(iter(made[name])))
                    made[name][key] = atlases[name].within(inside, mask_grid, meeting)
            return {name: of_one[key] for name, of_one in made.items()}


def _state(file):
    """What differs after a file was replaced or written to; None without the file."""
    try:
        state = os.stat(file)  # noqa: PTH116
    except FileNotFoundError:
        return None
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _changed(file, how):
    msg = (
        f"{file} has changed since this command was started: {how}. Outputs are recorded with the old content, so "
        "nothing is extracted with the new one. Restore the file, or repeat the command to use it as it is now."
    )
    return ValueError(msg)


_loaded: dict[tuple, LoadedAtlases] = {}  # only the last configuration
_loading = threading.Lock()


def load(configuration: Configuration) -> LoadedAtlases:
    """Load the atlases of a configuration, once per process.

    Raises
    ------
    ValueError, OSError
        If an atlas or look-up table is unusable, or a file has changed since the configuration was made.
    """
    key = configuration.hash, configuration.device, configuration.atlases, configuration.mask
    with _loading:
        if key not in _loaded:
            loaded = LoadedAtlases(configuration)
            _loaded.clear()
            _loaded[key] = loaded
        return _loaded[key]
