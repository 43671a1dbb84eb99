"""Pictures of point clouds: colours, projections, figures, views. Works on arrays, without models."""

from pc3d.viz.colors import class_colors, gradient, height_colors, normal_colors, scalar_colors, shade
from pc3d.viz.features import feature_colors, similarity, similarity_to
from pc3d.viz.figures import ReconstructionRow, draw_points, reconstruction_figure
from pc3d.viz.layers import (
    class_layer,
    error_layer,
    feature_layers,
    height_layers,
    normal_layer,
    rgb_layer,
    scalar_layers,
)
from pc3d.viz.projection import project
from pc3d.viz.results import ResultsPanel, results_figure, severity_figure
from pc3d.viz.scenes import confusion_figure, label_colors, render_scene, scene_figure
from pc3d.viz.view import Layer, Scale, View, ViewCloud, arrange, similarity_layers

__all__ = [
    "Layer",
    "ReconstructionRow",
    "ResultsPanel",
    "Scale",
    "View",
    "ViewCloud",
    "arrange",
    "class_colors",
    "class_layer",
    "confusion_figure",
    "draw_points",
    "error_layer",
    "feature_colors",
    "feature_layers",
    "gradient",
    "height_colors",
    "height_layers",
    "label_colors",
    "normal_colors",
    "normal_layer",
    "project",
    "reconstruction_figure",
    "render_scene",
    "results_figure",
    "rgb_layer",
    "scalar_colors",
    "scalar_layers",
    "scene_figure",
    "severity_figure",
    "shade",
    "similarity",
    "similarity_layers",
    "similarity_to",
]
