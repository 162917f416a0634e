"""Figures and pages: of a run, and of a masker."""
