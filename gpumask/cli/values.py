"""Values of options: numbers and files, and the errors about them."""

import argparse
from pathlib import Path

from gpumask.bids.content import check_content
from gpumask.choices import MAX_FWHM
from gpumask.inputs import irregularity


def check_cutoffs(args: argparse.Namespace) -> None:
    """Raise a ValueError if the filter's band is empty."""
    if args.low_pass and args.high_pass and args.high_pass >= args.low_pass:
        msg = f"--high-pass ({args.high_pass} Hz) must be lower than --low-pass ({args.low_pass} Hz)"
        raise ValueError(msg)


def check_file(option: str, path: Path | None) -> None:
    """Raise a FileNotFoundError if an option's file doesn't exist, and a ValueError if it isn't a regular file."""
    check_content(path)
    if path is None:
        return
    if not path.exists():
        msg = f"{option}: no such file: {path}"
        raise FileNotFoundError(msg)
    if reason := irregularity(path):
        msg = f"{option}: {path} {reason}"
        raise ValueError(msg)


def number(text: str) -> int | float:
    """Integer or float, as it is written."""
    return float(text) if set(text) - set("+-0123456789") else int(text)


def dummy_scans(text: str) -> str | int:
    """A number of volumes, or "auto"."""
    if text == "auto" or text.isdecimal():
        return text if text == "auto" else int(text)
    msg = f"expected auto or a number of volumes, got {text!r}"
    raise argparse.ArgumentTypeError(msg)


def width(text: str) -> float:
    """Width of a smoothing kernel, in mm."""
    fwhm = positive(text)
    if fwhm > MAX_FWHM:
        msg = f"expected a width of at most {MAX_FWHM} mm, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return fwhm


def not_negative(text: str) -> float:
    """Finite number, positive or 0."""
    return 0.0 if text.strip() in ("0", "0.0") else positive(text)


def positive(text: str) -> float:
    """Positive finite number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        msg = f"expected a positive number, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return value
