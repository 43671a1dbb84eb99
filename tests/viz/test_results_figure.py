"""Figures of results show every value where it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pc3d.viz import ResultsPanel, results_figure

PANEL = ResultsPanel("linear SVM", ["A", "B"], [50.0, None], [(45.0, 55.0), None], [[48.0, 52.0], []])


def test_dots_intervals_and_single_values_are_drawn() -> None:
    figure = results_figure([PANEL, replace(PANEL, title="LEGACY", marked=True)], note="a note")
    first, second = figure.axes
    line, ticks, dot = first.lines
    assert list(line.get_xdata()) == [45.0, 55.0]
    assert list(ticks.get_xdata()) == [48.0, 52.0]
    assert (list(dot.get_xdata()), list(dot.get_ydata())) == ([50.0], [0])
    assert [label.get_text() for label in first.get_yticklabels()] == ["A", "B"]
    assert first.yaxis_inverted()
    assert second.lines[2].get_markerfacecolor() == "white"
    assert figure.texts[0].get_text() == "a note"


def test_panels_must_have_the_same_names() -> None:
    with pytest.raises(ValueError, match="panels is empty"):
        results_figure([])
    with pytest.raises(ValueError, match="the same names"):
        results_figure([PANEL, replace(PANEL, names=["A", "C"])])
