"""Networks of regions by their names, as parcellations with networks call them."""

import re
from collections.abc import Sequence
from itertools import groupby

# "7Networks_LH_Vis_1" (Schaefer), "LH_Vis_1" (4S), "17Networks_RH_DefaultA_PFCd_2".
_NAME = re.compile(r"(?:[0-9]+Networks_)?(LH|RH)_([A-Za-z]+)_[A-Za-z0-9_]+")


def network_of(name: str) -> str | None:
    """Hemisphere and network in a region's name: "LH Vis"; None for names without a network."""
    found = _NAME.fullmatch(name)
    return found and f"{found[1]} {found[2]}"


def networks(names: Sequence[str]) -> list[tuple[str, int, int]]:
    """Networks in the order of the regions.

    Parameters
    ----------
    names : sequence of str

    Returns
    -------
    list of (str, int, int)
        Network, first region, and the one after the last; a network may be there several times. Regions without one
        are in none. Empty unless most regions have one.
    """
    found = [network_of(name) for name in names]
    if 2 * sum(network is not None for network in found) <= len(found):
        return []
    runs, start = [], 0
    for network, group in groupby(found):
        stop = start + len(list(group))
        if network is not None:
            runs.append((network, start, stop))
        start = stop
    return runs
