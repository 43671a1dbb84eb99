"""The pictures of pc3d view in the docs, and the script that makes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def script(import_script: Callable[[str], ModuleType]) -> ModuleType:
    return import_script("docs/make_view_pictures.py")


def test_every_picture_is_there_small_and_not_empty(script: ModuleType) -> None:
    named = {*script.PICTURES, *script.WINDOWS}
    assert {path.name for path in script.IMAGES.glob("view_*")} == named
    for name in named:
        path = script.IMAGES / name
        assert path.stat().st_size < 200_000, name
        shown = np.asarray(Image.open(path).convert("RGB"))
        assert 0.02 < (shown < 230).any(2).mean() < 0.9, name


def test_a_picture_is_made_anew_as_it_is(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = np.asarray(Image.open(script.IMAGES / "view_objects.png").convert("RGB")).astype(int)
    monkeypatch.setattr(script, "IMAGES", tmp_path)
    monkeypatch.setattr("sys.argv", ["make_view_pictures.py", "--only", "view_objects.png"])
    script.main()
    after = np.asarray(Image.open(tmp_path / "view_objects.png").convert("RGB")).astype(int)
    assert after.shape == before.shape
    assert (np.abs(after - before).max(2) > 8).mean() < 0.01
