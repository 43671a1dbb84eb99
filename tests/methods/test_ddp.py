"""Two processes with half the batch each train as one process does."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import command, environment


def run(out: Path, devices: int, batch_size: int) -> dict[str, Any]:
    arguments = command("ddp_run.py", out, str(devices), str(batch_size))
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = torch.load(out, weights_only=True)
    return result


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ddp")
    return run(folder / "1.pt", 1, 24), run(folder / "2.pt", 2, 12)


def test_losses_agree(runs: tuple[dict[str, Any], dict[str, Any]]) -> None:
    one, two = runs
    assert len(one["losses"]) == len(two["losses"]) == 8
    for ours, theirs in zip(two["losses"], one["losses"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    assert one["losses"][0]["loss"] != one["losses"][-1]["loss"]


def test_weights_and_running_statistics_agree(runs: tuple[dict[str, Any], dict[str, Any]]) -> None:
    one, two = (run["weights"] for run in runs)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5, msg=name)
