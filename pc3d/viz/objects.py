"""Pictures of objects whose points have classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc3d.viz.figures import draw_points, new_figure
from pc3d.viz.projection import project
from pc3d.viz.scenes import draw_legend, label_colors

FloatArray = NDArray[np.floating]
Labels = NDArray[np.integer]


@dataclass(frozen=True)
class PartsColumn:
    """One object of :func:`parts_figure`.

    Attributes:
        title: name of the object.
        xyz: ``(N, 3)`` points, z up.
        predicted: ``(N,)`` parts that a model gave.
        label: ``(N,)`` true parts, -1 where unknown.
    """

    title: str
    xyz: FloatArray
    predicted: Labels
    label: Labels


def parts_figure(columns: Sequence[PartsColumn], parts: Sequence[str]) -> Any:
    """Objects side by side: labelled parts above, predicted parts below.

    Args:
        columns: the objects, left to right.
        parts: names of the parts.

    Returns:
        A ``matplotlib.figure.Figure``; ``savefig`` writes it.

    Raises:
        ValueError: no objects.
    """
    if not columns:
        raise ValueError("columns is empty: there is nothing to draw")
    figure = new_figure(2.1 * len(columns) + 1.9, 4.9)
    grid = figure.subplots(2, len(columns), squeeze=False)
    for place, column in enumerate(columns):
        centred = column.xyz - (column.xyz.max(0) + column.xyz.min(0)) / 2
        limit = 1.04 * max(float(np.abs(project(centred)[0]).max()), 1e-9)
        for axes, values in zip(grid[:, place], (column.label, column.predicted), strict=True):
            draw_points(axes, centred, label_colors(values, len(parts)), size=3.0, limit=limit)
        grid[0, place].set_title(column.title, fontsize=9)
    for axes, name in zip(grid[:, 0], ("label", "prediction"), strict=True):
        axes.text(-0.04, 0.5, name, transform=axes.transAxes, rotation=90, ha="right", va="center", fontsize=10)
    shown = np.unique(np.concatenate([values for column in columns for values in (column.label, column.predicted)]))
    draw_legend(figure, [int(k) for k in shown if 0 <= k < len(parts)], parts)
    figure.subplots_adjust(left=0.04, right=0.86, top=0.88, bottom=0.01, wspace=0.02, hspace=0.02)
    return figure
