"""The table of results resumes, reuses only what was made with the same options, and tells what each method cost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pc3d.data
from pc3d import demo
from pc3d.evaluation import read_rows
from pc3d.models import load_encoder

HOUSEHOLD = Path(pc3d.data.__file__).parent / "household"
FROZEN = ["--protocols", "knn", "retrieval"]


@pytest.fixture(scope="module")
def table(import_script: Callable[[str], ModuleType]) -> ModuleType:
    return import_script("benchmarks/results_table.py")


@pytest.fixture(scope="module")
def output(table: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One seed of two baselines by two protocols."""
    folder = tmp_path_factory.mktemp("table")
    table.main(["--output", str(folder), "--seeds", "0", "--methods", demo.PCA, demo.DESCRIPTOR, *FROZEN])
    return folder


def test_rows_and_tables_are_written(output: Path) -> None:
    rows = read_rows([output])
    assert sorted((row.method, row.protocol.partition(" ")[0]) for row in rows) == sorted(
        (method, protocol) for method in (demo.PCA, demo.DESCRIPTOR) for protocol in ("kNN", "retrieval")
    )
    text = (output / "results.md").read_text()
    assert text.index(f"| {demo.PCA}") < text.index(f"| {demo.DESCRIPTOR}")
    assert f"results_table.py --output FOLDER --severities 1 3 5 {' '.join(FROZEN)}\n" in text
    assert len((output / "rows.csv").read_text().splitlines()) == 5
    assert (output / "results.png").read_bytes().startswith(b"\x89PNG")


def test_data_that_do_not_come_with_pc3d_are_told_of(table: ModuleType, tmp_path: Path) -> None:
    said = {"source": "a library of parts", "licence": "CC BY 4.0"}
    for name, content in (("parts", said), ("own", {})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.json").write_text(json.dumps(content))
    start = "The folder `parts` does not come with pc3d: a library of parts; CC BY 4.0.\n"
    assert table.where_from(str(tmp_path / "parts")).startswith(start)
    assert "it names no source; no licence named" in table.where_from(str(tmp_path / "own"))
    assert table.where_from("household") == ""


def test_what_is_finished_is_not_computed_again_and_the_rest_is(
    table: ModuleType, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(output, folder)
    shutil.rmtree(folder / "household" / "seed0" / table.slug(demo.PCA) / "rows" / "knn")
    judged: list[str] = []
    real = table.PROTOCOLS["knn"]

    def knn(what: Any) -> Any:
        judged.append(what.name)
        return real(what)

    monkeypatch.setitem(table.PROTOCOLS, "knn", knn)
    monkeypatch.delitem(table.PROTOCOLS, "svm")
    arguments = ["--output", str(folder), "--seeds", "0", "--methods", demo.PCA, demo.DESCRIPTOR, *FROZEN]
    table.main([*arguments, "--docs", str(tmp_path / "docs" / "table")])
    assert judged == [demo.PCA]
    assert {row.key for row in read_rows([folder])} == {row.key for row in read_rows([output])}
    assert (tmp_path / "docs" / "table.md").read_text() == (folder / "results.md").read_text()


@pytest.mark.parametrize(
    "other", [["--epochs", "3"], ["--seconds", "9"], ["--severities", "1"], ["--depth", "3"]], ids=lambda o: o[0]
)
def test_other_options_are_refused(table: ModuleType, output: Path, other: list[str]) -> None:
    with pytest.raises(SystemExit, match=rf"results of other options \({other[0][2:]} .*choose another --output"):
        table.main(["--output", str(output), *other, *FROZEN])


def test_other_data_of_the_same_name_are_refused(table: ModuleType, output: Path, tmp_path: Path) -> None:
    moved = tmp_path / "household"
    shutil.copytree(HOUSEHOLD, moved)
    options = table.parse(["--output", str(output), "--data", str(moved)])
    table.check_options(options)  # the same files elsewhere
    description = json.loads((moved / "test.json").read_text())
    (moved / "test.json").write_text(json.dumps(description, indent=1))
    with pytest.raises(SystemExit, match=r"results of other options \(data household\)"):
        table.check_options(options)


def test_every_method_is_a_shipped_recipe_around_one_encoder(table: ModuleType) -> None:
    from pc3d.cli import pretrain

    assert {method.recipe for method in table.METHODS} <= set(pretrain.shipped_configs())
    assert len({table.slug(name) for name in table.ORDER}) == len(table.ORDER)
    parser = pretrain.build_parser()
    encoders = []
    for method in table.METHODS:
        config = method.configuration()
        parser.parse_object({"output": "x", **config})  # refuses what the method does not take
        arguments = dict(config["model"]["init_args"]["encoder"]["init_args"])
        arguments.pop("num_cls_tokens", None)
        encoders.append(arguments)
    assert all(encoder == encoders[0] for encoder in encoders)


def test_overrides_set_and_remove(table: ModuleType) -> None:
    plain = table.Method("a", "point_cmae_household").configuration()
    changed = table.Method("a", "point_cmae_household", {"trainer.max_epochs": 3, "data.batch_size": None})
    assert changed.configuration()["trainer"] == {**plain["trainer"], "max_epochs": 3}
    assert changed.configuration()["data"] == {k: v for k, v in plain["data"].items() if k != "batch_size"}


@pytest.mark.parametrize("wrong", [["--epochs", "0"], ["--seconds", "-1"], ["--seconds", "9", "--epochs", "1"]])
def test_bad_budgets_are_wrong_usage(table: ModuleType, tmp_path: Path, wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        table.parse(["--output", str(tmp_path), *wrong])
    assert stopped.value.code == 2


@pytest.mark.slow
def test_the_quick_form_pre_trains_judges_and_tells_the_cost(table: ModuleType, tmp_path: Path) -> None:
    table.main(["--output", str(tmp_path), "--quick"])
    rows = [row for row in read_rows([tmp_path]) if row.method == "Point-MAE"]
    assert len(rows) == len(table.PROTOCOLS) - 1  # household has no parts
    assert len({row.data_hash for row in rows}) == 1
    encoder = load_encoder(tmp_path / "household" / "seed0" / "point_mae")
    for row in rows:
        assert row.cost["pretraining_cpu_seconds"] > 0
        assert row.cost["pretraining_peak_memory_bytes"] > 1e8
        assert row.cost["pretraining_epochs"] == 1
        assert row.cost["parameters"] == sum(parameter.numel() for parameter in encoder.parameters())
    assert "### Cost" in (tmp_path / "results.md").read_text()
