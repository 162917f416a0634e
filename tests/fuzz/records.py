"""Mutated logs of a finished cohort, and what the next command makes of them."""

import json
import shutil

from .. import cohorts
from . import mutations
from .verdicts import FaultError, check_message, run_cli

_RUNS = 2


class Records:
    """Logs of a finished cohort; what a second command makes of them."""

    def __init__(self, folder):
        self._folder = folder
        cohorts.make_cohort(folder / "d", _RUNS, bad=False, shape=(5, 4, 3), n_volumes=24)
        self._atlas, _ = cohorts.make_atlases(folder, (5, 4, 3))
        self._out = folder / "out"
        self._words = ["cohort", folder / "d", self._out, "participant", "--atlas", self._atlas, "--device", "cpu"]
        for _ in range(2):
            code, _, said = run_cli(self._words)
            if code:
                raise FaultError(said)
        (self._out / "logs" / "unusable").write_text(json.dumps({"x": {"time": "2026-01-01", "names": ["sub-9"]}}))
        self._whole = cohorts.outputs(self._out)
        self._table = next(self._out.rglob("*_timeseries.tsv"))
        shutil.copytree(self._out, folder / "finished")

    def draw(self, rng):
        """What is mutated, and the work that repeats the command."""
        shutil.rmtree(self._out)
        shutil.copytree(self._folder / "finished", self._out)
        logs = sorted((self._out / "logs").iterdir())
        paths = [*logs, *logs, *logs, self._out / "dataset_description.json", self._table]
        path = mutations.pick(rng, paths)
        data = path.read_bytes()
        if path.suffix == ".jsonl":
            lines = data.splitlines(keepends=True)
            k = int(rng.integers(len(lines)))
            line, what = mutations.of_json(rng, lines[k])
            data = b"".join([*lines[:k], line, *lines[k + 1 :]])
        elif path.suffix == ".json" or path.name == "unusable":
            data, what = mutations.of_json(rng, data)
        else:
            data, what = data[: int(rng.integers(len(data)))], "cut"
        path.write_bytes(data)
        store = ["--store", self._out / "store.parquet"] if rng.integers(4) == 0 else []
        return f"{path.name}: {what} {store and '--store'}", lambda: self._again(path, data, store)

    def _again(self, path, data, store):
        code, printed, said = run_cli([*self._words, *store])
        is_description = path.name == "dataset_description.json" and path.parent == self._out
        if is_description and code == 2:
            check_message(said, path, self._out)
            return "refused"
        if code:
            msg = f"status {code}: {said[:2000]}"
            raise FaultError(msg)
        (self._out / "store.parquet").unlink(missing_ok=True)
        found = cohorts.outputs(self._out)
        if is_description:
            found[path.name] = self._whole[path.name]
        if found != self._whole:
            names = [name for name in {**found, **self._whole} if found.get(name) != self._whole.get(name)]
            msg = f"outputs differ: {names}"
            raise FaultError(msg)
        page = (self._out / "cohort.html").read_text("utf-8")
        if mutations.SCRIPT in page or len(page) > 2_000_000:
            msg = f"a page of {len(page)} characters, with the script: {mutations.SCRIPT in page}"
            raise FaultError(msg)
        n_done = int(printed.rpartition(" done, ")[0].rpartition("\n")[2])
        if n_done != _RUNS and is_no_record(path, data) and n_done != 1:
            msg = f"{n_done} runs were made again, expected 1: {printed[-200:]}"
            raise FaultError(msg)
        return f"{n_done} again"


def is_no_record(path, data):
    """Whether a mutated file is a record that can't be one, or an output of another size."""
    if path.suffix != ".json" or path.parent.name != "logs":
        return path.suffix == ".tsv"
    try:
        return json.loads(data)["status"] != "done"
    except (ValueError, TypeError, LookupError, RecursionError):
        return True
