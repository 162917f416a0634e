"""Plans on devices, kept for the next runs."""

import threading
import weakref

from gpumask import cuda_runtime
from gpumask.backend import Array
from gpumask.engine.plan import Plan

# The copies of each plan, by device. They are freed with the plan.
_kept: weakref.WeakKeyDictionary[Plan, dict[str, Plan]] = weakref.WeakKeyDictionary()
_keeping = threading.Lock()


def moved(plan: Plan, device: str, prototype: Array, may_be_missing: bool) -> Plan:
    """Return a plan on a device, prepared: made in the current stream, or kept from an earlier run.

    Parameters
    ----------
    plan : Plan
    device : str
        "cuda:N", the current device.
    prototype : array
        On this device.
    may_be_missing : bool
        Whether voxels may be NaN; see `Plan.prepare`.
    """
    with _keeping:
        there = _kept.get(plan, {}).pop(device, None) or plan.like(prototype)
        there.prepare(may_be_missing=may_be_missing)
        cuda_runtime.current_stream().synchronize()  # streams of other threads will use it
        _kept.setdefault(plan, {})[device] = there
    return there


def forget() -> None:
    """Free the memory of plans that no run uses at the moment."""
    with _keeping:
        _kept.clear()
