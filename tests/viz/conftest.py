"""A real browser for the tests of pages, where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pc3d.data import Rooms
from pc3d.viz import View, ViewCloud, arrange, class_layer, height_layers, normal_layer, rgb_layer

NASTY = "<img src=x onerror=document.title='broken'>"
# WebGL in software; nothing of Chromium's own in the background, which would look for the network.
FLAGS = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-unsafe-swiftshader",
    "--use-gl=angle",
    "--use-angle=swiftshader",
]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium, driven by playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """An empty page; the test fails if anything on it reports an error or asks for another host."""
    context = chromium.new_context(viewport={"width": 1100, "height": 760})
    context.set_default_timeout(60_000)  # a page is slow where other programs keep the cores busy
    page, wrong = context.new_page(), []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))

    def watch(request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:", "http://127.0.0.1", "ws://127.0.0.1")):
            wrong.append(f"asked for {request.url}")

    page.on("request", watch)
    yield page
    context.close()
    assert wrong == []


@pytest.fixture(scope="session")
def rooms() -> View:
    """Two test rooms beside each other; their features are made of colour, normal and class."""
    dataset, clouds = Rooms("test"), []
    items = [dataset.load(index) for index in (0, 1)]
    heights = height_layers([item.xyz.numpy() for item in items], "m")
    for number, (item, height) in enumerate(zip(items, heights, strict=True)):
        assert item.rgb is not None
        assert item.normal is not None
        assert item.segment is not None
        label = item.segment.numpy()
        features = np.concatenate([item.rgb, item.normal, np.eye(40)[label]], 1).astype(np.float16)
        layers = [rgb_layer(item.rgb.numpy()), height, class_layer("label", label, [NASTY, *dataset.classes[1:]])]
        if number:
            layers.append(normal_layer(item.normal.numpy()))
        named = {layer.name: layer for layer in layers}
        clouds.append(ViewCloud(f"{NASTY} {number}", item.xyz.numpy(), named, embedding=features))
    return View(arrange(clouds), title=NASTY)
