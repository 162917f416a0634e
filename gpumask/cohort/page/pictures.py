"""Pictures of the page, as inline SVG."""

import html
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpumask.bids.names import labels_in

_ACCENT = "#3b82c4"  # legible on white and on black
_INK = "#123456"  # becomes the colour of the page's text


def heat_map(picture: np.ndarray, names: Sequence[str], nodes: Sequence[str]) -> str:
    """Picture of coverage: regions (rows) in runs (columns)."""

    def draw(figure):
        axes = figure.subplots()
        image = axes.imshow(
            picture, vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="none",
            extent=(0, len(names), len(nodes), 0),
        )  # fmt: skip
        _tick(axes.xaxis, names, 6, _run_label)
        _tick(axes.yaxis, nodes, 25, _short)
        bar = figure.colorbar(image, label="coverage", pad=0.01)
        for part in (axes, bar.ax):
            _ink(part)

    return svg(draw, (11, 5.5), "coverage of regions (rows) in runs (columns)")


def matrix_picture(matrix: np.ndarray, names: Sequence[str], label: str) -> str:
    """Picture of a symmetric matrix; colours span its largest element off the diagonal, NaN is grey."""
    others = np.abs(matrix[~np.eye(len(matrix), dtype=bool)])
    most = max(others[np.isfinite(others)], default=1) or 1

    def draw(figure):
        axes = figure.subplots()
        image = axes.imshow(
            matrix, vmin=-most, vmax=most, cmap="RdBu_r", interpolation="none", extent=(0, len(names), len(names), 0)
        )
        _tick(axes.yaxis, names, 25, _short)
        axes.set_xticks([])  # columns are the rows
        axes.set_facecolor("#8888")
        bar = figure.colorbar(image, pad=0.01)
        for part in (axes, bar.ax):
            _ink(part)

    return svg(draw, (7, 6), label)


def _tick(axis, names, n_ticks, label):
    chosen = sorted({int((i + 0.5) * len(names) / n_ticks) for i in range(n_ticks)})
    axis.set_ticks([i + 0.5 for i in chosen], [label(names[i]) for i in chosen])


def _run_label(name):
    """Subject, session and run below each other; other names as they are."""
    labels = labels_in(name)
    return "\n".join(_short(f"{key}-{labels[key]}") for key in ("sub", "ses", "run") if key in labels) or _short(name)


def _short(name, length=28):
    name = name.replace("$", r"\$")  # no formulas
    return name if len(name) <= length else f"{name[: length - 1]}…"


def histograms(panels: Sequence[tuple[str, Sequence[float]]], width: float = 2) -> str:
    """Picture of distributions over runs: a label, of one or more lines, and a number per run for each panel.

    A panel is `width` inches wide.
    """

    def draw(figure):
        for axes, (label, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            values = np.float64(np.float32(values))  # there are no bins between doubles next to each other
            first = values[0] if len(values) else 0.0
            alike = (0.9 * first, 1.1 * first) if first > 0 and np.all(values == first) else None  # else +-0.5: below 0
            axes.hist(values, bins=min(30, max(5, len(values) // 3)), range=alike, color=_ACCENT)
            axes.set_xlabel("\n".join(map(_short, label.split("\n"))))
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_facecolor("none")
            _ink(axes)
            is_whole = {"x": bool(np.all(values == np.rint(values))), "y": True}
            for axis, integer in is_whole.items():
                axes.locator_params(axis=axis, nbins=3, integer=integer, min_n_ticks=1 if integer else 2)
        figure.axes[0].set_ylabel("runs")

    labels = ", ".join(label.replace("\n", ", ") for label, _ in panels)
    return svg(draw, (width * len(panels), 2), f"distribution over runs of {labels}")


def _ink(axes):
    axes.tick_params(colors=_INK)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    for spine in axes.spines.values():
        spine.set_color(_INK)


def svg(draw: Callable[[Any], None], size: tuple[float, float], label: str) -> str:
    """Picture as inline SVG, in the colour of the page's text; without matplotlib, a hint."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "<p>For a picture here: pip install 'gpumask[report]', and rewrite the page.</p>"
    figure = Figure(figsize=size, layout="constrained", facecolor="none")
    draw(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = svg.replace("<svg", f"<svg role='img' aria-label='{html.escape(label)}'", 1)
    return f"<div class='wide'>{svg}</div>"
