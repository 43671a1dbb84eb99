"""What the table of results says of each method: against the encoder it started from, and against its own ablation."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from pc3d import demo
from pc3d.evaluation import Row
from pc3d.evaluation.table import Cell, Column, Table, seed_interval

ABLATIONS = (
    ("contrast of the same token", "Point-CMAE, same token", "Point-CMAE without contrast"),
    ("contrast of all tokens", "Point-CMAE, all tokens", "Point-CMAE without contrast"),
    ("centres predicted as well", "PCP-MAE", "Point-MAE"),
    ("a momentum teacher and a predictor", "MoCo v3", "SimCLR"),
    ("contrast beside distillation", "DCGLR, both", "DCGLR, distillation"),
    ("distillation beside contrast", "DCGLR, both", "DCGLR, contrast"),
)
"""What is added, the method with it, and the one without."""


def to_markdown(table: Table, rows: Iterable[Row]) -> str:
    """Two tables and what everything cost, for below the table of results."""
    lines: list[str] = []
    for data in dict.fromkeys(column.data for column in table.columns):
        columns = [column for column in table.columns if column.data == data]
        lines += [*_beaten(table, columns, data), *_ablations(table, columns, data)]
    return "\n".join([*lines, *_spent(rows)]).rstrip("\n") + "\n"


def _beaten(table: Table, columns: list[Column], data: str) -> list[str]:
    """In which columns a method's mean is not above the untrained encoder's."""
    trained = [method for method in table.methods if not method.startswith((demo.PCA, demo.DESCRIPTOR, demo.UNTRAINED))]
    lines = [
        f"### {data}: not above the encoder without training",
        "",
        "Columns in which the mean over seeds is not above that of the same encoder untrained, and untrained with "
        "settled batch norm.",
        "",
        "| method | not above untrained | not above settled |",
        "| --- | --- | --- |",
    ]
    for method in trained:
        cells = {column: table.cells[method, column] for column in columns if (method, column) in table.cells}
        if cells:
            against = [_not_above(table, cells, name) for name in (demo.UNTRAINED, demo.SETTLED)]
            lines.append(f"| {method} | {' | '.join(against)} |")
    return [*lines, ""] if len(lines) > 6 else []


def _not_above(table: Table, cells: dict[Column, Cell], reference: str) -> str:
    others = {column: table.cells[reference, column] for column in cells if (reference, column) in table.cells}
    if not others:
        return "-"
    below = [column.protocol.partition(",")[0] for column, other in others.items() if cells[column].mean <= other.mean]
    return ", ".join(below) or "none"


def _ablations(table: Table, columns: list[Column], data: str) -> list[str]:
    lines = []
    for what, method, without in ABLATIONS:
        cells = [
            _difference(table.cells.get((method, column)), table.cells.get((without, column))) for column in columns
        ]
        if any(cells):
            lines.append(f"| {what} | {method} | {without} | {' | '.join(cell or '-' for cell in cells)} |")
    if not lines:
        return []
    heads = [column.protocol.partition(",")[0] for column in columns]
    return [
        f"### {data}: what each idea brings",
        "",
        "Points of percent by which a method is above the one without the idea: mean ± sample standard deviation of "
        "the differences with the same seed; bold where their 95 % interval does not hold 0.",
        "",
        f"| idea | with | without | {' | '.join(heads)} |",
        f"| --- | --- | --- |{' ---: |' * len(heads)}",
        *lines,
        "",
    ]


def _difference(with_it: Cell | None, without: Cell | None) -> str:
    """Paired by seed."""
    if with_it is None or without is None:
        return ""
    values = dict(zip(without.seeds, without.values, strict=True))
    pairs = zip(with_it.seeds, with_it.values, strict=True)
    found = [100 * (value - values[seed]) for seed, value in pairs if seed in values]
    if not found:
        return ""
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    text = f"{statistics.mean(found):+.1f}{spread}"
    interval = seed_interval(found)
    return f"**{text}**" if interval is not None and (interval[0] > 0 or interval[1] < 0) else text


def _spent(rows: Iterable[Row]) -> list[str]:
    """CPU minutes of everything; of a method, data set and seed, pre-training counts once."""
    pretraining: dict[tuple[str, str, int], float] = {}
    judging = 0.0
    for row in rows:
        pretraining[row.method, row.data, row.seed] = row.cost.get("pretraining_cpu_seconds", 0.0)
        judging += row.cost.get("cpu_seconds", 0.0)
    return [
        f"In all {sum(pretraining.values()) / 60:.0f} CPU minutes of pre-training and {judging / 60:.0f} of judging.",
    ]
