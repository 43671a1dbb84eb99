"""Pictures of point clouds: colours, projections, figures. Takes arrays, knows no model."""

from pc3d.viz.colors import height_colors, shade
from pc3d.viz.figures import ReconstructionRow, draw_points, reconstruction_figure
from pc3d.viz.projection import project

__all__ = [
    "ReconstructionRow",
    "draw_points",
    "height_colors",
    "project",
    "reconstruction_figure",
    "shade",
]
