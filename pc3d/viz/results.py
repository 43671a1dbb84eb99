"""Figures of results: values with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pc3d.viz.figures import new_figure

_COLOR, _MARKED = "#1f5fa8", "#b3261e"


@dataclass(frozen=True)
class ResultsPanel:
    """One panel of :func:`results_figure`: names down the side, a dot with an interval for each.

    Attributes:
        title: above the panel.
        names: what the dots are of, top to bottom.
        means: positions of the dots, None where there is none.
        intervals: low and high end of each line, None where there is none.
        values: the single values behind each dot, drawn as small ticks.
        marked: drawn hollow and red: not to be compared with the other panels.
    """

    title: str
    names: Sequence[str]
    means: Sequence[float | None]
    intervals: Sequence[tuple[float, float] | None]
    values: Sequence[Sequence[float]]
    marked: bool = False


def results_figure(panels: Sequence[ResultsPanel], *, columns: int = 3, note: str = "") -> Any:
    """Dots with intervals, a panel for each protocol.

    Args:
        panels: in reading order; all with the same names.
        columns: panels in a row.
        note: a line below the panels.

    Returns:
        A ``matplotlib.figure.Figure``; ``savefig`` writes it.

    Raises:
        ValueError: no panels, or names that differ from panel to panel.
    """
    if not panels:
        raise ValueError("panels is empty: nothing to draw")
    names = list(panels[0].names)
    if any(list(panel.names) != names for panel in panels):
        raise ValueError("panels must have the same names, so that rows can be read across")
    width = min(columns, len(panels))
    height = -(-len(panels) // width)
    figure = new_figure(2.0 + 3.6 * width, 0.9 + height * (0.9 + 0.27 * len(names)))
    grid = figure.subplots(height, width, squeeze=False, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw(axes, panel)
    grid[0, 0].set_yticks(range(len(names)), labels=names, fontsize=8)
    grid[0, 0].invert_yaxis()  # shared: the first name is at the top of every panel
    figure.tight_layout(rect=(0, 0.03 if note else 0, 1, 1))
    if note:
        figure.text(0.5, 0.008, note, ha="center", fontsize=7)
    return figure


def _draw(axes: Any, panel: ResultsPanel) -> None:
    color = _MARKED if panel.marked else _COLOR
    for row, (mean, interval, values) in enumerate(zip(panel.means, panel.intervals, panel.values, strict=True)):
        if mean is None:
            continue
        if interval is not None:
            axes.plot(interval, (row, row), color=color, linewidth=1.4, solid_capstyle="butt")
        axes.plot(values, [row] * len(values), "|", color=color, markersize=5, markeredgewidth=0.8)
        axes.plot(mean, row, "o", color=color, markersize=5, markerfacecolor="white" if panel.marked else color)
    axes.set_title(panel.title, fontsize=8, color=_MARKED if panel.marked else "black")
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def severity_figure(
    curves: Mapping[str, tuple[float, Mapping[str, Sequence[float]]]],
    severities: Sequence[int],
    *,
    title: str = "",
) -> Any:
    """Accuracy against severity, a panel for each corruption, a line for each method; severity 0 is the clean split.

    Args:
        curves: name to the clean accuracy and, for each corruption, the accuracy at each severity; fractions.
        severities: levels, the same for all.
        title: of the whole figure.

    Returns:
        A ``matplotlib.figure.Figure``; ``savefig`` writes it.

    Raises:
        ValueError: no curves, or methods with other corruptions than the first.
    """
    kinds = list(next(iter(curves.values()))[1]) if curves else []
    if not kinds or any(set(accuracies) != set(kinds) for _, accuracies in curves.values()):
        raise ValueError("curves must hold at least one method, all with the same corruptions")
    width = min(4, len(kinds))
    height = -(-len(kinds) // width)
    figure = new_figure(0.6 + 2.3 * width, 0.9 + 2.0 * height)
    grid = figure.subplots(height, width, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(kinds) :]:
        axes.set_visible(False)
    for axes, kind in zip(grid.flat, kinds, strict=False):
        for name, (clean, accuracies) in curves.items():
            values = [100 * value for value in (clean, *accuracies[kind])]
            axes.plot([0, *severities], values, "o-", markersize=3, linewidth=1.2, label=name)
        axes.set_title(kind, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.set_ylim(bottom=0)
        axes.grid(linewidth=0.4, alpha=0.6)
    grid[0, 0].legend(fontsize=6)
    figure.supylabel("accuracy in %", fontsize=8)
    figure.supxlabel("severity (0: clean)", fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    return figure
