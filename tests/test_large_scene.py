"""The large scene is made of whole rooms that do not touch, and its file says the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pc3d.data import Rooms, read_scene


@pytest.fixture(scope="module")
def script(import_script: Callable[[str], ModuleType]) -> ModuleType:
    return import_script("benchmarks/large_scene.py")


def test_rooms_stand_side_by_side_and_come_again(script: ModuleType) -> None:
    rooms = Rooms("test")
    sizes = [len(rooms[index]) for index in range(3)]
    scene = script.side_by_side(rooms, sum(sizes) + 1)
    assert len(scene) == sum(sizes) + sizes[0]
    edge = -script.GAP
    for index, part in enumerate(scene.xyz.split([*sizes, sizes[0]])):
        room = rooms[index % 3]
        assert part[:, 0].min().item() == pytest.approx(edge + script.GAP, abs=1e-4)
        assert torch.allclose(part - part.amin(0), room.xyz - room.xyz.amin(0), atol=1e-4)
        edge = part[:, 0].max().item()
    assert torch.equal(scene.segment[-sizes[0] :], rooms[0].segment)


def test_the_file_holds_places_colours_and_normals(script: ModuleType, tmp_path: Path) -> None:
    room = Rooms("test")[0].select(slice(None, None, 50))
    script.write_ply(tmp_path / "scene.ply", room)
    read = read_scene(tmp_path / "scene.ply")
    assert torch.equal(read.xyz, room.xyz)
    assert torch.allclose(read.normal, room.normal, atol=1e-6)
    assert torch.allclose(read.rgb, room.rgb, atol=1e-6)
