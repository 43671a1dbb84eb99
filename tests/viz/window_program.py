"""Drives a window as a user would, and writes down what came of it; run by test_window.py with a display."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pc3d.data import Household
from pc3d.viz import View, ViewCloud, arrange, height_layers, rgb_layer
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
state = WindowState(View(arrange(clouds, azimuth=-55.0), "objects"), "rgb", point_size=9.0, folder=folder)
window = Window(state, -55.0, 22.0, 640, 480)
told: dict[str, Any] = {"shots": [], "own_colors": {}}


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


def shoot(name: str) -> None:
    """What the window shows, as a file."""
    got: list[Any] = []
    window.scene.scene.scene.render_to_image(lambda picture: got.append(np.asarray(picture).copy()))
    end = time.monotonic() + 60
    while not got and time.monotonic() < end:
        window.window.post_redraw()
        window.app.run_one_tick()
    Image.fromarray(got[0]).save(folder / f"{name}.png")
    told["own_colors"][name] = own_colors(got[0])
    told["shots"].append(name)


run(1.0)
window.press("f")
run(0.5)
shoot("rgb")
window.press("m")
shoot("height")
window.press("right")
run(0.3)
shoot("one_cloud")
window.press("left")
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
asked = Viewpoint(camera.target, camera.distance, 100.0, 40.0, camera.field_of_view)
window.look(asked)
found = window.viewpoint()
told["roundtrip"] = float(np.abs(found.eye - asked.eye).max() + np.abs(np.subtract(found.target, asked.target)).max())
run(0.3)
shoot("turned")
window.press("s")
end = time.monotonic() + 60
while not list(folder.glob("view_*.png")) and time.monotonic() < end:
    window.app.run_one_tick()
told["screenshots"] = [path.name for path in folder.glob("view_*.png")]
window.press("escape")
run(0.5)
told["closed"] = not window.is_open
(folder / "told.json").write_text(json.dumps(told))
