"""Checks of what a command was given, before anything is read or written."""

import argparse
import importlib.util
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpumask.bids.content import absence, check_content
from gpumask.cli.paths import split_name, split_paths
from gpumask.cli.values import check_file

if TYPE_CHECKING:
    from gpumask.cohort.atlas_file import AtlasFile
    from gpumask.cohort.combined_atlas import CombinedAtlasFile
    from gpumask.cohort.own_atlases import OwnAtlas
    from gpumask.confounds.denoising import Denoising


def check_confounds(args: argparse.Namespace) -> None:
    """Raise a ValueError for options of confounds that exclude each other."""
    for option in ("--confounds-strategy", "--confounds-columns"):
        if args.denoise and getattr(args, option[2:].replace("-", "_")) is not None:
            msg = f"{option} and --denoise exclude each other: a denoising has confounds of its own"
            raise ValueError(msg)
    if args.confounds_strategy is not None and args.confounds_columns is not None:
        msg = "--confounds-strategy and --confounds-columns exclude each other: give one"
        raise ValueError(msg)


def denoisings_of(args: argparse.Namespace) -> "tuple[Denoising, ...]":
    """The denoisings of ``--denoise``; other options count for those that don't say otherwise.

    Raises
    ------
    ValueError, OSError, ImportError
        As `gpumask.confounds.denoising.denoising_of`.
    """
    from gpumask.confounds.denoising import denoising_of

    names = ("fd_threshold", "motion_filter", "low_pass", "high_pass")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    return tuple(denoising_of(text, {**given, **rows_of(args)}) for text in args.denoise)


def rows_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options that decide which volumes have rows in tables."""
    return {"dummy_scans": args.dummy_scans, "output_type": args.output_type}


def segmentations_of(args: argparse.Namespace) -> dict[str, tuple[str, Path | None]]:
    """The label "desc" and look-up table of each "[NAME=]derivatives:desc-LABEL" of ``--atlas``, by name.

    By default, the name is the label.

    Raises
    ------
    ValueError
        For an unknown label, a repeated name, or if the runs aren't found in a folder of derivatives.
    """
    from gpumask.bids.segmentations import SEGMENTATIONS

    found: dict[str, tuple[str, Path | None]] = {}
    for text, luts, label_map in (one for one in _given(args) if _is_segmentation(one[0])):
        given, _, label = text.rpartition("derivatives:desc-")
        if label not in SEGMENTATIONS:
            msg = f"--atlas: expected derivatives:desc- followed by {' or '.join(SEGMENTATIONS)}, got {text}"
            raise ValueError(msg)
        if not args.source.is_dir():
            msg = f"--atlas {text} requires a folder of derivatives. For a list of runs, add the column atlas_NAME"
            raise ValueError(msg)
        if label_map is not None:
            msg = f"--label-map: {text} is of volumes. Expected n/a, got {label_map}"
            raise ValueError(msg)
        name = given.removesuffix("=") or label
        if name in found:
            msg = f"--atlas: several are called {name}. Give NAME={text}"
            raise ValueError(msg)
        if len(luts) > 1:
            msg = f"--lut: expected one for {text}, got {len(luts)}"
            raise ValueError(msg)
        found[name] = label, luts[0]
    return found


def _is_segmentation(text):
    path = text.rpartition("=")[2]
    return path.startswith("derivatives:") and not any(map(os.path.lexists, (text, path)))


def _given(args):
    """Each ``--atlas`` with its look-up tables (None: the default) and the text of its label maps."""
    luts = [
        [None if text in (None, "n/a") else Path(text) for text in (split_paths(lut)[1] if lut else [None])]
        for lut in _one_each("--lut", args.lut, args.atlas)
    ]
    for lut in (lut for of_atlas in luts for lut in of_atlas):
        check_file("--lut", lut)
    maps = [None if text == "n/a" else text for text in _one_each("--label-map", args.label_map, args.atlas)]
    return list(zip(args.atlas, luts, maps, strict=True))


def atlases_of(
    args: argparse.Namespace, own: "Sequence[OwnAtlas] | None" = None
) -> "tuple[AtlasFile | CombinedAtlasFile, ...]":
    """The atlases of ``--atlas``, and then those of ``--seeds``.

    `own` are those of which each run has its own, which aren't among them; None if runs can't have any.

    Raises
    ------
    ValueError
        Without an atlas, without as many look-up tables or label maps as images, or for options of seeds without
        seeds.
    FileNotFoundError
        If a file doesn't exist.
    """
    from gpumask.cohort.atlas_file import AtlasFile

    if not args.atlas and not args.seeds and not own:
        msg = "--atlas or --seeds is missing: give one image or table of seeds, or more"
        raise ValueError(msg)
    for option, given in (("--radius", args.radius is not None), ("--allow-overlap", args.allow_overlap)):
        if given and not args.seeds:
            msg = f"{option}: requires --seeds"
            raise ValueError(msg)
    images = [one for one in _given(args) if own is None or not _is_segmentation(one[0])]
    background = getattr(args, "background_label", None) or 0
    spheres = {"kind": "seeds", "radius": args.radius, "allow_overlap": args.allow_overlap}
    return (
        *(_atlas_of(text, luts, label_maps, background) for text, luts, label_maps in images),
        *(AtlasFile(path, name=name, **spheres) for path, name in map(_seeds_of, args.seeds)),
    )


def _atlas_of(text, luts, label_maps, background):
    """The atlas of "[NAME=]IMAGE[+IMAGE ...]"."""
    from gpumask.cohort.atlas_file import AtlasFile
    from gpumask.cohort.combined_atlas import CombinedAtlasFile

    name, paths = split_paths(text)
    if len(paths) > 1 and any(path.startswith("derivatives:") for path in paths):
        msg = f"--atlas: segmentations of each run (derivatives:) can't be combined with others, got {text}"
        raise ValueError(msg)
    if len(paths) > 1 and "" in paths:
        msg = f"--atlas: expected an image before and after each +, got {text}"
        raise ValueError(msg)
    for path in paths:
        if len(paths) > 1 and not os.path.lexists(path):
            msg = f"--atlas: no such file: {path} (in {text})"
            raise FileNotFoundError(msg)
        check_file("--atlas", Path(path))
    maps = [label_maps]
    if len(paths) > 1:
        luts = [None] * len(paths) if luts == [None] else luts
        maps = [None] * len(paths) if label_maps is None else label_maps.split("+")
    for option, given in (("--lut", luts), ("--label-map", maps)):
        if len(given) != len(paths):
            images = f"for {text}" if len(paths) == 1 else f"for each of the {len(paths)} images of {text}, joined by +"
            msg = f"{option}: expected one {images}; got {len(given)}"
            raise ValueError(msg)
    if len(paths) == 1:
        return AtlasFile(paths[0], luts[0], name, background, label_map=_label_map(label_maps))
    parts = zip(paths, luts, map(_label_map, maps), strict=True)
    return CombinedAtlasFile(
        tuple(AtlasFile(path, lut, "", background, label_map=label_map) for path, lut, label_map in parts), name
    )


def _label_map(text):
    """A label map by its name or index; None for the default."""
    return None if text in (None, "n/a") else int(text) if text.isdecimal() else text


def _seeds_of(text):
    """Path and name of "[NAME=]TSV"."""
    name, path = split_name(text)
    check_file("--seeds", Path(path))
    return path, name


def _one_each(option, given, atlases):
    """What an option gives for each atlas; None for all if it isn't given."""
    if given and len(given) != len(atlases):
        msg = f"{option}: expected one for each --atlas, got {len(given)} for {len(atlases)}"
        raise ValueError(msg)
    return given or [None] * len(atlases)


def check_kinds(args: argparse.Namespace, atlases: "Iterable[AtlasFile | CombinedAtlasFile | OwnAtlas]") -> None:
    """Raise a ValueError for an option of a kind of atlas that isn't among the atlases of a configuration."""
    kinds = {atlas.kind for atlas in atlases}
    needs = {
        "--background-label": ("a label image", {"labels"}),
        "--strategy": ("a label image, or --seeds", {"labels", "seeds"}),
        "--maps-strategy": ("a 4D image of maps", {"maps"}),
    }
    for option, (what, of_kinds) in needs.items():
        if getattr(args, option[2:].replace("-", "_"), None) is not None and not kinds & of_kinds:
            msg = f"{option}: requires {what}, got {' and '.join(sorted(kinds))}"
            raise ValueError(msg)


def check_tables(paths: Sequence[Path]) -> None:
    """Check that confounds tables are files or pipes, as `check_file`; a link without content fails its run alone."""
    for path in paths:
        if absence(path) is None and not path.is_fifo():
            check_file("--confounds", path)


def check_out(what: str, out: Path, source: Path | None = None) -> None:
    """Check that outputs can be written to a folder, which may not exist yet, and don't mix with the inputs.

    Raises
    ------
    ValueError
        If it is the folder `source` of the inputs, or in one of its folders ``sub-*``.
    OSError
        If it, or the folder to make it in, is a file or can't be written to.
    """
    existing = next(
        path
        for path in (Path(os.path.abspath(out)), *Path(os.path.abspath(out)).parents)  # noqa: PTH100
        if os.path.lexists(path)
    )
    if not existing.is_dir():
        check_content(existing)
        is_out = os.path.abspath(out) == os.fspath(existing)  # noqa: PTH100
        msg = f"{what}: {out if is_out else existing} is a file, expected a folder"
        raise NotADirectoryError(msg)
    if not os.access(existing, os.W_OK | os.X_OK):
        msg = f"{what}: no permission to write to {out}"
        raise PermissionError(msg)
    if source is None or not source.is_dir():
        return
    inside, root = Path(os.path.realpath(out)), Path(os.path.realpath(source))
    if inside == root:
        msg = f"{what}: {out} is the folder of the inputs. Give another one, such as {source / 'derivatives/gpumask'}"
        raise ValueError(msg)
    if inside.is_relative_to(root) and inside.relative_to(root).parts[0].startswith("sub-"):
        msg = f"{what}: {out} is in a subject's folder of the inputs. Give another one, such as "
        msg += f"{source / 'derivatives/gpumask'}"
        raise ValueError(msg)


def check_store(path: Path | None, out_dir: Path) -> None:
    """Raise an error if a Parquet file can't be written to `path`, or pyarrow is missing."""
    if path is None:
        return
    if path.suffix.lower() != ".parquet":
        msg = f"--store: expected FILE.parquet, got {path}"
        raise ValueError(msg)
    if path.is_dir():
        msg = f"--store: {path} is a folder, expected a file"
        raise IsADirectoryError(msg)
    if not path.parent.is_dir() and os.path.abspath(path.parent) != os.path.abspath(out_dir):  # noqa: PTH100
        msg = f"--store: no such folder: {path.parent}"
        raise FileNotFoundError(msg)
    from gpumask.cohort.parquet import check_pyarrow

    check_pyarrow()


def check_devices(device: str, *, several: bool = False, here: bool = True) -> None:
    """Raise ValueError if --device is unknown, or DeviceError if it requests a GPU that can't be used.

    Parameters
    ----------
    device : str
    several : bool
        Whether several GPUs are allowed.
    here : bool
        Whether this machine uses the device. Another machine's isn't probed.
    """
    from gpumask import devices

    if not here and device == "cuda:all":
        return
    for one in devices.split_devices(device) if several else [device]:
        if here and one != "auto":
            devices.resolve_device(one)
        else:
            devices.check_device(one)


def check_workers(args: argparse.Namespace) -> None:
    """Raise a ValueError for numbers of processes or threads that are none, or that have no effect."""
    for option, number in (("--nprocs", args.nprocs), ("--nthreads", args.nthreads)):
        if number is not None and number < 1:
            msg = f"{option}: expected 1 or more, got {number}"
            raise ValueError(msg)
    if args.nthreads and args.nprocs > 1:
        msg = f"--nthreads and --nprocs {args.nprocs} exclude each other: each process has one run at a time"
        raise ValueError(msg)
    if args.dask_scheduler and (args.nthreads or args.nprocs > 1):
        option = "--nthreads" if args.nthreads else "--nprocs"
        msg = f"{option} and --dask-scheduler exclude each other: the cluster's workers have their own threads"
        raise ValueError(msg)


def check_dask(address: str | None) -> None:
    """Raise an ImportError if a Dask scheduler is given and the package for it is missing."""
    if address is not None and importlib.util.find_spec("distributed") is None:
        msg = "--dask-scheduler needs the package distributed: pip install 'gpumask[dask]'"
        raise ImportError(msg)


def relmats_of(args: argparse.Namespace) -> tuple[str, ...]:
    """Kinds of connectivity matrices to write; ValueError if options contradict each other."""
    is_cohort = args.command == "cohort"
    if is_cohort and args.no_relmat and args.relmat is not None:
        msg = "--no-relmat contradicts --relmat: drop one of them"
        raise ValueError(msg)
    if args.relmat is None:
        return ("pearson",) if is_cohort and not args.no_relmat else ()
    return tuple(args.relmat) or ("pearson",)
