"""What the scripts that fill tables over many runs share: how options and scores are kept on the disk."""

from __future__ import annotations

import csv
import json
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def keep_options(output: Path, wanted: dict[str, Any]) -> None:
    """Keep in the output folder what results depend on; end if those there were made with anything else.

    Args:
        output: the folder; the options are in its ``options.json``.
        wanted: values that JSON can hold. A dictionary among them may gain keys from call to call; those that were
            there must stay the same.

    Raises:
        SystemExit: results of other options are there.
    """
    path = output / "options.json"
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    clash = []
    for name, value in wanted.items() if kept else ():
        if isinstance(value, dict):
            before = kept.get(name, {})
            clash += [f"{name} {key}" for key in value if before.get(key, value[key]) != value[key]]
        elif kept.get(name) != value:
            clash.append(f"{name} {kept.get(name)!r}, now {value!r}")
    if clash:
        raise SystemExit(
            f"{output} holds results of other options ({'; '.join(clash)}): choose another --output, or give the "
            "options of before"
        )
    merged = {
        name: {**kept.get(name, {}), **value} if isinstance(value, dict) else value for name, value in wanted.items()
    }
    write_json(path, merged)


def finished(path: Path, what: str) -> bool:
    """Whether the file of a score is there; says so, since nothing is computed then."""
    if path.exists():
        print(f"{path.parent}: {what} done already")
    return path.exists()


def write_json(path: Path, values: dict[str, Any]) -> None:
    """With the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, json.dumps(values, indent=2) + "\n")


def replace(path: Path, text: str) -> None:
    """Write a file at once: several processes may write the same one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_csv(path: Path, fields: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """A row per score, at once as well."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, path)


def mean_and_deviation(values: Sequence[float]) -> str:
    """Of at least two values with their sample standard deviation; of none an empty cell."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"
