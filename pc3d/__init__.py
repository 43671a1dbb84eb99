"""Self-supervised learning on 3D point clouds and scenes."""

from pc3d import ops
from pc3d._version import __version__
from pc3d.models.hub import load_encoder, save_encoder

__all__ = ["__version__", "load_encoder", "ops", "save_encoder"]
