"""Tables of results: by hand where numbers are, and nothing hidden where seeds are missing or settings differ."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from pc3d.evaluation import Row
from pc3d.evaluation.table import rows_to_csv, seed_interval, tabulate, to_csv, to_markdown

BASE = Row("A", "linear SVM", "tuned", "household", "11-22", 0, {"accuracy": 0.5, "map": 0.25}, 365, 124, {"C": 1})


def seeds(row: Row, values: dict[int, float]) -> list[Row]:
    return [replace(row, seed=seed, metrics={"accuracy": value, "map": value / 2}) for seed, value in values.items()]


def test_mean_deviation_and_interval_by_hand() -> None:
    table = tabulate(seeds(BASE, {2: 0.56, 0: 0.50, 1: 0.53}))
    (cell,) = table.cells.values()
    assert (cell.seeds, cell.missing, cell.values) == ((0, 1, 2), (), (0.50, 0.53, 0.56))
    assert cell.mean == pytest.approx(0.53)
    assert cell.deviation == pytest.approx(0.03)
    # 97.5 % point of Student's t with two degrees of freedom, from a printed table.
    half = 4.302653 * 0.03 / 3**0.5
    assert cell.interval == pytest.approx((0.53 - half, 0.53 + half), abs=1e-7)
    assert str(cell) == "53.0 ± 3.0 (45.5 to 60.5; n=3)"


def test_one_seed_has_no_spread() -> None:
    (cell,) = tabulate([BASE]).cells.values()
    assert (cell.deviation, cell.interval, str(cell)) == (None, None, "50.0 (n=1)")
    assert seed_interval([0.5]) is None
    with pytest.raises(ValueError, match="values is empty"):
        seed_interval([])


def test_missing_seeds_are_told() -> None:
    rows = [*seeds(BASE, {0: 0.5, 1: 0.6, 2: 0.7}), *seeds(replace(BASE, method="B"), {0: 0.4, 2: 0.4})]
    rows += seeds(replace(BASE, method="B", protocol="kNN"), {1: 0.3})
    rows += seeds(replace(BASE, data="bricks"), {0: 0.1})
    table = tabulate(rows)
    found = {(method, column.data, column.protocol): cell for (method, column), cell in table.cells.items()}
    assert found["B", "household", "linear SVM"].missing == (1,)
    assert "n=2 of 3)" in str(found["B", "household", "linear SVM"])
    assert str(found["B", "household", "kNN"]) == "30.0 (n=1 of 3)"
    assert found["A", "bricks", "linear SVM"].missing == ()  # nobody has more there


def test_legacy_stands_apart_and_marked() -> None:
    rows = [BASE, replace(BASE, selection="legacy", metrics={"accuracy": 0.9}), replace(BASE, protocol="zzz")]
    table = tabulate(rows)
    assert [column.selection for column in table.columns] == ["tuned", "tuned", "legacy"]
    assert {cell.values for cell in table.cells.values()} == {(0.5,), (0.9,)}
    assert "linear SVM (**LEGACY: selected on the test split**)" in to_markdown(table)


def test_other_contents_are_never_mixed() -> None:
    other = replace(BASE, data_hash="11-33", seed=1, metrics={"accuracy": 0.9})
    table = tabulate([BASE, other])
    assert {cell.values for cell in table.cells.values()} == {(0.5,), (0.9,)}
    head = next(line for line in to_markdown(table).splitlines() if line.startswith("| method"))
    assert "data 11-22" in head
    assert "data 11-33" in head
    assert "n=1 of 2" in to_markdown(table)


def test_other_settings_are_told_apart_in_the_method() -> None:
    rows = [BASE, replace(BASE, config={"C": 2}, seed=1), replace(BASE, protocol="kNN"), replace(BASE, method="B")]
    assert tabulate(rows).methods == ("A", "A (C=1)", "A (C=2)", "B")


def test_order_and_metric_are_the_callers() -> None:
    rows = [BASE, replace(BASE, method="B"), replace(BASE, method="C")]
    table = tabulate(rows, order=["C", "nobody", "B"], metric="map")
    assert table.methods == ("C", "B", "A")
    assert {cell.mean for cell in table.cells.values()} == {0.25}
    with pytest.raises(ValueError, match="linear SVM of A has no 'recall@1', it has accuracy, map"):
        tabulate(rows, metric="recall@1")
    with pytest.raises(ValueError, match="rows is empty"):
        tabulate([])


def test_csv_holds_cells_and_single_rows() -> None:
    rows = [*seeds(BASE, {0: 0.25, 1: 0.75}), replace(BASE, method="B", cost={"cpu_seconds": 3.0})]
    cells = list(csv.DictReader(io.StringIO(to_csv(tabulate(rows)))))
    assert [(line["method"], line["n"], line["missing_seeds"]) for line in cells] == [("A", "2", ""), ("B", "1", "1")]
    assert float(cells[0]["mean"]) == 0.5
    assert cells[1]["low"] == ""
    assert float(cells[1]["cpu_seconds"]) == 3.0
    single = list(csv.DictReader(io.StringIO(rows_to_csv(rows))))
    assert [(line["method"], line["seed"], float(line["accuracy"])) for line in single] == [
        ("A", "0", 0.25),
        ("A", "1", 0.75),
        ("B", "0", 0.5),
    ]
    assert single[0]["config"] == '{"C": 1}'


def test_cost_of_pretraining_is_averaged_over_seeds() -> None:
    rows = [
        replace(row, cost={"parameters": 1000, "pretraining_cpu_seconds": 10.0 * (1 + row.seed)})
        for row in seeds(BASE, {0: 0.5, 1: 0.5})
    ]
    assert "| household | A | 1,000 | 15 | - |" in to_markdown(tabulate(rows))
    assert "Cost" not in to_markdown(tabulate([BASE]))
