"""Drives a window as a user would, and writes down what came of it; run by test_window.py with a display."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageGrab

from pc3d.data import Household
from pc3d.viz import Layer, View, ViewCloud, arrange, height_layers, rgb_layer
from pc3d.viz.camera import Viewpoint
from pc3d.viz.window import Window
from pc3d.viz.window_state import WindowState


def stop(*error: Any) -> None:
    """At once: Open3D's threads would wait for a window that nobody closes."""
    sys.__excepthook__(*error)
    sys.stderr.flush()
    os._exit(1)


sys.excepthook = stop
folder = Path(sys.argv[1])
clouds = []
items = [Household("test")[number] for number in (0, 7)]
for item, height in zip(items, height_layers([item.xyz.numpy() for item in items]), strict=True):
    assert item.rgb is not None
    layers = {"rgb": rgb_layer(item.rgb.numpy()), "height": height}
    clouds.append(ViewCloud(str(item.text), item.xyz.numpy(), layers, item.xyz.numpy()))


def ask(text: str) -> list[Layer | None]:
    """Understands the name of a cloud alone, which it colours red and the other blue."""
    if text != "first cloud":
        raise ValueError(f"no such words: {text}")
    colors = [np.tile(np.array(color, np.uint8), (len(cloud), 1)) for color, cloud in zip(TWO, clouds, strict=True)]
    return [Layer(f"text: {text}", color) for color in colors]


TWO = ((255, 0, 0), (0, 0, 255))
view = View(arrange(clouds, azimuth=-55.0), "objects")
state = WindowState(view, "rgb", point_size=9.0, folder=folder, ask=ask)
window = Window(state, -55.0, 22.0, 800, 480)
told: dict[str, Any] = {"shots": [], "own_colors": {}, "places": {}, "names": [], "text_width": []}


def run(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        window.app.run_one_tick()


def own_colors(picture: Any) -> float:
    """The share of what is drawn that has one of the colours of the mode."""
    drawn = picture[..., :3].reshape(-1, 3)
    drawn, count = np.unique(drawn[(drawn < 250).any(1)], axis=0, return_counts=True)
    colors = np.concatenate([cloud.colors(state.mode) for cloud in state.shown.clouds]).astype(int)
    away = np.abs(drawn.astype(int)[:, None] - np.unique(colors, axis=0)).max(2).min(1)
    return float(count[away <= 3].sum() / count.sum())


def measured(context: Any) -> None:
    """The layout, and how wide the lines are beside the place that they have."""
    window._on_layout(context)
    wanted = window.text.calc_preferred_size(context, window.gui.Widget.Constraints()).width
    told["text_width"].append((wanted, window.text.frame.width))


def screen() -> Any:
    """What is on the screen where the words are."""
    place, text = window.window.os_frame, window.text.frame
    left, top = place.x + text.x, place.y + text.y
    box = (left, top, left + text.width, top + text.height)
    return np.asarray(ImageGrab.grab(box, xdisplay=os.environ["DISPLAY"]).convert("RGB")).astype(int)


def place(name: str) -> None:
    """From where to where the parts of the window reach."""
    parts = (window.text, window.scene, window.legend)
    frames = [(part.frame.x, part.frame.get_right()) if part.visible else None for part in parts]
    told["places"][name] = frames


def shoot(name: str) -> None:
    """What the window shows, as a file."""
    got: list[Any] = []
    window.scene.scene.scene.render_to_image(lambda picture: got.append(np.asarray(picture).copy()))
    end = time.monotonic() + 60
    while not got and time.monotonic() < end:
        window.window.post_redraw()
        window.app.run_one_tick()
    Image.fromarray(got[0]).save(folder / f"{name}.png")
    place(name)
    told["own_colors"][name] = own_colors(got[0])
    told["shots"].append(name)


window.window.set_on_layout(measured)
run(1.0)
window.press("f")
run(0.5)
shoot("rgb")
window.press("m")
shoot("height")
told["names"].append(len(window.names))
window.press("right")
told["names"].append(len(window.names))
run(0.3)
shoot("one_cloud")
window.press("left")
told["names"].append(len(window.names))
window.press("m")
run(0.3)
camera = window.viewpoint()
frame = window.scene.frame
pixel, _ = camera.project(state.view.clouds[1].placed[:1], frame.width, frame.height)
before = state.message
window.click(*pixel[0].tolist())
told["picked"] = state.message if state.message != before else None
told["mode_after_click"] = state.mode
shoot("similarity")
window._on_text("first cloud")
run(0.5)
told["mode_after_text"] = state.mode
shoot("typed")
window._on_text("nothing")
run(0.3)
told["error_after_text"] = state.message
asked = Viewpoint(camera.target, camera.distance, 100.0, 40.0, camera.field_of_view)
window.look(asked)
found = window.viewpoint()
told["roundtrip"] = float(np.abs(found.eye - asked.eye).max() + np.abs(np.subtract(found.target, asked.target)).max())
run(0.3)
shoot("turned")
before = screen()
window.press("s")
end = time.monotonic() + 60
while not list(folder.glob("view_*.png")) and time.monotonic() < end:
    window.app.run_one_tick()
run(1.5)
told["said"] = state.message
told["said_is_drawn"] = int((np.abs(screen() - before) > 60).any(2).sum())
told["screenshots"] = [path.name for path in folder.glob("view_*.png")]
window.press("escape")
run(0.5)
told["closed"] = not window.is_open
(folder / "told.json").write_text(json.dumps(told))
