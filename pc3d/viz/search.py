"""Sheets of queries with the shapes found for them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc3d.viz.figures import new_figure

Picture = NDArray[np.uint8]
_CELL = 1.15  # side of a picture in inches


@dataclass(frozen=True)
class SearchRow:
    """One search.

    Attributes:
        queries: texts, or pictures ``(H, W, 3)``.
        answers: what was found, best first: a picture and a caption each.
    """

    queries: Sequence[str | Picture]
    answers: Sequence[tuple[Picture, str]]


def search_figure(rows: Sequence[SearchRow]) -> Any:
    """Searches below one another: the queries on grey, then the answers.

    Args:
        rows: the searches.

    Returns:
        A ``matplotlib.figure.Figure``; ``savefig`` writes it.

    Raises:
        ValueError: no searches.
    """
    if not rows:
        raise ValueError("rows is empty: nothing to draw")
    asked = max(len(row.queries) for row in rows)
    columns = asked + max(len(row.answers) for row in rows)
    figure = new_figure(_CELL * columns, (_CELL + 0.2) * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, row in zip(grid, rows, strict=True):
        for axes in line:
            axes.axis("off")
        for axes, query in zip(line, row.queries, strict=False):
            _query(axes, query)
        for axes, (picture, caption) in zip(line[asked:], row.answers, strict=False):
            axes.imshow(picture)
            axes.set_title("\n".join(textwrap.wrap(caption, 22)[:2]), fontsize=5, pad=2)
    figure.subplots_adjust(left=0.005, right=0.995, top=1 - 0.14 / len(rows), bottom=0.002, wspace=0.04, hspace=0.16)
    return figure


def _query(axes: Any, query: str | Picture) -> None:
    if not isinstance(query, str):
        axes.imshow(query)
    axes.set(xticks=[], yticks=[], facecolor="0.93")
    axes.axis("on")
    for side in axes.spines.values():
        side.set(color="0.6", linewidth=0.8)
    if isinstance(query, str):
        axes.set_aspect("equal", adjustable="box")
        told = "\n".join(textwrap.wrap(f"“{query}”", 16))
        axes.text(0.5, 0.5, told, ha="center", va="center", fontsize=7, transform=axes.transAxes)
