"""A view as one page, in a real browser."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pc3d.viz import View, ViewCloud, similarity
from pc3d.viz.html import write_html

NASTY = "<img src=x onerror=document.title='broken'>"  # also in the fixture


def picture(page: Any) -> Any:
    """The canvas as ``(H, W, 3)``; drawn and read in one go, since WebGL forgets it afterwards."""
    from PIL import Image

    url = page.evaluate("() => { viewer.draw(); return document.getElementById('canvas').toDataURL('image/png'); }")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")).astype(int)


def on_screen(page: Any, xyz: Any) -> Any:
    """Where points ``(N, 3)`` are on the canvas, and how deep: ``(N, 3)``."""
    size = page.locator("#canvas").bounding_box()
    matrix = np.array(page.evaluate("() => Array.from(viewer.matrix)")).reshape(4, 4).T
    place = np.concatenate([xyz, np.ones((len(xyz), 1))], 1) @ matrix.T
    x, y, z = (place[:, :3] / place[:, 3:]).T
    return np.stack([size["width"] * (1 + x) / 2, size["height"] * (1 - y) / 2, z], 1)


def test_modes_click_and_similarity(page: Any, tmp_path: Path, rooms: View) -> None:
    page.goto(write_html(rooms, tmp_path / "rooms.html", mode="label", max_points=20_000).as_uri())
    page.wait_for_selector("body[data-ready=yes]")
    assert page.locator("#modes [aria-pressed=true]").all_text_contents() == ["label"]
    assert page.title() == NASTY
    assert page.locator("img").count() == 0
    thin = rooms.thin(20_000)
    assert page.locator("#count").text_content() == (
        f"{thin.num_points:,} of {rooms.num_points:,} points, drawn at random"
    )
    assert page.locator("#labels span").all_text_contents() == [cloud.name for cloud in rooms.clouds]
    buttons = page.locator("#modes button")
    assert buttons.all_text_contents() == [*rooms.modes, "similarity to point"]
    assert buttons.last.is_disabled()

    # Each mode makes another picture. Cut open, so that one sees into the rooms.
    page.locator("#top").fill("0.8")
    seen = {}
    for mode in rooms.modes:
        page.get_by_role("button", name=mode, exact=True).click()
        seen[mode] = picture(page)
        assert 0.05 < (seen[mode] < 255).any(2).mean() < 0.9
    for first, second in zip(rooms.modes, rooms.modes[1:], strict=False):
        assert (seen[first] != seen[second]).any(2).mean() > 0.02
    # In the mode of classes, what is drawn has the colours of the legend, but for the edges of points.
    legend = {color for _, color in rooms.legend("label")}
    drawn = seen["label"][(seen["label"] < 255).any(2)]
    assert np.mean([tuple(pixel) in legend for pixel in drawn.tolist()]) > 0.6
    # The first room has no normals, so it is grey there.
    assert (seen["normal"] == 190).all(2).mean() > 0.01

    page.get_by_role("button", name="label", exact=True).click()
    entries = page.locator("#key .entry")
    assert entries.all_text_contents() == [name for name, _ in rooms.legend("label")]
    page.get_by_role("button", name="height", exact=True).click()
    scale = rooms.scale("height")
    assert scale is not None
    ends = [float(text.split()[0]) for text in page.locator("#key .ends span").all_text_contents()]
    assert ends == pytest.approx([scale.minimum, scale.maximum], rel=6e-3, abs=1e-3)

    # A click selects a point that is drawn there, and says what the whole view says of it.
    places = [on_screen(page, cloud.placed) for cloud in thin.clouds]
    top = np.mean(places[1], axis=0)
    page.mouse.click(float(top[0]), float(top[1]))
    number, row = page.evaluate("() => [viewer.chosen.cloud, viewer.chosen.row]")
    found = places[number][row]
    assert np.abs(found[:2] - top[:2]).max() < 8
    cloud, origin = thin.clouds[number], rooms.clouds[number]
    assert cloud.rows is not None
    original = int(cloud.rows[row])
    lines = page.locator("#selection b, #selection div").all_text_contents()
    assert lines[0] == f"{cloud.name}, point {original}"
    shown = [float(part) for part in lines[1].removeprefix("at ").split(",")]
    np.testing.assert_allclose(shown, origin.xyz[original], atol=1.5e-3)
    for layer in (origin.layers["rgb"], origin.layers["label"]):
        assert layer.text(original) in lines
    (height,) = [float(line.split()[1]) for line in lines if line.startswith("height")]
    assert height == pytest.approx(float(origin.xyz[original, 2]), abs=6e-3)

    # Its similarity to all others is the cosine of the features, up to what 8 bits and 32 of 46 components keep.
    assert cloud.embedding is not None
    values = np.array(page.evaluate("n => Array.from(viewer.similarity.values[n])", number))
    np.testing.assert_allclose(values, similarity(cloud.embedding, row), atol=0.02)
    buttons.last.click()
    assert (picture(page) != seen["normal"]).any(2).mean() > 0.02
    assert lines[-1] == "similarity to point: 1.000"

    # A click beside everything selects nothing; a drag turns and selects nothing.
    page.mouse.click(4, 4)
    assert page.locator("#selection").text_content() == "Click a point to select it."
    before = picture(page)
    page.mouse.move(400, 300)
    page.mouse.down()
    page.mouse.move(500, 330, steps=4)
    page.mouse.up()
    assert (picture(page) != before).any(2).mean() > 0.02
    assert page.evaluate("() => viewer.chosen") is None
    page.get_by_role("button", name="Reset view").click()
    np.testing.assert_array_equal(picture(page), before)
    page.locator("#size").fill("0.25")
    assert (picture(page) < 255).any(2).mean() < 0.7 * (before < 255).any(2).mean()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save picture").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


def test_a_page_without_colours_and_with_few_points(page: Any, tmp_path: Path) -> None:
    # Two points on the line of sight through the middle, the second one in front.
    sight = np.array([np.cos(0.5) * np.cos(-0.96), np.cos(0.5) * np.sin(-0.96), np.sin(0.5)])
    xyz = np.stack([-0.5 * sight, 0.5 * sight, [-1, -1, -1], [1, 1, 1]]).astype(np.float32)
    plain, empty = ViewCloud("four", xyz, {}), ViewCloud("none", np.zeros((0, 3), np.float32), {})
    page.goto(write_html(View([empty, plain]), tmp_path / "page.html").as_uri())
    page.wait_for_selector("body[data-ready=yes]")
    assert page.locator("#count").text_content() == "4 points"
    assert page.locator("#labels span").all_text_contents() == ["four"]
    assert page.locator("#modes button").all_text_contents() == ["plain"]
    x, y, _ = on_screen(page, xyz)[0]
    page.mouse.click(x, y)
    assert page.locator("#selection b").text_content() == "four, point 1"
    for row in (2, 3):
        x, y, _ = on_screen(page, xyz)[row]
        page.mouse.click(x, y)
        assert page.locator("#selection div").all_text_contents() == ["at " + ", ".join([str(2 * row - 5)] * 3)]


def test_a_stray_does_not_make_the_rest_small(page: Any, tmp_path: Path) -> None:
    xyz = np.random.default_rng(0).uniform(-1, 1, (5000, 3)).astype(np.float32)
    cloud = ViewCloud("room", np.concatenate([xyz, np.full((1, 3), 3000, np.float32)]), {})
    page.goto(write_html(View([cloud]), tmp_path / "page.html").as_uri())
    page.wait_for_selector("body[data-ready=yes]")
    size = page.locator("#canvas").bounding_box()
    place = on_screen(page, xyz)[:, :2] / [size["width"], size["height"]]
    assert ((place > 0) & (place < 1)).all()
    assert np.ptp(place, axis=0).max() > 0.4
    # Nor coarse: one of the points is drawn where it is, and told to be there.
    row = int(np.linalg.norm(xyz - [0.3, -0.4, 1], axis=1).argmin())
    page.mouse.click(*on_screen(page, xyz)[row, :2])
    chosen = int(page.locator("#selection b").text_content().rpartition(" ")[2])
    told = page.locator("#selection div").first.text_content().removeprefix("at ").split(", ")
    np.testing.assert_allclose([float(number) for number in told], xyz[chosen], atol=1.5e-3)


def test_a_large_view_is_thinned_until_its_page_is_small(
    tmp_path: Path, rooms: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_html(rooms, tmp_path / "whole.html")
    assert 1_000_000 < whole.stat().st_size < 10_000_000
    monkeypatch.setattr("pc3d.viz.html.PAGE_LIMIT", 400_000)
    small = write_html(rooms, tmp_path / "small.html")
    assert 250_000 < small.stat().st_size <= 400_000


def test_wrong_views_are_refused(tmp_path: Path) -> None:
    cloud = ViewCloud("one", np.zeros((1, 3), np.float32), {})
    with pytest.raises(ValueError, match=r"path must end in \.html, got 'page.htm'"):
        write_html(View([cloud]), "page.htm")
    with pytest.raises(ValueError, match="view has no points"):
        write_html(View([ViewCloud("none", np.zeros((0, 3), np.float32), {})]), tmp_path / "x.html")
    with pytest.raises(ValueError, match="coordinates of bad are not all finite"):
        write_html(View([cloud, ViewCloud("bad", np.full((1, 3), np.nan, np.float32), {})]), tmp_path / "x.html")
    with pytest.raises(ValueError, match="mode must be one of none, got 'rgb'"):
        write_html(View([cloud]), tmp_path / "x.html", mode="rgb")
    narrow, wide = (
        ViewCloud(name, np.zeros((1, 3), np.float32), {}, embedding=np.ones((1, channels), np.float32))
        for name, channels in (("a", 2), ("b", 3))
    )
    with pytest.raises(ValueError, match=r"the same channels in all clouds, got \[2, 3\]"):
        write_html(View([narrow, wide]), tmp_path / "x.html")
    assert list(tmp_path.iterdir()) == []
