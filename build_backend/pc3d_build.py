"""PEP 517 backend: setuptools, with the torch of the environment that pc3d is being installed into.

An isolated build hides the environment's packages, so listing torch as a build requirement makes pip download a second
one (gigabytes). The kernels only need torch's headers and libraries, so this backend lets the isolated build see the
environment's site-packages behind its own, and asks pip for a torch only where there is none.
"""

from __future__ import annotations

import site
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from setuptools.build_meta import *  # noqa: F403
from setuptools.build_meta import (
    get_requires_for_build_editable as _requires_for_editable,
)
from setuptools.build_meta import (
    get_requires_for_build_wheel as _requires_for_wheel,
)


def _read_venv_configuration() -> str:
    path = Path(sys.prefix) / "pyvenv.cfg"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


_places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
if "include-system-site-packages = true" in _read_venv_configuration():
    _base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    _places += [sysconfig.get_path(name, vars=_base) for name in ("purelib", "platlib")]
if sys.prefix == sys.base_prefix:
    _places.append(site.getusersitepackages())
sys.path += [place for place in dict.fromkeys(_places) if place not in sys.path]


def _torch_if_missing() -> list[str]:
    return [] if find_spec("torch") else ["torch>=2.11"]


def get_requires_for_build_wheel(config_settings: dict[str, object] | None = None) -> list[str]:
    return [*_requires_for_wheel(config_settings), *_torch_if_missing()]


def get_requires_for_build_editable(config_settings: dict[str, object] | None = None) -> list[str]:
    return [*_requires_for_editable(config_settings), *_torch_if_missing()]
