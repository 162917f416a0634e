"""The commands of setuptools that build the extension; pyproject.toml names them. Not part of the wheel."""

import sysconfig

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


def _has_stable_abi():
    """Whether one wheel serves all versions of Python from this one on.

    Free-threaded Python 3.13 and 3.14 have no stable ABI: Python.h refuses the macro, and setuptools the tag.
    """
    return not sysconfig.get_config_var("Py_GIL_DISABLED")


class Extensions(build_ext):
    """Builds with the stable ABI only where there is one."""

    def finalize_options(self):  # noqa: D102
        super().finalize_options()
        if not _has_stable_abi():
            for extension in self.extensions:
                extension.define_macros, extension.py_limited_api = [], False


class Wheel(bdist_wheel):
    """Tags the wheel with the stable ABI only where there is one."""

    def finalize_options(self):  # noqa: D102
        if not _has_stable_abi():
            self.py_limited_api = False
        super().finalize_options()
