"""Benchmarks against nilearn: equal results first, then times, side by side in one run. ``python -m benchmarks -h``."""
