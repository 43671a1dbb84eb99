"""The report of a run: one web page with tables, curves, pictures and a map. Works on texts and arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc3d.viz.colors import class_colors
from pc3d.viz.page import data_url, plotly_text, render_page, typed_array, write_page
from pc3d.viz.thumbnails import Picture, sheet

FloatArray = NDArray[np.floating]
_MOST_POINTS = 1000
_FONT = {"family": "system-ui, sans-serif", "size": 12}
_UNLABELLED = "#b0b0b0"


@dataclass(frozen=True)
class Listing:
    """Preformatted lines of text, collapsed under a summary."""

    summary: str
    text: str


@dataclass(frozen=True)
class Grid:
    """A table of texts; all rows as long as the head, an empty head for none."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Curves:
    """Values against steps; name of the line to ``(n,)`` steps and ``(n,)`` values.

    Attributes:
        title: of the plot.
        lines: of more than 1,000 points, every so many are shown.
        axis: what the steps are.
    """

    title: str
    lines: Mapping[str, tuple[FloatArray, FloatArray]]
    axis: str = "optimiser step"


@dataclass(frozen=True)
class Image:
    """A picture in PNG or JPEG, and what it shows."""

    data: bytes
    mime: str
    caption: str


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix.

    Attributes:
        counts: ``(K, K)`` or ``(K, K + 1)``, row the true class; a last column is of what was given no class.
        classes: names of the K classes.
        unit: what is counted.
        title: above it.
    """

    counts: NDArray[np.integer]
    classes: Sequence[str]
    unit: str
    title: str


@dataclass(frozen=True)
class EmbeddingMap:
    """Items as points of a plane, each with a picture that is shown under the mouse.

    Attributes:
        xy: ``(n, 2)``.
        labels: ``(n,)`` classes, -1 for unlabelled.
        classes: names of the classes.
        names: of the items.
        pictures: of the items.
        caption: how the map was made.
    """

    xy: FloatArray
    labels: NDArray[np.integer]
    classes: Sequence[str]
    names: Sequence[str]
    pictures: Sequence[Picture]
    caption: str


Part = Listing | Grid | Curves | Image | Confusion | EmbeddingMap


@dataclass(frozen=True)
class Section:
    """A part of the page with a title.

    Attributes:
        title: the title.
        parts: what it shows; empty where it was left out.
        note: a sentence below the title: why it was left out, or what to know.
    """

    title: str
    parts: Sequence[Part] = ()
    note: str = ""


def write_report(path: Path, title: str, subtitle: str, sections: Sequence[Section]) -> Path:
    """Write a report as one page that needs neither a server nor a network.

    Args:
        path: the ``.html`` file.
        title: of the page.
        subtitle: a line below it.
        sections: top to bottom.

    Returns:
        The path.

    Raises:
        ValueError: a table or a map whose parts do not go together, or a page of more than 10 MB.
    """
    plain = [
        {"title": section.title, "note": section.note, "parts": [_plain(part) for part in section.parts]}
        for section in sections
    ]
    return write_page(render_page("report.html", title=title, subtitle=subtitle, sections=plain), path)


def _plain(part: Part) -> dict[str, Any]:
    if isinstance(part, Listing):
        return {"kind": "listing", "summary": part.summary, "text": part.text}
    if isinstance(part, Grid):
        width = len(part.head) or len(part.rows[0])
        if any(len(row) != width for row in part.rows):
            raise ValueError(f"rows of the table {part.caption!r} must all have {width} texts")
        return {"kind": "grid", "head": part.head, "rows": part.rows, "caption": part.caption}
    if isinstance(part, Image):
        return {"kind": "image", "source": data_url(part.data, part.mime), "caption": part.caption}
    if isinstance(part, Curves):
        return {"kind": "plot", "size": "small", "figure": curves_figure(part)}
    if isinstance(part, Confusion):
        return {"kind": "plot", "size": "square", "figure": confusion_spec(part)}
    return {"kind": "map", "caption": part.caption, "figure": map_figure(part)}


def curves_figure(curves: Curves) -> dict[str, Any]:
    """What plotly.js draws for some curves: those of single steps thin, others with dots."""
    traces = []
    for name, (steps, values) in curves.lines.items():
        every = -(-len(steps) // _MOST_POINTS)
        thin = name.endswith("each step")
        traces.append(
            {
                "type": "scatter",
                "name": plotly_text(name),
                "mode": "lines" if thin else "lines+markers",
                "x": typed_array(np.asarray(steps)[::every]),
                "y": typed_array(np.asarray(values)[::every]),
                "line": {"width": 1 if thin else 2},
                "opacity": 0.55 if thin else 1,
                "marker": {"size": 4},
            }
        )
    layout = {
        "title": {"text": plotly_text(curves.title), "font": {"size": 13}},
        "xaxis": {"title": {"text": plotly_text(curves.axis), "standoff": 4, "font": {"size": 11}}},
        "margin": {"l": 55, "r": 10, "t": 35, "b": 40},
        "legend": {"orientation": "h", "yanchor": "top", "y": -0.2},
        "showlegend": len(traces) > 1,
        "font": _FONT,
    }
    return {"data": traces, "layout": layout}


def confusion_spec(part: Confusion) -> dict[str, Any]:
    """What plotly.js draws for a confusion matrix: shares of the true class as colour, counts under the mouse.

    Raises:
        ValueError: the matrix does not go with the classes.
    """
    counts, num_classes = np.asarray(part.counts), len(part.classes)
    if counts.ndim != 2 or counts.shape[0] != num_classes or counts.shape[1] - num_classes not in (0, 1):
        raise ValueError(f"counts must be ({num_classes}, {num_classes}) or with a column more, got {counts.shape}")
    occurs = np.flatnonzero((counts.sum(1) > 0) | (counts[:, :num_classes].sum(0) > 0))
    columns = [*occurs, num_classes] if counts.shape[1] > num_classes and counts[:, -1].any() else list(occurs)
    shares = counts[np.ix_(occurs, columns)] / np.maximum(counts[occurs].sum(1, keepdims=True), 1)
    names = [plotly_text(name) for name in [*part.classes, "(none)"]]
    trace = {
        "type": "heatmap",
        "z": (100 * shares).round(1).tolist(),
        "customdata": counts[np.ix_(occurs, columns)].tolist(),
        "zmin": 0,
        "zmax": 100,
        "colorscale": [[0, "white"], [1, "#08306b"]],
        "colorbar": {"title": {"text": "% of the true class"}, "thickness": 12},
        "hovertemplate": "true %{y}<br>predicted %{x}<br>%{customdata} "
        + plotly_text(part.unit)
        + ", %{z} %<extra></extra>",
    }
    ticks = {"tickmode": "array", "automargin": True, "showgrid": False}
    layout = {
        "title": {"text": plotly_text(part.title), "font": {"size": 13}},
        "xaxis": {
            **ticks,
            "title": {"text": "predicted", "standoff": 14},
            "tickvals": list(range(len(columns))),
            "ticktext": [names[k] for k in columns],
            "tickangle": -60,
        },
        "yaxis": {
            **ticks,
            "title": {"text": "true", "standoff": 14},
            "tickvals": list(range(len(occurs))),
            "ticktext": [names[k] for k in occurs],
            "autorange": "reversed",
        },
        "margin": {"l": 40, "r": 10, "t": 35, "b": 40},
        "font": _FONT,
    }
    return {"data": [trace], "layout": layout}


def map_figure(part: EmbeddingMap) -> dict[str, Any]:
    """What the page needs for a map: plotly's traces, a class each, and the sheet of pictures.

    Raises:
        ValueError: the parts of the map are not of one length.
    """
    sizes = {len(part.xy), len(part.labels), len(part.names), len(part.pictures)}
    if len(sizes) > 1:
        raise ValueError(f"xy, labels, names and pictures must be of one length, got {sorted(sizes)}")
    labels = np.asarray(part.labels)
    palette = class_colors(len(part.classes))
    traces = []
    for k in sorted(set(labels.tolist())):
        rows = np.flatnonzero(labels == k)
        color = _UNLABELLED if k < 0 else "rgb({},{},{})".format(*(255 * palette[k]).round().astype(int))
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plotly_text("(unlabelled)" if k < 0 else part.classes[k]),
                "x": typed_array(part.xy[rows, 0]),
                "y": typed_array(part.xy[rows, 1]),
                "customdata": rows.tolist(),
                "hoverinfo": "none",
                "marker": {"size": 7, "color": color, "line": {"width": 0.5, "color": "white"}},
            }
        )
    hidden = {"showticklabels": False, "zeroline": False, "ticks": ""}
    layout = {
        "xaxis": hidden,
        "yaxis": {**hidden, "scaleanchor": "x"},
        "margin": {"l": 5, "r": 5, "t": 34, "b": 5},  # above: room for the buttons
        "hovermode": "closest",
        "font": _FONT,
        "showlegend": True,
    }
    pictures, columns = sheet(part.pictures)
    kinds = ["(unlabelled)" if k < 0 else part.classes[k] for k in labels.tolist()]
    items = {"names": list(part.names), "classes": kinds}
    return {
        "data": traces,
        "layout": layout,
        "items": items,
        "sheet": {"source": data_url(pictures, "image/jpeg"), "columns": columns, "size": 64},
    }
