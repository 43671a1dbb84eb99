"""``pc3d segment``: train, eval and predict on real rooms, and what they refuse."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import laspy
import numpy as np
import pytest
import torch
import yaml
from matplotlib.figure import Figure

from pc3d import load_encoder
from pc3d.cli._segment_eval import dataset_of_run, named_set
from pc3d.cli._segment_predict import _class_numbers
from pc3d.cli._training import shipped_configs, with_config
from pc3d.cli.main import main
from pc3d.cli.segment import build_parser
from pc3d.data import PointCloud, Rooms, SceneFolder, read_scene, split_train_validation
from pc3d.data.ply_elements import read_ply
from pc3d.data.scene_labels import SCANNET200
from pc3d.evaluation import content_hash, read_rows
from pc3d.evaluation.rows import row_from
from pc3d.models import SparseUNet
from pc3d.tasks import SceneLabels, SceneSegmenter, load_segmenter, segment_scene, with_fields

CONFIGS = Path(__file__).parents[2] / "pc3d" / "configs"
TINY = """
seed: 3
model:
  backbone:
    class_path: pc3d.models.SparseUNet
    init_args: {channels: [8, 12], blocks: [1, 1], voxel_size: 0.3, signals: xyz_rgb_normal}
  optimisation: {learning_rate: 0.02}
data:
  train: {class_path: pc3d.data.Rooms}
  test: {class_path: pc3d.data.Rooms, init_args: {split: test}}
  train_transforms:
    - {class_path: pc3d.data.CenterShift}
    - {class_path: pc3d.data.GridSample, init_args: {voxel_size: 0.3}}
  eval_transforms:
    - {class_path: pc3d.data.CenterShift}
    - {class_path: pc3d.data.GridSample, init_args: {voxel_size: 0.3}}
  validation_fraction: 0.25
  batch_size: 3
trainer: {max_epochs: 4, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    folder = tmp_path_factory.mktemp("run") / "a"
    assert segment("train", "--config", config, "--output", folder) == 0
    return folder


def segment(*arguments: str | Path) -> int:
    return main(["segment", *map(str, arguments)])


def same(first: Path, second: Path) -> bool:
    ours, theirs = load_segmenter(first).state_dict(), load_segmenter(second).state_dict()
    return all(torch.equal(ours[name], value) for name, value in theirs.items())


# ---- train -------------------------------------------------------------------------------------------------------


def test_a_run_folder_holds_what_it_should(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "last.ckpt", "metrics.csv", "tensorboard", "encoder", "head"} <= names
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert resolved["model"]["optimisation"]["weight_decay"] == 0.05  # defaults are spelled out
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    assert {"train/loss_epoch", "validation/miou", "validation/allacc"} <= set(header.split(","))
    assert len([row for row in rows if row]) >= 4
    assert isinstance(load_encoder(run), SparseUNet)
    assert load_segmenter(run).classes == Rooms("test").classes


def test_a_run_goes_on_by_its_own_configuration_and_ends_the_same(run: Path, config: Path, tmp_path: Path) -> None:
    short = ["--trainer.max_epochs", "2", "--model.optimisation.schedule_epochs", "4"]
    assert segment("train", "--config", config, "--output", tmp_path / "b", *short) == 0
    assert segment("train", "--output", tmp_path / "b", "--resume", "--trainer.max_epochs", "4") == 0
    assert same(run, tmp_path / "b")


def test_shorthands_and_starting_from_an_encoder(
    run: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "few"
    options = ["--label_fraction=0.1", "--encoder", run, "--skip", "[upsamples]", "--trainer.max_epochs", "1"]
    assert segment("train", "--config", config, "--output", folder, *options) == 0
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["data"]["label_fraction"] == 0.1
    assert (resolved["model"]["encoder"], resolved["model"]["skip"]) == (str(run), ["upsamples"])
    assert f"weights of {run}: " in capsys.readouterr().out
    assert segment("train", "--output", folder, "--resume", "--label_fraction", "0.2") == 1
    assert "cannot resume with another data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "name"),
    [(folder, name) for folder in ("segment", "pretrain") for name in shipped_configs(folder)],
)
def test_shipped_configurations_are_valid(folder: str, name: str) -> None:
    path = CONFIGS / folder / f"{name}.yaml"
    if "backbone" not in yaml.safe_load(path.read_text())["model"]:
        return  # a method's, tested with the methods
    # A recipe for scans of one's own has no folder.
    roots = [f"--data.{part}.init_args.root=nowhere" for part in ("train", "test")]
    options = build_parser().parse_args(["--config", str(path), "--output", "nowhere", *roots])
    assert options.trainer.max_epochs > 0
    # Validation while training sees scenes as eval and predict do, which centre them.
    assert [transform.class_path for transform in options.data.eval_transforms] == ["pc3d.data.CenterShift"]
    assert options.model.backbone.class_path.startswith("pc3d.models.")


def test_supervised_pre_training_is_handed_to_segment(config: Path, tmp_path: Path) -> None:
    options = ["--config", str(config), "--output", str(tmp_path / "a"), "--trainer.max_epochs", "1"]
    assert main(["pretrain", *options]) == 0
    assert load_segmenter(tmp_path / "a").classes == Rooms("test").classes
    assert main(["pretrain", "--output", str(tmp_path / "a"), "--resume"]) == 0


def test_the_published_recipe_of_structured3d() -> None:
    path = CONFIGS / "pretrain" / "swin3d_structured3d.yaml"
    options = build_parser().parse_args(["--config", str(path), "--output", "nowhere"])
    optimisation = options.model.optimisation
    assert (optimisation.learning_rate, optimisation.block_factor, optimisation.weight_decay) == (0.008, 0.1, 0.05)
    assert (optimisation.schedule, optimisation.warmup_share) == ("one_cycle", 0.05)
    assert (options.data.batch_size, options.trainer.max_epochs) == (12, 100)
    assert options.data.train_collate.init_args.mix_probability == 0.8
    crops = [t.init_args for t in options.data.train_transforms if t.class_path.endswith("SphereCrop")]
    assert [(crop.max_points, crop.max_share) for crop in crops] == [(None, 0.8), (120_000, 1.0)]
    assert not any(t.class_path.endswith("RandomColorDrop") for t in options.data.train_transforms)


def test_sets_with_other_classes_are_told_apart(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a recipe for 20 classes of ScanNet is told of 200 for its training set alone."""
    for split in ("train", "test"):
        (tmp_path / split / "room").mkdir(parents=True)
        np.save(tmp_path / split / "room" / "coord.npy", np.zeros((4, 3), np.float32))
    (tmp_path / "classes.txt").write_text("wall\nfloor\n")
    options = ["--data.test.class_path", "pc3d.data.SceneFolder", "--data.test.init_args.root", tmp_path]
    assert segment("train", "--config", config, "--output", tmp_path / "run", *options) == 1
    error = capsys.readouterr().err
    assert "error: train and test must have the same classes in the same order" in error
    assert not (tmp_path / "run").exists()


# ---- eval --------------------------------------------------------------------------------------------------------


def test_eval_writes_the_scores_that_inference_gives(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert segment("eval", run, "--data", "rooms", "--use_fragments", "false") == 0
    text = capsys.readouterr().out
    assert "mIoU" in text
    assert "ceiling" in text
    result = json.loads((run / "eval" / "rooms_test.json").read_text())
    model, hits, total = load_segmenter(run), 0, 0
    for cloud in Rooms("test"):
        assert cloud.segment is not None
        found = segment_scene(model, cloud, use_fragments=False).label
        hits += int((found == cloud.segment)[cloud.segment >= 0].sum())
        total += int((cloud.segment >= 0).sum())
    assert result["allacc"] == pytest.approx(hits / total)
    assert result["num_points"] == total
    assert (run / "eval" / "rooms_test.png").stat().st_size > 20_000
    assert segment("eval", run, "--data", "rooms") == 1
    assert "add --overwrite" in capsys.readouterr().err


def test_eval_takes_the_test_set_of_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--results", tmp_path / "rows", "--use_fragments", "false", "--json", "--output", tmp_path / "scores"]
    assert segment("eval", run, *options) == 0
    result = json.loads(capsys.readouterr().out)
    (row,) = read_rows([tmp_path / "rows"])
    assert (row.method, row.protocol) == ("SparseUNet, from scratch", "scene segmentation (single pass)")
    assert (row.selection, row.data, row.seed) == ("fixed", "rooms_test", 3)
    assert {name: result[name] for name in row.metrics} == row.metrics
    assert next(iter(row.metrics)) == "miou"
    kept = split_train_validation(Rooms("train"), 0.25, 3)[0]
    assert row.data_hash == f"{content_hash(kept)}-{content_hash(Rooms('test'))}"
    assert (row.num_train, row.num_test) == (len(kept), 3)
    assert row.config["model"]["optimisation"]["learning_rate"] == 0.02
    assert str(run) not in json.dumps(row.config)
    assert "torch" in row.versions
    assert main(["results", str(tmp_path / "rows")]) == 0
    assert f"{100 * result['miou']:.1f}" in capsys.readouterr().out
    assert (result["data"], result["num_scenes"], result["use_fragments"]) == ("rooms_test", 3, False)


def test_eval_tells_frequent_from_rare_of_scannet200(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network that calls everything wall: IoU of a head class alone, in the group and among all that occur."""
    scan = tmp_path / "scans" / "val" / "scene0011_00"
    scan.mkdir(parents=True)
    generator = np.random.default_rng(0)
    np.save(scan / "coord.npy", generator.random((100, 3), np.float32))
    np.save(scan / "color.npy", np.zeros((100, 3), np.uint8))
    names = ["wall"] * 40 + ["chair"] * 20 + ["cushion"] * 30 + ["paper"] * 10
    np.save(scan / "segment200.npy", np.array([SCANNET200.index(name) for name in names]))
    model = SceneSegmenter(SparseUNet([8, 12], [1, 1], voxel_size=0.3, signals="xyz_rgb"), SCANNET200, "linear")
    model.head.weight.data.zero_()  # type: ignore[union-attr, operator]
    model.head.bias.data.copy_(torch.arange(200, 0, -1))  # type: ignore[union-attr, operator]
    model.eval().save(tmp_path / "run")
    options = ["--data", "scannet200", "--root", tmp_path / "scans", "--json"]
    assert segment("eval", tmp_path / "run", *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["miou_of_groups"] == pytest.approx({"head": 0.4 / 2, "common": 0.0, "tail": 0.0})
    assert found["miou"] == pytest.approx(0.4 / 200)
    assert segment("eval", tmp_path / "run", *options[:-1], "--output", tmp_path / "again") == 0
    assert "mIoU of head classes: 20.00 %" in capsys.readouterr().out


def test_eval_and_predict_vote_as_swin3d(run: Path, scenes: list[Path], tmp_path: Path) -> None:
    voting = ["--voting", "swin3d", "--output", tmp_path]
    assert segment("predict", run, scenes[1], *voting) == 0
    model = load_segmenter(run)
    cloud = with_fields(read_scene(scenes[1]), model.fields)[0]
    expected = segment_scene(model, cloud, voting="swin3d", use_fragments=False)
    with np.load(tmp_path / "second.npz") as archive:
        np.testing.assert_array_equal(archive["label"], expected.label)
    assert segment("eval", run, "--use_fragments", "false", *voting, "--results", tmp_path) == 0
    result = json.loads((tmp_path / "rooms_test_swin3d_voting.json").read_text())
    assert (result["voting"], result["use_fragments"]) == ("swin3d", False)
    assert read_rows([tmp_path])[0].protocol == "scene segmentation (single pass, swin3d voting)"


def test_eval_and_predict_take_the_points_of_a_voxel_alike(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Rooms("test")[0].select(slice(None, None, 40))
    np.savez(tmp_path / "room.npz", coord=room.xyz.numpy(), color=(255 * room.rgb).round().numpy())  # type: ignore[operator]
    model = load_segmenter(run)
    cloud = with_fields(read_scene(tmp_path / "room.npz"), model.fields)[0]
    together, apart = (segment_scene(model, cloud, use_fragments=value).label for value in (False, True))
    assert (together != apart).any()
    for more, expected in (([], together), (["false"], together), (["true"], apart)):
        options = ["--use_fragments", *more] if more else []
        output = tmp_path / "".join(["out", *more])
        assert segment("predict", run, tmp_path / "room.npz", *options, "--output", output) == 0
        with np.load(output / "room.npz") as archive:
            np.testing.assert_array_equal(archive["label"], expected)
    seen = []

    def noted(*_: object, use_fragments: bool, **__: object) -> None:
        seen.append(use_fragments)
        raise ValueError("seen")

    monkeypatch.setattr("pc3d.tasks.evaluate_scenes", noted)
    for value in ([], ["--use_fragments", "true"], ["--use_fragments", "false"]):
        assert segment("eval", run, *value, "--output", tmp_path / "eval") == 1
    assert seen == [True, True, False]
    for verb in (["eval", run], ["predict", run, tmp_path / "room.npz", "--output", tmp_path]):
        assert segment(*verb, "--use_fragments", "some") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "roms"], "did you mean 'rooms'?"),
        (["--data", "scannet"], "where is scannet? give the folder that holds it with --root"),
        (["--data", "rooms", "--split", "validation"], "splits found there"),
        (["--split", "train"], "goes with --data"),
        (["--root", "somewhere"], "goes with --data"),
    ],
)
def test_eval_says_what_is_wrong(
    arguments: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment("eval", run, *arguments) == 1
    assert message in capsys.readouterr().err


# ---- S3DIS: areas and folds --------------------------------------------------------------------------------------

ROOM = Path(__file__).parents[1] / "assets" / "scenes" / "s3dis" / "Area_1" / "office_1"


@pytest.fixture(scope="module")
def s3dis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six areas with a room each: rows of a published one, others in each area."""
    folder = tmp_path_factory.mktemp("s3dis")
    for area in range(1, 7):
        room = folder / f"Area_{area}" / "office_1"
        room.mkdir(parents=True)
        for path in ROOM.glob("*.npy"):
            np.save(room / path.name, np.load(path)[area::7])
    return folder


@pytest.fixture(scope="module")
def s3dis_run(tmp_path_factory: pytest.TempPathFactory, s3dis: Path) -> Path:
    """A model of S3DIS that held Area 3 and Area 5 out."""
    folder = tmp_path_factory.mktemp("s3dis_run")
    config = yaml.safe_load(TINY)
    config["model"]["backbone"]["init_args"]["signals"] = "xyz_rgb"
    config["data"]["train"] = {
        "class_path": "pc3d.data.S3DIS",
        "init_args": {"root": str(s3dis), "areas": [1, 2, 4, 6]},
    }
    config["data"] |= {"test": None, "validation_fraction": 0.0, "batch_size": 2}
    config["trainer"]["max_epochs"] = 1
    (folder / "s3dis.yaml").write_text(yaml.safe_dump(config))
    assert segment("train", "--config", folder / "s3dis.yaml", "--output", folder / "run") == 0
    return folder / "run"


def judge_area(run: Path, s3dis: Path, area: int, *options: str | Path) -> int:
    return segment(
        "eval", run, "--data", "s3dis", "--root", s3dis, "--test_area", str(area), "--use_fragments", "false", *options
    )


@pytest.fixture(scope="module")
def folds(s3dis_run: Path, s3dis: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Results of two areas, and rows of both beside them."""
    output = tmp_path_factory.mktemp("folds")
    for area in (3, 5):
        assert judge_area(s3dis_run, s3dis, area, "--output", output, "--results", output / "rows") == 0
    return [output / f"s3dis_test_area_{area}.json" for area in (3, 5)]


def test_any_area_is_judged_that_the_run_has_not_seen(
    s3dis_run: Path, s3dis: Path, folds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for area, path in zip((3, 5), folds, strict=True):
        result = json.loads(path.read_text())
        assert result["scenes"] == [f"Area_{area}-office_1"]
        assert result["num_points"] == len(np.load(s3dis / f"Area_{area}" / "office_1" / "segment.npy"))
    assert judge_area(s3dis_run, s3dis, 4, "--output", tmp_path) == 1
    message = "was trained on Area 4: judge it on an area that it has not seen (3, 5), or on its training rooms with"
    assert message in capsys.readouterr().err
    assert judge_area(s3dis_run, s3dis, 4, "--split", "train", "--output", tmp_path, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["data"], result["num_scenes"]) == ("s3dis_train_area_4", 5)
    assert judge_area(s3dis_run, s3dis, 7) == 1
    assert "areas are numbered 1 to 6, got [7]" in capsys.readouterr().err
    assert segment("eval", s3dis_run, "--data", "rooms", "--test_area", "3") == 1
    assert "test_area: 3 goes with --data s3dis, got data 'rooms'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("test", "name"),
    [
        ({"class_path": "pc3d.data.ScanNet", "init_args": {"split": "val"}}, "scannet_val"),
        ({"class_path": "pc3d.data.ScanNet", "init_args": {"split": "val", "classes": 200}}, "scannet200_val"),
        ({"class_path": "pc3d.data.ScanNet", "init_args": {"split": "few.json"}}, "scannet_few"),
        ({"class_path": "pc3d.data.ScanNet", "init_args": {"split": ["train", "val"]}}, "scannet_train_val"),
        ({"class_path": "pc3d.data.SceneFolder", "init_args": {"split": "val"}}, "scenefolder_val"),
        ({"class_path": "pc3d.data.S3DIS", "init_args": {"split": "test"}}, "s3dis_test"),
        ({"class_path": "pc3d.data.S3DIS", "init_args": {"split": "test", "test_area": 3}}, "s3dis_test_area_3"),
    ],
)
def test_a_result_bears_the_name_of_the_split_that_was_judged(
    test: dict[str, Any], name: str, tmp_path: Path, s3dis: Path
) -> None:
    """ScanNet's test labels are not public, so its recipes judge on val: no score of that may pass for one of test."""
    for split in ("train", "val"):
        scene = tmp_path / "scannet" / split / ("scene0000_00" if split == "train" else "scene0011_00")
        scene.mkdir(parents=True)
        np.save(scene / "coord.npy", np.zeros((2, 3), np.float32))
    (tmp_path / "scannet" / "few.json").write_text('["val/scene0011_00"]')
    # Scans of one's own in these classes are no ScanNet200.
    (tmp_path / "scannet" / "classes.txt").write_text("".join(f"{name}\n" for name in SCANNET200))
    test["init_args"]["root"] = str(s3dis if "S3DIS" in test["class_path"] else tmp_path / "scannet")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {"test": test}}))
    assert dataset_of_run(tmp_path)[1] == name


def test_a_split_that_is_a_path_gives_its_name_and_no_folder(tmp_path: Path) -> None:
    """The results are written into a file of this name, after hours."""
    scene = tmp_path / "scans" / "val" / "scene0011_00"
    scene.mkdir(parents=True)
    np.save(scene / "coord.npy", np.zeros((2, 3), np.float32))
    lists = tmp_path / "few.json"
    lists.write_text('["val/scene0011_00"]')
    for data, name in (
        ("scannet", "scannet_few"),
        ("scannet200", "scannet200_few"),
        ("structured3d", "structured3d_few"),
        ("scenes", "scans_few"),
    ):
        assert named_set(data, str(tmp_path / "scans"), str(lists), None)[1] == name
    assert named_set("scenes", str(tmp_path), "scans/val", None)[1] == f"{tmp_path.name}_val"


def test_folds_are_added_up_before_anything_is_divided(
    folds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment("fold", *folds, "--output", tmp_path) == 0
    assert "mIoU" in capsys.readouterr().out
    result = json.loads((tmp_path / "folds.json").read_text())
    counts = sum(np.array(json.loads(path.read_text())["confusion"]) for path in folds)
    np.testing.assert_array_equal(result["confusion"], counts)
    hits, union = counts.diagonal(), counts[:, :13].sum(0) + counts.sum(1) - counts.diagonal()
    assert result["miou"] == pytest.approx(np.mean(hits / (union + 1e-10)), abs=1e-12)
    assert (result["num_scenes"], [fold["data"] for fold in result["folds"]]) == (
        2,
        ["s3dis_test_area_3", "s3dis_test_area_5"],
    )
    assert (tmp_path / "folds.png").stat().st_size > 10_000
    assert segment("fold", *folds, "--output", tmp_path) == 1
    assert "add --overwrite" in capsys.readouterr().err
    assert segment("fold", *folds, "--json") == 0
    assert json.loads(capsys.readouterr().out)["confusion"] == result["confusion"]


def test_folds_become_one_row(folds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert segment("fold", *folds, "--results", tmp_path / "a", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    (row,) = read_rows([tmp_path / "a"])
    first, second = read_rows([folds[0].parent / "rows"])
    assert row.metrics == {name: result[name] for name in first.metrics}
    assert (row.method, row.protocol, row.selection, row.seed, row.config) == (
        *(first.method, first.protocol, first.selection, first.seed, first.config),
    )
    assert row.data == "s3dis_test, 2 folds"
    assert row.data_hash not in (first.data_hash, second.data_hash)
    assert (row.num_train, row.num_test) == (8, 2)  # four rooms trained each
    assert row.cost == {
        "cpu_seconds": first.cost["cpu_seconds"] + second.cost["cpu_seconds"],
        "peak_memory_bytes": max(first.cost["peak_memory_bytes"], second.cost["peak_memory_bytes"]),
        "parameters": first.cost["parameters"],
    }
    # In another order it is the same row; under another name another one.
    assert segment("fold", *reversed(folds), "--results", tmp_path / "a") == 0
    assert len(read_rows([tmp_path / "a"])) == 1
    assert segment("fold", *folds, "--results", tmp_path / "a", "--method", "mine") == 0
    assert {row.method for row in read_rows([tmp_path / "a"])} == {first.method, "mine"}
    interrupted = json.loads(folds[1].read_text())
    del interrupted["row"]["cost"]["cpu_seconds"]
    (tmp_path / "interrupted.json").write_text(json.dumps(interrupted))
    assert segment("fold", folds[0], tmp_path / "interrupted.json", "--results", tmp_path / "b") == 0
    assert set(read_rows([tmp_path / "b"])[0].cost) == {"peak_memory_bytes", "parameters"}
    older = json.loads(folds[1].read_text())
    older["row"]["versions"]["torch"] = "0.1"
    (tmp_path / "older.json").write_text(json.dumps(older))
    assert segment("fold", folds[0], tmp_path / "older.json", "--results", tmp_path / "c") == 0
    assert read_rows([tmp_path / "c"])[0].versions == {**first.versions, "torch": f"0.1 and {first.versions['torch']}"}
    capsys.readouterr()
    assert main(["results", str(tmp_path / "a")]) == 0
    assert f"{100 * result['miou']:.1f}" in capsys.readouterr().out


def test_folds_of_different_experiments_become_no_row(
    folds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = json.loads(folds[1].read_text())
    row = second["row"]
    other = tmp_path / "other.json"

    def refused(message: str, *options: str) -> None:
        assert segment("fold", folds[0], other, "--results", tmp_path / "rows", *options) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "rows").exists()

    other.write_text(json.dumps({name: value for name, value in second.items() if name != "row"}))
    refused("judge it again with pc3d segment eval --results")
    assert segment("fold", folds[0], other) == 0  # without a row it is no matter
    capsys.readouterr()
    other.write_text(json.dumps({**second, "row": {**row, "seed": 4}}))
    refused("is of another seed than")
    other.write_text(json.dumps({**second, "row": {**row, "method": "another"}}))
    refused("name them with --method")
    changed = replace(row_from(row, other), config={**row["config"], "trainer": {"max_epochs": 2}})
    other.write_text(json.dumps({**second, "row": changed.to_dict()}))
    refused("is of another config than", "--method", "one")
    other.write_text(json.dumps({**second, "row": {**row, "config": {}}}))
    refused("config_hash is")
    other.write_text(json.dumps({**second, "row": []}))
    refused("is not a row of results")


def test_a_run_with_one_result_stands_for_it(
    folds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in folds:
        (tmp_path / path.stem / "eval").mkdir(parents=True)
        (tmp_path / path.stem / "eval" / path.name).write_text(path.read_text())
    runs = [tmp_path / path.stem for path in folds]
    assert segment("fold", *runs, "--json") == 0
    both = json.loads(capsys.readouterr().out)
    assert both["scenes"] == ["Area_3-office_1", "Area_5-office_1"]
    (runs[0] / "eval" / "other.json").write_text("{}")
    assert segment("fold", *runs) == 1
    assert "has several results" in capsys.readouterr().err


def test_folds_that_do_not_belong_together_are_refused(
    folds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (json.loads(path.read_text()) for path in folds)
    renamed = {("attic" if name == "ceiling" else name): value for name, value in second["per_class"].items()}
    cases = [
        ({**second, "voting": "s3dis"}, "was judged with voting s3dis"),
        ({**second, "use_fragments": True}, "judge all folds in the same way"),
        ({**second, "per_class": renamed}, "other classes"),
        ({**second, "scenes": first["scenes"]}, "scene 'Area_3-office_1' is in"),
        ({**second, "confusion": second["confusion"][1:]}, "confusion must be 13 rows of 14 counts"),
        ({**second, "confusion": [[-1] * 14] * 13}, "confusion must be 13 rows of 14 counts"),
        ({name: value for name, value in second.items() if name != "scenes"}, "has no 'scenes'"),
        ([], "is not a result of one evaluation"),
    ]
    other = tmp_path / "other.json"
    for content, message in cases:
        other.write_text(json.dumps(content))
        assert segment("fold", folds[0], other) == 1
        assert message in capsys.readouterr().err
    other.write_text("{")
    for arguments, message in (
        ([folds[0], other], "is not JSON"),
        ([folds[0]], "give at least two folds"),
        ([folds[0], tmp_path / "absent"], "write it with pc3d segment eval"),
    ):
        assert segment("fold", *arguments) == 1
        assert message in capsys.readouterr().err


# ---- scans of one's own ------------------------------------------------------------------------------------------


def test_scans_of_ones_own_train_and_are_judged(
    tmp_path: Path, import_script: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        for index in range(2):
            room = Rooms(split)[index].select(slice(None, None, 10))
            path = tmp_path / "scans" / split / f"{index}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, xyz=room.xyz.numpy(), label=room.segment)
    (tmp_path / "scans" / "classes.txt").write_text("0 wall\n1 floor\n2 ceiling\n")
    prepared = tmp_path / "prepared"
    import_script("data_tools/prepare_scenes.py").main(
        ["files", str(tmp_path / "scans"), str(prepared), "--workers", "1"]
    )
    few = ("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu")
    views = tmp_path / "views"
    arguments = [
        "pretrain",
        "--config",
        "scene_vicreg_folder",
        "--data.train.root",
        str(prepared),
        "--output",
        str(views),
    ]
    assert main([*arguments, *few]) == 0
    run, config = tmp_path / "run", ("--config", "scenes_small_unet", "--root", prepared)
    assert segment("train", *config, "--encoder", views, "--output", run, *few) == 0
    assert load_segmenter(run).classes == ("wall", "floor", "ceiling")
    stored = yaml.safe_load((run / "config.yaml").read_text())["data"]
    assert [stored[name]["init_args"]["root"] for name in ("train", "test")] == [str(prepared)] * 2
    assert segment("eval", run, "--use_fragments", "false") == 0
    found = json.loads((run / "eval" / "scenefolder_test.json").read_text())
    assert found["num_scenes"] == 2
    points = sum(int((cloud.segment != -1).sum()) for cloud in SceneFolder(prepared, "test"))
    assert sum(map(sum, found["confusion"])) == points
    assert segment("eval", run, "--use_fragments", "false", "--data", "scenes", "--root", prepared) == 0
    again = json.loads((run / "eval" / "prepared_test.json").read_text())
    assert again["confusion"] == found["confusion"]
    (prepared / "classes.txt").write_text("floor\nwall\nceiling\n")
    assert segment("eval", run, "--data", "scenes", "--root", prepared, "--output", tmp_path / "other") == 1
    (prepared / "classes.txt").unlink()
    capsys.readouterr()
    assert segment("train", *config, "--output", tmp_path / "without", *few) == 1
    assert "SceneFolder('train', 2 scenes, 0 classes) names no classes of points: give it" in capsys.readouterr().err


def test_root_is_that_of_every_data_set_of_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ((), ("--seed", "1")):  # wherever it stands
        arguments = [*place, "--root", tmp_path, "--config", "swin3d_scannet", "--print_config"]
        assert segment("train", *arguments, "--output", tmp_path / "run") == 0
        data = yaml.safe_load(capsys.readouterr().out)["data"]
        assert [data[name]["init_args"]["root"] for name in ("train", "validation", "test")] == [str(tmp_path)] * 3
    (tmp_path / "short.yaml").write_text("trainer: {max_epochs: 1}\n")
    later = [f"--config={tmp_path / 'short.yaml'}"]
    own = ["--data.test.init_args.root", "elsewhere"]
    arguments = ["--root", tmp_path, "--config", "swin3d_scannet", *later, *own, "--print_config"]
    assert segment("train", *arguments, "--output", tmp_path / "run") == 0
    data = yaml.safe_load(capsys.readouterr().out)["data"]
    roots = [data[name]["init_args"]["root"] for name in ("train", "validation", "test")]
    assert roots == [str(tmp_path), str(tmp_path), "elsewhere"]


# ---- predict -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A real room as a coloured text file, and another without colours and normals."""
    folder = tmp_path_factory.mktemp("scenes")
    first, second = (Rooms("test")[i].select(slice(None, None, 20)) for i in (0, 1))
    assert first.rgb is not None
    np.savetxt(folder / "first.xyz", np.hstack([first.xyz, (255 * first.rgb).round()]))
    np.save(folder / "second.npy", second.xyz.numpy())
    return [folder / "first.xyz", folder / "second.npy"]


def test_predict_labels_any_scene(
    run: Path, scenes: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment("predict", run, *scenes, "--output", tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert text.count("no normals: estimated") == 2
    assert text.count("no colours: the model was trained with them and sees mid-grey") == 1
    model = load_segmenter(run)
    for path in scenes:
        cloud = read_scene(path)
        expected = segment_scene(model, with_fields(cloud, model.fields)[0], use_fragments=False)
        with np.load(tmp_path / "out" / f"{path.stem}.npz") as archive:
            np.testing.assert_array_equal(archive["label"], expected.label)
            assert tuple(archive["classes"]) == model.classes
            colors = archive["class_colors"][archive["label"]]
        back = read_scene(tmp_path / "out" / f"{path.stem}.ply")
        np.testing.assert_allclose(back.xyz, cloud.xyz, atol=1e-6)
        assert back.rgb is not None
        np.testing.assert_allclose(back.rgb, colors, atol=0.5 / 255 + 1e-6)
        assert (tmp_path / "out" / f"{path.stem}.png").stat().st_size > 10_000


def test_predict_does_not_wait_for_lightning(
    run: Path, scenes: list[Path], tmp_path: Path, imported_by: Callable[..., set[str]]
) -> None:
    found = imported_by("segment", "predict", run, scenes[0], "--output", tmp_path / "out")
    assert "torch" in found
    assert not {"pytorch_lightning", "torchmetrics"} & found


def test_predict_goes_on_after_an_interruption(
    run: Path, scenes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named: list[int] = []

    def interrupted(model: Any, cloud: PointCloud, **options: Any) -> SceneLabels:
        if len(named) == 1:
            raise KeyboardInterrupt
        named.append(len(cloud))
        return segment_scene(model, cloud, **options)

    arguments: list[str | Path] = ["predict", run, *scenes, "--quiet", "--json", "--output"]
    assert segment(*arguments, tmp_path / "alone") == 0
    expected = json.loads(capsys.readouterr().out)
    with monkeypatch.context() as patch:
        patch.setattr("pc3d.tasks.segment_scene", interrupted)
        assert segment(*arguments, tmp_path / "out") == 130
        assert "1 of 2 scenes are done; go on with the same command and --resume" in capsys.readouterr().err
        assert segment(*arguments, tmp_path / "out") == 1  # not without being told to
        assert "add --overwrite" in capsys.readouterr().err
        named.clear()
        (tmp_path / "out" / "second.ply").write_bytes(b"mine")
        assert segment(*arguments, tmp_path / "out", "--resume") == 1
        assert "second.ply has no second.npz beside it, so nothing tells what" in capsys.readouterr().err
        assert (tmp_path / "out" / "second.ply").read_bytes() == b"mine"
        assert segment(*arguments, tmp_path / "out", "--resume", "--overwrite") == 0
    assert len(named) == 1
    found = json.loads(capsys.readouterr().out)
    for now, then, path in zip(found, expected, scenes, strict=True):
        assert [now[name] for name in ("points", "shares", "notes")] == [
            then[name] for name in ("points", "shares", "notes")
        ]
        assert now["notes"]  # no normals in either
        assert [Path(file).name for file in now["written"]] == [Path(file).name for file in then["written"]]
        for ending in (".ply", ".png"):
            files = [tmp_path / folder / (path.stem + ending) for folder in ("alone", "out")]
            assert files[0].read_bytes() == files[1].read_bytes()
        with np.load(tmp_path / "alone" / f"{path.stem}.npz") as a, np.load(tmp_path / "out" / f"{path.stem}.npz") as b:
            assert all(np.array_equal(a[name], b[name]) for name in a.files)
    assert segment(*arguments, tmp_path / "out", "--resume", "--context", "1") == 1
    assert "other options" in capsys.readouterr().err
    (tmp_path / "out" / "first.ply").unlink()
    assert segment(*arguments, tmp_path / "out", "--resume") == 0
    assert (tmp_path / "out" / "first.ply").read_bytes() == (tmp_path / "alone" / "first.ply").read_bytes()
    one_array = io.BytesIO()
    np.save(one_array, np.zeros(3))
    for content in (b"mine", b"", one_array.getvalue()):
        (tmp_path / "out" / "first.npz").write_bytes(content)
        assert segment(*arguments, tmp_path / "out", "--resume") == 1
        assert "first.npz is of another model" in capsys.readouterr().err
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".ply", ".npz", ".png"}


def test_what_is_done_is_kept_when_a_file_is_refused(
    run: Path, scenes: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holed = np.load(scenes[1])
    holed[5] = np.nan
    np.save(tmp_path / "holed.npy", holed)
    arguments: list[str | Path] = ["predict", run, scenes[1], tmp_path / "holed.npy", "--output", tmp_path / "out"]
    assert segment(*arguments) == 1
    told = capsys.readouterr()
    assert "1 of 2 scenes are done; --resume keeps them" in told.out
    assert "holed.npy: 1 of" in told.err
    done = (tmp_path / "out" / "second.npz").stat().st_mtime_ns
    assert segment(*arguments, "--resume", "--drop_invalid") == 0
    assert "second.npy: done already" in capsys.readouterr().out
    assert (tmp_path / "out" / "second.npz").stat().st_mtime_ns == done
    with np.load(tmp_path / "out" / "holed.npz") as archive:
        assert (archive["label"] == -1).nonzero()[0].tolist() == [5]


def test_eval_goes_on_after_an_interruption(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named: list[int] = []
    stop_at = 1

    def interrupted(model: Any, cloud: PointCloud, **options: Any) -> SceneLabels:
        if stop_at == len(named):
            raise KeyboardInterrupt
        named.append(len(cloud))
        return segment_scene(model, cloud, **options)

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    arguments: list[str | Path] = [
        "eval",
        run,
        "--data",
        "rooms",
        "--use_fragments",
        "false",
        "--quiet",
        "--json",
        "--output",
    ]
    assert segment(*arguments, tmp_path / "alone") == 0
    expected = json.loads(capsys.readouterr().out)
    with monkeypatch.context() as patch:
        patch.setattr("pc3d.tasks.scene_inference.segment_scene", interrupted)
        assert segment(*arguments, tmp_path / "out") == 130
        (kept,) = (tmp_path / "out").glob(".rooms_test.*.kept")
        assert f"{kept} keeps what was computed" in capsys.readouterr().err
        stop_at = -1
        named.clear()
        assert segment(*arguments, tmp_path / "out", "--context", "1") == 0
        assert len(named) == expected["num_scenes"] == 3
        assert kept.exists()  # a command with another choice neither finds nor removes it
        named.clear()
        with monkeypatch.context() as at_the_end:
            at_the_end.setattr("pc3d.cli._segment_eval.draw_confusion", stop)
            assert segment(*arguments, tmp_path / "out", "--overwrite") == 130
        assert len(named) == 2
        named.clear()
        capsys.readouterr()
        assert segment(*arguments, tmp_path / "out", "--overwrite") == 0
    assert named == []
    assert json.loads(capsys.readouterr().out) == expected
    assert not kept.exists()


def test_the_scenes_of_a_report_go_on_after_an_interruption(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[PointCloud] = []
    shown: list[Any] = []
    stop_at = 1

    def interrupted(model: Any, cloud: PointCloud, device: Any = None) -> SceneLabels:
        if stop_at == len(named):
            raise KeyboardInterrupt
        named.append(cloud)
        return SceneLabels((cloud.xyz[:, 2] > 1).long(), torch.ones(len(cloud)))

    def draw(xyz: Any, predicted: Any, classes: Any, **options: Any) -> Figure:
        shown.append(predicted)
        return Figure((1, 1))

    monkeypatch.setattr("pc3d.tasks.scene_inference.segment_scene", interrupted)
    monkeypatch.setattr("pc3d.viz.scene_figure", draw)
    arguments = ["report", str(run), "--pictures", "2", "--quiet", "--output", str(tmp_path / "page.html")]
    assert main(arguments) == 130
    stop_at = -1
    shown.clear()
    assert main(arguments) == 0
    rooms = [Rooms("test")[0], Rooms("test")[1]]
    assert [len(cloud) for cloud in named] == [len(room) for room in rooms]  # each once
    for room, labels in zip(rooms, shown, strict=True):
        assert labels.tolist() == (room.xyz[:, 2] > 1).tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_predict_takes_folders_and_leaves_out_what_cannot_be_read(
    run: Path, scenes: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scans"
    (folder / "photos").mkdir(parents=True)
    for path in scenes:
        shutil.copy(path, folder)
    (folder / "b.ply").write_text("ply")
    (folder / "chair.obj").write_text("v 0 0 0")
    (folder / "classes.txt").write_text("wall\nfloor\n")
    (folder / ".hidden.npy").write_text("")
    arguments: list[str | Path] = ["predict", run, folder, "--output", tmp_path / "out"]
    assert segment(*arguments) == 1
    captured = capsys.readouterr()
    assert f"{folder}: 3 files; not read: chair.obj, classes.txt, photos/" in captured.out
    assert f"{folder / 'b.ply'}: " in captured.err
    assert "--on_error report leaves such files out and lists them" in captured.err
    assert segment(*arguments, "--on_error", "report", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [Path(one["scene"]).name for one in found["scenes"]] == ["first.xyz", "second.npy"]
    assert [Path(one["path"]).name for one in found["left_out"]] == ["b.ply"]
    assert segment(*arguments, "--on_error", "report", "--resume") == 0
    captured = capsys.readouterr()
    assert captured.out.count("done already") == 2
    assert f"left out: {folder / 'b.ply'}: " in captured.out.splitlines()[-1]
    assert segment("predict", run, folder / "b.ply", "--output", tmp_path / "b", "--on_error", "report") == 1
    assert f"nothing in {folder / 'b.ply'} can be read, first " in capsys.readouterr().err
    assert segment("predict", run, folder / "photos", "--output", tmp_path / "b") == 1
    assert "photos is a folder without files to read (.ply, .pcd, " in capsys.readouterr().err


def test_predict_writes_copies_of_the_files(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    room = Rooms("test")[0].select(slice(None, None, 20))
    header = laspy.LasHeader(point_format=3, version="1.2")
    header.scales, header.offsets = np.full(3, 0.001), np.array([500_000.0, 5_400_000.0, 0.0])
    survey = laspy.LasData(header)
    survey.xyz = room.xyz.double().numpy() + header.offsets
    survey.gps_time = np.arange(len(room))
    survey.write(str(tmp_path / "survey.laz"))
    rows = np.empty(len(room), [*((axis, "<f4") for axis in "xyz"), ("scan", "<i2")])
    for axis, values in zip("xyz", room.xyz.numpy().T, strict=True):
        rows[axis] = values
    rows["scan"] = np.arange(len(room))
    columns = "".join(f"property {'short' if name == 'scan' else 'float'} {name}\n" for name in rows.dtype.names)
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(room)}\n{columns}end_header\n"
    (tmp_path / "scan.ply").write_bytes(head.encode() + rows.tobytes())
    classes = load_segmenter(run).classes
    (tmp_path / "numbers.txt").write_text("".join(f"{30 - k} {name}\n" for k, name in enumerate(classes)))
    arguments: list[str | Path] = ["predict", run, tmp_path / "survey.laz", tmp_path / "scan.ply"]
    arguments += ["--output", tmp_path / "out", "--like_input", "--class_numbers", tmp_path / "numbers.txt"]
    assert segment(*arguments, "--json") == 0
    written = [Path(file).name for one in json.loads(capsys.readouterr().out) for file in one["written"]]
    assert written == ["survey.ply", "survey.npz", "survey.png", "survey.laz", "scan.ply", "scan.npz", "scan.png"]
    copy = laspy.read(tmp_path / "out" / "survey.laz")
    with np.load(tmp_path / "out" / "survey.npz") as archive:
        np.testing.assert_array_equal(copy.classification, 30 - archive["label"])
        assert len(np.unique(archive["label"])) > 1
    np.testing.assert_array_equal(copy.gps_time, survey.gps_time)
    found = read_ply(tmp_path / "out" / "scan.ply").elements["vertex"]
    np.testing.assert_array_equal(found["scan"], rows["scan"])
    with np.load(tmp_path / "out" / "scan.npz") as archive:
        np.testing.assert_array_equal(found["label"], 30 - archive["label"])
        np.testing.assert_array_equal(found["confidence"], archive["confidence"])
    (tmp_path / "out" / "survey.laz").unlink()
    assert segment(*arguments, "--resume") == 0
    assert capsys.readouterr().out.count("done already") == 1
    assert (tmp_path / "out" / "survey.laz").exists()


def test_predict_writes_the_numbers_of_benchmarks(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ScanNet's documentation of its benchmark asks: a text file of each scan with a number for each vertex."""
    room = Rooms("test")[0].select(slice(None, None, 40))
    scene = tmp_path / "test" / "scene0707_00"
    scene.mkdir(parents=True)
    np.save(scene / "coord.npy", room.xyz.numpy())
    model = load_segmenter(run)
    arguments: list[str | Path] = ["predict", run, scene, "--submission", "--json", "--output"]
    assert segment(*arguments, tmp_path / "own") == 0
    written = [Path(file).name for file in json.loads(capsys.readouterr().out)[0]["written"]]
    assert written == ["scene0707_00.ply", "scene0707_00.npz", "scene0707_00.png", "scene0707_00.txt"]
    with np.load(tmp_path / "own" / "scene0707_00.npz") as archive:
        label = archive["label"]
    assert len(np.unique(label)) > 1
    assert (tmp_path / "own" / "scene0707_00.txt").read_text() == "".join(f"{number}\n" for number in label)

    (tmp_path / "numbers.txt").write_text("".join(f"{1000 + k} {name}\n" for k, name in enumerate(model.classes)))
    assert segment(*arguments, tmp_path / "told", "--class_numbers", tmp_path / "numbers.txt") == 0
    assert np.array_equal(np.loadtxt(tmp_path / "told" / "scene0707_00.txt", dtype=int), 1000 + label)


def test_a_submission_has_the_name_of_the_scan_and_not_of_its_mesh(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mesh = tmp_path / "scene0707_00_vh_clean_2.xyz"
    np.savetxt(mesh, Rooms("test")[0].select(slice(None, None, 40)).xyz.numpy())
    assert segment("predict", run, mesh, "--submission", "--output", tmp_path / "own") == 0
    endings = {"scene0707_00.txt", *(f"scene0707_00_vh_clean_2.{ending}" for ending in ("ply", "npz", "png"))}
    assert {file.name for file in (tmp_path / "own").iterdir()} == endings
    shutil.copy(mesh, tmp_path / "scene0707_00.xyz")
    both = ["predict", run, mesh, tmp_path / "scene0707_00.xyz", "--output", tmp_path / "both"]
    assert segment(*both, "--submission") == 1
    assert "two files would have a result called 'scene0707_00.txt'" in capsys.readouterr().err


def test_predict_resumes_neither_a_submission_as_a_copy_nor_with_other_columns(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing in the names of the results tells: a copy of a PLY file stands in the place of the coloured points."""
    room = Rooms("test")[0].select(slice(None, None, 40)).xyz.numpy()
    rows = np.array([tuple(row) for row in room], [(axis, "<f4") for axis in "xyz"])
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(rows)}\n"
    head += "".join(f"property float {axis}\n" for axis in "xyz") + "end_header\n"
    (tmp_path / "scan.ply").write_bytes(head.encode() + rows.tobytes())
    arguments: list[str | Path] = ["predict", run, tmp_path / "scan.ply", "--output", tmp_path / "out"]
    assert segment(*arguments, "--submission") == 0
    assert segment(*arguments, "--submission", "--resume") == 0
    assert "done already" in capsys.readouterr().out
    assert segment(*arguments, "--like_input", "--resume") == 1
    assert "scan.npz is of another model, other options" in capsys.readouterr().err

    np.savetxt(tmp_path / "table.txt", np.c_[room, room[:, 0]])
    (tmp_path / ".columns").write_text("x y z intensity")
    arguments = ["predict", run, tmp_path / "table.txt", "--output", tmp_path / "out"]
    assert segment(*arguments) == 0
    (tmp_path / ".columns").write_text("intensity y z x ")
    assert segment(*arguments, "--resume") == 1
    assert "table.npz is of another model, other options" in capsys.readouterr().err


def test_classes_of_scannet_are_numbered_as_its_benchmarks_do() -> None:
    names = "wall floor cabinet bed chair sofa table door window bookshelf picture counter desk curtain refrigerator"
    classes = (*names.split(), "shower curtain", "toilet", "sink", "bathtub", "otherfurniture")
    ids = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39)  # of NYU40, as they are evaluated
    wanted = SimpleNamespace(class_numbers=None, submission=True, like_input=False)
    assert _class_numbers(classes, wanted) == dict(zip(classes, ids, strict=True))
    assert _class_numbers(SCANNET200, wanted)["mattress"] == 1191
    assert _class_numbers(classes[::-1], wanted)["otherfurniture"] == 0
    copies = SimpleNamespace(class_numbers=None, submission=False, like_input=True)
    assert list(_class_numbers(classes, copies).values()) == list(range(20))


def test_copies_that_cannot_be_are_refused_before_any_work(
    run: Path, scenes: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scan.ply").write_text("ply")
    arguments: list[str | Path] = ["predict", run, tmp_path / "scan.ply", "--output", tmp_path / "out"]
    (tmp_path / "numbers.txt").write_text("2 floor\n")
    assert segment(*arguments, "--class_numbers", tmp_path / "numbers.txt") == 1
    assert "they are for what --like_input and --submission write" in capsys.readouterr().err
    assert segment(*arguments, "--like_input", "--class_numbers", tmp_path / "numbers.txt") == 1
    assert re.search(r"numbers\.txt has no number for .*wall.*, which the model knows", capsys.readouterr().err)
    assert segment("predict", run, scenes[1], "--output", tmp_path / "out", "--like_input") == 1
    assert "a copy is made of .las, .laz, .ply files alone, got " in capsys.readouterr().err
    assert segment("predict", run, tmp_path / "scan.ply", "--output", tmp_path, "--like_input", "--overwrite") == 1
    assert "scan.ply is an input, and a result would have its place" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_predict_leaves_out_a_scene_whose_voxels_cannot_be_counted(
    run: Path, scenes: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scanner that measured nothing may write the largest number that there is."""
    xyz = np.load(scenes[1])
    xyz[3] = np.finfo(np.float32).max
    np.save(tmp_path / "stray.npy", xyz)
    arguments: list[str | Path] = ["predict", run, tmp_path / "stray.npy", scenes[1], "--output", tmp_path / "out"]
    assert segment(*arguments, "--on_error", "report", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [Path(one["scene"]).name for one in found["scenes"]] == ["second.npy"]
    assert [Path(one["path"]).name for one in found["left_out"]] == ["stray.npy"]
    assert "points lie more than 500 m from the others, first row 3: remove them" in found["left_out"][0]["reason"]


def test_a_scene_that_a_network_refuses_is_named_and_left_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Point Transformer V3 takes scenes of fewer voxels along an axis than others do."""
    import pc3d.tasks

    label = pc3d.tasks.segment_scene

    def refuse_long(model: Any, cloud: Any, **options: Any) -> Any:
        if float(cloud.xyz.amax()) > 1000:
            raise ValueError("a scene is too long")
        return label(model, cloud, **options)

    monkeypatch.setattr(pc3d.tasks, "segment_scene", refuse_long)
    xyz = np.random.default_rng(0).uniform(0, 2, (50, 3))
    for name, length in (("a", 2), ("b", 5000), ("c", 2)):
        np.save(tmp_path / f"{name}.npy", np.concatenate([xyz, [[length, 0, 0]]]))
    arguments = ("predict", run, tmp_path, "--output", tmp_path / "labelled")
    assert segment(*arguments, "--on_error", "report") == 0
    assert f"{tmp_path / 'b.npy'}: a scene is too long" in capsys.readouterr().out
    assert sorted(path.stem for path in (tmp_path / "labelled").glob("*.ply")) == ["a", "c"]


def test_predict_takes_prepared_scenes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A scene of the layout by itself, or all of a split; with its colours and normals, and whatever its labels."""
    split, room = tmp_path / "prepared" / "test", Rooms("test")[0].select(slice(None, None, 20))
    assert room.rgb is not None
    assert room.normal is not None
    for name, points in (("site.1", room), ("site.2", room.select(slice(0, 300)))):
        (split / name).mkdir(parents=True)
        np.save(split / name / "coord.npy", points.xyz.numpy())
        np.save(split / name / "color.npy", (255 * points.rgb).round().to(torch.uint8).numpy())
        np.save(split / name / "normal.npy", points.normal.numpy())
        np.save(split / name / "segment.npy", np.full(len(points), 99, np.int16))
    (split / "read_me").mkdir()
    arguments: list[str | Path] = ["predict", run, split, "--output", tmp_path / "out"]
    assert segment(*arguments) == 0
    text = capsys.readouterr().out
    assert f"{split}: 2 files; not read: read_me/" in text
    assert "no normals" not in text
    assert "no colours" not in text
    model = load_segmenter(run)
    expected = segment_scene(model, room.replace(rgb=(255 * room.rgb).round() / 255), use_fragments=False)
    with np.load(tmp_path / "out" / "site.1.npz") as archive:
        np.testing.assert_array_equal(archive["label"], expected.label)
    assert segment("predict", run, split / "site.2", "--output", tmp_path / "out", "--resume") == 0
    assert "done already" in capsys.readouterr().out
    np.save(split / "site.2" / "normal.npy", np.zeros((300, 3), np.float32))
    assert segment(*arguments, "--resume") == 1
    assert "an earlier state of the file" in capsys.readouterr().err


def test_predict_turns_scenes_whose_y_is_up(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[PointCloud] = []

    def noted(model: Any, cloud: PointCloud, **options: Any) -> SceneLabels:
        seen.append(cloud)
        return segment_scene(model, cloud, **options)

    monkeypatch.setattr("pc3d.tasks.segment_scene", noted)
    room = Rooms("test")[0].select(slice(None, None, 40))
    assert room.normal is not None
    # x, y, z of a frame whose y is up are x, z, -y of the room.
    both = np.hstack([room.xyz, room.normal])
    np.savetxt(tmp_path / "scan.xyzn", both[:, [0, 2, 1, 3, 5, 4]] * [1, 1, -1, 1, 1, -1])
    assert segment("predict", run, tmp_path / "scan.xyzn", "--up", "y", "--output", tmp_path / "out") == 0
    (turned,) = seen
    np.testing.assert_allclose(turned.xyz, room.xyz, atol=1e-5)
    assert turned.normal is not None
    np.testing.assert_allclose(turned.normal, room.normal, atol=1e-5)
    written = read_scene(tmp_path / "out" / "scan.ply")
    np.testing.assert_allclose(written.xyz, read_scene(tmp_path / "scan.xyzn").xyz, atol=1e-5)
    # Results of another axis are not taken for those of this one.
    assert segment("predict", run, tmp_path / "scan.xyzn", "--resume", "--output", tmp_path / "out") == 1
    assert "is of another model, other options" in capsys.readouterr().err


def test_predict_keeps_georeferenced_coordinates_and_rows_of_the_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    xyz = Rooms("test")[0].xyz[::40].double().numpy() + np.array([5e5, 4e6, 100.0])
    xyz[5] = np.nan
    np.save(tmp_path / "site.npy", xyz)
    assert segment("predict", run, tmp_path / "site.npy", "--output", tmp_path / "out") == 1
    assert "1 of 2564 points are not finite; drop_invalid=True (--drop_invalid of a" in capsys.readouterr().err
    assert segment("predict", run, tmp_path / "site.npy", "--output", tmp_path / "out", "--drop_invalid") == 0
    with np.load(tmp_path / "out" / "site.npz") as archive:
        label = archive["label"]
    assert len(label) == len(xyz)
    assert (label == -1).nonzero()[0].tolist() == [5]
    raw = (tmp_path / "out" / "site.ply").read_bytes()
    assert b"property double x" in raw
    body = raw[raw.index(b"end_header\n") + 11 :]
    rows = np.frombuffer(body, dtype=[("xyz", "<f8", 3), ("rgb", "u1", 3), ("label", "<i4"), ("confidence", "<f4")])
    np.testing.assert_allclose(rows["xyz"], np.delete(xyz, 5, axis=0), atol=1e-3)
    np.testing.assert_array_equal(rows["label"], np.delete(label, 5))


def test_units_of_a_file_are_told(
    run: Path, scenes: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "second.npy", 1000 * np.load(scenes[1]))
    assert segment("predict", run, tmp_path / "second.npy", "--output", tmp_path / "mm", "--scale", "0.001") == 0
    assert segment("predict", run, scenes[1], "--output", tmp_path / "m") == 0
    assert "coordinates must be metres" not in capsys.readouterr().out
    assert segment("predict", run, tmp_path / "second.npy", "--output", tmp_path / "out") == 0
    assert re.search(r"is [\d,]{5} m long: coordinates must be metres \(--scale 0.001", capsys.readouterr().out)
    found = [np.load(tmp_path / unit / "second.npz")["label"] for unit in ("mm", "m")]
    assert (found[0] == found[1]).mean() > 0.99  # points on a voxel's border may fall to either side


def test_predict_refuses_before_any_work(
    run: Path, scenes: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "empty.ply"
    vertices = [f"property float {axis}" for axis in "xyz"]
    broken.write_text("\n".join(["ply", "format ascii 1.0", "element vertex 0", *vertices, "end_header", ""]))
    cases: list[tuple[list[str | Path], str]] = [
        ([tmp_path / "absent.ply"], "does not exist"),
        ([scenes[0], scenes[0]], "two files would have a result called 'first.ply'"),
        ([scenes[0], "--scale", "0"], "scale must be positive"),
        ([broken, "--max_points", "1"], "max_points must be at least 2, got 1"),
        ([broken, "--context", "-1"], "context must not be negative, got -1.0"),
    ]
    for arguments, message in cases:
        assert segment("predict", run, *arguments, "--output", tmp_path / "out") == 1
        assert message in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "first.npz").write_bytes(b"mine")
    assert segment("predict", run, scenes[0], "--output", tmp_path / "out") == 1
    assert "add --overwrite" in capsys.readouterr().err
    assert segment("predict", tmp_path, scenes[0], "--output", tmp_path / "new") == 1
    assert "holds no segmentation model" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert segment("predict", run, broken, "--output", tmp_path / "new") == 1
    assert "empty.ply: holds no points" in capsys.readouterr().err


# ---- the verb ----------------------------------------------------------------------------------------------------


def test_help_and_unknown_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert segment() == 2
    assert segment("--help") == 0
    assert segment("evaluate") == 2
    assert "did you mean 'eval'?" in capsys.readouterr().err
    for verb in ("train", "eval", "fold", "predict"):
        assert segment(verb, "--help") == 0
        assert f"usage: pc3d segment {verb}" in capsys.readouterr().out
    assert segment("train", "--config", "rooms_small_unett", "--output", "nowhere") == 1
    assert "did you mean 'rooms_small_unet'" in capsys.readouterr().err


def test_only_the_value_of_config_names_a_configuration() -> None:
    name = "rooms_small_unet"
    path = str(CONFIGS / "segment" / f"{name}.yaml")
    assert with_config(["--config", name, "--output", name], "segment") == ["--config", path, "--output", name]
    assert with_config([f"--config={name}", "--encoder", name], "segment") == [f"--config={path}", "--encoder", name]
    second = ["--config", path, f"--config={name}"]
    assert with_config(["--config", name, *second], "segment") == [
        "--config",
        path,
        "--config",
        path,
        f"--config={path}",
    ]
