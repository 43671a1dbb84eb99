"""``pc3d parts``: train and eval on shards of real objects cut into thirds of their height."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

from pc3d.cli._training import shipped_configs
from pc3d.cli.main import main
from pc3d.cli.parts import build_parser
from pc3d.data import Household, read_points
from pc3d.evaluation import PartResult, read_rows
from pc3d.models import PointPartSegmenter
from pc3d.ops import farthest_point_sample
from pc3d.tasks import load_part_segmenter, segment_object

CONFIGS = Path(__file__).parents[2] / "pc3d" / "configs"
SIZES = {"embed_dim": 16, "depth": 3, "num_heads": 2, "num_groups": 12, "group_size": 8, "num_points": 96}
SET = "class_path: pc3d.data.ObjectSet, init_args: {root: nowhere, num_points: 128"
TINY = f"""
seed: 3
model:
  backbone:
    class_path: pc3d.models.PointViT
    init_args: {json.dumps({**SIZES, "tokenizer_dims": [8, 12, 16]})}
  head_dims: [16, 24, 24, 16]
  optimisation: {{learning_rate: 0.005, warmup_epochs: 1}}
data:
  train: {{{SET}}}}}
  test: {{{SET}, split: test}}}}
  train_transforms:
    - {{class_path: pc3d.data.RandomSubsample, init_args: {{num_points: 96}}}}
  validation_fraction: 0.3
  batch_size: 32
trainer: {{max_epochs: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}}
"""


def parts(*arguments: str | Path) -> int:
    return main(["parts", *map(str, arguments)])


def write_split(folder: Path, split: str, num_items: int) -> None:
    source = Household(split, num_points=128, labelled_only=True)
    clouds = [source.load(i) for i in range(num_items)]
    points = np.stack([cloud.xyz.numpy() for cloud in clouds])
    z = points[:, :, 2]
    low, high = z.min(1, keepdims=True), z.max(1, keepdims=True)
    part = np.minimum(3 * (z - low) / (high - low), 2).astype(np.uint8)
    part[:, ::9] = 255
    ids = [str(cloud.meta["id"]) for cloud in clouds]
    np.savez(
        folder / f"{split}-000.npz",
        points=points.astype(np.float16),
        label=source.labels[:num_items].numpy().astype(np.int16),
        id=np.array(ids),
        part=part,
    )
    description = {
        "classes": source.classes,
        "parts": ["foot", "middle", "top"],
        "shards": [f"{split}-000.npz"],
        "items": [{"id": name} for name in ids],
    }
    (folder / f"{split}.json").write_text(json.dumps(description))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_split(folder, "train", 365)  # all classes
    write_split(folder, "test", 60)
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, config: Path, shards: Path) -> Path:
    folder = tmp_path_factory.mktemp("run") / "a"
    options = ["--root", shards, "--protocol", "legacy", "--results", folder / "rows", "--method", "tiny"]
    assert parts("train", "--config", config, "--output", folder, *options) == 0
    return folder


def test_a_run_folder_holds_the_model_and_its_judgement(run: Path, shards: Path) -> None:
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert [resolved["data"][split]["init_args"]["root"] for split in ("train", "test")] == [str(shards)] * 2
    _, known = load_part_segmenter(run)
    assert known["parts"] == ["foot", "middle", "top"]
    result = json.loads((run / "eval" / "test.json").read_text())
    assert result["scores"]["num_points"] + result["scores"]["num_unknown"] == 60 * 128
    assert result["scores"]["num_unknown"] == 60 * 15  # every ninth point
    assert result["scores"]["instance_miou"] > 0.1
    assert result["selection"]["legacy"]["test"] > 0
    assert result["data"] == shards.name
    rows = {row.selection: row for row in read_rows([run / "rows"])}
    assert {row.method for row in rows.values()} == {"tiny"}
    assert rows["validation"].metrics["instance_miou"] == result["scores"]["instance_miou"]
    assert rows["legacy"].metrics["instance_miou"] == result["selection"]["legacy"]["test"]
    assert PartResult.from_dict(result).to_dict() == result


def test_seeds_are_trained_by_one_command(
    config: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--config", config, "--root", shards, "--output", tmp_path / "a"]
    assert parts(*command, "--seeds", "6", "--data.batch_size", "120", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    result = json.loads((tmp_path / "a" / "seed_6" / "eval" / "test.json").read_text())
    assert (found["results"], result["seed"]) == ([result], 6)
    assert found["summary"]["class_miou"]["mean"] == result["scores"]["class_miou"]
    assert found["summary"]["class_miou"]["interval"] is None


def test_vit3d_is_a_backbone(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "vit3d.yaml"
    tiny = {"embed_dim": 16, "depth": 3, "num_heads": 2, "group_size": 8, "point_dim": 8, "num_points": 96}
    settings = yaml.safe_load(TINY)
    settings["model"]["backbone"] = {"class_path": "pc3d.models.ViT3D", "init_args": tiny}
    settings["data"]["batch_size"] = 120
    path.write_text(yaml.safe_dump(settings))
    assert parts("train", "--config", path, "--root", shards, "--output", tmp_path / "a") == 0
    model, _ = load_part_segmenter(tmp_path / "a")
    assert model.encoder.config == {**model.encoder.config, **tiny}
    assert json.loads((tmp_path / "a" / "eval" / "test.json").read_text())["encoder"] == "ViT3D"


def test_eval_repeats_it_and_the_legacy_protocol_is_labelled(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((run / "eval" / "test.json").read_text())
    assert parts("eval", run, "--overwrite", "--results", tmp_path / "rows", "--json") == 0
    assert json.loads(capsys.readouterr().out) == before
    assert parts("eval", run, "--protocol", "legacy") == 0
    assert "*** LEGACY: points drawn with replacement" in capsys.readouterr().out
    legacy = json.loads((run / "eval" / "test_legacy.json").read_text())
    assert legacy["scores"]["num_points"] + legacy["scores"]["num_unknown"] == 60 * 96
    assert main(["results", str(tmp_path / "rows")]) == 0
    assert "part segmentation" in capsys.readouterr().out


def test_eval_goes_on_after_an_interruption(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    segment = PointPartSegmenter.segment
    sizes: list[int] = []
    stop_at = 2

    def interrupted(self: PointPartSegmenter, view: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        if len(sizes) == stop_at:
            raise KeyboardInterrupt
        sizes.append(len(view))
        return segment(self, view, *args)

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    arguments: list[str | Path] = ["eval", run, "--protocol", "legacy", "--json", "--quiet"]
    assert parts(*arguments, "--output", tmp_path / "alone") == 0
    expected = json.loads(capsys.readouterr().out)
    arguments += ["--output", tmp_path / "out"]
    monkeypatch.setattr(PointPartSegmenter, "segment", interrupted)
    assert parts(*arguments) == 130
    (kept,) = (tmp_path / "out").iterdir()
    assert f"interrupted; {kept} keeps what was computed: the same command goes on" in capsys.readouterr().err
    stop_at = -1
    sizes.clear()
    for choice in (["--protocol", "held_out"], ["--batch_size", "30"]):
        assert parts(*arguments, *choice) == 0
        assert kept.exists()  # a command with another choice neither finds nor removes it
    assert sizes == [16, 16, 16, 12, 30, 30]
    sizes.clear()
    with monkeypatch.context() as patch:
        patch.setattr("pc3d.evaluation.write_rows", stop)
        assert parts(*arguments, "--overwrite", "--results", tmp_path / "rows") == 130
    assert sizes == [16, 12]
    sizes.clear()
    capsys.readouterr()
    assert parts(*arguments, "--overwrite") == 0
    assert sizes == []
    assert json.loads(capsys.readouterr().out) == expected
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test.json", "test_legacy.json"]


def test_predict_labels_every_point_of_files(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Household("test", num_points=500, labelled_only=True)
    chair = next(source.load(i) for i in range(40) if source.classes[int(source.labels[i])] == "chair")
    metric = 1.5 * chair.xyz.numpy() + [7, -3, 1]
    np.save(tmp_path / "chair.npy", metric)
    few = tmp_path / "few.xyz"
    few.write_text("".join(f"{x} {y} {z}\n" for x, y, z in metric[:20].tolist()))
    files = [tmp_path / "chair.npy", few]
    command = ["predict", run, *files, "--category", "chair", "--output", tmp_path / "out"]
    assert parts(*command, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["points"] for one in found] == [500, 20]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{name}.{ending}" for name in ("chair", "few") for ending in ("npz", "ply", "png")
    ]
    # What the model says of the object in the unit sphere, of the farthest points that it sees.
    model, known = load_part_segmenter(run)
    unit = torch.from_numpy(metric).float()
    unit = unit - (unit.amax(0) + unit.amin(0)) / 2
    unit = unit / unit.norm(dim=1).max()
    view = unit[farthest_point_sample(unit, 96)]
    category = torch.tensor([known["categories"].index("chair")])
    with torch.no_grad():
        scores = model.segment(view[None], category, unit, torch.tensor([0, 500]))
    allowed = known["category_parts"][int(category)]
    best = scores[:, allowed].softmax(1).max(1)
    with np.load(tmp_path / "out" / "chair.npz") as file:
        assert file["label"].tolist() == [allowed[i] for i in best.indices]
        np.testing.assert_allclose(file["confidence"], best.values.numpy(), atol=1e-4)
        assert file["classes"].tolist() == ["foot", "middle", "top"]
    assert found[0]["shares"] == {
        name: share
        for name, share in sorted(
            ((name, float((best.indices == i).float().mean())) for i, name in enumerate(known["parts"])),
            key=lambda pair: -pair[1],
        )
        if share > 0
    }
    (tmp_path / "out" / "few.npz").unlink()
    (tmp_path / "out" / "few.ply").unlink()
    (tmp_path / "out" / "few.png").unlink()
    assert parts(*command, "--resume", "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == found
    assert "chair.npy: done already" in captured.err
    coloured = read_points(tmp_path / "out" / "chair.ply")
    np.testing.assert_allclose(coloured.xyz.numpy(), metric, rtol=1e-6)
    assert coloured.rgb is not None


def test_predict_does_not_wait_for_lightning(run: Path, tmp_path: Path, imported_by: Callable[..., set[str]]) -> None:
    np.save(tmp_path / "a.npy", Household("test", num_points=500).load(0).xyz.numpy())
    found = imported_by(
        "parts", "predict", run, tmp_path / "a.npy", "--category", "chair", "--output", tmp_path / "out"
    )
    assert "torch" in found
    assert not {"pytorch_lightning", "torchmetrics"} & found


def test_predict_turns_objects_and_leaves_out_bad_files(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    xyz = Household("test", num_points=400)[3].xyz.numpy()
    folder = tmp_path / "objects"
    folder.mkdir()
    np.save(folder / "upright.npy", xyz)
    np.save(folder / "y_up.npy", xyz[:, [0, 2, 1]] * np.array([1, 1, -1], np.float32))
    np.save(folder / "bad.npy", np.full((9, 3), np.nan))
    command = ["predict", run, folder, "--category", "chair", "--on_error", "report", "--json"]
    assert parts(*command, "--output", tmp_path / "stored") == 0
    found = json.loads(capsys.readouterr().out)
    assert [Path(one["object"]).name for one in found["objects"]] == ["upright.npy", "y_up.npy"]
    assert [Path(one["path"]).name for one in found["left_out"]] == ["bad.npy"]
    assert parts(*command, "--up", "y", "--output", tmp_path / "turned") == 0

    def confidence(folder: str, name: str) -> NDArray[np.float32]:
        with np.load(tmp_path / folder / f"{name}.npz") as file:
            return np.asarray(file["confidence"])

    np.testing.assert_array_equal(confidence("turned", "y_up"), confidence("stored", "upright"))
    assert (confidence("stored", "y_up") != confidence("stored", "upright")).any()
    np.testing.assert_allclose(
        read_points(tmp_path / "turned" / "y_up.ply").xyz, read_points(folder / "y_up.npy").xyz, atol=1e-6
    )


def test_predict_refuses_what_it_cannot_do(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", np.eye(3, dtype=np.float32))
    command = ["predict", run, tmp_path / "a.npy", "--output", tmp_path]
    assert parts(*command) != 0
    assert "category is needed: the model knows appliance, bed" in capsys.readouterr().err
    assert parts(*command, "--category", "spaceship") != 0
    assert "category is 'spaceship': the model knows appliance, bed" in capsys.readouterr().err
    (tmp_path / "a.ply").write_text("mine")
    assert parts(*command, "--category", "chair") != 0
    assert (
        "a.ply exists: add --overwrite to replace it, --resume to keep what an interruption left"
        in capsys.readouterr().err
    )
    assert (tmp_path / "a.ply").read_text() == "mine"
    shutil.copytree(run, tmp_path / "some")
    config = tmp_path / "some" / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    settings["data"]["eval_transforms"] = [{"class_path": "pc3d.data.FirstPoints", "init_args": {"num_points": 2}}]
    config.write_text(yaml.safe_dump(settings))
    command = ["predict", tmp_path / "some", tmp_path / "a.npy", "--category", "chair", "--output", tmp_path / "out"]
    assert parts(*command) == 1
    assert "data.eval_transforms of the run leave 2 of 3 points" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"category must be in 0..20, got 21"):
        segment_object(load_part_segmenter(run)[0], torch.eye(3), 21, [[0]] * 21)
    with pytest.raises(ValueError, match="xyz holds no points"):
        segment_object(load_part_segmenter(run)[0], torch.zeros(0, 3), 0, [[0]])


@pytest.mark.parametrize("name", shipped_configs("parts"))
def test_shipped_configurations_are_valid(name: str) -> None:
    path = CONFIGS / "parts" / f"{name}.yaml"
    options = build_parser().parse_args(["--config", str(path), "--output", "nowhere"])
    assert options.trainer.gradient_clip_val == 10
    backbone = options.model.backbone.init_args
    assert backbone.num_cls_tokens == 0
    draws = [step.init_args for step in options.data.train_transforms if step.class_path.endswith("RandomSubsample")]
    assert [draw.num_points for draw in draws] == [backbone.num_points]
    if name == "shapenetpart":
        assert (backbone.num_groups, backbone.num_points, draws[0].replacement) == (128, 2048, True)
        assert (options.data.batch_size, options.trainer.max_epochs) == (16, 300)


def test_what_is_wrong_is_said(
    run: Path, config: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    household = ["--data.train", "pc3d.data.Household", "--data.train.init_args.root", "null"]
    household += ["--data.train.init_args.labelled_only", "true"]
    for arguments, message in (
        (["eval", run], "add --overwrite"),
        (["eval", run, "--split", "validation", "--output", tmp_path], "splits found there"),
        (["eval", run, "--output", tmp_path, "--batch_size", "0"], "batch_size must be at least 1, got 0"),
        (["eval", tmp_path], "holds no part segmenter"),
        (["train", "--config", config, "--output", tmp_path / "new", "--root", tmp_path / "absent"], "missing"),
        (["train", "--config", config, "--output", tmp_path / "new", "--root", shards, *household], "num_parts"),
        (["train", "--config", "shapenet", "--output", tmp_path / "new"], "did you mean 'shapenetpart'"),
    ):
        assert parts(*arguments) != 0
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert parts("evaluate") == 2
    assert "did you mean 'eval'?" in capsys.readouterr().err
