"""Optional dependencies: imported where they are used, with an error that says how to get them."""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path
from types import ModuleType


class MissingExtraError(ImportError):
    """An optional dependency is not installed; the message says how to get it."""


def require(module: str, *, extra: str, purpose: str | None = None) -> ModuleType:
    """Import an optional dependency or say how to install it.

    Args:
        module: import name, e.g. ``"trimesh"`` or ``"sklearn.svm"``.
        extra: the extra of pc3d that brings it, e.g. ``"io"``.
        purpose: what needs it, for the message; the module's name alone when left out.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: the module, or something that it imports, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        subject = f"{module} is needed" + (f" for {purpose}" if purpose else "")
        cause = "" if getattr(error, "name", None) in (None, module.partition(".")[0]) else f" ({error})"
        raise MissingExtraError(f"{subject}: {install_command(extra)}{cause}", name=module) from error


def install_command(extra: str) -> str:
    """What installs an extra of pc3d into this environment.

    Where pc3d is installed, its name is enough, also of a clone that no index has: pip reads what an extra needs from
    what is installed. Where it is only on the path, its folder is named.

    Args:
        extra: the extra.
    """
    try:
        importlib.metadata.distribution("pc3d")
    except importlib.metadata.PackageNotFoundError:
        return f'pip install "{Path(__file__).parent.parent}[{extra}]"'
    return f'pip install "pc3d[{extra}]"'
