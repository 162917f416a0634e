"""The atlases of a configuration as a process has loaded them, with the plans compiled from them."""

import contextlib
import os
import threading
from collections import Counter
from dataclasses import replace

import numpy as np

from gpumask import backend
from gpumask.cohort.configuration import AtlasFile, Configuration, sha256
from gpumask.engine.regions import LabelRegions
from gpumask.extraction import Plans
from gpumask.images.labels import load_atlas, load_mask
from gpumask.images.lookup import UNKNOWN, disagreement, distinct_names, read_lookup_table, region_names
from gpumask.text_tables import listed

_KEPT_MASKS = 64  # brain masks whose plans a process keeps; runs of a subject may share one


class LoadedAtlases:
    """The atlases of a configuration, loaded once per process, and the plans compiled from them.

    Attributes
    ----------
    notes : list of str
        Messages about the regions' names: image and look-up table disagree, or an atlas has no table.
    """

    def __init__(self, configuration):
        chosen = configuration.device
        self.device = chosen if chosen == "auto" else backend.resolve_device(chosen)
        self._files, self._mask = configuration.files, configuration.mask
        self.atlases, self.tables = {}, {}
        for atlas in configuration.atlases:
            with self._as_hashed(atlas.path):
                self.atlases[atlas.name] = load_atlas(atlas.path, atlas.background)
            with self._as_hashed(atlas.lut):
                self.tables[atlas.name] = read_lookup_table(atlas.lut) if atlas.lut else None
        self.notes = [note for a in configuration.atlases for note in self._notes(a)]
        self.plans = Plans(n_kept=_KEPT_MASKS * len(self.atlases))
        self._regions, self._lock = {}, threading.Lock()

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

    def _notes(self, atlas):
        """Messages about an atlas's names; ValueError if no row of its look-up table matches a label."""
        loaded, table = self.atlases[atlas.name], self.tables[atlas.name]
        if table is None:
            return [f"{atlas.path}: no look-up table found: regions are named by their labels."] * atlas.find_lut
        found = disagreement(loaded.values, loaded.background, table, image=str(atlas.path), table=str(atlas.lut))
        if found and found.nothing_matches:
            raise ValueError(found.message)
        notes = [found.message] if found else []
        rows = list(zip(table["index"], table["name"], strict=True))
        shifted = [n for n, name in rows if name.lower() == "background" and n in loaded.values]
        if wrong := [label for label in shifted if label != loaded.background]:
            notes.append(f"{atlas.lut} calls label {wrong[0]} of {atlas.path} Background. Are its rows shifted?")
        counts = Counter(region_names(loaded.values[loaded.values != loaded.background], table))
        if shared := [name for name, count in counts.items() if count > 1 and name != UNKNOWN]:
            label = next(n for n, name in rows if name == shared[0])
            what = f"{atlas.lut} has several regions called {listed(shared)}"
            notes.append(f"{what}. Their columns have the label too: '{shared[0]} [{label}]'.")
        return notes

    def names(self, atlas: AtlasFile, ids: np.ndarray | None = None) -> tuple[list[float], list[str]]:
        """Label and column's name of each region of an atlas, or of those of `ids`; see `distinct_names`."""
        values = self.atlases[atlas.name].values
        own = values[values != atlas.background]
        known = own if ids is None else np.union1d(own, ids)  # resampling may bring in 0 as a region
        # "Node" is the name of a column.
        distinct = distinct_names(region_names(known, self.tables[atlas.name]), known.tolist(), ["Node"])
        names = dict(zip(known.tolist(), distinct, strict=True))
        labels = own.tolist() if ids is None else ids.tolist()
        return labels, [names[label] for label in labels]

    def regions(self, mask: str | os.PathLike | None) -> dict[str, LabelRegions]:
        """Regions by atlas, within a mask; the same objects for the same mask file."""
        # A mask of the configuration is read once; a run's own may be another file for the next run.
        of_all = mask is not None and mask == self._mask
        key = mask and (os.fspath(mask), None if of_all else _state(mask))
        with self._lock:
            if key not in self._regions:
                with self._as_hashed(mask if of_all else None):
                    inside, grid = load_mask(mask) if mask else (None, None)
                masked = {name: replace(a, mask=inside, mask_grid=grid) for name, a in self.atlases.items()}
                while len(self._regions) >= _KEPT_MASKS:
                    self._regions.pop(next(iter(self._regions)))
                self._regions[key] = {name: LabelRegions(atlas, atlas) for name, atlas in masked.items()}
            return self._regions[key]


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
        If an atlas, look-up table or device is unusable, or a file has changed since the configuration was made.
    """
    key = configuration.hash, configuration.device, configuration.atlases, configuration.mask
    with _loading:
        if key not in _loaded:
            loaded = LoadedAtlases(configuration)
            _loaded.clear()
            _loaded[key] = loaded
        return _loaded[key]
