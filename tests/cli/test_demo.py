"""The demonstration from end to end, with a network and a schedule small enough for a test."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pc3d import demo
from pc3d.cli.main import main
from pc3d.models import load_encoder, save_encoder

RECIPE = """
model:
  class_path: pc3d.methods.PointCMAE
  init_args:
    encoder:
      class_path: pc3d.models.PointViT
      init_args: {embed_dim: 16, depth: 1, num_heads: 2, num_groups: 16, group_size: 16, num_points: 128,
                  num_cls_tokens: 2, tokenizer_dims: [8, 16, 16]}
    decoder_depth: 1
    decoder_num_heads: 2
data:
  train: {class_path: pc3d.data.Household, init_args: {split: train, num_points: 128}}
  batch_size: 64
trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for the demonstration's recipe."""
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    monkeypatch.setattr("pc3d.cli.demo._CONFIG", str(path))
    return path


def test_demo_trains_once_resumes_and_reuses(tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["demo", "--output", str(run)]) == 0
    text = capsys.readouterr().out
    results = json.loads((run / "demo.json").read_text())
    assert list(results) == [demo.PCA, demo.DESCRIPTOR, demo.UNTRAINED, demo.SETTLED, demo.TRAINED]
    assert all(name in text for name in results)
    assert len({result["test_hash"] for result in results.values()}) == 1
    assert all("the test split was not looked at" in result["selection"] for result in results.values())
    with (run / "demo.csv").open() as file:
        rows = {row["encoder"]: row for row in csv.DictReader(file)}
    for name, result in results.items():
        assert float(rows[name]["overall_accuracy"]) == pytest.approx(
            100 * result["scores"]["overall_accuracy"], abs=0.05
        )
    assert (run / "demo.png").read_bytes().startswith(b"\x89PNG")
    weights = (run / "encoder" / "model.safetensors").read_bytes()

    # A second run trains nothing and shows the same table.
    before = (run / "demo.json").stat().st_mtime_ns
    assert main(["demo", "--output", str(run)]) == 0
    again = capsys.readouterr().out
    assert "using the trained encoder" in again
    assert (run / "demo.json").stat().st_mtime_ns == before
    assert demo.table(run) in text
    assert demo.table(run) in again

    # What is missing is made anew from the trained weights; an interrupted run goes on.
    (run / "demo.png").unlink()
    shutil.rmtree(run / "encoder")
    assert main(["demo", "--output", str(run)]) == 0
    assert "going on with the interrupted run" in capsys.readouterr().out
    assert (run / "encoder" / "model.safetensors").read_bytes() == weights
    assert (run / "demo.png").exists()
    assert json.loads((run / "demo.json").read_text())[demo.TRAINED]["scores"] == results[demo.TRAINED]["scores"]


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hash of each encoder that was probed, in turn; one cheap row stands in for the comparison, and no picture."""
    hashes: list[str] = []

    def baselines(*args: object, **kwargs: object) -> dict[str, object]:
        return {}

    real = demo.write_results

    def write(results: Any, folder: Path, **kwargs: Any) -> None:
        hashes.append(hashlib.sha256((folder / "encoder" / "model.safetensors").read_bytes()).hexdigest())
        real(results, folder, **kwargs)

    monkeypatch.setattr(demo, "baselines", baselines)
    monkeypatch.setattr(demo, "write_results", write)
    monkeypatch.setattr(demo, "picture", lambda method, path, **kwargs: path.write_bytes(b"drawn"))
    return hashes


def test_a_table_is_never_that_of_another_encoder(
    tmp_path: Path, recipe: Path, probed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    call = ["demo", "--output", str(run)]
    assert main(call) == 0
    stored = json.loads((run / "demo.json").read_text())
    assert stored[demo.TRAINED]["encoder_sha256"] == probed[0]
    assert stored[demo.TRAINED]["seed"] == 0
    assert main(call) == 0
    assert len(probed) == 1

    # Another encoder under the same recipe, as pretrain --overwrite leaves it.
    encoder = load_encoder(run)
    torch.nn.init.constant_(encoder.norm.bias, 0.1)
    save_encoder(encoder, run / "encoder")
    (run / "demo.png").write_bytes(b"old")
    assert main(call) == 0
    assert len(probed) == 2
    assert probed[0] != probed[1]
    assert (run / "demo.png").read_bytes() == b"drawn"

    # A new training that is interrupted leaves no table behind.
    def interrupted(argv: list[str]) -> None:
        shutil.rmtree(run / "encoder")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pc3d.cli.pretrain.train", interrupted)
        assert main([*call, "--overwrite"]) == 130
        assert f"{run} keeps what is done: the same command without --overwrite goes on" in capsys.readouterr().err
    assert not list(run.glob("demo.*"))
    assert main(call) == 0
    assert json.loads((run / "demo.json").read_text())[demo.TRAINED]["encoder_sha256"] == probed[2]


def test_another_run_does_not_pass_for_the_demonstration(
    tmp_path: Path, recipe: Path, probed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run, foreign = tmp_path / "run", tmp_path / "foreign"
    assert main(["demo", "--output", str(run)]) == 0
    config, output = ["--config", str(recipe)], ["--output", str(foreign)]
    assert main(["pretrain", *config, *output, "--model.mask_ratio", "0.5"]) == 0
    capsys.readouterr()
    for path, seed, section in ((run, "5", "seed"), (foreign, "0", "model")):
        before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
        assert main(["demo", "--output", str(path), "--seed", seed]) == 1
        error = capsys.readouterr().err
        assert f"holds another run than pc3d demo --seed {seed} trains" in error
        assert section in error.partition("trains (")[2].partition(" differ")[0]
        assert "--overwrite" in error
        assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before
    assert len(probed) == 1
    assert main(["demo", "--output", str(run), "--seed", "5", "--overwrite"]) == 0
    assert json.loads((run / "demo.json").read_text())[demo.TRAINED]["seed"] == 5


def test_the_table_does_not_wait_for_matplotlib(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(demo, "baselines", lambda *args, **kwargs: {})
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            patch.delitem(sys.modules, name)
        patch.setitem(sys.modules, "matplotlib", None)  # what Python takes for a module that cannot be imported
        assert main(["demo", "--output", str(run)]) == 0
    text = capsys.readouterr().out
    assert demo.table(run) in text
    (line,) = [line for line in text.splitlines() if line.startswith("picture:")]
    assert 'pip install "pc3d[viz]"' in line
    assert not (run / "demo.png").exists()
    probed = (run / "demo.json").stat().st_mtime_ns
    assert main(["demo", "--output", str(run)]) == 0
    assert (run / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "demo.json").stat().st_mtime_ns == probed
