"""PEP 517 backend: setuptools, with the torch of the environment that pc3d is being installed into.

An isolated build hides the environment's packages, so listing torch as a build requirement makes pip download a second
one (gigabytes). The kernels only need torch's headers and libraries, so this backend lets the isolated build see the
environment's site-packages behind its own, and asks pip for a torch only where there is none.
"""

from __future__ import annotations

import sys
import sysconfig
from importlib.util import find_spec

from setuptools.build_meta import *  # noqa: F403
from setuptools.build_meta import (
    get_requires_for_build_editable as _requires_for_editable,
)
from setuptools.build_meta import (
    get_requires_for_build_wheel as _requires_for_wheel,
)

for _name in ("purelib", "platlib"):
    _path = sysconfig.get_path(_name)
    if _path not in sys.path:
        sys.path.append(_path)


def _torch_if_missing() -> list[str]:
    return [] if find_spec("torch") else ["torch>=2.11"]


def get_requires_for_build_wheel(config_settings: dict[str, object] | None = None) -> list[str]:
    return [*_requires_for_wheel(config_settings), *_torch_if_missing()]


def get_requires_for_build_editable(config_settings: dict[str, object] | None = None) -> list[str]:
    return [*_requires_for_editable(config_settings), *_torch_if_missing()]
