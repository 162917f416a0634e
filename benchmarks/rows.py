"""What is measured: each row is a workload of gpumask's, what it is compared with, and the targets."""

from dataclasses import dataclass, field, replace

from benchmarks import workloads
from benchmarks.grayordinates import SPACES
from benchmarks.inputs import T_R
from benchmarks.workloads import Command, Compilation, Correlation, Decoding, Extraction, Painting, Parcellation

RAW = {"standardize": None}
CLEANED = {
    "smoothing_fwhm": 6,
    "detrend": True,
    "low_pass": 0.1,
    "high_pass": 0.01,
    "t_r": T_R,
    "standardize": "zscore_sample",
}
FEW = 20  # volumes of the same run that nilearn is given where all would take minutes


@dataclass(frozen=True)
class Against:
    """Something that gpumask's workload is compared with.

    Attributes
    ----------
    workload : Workload
    target : float or None
        Without `floor`: gpumask shall be at least so many times as fast. With it: gpumask shall take at most so many
        times what this takes.
    floor : bool
    of : {"seconds", "peak_mb"}
        What is compared.
    """

    workload: workloads.Workload
    target: float | None = None
    floor: bool = False
    of: str = "seconds"


@dataclass(frozen=True)
class Row:
    """A line of work.

    Attributes
    ----------
    name : str
    group : str
    ours : Workload
    against : dict of str to Against
    limits : dict
        The most that "peak_mb" (MB above the imports) or a step (seconds) may be.
    tolerance : float
        Largest difference from other tools' results, relative to the region's largest signal.
    absolute : bool
        Whether `tolerance` is absolute, as for z-scores.
    quick, full : bool
        Whether the row is part of ``--quick``; whether it needs ``--full``.
    """

    name: str
    group: str
    ours: workloads.Workload
    against: dict = field(default_factory=dict)
    limits: dict = field(default_factory=dict)
    tolerance: float = 1e-6
    absolute: bool = False
    quick: bool = False
    full: bool = False


def _row(group, name, *, nilearn=None, decoding=None, few=False, limits=None, quick=False, full=False, **work):
    """A row that extracts: gpumask against nilearn on the same work, and against decompressing the same file.

    `nilearn` and `decoding` are their targets; `few` gives nilearn the first volumes only; `work` has the fields of
    `Extraction`.
    """
    ours, theirs = Extraction("gpumask", **work), Extraction("nilearn", **work)
    if few:
        theirs = replace(theirs, run={**theirs.run, "first": FEW})
    against = {"nilearn": Against(theirs, nilearn)}
    if work["run"].get("suffix") == ".nii.gz":
        against["decoding"] = Against(Decoding(work["run"]), decoding, floor=True)
    # nilearn smooths integers in float32. Rounding values near 9000 is 1e-5 of what cleaning leaves of a signal: by so
    # much its z-scores are off a float64 reference, and gpumask's by a hundredth of it. Rows without cleaning, smoothed
    # and not, are held to 1e-6.
    tolerance = {"tolerance": 3e-5, "absolute": True} if work["parameters"] is CLEANED else {}
    return Row(name, group, ours, against, limits or {}, quick=quick, full=full, **tolerance)


def _targets():
    plain, packed = {"suffix": ".nii"}, {"suffix": ".nii.gz"}
    cleaned = {"parameters": CLEANED, "confounds": True, "limits": {"peak_mb": 400}, "quick": True}
    yield _row("targets", "6 mm + cleaning, .nii.gz", nilearn=11, decoding=1.15, run=packed, **cleaned)
    yield _row("targets", "6 mm + cleaning, .nii", nilearn=50, run=plain, **cleaned)
    yield _row("targets", "mean, .nii.gz", decoding=1.1, run=packed, parameters=RAW, quick=True)
    yield _row("targets", "mean, .nii", nilearn=40, run=plain, parameters=RAW, quick=True)
    to_labels = {**RAW, "resampling_target": "labels"}
    for affine, target, how in (("shifted", 10, "axis-aligned"), ("oblique", 3, "oblique")):
        run, atlases = {"suffix": ".nii", "first": 40}, ({"affine": affine},)
        name = f"cubic resampling to the labels, {how}, .nii, 40 volumes"
        yield _row("targets", name, nilearn=target, run=run, atlases=atlases, parameters=to_labels)
    for strategy, target in {"median": 10, "maximum": 50, "standard_deviation": 30}.items():
        parameters = {**RAW, "strategy": strategy}
        yield _row("targets", f"{strategy}, .nii", nilearn=target, few=True, run=plain, parameters=parameters)
    row = _row(
        "targets",
        "mean, labels stored as float32, .nii",
        nilearn=100,
        few=True,
        run=plain,
        atlases=({"dtype": "float32"},),
        parameters=RAW,
    )
    integers = Extraction("gpumask", plain, parameters=RAW)
    # "No slower" within what medians of the same work differ by.
    yield replace(row, against={**row.against, "gpumask, int32 labels": Against(integers, 1.05, floor=True)})
    yield _together(5, target=1.3, quick=True)
    paint = {"nilearn": Against(Painting("nilearn"), 10)}
    yield Row("inverse_transform, 20 volumes", "targets", Painting("gpumask"), paint)
    yield Row("compiling the weights, 6 mm", "targets", Compilation(), limits={"compile": 0.5}, quick=True)
    libraries = Command(("-c", "import nibabel, scipy.sparse, sklearn.base"))
    maskers = Command(("-c", "import nilearn.maskers"))
    yield Row(
        "import gpumask.maskers.labels",
        "targets",
        Command(("-c", "import gpumask.maskers.labels")),
        {"its libraries": Against(libraries, 1.2, floor=True), "import nilearn.maskers": Against(maskers)},
        quick=True,
    )
    help_text = Command(("-m", "gpumask", "--help"))
    against = {"import nilearn.maskers": Against(maskers, 0.5, floor=True)}
    yield Row("gpumask --help", "targets", help_text, against, quick=True)
    for n_volumes, shorter in ((200, 100), (1200, 200)):
        work = {"parameters": CLEANED, "confounds": True}
        same = Extraction("gpumask", {**packed, "n_volumes": shorter}, compared=False, **work)
        yield Row(
            f"memory, 6 mm + cleaning, .nii.gz, {n_volumes} volumes",
            "targets",
            Extraction("gpumask", {**packed, "n_volumes": n_volumes}, **work),
            {f"gpumask, {shorter} volumes": Against(same, 1.1, floor=True, of="peak_mb")},
            {"peak_mb": 400},
            full=n_volumes > 200,
        )


def _in_float32(row, tolerance):
    """The row with a tolerance for nilearn's arithmetic in float32; ours is within 1e-6 of float64 references there."""
    return replace(row, tolerance=tolerance)


def _maskers():
    """The other maskers: maps, spheres, voxels, and correlation maps of regions with voxels."""
    plain = {"suffix": ".nii"}
    maps = {"kind": "maps", "run": plain, "parameters": RAW}
    yield _in_float32(_row("maskers", "113 maps, .nii", nilearn=100, **maps), 3e-5)
    few = {**maps, "run": {**plain, "first": FEW}}
    name = f"113 maps of 1 mm, resampled to the run, .nii, {FEW} volumes"
    yield _in_float32(_row("maskers", name, atlases=({"voxel": 1.0},), **few), 3e-5)
    spheres = {**RAW, "radius": 8, "allow_overlap": True}
    floats = {**plain, "dtype": "float32"}  # of integers, nilearn truncates the means
    spheres_of = {"kind": "spheres", "run": floats, "parameters": spheres}
    yield _in_float32(_row("maskers", "264 spheres of 8 mm, .nii, float32", nilearn=100, **spheres_of), 3e-6)
    voxels = {"kind": "voxels", "confounds": True, "parameters": CLEANED}
    limits = {"peak_mb": 460}  # twice the result's memory
    row = _row("maskers", "all voxels, 6 mm + cleaning, .nii", nilearn=80, run=plain, limits=limits, **voxels)
    yield _in_float32(row, 1e-4)
    yield _row("maskers", "all voxels, .nii", run=plain, kind="voxels", parameters=RAW)
    yield Row(
        "correlation maps of 416 regions, 6 mm + cleaning, .nii",
        "maskers",
        Correlation("gpumask", plain, CLEANED),
        {"nilearn": Against(Correlation("nilearn", plain, CLEANED), 40)},
        tolerance=3e-5,
        absolute=True,
    )
    for n_maps in (10, 113, 1000):
        row = {**maps, "atlases": ({"n_maps": n_maps},), "few": True}
        row = _row("growth with maps", f"{n_maps:,} maps, .nii", full=n_maps > 113, **row)
        yield _in_float32(row, 3e-5)
    for n_volumes in (100, 400, 1200):
        run = {**plain, "n_volumes": n_volumes}
        row = _row("growth of voxels", f"6 mm + cleaning, {n_volumes} volumes", full=n_volumes > 400, run=run, **voxels)
        yield replace(row, against={})  # of 400 volumes, nilearn takes minutes and 6 GB


def _together(n_atlases, target=None, quick=False):
    atlases = tuple({"n_regions": n} for n in (416, 116, 454, 1000, 1177)[:n_atlases])
    group = "targets" if target else "growth with atlases"
    run = {"suffix": ".nii.gz"}
    name = f"{n_atlases} atlases in one pass, .nii.gz"
    row = _row(group, name, few=True, run=run, atlases=atlases, parameters=RAW, quick=quick)
    one = Extraction("gpumask", run, parameters=RAW, compared=False)
    return replace(row, against={**row.against, "gpumask, one atlas": Against(one, target, floor=True)})


def _growth():
    plain = {"suffix": ".nii"}
    for n_volumes, full in ((50, False), (100, False), (200, False), (1200, True)):
        run = {"suffix": ".nii.gz", "n_volumes": n_volumes}
        for dtype in ("int16", "float32") if full else ("int16",):
            name = f"mean, .nii.gz, {dtype}, {n_volumes} volumes"
            run = {**run, "dtype": dtype}
            yield _row("growth with volumes", name, few=full, full=full, run=run, parameters=RAW)
    for n_regions in (116, 416, 1000, 6272, 70262):
        for fwhm in (None, 6):
            name = f"{'6 mm' if fwhm else 'mean'}, .nii, {n_regions:,} regions"
            atlases, parameters = ({"n_regions": n_regions},), {**RAW, "smoothing_fwhm": fwhm}
            yield _row("growth with regions", name, few=True, run=plain, atlases=atlases, parameters=parameters)
    for fwhm in (None, 4, 6, 8, 12):
        parameters = {**RAW, "smoothing_fwhm": fwhm}
        yield _row("growth with smoothing", f"{fwhm or 0} mm, .nii", few=True, run=plain, parameters=parameters)
    # Of these nothing can be folded into weights.
    for strategy in ("median", "standard_deviation"):
        parameters = {**RAW, "smoothing_fwhm": 6, "strategy": strategy}
        yield _row("growth with smoothing", f"{strategy}, 6 mm, .nii", few=True, run=plain, parameters=parameters)
    yield _together(2)
    for suffix in (".nii", ".nii.gz"):
        run = {"suffix": suffix, "dtype": "float32"}
        yield _row("float32 volumes", f"mean, {suffix}, float32", few=True, run=run, parameters=RAW)


FIVE = tuple({"n_parcels": n} for n in (379, 718, 17, 100, 1000))


def _dense(name, group="grayordinates", *, target=None, run=None, atlases=({},), **parameters):
    """A row of one dense series, against a command of Workbench's for each atlas."""
    run = run or {}
    ours = Extraction("gpumask", run, atlases, {**RAW, **parameters}, kind="grayordinates")
    return Row(name, group, ours, {"wb_command": Against(Parcellation("wb_command", (run,), atlases), target)})


def _grayordinates():
    """Dense series of 91,282 grayordinates, float32."""
    for n_times in (400, 1200):
        run = {"n_volumes": n_times}
        yield _dense(f"mean, 379 parcels, {n_times} time points", run=run, target=8)
        yield _dense(f"mean, five atlases, {n_times} time points", run=run, target=8, atlases=FIVE)
        two = tuple({**run, "number": number} for number in (0, 1))
        theirs = {"wb_command": Against(Parcellation("wb_command", two), 1.5)}
        name = f"gpumask extract --cifti of two files, {n_times} time points"
        yield Row(name, "grayordinates", Parcellation("gpumask", two), theirs)
    growth = "growth of grayordinates"
    for n_times in (100, 200, 800):
        yield _dense(f"mean, {n_times} time points", growth, run={"n_volumes": n_times})
    for space, of in SPACES.items():
        if space != "91k":
            name = f"mean, 400 time points, {of.n:,} grayordinates"
            yield _dense(name, growth, run={"space": space}, atlases=({"space": space},))
    for n_parcels in (17, 100, 718, 1000, 5000, 10_000):
        yield _dense(f"mean, 400 time points, {n_parcels:,} parcels", growth, atlases=({"n_parcels": n_parcels},))
    for strategy in ("median", "standard_deviation", "minimum"):
        row = _dense(f"{strategy}, 400 time points", growth, strategy=strategy)
        yield replace(row, against={})


def _peers():
    plain = {"suffix": ".nii"}
    few = {**plain, "first": FEW}
    tools = [workloads.Workbench, workloads.Ants, workloads.SimpleItk, workloads.ScikitImage, workloads.Scipy]
    tools = [tool(plain) for tool in tools] + [workloads.Mrtrix(few)]
    against = {tool.__doc__.partition(":")[0]: Against(tool) for tool in tools}
    yield Row(
        "mean, .nii",
        "other tools",
        Extraction("gpumask", plain, parameters=RAW),
        against,
        tolerance=1e-5,  # some of them sum in float32, or print six digits
    )


def all_rows():
    """Every row, in the order of the table; names are unique within a group."""
    return [*_targets(), *_maskers(), *_growth(), *_grayordinates(), *_peers()]
