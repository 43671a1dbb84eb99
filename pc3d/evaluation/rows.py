"""Rows of results, which every evaluation command can add to a folder, and from which tables are made.

A row is a JSON file of its own, so that several processes may write into one folder and none can damage what another
wrote.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pc3d._files import replace_atomically

SELECTIONS = ("fixed", "tuned", "validation", "legacy")
SUFFIX = ".row.json"


@dataclass(frozen=True)
class Row:
    """A result of one method under one protocol on one data set with one seed.

    Attributes:
        method: name of what was evaluated, as in the table. Runs that differ only in the seed share it.
        protocol: how it was evaluated, such as ``"linear SVM"`` or ``"fine-tuning (full)"``.
        selection: what chose the free choices of the protocol: ``"fixed"`` (nothing), ``"tuned"`` (cross-validation on
            the training split), ``"validation"`` (a part of the training split) or ``"legacy"`` (the test split).
        data: name of the data set.
        data_hash: of the contents of the training and the test split; rows that differ in it are never put together.
        seed: of everything that was drawn.
        metrics: name to fraction in [0, 1], such as ``overall_accuracy``, ``map`` or ``recall@1``; the first one is
            what a table shows. Ratios such as the mean corruption error may exceed 1.
        num_train: training items with a label that were used.
        num_test: test items.
        config: every other setting that decides the result, as plain data; not the seed, no path.
        details: what else is worth keeping, as plain data: the chosen value, the source of the encoder.
        versions: of the software.
        cost: name to number: ``cpu_seconds``, ``peak_memory_bytes``, ``parameters`` and the like.

    Raises:
        ValueError: an unknown selection, no metric, or a value that is not a finite number.
        TypeError: something that is not plain data.
    """

    method: str
    protocol: str
    selection: str
    data: str
    data_hash: str
    seed: int
    metrics: dict[str, float]
    num_train: int
    num_test: int
    config: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("method", "protocol", "data", "data_hash"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"{name} must be text that is not empty, got {getattr(self, name)!r}")
        for name in ("seed", "num_train", "num_test"):
            if type(getattr(self, name)) is not int:
                raise TypeError(f"{name} must be an int, got {getattr(self, name)!r}")
        if self.selection not in SELECTIONS:
            raise ValueError(f"selection must be one of {SELECTIONS}, got {self.selection!r}")
        if not self.metrics:
            raise ValueError("metrics is empty: a row holds at least one")
        for kind in ("metrics", "cost"):
            for name, value in getattr(self, kind).items():
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise ValueError(f"{kind}[{name!r}] must be a finite number, got {value!r}")
        for name in ("config", "details"):  # as they will be read back: a tuple as a list
            object.__setattr__(self, name, json.loads(_canonical(name, getattr(self, name))))

    @property
    def config_hash(self) -> str:
        """First 16 hexadecimal digits of SHA-256 over the settings."""
        return _digest(_canonical("config", self.config))

    @property
    def key(self) -> tuple[str, str, str, str, str, int, str]:
        """What a result is of: two rows of one key are the same experiment and must agree."""
        return (
            *(self.method, self.protocol, self.selection, self.data),
            *(self.data_hash, self.seed, self.config_hash),
        )

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data, ready for JSON."""
        return {**asdict(self), "config_hash": self.config_hash}


def data_hash(train_hash: str, test_hash: str) -> str:
    """The hash of a row from those of its two splits."""
    return f"{train_hash}-{test_hash}"


def write_rows(rows: Iterable[Row], folder: Path | str) -> list[Path]:
    """Add rows to a folder, one file each; an existing row with the same result is kept.

    Args:
        rows: what to add.
        folder: made if need be. Several processes may write into it at the same time.

    Returns:
        The files, in the order of the rows.

    Raises:
        FileExistsError: the folder holds another result for the same experiment; nothing of it is changed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return [_write(row, folder) for row in rows]


def _write(row: Row, folder: Path) -> Path:
    words = "-".join((row.method, row.protocol, row.selection, Path(row.data).name, f"seed{row.seed}"))
    readable = re.sub(r"[^A-Za-z0-9]+", "-", words).strip("-").lower()
    path = folder / f"{readable[:120]}-{_digest(json.dumps(row.key))}{SUFFIX}"
    text = json.dumps(row.to_dict(), indent=2, allow_nan=False) + "\n"
    try:
        with replace_atomically(path, overwrite=False) as file:
            file.write(text.encode())
    except FileExistsError:
        before = read_row(path)
        if not _agree(before, row):
            raise FileExistsError(
                f"{path} holds another result of the same experiment ({_in_words(before)}; now {_in_words(row)}), "
                "which would be lost: give the new one another method name or another folder, or remove the file"
            ) from None
    return path


def read_row(path: Path | str) -> Row:
    """Read a file of :func:`write_rows`.

    Raises:
        ValueError: not a row, or one that was changed by hand so that its parts do not agree.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from error
    return row_from(content, path)


def row_from(content: Any, path: Path | str) -> Row:
    """The row that :meth:`Row.to_dict` gave ``content`` of; ``path`` is the file that it was in.

    Raises:
        ValueError: not a row, or one that was changed by hand so that its parts do not agree.
    """
    expected = {entry.name for entry in fields(Row)} | {"config_hash"}
    if not isinstance(content, dict) or set(content) != expected:
        found = set(content) if isinstance(content, dict) else set()
        raise ValueError(
            f"{path} is not a row of results: missing {sorted(expected - found)}, unknown {sorted(found - expected)}"
        )
    values = dict(content)
    stored = values.pop("config_hash")
    try:
        row = Row(**values)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a row of results: {error}") from error
    if row.config_hash != stored:
        raise ValueError(f"{path}: config_hash is {stored!r}, but the settings in it have {row.config_hash!r}")
    return row


def read_rows(folders: Iterable[Path | str]) -> list[Row]:
    """All rows of some folders, sub-folders included, in a fixed order; a row that is in several counts once.

    Raises:
        FileNotFoundError: a folder does not exist, or holds no row.
        ValueError: a file is not a row, or two rows of one experiment differ.
    """
    found: dict[tuple[Any, ...], tuple[Path, Row]] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"there is no folder {folder}: name one that judging verbs wrote rows to, with --results"
            )
        paths = sorted(path for path in folder.rglob(f"*{SUFFIX}") if not path.name.startswith("."))
        if not paths:
            raise FileNotFoundError(f"{folder} holds no row of results: judging verbs write them with --results")
        for path in paths:
            row = read_row(path)
            first, known = found.setdefault(row.key, (path, row))
            if not _agree(known, row):
                raise ValueError(
                    f"{path} and {first} are of the same experiment and differ ({_in_words(row)}; {_in_words(known)})"
                )
    return [found[key][1] for key in sorted(found, key=str)]


def _agree(first: Row, second: Row) -> bool:
    """Whether two rows of one key have the same outcome; cost, versions and details may differ."""
    if set(first.metrics) != set(second.metrics):
        return False
    # The order of summation may change the last digits from one machine to another.
    same = all(math.isclose(value, second.metrics[name], rel_tol=1e-9) for name, value in first.metrics.items())
    return same and (first.num_train, first.num_test) == (second.num_train, second.num_test)


def _in_words(row: Row) -> str:
    values = ", ".join(f"{name} {value:.6g}" for name, value in list(row.metrics.items())[:3])
    return f"{values}, {row.num_train} train, {row.num_test} test"


def _canonical(name: str, value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be plain data that JSON can hold: {error}") from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
