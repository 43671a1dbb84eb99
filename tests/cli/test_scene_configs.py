"""The shipped configurations of scenes: what their transforms leave is what the network sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import torch
import yaml

from pc3d.cli.pretrain import build_parser, resolve
from pc3d.data import Compose, Rooms
from pc3d.data.transforms import Transform
from pc3d.models import Swin3D
from pc3d.ops import voxelize

CONFIGS = Path(__file__).parents[2] / "pc3d" / "configs"


def scene_configs() -> list[str]:
    found = [path for path in CONFIGS.glob("*/*.yaml") if "GridSample" in path.read_text()]
    return sorted(str(path.relative_to(CONFIGS)) for path in found)


def transform_of(steps: list[dict[str, Any]]) -> Compose:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--steps", type=list[Transform])
    return Compose(parser.instantiate(parser.parse_object({"steps": steps})).steps)


def test_all_configurations_of_scenes_are_looked_at() -> None:
    shipped = {f"segment/{path.name}" for path in (CONFIGS / "segment").glob("*.yaml")}
    pre_training = {"masked_scene", "masked_scene_rooms", "scene_vicreg_rooms", "scene_vicreg_folder"}
    pre_training |= {"swin3d_structured3d", "distill_rooms", "distill_folder", "distill_scannet"}
    assert set(scene_configs()) == shipped | {f"pretrain/{name}.yaml" for name in pre_training}


@pytest.mark.parametrize("name", scene_configs())
def test_every_sampled_point_is_a_voxel_of_the_network(name: str) -> None:
    """On an embedded room, whatever data set the configuration is for."""
    config = yaml.safe_load((CONFIGS / name).read_text())
    model = config["model"]
    backbone = model["backbone"] if "backbone" in model else model["init_args"]["encoder"]
    backbone = backbone["init_args"].get("encoder", backbone)  # of one without decoder
    voxel_size = backbone["init_args"]["voxel_size"]
    data = config["data"]
    # Of lifted features, transforms are the data set's.
    own = data["train"]["init_args"].get("transform", {"init_args": {"transforms": None}})["init_args"]["transforms"]
    of_views = data.get("train_collate", {}).get("init_args", {}).get("transforms")  # of each of two views
    transform, room = transform_of(own or of_views or data["train_transforms"]), Rooms("train")[0]
    for seed in range(3):
        sampled = transform(room, torch.Generator().manual_seed(seed))
        assert 1000 < len(sampled) < len(room)
        assert len(voxelize(sampled.xyz, voxel_size).coords) == len(sampled)


@pytest.mark.parametrize(
    "name", ["segment/swin3d_scannet.yaml", "segment/swin3d_s3dis.yaml", "pretrain/swin3d_structured3d.yaml"]
)
def test_published_recipes_put_the_lowest_point_on_the_lowest_voxel(name: str) -> None:
    """The floor lies at the same place of the windows as in evaluation, however it was jittered, tilted or bent."""
    steps = yaml.safe_load((CONFIGS / name).read_text())["data"]["train_transforms"]
    sampling = [step["class_path"].rpartition(".")[2] for step in steps].index("GridSample")
    for seed in range(5):
        moved = transform_of(steps[:sampling])(Rooms("train")[0], torch.Generator().manual_seed(seed))
        assert float(moved.xyz[:, 2].min()) == 0.0


@pytest.mark.parametrize("name", ["distill_rooms", "distill_scannet"])
def test_configurations_of_distillation_are_valid(name: str) -> None:
    found = yaml.safe_load(resolve(["--config", name, "--output", "unused", "--model.objective", "slidr"]))
    assert found["model"]["init_args"]["objective"] == "slidr"
    assert found["model"]["init_args"]["embed_dim"] == 64
    assert found["data"]["train"]["init_args"]["features"]["init_args"]["folder"].endswith("_features")


def test_the_configuration_of_distillation_on_own_scans_takes_their_folders() -> None:
    folders = ["--data.train.dataset.root", "prepared", "--data.train.features.folder", "lifted"]
    found = yaml.safe_load(resolve(["--config", "distill_folder", "--output", "unused", *folders]))
    train = found["data"]["train"]["init_args"]
    assert train["dataset"]["init_args"]["root"] == "prepared"
    assert train["features"]["init_args"]["folder"] == "lifted"


def test_an_encoder_may_be_a_preset_and_its_config_is_read_again(tmp_path: Path) -> None:
    preset = ["--model.encoder", "pc3d.models.Swin3D.tiny"]
    resolved = resolve(["--config", "masked_scene_rooms", *preset, "--output", "unused"])
    (tmp_path / "config.yaml").write_text(resolved)
    parser = build_parser()
    parsed = parser.parse_args(["--config", str(tmp_path / "config.yaml"), "--output", "unused"])
    encoder = parser.instantiate(parsed).model.encoder
    assert isinstance(encoder, Swin3D)
    assert list(encoder.channels) == [24, 48, 96]


def test_a_preset_takes_no_arguments_and_says_what_does(capsys: pytest.CaptureFixture[str]) -> None:
    preset = ["--model.encoder", "pc3d.models.Swin3D.tiny", "--model.encoder.voxel_size", "0.1"]
    with pytest.raises(SystemExit):
        resolve(["--config", "masked_scene_rooms", *preset, "--output", "unused"])
    assert "voxel_size is unknown; known are: none (a preset, as Swin3D.tiny, has" in capsys.readouterr().err
