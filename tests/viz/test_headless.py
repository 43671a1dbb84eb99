"""Cameras and pictures of views, without a display."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pc3d.data import Household, Rooms
from pc3d.viz import Layer, View, ViewCloud, arrange, class_layer, headless, height_layers, rgb_layer
from pc3d.viz.camera import Viewpoint, along, fit, fit_around, load_path, save_path, turntable
from pc3d.viz.headless import _discs, _seen, render
from pc3d.viz.pictures import panels, write_gif, write_picture

RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)


def cloud_of(xyz: list[list[float]], colors: list[tuple[int, int, int]], name: str = "points") -> ViewCloud:
    return ViewCloud(name, np.array(xyz, np.float32), {"rgb": Layer("rgb", np.array(colors, np.uint8))})


def seen_colors(picture: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(color) for color in picture.reshape(-1, 3).tolist()}


def room() -> View:
    cloud = Rooms("test")[0]
    assert cloud.rgb is not None
    assert cloud.segment is not None
    layers = [rgb_layer(cloud.rgb.numpy()), class_layer("label", cloud.segment.numpy(), Rooms("test").classes)]
    return View([ViewCloud("room", cloud.xyz.numpy(), {layer.name: layer for layer in layers})], "a room")


def objects() -> View:
    clouds = [Household("test")[item].xyz.numpy() for item in (0, 7)]
    heights = height_layers(clouds, "m")
    found = [ViewCloud(name, xyz, {"height": height}) for name, xyz, height in zip("ab", clouds, heights, strict=True)]
    return View(arrange(found))


def test_a_camera_projects_as_a_pinhole_does() -> None:
    camera = Viewpoint((1.0, 2.0, 3.0), 5.0, 30.0, 20.0, 60.0)
    np.testing.assert_allclose(camera.axes @ camera.axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(camera.axes) == pytest.approx(1.0)
    assert camera.axes[1, 2] > 0  # up is up
    rng = np.random.default_rng(0)
    xyz = (rng.normal(size=(20, 3)) + np.array([1, 2, 3])).astype(np.float32)
    pixel, depth = camera.project(xyz, 640, 480)
    for point, (column, row), away in zip(xyz, pixel, depth, strict=True):
        ray = point - camera.eye
        forward = -camera.axes[2] @ ray
        focal = 240 / np.tan(np.deg2rad(30))
        assert away == pytest.approx(forward, rel=1e-5)
        assert column == pytest.approx(320 + focal * (camera.axes[0] @ ray) / forward, abs=1e-2)
        assert row == pytest.approx(240 - focal * (camera.axes[1] @ ray) / forward, abs=1e-2)
    assert camera.project(np.array([[1.0, 2, 3]]), 640, 480)[0].tolist() == [[320, 240]]
    assert camera.turned(elevation=100).elevation == 90
    for wrong in ({"distance": 0.0}, {"elevation": 91.0}, {"field_of_view": 180.0}):
        with pytest.raises(ValueError, match="distance must be positive"):
            Viewpoint(**{"target": (0.0, 0.0, 0.0), "distance": 1.0, **wrong})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finite numbers"):
        Viewpoint((0.0, 0.0, float("nan")), 1.0)


@pytest.mark.parametrize(("azimuth", "elevation"), [(-55.0, 22.0), (140.0, 80.0), (0.0, -30.0)])
@pytest.mark.parametrize(("width", "height"), [(640, 480), (300, 500)])
def test_everything_fits_and_fills_the_picture(azimuth: float, elevation: float, width: int, height: int) -> None:
    view = objects()
    camera = fit(view, azimuth=azimuth, elevation=elevation, aspect=width / height)
    pixel = np.concatenate([camera.project(cloud.placed, width, height)[0] for cloud in view.clouds])
    inside = (pixel >= 0) & (pixel < [width, height])
    assert inside.all(1).mean() > 0.995
    low, high = pixel.min(0), pixel.max(0)
    assert ((high - low) / [width, height]).max() > 0.85
    np.testing.assert_allclose((low + high) / 2, [width / 2, height / 2], atol=0.05 * max(width, height))


def test_nothing_leaves_the_picture_while_it_turns() -> None:
    view, size = objects(), np.array([200, 240])
    camera = fit_around(view, azimuth=10.0, elevation=22.0, aspect=200 / 240)
    xyz = np.concatenate([cloud.placed for cloud in view.clouds])
    pixels = np.stack([side.project(xyz, *size.tolist())[0] for side in turntable(camera, 24)])
    inside = ((pixels >= 0) & (pixels < size)).all(2)
    assert inside.mean(1).min() > 0.995
    assert (np.ptp(pixels, axis=(0, 1)) / size).max() > 0.9  # and no smaller than need be
    assert fit_around(View([ViewCloud("", np.zeros((0, 3), np.float32), {})])).distance == 1.0


def test_strays_do_not_make_the_rest_small() -> None:
    xyz = np.random.default_rng(0).uniform(-1, 1, (5000, 3)).astype(np.float32)
    strays = np.concatenate([xyz, np.full((5, 3), 50, np.float32)])
    near, far = (fit(View([ViewCloud("", points, {})])).distance for points in (xyz, strays))
    assert far < 1.3 * near
    assert fit(View([ViewCloud("", np.zeros((0, 3), np.float32), {})])).distance == 1.0
    assert fit(View([ViewCloud("", np.ones((1, 3), np.float32), {})])).target == pytest.approx((1.0, 1.0, 1.0))


def test_a_sparse_cloud_is_no_stray_of_a_dense_one() -> None:
    rng = np.random.default_rng(0)
    sizes, places = (20, 200_000, 20), (-5.0, 0.0, 5.0)
    clouds = [
        ViewCloud("", (rng.uniform(-1, 1, (size, 3)) + np.array([place, 0, 0])).astype(np.float32), {})
        for size, place in zip(sizes, places, strict=True)
    ]
    for camera in (fit(View(clouds)), fit_around(View(clouds)).turned(90)):
        for cloud in clouds:
            pixel = camera.project(cloud.placed, 320, 240)[0]
            assert ((pixel >= 0) & (pixel < [320, 240])).all(1).mean() > 0.99


def test_paths(tmp_path: Path) -> None:
    first = Viewpoint((0.0, 0.0, 0.0), 2.0, 170.0, 0.0)
    second = Viewpoint((1.0, 0.0, 0.0), 4.0, -170.0, 40.0)
    assert [round(v.azimuth) for v in turntable(first, 4)] == [170, 260, 350, 440]
    path = along([first, second], 5)
    assert path[0] == first
    assert path[2] == Viewpoint((0.5, 0.0, 0.0), 3.0, 180.0, 20.0)  # the shorter way round
    assert path[4].distance == 4.0
    assert along([first], 3) == [first] * 3
    save_path([first, second], tmp_path / "path.json")
    assert load_path(tmp_path / "path.json") == [first, second]
    with pytest.raises(ValueError, match="at least one viewpoint and one frame, got 0 and 3"):
        along([], 3)
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        turntable(first, 0)
    for text, message in (
        ("[]", "empty camera path"),
        ('[{"distance": 1}]', "no camera path"),
        ("{", "no camera path"),
    ):
        (tmp_path / "wrong.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_path(tmp_path / "wrong.json")


def test_the_nearest_disc_is_seen_and_discs_have_the_size_asked_for() -> None:
    # From the y axis: a green point behind a red one, a blue one on the right.
    view = View([cloud_of([[0, -1, 0], [0, 1, 0], [1, 0, 0]], [RED, GREEN, BLUE])])
    camera = Viewpoint((0.0, 0.0, 0.0), 100.0, -90.0, 0.0, 2.0)
    picture = render(view, "rgb", camera, 101, 101, point_size=21)
    assert tuple(picture[50, 50]) == RED
    assert GREEN not in seen_colors(picture)
    blue = (picture == BLUE).all(2)
    columns, rows = np.flatnonzero(blue.any(0)), np.flatnonzero(blue.any(1))
    focal = 50.5 / np.tan(np.deg2rad(1))
    assert columns.mean() == pytest.approx(50.5 + focal / 100 - 0.5, abs=1)
    assert rows.mean() == pytest.approx(50, abs=1)
    assert len(columns) == pytest.approx(21, abs=2)
    assert blue.sum() == pytest.approx(np.pi * 21**2 / 4, rel=0.15)
    assert tuple(picture[0, 0]) == (255, 255, 255)
    behind = Viewpoint((0.0, 300.0, 0.0), 100.0, -90.0, 0.0)  # at y = 200, looking away
    assert (render(view, "rgb", behind, 20, 20) == 255).all()


@pytest.mark.parametrize("number", [40, 3000], ids=["few", "in most pixels"])
def test_a_disc_of_perspective_against_plain_loops(number: int) -> None:
    """Every sample of the picture, a strip at a time, against all points: the nearest disc that holds it."""
    rng = np.random.default_rng(1)
    xyz = rng.uniform(-1, 1, (number, 3)).astype(np.float32)
    camera = Viewpoint((0.0, 0.0, 0.0), 4.0, 20.0, 35.0)
    discs = _discs(xyz, camera, 40, 30, 6.0)
    rank = np.concatenate([_seen(discs, first, end) for first, end in ((0, 1), (1, 12), (12, 30))])
    nearest = np.where(rank >= 0, discs.point[rank], -1)
    pixel, away = camera.project(xyz, 40, 30)
    shown = ((pixel >= 0) & (pixel < [40, 30])).all(1)
    radius = np.where(shown, 3.0 * np.median(away[shown]) / away, -1)
    for row in range(30):
        for column in range(40):
            gap = np.hypot(np.floor(pixel[:, 0]) - column, np.floor(pixel[:, 1]) - row)
            holding = np.flatnonzero(gap <= radius)
            expected = holding[away[holding].argmin()] if len(holding) else -1
            assert nearest[row, column] == expected


def test_surfaces_close_and_edges_of_depth_are_darkened() -> None:
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 120), np.linspace(-1, 1, 120)), -1).reshape(-1, 2)
    wall = np.concatenate([grid[:, :1], np.zeros((len(grid), 1)), grid[:, 1:]], 1).astype(np.float32)
    front = (0.2 * wall + [0, -0.5, 0]).astype(np.float32)
    view = View([cloud_of(wall.tolist(), [GREEN] * len(wall)), cloud_of(front.tolist(), [RED] * len(front))])
    picture = render(view, "rgb", Viewpoint((0.0, 0.0, 0.0), 5.0, -90.0, 0.0), 200, 200)
    inside = picture[60:140, 60:140]
    assert not (inside == 255).any()  # no holes
    assert tuple(picture[100, 100]) == RED
    assert tuple(inside[3, 3]) == GREEN
    green = inside[(inside[..., 0] == 0)]
    assert green[:, 1].min() < 170  # behind the edge of the red square


def test_real_clouds_and_level_of_detail(monkeypatch: pytest.MonkeyPatch) -> None:
    view = room()
    camera = fit(view, elevation=60)
    whole = render(view, "rgb", camera, 160, 120)
    thin = render(view, "rgb", camera, 160, 120, max_points=30_000)
    covered = [(picture < 250).any(2).mean() for picture in (whole, thin)]
    assert covered[0] > 0.3
    assert covered[1] == pytest.approx(covered[0], rel=0.05)
    monkeypatch.setattr(headless, "_STRIP", 4 * 160 * 7)  # seven lines at a time
    np.testing.assert_array_equal(whole, render(view, "rgb", camera, 160, 120))
    with pytest.raises(ValueError, match="coloured by 'normal'; the modes are rgb, label"):
        render(view, "normal", camera, 16, 12)
    with pytest.raises(ValueError, match="must be positive, got 16, 12 and 0"):
        render(view, "rgb", camera, 16, 12, point_size=0)


@pytest.mark.slow
def test_five_million_points_in_seconds() -> None:
    import time

    base = room().clouds[0]
    rng = np.random.default_rng(0)
    copies = 5_000_000 // len(base) + 1
    xyz = np.concatenate([base.xyz + rng.normal(0, 0.01, base.xyz.shape).astype(np.float32) for _ in range(copies)])
    view = View([ViewCloud("scan", xyz, {"height": height_layers([xyz], "m")[0]})])
    assert view.num_points >= 5_000_000
    start = time.process_time()
    picture = render(view, "height", fit(view, elevation=45), 640, 480)
    assert time.process_time() - start < 20  # two or three on an idle core
    assert (picture < 250).any(2).mean() > 0.3


def test_panels_have_names_legends_and_bars(tmp_path: Path) -> None:
    view = room()
    camera = fit(view, elevation=50)
    one = panels(view, ["rgb"], camera, 120, 90)
    assert one.shape == (90 + 2 * 24, 120, 3)
    both = panels(view, ["rgb", "label"], camera, 120, 200)
    assert both.shape[1] > 240  # the legend stands beside
    shown = seen_colors(both[:, 240:])
    legend = view.legend("label")
    assert {color for _, color in legend[:9]} <= shown
    bar = panels(objects(), ["height"], fit(objects()), 200, 160)
    scale = objects().clouds[0].layers["height"].colors
    right = bar[:, 200:].reshape(-1, 3)
    for color in (scale[scale[:, 2].argmax()], scale[scale[:, 0].argmax()]):
        assert (np.abs(right.astype(int) - color).max(1) <= 8).any()
    write_picture(both, tmp_path / "deep" / "room.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "deep" / "room.png")), both)
    with pytest.raises(ValueError, match="modes is empty: choose among rgb, label"):
        panels(view, [], camera)
    with pytest.raises(ValueError, match="the modes are rgb, label"):
        panels(view, ["rgb", "depth"], camera)


def test_a_turning_picture(tmp_path: Path) -> None:
    view = objects()
    frames = [panels(view, ["height"], camera, 80, 60) for camera in turntable(fit(view), 4)]
    write_gif(frames, tmp_path / "turn.gif", frames_per_second=10)
    gif = Image.open(tmp_path / "turn.gif")
    assert gif.n_frames == 4  # type: ignore[attr-defined]
    assert gif.info["duration"] == 100
    assert gif.info["loop"] == 0
    gif.seek(2)
    error = np.abs(np.asarray(gif.convert("RGB")).astype(int) - frames[2])
    assert error.mean() < 6
    assert np.abs(frames[0].astype(int) - frames[2]).mean() > 4
    with pytest.raises(ValueError, match="needs frames and a positive rate, got 0"):
        write_gif([], tmp_path / "none.gif")
