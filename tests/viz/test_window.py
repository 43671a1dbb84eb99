"""The window for real, on whatever display there is: an X server without a screen will do (Xvfb)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pc3d.cli.main import main
from pc3d.viz.display import NoDisplayError, check_display

PROGRAM = Path(__file__).with_name("window_program.py")


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    """An X server of our own."""
    server = shutil.which("Xvfb")
    if server is None:
        pytest.skip("no Xvfb: apt-get install xvfb")
    reading, writing = os.pipe()
    command = [server, "-displayfd", str(writing), "-screen", "0", "1280x1024x24", "-nolisten", "tcp"]
    process = subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL)
    os.close(writing)
    try:
        with os.fdopen(reading) as pipe:
            number = pipe.readline().strip()
        yield f":{number}"
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_without_a_display_the_error_names_what_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    if not sys.platform.startswith("linux"):
        pytest.skip("other systems have a display of their own")
    with pytest.raises(NoDisplayError, match=r"--output picture\.png"):
        check_display()
    assert main(["view", "household:test:7"]) == 1
    told = capsys.readouterr().err
    for option in ("--output", "--html", "--web"):
        assert option in told


def test_keys_and_clicks_in_a_real_window(display: str, tmp_path: Path) -> None:
    if subprocess.run([sys.executable, "-c", "import open3d"], capture_output=True, check=False).returncode:
        pytest.skip("Open3D does not import here: apt-get install libusb-1.0-0 libgl1 libegl1")
    start = time.monotonic()
    environment = {**os.environ, "DISPLAY": display}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=240
    )
    if "vulkan" in done.stderr.lower() and done.returncode != 0:
        pytest.skip("no Vulkan driver: apt-get install libvulkan1 mesa-vulkan-drivers")
    assert done.returncode == 0, done.stderr[-3000:]
    assert time.monotonic() - start < 240
    told = json.loads((tmp_path / "told.json").read_text())
    shots = {name: np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in told["shots"]}
    first = shots["rgb"]
    drawn = (first < 230).any(2).mean()
    assert 0.02 < drawn < 0.8
    for name in ("height", "similarity", "one_cloud", "turned"):
        changed = (np.abs(shots[name].astype(int) - first) > 20).any(2).mean()
        assert changed > 0.01, name
    # The edges of discs may mix; what is inside has the colours of the mode, after each change as at first.
    assert min(told["own_colors"].values()) > 0.75, told["own_colors"]
    assert told["picked"] is not None
    assert told["mode_after_click"] == "similarity"
    assert told["roundtrip"] < 1e-3
    # Nothing lies over the scene: words at its left, what colours mean at its right.
    for mode, (text, scene, legend) in told["places"].items():
        assert 0 < text[1] <= scene[0] < scene[1], mode
        assert legend is None or scene[1] <= legend[0], mode
    assert told["places"]["similarity"][2] is not None
    assert told["text_width"]
    assert all(wanted <= given for wanted, given in told["text_width"]), told["text_width"]
    # A typed text: the answer's colours, and an error where there is none, which goes when the next key is pressed.
    assert told["mode_after_text"] == "text: first cloud"
    assert told["error_after_text"] == "no such words: nothing"
    assert (np.abs(shots["typed"].astype(int) - shots["similarity"]) > 20).any(2).mean() > 0.01
    assert told["names"] == [2, 0, 2]
    assert told["screenshots"] == ["view_001.png"]
    # What was written is on the screen, not only in the file.
    assert told["said"].replace("\n", "").replace(" ", "").endswith("view_001.png")
    assert told["said_is_drawn"] > 0
    assert told["closed"]
