"""The table of distilled encoders: what is written from finished scores."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def table(import_script: Callable[[str], ModuleType]) -> ModuleType:
    return import_script("benchmarks/distillation.py")


def test_scores_of_all_seeds_make_a_row(table: ModuleType, tmp_path: Path) -> None:
    scores = {
        "lifted/seed0/probe-teacher.json": 0.1,
        "unet/seed0/probe-scratch.json": 0.2,
        "unet/seed1/probe-scratch.json": 0.3,
        "unet/seed0/probe-cosine.json": 0.5,
        "swin3d/seed0/scratch-10/scores.json": 0.35,
        "swin3d/seed0/slidr-10/scores.json": 0.4,
    }
    for name, score in scores.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"miou": score, "macc": 0.5, "allacc": 0.75, "rooms": 3, "seconds": 1.0}))
    table.write_table(tmp_path)
    rows = (tmp_path / "table.md").read_text().splitlines()[4:]
    assert rows == [
        "| lifted features | linear probe (3 rooms) | the tower's own | 0 | 10.0 | 50.0 | 75.0 |",
        "| sparse U-Net | linear probe (3 rooms) | untrained | 0, 1 | 25.0 ± 7.1 | 50.0 ± 0.0 | 75.0 ± 0.0 |",
        "| sparse U-Net | linear probe (3 rooms) | regression, cosine | 0 | 50.0 | 50.0 | 75.0 |",
        "| Swin3D-S, reduced | 10 % (3 rooms) | from scratch | 0 | 35.0 | 50.0 | 75.0 |",
        "| Swin3D-S, reduced | 10 % (3 rooms) | contrast of superpoints (SLidR) | 0 | 40.0 | 50.0 | 75.0 |",
    ]
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + len(scores)


def test_few_labels_start_from_what_was_distilled(table: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[object, ...]] = []
    for name in ("probe", "names", "distil"):
        monkeypatch.setattr(table, name, lambda *given, name=name: called.append((name, *given[1:2])))
    monkeypatch.setattr(table, "segment", lambda _, *given, **head: called.append(("segment", *given, *head)))

    def work(*only: str) -> list[tuple[object, ...]]:
        called.clear()
        options = argparse.Namespace(only=list(only), objectives=["cosine", "slidr"])
        experiment = table.Experiment("swin3d", 0, Path("out"), None, None, options)
        for job in table.jobs(experiment, None):
            job()
        return list(called)

    distilled = [("distil", "cosine"), ("distil", "slidr")]
    assert work("10") == [
        *distilled,
        ("segment", "scratch", "10"),
        ("segment", "cosine", "10", "cosine"),
        ("segment", "slidr", "10", "slidr"),
    ]
    assert work("language", "names") == [("names",), ("segment", "language", "10", "head", "language")]
    assert work("probe") == [("probe", "scratch"), *[step for one in distilled for step in (one, ("probe", one[1]))]]
