"""Figures, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc3d._extras import require
from pc3d.viz.colors import height_colors, shade
from pc3d.viz.projection import project

FloatArray = NDArray[np.floating]
_HIDDEN = (0.80, 0.80, 0.83)
_PREDICTED = (0.84, 0.24, 0.16)


@dataclass(frozen=True)
class ReconstructionRow:
    """One object of :func:`reconstruction_figure`; all arrays ``(., 3)`` in one frame, z up.

    Attributes:
        title: name of the object.
        points: the input.
        visible: points of the patches that the encoder saw.
        predicted: points that the decoder put in place of the hidden patches.
        rgb: colours of ``points`` in [0, 1]; by height when None.
    """

    title: str
    points: FloatArray
    visible: FloatArray
    predicted: FloatArray
    rgb: FloatArray | None = None


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure that needs no display and leaves pyplot's state alone; size in inches."""
    figure = require("matplotlib.figure", extra="viz", purpose="pictures").Figure(figsize=(width, height), dpi=150)
    require("matplotlib.backends.backend_agg", extra="viz").FigureCanvasAgg(figure)
    return figure


def draw_points(axes: Any, xyz: FloatArray, colors: FloatArray, *, size: float = 5.0, limit: float = 1.0) -> None:
    """Draw a cloud into matplotlib axes: parallel projection, far points first and paler, equal aspect, no frame.

    Args:
        axes: two-dimensional matplotlib axes.
        xyz: ``(N, 3)`` points, z up.
        colors: ``(N, 3)`` in [0, 1].
        size: area of a point in square typographic points.
        limit: half the side of the shown square, in the units of ``xyz``.
    """
    flat, nearness = project(xyz)
    order = np.argsort(nearness, kind="stable")
    axes.scatter(*flat[order].T, s=size, c=shade(colors, nearness)[order], linewidths=0)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    axes.axis("off")


def reconstruction_figure(rows: Sequence[ReconstructionRow], *, title: str = "") -> Any:
    """Objects in columns: the input, what the encoder saw, and the decoder's reconstruction of the rest.

    Args:
        rows: the objects, left to right.
        title: of the whole figure.

    Returns:
        A ``matplotlib.figure.Figure``; ``savefig`` writes it.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("rows is empty: nothing to draw")
    figure = new_figure(2.15 * len(rows) + 0.5, 7.2 if title else 6.9)
    grid = figure.subplots(3, len(rows), squeeze=False)
    for column, row in enumerate(rows):
        centre = (row.points.max(0) + row.points.min(0)) / 2
        flat, _ = project(row.points - centre)
        limit = 1.04 * float(np.abs(flat).max())
        colors = height_colors(row.points) if row.rgb is None else row.rgb
        everything = np.concatenate([row.visible, row.predicted])
        seen = np.arange(len(everything)) < len(row.visible)
        by_height = height_colors(np.concatenate([row.points, everything]))[len(row.points) :]
        both = np.where(seen[:, None], by_height, np.array(_PREDICTED))
        draw_points(grid[0, column], row.points - centre, colors, limit=limit)
        draw_points(grid[1, column], row.points - centre, np.tile(_HIDDEN, (len(row.points), 1)), size=2.0, limit=limit)
        draw_points(grid[1, column], row.visible - centre, by_height[seen], limit=limit)
        draw_points(grid[2, column], everything - centre, both, size=4.0, limit=limit)
        grid[0, column].set_title(row.title, fontsize=10)
    for axes, label in zip(grid[:, 0], ("input", "what the encoder sees", "reconstruction"), strict=True):
        axes.text(-0.04, 0.5, label, transform=axes.transAxes, rotation=90, ha="right", va="center", fontsize=10)
    if title:
        figure.suptitle(title, fontsize=11, y=0.985)
    figure.text(0.5, 0.012, "red: points that the decoder put in place of hidden patches", ha="center", fontsize=9)
    figure.subplots_adjust(left=0.06, right=0.99, top=0.9 if title else 0.95, bottom=0.04, wspace=0.02, hspace=0.02)
    return figure
