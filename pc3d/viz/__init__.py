"""Pictures of point clouds: colours, projections, figures. Takes arrays, knows no model."""

from pc3d.viz.colors import height_colors, shade
from pc3d.viz.figures import ReconstructionRow, draw_points, reconstruction_figure
from pc3d.viz.projection import project
from pc3d.viz.results import ResultsPanel, results_figure, severity_figure
from pc3d.viz.scenes import class_colors, confusion_figure, label_colors, render_scene, scene_figure

__all__ = [
    "ReconstructionRow",
    "ResultsPanel",
    "class_colors",
    "confusion_figure",
    "draw_points",
    "height_colors",
    "label_colors",
    "project",
    "reconstruction_figure",
    "render_scene",
    "results_figure",
    "scene_figure",
    "severity_figure",
    "shade",
]
