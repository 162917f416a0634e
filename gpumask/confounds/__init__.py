"""Confounds and sample masks."""
