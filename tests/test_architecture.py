"""Imports run one way, one module names the array libraries, and every array is made on a named device."""

import ast
import importlib
from pathlib import Path

import pytest

import gpumask

PACKAGE = Path(gpumask.__file__).parent

# Part of the package: the parts that it may import. A new module belongs in this table.
# A call goes down through each floor once: cli, cohort (or maskers), extraction, engine, images and kernels, backend.
LAYERS = {
    "__init__": {"maskers", "image_to_image", "kernels", "signal"},
    "backend": set(),
    "cuda_runtime": {"backend"},
    "devices": {"backend"},
    "dlpack": {"devices", "backend"},
    "choices": set(),
    "dtypes": set(),
    "blocks": {"cuda_runtime", "backend"},
    "process": set(),
    "files": set(),
    "tables": {"kernels"},
    "inputs": set(),
    "text_tables": {"inputs"},
    "references": set(),
    "images": {"images", "dlpack", "cuda_runtime", "backend", "files", "process", "inputs", "text_tables"},
    "kernels": {"kernels", "dlpack", "cuda_runtime", "backend", "choices"},
    "engine": {
        "engine",
        "images",
        "kernels",
        "cuda_runtime",
        "devices",
        "backend",
        "choices",
        "process",
        "text_tables",
    },
    "bids": {"bids", "files", "tables", "inputs", "text_tables"},
    "connectivity": {"choices", "process"},
    "confounds": {
        *("confounds", "bids", "images", "kernels", "dlpack", "devices", "backend"),
        *("choices", "process", "inputs", "text_tables", "references"),
    },
    "time_operator": {"kernels", "backend"},
    "cleaner_options": {"process"},
    "cleaner": {
        *("cleaner_options", "confounds", "kernels", "time_operator"),
        *("blocks", "backend", "choices", "process"),
    },
    "signal": {"cleaner", "dlpack", "backend"},
    "settings": {"cleaner", "dtypes", "choices"},
    "plans": {"settings", "engine", "images", "process"},
    "extraction": {
        *("plans", "settings", "engine", "cleaner", "confounds", "images", "dtypes"),
        *("cuda_runtime", "devices", "backend", "choices", "process"),
    },
    "image_to_image": {
        *("cleaner", "engine", "kernels", "images"),
        *("dlpack", "devices", "backend", "choices", "process"),
    },
    "reports": {"reports", "images", "files"},
    "maskers": {
        *("maskers", "extraction", "plans", "settings", "engine", "reports", "images", "kernels"),
        *("blocks", "dlpack", "dtypes", "devices", "backend", "choices", "process"),
    },
    "cohort": {
        *(
            "cohort",
            "connectivity",
            "extraction",
            "plans",
            "settings",
            "engine",
            "confounds",
            "images",
            "reports",
            "bids",
        ),
        *("files", "tables", "inputs", "text_tables", "choices", "process", "devices", "references"),
    },
    "demo": {"files"},
    "cli": {
        *("cli", "cohort", "confounds", "bids", "reports", "images", "kernels"),
        *("devices", "choices", "process", "files", "inputs", "text_tables", "demo"),
    },
    "__main__": {"cli"},
}
# Libraries that only these parts may import, inside functions too.
KEPT_TO = {
    "cupy": {"backend", "devices", "cuda_runtime"},
    "cupyx": {"cuda_runtime"},
    "nibabel": {"images", "engine", "image_to_image", "maskers", "reports", "demo"},
    "sklearn": {"maskers", "connectivity"},
    "matplotlib": {"reports", "cohort"},
    "pyarrow": {"cohort"},
    "argparse": {"cli"},
    "distributed": {"cohort"},
    "nilearn": {"confounds", "maskers"},  # optional: strategies, masks, `to_nilearn`; the tests compare with it
}
# Libraries that these parts may not import.
KEPT_FROM = {
    "kernels": {"array_api_compat", "pandas", "joblib", "pathlib", "os"},
    "images": {"array_api_compat", "joblib"},
}
CREATION = {"arange", "asarray", "empty", "eye", "full", "linspace", "ones", "zeros"}


def imports(tree):
    """(line, dotted name) of everything that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            names = [f"{source}.{alias.name}" for alias in node.names] if source == "gpumask" else [source]
            yield from ((node.lineno, name) for name in names)


def part_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def violations_of_layers(part, source):
    if part not in LAYERS:
        return [f"{part} has no place in LAYERS"]
    found = []
    for line, name in imports(ast.parse(source)):
        root, _, rest = name.partition(".")
        if root == "":
            found.append(f"{line}: relative import {name}")
        elif root == "gpumask":
            target = rest.partition(".")[0]
            if target != "__version__" and target not in LAYERS[part]:
                found.append(f"{line}: {part} imports {name}")
        elif part not in KEPT_TO.get(root, {part}) or root in KEPT_FROM.get(part, ()):
            found.append(f"{line}: {part} imports {name}")
    return found


def private_names_of_others(source):
    """Names with a leading underscore that a module takes from another one: imported, or as an attribute.

    A module's own are those that it defines or sets anywhere. What an object takes from itself may be its base class's.
    """
    tree = ast.parse(source)
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            itself = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            names = [] if itself or node.attr in own else [node.attr]
        else:
            continue
        found += [(node.lineno, name) for name in names if name.startswith("_") and not name.startswith("__")]
    return sorted(found)


def creations_without_device(source):
    """Calls such as ``xp.zeros(n)``: they make an array on the default device, whatever the arguments are on."""
    return [
        f"{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "xp"
        and node.func.attr in CREATION
        and not any(keyword.arg == "device" for keyword in node.keywords)
    ]


def names_of_libraries(source):
    """Comparisons with an array library's name, and uses of a global ``xp``."""
    tree = ast.parse(source)
    found = [f"{node.lineno}: {node.value!r}" for node in ast.walk(tree) if is_library_name(node)]
    return found + [f"{node.lineno}: global xp" for node in tree.body if "xp" in assigned(node)]


def is_library_name(node):
    return isinstance(node, ast.Constant) and node.value in ("cupy", "numpy", "torch", "array_api_strict")


def assigned(node):
    return (
        {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
        if (isinstance(node, (ast.Assign, ast.AnnAssign)))
        else set()
    )


FILES = sorted(PACKAGE.rglob("*.py"))
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


@every_file
def test_layers(path):
    assert violations_of_layers(part_of(path), path.read_text("utf-8")) == []


def test_layers_are_floors():
    """No part imports, through others, one that imports it."""
    above = {part: below - {part} for part, below in LAYERS.items()}
    while above:
        ground = {part for part, below in above.items() if not below & set(above)}
        assert ground, f"each of these imports another one: {sorted(above)}"
        above = {part: below for part, below in above.items() if part not in ground}


# Of Python's classes, and of scikit-learn, which has no public way to wrap the results of several maskers.
NOT_OURS = {
    "engine/gpu_run.py": {"_replace"},
    "engine/host.py": {"_replace"},
    "process.py": {"_getframe"},
    "cohort/executors.py": {"_exit"},
    "maskers/base.py": {"_get_output_config", "_wrap_data_with_container"},
}


@every_file
def test_nothing_private_crosses_a_file(path):
    allowed = NOT_OURS.get(path.relative_to(PACKAGE).as_posix(), set())
    assert [
        (line, name) for line, name in private_names_of_others(path.read_text("utf-8")) if name not in allowed
    ] == []


@every_file
def test_every_array_is_made_on_a_named_device(path):
    assert creations_without_device(path.read_text("utf-8")) == []


@every_file
def test_kernels_ask_the_backend_for_the_library(path):
    if part_of(path) == "kernels":
        assert names_of_libraries(path.read_text("utf-8")) == []


@pytest.mark.parametrize("name", ["gpumask", "gpumask.kernels"])
def test_public_names_resolve(name):
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        assert getattr(module, public) is not None
    assert set(module.__all__) <= set(dir(module))


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match=r"^module 'gpumask' has no attribute 'NiftiParcelsMasker'$"):
        _ = gpumask.NiftiParcelsMasker


def test_public_kernels_have_docstrings():
    for name in gpumask.kernels.__all__:
        assert getattr(gpumask.kernels, name).__doc__, name


# The checkers themselves


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("kernels", "from gpumask.images.grid import Grid"),
        ("kernels", "from gpumask import maskers"),
        ("kernels", "import gpumask.engine.plan"),
        ("kernels", "def f():\n    import nibabel"),
        ("kernels", "import nibabel.nifti1"),
        ("kernels", "from cupyx.scipy import ndimage"),
        ("kernels", "import array_api_compat"),
        ("kernels", "from . import segments"),
        ("unheard_of", ""),
        ("images", "from gpumask import kernels"),
        ("images", "import cupy as cp"),
        ("backend", "from gpumask.kernels.segments import Segments"),
        ("engine", "from gpumask.maskers.labels import NiftiLabelsMasker"),
        ("maskers", "from gpumask.cohort.writer import write_run"),
        ("cohort", "from gpumask.maskers.labels import NiftiLabelsMasker"),
        ("cohort", "import sklearn.base"),
        ("extraction", "from gpumask.maskers.base import VolumesMasker"),
        ("extraction", "from sklearn.base import BaseEstimator"),
        ("cohort", "from gpumask import cli"),
        ("cleaner", "from sklearn.base import BaseEstimator"),
        ("reports", "from nilearn.image import load_img"),
    ],
)
def test_finds_a_forbidden_import(part, source):
    assert len(violations_of_layers(part, source)) == 1


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("kernels", "import numpy as np\nimport scipy.sparse\nfrom gpumask import backend"),
        ("backend", "def f():\n    import cupy"),
        ("cuda_runtime", "from cupyx.scipy import ndimage"),
        ("cli", "from gpumask import __version__\nfrom gpumask.cohort.writer import write_run"),
        ("images", "import nibabel as nib\nfrom gpumask.images.grid import Grid"),
    ],
)
def test_passes_an_allowed_import(part, source):
    assert violations_of_layers(part, source) == []


@pytest.mark.parametrize(
    "source",
    [
        "from gpumask.kernels.segments import _sums",
        "from gpumask.kernels import segments\nsegments._sums(data)",
        "def f(masker):\n    return masker._regions",
    ],
)
def test_finds_a_private_name(source):
    assert len(private_names_of_others(source)) == 1


@pytest.mark.parametrize(
    "source",
    ["class A:\n    def __init__(self):\n        self._b = 1\n        self._b", "def _f(): ...\n_f()", "a.__dict__"],
)
def test_passes_private_names_of_its_own(source):
    assert private_names_of_others(source) == []


@pytest.mark.parametrize("call", ["xp.zeros(3)", "f(xp.asarray([1.0], dtype=xp.float64))", "xp.arange(n) + 1"])
def test_finds_an_array_without_a_device(call):
    assert len(creations_without_device(call)) == 1
    assert creations_without_device(call.replace("xp.", "np.")) == []


def test_passes_an_array_on_a_device():
    assert creations_without_device("xp.zeros(3, device=backend.device_of(x)); xp.zeros_like(x); xp.take(x, i)") == []


@pytest.mark.parametrize("source", ["xp = numpy", "if xp.__name__ == 'cupy':\n    pass"])
def test_finds_a_named_library(source):
    assert len(names_of_libraries(source)) == 1


def test_passes_a_local_namespace():
    assert names_of_libraries("def f(x):\n    xp = backend.array_namespace(x)") == []
