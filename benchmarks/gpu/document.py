"""The report: a JSON file that is complete after every row, and a line on the terminal for each value."""

import json
import time

from benchmarks import report
from benchmarks.gpu.rows import PREDICTED
from gpumask import devices
from gpumask.files import replacing, write
from gpumask.images import gzip_decoders


class Document:
    """A report in the making.

    Parameters
    ----------
    path : Path
        Rewritten after every row, so that what was measured before an interruption is kept.
    about : dict
        What the numbers belong to.
    """

    def __init__(self, path, about):
        self._path, self._document, self._started = path, {"about": about, "rows": []}, time.perf_counter()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    def add(self, row, seconds=None, *, values=None, skipped=None, error=None):
        """Add a row's values, or why it was skipped, or its error; `seconds` is what the row took."""
        entry = {"row": row.name, "seconds": seconds}
        if values is not None:
            why = values.pop("why", "")
            entry["values"] = values
            entry["predicted"] = {name: PREDICTED[row.name, name] for name in values if (row.name, name) in PREDICTED}
            entry["unmeasured"] = {name: why for name, value in values.items() if value is None}
        if skipped:
            entry["skipped"] = skipped
        if error:
            entry["error"] = error
        self._document["rows"].append({key: value for key, value in entry.items() if value not in (None, {})})
        self._write()
        print("\n".join([f"{time.perf_counter() - self._started:6.1f} s  {row.name}", *_lines(entry)]), flush=True)

    def _write(self):
        # A line per row: short, and readable where it differs.
        rows = ",\n".join(json.dumps(row) for row in self._document["rows"])
        text = f'{{"about": {json.dumps(self._document["about"], indent=1)},\n"rows": [\n{rows}\n]}}\n'
        with replacing(self._path) as part:
            write(part, [text])


def _lines(entry):
    for name, value in entry.get("values", {}).items():
        measured = "not measured" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        if name in entry["predicted"]:
            low, high = entry["predicted"][name]
            measured = f"predicted {low:g}{'' if low == high else f' to {high:g}'} / {measured}"
        yield f"    {name:36} {measured}"
    for reason in sorted(set(entry.get("unmeasured", {}).values())):
        yield f"    not measured, as {reason}"
    for key in ("skipped", "error"):
        if key in entry:
            yield f"    {key}: {entry[key].splitlines()[-1]}"


def about(options, *, emulated):
    """What the numbers belong to: the machine, its GPU, versions, commit, and the command's options."""
    machine = report.machine()
    if options.commit:
        machine["commit"] = options.commit
    return machine | {
        "gpu": _gpu(emulated),
        "decoder": gzip_decoders.choose().name,
        "tiny": options.tiny,
        "budget": options.budget,
        "only": options.only,
    }


def _gpu(emulated):
    if devices.cuda_status().problem:
        return None
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(0)
    return {
        "name": properties["name"].decode(),
        "memory": int(properties["totalGlobalMem"]),
        "l2_cache": int(properties["l2CacheSize"]),
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "runtime": cupy.cuda.runtime.runtimeGetVersion(),
        "emulated": emulated,
    }
