"""``pc3d results``: collect rows of results into a table and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pc3d._files import check_writable
from pc3d.cli import _output
from pc3d.cli._inputs import check_picture
from pc3d.cli._parser import check_used, run_verb

if TYPE_CHECKING:
    from pc3d.evaluation.table import Table


def results(
    folders: list[str],
    format: Literal["markdown", "csv", "rows"] = "markdown",
    metric: str | None = None,
    order: list[str] | None = None,
    output: str | None = None,
    figure: str | None = None,
    overwrite: bool = False,
) -> None:
    """Collect rows of results into a table: methods by data sets and protocols, with intervals over seeds.

    Evaluation commands write the rows with --results FOLDER. Each cell states its number of seeds, and how many it
    lacks that others have. Results that were selected on the test split have their own columns.

    Args:
        folders: Folders with rows, sub-folders included; --folders itself may be left out.
        format: 'markdown' for reading, 'csv' for the cells of the table, 'rows' for the single rows as CSV.
        metric: Metric to show, such as mean_class_accuracy; the first of each protocol by default.
        order: Methods that come first, in this order; the others follow by name.
        output: File to write in place of standard output.
        figure: Picture to write too, dots with intervals: a .png, .svg or .pdf file.
        overwrite: Replace existing files.
    """
    from pc3d._files import replace_text
    from pc3d.evaluation import read_rows
    from pc3d.evaluation.table import rows_to_csv, tabulate, to_csv, to_markdown

    if output is not None:
        check_writable(Path(output).parent, "output")
    if output is not None and Path(output).exists() and not overwrite:
        raise FileExistsError(f"output: {output} exists and would be lost: choose another name, or add --overwrite")
    if figure is not None:
        check_picture("figure", figure, overwrite)
    if format == "rows" and figure is None:  # which are written as they are
        needs = dict.fromkeys(("metric", "order"), "tables and figures, and the format is rows")
        check_used(results, {"metric": metric, "order": order}, needs)
    rows = read_rows(folders)
    table = tabulate(rows, metric=metric, order=order or ())
    text = {"markdown": to_markdown, "csv": to_csv}[format](table) if format != "rows" else rows_to_csv(rows)
    if figure is not None:
        draw(table, Path(figure))
        _output.say(f"picture: {figure}")
    found = [row.to_dict() for row in rows]
    if output is None:
        _output.result(found, text.removesuffix("\n"))
        return
    path = Path(output)
    replace_text(path, text)
    _output.result(found, f"{path}: {len(rows)} rows, {len(table.methods)} methods, {len(table.columns)} columns")


def draw(table: Table, path: Path) -> None:
    """Write the figure of a table."""
    from pc3d.viz.results import ResultsPanel, results_figure

    panels = []
    for column in table.columns:
        cells = [table.cells.get((method, column)) for method in table.methods]
        legacy = column.selection == "legacy"
        how = "LEGACY, selected on the test split" if legacy else column.selection
        panels.append(
            ResultsPanel(
                f"{Path(column.data).name}: {column.protocol}\n({how}), {column.metric.replace('_', ' ')} in %",
                table.methods,
                [None if cell is None else 100 * cell.mean for cell in cells],
                [_percent(cell) for cell in cells],
                [[] if cell is None else [100 * value for value in cell.values] for cell in cells],
                legacy,
            )
        )
    note = "dot: mean over seeds; line: 95 % interval of the mean by Student's t; ticks: single seeds"
    path.parent.mkdir(parents=True, exist_ok=True)
    results_figure(panels, note=note).savefig(path)


def _percent(cell: Any) -> tuple[float, float] | None:
    if cell is None or cell.interval is None:
        return None
    return 100 * cell.interval[0], 100 * cell.interval[1]


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    return run_verb("results", results, argv, words=["folders"])
