"""Self-supervised learning on 3D point clouds and scenes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pc3d._version import __version__

if TYPE_CHECKING:
    from pc3d import ops
    from pc3d.models.hub import load_encoder, save_encoder
else:
    # PyTorch takes seconds to import. Without it the command line answers --help at once, and Ctrl-C is heard.
    def __getattr__(name: str) -> Any:
        if name == "ops":
            return import_module("pc3d.ops")
        if name in ("load_encoder", "save_encoder"):
            return getattr(import_module("pc3d.models.hub"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = ["__version__", "load_encoder", "ops", "save_encoder"]
