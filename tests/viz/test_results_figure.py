"""Figures of results show every value where it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pc3d.viz import ResultsPanel, results_figure, severity_figure

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


def test_curves_start_at_the_clean_accuracy() -> None:
    curves = {"A": (0.9, {"scale": (0.8, 0.5)}), "B": (0.7, {"scale": (0.7, 0.6)})}
    figure = severity_figure(curves, (1, 5), title="a title")
    first, second = figure.axes[0].lines
    assert list(first.get_xdata()) == [0, 1, 5]
    assert list(first.get_ydata()) == pytest.approx([90, 80, 50])
    assert second.get_label() == "B"
    for wrong in ({}, {**curves, "C": (0.9, {"jitter": (0.8, 0.5)})}):
        with pytest.raises(ValueError, match="the same corruptions"):
            severity_figure(wrong, (1, 5))
