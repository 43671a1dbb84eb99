"""Rows of results as a table: methods by data sets and protocols, with the variation over seeds.

Every cell states its number of seeds. Seeds that others have and a method lacks are counted as missing. Rows of other
data contents or other settings never share a cell.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pc3d._extras import require
from pc3d.evaluation.rows import SELECTIONS, Row

CONFIDENCE = 0.95
LEGACY_MARK = "LEGACY: selected on the test split"
_TOLD_COSTS = {
    "parameters": ("parameters", 1.0, ",.0f"),
    "pretraining_cpu_seconds": ("pre-training, CPU seconds", 1.0, ",.0f"),
    "pretraining_peak_memory_bytes": ("pre-training, peak memory, MB", 1e-6, ",.0f"),
}


@dataclass(frozen=True)
class Column:
    """What the cells of one column have in common."""

    data: str
    data_hash: str
    protocol: str
    selection: str
    metric: str
    num_test: int


@dataclass(frozen=True)
class Cell:
    """The rows of one method in one column.

    Attributes:
        seeds: the available seeds, ascending.
        missing: those that other results of the data set have and this cell lacks.
        values: the metric per seed, a fraction.
        mean: of the values.
        deviation: their sample standard deviation (``ddof=1``); None for a single seed.
        interval: 95 % interval of the mean by Student's t over the seeds; None for a single seed. It describes the
            variation over seeds, not over test splits.
        cost: name to mean over the seeds.
    """

    seeds: tuple[int, ...]
    missing: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    deviation: float | None
    interval: tuple[float, float] | None
    cost: dict[str, float]

    def __str__(self) -> str:
        spread = "" if self.deviation is None else f" ± {100 * self.deviation:.1f}"
        span = "" if self.interval is None else f"{100 * self.interval[0]:.1f} to {100 * self.interval[1]:.1f}; "
        of = f" of {len(self.seeds) + len(self.missing)}" if self.missing else ""
        return f"{100 * self.mean:.1f}{spread} ({span}n={len(self.seeds)}{of})"


@dataclass(frozen=True)
class Table:
    """A table of methods (rows) and columns.

    Attributes:
        methods: in the order of the table. If rows of one cell differ in their settings, the names of their methods
            state the difference, as in ``"Point-MAE (C=1)"``.
        columns: data set by data set; results selected on the test split last.
        cells: of a method and a column, if there are rows.
    """

    methods: tuple[str, ...]
    columns: tuple[Column, ...]
    cells: dict[tuple[str, Column], Cell]


def seed_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of a mean over seeds by Student's t, None for a single value.

    Raises:
        ValueError: no values.
    """
    if not len(values):
        raise ValueError("values is empty: there is no mean")
    if len(values) < 2:
        return None
    stats = require("scipy.stats", extra="train", purpose="intervals over seeds")
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return float(statistics.mean(values) - half), float(statistics.mean(values) + half)


def tabulate(rows: Iterable[Row], *, metric: str | None = None, order: Sequence[str] = ()) -> Table:
    """Collect rows into a table.

    Args:
        rows: as :func:`pc3d.evaluation.read_rows` returns them.
        metric: the metric to show; by default the first of each row. Rows without it are refused.
        order: methods that come first, in this order; the others follow by name.

    Raises:
        ValueError: no rows, or one has no such metric.
    """
    rows = list(rows)
    if not rows:
        raise ValueError("rows is empty: there is nothing to tabulate")
    wanted: dict[str, set[int]] = {}
    for row in rows:
        wanted.setdefault(row.data, set()).add(row.seed)
    gathered: dict[tuple[str, Column], list[Row]] = {}
    for row in rows:
        gathered.setdefault((row.method, _column(row, metric)), []).append(row)
    cells: dict[tuple[str, Column], Cell] = {}
    for (method, column), members in gathered.items():
        for name, alike in _by_settings(method, members).items():
            cells[name, column] = _cell(alike, column.metric, wanted[column.data])
    rank = {name: number for number, name in enumerate(order)}
    methods = sorted({method for method, _ in cells}, key=lambda name: (rank.get(name, len(rank)), name))
    columns = sorted({column for _, column in cells}, key=_column_order)
    return Table(tuple(methods), tuple(columns), cells)


def _column(row: Row, metric: str | None) -> Column:
    if metric is not None and metric not in row.metrics:
        raise ValueError(
            f"metric: {row.protocol} of {row.method} has no {metric!r}, it has {', '.join(row.metrics)}: leave the "
            "option out, or gather the rows of other protocols in another folder"
        )
    shown = metric or next(iter(row.metrics))
    return Column(row.data, row.data_hash, row.protocol, row.selection, shown, row.num_test)


def _column_order(column: Column) -> tuple[Any, ...]:
    last = column.selection == "legacy"
    return column.data, last, column.protocol, SELECTIONS.index(column.selection), column.data_hash, column.metric


def _by_settings(method: str, rows: list[Row]) -> dict[str, list[Row]]:
    """Rows of one cell by their settings; the method's own name where there is one set of them."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.config_hash, []).append(row)
    if len(found) == 1:
        return {method: rows}
    configs = [alike[0].config for alike in found.values()]
    names = sorted({name for config in configs for name in config})
    texts = {name: [json.dumps(config.get(name)) for config in configs] for name in names}
    differing = [name for name in names if len(set(texts[name])) > 1]
    return {
        f"{method} ({', '.join(f'{name}={texts[name][number]}' for name in differing)})": alike
        for number, alike in enumerate(found.values())
    }


def _cell(rows: list[Row], metric: str, wanted: set[int]) -> Cell:
    rows = sorted(rows, key=lambda row: row.seed)
    seeds = tuple(row.seed for row in rows)
    values = tuple(float(row.metrics[metric]) for row in rows)
    costs = sorted({name for row in rows for name in row.cost})
    return Cell(
        seeds,
        tuple(sorted(wanted - set(seeds))),
        values,
        statistics.mean(values),
        statistics.stdev(values) if len(values) > 1 else None,
        seed_interval(values),
        {name: statistics.mean([row.cost[name] for row in rows if name in row.cost]) for name in costs},
    )


def to_markdown(table: Table) -> str:
    """The table as Markdown: one for each data set, then what the methods cost where rows say it."""
    lines = [
        "Percent; mean ± sample standard deviation over seeds (95 % interval of the mean by Student's t over seeds; "
        "n = number of seeds). The interval is about seeds, not about the choice of test objects.",
        "",
    ]
    for data in dict.fromkeys(column.data for column in table.columns):
        columns = [column for column in table.columns if column.data == data]
        lines += [f"### {data}", "", *_grid(table, columns), ""]
    return "\n".join([*lines, *_costs(table)]).rstrip("\n") + "\n"


def _grid(table: Table, columns: list[Column]) -> list[str]:
    contents = {column.data_hash for column in columns}
    heads = [_head(column, len(contents) > 1) for column in columns]
    lines = ["| method | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(columns)]
    for method in table.methods:
        cells = [table.cells.get((method, column)) for column in columns]
        if any(cells):
            lines.append(f"| {method} | " + " | ".join(str(cell or "-") for cell in cells) + " |")
    return lines


def _head(column: Column, tell_contents: bool) -> str:
    how = f"**{LEGACY_MARK}**" if column.selection == "legacy" else column.selection
    contents = f", data {column.data_hash}" if tell_contents else ""
    return f"{column.protocol} ({how}), {column.metric.replace('_', ' ')}, {column.num_test} test items{contents}"


def _costs(table: Table) -> list[str]:
    """What pre-training took, where rows say it; a method's cells of one data set share it."""
    lines: list[str] = []
    if not any("pretraining_cpu_seconds" in cell.cost for cell in table.cells.values()):
        return lines
    for data in dict.fromkeys(column.data for column in table.columns):
        for method in table.methods:
            cells = [cell for (name, column), cell in table.cells.items() if (name, column.data) == (method, data)]
            told = {key: cell.cost[key] for cell in cells for key in _TOLD_COSTS if key in cell.cost}
            if told:
                values = [
                    f"{told[key] * scale:{form}}" if key in told else "-"
                    for key, (_, scale, form) in _TOLD_COSTS.items()
                ]
                lines.append(f"| {data} | {method} | " + " | ".join(values) + " |")
    heads = [head for head, _, _ in _TOLD_COSTS.values()]
    return [
        *("### Cost", "", "Means over seeds.", ""),
        "| data | method | " + " | ".join(heads) + " |",
        "| --- | --- |" + " ---: |" * len(heads),
        *lines,
    ]


def to_csv(table: Table) -> str:
    """The cells of the table as CSV, fractions rather than percent."""
    names = [
        *("data", "data_hash", "protocol", "selection", "metric", "num_test", "method", "mean"),
        *("standard_deviation", "low", "high", "n", "seeds", "missing_seeds"),
    ]
    costs = sorted({name for cell in table.cells.values() for name in cell.cost})
    lines = []
    for column in table.columns:
        for method in table.methods:
            cell = table.cells.get((method, column))
            if cell is None:
                continue
            where = (column.data, column.data_hash, column.protocol, column.selection, column.metric, column.num_test)
            low, high = cell.interval or (None, None)
            seeds = (" ".join(map(str, cell.seeds)), " ".join(map(str, cell.missing)))
            values = (cell.mean, cell.deviation, low, high, len(cell.seeds), *seeds)
            lines.append([*where, method, *values, *(cell.cost.get(name) for name in costs)])
    return _csv([*names, *costs], lines)


def rows_to_csv(rows: Iterable[Row]) -> str:
    """Single rows as CSV, one line a row, metrics and costs in columns of their own."""
    rows = list(rows)
    own = ["method", "protocol", "selection", "data", "data_hash", "seed", "num_train", "num_test", "config_hash"]
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    costs = sorted({name for row in rows for name in row.cost})
    lines = [
        [
            *(getattr(row, name) for name in own),
            *(row.metrics.get(name) for name in metrics),
            *(row.cost.get(name) for name in costs),
            *(json.dumps(value, sort_keys=True) for value in (row.config, row.versions)),
        ]
        for row in rows
    ]
    return _csv([*own, *metrics, *costs, "config", "versions"], lines)


def _csv(names: list[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(lines)
    return text.getvalue()
