"""The demonstration from end to end, with a network and a schedule small enough for a test."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from pc3d import demo
from pc3d.cli.main import main

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


def test_demo_trains_once_resumes_and_reuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    monkeypatch.setattr("pc3d.cli.demo._CONFIG", str(recipe))

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
