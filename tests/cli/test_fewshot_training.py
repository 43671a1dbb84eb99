"""``pc3d classify fewshot``: episodes of real objects, what is kept of them, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pc3d.cli.main import main
from pc3d.evaluation import FewShotTrainingResult, read_rows

SIZES = {"embed_dim": 16, "depth": 2, "num_heads": 2, "num_groups": 12, "group_size": 8, "tokenizer_dims": [8, 12, 16]}
SPLIT = "class_path: pc3d.data.Household, init_args: {labelled_only: true, num_points: 128, split"
EPISODE = f"class_path: pc3d.data.FewShotSplit, init_args: {{train: {{{SPLIT}: train}}}}, test: {{{SPLIT}: test}}}}"
TINY = f"""
model:
  backbone:
    class_path: pc3d.models.PointViT
    init_args: {json.dumps({**SIZES, "num_cls_tokens": 1})}
  optimisation: {{learning_rate: 0.003, warmup_epochs: 1}}
data:
  train: {{{EPISODE}, way: 3, shot: 6, num_queries: 4, split: train}}}}
  test: {{{EPISODE}, way: 3, shot: 6, num_queries: 4, split: test}}}}
  train_transforms: [{{class_path: pc3d.data.RandomSubsample, init_args: {{num_points: 96}}}}]
  eval_transforms: [{{class_path: pc3d.data.FirstPoints, init_args: {{num_points: 96}}}}]
  batch_size: 6
trainer: {{max_epochs: 3, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}}
"""


def few_shot(*arguments: str | Path) -> int:
    return main(["classify", "fewshot", *map(str, arguments)])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    folder = tmp_path_factory.mktemp("run") / "a"
    options = ["--num_episodes", "2", "--protocol", "legacy", "--results", folder / "rows", "--method", "tiny"]
    assert few_shot("--config", config, "--output", folder, *options) == 0
    return folder


def test_the_result_is_the_mean_over_the_episodes(run: Path) -> None:
    result = json.loads((run / "fewshot.json").read_text())
    folds = [json.loads((run / f"episode_{k}" / "eval" / "test.json").read_text()) for k in range(2)]
    each = [fold["scores"]["overall_accuracy"] for fold in folds]
    assert result["accuracies"] == each
    assert result["mean"] == pytest.approx(sum(each) / 2)
    assert result["standard_deviation"] == pytest.approx(abs(each[0] - each[1]) / 2**0.5)
    assert (result["way"], result["shot"], result["num_train"], result["num_test"]) == (3, 6, 18, 12)
    assert result["epochs"] == 3
    assert result["legacy"] == [fold["selection"]["legacy"]["test"] for fold in folds]
    assert all(best >= last for best, last in zip(result["legacy"], each, strict=True))


def test_episodes_are_of_different_objects(run: Path) -> None:
    folds = [json.loads((run / f"episode_{k}" / "eval" / "test.json").read_text()) for k in range(2)]
    assert folds[0]["test_hash"] != folds[1]["test_hash"]
    assert folds[0]["data"] == "household"


def test_rows_tell_the_last_epoch_from_the_best_on_the_test_split(run: Path) -> None:
    rows = {row.selection: row for row in read_rows([run / "rows"])}
    result = json.loads((run / "fewshot.json").read_text())
    assert set(rows) == {"fixed", "legacy"}
    assert {row.protocol for row in rows.values()} == {"few-shot fine-tuning (full) 3-way 6-shot"}
    assert rows["fixed"].metrics == {"accuracy": pytest.approx(result["mean"])}
    assert rows["legacy"].metrics == {"accuracy": pytest.approx(sum(result["legacy"]) / 2)}


def test_what_is_finished_stays_and_what_is_missing_is_trained(
    run: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a"
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "episode_1")
    (folder / "fewshot.json").unlink()
    assert few_shot("--config", config, "--output", folder, "--num_episodes", "2", "--protocol", "legacy") == 0
    assert "episode_0: finished already" in capsys.readouterr().out
    again, before = (json.loads((where / "fewshot.json").read_text()) for where in (folder, run))
    assert again["accuracies"] == before["accuracies"]


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (["--label_smoothing", "0.2"], "differs in model"),
        (["--way", "2"], "differs in data"),
        (["--trainer.max_epochs", "4"], r"differs in trainer.max_epochs (3, now 4)"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_finished_episode_is_not_taken_for_one_of_other_options(
    run: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], other: list[str], what: str
) -> None:
    folder = tmp_path / "a"
    shutil.copytree(run, folder)
    before = (folder / "fewshot.json").read_text()
    assert few_shot("--config", config, "--output", folder, "--num_episodes", "2", "--protocol", "legacy", *other) == 1
    assert f"episode_0 is a finished episode of another configuration, which {what}" in capsys.readouterr().err
    assert (folder / "fewshot.json").read_text() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num_episodes", "1"], "--num_episodes must be at least 2"),
        (["--resume"], "--resume is not needed"),
        (["--folds", "3"], "every episode is a fold, and all are trained: --num_episodes says how many"),
        (["--fold=3"], "every episode is a fold, and all are trained: --num_episodes says how many"),
        (["--way", "30"], "way=30 asks for more"),
    ],
)
def test_bad_options_are_refused(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    try:
        code = few_shot("--config", config, "--output", tmp_path / "x", *options)
    except SystemExit as stopped:
        code = int(str(stopped.code))
    assert code in (1, 2)
    assert message in capsys.readouterr().err


def test_episodes_of_different_sizes_are_refused(run: Path) -> None:
    fold = json.loads((run / "episode_0" / "eval" / "test.json").read_text())
    with pytest.raises(ValueError, match="two or more episodes of one size, got 1"):
        FewShotTrainingResult.of([fold])
    with pytest.raises(ValueError, match="two or more episodes of one size, got 2"):
        FewShotTrainingResult.of([fold, {**fold, "num_train": 17}])
