"""Features computed while training: as stored ones, once an item, from a data set that a configuration names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from test_scans import SHOTS, Clouds, write_scannet
from test_targets import Colors, scene
from torch import Tensor

from pc3d import load_encoder
from pc3d.cli.main import main
from pc3d.cli.pretrain import resolve
from pc3d.data import AlignedSet, Household, LiftedSet, ScanNet, Selection
from pc3d.image import (
    FeatureStore,
    LiveFeatures,
    LivePictures,
    LiveScans,
    LiveTexts,
    PictureFeatures,
    Scan,
    ScanFeatures,
    TextFeatures,
    TextTower,
    precompute,
)
from pc3d.models import AlignedShapeEncoder


class Letters(TextTower):
    """Says how long a text is, and how often it was asked."""

    def __init__(self) -> None:
        super().__init__("fake:letters", 2)
        self.asked = 0

    def _encode(self, texts: list[str]) -> Tensor:
        self.asked += len(texts)
        return torch.tensor([[float(len(text)), 1.0] for text in texts])

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}


class Means:
    """The mean colour of a picture, by the name of a tower."""

    name, width = "fake:means", 3

    def encode(self, pictures: Any, batch_size: int) -> Tensor:
        return torch.tensor(np.stack([picture.mean((0, 1)) for picture in pictures]), dtype=torch.float32)

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}


@pytest.fixture
def towers(monkeypatch: pytest.MonkeyPatch) -> Letters:
    letters = Letters()
    monkeypatch.setattr("pc3d.image.live.load_text_tower", lambda name, weights: letters)
    monkeypatch.setattr("pc3d.image.live.load_image_tower", lambda name, weights: Means())
    return letters


def test_live_features_of_a_set_are_the_stored_ones(towers: Letters, tmp_path: Path) -> None:
    shapes = Selection(Household("train", num_points=32, pictures=True), range(4))
    clouds = [shapes.load(row) for row in range(4)]
    named = [(str(cloud.meta["id"]), cloud.text) for cloud in clouds if cloud.text]
    seen = [(str(cloud.meta["id"]), cloud.image.numpy()) for cloud in clouds if cloud.image is not None]
    precompute(named, TextFeatures(Letters(), ["{}"]), tmp_path / "texts", dtype=torch.float32)
    precompute(seen, PictureFeatures(Means()), tmp_path / "images", dtype=torch.float32)  # type: ignore[arg-type]
    live = AlignedSet(shapes, LiveTexts(shapes, "fake:letters", ["{}"]), LivePictures(shapes, "fake:means"))
    stored = AlignedSet(shapes, FeatureStore(tmp_path / "texts"), FeatureStore(tmp_path / "images"))
    for row in range(4):
        one, other = live[row].meta["targets"], stored[row].meta["targets"]
        torch.testing.assert_close(one.text_features, other.text_features)
        torch.testing.assert_close(one.image_features, other.image_features)
        assert (one.texts, one.text_tower, one.image_tower) == (other.texts, "fake:letters", "fake:means")


def test_what_is_kept_is_computed_once(towers: Letters) -> None:
    contents = {"a": "x", "b": "xy", "c": "xyz"}
    live = LiveFeatures(contents, TextFeatures(towers, ["{}"]), keep=2)
    for _ in range(3):
        assert [live[name]["original"][0, 0].item() for name in "abc"] == [1, 2, 3]
    per_item = 2  # the text alone, and in its template
    assert towers.asked == per_item * (1 + 1 + 3)
    with pytest.raises(KeyError, match="'d' is none of the 3 items"):
        live["d"]
    with pytest.raises(ValueError, match="keep must not be negative, got -1"):
        LiveFeatures(contents, TextFeatures(towers), keep=-1)


def test_a_set_without_pictures_is_refused(towers: Letters) -> None:
    with pytest.raises(ValueError, match="none of its items has a picture: read it with pictures=True"):
        LivePictures(Selection(Household("train"), range(2)), "fake:means")
    with pytest.raises(ValueError, match="frames: say where the pictures of the scans are, Household brings none"):
        LiveScans(Household("train"), "fake:means")


def test_scans_are_lifted_as_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pc3d.image.live.load_image_tower", lambda name, weights: Colors())

    class Own(Clouds):
        def frames(self, index: int) -> Any:
            return SHOTS

    live = LiftedSet(Own([scene()]), LiveScans(Own([scene()]), "fake:colors", frame_step=2))[0]
    store = precompute([("a", Scan(scene(), SHOTS, 2))], ScanFeatures(Colors()), tmp_path / "a", dtype=torch.float32)
    wanted = LiftedSet(Own([scene()]), store)[0]
    assert live.feature is not None
    assert wanted.feature is not None
    assert torch.equal(live.feature, wanted.feature)
    assert live.meta["teacher"] == "colors"

    write_scannet(tmp_path / "scannet", tmp_path / "frames")
    scans = ScanNet(tmp_path / "scannet", "train")
    outside = LiftedSet(scans, LiveScans(scans, "fake:colors", tmp_path / "frames", 2))[0].feature
    assert outside is not None
    assert (outside != 0).any(1).sum() == (wanted.feature != 0).any(1).sum()


def test_a_configuration_trains_on_live_features(
    towers: Letters, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    household = {
        "class_path": "pc3d.data.Household",
        "init_args": {"split": "test", "num_points": 64, "pictures": True},
    }
    texts = {"dataset": household, "tower": "fake:letters", "templates": ["{}", "a {}"]}
    images = {"dataset": household, "tower": "fake:means"}
    sizes = {"embed_dim": 8, "width": 64, "depth": 1, "num_heads": 1, "mlp_dim": 64, "patch_dim": 16, "num_groups": 8}
    encoder = {"class_path": "pc3d.models.OpenShapePointBERT", "init_args": {**sizes, "group_size": 8}}
    spaces = {"text_space": "fake:letters", "image_space": "fake:means"}
    config = {
        "model": {
            "class_path": "pc3d.methods.OpenShape",
            "init_args": {"encoder": encoder, "text_dim": 2, "image_dim": 3, **spaces},
        },
        "data": {
            "train": {
                "class_path": "pc3d.data.AlignedSet",
                "init_args": {
                    "dataset": household,
                    "texts": {"class_path": "pc3d.image.LiveTexts", "init_args": texts},
                    "images": {"class_path": "pc3d.image.LivePictures", "init_args": images},
                },
            },
            "train_transforms": [
                {"class_path": "pc3d.data.ChooseTargets"},
                {"class_path": "pc3d.data.RandomSubsample", "init_args": {"num_points": 64}},
            ],
            "batch_size": 20,
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "limit_train_batches": 2,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
        },
    }
    (tmp_path / "live.yaml").write_text(yaml.safe_dump(config))
    assert main(["pretrain", "--config", str(tmp_path / "live.yaml"), "--output", str(tmp_path / "run")]) == 0
    assert towers.asked > 0
    assert load_encoder(tmp_path / "run", expect=AlignedShapeEncoder).text_space == "fake:letters"
    config["model"]["init_args"]["text_space"] = "fake:words"  # type: ignore[index]
    (tmp_path / "live.yaml").write_text(yaml.safe_dump(config))
    assert main(["pretrain", "--config", str(tmp_path / "live.yaml"), "--output", str(tmp_path / "other")]) == 1
    assert "text features of the data are of fake:letters" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "base"), [(0, "openshape_household"), (1, "distill_rooms")])
def test_what_the_page_shows_fits_the_shipped_configurations(number: int, base: str, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    pieces = re.findall(r"^```yaml\n(.*?)^```", (root / "docs" / "texts.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "piece.yaml").write_text(pieces[number])
    options = ["--config", base, "--config", str(tmp_path / "piece.yaml"), "--output", "unused"]
    found = yaml.safe_load(resolve(options))
    kinds = {"LiveTexts", "LivePictures"} if number == 0 else {"LiveScans"}
    arguments = found["data"]["train"]["init_args"].values()
    assert {str(one["class_path"]).rpartition(".")[2] for one in arguments if isinstance(one, dict)} >= kinds
