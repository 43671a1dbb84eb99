"""The table of rooms reuses finished scores only where they were made with the same data and options."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import pc3d.data
from pc3d.data import PointCloud
from pc3d.data.dataset import PointDataset

ROOMS = Path(pc3d.data.__file__).parent / "rooms"


@pytest.fixture(scope="module")
def table(import_script: Callable[[str], ModuleType]) -> ModuleType:
    return import_script("benchmarks/rooms_table.py")


@pytest.fixture
def output(tmp_path: Path, table: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a finished score, as a run from before options were kept leaves it."""
    monkeypatch.setattr(table.torch, "set_num_threads", lambda count: None)
    path = tmp_path / "out" / "unet" / "seed0" / "probe-scratch.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"miou": 0.5, "macc": 0.5, "allacc": 0.5, "rooms": 8, "seconds": 1.0}))
    monkeypatch.setattr(table, "jobs", lambda experiment, only, starts: iter(()))  # nothing is trained here
    return tmp_path / "out"


def call(table: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["rooms_table.py", *map(str, arguments)])
    table.main()


def test_results_without_options_are_taken_over(
    table: ModuleType, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(table, monkeypatch, "--output", output, "--steps", 7)
    kept = (output / "options.json").read_text()
    assert json.loads(kept)["steps"] == 7
    assert "50.0" in (output / "table.md").read_text()
    call(table, monkeypatch, "--output", output, "--steps", 7, "--seeds", 5, "--models", "swin3d", "--only", "probe")
    assert (output / "options.json").read_text() == kept


@pytest.mark.parametrize("other", [("--steps", 8), ("--pretraining", 2), ("--validate",)], ids=lambda other: other[0])
def test_other_options_are_refused(
    table: ModuleType, output: Path, monkeypatch: pytest.MonkeyPatch, other: tuple[object, ...]
) -> None:
    call(table, monkeypatch, "--output", output)
    name = str(other[0])[2:]
    with pytest.raises(SystemExit, match=rf"results of other options \({name} .*choose another --output"):
        call(table, monkeypatch, "--output", output, *other)


def test_other_data_are_refused_and_moved_ones_are_not(
    table: ModuleType, output: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    call(table, monkeypatch, "--output", output)
    moved = tmp_path / "rooms"
    shutil.copytree(ROOMS, moved)
    call(table, monkeypatch, "--output", output, "--data", moved)
    rooms = sorted(moved.glob("train_*.npz"))
    shutil.copy(rooms[1], rooms[0])
    with pytest.raises(SystemExit, match=r"results of other options \(data "):
        call(table, monkeypatch, "--output", output, "--data", moved)


class Labels(PointDataset):
    classes = ("wall", "floor", "lamp")
    labels = torch.full((2,), -1)

    def load(self, index: int) -> PointCloud:
        return PointCloud(torch.zeros(4, 3), segment=torch.tensor([[0, 0, 0, -1], [1, -1, -1, -1]][index]))


def test_weights_of_classes_are_one_over_the_root_of_their_share(table: ModuleType) -> None:
    assert table.class_weights(Labels()) == pytest.approx([0.76**-0.5, 0.26**-0.5, 10.0])
