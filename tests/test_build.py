"""How the C extension is built, and what is reported where it can't be imported."""

import argparse
import runpy
import sysconfig
from pathlib import Path

import pytest

from gpumask.cli import info
from gpumask.kernels import compiled

SETUP = Path(__file__).parents[1] / "setup.py"
NAME = "gpumask.kernels._compiled"


def arguments_of_setup(monkeypatch, config):
    setuptools = pytest.importorskip("setuptools")
    given, asked = {}, sysconfig.get_config_var
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: config.get(name, asked(name)))
    runpy.run_path(str(SETUP))
    (extension,) = given["ext_modules"]
    return extension, given["options"]


def test_one_wheel_with_the_stable_abi(monkeypatch):
    extension, options = arguments_of_setup(monkeypatch, {"Py_GIL_DISABLED": 0})
    assert extension.name == NAME
    assert extension.define_macros == [("Py_LIMITED_API", "0x030B0000")]
    assert extension.py_limited_api
    assert options == {"bdist_wheel": {"py_limited_api": "cp311"}}


def test_free_threaded_python_has_no_stable_abi(monkeypatch):
    """Its Python.h refuses the macro, and setuptools refuses the wheel's tag."""
    extension, options = arguments_of_setup(monkeypatch, {"Py_GIL_DISABLED": 1})
    assert extension.define_macros == []
    assert not extension.py_limited_api
    assert options == {}


def test_every_source_is_built(monkeypatch):
    extension, _ = arguments_of_setup(monkeypatch, {})
    files = {str(file.relative_to(SETUP.parent)) for file in (SETUP.parent / "gpumask/kernels/c").iterdir()}
    assert {*extension.sources, *extension.depends} == files


@pytest.mark.parametrize("reason", ["not built", "another Python", "not loaded"])
def test_info_reports_why_nothing_is_compiled(tmp_path, monkeypatch, capsys, reason):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "_compiled.py.txt").touch()
    problem = ModuleNotFoundError(f"No module named '{NAME}'", name=NAME)
    if reason == "another Python":
        (tmp_path / "kernels" / "_compiled.cpython-313t-x86_64-linux-gnu.so").touch()
    if reason == "not loaded":
        problem = ImportError("_compiled.abi3.so: undefined symbol: Py_X")
    monkeypatch.setattr(compiled, "problem", problem)
    monkeypatch.setattr(info, "__file__", str(tmp_path / "cli" / "info.py"))
    why = {
        "not built": "they weren't built when gpumask was installed. Reinstall it with a C compiler available; if "
        "there was one, pip install -v shows what failed",
        "another Python": "_compiled.cpython-313t-x86_64-linux-gnu.so was built for another Python than this one "
        f"({sysconfig.get_config_var('SOABI')}). Reinstall gpumask",
        "not loaded": "they can't be loaded (_compiled.abi3.so: undefined symbol: Py_X). Reinstall gpumask",
    }[reason]
    assert info.command(argparse.Namespace()) == 0
    slower = "NumPy and SciPy, several times slower than the compiled ones"
    assert f"kernels       {slower}: {why}\n" in capsys.readouterr().out
