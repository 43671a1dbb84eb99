"""Two processes with half the batch each train as one process does."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import environment

from pc3d import load_encoder

pytestmark = pytest.mark.slow
CONFIG = Path(__file__).parent / "tiny.yaml"


def run(folder: Path, *options: str) -> Path:
    arguments = [sys.executable, "-m", "pc3d.cli.main", "pretrain", "--config", str(CONFIG), "--output", str(folder)]
    done = subprocess.run([*arguments, *options], env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ddp")
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "24")
    return run(folder / "one", "--trainer.devices", "1"), run(folder / "two", *two)


def losses(folder: Path) -> list[list[float]]:
    """Every loss term of every step."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss_step"]]
    names = ("loss", "reconstruction", "contrast", "token_cosine")
    return [[float(row[f"train/{name}_step"]) for name in names] for row in rows]


def test_losses_agree(runs: tuple[Path, Path]) -> None:
    one, two = (losses(folder) for folder in runs)
    assert len(one) == len(two) == 20
    for ours, theirs in zip(two, one, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    assert one[0] != one[-1]


def test_weights_running_statistics_and_optimisers_agree(runs: tuple[Path, Path]) -> None:
    one, two = (torch.load(folder / "last.ckpt", weights_only=True) for folder in runs)
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=1e-5, atol=1e-5, msg=name)
    assert one["global_step"] == two["global_step"] == 20


def test_both_leave_an_encoder(runs: tuple[Path, Path]) -> None:
    one, two = (load_encoder(folder).state_dict() for folder in runs)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5, msg=name)
