"""A view served to a real browser, and what the server does without one."""

from __future__ import annotations

import io
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pc3d.viz import Layer, View, ViewCloud, similarity
from pc3d.viz.web import SIMILARITY, WebView
from pc3d.viz.web_panel import nearest_to_ray


@pytest.fixture
def web(rooms: View) -> Iterator[WebView]:
    # Few points: they are drawn in software, again and again.
    server = WebView(rooms.thin(12_000), port=0, max_points=8_000)
    yield server
    server.stop()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not happen in 60 seconds"
        time.sleep(0.05)


def pixels(page: Any) -> Any:
    """The scene as the browser shows it, without the panel at the right."""
    from PIL import Image

    clip = {"x": 0, "y": 160, "width": 740, "height": 500}
    return np.asarray(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")).astype(int)


def settled(page: Any, other_than: Any = None) -> Any:
    """The scene once two pictures in turn are equal, and differ from an earlier one."""
    end, last = time.monotonic() + 60, None
    while time.monotonic() < end:
        now = pixels(page)
        if (
            last is not None
            and (now == last).all()
            and (other_than is None or (now != other_than).any(2).mean() > 0.01)
        ):
            return now
        last = now
        page.wait_for_timeout(200)
    raise AssertionError("the scene did not settle, or is as it was")


def choose(page: Any, label: str, option: str) -> None:
    page.get_by_label(label).click()
    page.get_by_role("option", name=option, exact=True).click()


def test_modes_click_similarity_and_picture(page: Any, web: WebView) -> None:
    rooms = web.view
    page.goto(web.url)
    page.get_by_text("Click a point to select it.").wait_for()
    assert page.locator("img[src=x]").count() == 0
    wait_for(lambda: len(web._server.get_clients()) == 1)
    by_rgb = settled(page)
    assert 0.1 < (by_rgb < 250).any(2).mean() < 0.95
    choose(page, "Colour by", "label")
    by_label = settled(page, by_rgb)
    for name, _ in rooms.legend("label"):  # one of them awkward
        assert page.get_by_text(name, exact=False).first.is_visible()
    colors = np.array([color for _, color in rooms.legend("label")])
    drawn = by_label[(by_label < 250).any(2)]
    nearest = np.abs(drawn[::50, None] - colors[None]).max(2).min(1)
    assert (nearest < 12).mean() > 0.5

    # A click selects the point that is drawn there, as the camera that the browser reports sees it.
    page.mouse.click(560, 450)
    wait_for(lambda: web.chosen is not None)
    assert web.chosen is not None
    number, row = web.chosen
    (client,) = web._server.get_clients().values()
    place = rooms.clouds[number].placed[row]
    # Points are drawn about twenty pixels wide here.
    assert np.abs(on_screen(client.camera, place, 1100, 760) - [560, 450]).max() < 15
    origin = web._origins[number]
    assert origin is not None
    page.get_by_text(f"{rooms.clouds[number].name}, point {origin[row]}", exact=True).wait_for()
    for layer in rooms.clouds[number].layers.values():
        assert page.get_by_text(layer.text(row), exact=True).count() >= 1
    by_label = settled(page)
    choose(page, "Colour by", SIMILARITY)
    settled(page, by_label)
    thin = web._thin.clouds[number]
    embedding, rows = rooms.clouds[number].embedding, thin.rows
    assert embedding is not None
    assert rows is not None
    shown = thin.layers[SIMILARITY].values
    assert shown is not None
    np.testing.assert_allclose(shown, similarity(embedding, row)[rows], atol=1e-6)

    # Cut open, and with all the points there are.
    whole = settled(page)
    page.locator("input.mantine-NumberInput-input").last.fill("0.5")
    page.keyboard.press("Enter")
    settled(page, whole)
    choose(page, "Detail", f"{rooms.num_points:,} points")
    wait_for(lambda: web._thin.num_points == rooms.num_points)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save picture").click()
    from PIL import Image

    saved = np.asarray(Image.open(download.value.path()))
    assert saved.shape[2] == 3
    assert 0.02 < (saved < 250).any(2).mean() < 0.95


def test_a_typed_text_colours_by_its_answer(page: Any, rooms: View) -> None:
    thin = rooms.thin(6_000)

    def ask(text: str) -> list[Layer | None]:
        if text == "nothing":
            raise ValueError("no such words")
        color = {"red": (255, 0, 0), "blue": (0, 0, 255)}[text]
        return [Layer(f"text: {text}", np.tile(np.array(color, np.uint8), (len(c), 1))) for c in thin.clouds]

    server = WebView(thin, port=0, max_points=4_000, ask=ask)
    try:
        page.goto(server.url)
        field, button = page.locator("input.mantine-TextInput-input").last, page.get_by_role("button", name="Compare")
        button.wait_for()
        before = settled(page)
        field.fill("red")
        page.wait_for_timeout(500)  # the server is told what is typed after a moment
        button.click()
        wait_for(lambda: server.mode == "text: red")
        now = settled(page, before)
        inked = now[(now < 250).any(2)]
        assert (np.abs(inked - [255, 0, 0]).max(1) < 12).mean() > 0.9
        assert server._thin.num_points < thin.num_points
        field.fill("nothing")
        page.wait_for_timeout(500)
        button.click()
        page.get_by_text("no such words").wait_for()
        assert server.mode == "text: red"
        field.fill("blue")
        page.wait_for_timeout(500)
        button.click()
        wait_for(lambda: server.mode == "text: blue")
        choose(page, "Colour by", "text: red")  # what was asked before is still there
        wait_for(lambda: server.mode == "text: red")
    finally:
        server.stop()


def on_screen(camera: Any, place: Any, width: int, height: int) -> Any:
    """Where the camera sees a point, in pixels; it looks along its axis with a vertical field of view."""
    forward = camera.look_at - camera.position
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, camera.up_direction)
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    relative = place - camera.position
    focal = height / 2 / np.tan(camera.fov / 2)
    return np.array(
        [
            width / 2 + focal * (relative @ right) / (relative @ forward),
            height / 2 + focal * (relative @ down) / (relative @ forward),
        ]
    )


def test_the_line_of_sight_meets_the_front_point() -> None:
    generator = np.random.default_rng(0)
    points = generator.uniform(-1, 1, (5000, 3))
    origin = np.array([0.3, -4.0, 0.2])
    for target in (17, 400):
        direction = points[target] - origin
        found = nearest_to_ray(points, origin, 3 * direction, radius=0.01)
        assert found is not None
        # Stated plainly: all points near the line, the foremost of them, and no nearer one to the line at its depth.
        unit = direction / np.linalg.norm(direction)
        depth = [float((point - origin) @ unit) for point in points]
        beside = [float(np.linalg.norm(np.cross(point - origin, unit))) for point in points]
        close = [i for i in range(5000) if depth[i] > 0 and beside[i] <= 0.01 + 0.006 * depth[i]]
        assert target in close
        front = min(depth[i] for i in close)
        last = front + 4 * (0.01 + 0.006 * front)
        assert beside[found] == min(beside[i] for i in close if depth[i] <= last)
        assert depth[found] <= last
    assert nearest_to_ray(points, origin, np.array([0.0, -1.0, 0.0])) is None  # away from all


def test_the_server_listens_where_it_was_told_to_and_ends_on_ctrl_c() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = taken.getsockname()[1]
        command = [sys.executable, "-m", "pc3d.cli.main", "view", "household:test:3", "--web", "--port", str(busy)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell that runs the tests in the background makes all that they start ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            assert process.stdout is not None
            lines = []
            while not lines or not lines[-1].startswith("serving on"):
                lines.append(process.stdout.readline())
                assert lines[-1], process.stderr.read() if process.stderr else ""
            port = int(lines[-1].split(":")[2].split()[0])
            assert lines[-2] == f"port {busy} of 127.0.0.1 is busy: using {port}\n"
            assert lines[-1] == f"serving on http://127.0.0.1:{port} (Ctrl-C ends it)\n"
            with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=60) as answer:
                assert b"<html" in answer.read()
            # Another address of this machine is not served.
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.2", port), timeout=5)
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "stopped" in output
    assert errors == ""


def test_wrong_addresses_and_modes_are_refused(web: WebView) -> None:
    view = View([ViewCloud("one", np.zeros((2, 3), np.float32), {})])
    with pytest.raises(ValueError, match="port must be between 0 and 65535, got 70000"):
        WebView(view, port=70000)
    with pytest.raises(ValueError, match=r"cannot listen on '203\.0\.113\.7'"):
        WebView(view, host="203.0.113.7")
    with pytest.raises(ValueError, match="view has no points"):
        WebView(View([ViewCloud("none", np.zeros((0, 3), np.float32), {})]))
    with pytest.raises(
        ValueError, match="mode must be one of rgb, height, label, normal, similarity to point, got 'x'"
    ):
        web.show("x")
    with pytest.raises(ValueError, match="mode must be one of plain, got 'rgb'"):
        WebView(view, mode="rgb")
