"""Benchmarks against nilearn: times side by side in one run, and equal results. ``python -m benchmarks -h``."""
