"""Calls of the kernels with arrays that don't fit together raise errors that name the array, and read nothing else.

The compiled functions check for themselves, since arrays can change after they were checked in Python: these tests run
with a sanitizer, too (see .ci/run).
"""

import pickle
import re

import numpy as np
import pytest

from gpumask import backend
from gpumask.kernels import CubicResampling, compiled, gaussian_smooth, resample_cubic, smoothing_matrix
from gpumask.kernels.segments import STRATEGIES, FoldedSegments, Segments
from gpumask.kernels.smoothing import apply_separable
from gpumask.kernels.weights import cut, fold

from .helpers import needs_compiled

N_REGIONS, N_VOLUMES, N_VOXELS = 4, 3, 50
SHAPE = (3, 4, 5)
MATRICES = [smoothing_matrix(n, 1.0) for n in SHAPE]


def exactly(message):
    return f"^{re.escape(message)}$"


def not_real(dtype):
    return np.zeros((N_VOLUMES, N_VOXELS), dtype)


def numbers(shape, dtype="f8"):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


ENDS = "`offsets` must start at 0 and end at {}, the length of `indices`, got {} to {}."
FALLS = "`offsets` must never decrease, got {} after {}. An empty region repeats an offset."
NEGATIVE = "`indices` must be voxels, counted from 0, got {}. Leave out voxels that are in no region."
INTEGERS = "`{}` must be integers of one dimension, got {} of shape {}."
WEIGHTS = "`weights` must be real numbers, one for each of the {} `indices`, got {} of shape {}."
NO_ARRAY = "`{}` must be an array, got {}. Convert lists with numpy.asarray."

# name: (indices, offsets, weights or None, message)
UNFIT = {
    "index negative": ([-1, 1, 2], [0, 3], None, NEGATIVE.format(-1)),
    "index negative in the middle": ([0, -(2**40), 2], [0, 3], None, NEGATIVE.format(-(2**40))),
    "index lowest": ([0, -(2**63)], [0, 2], None, NEGATIVE.format(-(2**63))),
    "offsets beyond": ([0, 1, 2], [0, 5], None, ENDS.format(3, 0, 5)),
    "offsets far beyond": ([0, 1, 2], [0, 2**61], None, ENDS.format(3, 0, 2**61)),
    "offsets beyond in the middle": ([0, 1, 2], [0, 10**5, 3], None, FALLS.format(3, 10**5)),
    "offsets fall": ([0, 1, 2], [0, 3, 1], None, FALLS.format(1, 3)),
    "offsets fall and rise": ([0, 1, 2], [0, 2, 1, 3], None, FALLS.format(1, 2)),
    "offsets overflow": ([0, 1, 2], [-(2**63), 2**63 - 1, 3], None, FALLS.format(3, 2**63 - 1)),
    "offsets fall below 0": ([10**8, 1, 2], [0, 3, -1], None, FALLS.format(-1, 3)),
    "offsets start beyond 0": ([0, 1, 2, 3, 4, 5], [3, 6], None, ENDS.format(6, 3, 6)),
    "offsets start below 0": ([0, 1, 2], [-3, 3], None, ENDS.format(3, -3, 3)),
    "offsets end early": ([0, 1, 2, 3], [0, 1, 2], None, ENDS.format(4, 0, 2)),
    "offsets unsigned and falling": ([0, 1, 2], np.array([0, 2**63, 3], "u8"), None, FALLS.format(3, 2**63)),
    "offsets empty": (
        [],
        [],
        None,
        "`offsets` must hold a start for each region and the end of the last, got nothing. No region: [0].",
    ),
    "entries without offsets": ([0, 1], [0], None, ENDS.format(2, 0, 0)),
    "weights short": ([0, 1, 2], [0, 3], np.ones(1), WEIGHTS.format(3, "float64", (1,))),
    "weights long": ([0, 1, 2], [0, 3], np.ones(4), WEIGHTS.format(3, "float64", (4,))),
    "weights of two dimensions": ([0, 1, 2], [0, 3], np.ones((3, 1)), WEIGHTS.format(3, "float64", (3, 1))),
    "weights complex": ([0, 1], [0, 2], np.ones(2, "c16"), WEIGHTS.format(2, "complex128", (2,))),
    "weights of objects": ([0, 1], [0, 2], np.array([1, None]), WEIGHTS.format(2, "object", (2,))),
    "weights a number": ([0], [0, 1], 2.0, NO_ARRAY.format("weights", "float")),
    "indices float": (np.arange(3.0), [0, 3], None, INTEGERS.format("indices", "float64", (3,))),
    "indices bool": (np.ones(3, bool), [0, 3], None, INTEGERS.format("indices", "bool", (3,))),
    "indices of two dimensions": (np.ones((3, 1), int), [0, 3], None, INTEGERS.format("indices", "int64", (3, 1))),
    "indices of no dimension": (np.array(1), [0, 1], None, INTEGERS.format("indices", "int64", ())),
    "indices times": (np.zeros(1, "M8[s]"), [0, 1], None, INTEGERS.format("indices", "datetime64[s]", (1,))),
    "indices None": (None, [0], None, NO_ARRAY.format("indices", "NoneType")),
    "offsets float": ([0], np.array([0.0, 1.0]), None, INTEGERS.format("offsets", "float64", (2,))),
    "offsets None": ([0], None, None, NO_ARRAY.format("offsets", "NoneType")),
}


def as_arrays(indices, offsets):
    return [np.array(part, np.int64) if isinstance(part, list) else part for part in (indices, offsets)]


@pytest.mark.parametrize("name", UNFIT)
def test_segments_that_do_not_fit_together(name):
    indices, offsets, weights, message = UNFIT[name]
    indices, offsets = as_arrays(indices, offsets)
    with pytest.raises(ValueError, match=exactly(message)):
        Segments(indices, offsets, weights)
    with pytest.raises(ValueError, match=exactly(message)):
        cut(indices, offsets, weights)
    if weights is None:
        with pytest.raises(ValueError, match=exactly(message)):
            fold(indices, offsets, MATRICES)


def test_lists_are_no_arrays():
    with pytest.raises(ValueError, match=exactly(NO_ARRAY.format("indices", "list"))):
        Segments([0, 1], [0, 2])


@pytest.mark.parametrize("name", [name for name, (*_, message) in UNFIT.items() if "None" not in name])
def test_segments_on_a_device_are_checked_at_first_use(put, name):
    """Shapes and dtypes at once; values where the host has to wait for the device anyway."""
    indices, offsets, weights, message = UNFIT[name]
    indices, offsets = as_arrays(indices, offsets)
    if any(isinstance(part, np.ndarray) and part.dtype.kind in "OMc" for part in (indices, weights)):
        pytest.skip("not a dtype that every library has")
    if isinstance(weights, np.ndarray):
        weights = put(weights)
    with pytest.raises(ValueError, match=exactly(message)):
        _ = Segments(put(indices), put(offsets), weights).counts


@pytest.mark.parametrize("put", ["cupy"], indirect=True)
def test_segments_made_on_a_device_stay_unchecked_when_pickled(put):
    segments = Segments(put(np.array([3, -1])), put(np.array([0, 2])))
    with pytest.raises(ValueError, match=exactly(NEGATIVE.format(-1))):
        _ = pickle.loads(pickle.dumps(segments)).bounds


def test_moving_checked_segments_copies_nothing_back(put, monkeypatch):
    segments = Segments(np.array([0, 7, 3]), np.array([0, 1, 3]), np.array([1.0, 0.5, 0.25]))
    to_host = backend.to_host

    def only_of_the_host(array):
        assert backend.is_numpy(array)
        return array

    monkeypatch.setattr(backend, "to_host", only_of_the_host)
    moved = segments.like(put(np.zeros(1)))
    assert moved.n_needed == 8
    assert moved.counts.tolist() == [1, 2]
    assert to_host(moved.totals).tolist() == [1.0, 0.75]
    moved.require_voxels(put(np.zeros((1, 8))))


REACH = (
    "`data` must have the shape (n_volumes, n_voxels), with at least the {} voxels that `segments` reaches, got {}. "
    "Segments and volumes must be of one grid."
)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("index", [N_VOXELS, 2000, 2**31, 2**32, 2**32 + 1, 2**40, 2**62])
def test_index_beyond_the_volume(strategy, index):
    """2**32 + 1 must not wrap to voxel 1, nor 2**40 ask for a table of as many bytes."""
    segments = Segments(np.array([0, index, 2]), np.array([0, 3]))
    with pytest.raises(ValueError, match=exactly(REACH.format(index + 1, (N_VOLUMES, N_VOXELS)))):
        STRATEGIES[strategy](numbers((N_VOLUMES, N_VOXELS)), segments)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_index_beyond_the_volume_in_any_library(put, strategy):
    segments = Segments(np.array([0, N_VOXELS, 2]), np.array([0, 3]))
    data = put(numbers((N_VOLUMES, N_VOXELS)))
    with pytest.raises(ValueError, match=exactly(REACH.format(N_VOXELS + 1, (N_VOLUMES, N_VOXELS)))):
        STRATEGIES[strategy](data, segments.like(data))


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("shape", [(N_VOXELS,), (N_VOXELS, 3), (2, N_VOXELS, 1), (3, 0), ()], ids=str)
def test_volumes_of_other_shapes(strategy, shape):
    segments = Segments.from_labels(np.arange(N_VOXELS) % 3, [1, 2])
    with pytest.raises(ValueError, match=exactly(REACH.format(N_VOXELS, shape))):
        STRATEGIES[strategy](np.zeros(shape), segments)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", ["F", "D", "O", "S4", "U3", "M8[s]", "m8[s]", "V5"])
def test_volumes_that_are_not_real_numbers(strategy, dtype):
    data = not_real(dtype)
    segments = Segments.from_labels(np.arange(N_VOXELS) % 3, [1, 2])
    message = f"`data` must be an array of real numbers, got {data.dtype}. Convert it first."
    with pytest.raises(TypeError, match=exactly(message)):
        STRATEGIES[strategy](data, segments)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_arrays_changed_after_they_were_checked(strategy):
    """Wrong values at worst, or an error: no other memory is read."""
    data = numbers((N_VOLUMES, N_VOXELS))
    for change in ({"indices": 10**6}, {"indices": -(10**6)}, {"offsets": 10**6}, {"offsets": -(10**6)}):
        segments = Segments(np.arange(N_VOXELS), np.array([0, 10, N_VOXELS]))
        STRATEGIES[strategy](data, segments)
        for name, value in change.items():
            getattr(segments, name)[1] = value
        if strategy in ("sum", "mean"):
            np.testing.assert_array_equal(STRATEGIES["sum"](data, segments)[0], [45, 1180])  # compiled before
        elif compiled.extension is not None:
            with pytest.raises(ValueError, match=r"^`(indices|offsets)` must "):
                STRATEGIES[strategy](data, segments)


def test_blocks_are_read_only():
    blocks = Segments.from_labels(np.arange(N_VOXELS) % 3, [1, 2]).blocks
    for array in blocks[:5]:
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 10**6


# Folding

SQUARE = "`matrices` must be three real, finite, symmetric matrices, for z, y and x (see smoothing_matrix), got {}."
NAN = np.full((5, 5), np.nan)
NOT_MATRICES = {
    "None": (None, "None"),
    "none": ([], "0"),
    "two": (MATRICES[:2], "2"),
    "four": ([*MATRICES, np.eye(2)], "4"),
    "tall": ([np.eye(6)[:, :3], *MATRICES[1:]], "float64 of shape (6, 3) for z"),
    "wide": ([np.eye(6)[:3], *MATRICES[1:]], "float64 of shape (3, 6) for z"),
    "a line": ([MATRICES[0], np.ones(4), MATRICES[2]], "float64 of shape (4,) for y"),
    "a number": ([MATRICES[0], MATRICES[1], 1.0], "float64 of shape () for x"),
    "None among them": ([None, *MATRICES[1:]], "object of shape () for z"),
    "complex": ([np.eye(3) * 1j, *MATRICES[1:]], "complex128 of shape (3, 3) for z"),
    "text": ([np.array([["1"]]), *MATRICES[1:]], "<U1 of shape (1, 1) for z"),
    "NaN": ([*MATRICES[:2], NAN], "one that is not finite or not symmetric for x"),
    "infinite": ([*MATRICES[:2], np.diag([1, 1, np.inf, 1, 1])], "one that is not finite or not symmetric for x"),
    "one column": (
        [*MATRICES[:2], np.outer(np.ones(5), [1, 0, 0, 0, 0])],
        "one that is not finite or not symmetric for x",
    ),
}


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("name", NOT_MATRICES)
def test_fold_without_proper_matrices(name):
    matrices, got = NOT_MATRICES[name]
    segments = Segments(np.array([0, 5, 59]), np.array([0, 1, 3]))
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=exactly(SQUARE.format(got))):
        fold(segments.indices, segments.offsets, matrices)
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=exactly(SQUARE.format(got))):
        FoldedSegments(segments, matrices)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("index", [60, 2**31, 2**32, 2**32 + 1, 2**62])
def test_fold_of_voxels_outside(index):
    message = f"`indices` must lie within the volumes of the matrices, shape (3, 4, 5): below 60, got {index}."
    with pytest.raises(ValueError, match=exactly(message)):
        fold(np.array([0, index]), np.array([0, 2]), MATRICES)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("kind", ["int64", "float32", "Fortran order", "zeros", "swapped", "empty"])
def test_fold_with_unusual_matrices(kind):
    """Matrices of other types are converted; rows of zeros leave nothing."""
    indices, offsets = np.arange(60, dtype=np.int32), np.array([0, 7, 60])
    matrices = {
        "int64": lambda: [np.eye(n, dtype=np.int64) for n in SHAPE],
        "float32": lambda: [np.eye(n, dtype=np.float32) for n in SHAPE],
        "Fortran order": lambda: [np.asfortranarray(np.eye(n)) for n in SHAPE],
        "zeros": lambda: [np.zeros((n, n)) for n in SHAPE],
        "swapped": lambda: [np.eye(n)[::-1] for n in SHAPE],
        "empty": lambda: [np.zeros((0, 0))] * 3,
    }[kind]()
    if kind == "empty":
        indices, offsets = indices[:0], np.zeros(3, np.int64)
    if kind == "zeros" and compiled.extension is None:
        pytest.skip("NumPy's way needs entries in each matrix")
    voxels, starts, weights = fold(indices, offsets, matrices)
    if kind in ("zeros", "empty"):
        assert starts.tolist() == [0, 0, 0]
        assert len(voxels) == len(weights) == 0
    else:
        assert starts.tolist() == offsets.tolist()
        assert (weights == 1).all()
        expected = indices if kind != "swapped" else np.concatenate([np.arange(53, 60), np.arange(53)])
        np.testing.assert_array_equal(voxels, expected)


# Smoothing and resampling


@pytest.mark.parametrize("sigma", [np.nan, np.inf, -1.0, 1e8])
def test_impossible_sigma(sigma):
    with pytest.raises(ValueError, match=exactly(f"`sigma` must be a number of voxels from 0 to 10000, got {sigma}.")):
        smoothing_matrix(5, sigma)
    message = f"`sigma` must hold at most 3 numbers from 0 to 10000, one per axis to smooth, got [{sigma}, 1.0, 1.0]."
    with pytest.raises(ValueError, match=exactly(message)):
        gaussian_smooth(np.zeros((5, 5, 5)), [sigma, 1, 1])


@pytest.mark.parametrize("shape", [(0, 0, 0), (1, 1, 1), (0, 3, 4), (3, 4, 0), (2, 0, 3, 4), (0, 3, 4, 5)])
def test_smallest_volumes(shape):
    assert gaussian_smooth(np.zeros(shape), [1e-3, 1e3, 1]).shape == shape


@needs_compiled
@pytest.mark.parametrize("dtype", ["F", "O", "U3", "M8[s]"])
def test_smoothing_what_is_not_real(dtype):
    volumes = np.zeros((2, 30, 30, 30), dtype)
    message = f"Volumes must be of real numbers, got an array of {volumes.dtype}."
    with pytest.raises(TypeError, match=exactly(message)):
        apply_separable([smoothing_matrix(30, 0.5)] * 3, volumes)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("oblique", [True, False])
@pytest.mark.parametrize("shape", [(2, 7), (5, 25), (125, 1), (125,), (1, 5, 25), (2, 126)], ids=str)
def test_resampling_volumes_of_another_grid(oblique, shape):
    matrix = np.eye(3) * 0.9 + 0.01 if oblique else np.full(3, 0.9)
    resampling = CubicResampling.compile(matrix, np.zeros(3), (5, 5, 5), (4, 4, 4), np.arange(64))
    message = f"`data` must have the shape (n_volumes, 125) of volumes of the compiled source grid, got {shape}."
    with pytest.raises(ValueError, match=exactly(message)):
        resample_cubic(np.zeros(shape), resampling)


# The compiled functions themselves


def arguments_of(function):
    """Arguments that fit together, by name in their order."""
    segments = Segments.from_labels(np.arange(N_VOXELS) % (N_REGIONS + 1), range(1, N_REGIONS + 1))
    data, out = numbers((N_VOLUMES, N_VOXELS)), np.zeros((N_VOLUMES, N_REGIONS))
    indices, offsets = segments.indices, segments.offsets
    return {
        "blocks": {**segments.blocks._asdict(), "n_regions": N_REGIONS},
        "sums": {"data": data, "blocks": segments.checked_blocks, "out": out},
        "statistics": {"name": "median", "data": data, "indices": indices, "offsets": offsets, "out": out},
        "fold": {
            "indices": indices,
            "offsets": offsets,
            "weights": None,
            **dict(zip(("matrix_z", "matrix_y", "matrix_x"), MATRICES, strict=True)),
            "new_offsets": np.zeros(N_REGIONS + 1, np.int64),
        },
        "multiply": {
            "volumes": numbers((2, *SHAPE)),
            **dict(zip(("matrix_z", "matrix_y", "matrix_x"), MATRICES, strict=True)),
            "out": np.zeros((2, *SHAPE)),
        },
        "interpolate": {
            "volumes": numbers((2, *SHAPE)),
            "coordinates": numbers((3, 6)) % 3,
            "out": np.zeros((2, 6)),
        },
        "numbers": {"text": b"1\t2\n3\t4\n", "rows": np.zeros((2, 2)), "labelled": False},
    }[function]


FUNCTIONS = ["blocks", "sums", "statistics", "fold", "multiply", "interpolate", "numbers"]
RESULTS = {"sums": "out", "statistics": "out", "fold": "new_offsets", "multiply": "out", "interpolate": "out"}
RESULTS["numbers"] = "rows"
STRIDED = ("multiply", "volumes")
OPTIONAL = [("blocks", "weights"), ("fold", "weights")]
if compiled.extension is None:
    ARRAYS = []
else:
    ARRAYS = [
        (function, name)
        for function in FUNCTIONS
        for name, value in arguments_of(function).items()
        if isinstance(value, np.ndarray) or (function, name) in OPTIONAL
    ]
every_function = pytest.mark.parametrize("function", FUNCTIONS)
every_array = pytest.mark.parametrize(("function", "name"), ARRAYS)


def call(function, **changed):
    return getattr(compiled.extension, function)(*{**arguments_of(function), **changed}.values())


def type_of(function, name):
    if name in ("data", "volumes"):
        return "real numbers"
    value = arguments_of(function)[name]
    return "float64" if value is None else str(value.dtype)


@needs_compiled
@every_function
def test_compiled_functions_accept_what_fits(function):
    call(function)


@needs_compiled
@every_array
@pytest.mark.parametrize("value", [None, "text", 3, [1.0, 2.0]], ids=["None", "text", "number", "list"])
def test_compiled_functions_refuse_other_objects(function, name, value):
    if value is None and (function, name) in OPTIONAL:
        return
    message = f"`{name}` must be an array of {type_of(function, name)}, got {type(value).__name__}."
    with pytest.raises(TypeError, match=exactly(message)):
        call(function, **{name: value})


OTHER_TYPES = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", "f2", "g", "F", "D", "O", "S4", "S1"]
OTHER_TYPES += ["U3", "V5", ">f8", ">i8", ">i4", ">u2", "f4,f4"]


@needs_compiled
@every_array
@pytest.mark.parametrize("dtype", OTHER_TYPES)
def test_compiled_functions_refuse_items_of_another_kind(function, name, dtype):
    """Also where only the kind differs: 8 bytes of an integer are no float64."""
    given = arguments_of(function)[name]
    given = np.zeros(N_VOXELS) if given is None else given
    expected, dtype = type_of(function, name), np.dtype(dtype)
    if dtype == expected or (expected == "real numbers" and dtype.isnative and dtype.char in "?bBhHiIlLqQfd"):
        return
    array = np.zeros(given.shape, dtype)
    got = memoryview(array).format
    message = f"`{name}` must be of {expected} in native byte order, got items of format '{got}'."
    with pytest.raises(TypeError, match=exactly(message)):
        call(function, **{name: array})


@needs_compiled
@every_array
def test_compiled_functions_refuse_other_dimensions(function, name):
    given = arguments_of(function)[name]
    given = np.zeros(N_VOXELS) if given is None else given
    for array in (given[np.newaxis], given[0].copy() if given.ndim > 1 else given[:1].reshape(()), given.reshape(-1)):
        if array.ndim == given.ndim:
            continue
        message = f"`{name}` must have {given.ndim} dimensions, got {array.ndim}."
        with pytest.raises(TypeError, match=exactly(message)):
            call(function, **{name: array.copy()})


@needs_compiled
@every_array
def test_compiled_functions_refuse_other_layouts(function, name):
    given = arguments_of(function)[name]
    given = np.zeros(N_VOXELS) if given is None else given
    purpose = "that can be written to" if RESULTS.get(function) == name else "of numbers"
    message = f"`{name}` must be an array in C order {purpose}."
    if (function, name) != STRIDED:
        for array in (np.repeat(given, 2, axis=-1)[..., ::2], np.broadcast_to(given.flat[0], given.shape)):
            with pytest.raises(ValueError, match=exactly(message)):
                call(function, **{name: array})
    odd = np.frombuffer(b"0" + given.tobytes() + bytes(1), np.uint8)[1 : 1 + given.nbytes].copy()
    odd = np.frombuffer(bytearray(b"0" + odd.tobytes()), np.uint8)[1:].view(given.dtype).reshape(given.shape)
    message = f"`{name}` must have its items at multiples of their size."
    with pytest.raises(ValueError, match=exactly(message)):
        call(function, **{name: odd})


@needs_compiled
@pytest.mark.parametrize(("function", "name"), RESULTS.items())
def test_compiled_functions_refuse_read_only_results(function, name):
    given = arguments_of(function)[name].copy()
    given.flags.writeable = False
    message = f"`{name}` must be an array in C order that can be written to."
    with pytest.raises(ValueError, match=exactly(message)):
        call(function, **{name: given})


@needs_compiled
@every_function
def test_compiled_functions_refuse_other_numbers_of_arguments(function):
    arguments = list(arguments_of(function).values())
    with pytest.raises(TypeError, match="argument"):
        getattr(compiled.extension, function)(*arguments[:-1])
    with pytest.raises(TypeError, match="argument"):
        getattr(compiled.extension, function)(*arguments, 1)


BLOCKS = (
    "`parts`, `voxels`, `rows`, `spans`, `columns` and `weights` don't fit together: use those of `Segments.blocks`."
)


def edited(array, where, value):
    array = array.copy()
    array[where] = value
    return array


@needs_compiled
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("parts", lambda a: -a),
        ("parts", lambda a: a * 10**6),
        ("parts", lambda a: a[:0]),
        ("parts", lambda a: a[:, :1].copy()),
        ("parts", lambda a: a[::-1].copy()),
        ("parts", lambda a: a + 1),
        ("parts", lambda a: np.array([[0, 0], [10**9, 1], [-5, -5], a[-1]])),
        ("parts", lambda a: np.array([[0, 0], [N_VOXELS, 10**9], a[-1]])),
        ("voxels", lambda a: a - 1000),
        ("voxels", lambda a: edited(a, 5, -1)),
        ("voxels", lambda a: edited(a, 5, 2**63 - 1)),
        ("voxels", lambda a: a[:-1].copy()),
        ("rows", lambda a: a + 1000),
        ("rows", lambda a: a - 1000),
        ("rows", lambda a: a[:-1].copy()),
        ("spans", lambda a: a + 10**6),
        ("spans", lambda a: a - 10**6),
        ("spans", lambda a: a[:, ::-1].copy()),
        ("spans", lambda a: a[:-1].copy()),
        ("spans", lambda a: a[:, :1].copy()),
        ("spans", lambda a: edited(a, (0, 0), -(2**63))),
        ("columns", lambda a: np.full_like(a, 65535)),
        ("columns", lambda a: edited(a, -1, N_VOXELS)),
        ("columns", lambda a: a[:-1].copy()),
        ("weights", lambda a: np.ones(1)),
        ("weights", lambda a: np.ones(N_VOXELS + 1)),
        ("n_regions", lambda n: n - 1),
        ("n_regions", lambda n: -1),
    ],
)
def test_blocks_that_do_not_fit_together(name, change):
    with pytest.raises(ValueError, match=exactly(BLOCKS)):
        call("blocks", **{name: change(arguments_of("blocks")[name])})


@needs_compiled
def test_compiled_sums_of_other_blocks():
    message = "`blocks` must be what `blocks` returned."
    other = __import__("datetime").datetime_CAPI
    for value in (None, 1, np.zeros(3), other):
        with pytest.raises(TypeError, match=exactly(message)):
            call("sums", blocks=value)


@needs_compiled
def test_compiled_sums_keep_their_arrays_alive():
    segments = Segments(np.arange(N_VOXELS), np.array([0, 10, N_VOXELS]), np.ones(N_VOXELS))
    checked, n_regions = compiled.extension.blocks(*segments.blocks, 2), len(segments)
    del segments
    rubbish = [np.full(N_VOXELS, 7) for _ in range(100)]
    out = np.zeros((1, n_regions))
    compiled.extension.sums(numbers((1, N_VOXELS)), checked, out)
    assert len(rubbish) == 100
    assert out.tolist() == [[45.0, 1180.0]]


VOLUMES = "`out` must have a row for each of the 3 volumes of `data`, got {}."
SUMS = "`data` must have at least 50 voxels and `out` 4 regions, got {} and {}."
OFFSETS = "`offsets` must start at 0, never decrease and end at 40, the length of `indices`."
MATRIX = "The matrices must be square, for volumes of less than 2**31 voxels."
MULTIPLY = "`volumes` must be adjacent along x, and fit the matrices and `out`."
POINTS = "`volumes` must have the shape (k, z, y, x), `coordinates` (3, n) and `out` (k, n)."
SHORT = "`offsets` must have one item more than the {} regions of `out`, got {} items."
ASCENDING = np.arange(0, 50, 10)


@needs_compiled
@pytest.mark.parametrize(
    ("function", "changed", "message"),
    [
        ("sums", {"data": np.zeros((3, 49))}, SUMS.format(49, 4)),
        ("sums", {"data": np.zeros((3, 0))}, SUMS.format(0, 4)),
        ("sums", {"out": np.zeros((3, 3))}, SUMS.format(50, 3)),
        ("sums", {"out": np.zeros((3, 5))}, SUMS.format(50, 5)),
        ("sums", {"out": np.zeros((2, 4))}, VOLUMES.format(2)),
        ("statistics", {"out": np.zeros((4, 4))}, VOLUMES.format(4)),
        ("statistics", {"out": np.zeros((3, 5))}, SHORT.format(5, 5)),
        ("statistics", {"offsets": np.zeros(0, int)}, SHORT.format(4, 0)),
        ("statistics", {"offsets": ASCENDING + 1}, OFFSETS),
        ("statistics", {"offsets": ASCENDING - 1}, OFFSETS),
        ("statistics", {"offsets": edited(ASCENDING, 2, 10**6)}, OFFSETS),
        ("statistics", {"offsets": edited(ASCENDING, 2, -(2**63))}, OFFSETS),
        ("statistics", {"offsets": edited(ASCENDING, -1, -1)}, OFFSETS),
        ("statistics", {"offsets": edited(ASCENDING, -1, 2**61)}, OFFSETS),
        (
            "statistics",
            {"indices": np.full(40, -1, "i4")},
            "`indices` must lie within the 50 voxels of `data`, got -1 to -1.",
        ),
        (
            "statistics",
            {"indices": edited(np.zeros(40, "i4"), 7, 50)},
            "`indices` must lie within the 50 voxels of `data`, got 0 to 50.",
        ),
        ("statistics", {"name": "mode"}, "`name` must be variance, minimum, maximum or median, got mode."),
        ("fold", {"offsets": edited(ASCENDING, 1, 10**6)}, OFFSETS),
        ("fold", {"offsets": edited(ASCENDING, 0, -500)}, OFFSETS),
        ("fold", {"offsets": ASCENDING[:0]}, OFFSETS),
        ("fold", {"offsets": ASCENDING * 10**6}, OFFSETS),
        ("fold", {"weights": np.ones(3)}, "`weights` must be as long as `indices`."),
        ("fold", {"new_offsets": np.zeros(1, int)}, "`new_offsets` must be as long as `offsets`."),
        ("fold", {"new_offsets": np.zeros(6, int)}, "`new_offsets` must be as long as `offsets`."),
        ("fold", {"matrix_z": np.eye(6)[:, :3].copy()}, MATRIX),
        ("fold", {"matrix_x": np.eye(6)[:3].copy()}, MATRIX),
        ("fold", {"matrix_x": np.zeros((0, 5))}, MATRIX),
        (
            "fold",
            {"indices": edited(np.zeros(40, "i4"), 7, -1)},
            "`indices` must be voxels of volumes of 60 voxels, got -1.",
        ),
        (
            "fold",
            {"indices": edited(np.zeros(40, "i4"), 39, 60)},
            "`indices` must be voxels of volumes of 60 voxels, got 60.",
        ),
        ("fold", {"matrix_z": np.zeros((0, 0))}, "`indices` must be voxels of volumes of 0 voxels, got 1."),
        ("multiply", {"volumes": np.zeros((2, 3, 4, 5))[..., ::-1]}, MULTIPLY),
        ("multiply", {"volumes": np.zeros((2, 3, 4, 10))[..., ::2]}, MULTIPLY),
        ("multiply", {"matrix_z": np.eye(4)}, MULTIPLY),
        ("multiply", {"matrix_y": np.zeros((4, 5))}, MULTIPLY),
        ("multiply", {"matrix_x": np.zeros((0, 5))}, MULTIPLY),
        ("multiply", {"out": np.zeros((1, *SHAPE))}, MULTIPLY),
        ("multiply", {"out": np.zeros((2, 2, 4, 5))}, MULTIPLY),
        ("multiply", {"out": np.zeros((2, 3, 4, 4))}, MULTIPLY),
        ("interpolate", {"coordinates": np.zeros((2, 6))}, POINTS),
        ("interpolate", {"coordinates": np.zeros((4, 6))}, POINTS),
        ("interpolate", {"out": np.zeros((1, 6))}, POINTS),
        ("interpolate", {"out": np.zeros((2, 5))}, POINTS),
    ],
)
def test_compiled_functions_refuse_what_does_not_fit(function, changed, message):
    with pytest.raises(ValueError, match=exactly(message)):
        call(function, **changed)


@needs_compiled
@pytest.mark.parametrize("name", ["variance", "minimum", "maximum", "median"])
def test_statistics_of_awkward_values(name):
    """Nothing to compare here: the sanitizer watches."""
    line = np.arange(N_VOLUMES * N_VOXELS).reshape(N_VOLUMES, N_VOXELS)
    some = line % 3 == 0
    for data in (
        np.where(some, np.nan, np.inf),
        np.where(some, -np.inf, np.inf),
        np.where(some, -1.7e308, 1.7e308),
        line * 5e-324,
        10.0 ** (line % 600 - 300),
        np.zeros((0, N_VOXELS)),
    ):
        call("statistics", name=name, data=data, out=np.zeros((len(data), N_REGIONS)))


@needs_compiled
@pytest.mark.parametrize("kind", ["zeros", "one column", "swapped", "some zero rows", "NaN"])
def test_compiled_folding_with_odd_matrices(kind):
    """What a matrix of the wrong kind reaches may be smaller than the region, or nothing."""
    matrix = {
        "zeros": lambda n: np.zeros((n, n)),
        "one column": lambda n: np.outer(np.ones(n), np.eye(n)[0]),
        "swapped": lambda n: np.eye(n)[::-1].copy(),
        "some zero rows": lambda n: np.diag(np.arange(n) % 2 * 1.0),
        "NaN": lambda n: np.full((n, n), np.nan),
    }[kind]
    for odd in ({"z"}, {"y"}, {"x"}, {"z", "y"}, {"z", "x"}, {"y", "x"}, {"z", "y", "x"}):
        matrices = {
            f"matrix_{axis}": matrix(n) if axis in odd else np.eye(n) for axis, n in zip("zyx", SHAPE, strict=True)
        }
        offsets = np.zeros(N_REGIONS + 1, np.int64)
        arguments = {"indices": np.arange(60, dtype="i4"), "offsets": np.array([0, 1, 1, 7, 60])}
        indices, weights = call("fold", **arguments, **matrices, new_offsets=offsets)
        assert offsets[-1] == len(indices) // 4 == len(weights) // 8
        assert ((np.frombuffer(indices, "i4") >= 0) & (np.frombuffer(indices, "i4") < 60)).all()


@needs_compiled
@pytest.mark.parametrize("sizes", [(0, 4, 5), (3, 0, 5), (3, 4, 0), (7, 9, 33), (1, 1, 1), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (3, 4, 0), (3, 4, 5), (1, 1, 1)], ids=str)
def test_compiled_products_of_any_shape(shape, sizes):
    rng = np.random.default_rng(0)
    for make in (rng.random, np.zeros, lambda size: np.eye(*size)[::-1].copy(), lambda size: np.full(size, np.nan)):
        matrices = [make((m, n)) for m, n in zip(sizes, shape, strict=True)]
        for volumes in (numbers((2, *shape)), np.zeros((0, *shape)), np.broadcast_to(1.0, (2, *shape))):
            if volumes.strides[3] != 8 and shape[2] > 1:
                volumes = np.ascontiguousarray(volumes)
            out = np.empty((len(volumes), *sizes))
            compiled.extension.multiply(volumes, *matrices, out)


@needs_compiled
@pytest.mark.parametrize("shape", [(1, 1, 5), (2, 2, 2), (1, 2, 3), (2, 1, 1), (4, 1, 2), (1, 300, 1), (300, 1, 300)])
def test_compiled_splines_at_borders(shape):
    lines = [np.linspace(0, n - 1, 2 * n + 1 if n < 10 else 5) for n in shape]
    points = np.array(np.meshgrid(*lines, indexing="ij")).reshape(3, -1).copy()
    compiled.extension.interpolate(numbers((1, *shape)), points, np.zeros((1, points.shape[1])))


@needs_compiled
@pytest.mark.parametrize("at", [np.nan, np.inf, -np.inf, 1e300, 2.0**63, -1.0, np.nextafter(4, 5), -5e-324])
@pytest.mark.parametrize("shape", [SHAPE, (0, 4, 5), (3, 0, 5), (3, 4, 0)], ids=str)
def test_compiled_splines_outside(shape, at):
    out = np.ones((2, 9))
    compiled.extension.interpolate(np.ones((2, *shape)), np.full((3, 9), at), out)
    assert not out.any()
