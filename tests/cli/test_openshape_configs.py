"""The shipped configurations of OpenShape: they are valid, and their data come through on small shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pc3d.cli.pretrain import build_parser, resolve
from pc3d.data import Household, PointCloud, targets_of
from pc3d.data.aligned import Targets
from pc3d.data.aligned_files import write_index, write_shard
from pc3d.models import OpenShapePointBERT

NAMES = ["openshape", "openshape_household"]


@pytest.mark.parametrize("name", NAMES)
def test_they_are_valid_and_can_be_overridden(name: str) -> None:
    options = ["--config", name, "--output", "unused", "--model.mining.group_size", "5", "--data.batch_size", "40"]
    found = yaml.safe_load(resolve([*options, "--model.encoder", "null", "--model.start_from", "runs/first"]))
    arguments = found["model"]["init_args"]
    assert (arguments.get("encoder"), arguments["start_from"]) == (None, "runs/first")
    assert arguments["mining"]["group_size"] == 5
    assert arguments["mining"]["num_neighbors"] == 32


def test_the_published_one_is_the_published_size() -> None:
    found = yaml.safe_load(resolve(["--config", "openshape", "--output", "unused"]))
    with torch.device("meta"):
        encoder = OpenShapePointBERT(**found["model"]["init_args"]["encoder"]["init_args"])
    assert sum(p.numel() for p in encoder.parameters()) == 32_326_080
    optimisation = found["model"]["init_args"]["optimisation"]
    assert [optimisation[key] for key in ("learning_rate", "decay", "decay_steps", "weight_decay")] == [
        5e-4,
        0.967,
        10_000,
        0.01,
    ]
    assert optimisation["decay_everything"] is True
    assert found["data"]["batch_size"] == 200


def big(index: int) -> PointCloud:
    """An object with 10,000 points, a text, a thumbnail and two renderings."""
    cloud = Household("test", num_points=2048)[index]
    cloud = cloud.select(torch.arange(10_000) % 2048)
    features = Targets(torch.ones(1, 8), torch.ones(3, 8), ("x",), ("raw",), ("thumbnail", "rendering", "rendering"))
    return PointCloud(cloud.xyz, cloud.rgb, meta={"id": f"{index}", "dataset": "Objaverse", "targets": features})


def test_the_published_augmentation_on_shards(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-000000.tar", [big(index) for index in range(3)])
    write_index(tmp_path / "train-index.npz", [tmp_path / "train-000000.tar"])
    (tmp_path / "filter.json").write_text('{"1": {"flag": "N", "name": "x"}}')
    parser: Any = build_parser()
    config = Path(__file__).parents[2] / "pc3d" / "configs" / "pretrain" / "openshape.yaml"
    train = {"data.train.init_args.root": tmp_path, "data.train.init_args.text_filter": tmp_path / "filter.json"}
    options = [f"--{name}={value}" for name, value in train.items()]
    options += ["--data.batch_size=3", "--data.num_workers=0", "--model.encoder.init_args.depth=1"]
    parsed = parser.parse_args(["--config", str(config), "--output", "unused", *options])
    data = parser.instantiate(parsed).data
    batch = next(iter(data.train_dataloader()))
    assert batch.dense().shape == (3, 10_000, 3)
    for cloud, targets in zip(batch.unbind(), targets_of(batch), strict=True):
        assert len(targets.texts) == (0 if cloud.meta["id"] == "1" else 1)
        assert len(targets.image_kinds) == 1
        assert cloud.rgb is not None
        assert cloud.xyz.norm(dim=1).max() < 1.25 + 0.1 * 3**0.5 + 1e-4
