"""Figures of a run: its regions over an image, its signals as a carpet, their correlations. Arrays in, figures out.

Neither pyplot nor other global state is used: threads may draw at the same time.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpumask.reports.cuts import draw_cuts
from gpumask.reports.networks import networks

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase

_NONE = "#d9b26f"  # tan, for regions without values: neither colour map has it
_CENSORED = "#a9c7e8"  # light blue, for volumes that aren't kept
_MOST_NAMES = 40  # of regions at the axes of a matrix
_LEAST_SHARE = 1 / 60  # of a network in a matrix, to be named


def new_figure(size: tuple[float, float], **options: Any) -> "Figure":
    """Empty matplotlib figure of `size` (width and height in inches).

    Raises
    ------
    ImportError
        If matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        msg = "Missing package 'matplotlib' for figures. Run: pip install 'gpumask[report]'"
        raise ImportError(msg) from None
    return Figure(figsize=size, layout="constrained", **options)


def draw_carpet(
    figure: "FigureBase",
    signals: np.ndarray,
    *,
    t_r: float | None = None,
    displacement: np.ndarray | None = None,
    kept: np.ndarray | None = None,
    fd_threshold: float | None = None,
) -> None:
    """Draw the signals as a carpet: a row per region, in units of its standard deviation, and motion above it.

    The number of kept volumes and the mean displacement are in the title.

    Parameters
    ----------
    figure : matplotlib Figure or SubFigure
        Empty.
    signals : ndarray, shape (n_kept_volumes, n_regions)
        Regions with NaN or without variance are tan, "n/a".
    t_r : float, optional
        Repetition time in s. If None, the axis counts volumes.
    displacement : array of shape (n_volumes,), optional
        Framewise displacement of all volumes, in mm.
    kept : array of int, shape (n_kept_volumes,), optional
        Volumes of the rows of `signals`, as nilearn's ``sample_mask``. Others are light blue, "censored". If None, all.
    fd_threshold : float, optional
        Displacement above which volumes are censored, in mm: a dashed line.

    Raises
    ------
    ValueError
        If the lengths don't match.
    """
    signals = np.asarray(signals, dtype=float)
    kept = np.arange(len(signals)) if kept is None else np.asarray(kept)
    n_volumes = len(displacement) if displacement is not None else int(kept.max(initial=-1)) + 1
    if (
        signals.ndim != 2
        or kept.shape != (len(signals),)
        or (kept.size and not 0 <= kept.min() <= kept.max() < n_volumes)
    ):
        msg = (
            f"Expected signals of shape (kept volumes, regions) and motion of all volumes, got signals of shape "
            f"{signals.shape}, {kept.size} kept volumes up to {kept.max(initial=-1)}, and {n_volumes} volumes."
        )
        raise ValueError(msg)
    carpet = np.full((n_volumes, signals.shape[1]), np.nan)
    carpet[kept] = _standardized(signals)
    heights = [1, 4] if displacement is not None else [1]
    *above, axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    end = n_volumes * (t_r or 1)
    summary = f"{len(kept)}/{n_volumes} volumes kept"
    for motion in above:
        displacement = np.asarray(displacement, dtype=float)
        if len(known := displacement[np.isfinite(displacement)]):
            summary += f", mean FD {known.mean():.2f} mm"
        motion.plot((np.arange(n_volumes) + 0.5) * (t_r or 1), displacement, color="#3b82c4", linewidth=0.8)
        motion.set_ylabel("FD, mm")
        motion.set_ylim(bottom=0)
        if fd_threshold is not None:
            motion.axhline(fd_threshold, color="#d33", linestyle="--", linewidth=0.8, gid="threshold")
            motion.set_ylim(top=max(motion.get_ylim()[1], 1.1 * fd_threshold))
        motion.spines[["top", "right"]].set_visible(False)
    figure.suptitle(summary, fontsize=9)
    axes.set_facecolor(_NONE)
    is_censored = ~np.isin(np.arange(n_volumes), kept)
    for start in np.flatnonzero(np.diff(is_censored.astype(int), prepend=0) == 1):
        stop = start + np.argmin(np.append(is_censored[start:], False))
        axes.axvspan(start * (t_r or 1), stop * (t_r or 1), color=_CENSORED, linewidth=0, zorder=0.5)
    image = axes.imshow(
        carpet.T, cmap="gray", vmin=-2, vmax=2, aspect="auto", interpolation="nearest",
        extent=(0, end, signals.shape[1], 0),
    )  # fmt: skip
    axes.set_xlim(0, end)
    lacks = np.isnan(carpet[kept]).any(axis=0)
    _legend(figure, censored=bool(is_censored.any()), missing=bool(lacks.any()))
    axes.set_xlabel("time, s" if t_r else "volume")
    axes.set_ylabel("region")
    figure.colorbar(image, ax=axes, label="z", pad=0.01)


def draw_connectivity(figure: "FigureBase", matrix: np.ndarray, names: Sequence[str] = ()) -> None:
    """Draw a correlation matrix.

    Parameters
    ----------
    figure : matplotlib Figure or SubFigure
        Empty.
    matrix : ndarray, shape (n_regions, n_regions)
        From -1 to 1; NaN is tan.
    names : sequence of str, optional
        Names of the regions; shown for up to 40 regions. If they have networks, these are named instead.

    Raises
    ------
    ValueError
        If the matrix isn't square, or the number of names differs.
    """
    matrix, names = np.asarray(matrix), list(names)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or (names and len(names) != len(matrix)):
        msg = f"Expected a square matrix and a name per region, got the shape {matrix.shape} and {len(names)} names."
        raise ValueError(msg)
    axes = figure.subplots()
    axes.set_facecolor(_NONE)
    image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    groups = networks(names)
    if groups:
        _name_networks(axes, groups, len(names))
    elif 0 < len(names) <= _MOST_NAMES:
        shown = [name.replace("$", r"\$") for name in names]  # no formulas
        axes.set_yticks(range(len(names)), shown, fontsize=7)
        axes.set_xticks(range(len(names)), shown, fontsize=7, rotation=90)
    figure.colorbar(image, ax=axes, label="Pearson's r", shrink=0.8)
    _legend(figure, missing=bool(np.isnan(matrix).any()))


def _name_networks(axes, groups, n_regions):
    """Lines between networks, and the names of those that are wide enough."""
    for _, start, stop in groups:
        for edge in {start, stop} - {0, n_regions}:
            axes.axhline(edge - 0.5, color="black", linewidth=0.4)
            axes.axvline(edge - 0.5, color="black", linewidth=0.4)
    named = [group for group in groups if group[2] - group[1] >= _LEAST_SHARE * n_regions]
    middles, shown = [(start + stop - 1) / 2 for _, start, stop in named], [name for name, _, _ in named]
    axes.set_yticks(middles, shown, fontsize=7)
    axes.set_xticks(middles, shown, fontsize=7, rotation=90)


def _legend(figure, *, censored=False, missing=False):
    """Say what the colours are that the colour bars don't have, if they are there."""
    from matplotlib.patches import Patch

    patches = [Patch(color=_CENSORED, label="censored")] * censored + [Patch(color=_NONE, label="n/a")] * missing
    if patches:
        figure.legend(handles=patches, loc="outside upper right", ncols=2, fontsize=8, frameon=False)


def run_figure(
    signals: np.ndarray,
    matrix: np.ndarray,
    labels: np.ndarray | None,
    image: np.ndarray | None,
    affine: np.ndarray | None,
    *,
    title: str,
    names: Sequence[str] = (),
    background_label: float = 0,
    t_r: float | None = None,
    displacement: np.ndarray | None = None,
    kept: np.ndarray | None = None,
    fd_threshold: float | None = None,
) -> "Figure":
    """Figure of a run and an atlas: regions over the mean image, carpet, and connectivity.

    Parameters
    ----------
    signals : ndarray, shape (n_kept_volumes, n_regions)
    matrix : ndarray, shape (n_regions, n_regions)
        Their correlations.
    labels, image : ndarray, shape (x, y, z), or None
        Regions, and the mean of the run's volumes. Without regions there are no cuts.
    affine : ndarray, shape (4, 4), or None
        See `draw_cuts`.
    title : str
    names, background_label, t_r, displacement, kept, fd_threshold
        See `draw_connectivity`, `draw_cuts` and `draw_carpet`.

    Returns
    -------
    matplotlib Figure
        See `to_png`.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    ValueError
        If shapes don't match.
    """
    heights = [4, 7] if labels is None else [3.2, 4, 7]
    figure = new_figure((10, 11 if labels is None else 14))
    figure.suptitle(title.replace("$", r"\$"), fontsize=9)
    *above, carpet, connectivity = np.asarray(figure.subfigures(len(heights), 1, height_ratios=heights))
    if labels is not None and affine is not None:
        above[0].set_facecolor("black")
        draw_cuts(above[0], labels, image, affine, background_label=background_label)
    draw_carpet(carpet, signals, t_r=t_r, displacement=displacement, kept=kept, fd_threshold=fd_threshold)
    draw_connectivity(connectivity, matrix, names)
    return figure


def to_png(figure: "Figure", dpi: float = 100) -> bytes:
    """Bytes of a figure's PNG file; equal figures give equal bytes.

    Parameters
    ----------
    figure : matplotlib Figure
    dpi : float
        Pixels per inch.

    Returns
    -------
    bytes
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _standardized(signals):
    """Columns with mean 0 and standard deviation 1; NaN for those with NaN or without variance."""
    if not signals.size:
        return signals
    with np.errstate(invalid="ignore", divide="ignore"):
        centred = signals - signals.mean(axis=0)
        deviation = centred.std(axis=0)
        varies = deviation > 1e-12 * np.abs(signals).max(axis=0)
        return centred / np.where(varies, deviation, np.nan)
