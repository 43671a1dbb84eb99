"""Self-supervised learning on 3D point clouds and scenes."""

from pc3d import ops
from pc3d._version import __version__

__all__ = ["__version__", "ops"]
