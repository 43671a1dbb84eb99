"""Keys and clicks of the window, without a window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pc3d.data import Household
from pc3d.viz import Layer, View, ViewCloud, arrange, height_layers, rgb_layer
from pc3d.viz.camera import Viewpoint, fit, load_path, of_view_matrix
from pc3d.viz.window_state import COARSE, KEYS, Change, WindowState, free_name, wrapped

HERE = Viewpoint((0.0, 0.0, 0.0), 3.0, 10.0, 20.0)


@pytest.fixture
def state(tmp_path: Path) -> WindowState:
    items = [Household("test")[item] for item in (0, 7)]
    heights = height_layers([item.xyz.numpy() for item in items])
    clouds = []
    for item, height in zip(items, heights, strict=True):
        assert item.rgb is not None
        xyz = item.xyz.numpy()
        clouds.append(ViewCloud(str(item.text), xyz, {"rgb": rgb_layer(item.rgb.numpy()), "height": height}, xyz))
    return WindowState(View(arrange(clouds)), "rgb", folder=tmp_path, here=lambda: HERE)


def clip_of(viewpoint: Viewpoint, width: int, height: int) -> np.ndarray:
    """Projection times view matrix, as OpenGL has them, written out."""
    view = np.eye(4)
    view[:3, :3] = viewpoint.axes
    view[:3, 3] = -viewpoint.axes @ viewpoint.eye
    focal = 1 / np.tan(np.deg2rad(viewpoint.field_of_view / 2))
    near, far = 0.01, 100.0
    projection = np.zeros((4, 4))
    projection[0, 0], projection[1, 1] = focal * height / width, focal
    projection[2, 2:] = -(far + near) / (far - near), -2 * far * near / (far - near)
    projection[3, 2] = -1
    return np.asarray(projection @ view)


def test_modes_go_round(state: WindowState) -> None:
    assert state.press("m") == Change.COLORS | Change.TEXT
    assert state.mode == "height"
    state.press("m")
    assert state.mode == "rgb"
    state.press("n")
    assert state.mode == "height"
    assert state.press("q") == Change.NOTHING
    with pytest.raises(ValueError, match="mode must be one of rgb, height, got 'label'"):
        WindowState(state.view, "label")


def test_clouds_go_round_and_all_of_them_come_after_the_last(state: WindowState) -> None:
    assert state.only is None
    seen = []
    for _ in range(4):
        assert state.press("right") == Change.CLOUDS | Change.CAMERA | Change.TEXT
        seen.append(state.only)
    assert seen == [0, 1, None, 0]
    state.press("left")
    assert state.only is None
    state.press("left")
    assert state.only == 1
    assert state.shown.clouds == [state.view.clouds[1]]
    assert state.text().startswith("Stool: 2,048 points")
    one = WindowState(View(state.view.clouds[:1]), "rgb")
    assert one.press("right") == Change.TEXT
    assert one.only is None


def test_a_chosen_point_recolours_all_clouds(state: WindowState) -> None:
    assert state.choose(1, 5) == Change.COLORS | Change.TEXT
    assert state.mode == "similarity"
    colors = state.view.clouds[0].layers["similarity"].colors
    assert "Stool, point 5: rgb: " in state.message
    assert "height: " in state.message
    state.press("m")
    assert state.mode == "rgb"
    state.choose(0, 0)
    assert (state.view.clouds[0].layers["similarity"].colors != colors).any()
    assert state.view.modes == ("rgb", "height", "similarity")
    bare = WindowState(
        View([ViewCloud("bare", np.zeros((3, 3), np.float32), state.view.clouds[0].select(np.arange(3)).layers)]), "rgb"
    )
    assert bare.choose(0, 2) == Change.TEXT
    assert bare.mode == "rgb"
    assert "bare, point 2" in bare.text()


def test_a_typed_text_recolours_all_clouds(state: WindowState) -> None:
    assert state.type("red") == Change.NOTHING  # nobody understands it
    asked = []

    def ask(text: str) -> list[Layer | None]:
        asked.append(text)
        if text == "none":
            return [None, None]
        if text == "bad":
            raise OSError("the weights are not there")
        return [Layer(f"text: {text}", np.full((2048, 3), 9, np.uint8)), None]

    state.ask = ask
    assert state.type("  ") == Change.NOTHING
    assert state.type(" red ") == Change.COLORS | Change.TEXT
    assert asked == ["red"]
    assert (state.mode, state.view.modes) == ("text: red", ("rgb", "height", "text: red"))
    assert (state.view.clouds[0].colors(state.mode) == 9).all()
    assert state.type("bad") == Change.TEXT
    assert (state.mode, state.message) == ("text: red", "the weights are not there")
    assert state.type("none") == Change.TEXT
    assert state.message == "text: nothing here can be compared with 'none'"
    state.press("m")
    assert state.mode == "rgb"


def test_words_are_set_in_lines() -> None:
    text = "short\n\n" + "P: " + "word " * 12 + "\n/a/" + "path" * 20
    lines = wrapped(text).split("\n")
    assert max(map(len, lines)) <= 34
    assert lines[:2] == ["short", ""]
    assert lines[2].startswith("P: word")
    assert lines[3].startswith("    word")
    assert "".join(line.replace(" ", "") for line in lines) == text.replace("\n", "").replace(" ", "")


def test_a_click_finds_the_point_in_front(state: WindowState) -> None:
    width, height = 640, 480
    camera = fit(state.view, aspect=width / height)
    clip = clip_of(camera, width, height)
    for number, row in ((0, 100), (1, 7)):
        cloud = state.view.clouds[number]
        pixel, depth = camera.project(cloud.placed, width, height)
        found = state.pick(*pixel[row].tolist(), width, height, clip)
        assert found is not None
        assert found[0] == number
        away = np.linalg.norm(pixel[found[1]] - pixel[row])
        assert away <= 12
        assert depth[found[1]] <= depth[row] * 1.1
    assert state.pick(1, 1, width, height, clip) is None
    state.press("right")  # the first cloud alone: the second cannot be hit
    pixel, _ = camera.project(state.view.clouds[1].placed, width, height)
    assert state.pick(*pixel[7].tolist(), width, height, clip) is None
    # Two points on one another.
    xyz = np.array([[0, 0, 0], [0, 0, 1], [0.001, 0, 2]], np.float32)
    stack = WindowState(View([ViewCloud("", xyz, {"height": height_layers([xyz])[0]})]), "height")
    above = Viewpoint((0.0, 0.0, 0.0), 10.0, 0.0, 90.0)
    assert stack.pick(320, 240, width, height, clip_of(above, width, height)) == (0, 2)
    below = Viewpoint((0.0, 0.0, 0.0), 10.0, 0.0, -90.0)
    assert stack.pick(320, 240, width, height, clip_of(below, width, height)) == (0, 0)


def test_camera_paths_are_recorded_played_and_written(state: WindowState, tmp_path: Path) -> None:
    state.press("p")
    assert len(state.playing) == 192  # without a path, once around
    assert state.tick() == HERE
    state.press("p")
    assert state.tick() is None
    state.press("w")
    assert "no camera path" in state.message
    state.press("r")
    there = Viewpoint((1.0, 0.0, 0.0), 5.0)
    state.here = lambda: there
    state.press("r")
    assert "camera path of 2 viewpoints" in state.text()
    state.press("p")
    assert (state.playing[0], state.playing[-1]) == (HERE, there)
    assert len(state.playing) == 48
    state.press("w")
    state.press("w")
    assert load_path(tmp_path / "camera_path_001.json") == [HERE, there]
    assert "camera_path_002.json" in state.message
    state.press("x")
    assert (state.path, state.playing) == ([], [])
    assert free_name(tmp_path, "camera_path", ".json").name == "camera_path_003.json"


def test_level_of_detail() -> None:
    rng = np.random.default_rng(0)
    xyz = rng.uniform(0, 1, (1_000_000, 3)).astype(np.float32)
    state = WindowState(View([ViewCloud("scan", xyz, {"height": height_layers([xyz])[0]})]), "height", most=600_000)
    assert state.detail().num_points == 600_000
    # Rows are those of what is shown, also where that is a part of something larger.
    cut = WindowState(View([state.view.clouds[0].select(np.arange(500_000, 1_000_000))]), "height", most=1000)
    drawn = cut.detail().clouds[0]
    assert drawn.rows is not None
    np.testing.assert_array_equal(cut.shown.clouds[0].xyz[drawn.rows], drawn.xyz)
    assert state.has_coarse
    assert not cut.has_coarse
    assert state.detail(moving=True).num_points == COARSE
    assert "1,000,000 points, 600,000 drawn" in state.text()
    assert state.press(".") == Change.CLOUDS | Change.TEXT
    assert state.detail().num_points == 1_000_000
    for _ in range(9):
        state.press(",")
    assert state.detail().num_points == 10_000
    assert state.detail(moving=True).num_points == 10_000
    # A point that is drawn is found, whatever the level of detail, with its row in the whole.
    camera = fit(state.view)
    pixel, _ = camera.project(xyz[123:124], 640, 480)
    found = state.pick(*pixel[0].tolist(), 640, 480, clip_of(camera, 640, 480))
    assert found is not None


def test_the_rest_of_the_keys(state: WindowState) -> None:
    assert state.press("f") == Change.CAMERA | Change.TEXT
    assert state.press("s") == Change.SCREENSHOT | Change.TEXT
    assert state.press("escape") == Change.CLOSE | Change.TEXT
    assert state.press("+") == Change.POINT_SIZE | Change.TEXT
    assert state.point_size == pytest.approx(3.75)
    for _ in range(30):
        state.press("-")
    assert state.point_size == 1.0
    listed = state.text()
    for name, key in KEYS.items():
        assert f": {key.about}" in listed, name
    assert "Full stop: more points" in listed
    assert "M: next colours" in listed
    state.press("h")
    assert "H: keys" in state.text()
    assert KEYS["s"].about not in state.text()


@pytest.mark.parametrize("elevation", [-40.0, 0.0, 75.0, 90.0, -90.0])
def test_a_viewpoint_from_a_matrix(elevation: float) -> None:
    camera = Viewpoint((0.5, -1.0, 2.0), 4.0, 130.0, elevation)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = camera.axes, -camera.axes @ camera.eye
    found = of_view_matrix(matrix, np.array(camera.target))
    np.testing.assert_allclose(found.target, camera.target, atol=1e-9)
    assert (found.distance, found.elevation) == pytest.approx((4.0, elevation))
    assert found.azimuth == pytest.approx(130.0)
    nearer = of_view_matrix(matrix, np.array(camera.target) + camera.axes[2])
    assert nearer.distance == pytest.approx(3.0)
    np.testing.assert_allclose(nearer.eye, camera.eye, atol=1e-9)
