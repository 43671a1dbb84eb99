"""Optional dependencies: imported where they are used, with an error that says how to get them."""

from __future__ import annotations

import importlib
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
        raise MissingExtraError(f'{subject}: pip install "pc3d[{extra}]"{cause}', name=module) from error
