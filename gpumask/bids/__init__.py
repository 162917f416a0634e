"""BIDS: runs, found by file names alone or listed in a table; names and metadata of their outputs."""

from gpumask.bids.finding import find_runs
from gpumask.bids.manifest import read_manifest
from gpumask.bids.runs import Problem, Run

__all__ = ["Problem", "Run", "find_runs", "read_manifest"]
