"""``pc3d classify``: train and eval on real objects, and what they refuse."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml

from pc3d import load_encoder
from pc3d.cli._training import shipped_configs
from pc3d.cli.classify import build_parser
from pc3d.cli.main import main
from pc3d.data import Household, ObjectSet, TurnUp, read_points
from pc3d.evaluation import read_rows
from pc3d.methods.progress import RunBar
from pc3d.models import PointClassifier, PointViT, save_encoder
from pc3d.ops import farthest_point_sample
from pc3d.tasks import Classification, FineTuning, load_classifier

CONFIGS = Path(__file__).parents[2] / "pc3d" / "configs"
MESHES = Path(__file__).parents[1] / "assets" / "meshes"
ENCODER = {
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "num_groups": 12,
    "group_size": 8,
    "tokenizer_dims": [8, 12, 16],
}
TINY = f"""
seed: 3
model:
  backbone:
    class_path: pc3d.models.PointViT
    init_args: {json.dumps({**ENCODER, "num_cls_tokens": 1})}
  optimisation: {{learning_rate: 0.005, warmup_epochs: 1}}
data:
  train: {{class_path: pc3d.data.Household, init_args: {{labelled_only: true, num_points: 128}}}}
  test: {{class_path: pc3d.data.Household, init_args: {{split: test, labelled_only: true, num_points: 128}}}}
  train_transforms:
    - {{class_path: pc3d.data.RandomSubsample, init_args: {{num_points: 96}}}}
    - {{class_path: pc3d.data.ScaleTranslate}}
  eval_transforms:
    - {{class_path: pc3d.data.FirstPoints, init_args: {{num_points: 96}}}}
  validation_fraction: 0.2
trainer: {{max_epochs: 2, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}}
"""


def classify(*arguments: str | Path) -> int:
    return main(["classify", *map(str, arguments)])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    return save_encoder(PointViT(**ENCODER, num_cls_tokens=2), tmp_path_factory.mktemp("pretrained"))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, config: Path, pretrained: Path) -> Path:
    folder = tmp_path_factory.mktemp("run") / "a"
    options = ["--encoder", pretrained, "--protocol", "legacy", "--mode=linear"]
    assert classify("train", "--config", config, "--output", folder, *options) == 0
    return folder


def test_a_run_folder_holds_the_model_and_its_judgement(run: Path, pretrained: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "last.ckpt", "metrics.csv", "tensorboard", "encoder", "head", "eval"} <= names
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert (resolved["model"]["encoder"], resolved["model"]["mode"]) == (str(pretrained), "linear")
    assert resolved["data"]["protocol"] == "legacy"
    assert isinstance(load_encoder(run), PointViT)
    model, known = load_classifier(run)
    result = json.loads((run / "eval" / "test.json").read_text())
    data = Household("test", num_points=96, labelled_only=True)
    with torch.no_grad():
        hits = [int(model(data.load(i).xyz[None])[0].argmax()) == int(data.labels[i]) for i in range(len(data))]
    assert result["scores"]["overall_accuracy"] == pytest.approx(sum(hits) / len(hits))
    assert (result["num_train"], result["num_validation"], result["num_test"]) == (291, 74, 124)
    assert result["start"] == f"weights of {pretrained}"
    assert result["selection"]["legacy"]["test"] >= result["scores"]["overall_accuracy"]
    assert known["training"]["epoch"] == result["selection"]["epoch"]
    rows = (run / "metrics.csv").read_text().splitlines()
    assert {"validation/accuracy", "test/accuracy", "train/loss_epoch"} <= set(rows[0].split(","))


def test_eval_repeats_the_judgement_and_adds_votes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((run / "eval" / "test.json").read_text())
    assert classify("eval", run) == 1
    assert "add --overwrite" in capsys.readouterr().err
    rows = run / "rows"
    assert classify("eval", run, "--overwrite", "--results", rows, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((run / "eval" / "test.json").read_text()) == before
    assert classify("eval", run, "--votes", "2", "--official_best_of", "3") == 0
    assert "OFFICIAL BEST OF N" in capsys.readouterr().out
    voted = json.loads((run / "eval" / "test_votes.json").read_text())
    assert voted["scores"] == before["scores"]
    assert voted["votes"]["best"] >= voted["votes"]["mean"]
    assert (voted["votes"]["votes"], voted["votes"]["repeats"]) == (2, 3)
    kept = {row.selection: row for row in read_rows([rows])}
    assert set(kept) == {"validation", "legacy"}
    assert kept["validation"].metrics["overall_accuracy"] == before["scores"]["overall_accuracy"]
    assert kept["validation"].config["model"]["mode"] == "linear"
    assert "root" not in json.dumps(kept["validation"].config)
    # One name for one data set, whichever verb judges on it.
    assert main(["probe", "--encoder", "descriptor", "--num_points", "16", "--C", "1", "--results", str(rows)]) == 0
    assert {row.data for row in read_rows([rows])} == {"household"}


def test_predict_names_the_class_of_files_whatever_their_unit_and_place(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, known = load_classifier(run)
    expected = []
    (tmp_path / "files").mkdir()
    for index, xyz in enumerate(Household("test", num_points=500).load(i).xyz for i in range(5)):
        np.save(tmp_path / "files" / f"{index}.npy", 40 * xyz.numpy() + 7)
        box = xyz - (xyz.amax(0) + xyz.amin(0)) / 2
        few = box[farthest_point_sample(xyz[None], 96)[0]] / box.norm(dim=1).max()
        with torch.no_grad():
            expected.append(model(few[None]).softmax(1)[0])
    command = ["predict", run, tmp_path / "files", "--batch_size", "2"]
    capsys.readouterr()
    assert classify(*command, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in found] == ["0", "1", "2", "3", "4"]
    assert [one["predicted"] for one in found] == [known["classes"][int(share.argmax())] for share in expected]
    assert [one["confidence"] for one in found] == pytest.approx([float(share.max()) for share in expected], abs=1e-3)
    assert classify(*command, "--output", tmp_path / "found.csv") == 0
    rows = list(csv.DictReader((tmp_path / "found.csv").open()))
    assert [(row["id"], row["predicted"], row["label"]) for row in rows] == [
        (one["id"], one["predicted"], "") for one in found
    ]
    assert classify(*command, "--output", tmp_path / "found.csv") == 1
    assert "add --overwrite" in capsys.readouterr().err
    assert classify("predict", run, "household", "--output", tmp_path / "test.csv") == 0
    rows = list(csv.DictReader((tmp_path / "test.csv").open()))
    judged = json.loads((run / "eval" / "test.json").read_text())["scores"]["overall_accuracy"]
    assert sum(row["label"] == row["predicted"] for row in rows) / len(rows) == pytest.approx(judged)


def predicted(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    capsys.readouterr()
    assert classify("predict", *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def opinions(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[tuple[str, float]]:
    return [(one["predicted"], one["confidence"]) for one in predicted(capsys, *arguments)]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objects")
    for index in range(4):
        np.save(folder / f"{index}.npy", Household("test", num_points=300).load(index).xyz.numpy())
    return folder


def test_predict_does_not_wait_for_lightning(run: Path, tmp_path: Path, imported_by: Callable[..., set[str]]) -> None:
    np.save(tmp_path / "a.npy", Household("test", num_points=500).load(0).xyz.numpy())
    found = imported_by("classify", "predict", run, tmp_path / "a.npy")
    assert "torch" in found
    assert not {"pytorch_lightning", "torchmetrics", "matplotlib", "sklearn"} & found


def test_predict_turns_files_upright(
    run: Path, objects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upright = opinions(capsys, run, objects)
    lying, again = tmp_path / "lying", TurnUp("z", "y")
    lying.mkdir()
    for path in objects.iterdir():
        np.save(lying / path.name, again(read_points(path), torch.Generator()).xyz.numpy())
    assert opinions(capsys, run, lying) != upright
    assert opinions(capsys, run, lying, "--up", "y") == upright
    assert opinions(capsys, run, objects, "--up", "z") == upright
    # A GLB file lies, as its standard has it, and is taken as stored until it is said.
    bread = MESHES / "bread.glb"
    np.save(tmp_path / "bread.npy", TurnUp("y", "z")(read_points(bread), torch.Generator()).xyz.numpy())
    (found,) = predicted(capsys, run, bread, "--up", "y")
    (expected,) = predicted(capsys, run, tmp_path / "bread.npy")
    assert found == expected
    assert found["id"] == "bread"
    # A run whose data have y up takes files that way.
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    settings["data"]["train"]["class_path"] = "pc3d.data.ShapeNet55"
    config.write_text(yaml.safe_dump(settings))
    assert opinions(capsys, tmp_path / "run", lying, "--up", "y") == opinions(capsys, run, lying)
    assert opinions(capsys, tmp_path / "run", objects, "--up", "z") == opinions(capsys, run, lying)
    # So does one whose shards say it; of shards that are gone it is told what is taken.
    root = tmp_path / "shards"
    settings["data"]["train"] = {"class_path": "pc3d.data.ObjectSet", "init_args": {"root": str(root)}}
    config.write_text(yaml.safe_dump(settings))
    root.mkdir()
    (root / "train.json").write_text('{"items": [], "up": "y"}')
    assert opinions(capsys, tmp_path / "run", objects, "--up", "z") == opinions(capsys, run, lying)
    shutil.rmtree(root)
    assert classify("predict", tmp_path / "run", objects, "--up", "z") == 0
    told = capsys.readouterr()
    assert f"note: {root}, on which {tmp_path / 'run'} was trained, is not there" in told.out + told.err
    assert classify("predict", run, objects, "--up", "x") == 2
    for name in ("my_sets.Chairs", "pc3d.data.Chairs"):
        settings["data"]["train"] = {"class_path": name}
        config.write_text(yaml.safe_dump(settings))
        assert classify("predict", tmp_path / "run", objects, "--up", "z") == 1
        told = capsys.readouterr().err
        assert f"up: {config} names the data set {name}, which says which axis points up in the run" in told
        assert f"put the folder of {name.split('.')[0]} on PYTHONPATH; or leave the option out" in told


def test_predict_takes_as_many_points_as_are_asked_for(
    run: Path, objects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, known = load_classifier(run)
    xyz = Household("test", num_points=300).load(0).xyz
    np.save(tmp_path / "a.npy", xyz.numpy())
    box = xyz - (xyz.amax(0) + xyz.amin(0)) / 2
    order = farthest_point_sample(xyz[None], 300)[0]
    for number in ("64", "300", "null"):
        seen = box if number == "null" else box[order[: int(number)]]
        seen = seen - (seen.amax(0) + seen.amin(0)) / 2
        with torch.no_grad():
            share = model(seen[None] / seen.norm(dim=1).max()).softmax(1)[0]
        ((name, confidence),) = opinions(capsys, run, tmp_path / "a.npy", "--num_points", number)
        assert (name, confidence) == (
            known["classes"][int(share.argmax())],
            pytest.approx(float(share.max()), abs=1e-3),
        )
    # Of a mesh, as many are sampled.
    assert predicted(capsys, run, MESHES / "crate.stl", "--num_points", "10001")
    for number, message in (
        ("301", "num_points=301 exceeds the 300 points of the cloud"),
        ("0", "num_points must be at least 1, got 0"),
    ):
        assert classify("predict", run, objects, "--num_points", number) == 1
        assert message in capsys.readouterr().err
    assert classify("predict", run, "household", "--num_points", "5000") == 1
    assert "num_points" in capsys.readouterr().err
    few = opinions(capsys, run, "household", "--num_points", "96")
    assert few == opinions(capsys, run, "household")


def test_predict_reads_as_many_stored_points_as_the_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of shards that store more: farthest points of all of them would be others than eval's."""
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    farthest = {"class_path": "pc3d.data.FarthestPointSample", "init_args": {"num_points": 96, "start": "first"}}
    settings["data"]["eval_transforms"] = [farthest]
    config.write_text(yaml.safe_dump(settings))
    model, known = load_classifier(run)
    clouds = torch.stack([cloud.xyz for cloud in Household("test", num_points=128)])
    order = farthest_point_sample(clouds, 96)
    with torch.no_grad():
        share, predicted_class = model(clouds.gather(1, order[..., None].expand(-1, -1, 3))).softmax(1).max(1)
    found = opinions(capsys, tmp_path / "run", "household")
    assert [name for name, _ in found] == [known["classes"][k] for k in predicted_class.tolist()]
    assert [confidence for _, confidence in found] == pytest.approx(share.tolist(), abs=1e-3)


def test_predict_deals_with_files_that_cannot_be_used(
    run: Path, objects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, output = tmp_path / "files", tmp_path / "found.csv"
    shutil.copytree(objects, files)
    usual = predicted(capsys, run, files)
    whole = np.load(files / "2.npy")
    holed = np.insert(whole, [5, 250], np.nan, axis=0)
    np.save(files / "2.npy", holed)
    command = ["predict", run, files, "--output", output, "--batch_size", "3"]
    assert classify(*command) == 1
    told = capsys.readouterr().err
    assert f"{files / '2.npy'}: 2 of 302 points are not finite" in told
    assert (
        "--drop_invalid of a command) leaves them out; --on_error report leaves such files out and lists them" in told
    )
    assert not output.exists()
    assert predicted(capsys, run, files, "--drop_invalid") == usual
    (one,) = predicted(capsys, run, files / "2.npy", "--drop_invalid")
    assert one == usual[2]
    assert classify("predict", run, "household", "--drop_invalid") == 1
    assert "drop_invalid: it is for files of points, and 'household' is a Household" in capsys.readouterr().err

    (files / "0.npy").write_bytes((files / "0.npy").read_bytes()[:300])
    np.save(files / "3.npy", whole[:40])
    (files / "list.xlsx").write_text("a stranger")
    assert classify(*command) == 1
    assert f"{files / 'list.xlsx'}: has the ending '.xlsx'" in capsys.readouterr().err
    assert classify(*command, "--on_error", "report") == 0
    told = capsys.readouterr().out
    assert f"{output}: 1 objects" in told
    lines = [
        f"left out: {files / 'list.xlsx'}: has the ending '.xlsx'",
        f"left out: {files / '0.npy'}: is truncated: an array of ",
        f"left out: {files / '2.npy'}: 2 of 302 points are not finite",
        f"left out: {files / '3.npy'}: num_points=96 exceeds the 40 points of the cloud: ask for fewer",
    ]
    assert all(line in told for line in lines)
    assert [row["id"] for row in csv.DictReader(output.open())] == ["1"]
    found = predicted(capsys, run, files, "--on_error", "report", "--drop_invalid")
    assert found["objects"] == usual[1:3]
    assert [Path(file["path"]).name for file in found["left_out"]] == ["list.xlsx", "0.npy", "3.npy"]
    # With all files in order, nothing is left out, and nothing is otherwise.
    assert predicted(capsys, run, objects, "--on_error", "report") == {"objects": usual, "left_out": []}
    assert classify("predict", run, files / "0.npy", "--on_error", "report") == 1
    assert f"nothing in {files / '0.npy'} can be read, first {files / '0.npy'}:" in capsys.readouterr().err
    assert classify("predict", run, files, "--on_error", "skip") == 2


def test_predict_knows_the_classes_of_files_beside_bad_ones(
    run: Path, objects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index, name in enumerate(("bed", "chair", "chair")):
        (tmp_path / name).mkdir(exist_ok=True)
        shutil.copy(objects / f"{index}.npy", tmp_path / name)
    (tmp_path / "bed" / "bad.ply").write_text("ply")
    found = predicted(capsys, run, tmp_path, "--on_error", "report")
    assert [(one["id"], one["label"]) for one in found["objects"]] == [("0", "bed"), ("1", "chair"), ("2", "chair")]
    assert [Path(file["path"]).name for file in found["left_out"]] == ["bad.ply"]


def test_predict_takes_files_and_folders_as_words(
    run: Path, objects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = predicted(capsys, run, objects)
    for index, name in enumerate(("bed", "chair")):
        (tmp_path / "known" / name).mkdir(parents=True)
        shutil.copy(objects / f"{index}.npy", tmp_path / "known" / name / f"{name}.npy")
    (tmp_path / "other").mkdir()
    shutil.copy(objects / "3.npy", tmp_path / "other" / "2.npy")
    (tmp_path / "bad.ply").write_text("ply")
    words = [objects / "2.npy", tmp_path / "known", tmp_path / "other" / "2.npy"]
    found = predicted(capsys, run, *words, "--batch_size", "3")
    ids = [str(words[0]), "bed", "chair", str(words[2])]  # two files of one name
    labels = [None, "bed", "chair", None]
    assert found == [
        {**usual[row], "id": name, "label": label} for row, name, label in zip((2, 0, 1, 3), ids, labels, strict=True)
    ]
    found = predicted(capsys, run, tmp_path / "bad.ply", objects / "1.npy", "--on_error", "report")
    assert found["objects"] == usual[1:2]
    assert [file["path"] for file in found["left_out"]] == [str(tmp_path / "bad.ply")]
    np.save(tmp_path / "few.npy", np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32))
    shutil.copy(objects / "0.npy", tmp_path / "whole.npy")
    found = predicted(
        capsys, run, tmp_path / "few.npy", tmp_path / "whole.npy", "--num_points", "null", "--on_error", "report"
    )
    assert [one["id"] for one in found["objects"]] == ["whole"]
    assert found["left_out"][0]["path"] == str(tmp_path / "few.npy")
    assert found["left_out"][0]["reason"].startswith("clouds have 5 points, fewer than ")
    for wrong, message in (
        (["household", objects], "objects: 'household' is a Household, whose objects are prepared in another way"),
        ([objects, "houshold"], "objects: 'houshold' is no file, no folder and no embedded data set ('household')"),
        ([objects / "0.npy", "--variant", "obj_bg"], "variant: 'obj_bg' is one of ScanObjectNN"),
    ):
        assert classify("predict", run, *wrong) == 1
        assert message in capsys.readouterr().err
    assert classify("predict", run) == 2


def test_predict_goes_on_after_an_interruption(
    run: Path, objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward, sizes = PointClassifier.forward, list[int]()
    stop_at = 2

    def stopped(self: PointClassifier, xyz: torch.Tensor) -> torch.Tensor:
        if len(sizes) == stop_at:
            raise KeyboardInterrupt
        sizes.append(len(xyz))
        return forward(self, xyz)

    usual = predicted(capsys, run, objects)
    monkeypatch.setattr(PointClassifier, "forward", stopped)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for place, more in (("out", ["--output", tmp_path / "out" / "found.csv"]), ("cache/pc3d", [])):
        command: list[str | Path] = ["predict", run, objects, "--batch_size", "1", *more, "--json"]
        stop_at = 2
        sizes.clear()
        assert classify(*command) == 130
        (kept,) = (tmp_path / place).iterdir()
        assert f"interrupted; {kept} keeps what was computed: the same command goes on" in capsys.readouterr().err
        stop_at = -1
        sizes.clear()
        assert classify(*command, "--up", "z") == 0  # another choice neither finds nor removes it
        assert (len(sizes), kept.exists()) == (4, True)
        sizes.clear()
        capsys.readouterr()
        assert classify(*command, *(["--overwrite"] if more else [])) == 0
        assert json.loads(capsys.readouterr().out) == usual
        assert (len(sizes), kept.exists()) == (2, False)


def test_eval_goes_on_after_an_interruption(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = PointClassifier.forward
    sizes: list[int] = []
    stop_at = 8

    def interrupted(self: PointClassifier, xyz: torch.Tensor) -> torch.Tensor:
        if len(sizes) == stop_at:
            raise KeyboardInterrupt
        sizes.append(len(xyz))
        return forward(self, xyz)

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    arguments: list[str | Path] = ["eval", run, "--batch_size", "50", "--json", "--quiet"]
    votes, fewer = ["--votes", "2", "--official_best_of", "2"], ["--votes", "2"]
    assert classify(*arguments, *votes, "--output", tmp_path / "alone") == 0
    expected = json.loads(capsys.readouterr().out)
    arguments += ["--output", tmp_path / "out", "--results", tmp_path / "rows"]
    monkeypatch.setattr(PointClassifier, "forward", interrupted)
    assert classify(*arguments, *votes) == 130
    (kept,) = (tmp_path / "out").iterdir()
    assert f"interrupted; {kept} keeps what was computed: the same command goes on" in capsys.readouterr().err
    stop_at = -1
    sizes.clear()
    assert classify(*arguments, *fewer) == 0
    assert sizes == 3 * [50, 50, 24]  # a command with another choice neither finds nor removes it
    (tmp_path / "out" / "test_votes.json").unlink()
    assert list((tmp_path / "out").iterdir()) == [kept]
    sizes.clear()
    with monkeypatch.context() as patch:
        patch.setattr("pc3d.evaluation.write_rows", stop)
        assert classify(*arguments, *votes) == 130
    assert sizes == [24, *2 * [50, 50, 24]]  # of one view of each object and four votes
    sizes.clear()
    capsys.readouterr()
    assert classify(*arguments, *votes) == 0
    assert sizes == []
    assert json.loads(capsys.readouterr().out) == expected
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["test_votes.json"]


def test_a_run_that_was_interrupted_while_judged_is_judged_by_resuming(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    folder, short = tmp_path / "a", ["--config", config, "--trainer.max_epochs", "1"]
    resume, several = ["--output", folder, "--resume"], ["--output", tmp_path / "b", "--seeds", "4"]
    with monkeypatch.context() as patch:
        patch.setattr("pc3d.evaluation.predict_logits", stop)
        rows = ["--results", str(tmp_path / "my rows"), "--method", "tiny"]
        assert classify("train", *short, "--output", folder, *rows) == 130
        told = ["pc3d", "classify", "train", "--output", str(folder), "--resume", *rows]
        assert f"interrupted; go on with: {shlex.join(told)}\n" in capsys.readouterr().err
        for more, same in (([], "the same command"), (["--overwrite"], "the same command without --overwrite")):
            assert classify("train", *short, *several, *more) == 130
            assert f"{tmp_path / 'b'} keeps what is done: {same} goes on" in capsys.readouterr().err
    before = load_classifier(folder)[0].state_dict()
    assert classify("train", *resume) == 0
    assert classify("train", *short, *several) == 0
    after = load_classifier(folder)[0].state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())
    assert json.loads((folder / "eval" / "test.json").read_text())["num_test"] == 124
    assert (tmp_path / "b" / "seeds.json").exists()


def test_nothing_of_runs_that_are_to_be_replaced_is_kept(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The interruption comes in the first of two seeds; the second one's turn has not come."""
    folder = tmp_path / "a"
    command = ["train", "--config", config, "--output", folder, "--trainer.max_epochs", "1", "--seeds", "4", "5"]
    assert classify(*command) == 0
    results = [folder / f"seed_{seed}" / "eval" / "test.json" for seed in (4, 5)]
    assert classify(*command, "--overwrite", "--label_smoothing", "much") == 2
    assert all(result.exists() for result in results)

    def stop(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    other = [*command, "--label_smoothing", "0.3"]
    with monkeypatch.context() as patch:
        patch.setattr("pc3d.cli._training.train", stop)
        assert classify(*other, "--overwrite") == 130
        assert "the same command without --overwrite goes on" in capsys.readouterr().err
    assert not any(result.exists() for result in results)
    assert classify(*other) == 0
    assert "finished already" not in capsys.readouterr().out
    for result in results:
        assert yaml.safe_load((result.parents[1] / "config.yaml").read_text())["model"]["label_smoothing"] == 0.3


def test_ctrl_c_in_the_last_step_leaves_a_whole_run_and_ends_the_command(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The request comes while the epoch is validated; two runs were to come, and neither is judged."""
    judge, folder = Classification.judge, tmp_path / "a"

    def press(self: Classification, *args: Any, **options: Any) -> None:
        judge(self, *args, **options)
        if not self.trainer.sanity_checking and not signal_sent:
            signal_sent.append(True)
            signal.raise_signal(signal.SIGINT)

    signal_sent: list[bool] = []
    monkeypatch.setattr(Classification, "judge", press)
    command = ["train", "--config", config, "--output", folder, "--trainer.max_epochs", "1", "--seeds", "4", "5"]
    assert classify(*command) == 130
    assert f"interrupted; {folder} keeps what is done: the same command goes on" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["seed_4"]
    assert load_classifier(folder / "seed_4")[1]["training"]["epoch"] == 1
    assert not (folder / "seed_4" / "eval").exists()
    assert classify(*command) == 0
    assert len(json.loads((folder / "seeds.json").read_text())["results"]) == 2


def test_training_with_validation_shows_its_bar_in_a_terminal(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning validates a little before the first step, when nobody knows how long that will take."""
    screen = io.StringIO()
    console = {"file": screen, "force_terminal": True, "width": 200, "no_color": True}
    monkeypatch.setattr("pc3d.methods.run.run_progress", lambda: RunBar(console_kwargs=console))
    options = ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "true", "--trainer.log_every_n_steps", "1"]
    assert classify("train", "--config", config, "--output", tmp_path / "a", *options) == 0
    shown = screen.getvalue()
    for part in ("it/s", "run_left: -:--:--", "run_left: 0:00:0", "memory: "):
        assert part in shown, part


def test_a_run_goes_on_by_its_own_configuration_and_ends_the_same(config: Path, tmp_path: Path) -> None:
    assert classify("train", "--config", config, "--output", tmp_path / "whole") == 0
    short = ["--trainer.max_epochs", "1", "--model.optimisation.schedule_epochs", "2"]
    options = ["--model.optimisation.schedule_epochs", "2", "--trainer.max_epochs", "2"]
    assert classify("train", "--config", config, "--output", tmp_path / "b", *short) == 0
    assert classify("train", "--output", tmp_path / "b", "--resume", *options) == 0
    ours, theirs = (load_classifier(tmp_path / name)[0].state_dict() for name in ("whole", "b"))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_several_seeds_are_runs_of_their_own_and_what_is_finished_is_kept(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, rows = tmp_path / "a", tmp_path / "rows"
    command = ["train", "--config", config, "--output", folder, "--trainer.max_epochs", "1", "--protocol", "legacy"]
    seeds = ["--seeds", "4", "5"]
    assert classify(*command, *seeds, "--results", rows, "--method", "tiny", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    each = [json.loads((folder / f"seed_{seed}" / "eval" / "test.json").read_text()) for seed in (4, 5)]
    assert [result["seed"] for result in each] == [4, 5]
    assert found["results"] == each
    accuracies = [result["scores"]["overall_accuracy"] for result in each]
    first, second = (load_classifier(folder / f"seed_{seed}")[0].state_dict() for seed in (4, 5))
    assert not all(torch.equal(first[name], second[name]) for name in first)
    summary = found["summary"]["overall_accuracy"]
    spread = abs(accuracies[0] - accuracies[1]) / 2**0.5
    assert (summary["mean"], summary["n"]) == (pytest.approx(sum(accuracies) / 2), 2)
    assert summary["standard_deviation"] == pytest.approx(spread)
    # Student's t of one degree of freedom at 97.5 %: tan(0.475 pi).
    half = math.tan(0.475 * math.pi) * spread / 2**0.5
    assert summary["interval"] == pytest.approx([sum(accuracies) / 2 - half, sum(accuracies) / 2 + half])
    assert [entry["selection"] for entry in found["summaries"]] == ["validation", "legacy"]
    assert json.loads((folder / "seeds.json").read_text()) == found
    kept = {(row.method, row.seed, row.selection): row for row in read_rows([rows])}
    assert set(kept) == {("tiny", seed, chosen) for seed in (4, 5) for chosen in ("validation", "legacy")}
    assert kept["tiny", 5, "validation"].metrics["overall_accuracy"] == accuracies[1]

    shutil.rmtree(folder / "seed_5")
    assert classify(*command, *seeds) == 0
    said = capsys.readouterr().out
    assert f"{folder / 'seed_4'}: finished already" in said
    assert "over 2 seed(s) 4, 5" in said
    again = json.loads((folder / "seeds.json").read_text())["results"]
    assert [result["scores"] for result in again] == [result["scores"] for result in each]
    for more, message in (
        (["--seeds", "4", "4"], "seeds: must be different numbers"),
        ([*seeds, "--seed", "1"], "--seeds does not go with --seed: give one of the two"),
        ([*seeds, "--resume"], "--seeds does not go with --resume"),
        (
            [*seeds, "--label_smoothing", "0.1"],
            "seed_4 is a finished seed of another configuration, which differs in model",
        ),
        (["--data.test", "null", "--protocol", "held_out", "--results", rows], "results: they are of the test split"),
        (["--data.test", "null", "--protocol", "held_out", "--seeds", "6"], "seeds: they are of the test split"),
    ):
        assert classify(*command, *more) == 1
        assert message in capsys.readouterr().err
    assert classify("train", "--config", config, *seeds) == 1
    assert "--seeds needs --output" in capsys.readouterr().err
    (tmp_path / "several.yaml").write_text(f"{TINY}seeds: [1, 2]\n")
    assert classify("train", "--config", tmp_path / "several.yaml", "--output", tmp_path / "new") == 1
    assert "several are an option of the command line" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", shipped_configs("classify"))
def test_shipped_configurations_are_valid(name: str) -> None:
    path = CONFIGS / "classify" / f"{name}.yaml"
    options = build_parser().parse_args(["--config", str(path), "--output", "nowhere"])
    assert options.trainer.gradient_clip_val == 10
    assert options.model.backbone.init_args.num_cls_tokens == 1
    # The few objects of an episode choose nothing.
    assert 0 < options.data.validation_fraction < 1 or (
        name.endswith("fewshot") and not options.data.validation_fraction
    )


@pytest.fixture(scope="module")
def own_objects(tmp_path_factory: pytest.TempPathFactory, import_script: Callable[[str], ModuleType]) -> Path:
    """Files of a user, in class sub-folders, converted as docs/finetune.md says: two kinds of real objects."""
    files, shards = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("shards")
    for split, each in (("train", 12), ("test", 5)):
        source = Household(split, num_points=2048, labelled_only=True)
        for name in ("chair", "lamp"):
            (files / split / name).mkdir(parents=True)
            for row in (source.labels == source.classes.index(name)).nonzero().flatten()[:each].tolist():
                np.save(files / split / name / f"{row}.npy", 3 * source.load(row).xyz.numpy() + 1)
    options = ["--num_points", "2048", "--normalize", "--workers", "1"]
    import_script("data_tools/convert.py").main(["folder", str(files), str(shards), *options])
    return shards


@pytest.mark.parametrize("mode", ["linear", "mlp3", "full"])
def test_objects_of_a_user_in_every_mode(own_objects: Path, tmp_path: Path, mode: str) -> None:
    smaller = {"embed_dim": 32, "num_groups": 16, "group_size": 16, "tokenizer_dims": [8, 16, 32]}
    options = [f"--model.backbone.init_args.{name}={json.dumps(value)}" for name, value in smaller.items()]
    options += ["--trainer.max_epochs=2", "--trainer.enable_progress_bar=false", "--data.batch_size=9"]
    command = ["train", "--config", "objects_small", "--root", own_objects, "--output", tmp_path / "a", "--mode", mode]
    assert classify(*command, *options) == 0
    model, known = load_classifier(tmp_path / "a")
    result = json.loads((tmp_path / "a" / "eval" / "test.json").read_text())
    assert (known["mode"], known["classes"], result["data"]) == (mode, ["chair", "lamp"], own_objects.name)
    assert (result["num_train"] + result["num_validation"], result["num_test"], result["votes"]) == (24, 10, None)
    # As docs/finetune.md says of files of any size and place, converted clouds are in the unit sphere.
    data = ObjectSet(own_objects, "test", num_points=1024)
    clouds = torch.stack([data.load(i).xyz for i in range(10)])
    assert clouds.norm(dim=2).max() == pytest.approx(1, abs=0.01)
    with torch.no_grad():
        hits = [int(model(cloud[None])[0].argmax()) for cloud in clouds] == data.labels.numpy()
    assert result["scores"]["overall_accuracy"] == pytest.approx(hits.mean())


def test_published_recipes_are_the_published_ones() -> None:
    for name, groups, points, more in (
        ("modelnet40_1k", 64, 1024, 1200),
        ("modelnet40_8k", 512, 8192, 8192),
        ("scanobjectnn", 128, 2048, None),
    ):
        path = CONFIGS / "classify" / f"{name}.yaml"
        options = build_parser().parse_args(["--config", str(path), "--output", "nowhere"])
        encoder = options.model.backbone.init_args
        assert (encoder.num_groups, encoder.group_size, encoder.num_points) == (groups, 32, points)
        assert (encoder.depth, encoder.embed_dim, encoder.drop_path) == (12, 384, 0.1)
        assert (options.data.batch_size, options.data.eval_batch_size, options.trainer.max_epochs) == (32, 64, 300)
        steps = {step.class_path.rpartition(".")[2]: step.init_args for step in options.data.train_transforms}
        assert steps["RandomSubsample"].num_points == points
        assert "ScaleTranslate" in steps
        assert ("Normalize" in steps) == (name != "scanobjectnn")
        assert steps["FarthestPointSample"].num_points == more if more else "FarthestPointSample" not in steps


@pytest.mark.parametrize("mode", ["linear", "mlp3", "full"])
def test_every_mode_of_a_recipe_has_its_rate(mode: str) -> None:
    """Point-CMAE's released code: the frozen modes learn at another rate with 8,192 points and in few-shot episodes.

    In small recipes the frozen modes have few steps, and a higher rate.
    """
    for name, frozen in (
        ("modelnet40_1k", 1e-4),
        ("modelnet40_8k", 5e-4),
        ("modelnet40_fewshot", 1e-3),
        ("scanobjectnn", 1e-4),
        ("scanobjectnn_rotation", 1e-4),
        ("household_small", 1e-2),
        ("objects_small", 1e-2),
    ):
        path = CONFIGS / "classify" / f"{name}.yaml"
        options = build_parser().parse_args(["--config", str(path), "--output", "nowhere", "--model.mode", mode])
        model = options.model.as_dict()
        task = Classification(
            PointViT(**ENCODER, num_cls_tokens=1),  # type: ignore[arg-type]
            5,
            mode=model["mode"],
            optimisation=FineTuning(**model["optimisation"]),
            frozen_rate=model["frozen_rate"],
        )
        groups = task.optimisation.build(task.model, task.encoder, task.peak, 2)["optimizer"].param_groups
        assert {group["initial_lr"] for group in groups} == {5e-4 if mode == "full" else frozen}, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--votes", "-1"], "votes must be at least 0"),
        (["--official_best_of", "5"], "official_best_of: 5 repeats rounds of votes, and votes is 0: add --votes 10"),
        (["--votes", "-1"], "votes must be at least 0 and official_best_of at least 1, got -1 and 1"),
        (["--root", "absent"], "missing"),
        (["--split", "validation"], "splits found there"),
        (["--variant", "obj_bg"], "variant"),
    ],
)
def test_eval_says_what_is_wrong(
    arguments: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert classify("eval", run, "--output", tmp_path, *arguments) != 0
    assert message in capsys.readouterr().err


def test_train_says_what_is_wrong(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["train", "--config", config, "--output", tmp_path / "new"]
    save_encoder(PointViT(**{**ENCODER, "depth": 3}), tmp_path / "deeper")  # type: ignore[arg-type]
    for arguments, message in (
        (["--encoder", tmp_path / "deeper"], "depth=3 (here 2)"),
        (["--root", tmp_path / "absent"], "missing"),
        (["--data.train.init_args.labelled_only", "false"], "have no class"),
        (["--mode", "mlp"], "mode"),
        (["--model.frozen_rate", "0"], "frozen_rate must be positive, got 0"),
        (["--protocol", "test"], "protocol"),
        (["--seed", "-1"], "seed: must be at least 0 and below 4294967296, got -1"),
        (
            ["--validation_fraction", "2"],
            "fraction must be between 0 and 1 (both excluded), got 2.0: a validation_fraction of 0.2",
        ),
    ):
        assert classify(*start, *arguments) != 0
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert classify("train", "--config", "modelnet40_2k", "--output", tmp_path / "new") == 1
    assert "did you mean 'modelnet40_" in capsys.readouterr().err


def test_bad_data_is_said_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "main_split").mkdir()
    for split in ("training", "test"):
        with h5py.File(tmp_path / "main_split" / f"{split}_objectdataset.h5", "w") as file:
            file.update({"data": np.zeros((3, 64, 3), np.float32), "label": np.arange(3)})
    classes = [f"--data.{split}.init_args.classes=[a,b]" for split in ("train", "test")]
    options = ["--config", "scanobjectnn", "--root", tmp_path, "--output", tmp_path / "run", *classes]
    assert classify("train", *options) == 1
    path = tmp_path / "main_split" / "training_objectdataset.h5"
    said = f"error: {path}: labels go from 0 to 2, which does not go with the 2 classes a, b, ...\n"
    assert capsys.readouterr().err == said


def test_help_and_unknown_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert classify() == 2
    assert classify("--help") == 0
    assert classify("evaluate") == 2
    assert "did you mean 'eval'?" in capsys.readouterr().err
    for verb in ("train", "eval"):
        assert classify(verb, "--help") == 0
        assert f"usage: pc3d classify {verb}" in capsys.readouterr().out
