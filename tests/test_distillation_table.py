"""The table of distilled encoders: what is written from finished scores."""

from __future__ import annotations

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
