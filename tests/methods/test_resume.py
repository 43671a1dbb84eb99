"""A run that was killed and resumed ends bit for bit as one that was left alone."""

from __future__ import annotations

import csv
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import QUIET, Stop, cmae, command, data, encoder, environment, same

from pc3d import load_encoder
from pc3d.methods import PointCMAE, PointMAE, pretrain

STEPS_PER_EPOCH, EPOCHS = 4, 3


def train(folder: Path, *, stop: int | None = None, resume: bool = False) -> PointCMAE:
    method = cmae()
    torch.manual_seed(int(time.time()))  # a resumed process has another state of PyTorch's default generator
    callbacks = [] if stop is None else [Stop(stop)]
    arguments = {**QUIET, "every_n_steps": 3, "callbacks": callbacks, "max_epochs": EPOCHS}
    pretrain(method, data(120), folder, resume=resume, **arguments)
    return method


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PointCMAE]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder)


def final_state(folder: Path) -> dict[str, Any]:
    """Weights, optimiser, schedule and position of the last checkpoint."""
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    return {
        name: checkpoint[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    }


def per_step(folder: Path) -> list[dict[str, str]]:
    """The metrics of each step. (The mean over an epoch is that since the resume, where one fell into it.)"""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: row[name] for name in row if name.endswith("_step") or name == "step"} for row in rows]


@pytest.mark.parametrize("step", range(3, STEPS_PER_EPOCH * EPOCHS))
def test_broken_off_before_any_step(step: int, whole: tuple[Path, PointCMAE], tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        train(tmp_path, stop=step)
    reached = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
    assert step - 3 < reached <= step
    method = train(tmp_path, resume=True)
    assert same(method.state_dict(), whole[1].state_dict())
    assert same(final_state(tmp_path), final_state(whole[0]))
    assert per_step(tmp_path) == per_step(whole[0])


class OneCycle(PointMAE):
    """A schedule of its own, as Lightning's documentation writes one: its length makes Lightning start the data."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_schedule_that_asks_for_the_number_of_steps_goes_on_with_the_next_batch(workers: int, tmp_path: Path) -> None:
    def run(name: str, *, stop: int | None = None, resume: bool = False) -> dict[str, Any]:
        torch.manual_seed(0)
        method = OneCycle(encoder(0), decoder_depth=1, decoder_num_heads=2)
        callbacks = [] if stop is None else [Stop(stop)]
        arguments = {**QUIET, "every_n_steps": 1, "callbacks": callbacks, "max_epochs": 2}
        pretrain(method, data(120, num_workers=workers), tmp_path / name, resume=resume, **arguments)
        return final_state(tmp_path / name)

    with pytest.raises(InterruptedError):
        run("stopped", stop=STEPS_PER_EPOCH + 2)
    assert same(run("stopped", resume=True), run("whole"))


@pytest.mark.slow
def test_killed(tmp_path: Path) -> None:
    """A real process, killed from outside in the middle of an epoch, twice."""
    left_alone, killed = tmp_path / "a", tmp_path / "b"
    subprocess.run(command("kill_run.py", left_alone, "fresh"), env=environment(), check=True, timeout=300)
    for mode, beyond in (("fresh", 9), ("resume", 21)):
        process = subprocess.Popen(command("kill_run.py", killed, mode), env=environment())
        deadline = time.monotonic() + 200
        while not (killed / f"reached_{beyond}").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        reached = torch.load(killed / "last.ckpt", weights_only=True)["global_step"]
        assert 0 < reached < 40
        assert not (killed / "encoder").exists()
    subprocess.run(command("kill_run.py", killed, "resume"), env=environment(), check=True, timeout=300)
    assert same(final_state(killed), final_state(left_alone))
    ours, theirs = load_encoder(killed), load_encoder(left_alone)
    assert same(ours.state_dict(), theirs.state_dict())
