"""What the scripts of tables keep on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def records(import_script: Callable[[str], ModuleType]) -> ModuleType:
    return import_script("benchmarks/records.py")


def test_results_of_other_options_are_refused(records: ModuleType, tmp_path: Path) -> None:
    records.keep_options(tmp_path, {"epochs": 7, "validate": False})
    kept = (tmp_path / "options.json").read_text()
    assert json.loads(kept) == {"epochs": 7, "validate": False}
    records.keep_options(tmp_path, {"epochs": 7, "validate": False})
    with pytest.raises(SystemExit, match=r"other options \(epochs 7, now 8\): choose another --output"):
        records.keep_options(tmp_path, {"epochs": 8, "validate": False})
    with pytest.raises(SystemExit, match=r"rate None, now 0\.1"):  # an option that was not there then
        records.keep_options(tmp_path, {"epochs": 7, "validate": False, "rate": 0.1})
    assert (tmp_path / "options.json").read_text() == kept


def test_data_sets_join_those_of_before_and_must_stay_the_same(records: ModuleType, tmp_path: Path) -> None:
    records.keep_options(tmp_path, {"epochs": 7, "data": {"household": "a"}})
    records.keep_options(tmp_path, {"epochs": 7, "data": {"bricks": "b"}})
    assert json.loads((tmp_path / "options.json").read_text())["data"] == {"household": "a", "bricks": "b"}
    with pytest.raises(SystemExit, match=r"\(data household\)"):
        records.keep_options(tmp_path, {"epochs": 7, "data": {"household": "c"}})


def test_a_csv_has_empty_cells_for_what_a_row_lacks(records: ModuleType, tmp_path: Path) -> None:
    records.write_csv(tmp_path / "a.csv", ("name", "score"), [{"name": "x", "score": 0.5}, {"name": "y"}])
    assert (tmp_path / "a.csv").read_text() == "name,score\nx,0.5\ny,\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_a_mean_has_a_deviation_from_two_values_on(records: ModuleType) -> None:
    assert records.mean_and_deviation([]) == ""
    assert records.mean_and_deviation([1.0]) == "1.0"
    assert records.mean_and_deviation([1.0, 3.0]) == "2.0 ± 1.4"  # sqrt(2), of the sample
