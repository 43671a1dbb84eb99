"""Pictures of labelled scenes, and confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pc3d.viz.colors import class_colors, height_colors
from pc3d.viz.figures import new_figure
from pc3d.viz.projection import project

FloatArray = NDArray[np.floating]
Labels = NDArray[np.integer]
View = Literal["top", "perspective"]

_UNLABELLED = (0.85, 0.85, 0.85)
_RIGHT, _WRONG = (0.62, 0.76, 0.62), (0.84, 0.15, 0.16)
_CAMERA = {"top": (-90.0, 90.0), "perspective": (-60.0, 42.0)}


def label_colors(label: Labels, num_classes: int) -> FloatArray:
    """Colours ``(N, 3)`` of classes ``(N,)``; grey for -1."""
    palette = np.concatenate([class_colors(num_classes), [_UNLABELLED]])
    colors: FloatArray = palette[np.where((label >= 0) & (label < num_classes), label, num_classes)]
    return colors


def render_scene(
    xyz: FloatArray, colors: FloatArray, *, view: View = "perspective", width: int = 900, without_ceiling: float = 0.15
) -> FloatArray:
    """A picture of any number of points, the nearest one in each pixel.

    Args:
        xyz: ``(N, 3)`` points, z up.
        colors: ``(N, 3)`` in [0, 1].
        view: from above, or from the side and above (parallel projection).
        width: of the picture in pixels.
        without_ceiling: leave out this share of the height at the top, so that one sees into a room.

    Returns:
        ``(H, W, 3)`` in [0, 1], white where there is nothing.

    Raises:
        ValueError: an unknown view, or shapes that do not go together.
    """
    if view not in _CAMERA:
        raise ValueError(f"view must be 'top' or 'perspective', got {view!r}")
    if xyz.shape != colors.shape:
        raise ValueError(f"xyz and colors must both be (N, 3), got {xyz.shape} and {colors.shape}")
    if not len(xyz):
        return np.ones((width, width, 3))
    low, high = np.percentile(xyz[:, 2], [0.1, 99.9])
    shown = xyz[:, 2] <= high - without_ceiling * (high - low)
    xyz, colors = xyz[shown], colors[shown]
    azimuth, elevation = _CAMERA[view]
    flat, nearness = project(xyz.astype(np.float64), azimuth=azimuth, elevation=elevation)
    # Stray points far outside, as in scans through windows, do not shrink the rest.
    first, last = np.percentile(flat, [0.5, 99.5], axis=0)
    margin = 0.05 * (last - first)
    corner, opposite = np.maximum(flat.min(0), first - margin), np.minimum(flat.max(0), last + margin)
    framed = ((flat >= corner) & (flat <= opposite)).all(1)
    flat, nearness, colors = flat[framed], nearness[framed], colors[framed]
    extent = np.maximum(opposite - corner, 1e-9)
    scale = (width - 1) / extent[0]
    height = int(np.clip(extent[1] * scale, 1, 3 * width)) + 1
    scale = min(scale, (height - 1) / extent[1])
    cell = np.minimum(((flat - corner) * scale).astype(np.int64), [width - 1, height - 1])
    picture = np.ones((height, width, 3))
    order = np.argsort(nearness, kind="stable")  # the nearest is written last
    # Points are drawn as wide as they are apart, so that surfaces close.
    radius = _radius(len(xyz), width * height)
    offsets = [(dx, dy) for dx in range(-radius, radius + 1) for dy in range(-radius, radius + 1)]
    depth = np.full((height, width), -np.inf)
    for dx, dy in offsets:
        column = np.clip(cell[order, 0] + dx, 0, width - 1)
        row = np.clip(height - 1 - cell[order, 1] + dy, 0, height - 1)
        layer = np.full((height, width), -1)
        layer[row, column] = order
        hit = layer >= 0
        nearer = hit & (np.where(hit, nearness[layer], -np.inf) > depth)
        depth[nearer] = nearness[layer[nearer]]
        picture[nearer] = colors[layer[nearer]]
    return picture


def _radius(num_points: int, num_pixels: int) -> int:
    return int(np.clip(round(0.5 * np.sqrt(num_pixels / max(num_points, 1))), 0, 4))


def scene_figure(
    xyz: FloatArray,
    predicted: Labels,
    classes: Sequence[str],
    *,
    rgb: FloatArray | None = None,
    label: Labels | None = None,
    view: View = "perspective",
    title: str = "",
) -> Any:
    """A scene in its own colours, its prediction and, if labels are known, the truth and the errors.

    Args:
        xyz: ``(N, 3)`` points, z up.
        predicted: ``(N,)`` classes.
        classes: names of the K classes.
        rgb: ``(N, 3)`` colours in [0, 1]; by height when None.
        label: ``(N,)`` true classes, -1 where unknown; None where there are none.
        view: see :func:`render_scene`.
        title: of the figure.

    Returns:
        A ``matplotlib.figure.Figure``; ``savefig`` writes it.
    """
    panels = [("input" if rgb is not None else "input (by height)", height_colors(xyz) if rgb is None else rgb)]
    panels.append(("prediction", label_colors(predicted, len(classes))))
    if label is not None:
        panels.append(("label", label_colors(label, len(classes))))
        right = np.where((predicted == label)[:, None], _RIGHT, _WRONG)
        panels.append(("errors", np.where((label >= 0)[:, None], right, _UNLABELLED)))
    pictures = [render_scene(xyz, colors, view=view) for _, colors in panels]
    aspect = pictures[0].shape[0] / pictures[0].shape[1]
    columns, rows = (2, len(panels) // 2)
    figure = new_figure(2 * 5.2 + 1.9, rows * (5.2 * min(aspect, 1.6) + 0.35) + 0.35)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (name, _), picture in zip(grid.flat, panels, pictures, strict=True):
        axes.imshow(picture, interpolation="antialiased")
        axes.set_title(name, fontsize=11)
        axes.axis("off")
    shown = np.unique(np.concatenate([predicted, predicted if label is None else label]))
    draw_legend(figure, [int(k) for k in shown if 0 <= k < len(classes)], classes)
    if title:
        figure.suptitle(title, fontsize=11, y=0.995)
    figure.subplots_adjust(
        left=0.005, right=0.845, top=0.9 if rows == 1 else 0.945, bottom=0.005, wspace=0.02, hspace=0.08
    )
    return figure


def draw_legend(figure: Any, shown: list[int], classes: Sequence[str]) -> None:
    """Names and colours of some classes, at the right edge of a matplotlib figure."""
    from matplotlib.patches import Patch

    palette = class_colors(len(classes))
    handles = [Patch(color=palette[k], label=classes[k]) for k in shown]
    figure.legend(handles=handles, loc="center right", fontsize=8, frameon=False, ncols=1 if len(shown) <= 40 else 2)


def confusion_figure(confusion: NDArray[np.integer], classes: Sequence[str], *, title: str = "") -> Any:
    """A confusion matrix: each row the points of a true class, coloured by the share that each prediction has of them.

    Args:
        confusion: ``(K, K)`` or ``(K, K + 1)`` counts, row the true class; a last column is of points without a class.
        classes: names of the K classes; those without points and predictions are left out.
        title: of the figure.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ValueError: the matrix does not go with the classes, or is empty.
    """
    counts = np.asarray(confusion)
    if counts.ndim != 2 or counts.shape[0] != len(classes) or counts.shape[1] - counts.shape[0] not in (0, 1):
        raise ValueError(
            f"confusion must be ({len(classes)}, {len(classes)}) or with a column more, got {counts.shape}"
        )
    occurs = (counts.sum(1) > 0) | (counts[:, : len(classes)].sum(0) > 0)
    if not occurs.any():
        raise ValueError("confusion holds no points: nothing to draw")
    kept = np.flatnonzero(occurs)
    outside = counts.shape[1] > len(classes) and counts[:, -1].any()
    shares = counts[np.ix_(kept, [*kept, len(classes)] if outside else kept)].astype(np.float64)
    shares /= np.maximum(counts[kept].sum(1, keepdims=True), 1)
    names = [classes[k] for k in kept.tolist()]
    side = 1.6 + 0.34 * len(kept)
    figure = new_figure(side + 1.2, side)
    axes = figure.add_subplot()
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            ink = "white" if share > 0.6 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=6, color=ink)
    axes.set_xticks(range(shares.shape[1]), [*names, "none"] if outside else names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    bar = figure.colorbar(picture, fraction=0.04, pad=0.02)
    bar.set_label("share of the true class's points", fontsize=8)
    figure.tight_layout()
    return figure
