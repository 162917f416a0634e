"""How the C extension is built, and what is reported where it can't be imported."""

import argparse
import sysconfig
import tomllib
import warnings
from pathlib import Path

import pytest

from gpumask.cli import info
from gpumask.kernels import compiled

ROOT = Path(__file__).parents[1]
NAME = "gpumask.kernels._compiled"


def commands(monkeypatch, *, has_stable_abi):
    """Both commands of a distribution that is configured by pyproject.toml, finalized."""
    pytest.importorskip("setuptools", "77")
    from setuptools.config.pyprojecttoml import apply_configuration
    from setuptools.dist import Distribution

    monkeypatch.chdir(ROOT)
    asked = sysconfig.get_config_var
    monkeypatch.setattr(
        sysconfig, "get_config_var", lambda n: not has_stable_abi if n == "Py_GIL_DISABLED" else asked(n)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distribution = apply_configuration(Distribution({"name": "gpumask"}), ROOT / "pyproject.toml")
        made = [distribution.get_command_obj(name) for name in ("build_ext", "bdist_wheel")]
        for command in made:
            command.ensure_finalized()
    return made


@pytest.mark.parametrize("has_stable_abi", [True, False])
def test_the_stable_abi_is_used_where_there_is_one(monkeypatch, has_stable_abi):
    build, wheel = commands(monkeypatch, has_stable_abi=has_stable_abi)
    (extension,) = build.extensions
    assert extension.name == NAME
    macros = {tuple(macro) for macro in extension.define_macros}
    assert (("Py_LIMITED_API", "0x030B0000") in macros) is has_stable_abi
    assert extension.py_limited_api is has_stable_abi
    assert wheel.py_limited_api == ("cp311" if has_stable_abi else False)


def test_every_source_is_built():
    given = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"][0]
    files = {str(file.relative_to(ROOT)) for file in (ROOT / "gpumask/kernels/c").iterdir() if file.is_file()}
    assert {*given["sources"], *given["depends"]} == files


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
    assert info.command(argparse.Namespace(denoise=False)) == 0
    slower = "NumPy and SciPy, several times slower than the compiled ones"
    assert f"kernels       {slower}: {why}\n" in capsys.readouterr().out
