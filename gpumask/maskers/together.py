"""Several maskers on one run, which is read once."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpumask.extraction import extract
from gpumask.images.runs import open_run
from gpumask.maskers.base import VolumesMasker, check_masker, wrapped


def transform_together(
    maskers: Sequence[VolumesMasker],
    imgs: Any,
    confounds: Any = None,
    sample_mask: Any = None,
    *,
    n_threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[np.ndarray]:
    """Extract the signals of several maskers from one run, reading it once.

    The maskers may differ in kind, regions, mask, strategy, smoothing, cleaning and device.
    Decompressing a run takes longer than reducing it, so five atlases take little longer than one.

    Parameters
    ----------
    maskers : sequence of maskers of gpumask
        Fitted.
    imgs : run
        As for `NiftiLabelsMasker.transform`.
    confounds, sample_mask
        For all maskers; see `NiftiLabelsMasker.transform`.
    n_threads : int, optional
        Threads that reduce volumes on the CPU, in addition to the calling thread, which reads. If None, one per core.
        Results don't depend on it.
    progress : callable, optional
        Called with the number of volumes done so far, in the calling thread. An exception from it ends the extraction.

    Returns
    -------
    list of ndarray
        Equal to the output of each masker's `transform`, bit for bit. `memory` is used for compiled plans and
        high-variance confounds; for signals, only with a single masker.

    Raises
    ------
    ValueError
        If `maskers` is empty.
    TypeError
        If one isn't a masker of gpumask, or `maskers` isn't a sequence.
    TypeError, ValueError, IndexError
        As `NiftiLabelsMasker.transform`.
    """
    if isinstance(maskers, VolumesMasker):
        msg = f"`maskers` must be a list of maskers, got a {type(maskers).__name__}. Pass [masker], or use transform."
        raise TypeError(msg)
    for masker in maskers:
        check_masker(masker)
    if not maskers:
        msg = f"`maskers` must hold at least one masker, got {maskers!r}."
        raise ValueError(msg)
    volumes = open_run(imgs)
    prepared = [masker.prepare(volumes, confounds, sample_mask) for masker in maskers]
    results = extract(prepared, volumes, progress=progress, n_threads=n_threads)
    finished = zip(maskers, prepared, results, strict=True)
    return [wrapped(masker, masker.finish(one, result, volumes), imgs) for masker, one, result in finished]
