"""Rows of results: what is written is read back, nothing is lost, and results are never mixed up."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pc3d.evaluation import Features, Row, few_shot, linear_svm, read_row, read_rows, write_rows

Make = Callable[..., Features]
ROW = Row(
    method="Point-MAE",
    protocol="linear SVM",
    selection="tuned",
    data="household",
    data_hash="0123-4567",
    seed=0,
    metrics={"overall_accuracy": 1 / 3, "mean_class_accuracy": 0.25},
    num_train=365,
    num_test=124,
    config={"tried": (0.1, 1.0), "pooling": "max+mean"},
    details={"C": 0.1},
    versions={"pc3d": "1"},
    cost={"cpu_seconds": 2.5},
)


def test_rows_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [ROW, replace(ROW, seed=1), replace(ROW, protocol="kNN", metrics={"overall_accuracy": 0.1})]
    paths = write_rows(rows, tmp_path / "new")
    assert read_row(paths[0]) == ROW
    assert {row.key for row in read_rows([tmp_path])} == {row.key for row in rows}
    assert sorted(tmp_path.rglob("*")) == sorted([tmp_path / "new", *paths])
    assert all(path.name.startswith("point-mae-") for path in paths)


def test_the_same_result_is_written_once(tmp_path: Path) -> None:
    first = write_rows([ROW], tmp_path)
    again = write_rows([replace(ROW, cost={}, versions={"pc3d": "2"}, details={})], tmp_path)
    assert first == again
    assert read_row(first[0]) == ROW


def test_another_result_of_the_same_experiment_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    (path,) = write_rows([ROW], tmp_path)
    before = path.read_bytes()
    for other in ({"metrics": {**ROW.metrics, "overall_accuracy": 0.34}}, {"num_test": 123}, {"metrics": {"map": 0.3}}):
        with pytest.raises(FileExistsError, match="another result of the same experiment"):
            write_rows([replace(ROW, **other)], tmp_path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "change",
    [
        {"method": "Point-CMAE"},
        {"protocol": "kNN"},
        {"selection": "fixed"},
        {"data": "bricks"},
        {"data_hash": "0123-9999"},
        {"seed": 1},
        {"config": {"pooling": "mean"}},
    ],
)
def test_another_experiment_is_another_row(change: dict[str, Any], tmp_path: Path) -> None:
    other = replace(ROW, **change, metrics={"overall_accuracy": 0.9})
    assert len({*write_rows([ROW], tmp_path), *write_rows([other], tmp_path)}) == 2


def test_settings_are_compared_as_plain_data() -> None:
    same = replace(ROW, config={"pooling": "max+mean", "tried": [0.1, 1.0]})
    assert same.config_hash == ROW.config_hash
    assert same == ROW


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    """Four processes write the same 30 rows; each row is there once, whole, and nobody failed."""
    context = multiprocessing.get_context("fork")  # the others would import everything again
    rows = [replace(ROW, seed=seed) for seed in range(30)]
    running = [context.Process(target=write_rows, args=(rows, tmp_path / "out")) for _ in range(4)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0] * 4
    assert sorted(row.seed for row in read_rows([tmp_path])) == list(range(30))
    assert len(list((tmp_path / "out").iterdir())) == 30


def test_what_is_not_a_row_is_refused_by_name(tmp_path: Path) -> None:
    (path,) = write_rows([ROW], tmp_path)
    content = json.loads(path.read_text())
    for change, message in (
        ({"config": {"pooling": "mean"}}, "config_hash is"),
        ({"selection": "best"}, "selection must be one of"),
        ({"metrics": {"overall_accuracy": "high"}}, "must be a finite number"),
        ({"metrics": [0.5]}, "is not a row of results"),
        ({"extra": 1}, r"unknown \['extra'\]"),
    ):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(ValueError, match=message) as caught:
            read_rows([tmp_path])
        assert str(path) in str(caught.value)
    path.write_text(json.dumps({name: value for name, value in content.items() if name != "seed"}))
    with pytest.raises(ValueError, match=r"missing \['seed'\]"):
        read_row(path)
    path.write_text(path.read_text()[:40])
    with pytest.raises(ValueError, match="not valid JSON"):
        read_row(path)


def test_folders_without_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read_rows([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match="holds no row of results"):
        read_rows([tmp_path])


def test_folders_that_disagree_are_refused(tmp_path: Path) -> None:
    write_rows([ROW], tmp_path / "a")
    write_rows([ROW, replace(ROW, seed=1)], tmp_path / "b")
    assert len(read_rows([tmp_path / "a", tmp_path / "b"])) == 2
    write_rows([replace(ROW, num_test=1)], tmp_path / "c")
    with pytest.raises(ValueError, match="are of the same experiment and differ"):
        read_rows([tmp_path / "a", tmp_path / "c"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": ""}, ValueError, "method must be text"),
        ({"selection": "test"}, ValueError, "selection must be one of"),
        ({"metrics": {}}, ValueError, "metrics is empty"),
        ({"metrics": {"map": float("nan")}}, ValueError, "must be a finite number"),
        ({"cost": {"cpu_seconds": True}}, ValueError, "must be a finite number"),
        ({"seed": 1.0}, TypeError, "seed must be an int"),
        ({"config": {"encoder": object()}}, TypeError, "config must be plain data"),
    ],
)
def test_bad_fields_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        replace(ROW, **change)


def test_a_probe_becomes_a_row(planted: Make) -> None:
    train, test = (
        replace(planted(seed=1, unlabelled=2), content_hash="aa"),
        replace(planted(5, seed=2), content_hash="bb"),
    )
    result = linear_svm(train, test, protocol="tuned", seed=3)
    row = result.to_row("mine", {"cpu_seconds": 1.0})
    assert (row.method, row.protocol, row.selection, row.seed) == ("mine", "linear SVM", "tuned", 3)
    assert (row.data, row.data_hash, row.num_train, row.num_test) == ("planted", "aa-bb", 48, 20)
    assert row.metrics == {
        "overall_accuracy": result.scores.overall_accuracy,
        "mean_class_accuracy": result.scores.mean_class_accuracy,
    }
    assert "C" not in row.config  # it was chosen: an outcome, which may differ from seed to seed
    assert row.details["C"] == result.parameter[1]
    fixed = linear_svm(train, test, C=1.0).to_row()
    assert (fixed.method, fixed.config["C"]) == ("encoder", 1.0)
    assert fixed.config_hash != linear_svm(train, test, C=2.0).to_row().config_hash
    assert fixed.config_hash == linear_svm(train, test, C=1.0, seed=7).to_row().config_hash
    assert linear_svm(train, test, protocol="legacy").to_row().selection == "legacy"


def test_few_shot_becomes_a_row(planted: Make) -> None:
    result = few_shot(planted(seed=1), planted(seed=2), way=3, shot=4, num_queries=5, seed=2)
    row = result.to_row()
    assert (row.protocol, row.selection, row.seed) == ("few-shot 3-way 4-shot", "fixed", 2)
    assert row.metrics == {"accuracy": result.mean}
    assert row.config["num_queries"] == 5
    assert row.details["accuracies"] == list(result.accuracies)
