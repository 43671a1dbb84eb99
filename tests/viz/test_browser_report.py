"""The report of a run in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pc3d.data import Household
from pc3d.viz.page import write_page
from pc3d.viz.report import Confusion, Curves, EmbeddingMap, Grid, Image, Listing, Section, write_report
from pc3d.viz.thumbnails import sheet, thumbnail

NASTY = "<img src=x onerror=document.title='broken'>"


def embedding_map() -> EmbeddingMap:
    """Sixteen test objects on a lattice, the first two classes of awkward names."""
    test = Household("test")
    clouds = [test.load(index) for index in range(16)]
    xy = np.array([(index % 4, index // 4) for index in range(16)], dtype=np.float64)
    pictures = [thumbnail(cloud.xyz.numpy(), None if cloud.rgb is None else cloud.rgb.numpy()) for cloud in clouds]
    names = [NASTY, *(cloud.text or "" for cloud in clouds[1:])]
    return EmbeddingMap(xy, np.arange(16) % 3 - 1, [NASTY, "b"], names, pictures, "a lattice")


def test_a_report_draws_and_answers_the_mouse(page: Any, tmp_path: Path) -> None:
    steps = np.arange(5000.0)
    shown = embedding_map()
    sections = [
        Section("Tables", [Grid(("a", "b"), [(NASTY, "2")]), Listing(NASTY, "</pre><script>throw 1</script>")]),
        Section("Curves", [Curves(NASTY, {"train, each step": (steps, np.exp(-steps / 1000))})]),
        Section("Confusion", [Confusion(np.array([[3, 1], [0, 2]]), [NASTY, "b"], "objects", "test")]),
        Section("Map", [shown]),
        Section("Nothing", (), NASTY),
    ]
    page.goto(write_report(tmp_path / "report.html", NASTY, NASTY, sections).as_uri())
    page.wait_for_selector("body[data-ready=yes]")
    assert page.title() == NASTY
    assert page.locator("main img, header img").count() == 0
    assert page.locator("section").count() == 5
    # The curve: five thousand values, every fifth of them drawn, from the top left to the bottom right.
    line = page.locator(".plot.small path.js-line").first.bounding_box()
    assert line["width"] > 200
    assert line["height"] > 100
    assert page.locator(".plot.square .hm image, .plot.square .heatmaplayer image").count() == 1
    # A class's name is shown as it is.
    assert NASTY in page.locator(".plot.square").text_content()
    points = page.locator(".plot.map path.point")
    assert points.count() == 16
    # Traces come in the order of classes, so the first point is item 0, which is unlabelled.
    card, selected = page.locator(".card"), page.locator(".selected")
    points.first.scroll_into_view_if_needed()
    points.first.hover(force=True)
    card.wait_for(state="visible")
    assert card.locator(".words").text_content() == f"{NASTY} ((unlabelled))"
    place = card.locator(".picture").evaluate("e => [getComputedStyle(e).backgroundPosition, e.style.backgroundImage]")
    assert place[0] == "0px 0px"
    assert place[1].startswith('url("data:image/jpeg')
    # Item 4 is the second point of class 0 (items 1, 4, 7, ...); a click keeps it when the mouse leaves.
    seventh = points.nth(7)
    seventh.hover(force=True)
    # Plotly looks for the nearest point at most every 50 ms, and a click is given to the one that it has found last.
    page.locator(".card", has_text=shown.names[4]).wait_for()
    page.mouse.down()
    page.mouse.up()
    selected.locator("span").wait_for()
    assert selected.text_content() == f"Item 4: {shown.names[4]} ({NASTY})"
    place = selected.locator(".picture").evaluate("e => getComputedStyle(e).backgroundPosition")
    assert place == "0px -64px"
    page.mouse.move(5, 5)
    card.wait_for(state="hidden")
    # A class is hidden by its name in the legend.
    page.locator(".plot.map .legendtoggle").first.click(force=True)
    page.wait_for_function("document.querySelectorAll('.plot.map path.point').length === 10")


def test_names_stay_whole_beside_long_values(page: Any, tmp_path: Path) -> None:
    rows = [("method", "OpenShape"), ("train data", "AlignedSet " + "{'class_path': 'pc3d.data.Household'}, " * 20)]
    page.goto(write_report(tmp_path / "report.html", "", "", [Section("", [Grid((), rows)])]).as_uri())
    heights = page.locator("tr:first-child td").evaluate_all(
        """cells => cells.map(cell => {
            const words = document.createRange();
            words.selectNodeContents(cell);
            return words.getBoundingClientRect().height;
        })"""
    )
    assert heights[0] == heights[1] < 30  # a line each


def test_pages_are_small_and_their_parts_go_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 10\.0 MB, more than 10"):
        write_page("x" * 10_000_001, tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
    wrong = (
        (Grid(("a", "b"), [("1",)], "sums"), "rows of the table 'sums' must all have 2 texts"),
        (Confusion(np.zeros((3, 3), dtype=int), ["a", "b"], "points", ""), r"counts must be \(2, 2\) or with a column"),
        (EmbeddingMap(np.zeros((2, 2)), np.zeros(2, dtype=int), ["a"], ["x"], [], ""), "must be of one length"),
        (Image(bytes(8_000_000), "image/png", "large"), "more than 10"),
    )
    for part, message in wrong:
        with pytest.raises(ValueError, match=message):
            write_report(tmp_path / "x.html", "", "", [Section("", [part])])


def test_thumbnails_show_the_nearest_point() -> None:
    # Seen from the side of negative y: red stands before green, on the line of sight.
    towards = np.array([np.cos(np.deg2rad(22)) * np.cos(np.deg2rad(-55)), 0, 0])
    towards[1:] = np.cos(np.deg2rad(22)) * np.sin(np.deg2rad(-55)), np.sin(np.deg2rad(22))
    xyz = np.stack([towards, -towards, [0, 0, 2.0], [0, 0, -2.0]])
    colors = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1.0]])
    picture = thumbnail(xyz, colors, size=32).astype(int)
    assert picture.shape == (32, 32, 3)
    middle = picture[14:18, 14:18].reshape(-1, 3)
    assert [255, 0, 0] in middle.tolist()
    assert not ((picture[..., 1] > picture[..., 0]) & (picture[..., 1] > picture[..., 2])).any()  # no green
    assert (thumbnail(np.zeros((0, 3)), size=8) == 255).all()
    data, columns = sheet([np.zeros((10, 20, 3), np.uint8)] * 5, size=16)
    assert data.startswith(b"\xff\xd8")
    assert columns == 3
    with pytest.raises(ValueError, match="pictures is empty"):
        sheet([])


def test_a_stray_makes_no_thumbnail_small() -> None:
    ball = np.random.default_rng(0).normal(size=(5000, 3))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    picture = thumbnail(np.concatenate([ball, [[900, -900, 900]]]), size=64)
    drawn = (picture < 255).any(2)
    # It fills the square but for a quarter of its extent to the side where the stray is.
    assert np.ptp(np.flatnonzero(drawn.any(0))) > 0.7 * 64
    assert drawn.mean() > 0.35
    # The colour map and the fading of far points keep much of their range for it.
    whole, strayed = (np.ptp(shown[(shown < 255).any(2)].astype(int), axis=0) for shown in (thumbnail(ball), picture))
    assert (strayed > 0.35 * whole).all()
