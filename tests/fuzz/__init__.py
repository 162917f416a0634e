"""Mutated inputs, each used in a forked process with bounded memory and time; see `test_fuzz.py`."""
