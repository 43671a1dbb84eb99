"""Pictures of labelled scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pc3d.data import Rooms
from pc3d.viz import class_colors, confusion_figure, label_colors, render_scene, scene_figure
from pc3d.viz.colors import _lab


def test_lab_of_known_colours() -> None:
    """Of sRGB's corners, as published tables have them."""
    found = _lab(
        np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0], [0.02, 0.02, 0.02]], dtype=np.float64)
    )
    known = [
        [53.24, 80.09, 67.20],
        [87.73, -86.18, 83.18],
        [32.30, 79.19, -107.86],
        [100, 0, 0],
        [0, 0, 0],
        [1.40, 0, 0],
    ]
    np.testing.assert_allclose(found, known, atol=0.02)


def test_colours_of_classes_differ_and_do_not_depend_on_their_number() -> None:
    colors = class_colors(40)
    np.testing.assert_array_equal(colors[:13], class_colors(13))
    assert colors.min() >= 0
    assert colors.max() <= 1
    places = _lab(colors)
    distance = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e3 * np.eye(40)
    assert distance.min() > 20
    assert distance[:24, :24].min() > 29
    grey = _lab(np.linspace(0, 1, 20)[:, None].repeat(3, axis=1))
    assert np.linalg.norm(places[:, None] - grey, axis=2).min() > 15  # the page, what has no label, the text
    many = class_colors(5000)
    assert len(many) == 5000
    assert len(np.unique(many[:1000], axis=0)) == 1000
    named = label_colors(np.array([0, -1, 2, 99]), 3)
    np.testing.assert_array_equal(named[[0, 2]], colors[[0, 2]])
    np.testing.assert_array_equal(named[1], named[3])


def test_the_nearest_point_is_the_one_seen() -> None:
    # From above: a high red point over a green one, and a blue one beside them on the right.
    xyz = np.array([[0, 0, 0.5], [0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0.5, 0.5, 10.0]])
    colors = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [0.5, 0.5, 0.5], [1, 1, 0.0]])
    picture = render_scene(xyz, colors, view="top", width=101, without_ceiling=0.2)
    np.testing.assert_array_equal(picture[-1, 0], [1, 0, 0])  # x to the right, y upwards
    np.testing.assert_array_equal(picture[-1, -1], [0, 0, 1])
    np.testing.assert_array_equal(picture[0, 0], [0, 0, 0])
    seen = {tuple(color) for color in picture.reshape(-1, 3)}
    assert (0.0, 1.0, 0.0) not in seen  # hidden
    assert (1.0, 1.0, 0.0) not in seen  # the ceiling
    assert (1.0, 1.0, 1.0) in seen
    assert render_scene(np.zeros((0, 3)), np.zeros((0, 3)), width=8).shape == (8, 8, 3)
    assert render_scene(np.zeros((1, 3)), np.zeros((1, 3)), width=8).min() == 0
    with pytest.raises(ValueError, match="view must be 'top' or 'perspective', got 'side'"):
        render_scene(xyz, colors, view="side")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must both be"):
        render_scene(xyz, colors[:2])


def test_figures_of_a_real_room(tmp_path: Path) -> None:
    cloud = Rooms("test")[0].select(slice(None, None, 5))
    assert cloud.rgb is not None
    assert cloud.segment is not None
    xyz, rgb, label = cloud.xyz.numpy(), cloud.rgb.numpy(), cloud.segment.numpy()
    classes = Rooms("test").classes
    predicted = np.where(label == 0, 1, label)  # every wall taken for floor
    figure = scene_figure(xyz, predicted, classes, rgb=rgb, label=label, title="room")
    assert [axes.get_title() for axes in figure.axes] == ["input", "prediction", "label", "errors"]
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert legend == {classes[k] for k in np.unique(label) if k >= 0}
    figure.savefig(tmp_path / "room.png")
    assert (tmp_path / "room.png").stat().st_size > 50_000
    plain = scene_figure(xyz, predicted, classes, view="top")
    assert [axes.get_title() for axes in plain.axes] == ["input (by height)", "prediction"]


def test_confusion_figure_shows_shares_of_the_classes_that_occur() -> None:
    counts = np.array([[3, 1, 0, 0], [0, 4, 0, 0], [0, 0, 0, 0]])
    figure = confusion_figure(counts, ["wall", "floor", "lamp"], title="two classes")
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25], [0, 1]])
    assert [text.get_text() for text in axes.get_yticklabels()] == ["wall", "floor"]
    assert [text.get_text() for text in axes.texts] == ["75", "25", "100"]
    counts[0, 3] = 4
    with_none = confusion_figure(counts, ["wall", "floor", "lamp"]).axes[0]
    assert [text.get_text() for text in with_none.get_xticklabels()] == ["wall", "floor", "none"]
    with pytest.raises(ValueError, match="holds no points"):
        confusion_figure(np.zeros((2, 2), dtype=int), ["a", "b"])
    with pytest.raises(ValueError, match=r"must be \(3, 3\)"):
        confusion_figure(np.zeros((2, 2), dtype=int), ["a", "b", "c"])
