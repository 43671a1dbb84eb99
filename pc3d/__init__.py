"""Self-supervised learning on 3D point clouds and scenes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pc3d._version import __version__

if TYPE_CHECKING:
    from pc3d import compat, data, evaluation, image, losses, methods, models, nn, ops, tasks, viz  # noqa: F401
    from pc3d.models.hub import load_encoder, save_encoder
else:
    # What `pc3d.NAME` means without an import of its own.
    _PARTS = ("compat", "data", "evaluation", "image", "losses", "methods", "models", "nn", "ops", "tasks", "viz")

    # PyTorch takes seconds to import. Without it the command line answers --help at once, and Ctrl-C is heard.
    def __getattr__(name: str) -> Any:
        if name in _PARTS:
            return import_module(f"pc3d.{name}")
        if name in ("load_encoder", "save_encoder"):
            return getattr(import_module("pc3d.models.hub"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_PARTS})


__all__ = ["__version__", "load_encoder", "ops", "save_encoder"]
