"""The metrics of a run in one CSV file that is kept across interruptions."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from pc3d._files import replace_atomically


class CsvMetrics(Logger):
    """Write one row per logged step to ``metrics.csv``, with one column per metric, empty where it was not logged.

    Lightning's own ``CSVLogger`` deletes the file of an interrupted run. This logger keeps its rows.

    Args:
        path: the file; rows already in it are kept.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._rows: list[dict[str, Any]] = []
        self._changed = False
        if self.path.exists():
            with open(self.path, newline="") as file:
                self._rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """Empty: a run folder has one file."""
        return ""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows so far; values that were read from a file are strings."""
        return self._rows

    def drop_after(self, step: int | None) -> None:
        """Remove rows after a step, which a resumed run logs again; None removes all rows, for a new run."""
        kept = [row for row in self._rows if step is not None and int(row["step"]) <= step]
        self._changed = self._changed or len(kept) < len(self._rows)
        self._rows = kept

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add values to the row of a step."""
        step = -1 if step is None else step
        if not self._rows or int(self._rows[-1]["step"]) != step:
            self._rows.append({"step": step})
        self._rows[-1].update(metrics)
        self._changed = True

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run folder holds the resolved configuration."""

    @rank_zero_only
    def save(self) -> None:
        """Write the file."""
        if not self._changed:
            return
        columns = ["step", "epoch", *sorted({key for row in self._rows for key in row} - {"step", "epoch"})]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        with replace_atomically(self.path) as file:
            file.write(text.getvalue().encode())
        self._changed = False

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the remaining rows."""
        self.save()
