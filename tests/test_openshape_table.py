"""The table of OpenShape: each row is trained on what its title says, and its numbers are those that were kept."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from pc3d.data import Household, Selection, targets_of
from pc3d.image import precompute


@pytest.fixture(scope="module")
def table(import_script: Callable[[str], ModuleType]) -> ModuleType:
    return import_script("benchmarks/openshape_table.py")


class Numbered:
    """Rows that say which text or picture of an object they are of: 1, 2, ..."""

    def __init__(self, name: str, width: int) -> None:
        self.name, self.width = name, width

    def __call__(self, content: list[str]) -> dict[str, Tensor]:
        return {self.name: torch.arange(1.0, len(content) + 1)[:, None].expand(-1, self.width)}

    def identity(self) -> dict[str, Any]:
        return {"kind": self.name, "width": self.width}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, table: ModuleType) -> Path:
    """A folder with features of some training objects: their texts, a preview and four drawings."""
    root = tmp_path_factory.mktemp("table")
    household = Household("train", pictures=True)
    clouds = [household.load(i) for i in range(60)]
    for folder, name, width in (("texts", "prompt_avg", 384), ("images", "image", 1280), ("bridge", "image", 384)):
        items = ((str(c.meta["id"]), table.texts_of(c) if folder == "texts" else ["x"] * 5) for c in clouds)
        precompute(items, Numbered(name, width), root / "features" / "train" / folder)
    return root


WANTED: dict[str, tuple[float, float, int, int, int]] = {
    # weights of names and pictures, most texts and pictures at a time, how many pictures are drawn from
    "both": (1, 1, 1, 1, 1),
    "text": (1, 0, 1, 1, 1),
    "image": (0, 1, 1, 1, 1),
    "mining": (1, 1, 1, 1, 1),
    "pool": (1, 1, 1, 1, 5),
    "multi": (1, 1, 2, 3, 5),
    "multi_mining": (1, 1, 2, 3, 5),
    "bridge_image": (0, 1, 1, 1, 1),
}


@pytest.mark.parametrize("name", WANTED)
def test_rows_are_trained_on_what_they_say(name: str, table: ModuleType, output: Path) -> None:
    given = argparse.Namespace(output=output, epochs=7)
    train = Selection(Household("train"), range(60))
    built = table.Experiment(name, 1, given, train).build()
    text, image, texts, pictures, drawn = WANTED[name]
    assert (built.model.weights["text"], built.model.weights["image"]) == (text, image)
    mining = built.model.mining
    assert (None if mining is None else (mining.start_epoch, mining.group_size)) == (
        (3, 5) if "mining" in name else None
    )
    batch = next(iter(built.data.train_dataloader()))
    found = targets_of(batch)
    assert len(found) == 60
    assert max(len(one.text_features) for one in found) == texts
    assert {len(one.image_features) for one in found} == {pictures}
    assert {int(row[0]) for one in found for row in one.image_features} == set(range(1, drawn + 1))
    assert max(int(row[0]) for one in found for row in one.text_features) == (1 if drawn == 1 else 2)
    assert built.model.encoder.shared == (name == "bridge_image")


def test_every_row_is_tested(table: ModuleType) -> None:
    assert set(table.VARIANTS) == set(WANTED)


def test_objects_of_one_name_answer_it_together(table: ModuleType, tmp_path: Path) -> None:
    gallery = table.Gallery(Household("test", pictures=True), tmp_path)
    assert gallery.relevant["text"].shape == (len(gallery.names), 124)
    assert gallery.relevant["text"].sum() == 124
    chance = gallery.chance()
    assert chance["text@1"] == pytest.approx(1 / len(gallery.names))  # each object has one name
    assert chance["picture@10"] == pytest.approx(10 / 124)
    assert chance["top@5"] == pytest.approx(5 / 21)


def test_the_table_is_what_was_kept(table: ModuleType, tmp_path: Path) -> None:
    table.write_json(tmp_path / "options.json", {"epochs": 7, "validate": False})
    for seed, value in ((0, 0.25), (1, 0.75)):
        path = tmp_path / "image" / f"seed{seed}" / "scores.json"
        table.write_json(path, {"picture@1": value, "seconds": 10.0 * (seed + 1)})
    table.write_table(tmp_path)
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert (
        lines[-1].split(" | ")[5] == "50.0 ± 35.4"
    )  # the sample deviation of two is their distance over the root of 2
    assert lines[-1] == f"| {table.VARIANTS['image'].title} | 0, 1 |  |  |  | 50.0 ± 35.4 |  |  |  |  | 15 |"
    assert (tmp_path / "results.csv").read_text().splitlines()[1] == "image,0,,,,0.25,,,,,10.0"
