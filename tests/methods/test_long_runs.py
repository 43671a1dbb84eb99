"""Runs that a scheduler starts, stops and starts again: signals, one command at a time, options, where runs end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator
from tiny import QUIET, Stop, cmae, command, data, environment, same

from pc3d._files import alone_in
from pc3d.cli.main import main
from pc3d.methods import PointCMAE, is_first_process, pretrain
from pc3d.methods.interruption import SIGNALS, Interruption, interruptible

CONFIG = str(Path(__file__).parent / "tiny.yaml")


def train(folder: Path, **options: Any) -> PointCMAE:
    method = cmae()
    pretrain(method, data(120), folder, **{**QUIET, "max_epochs": 2, **options})  # 4 steps an epoch
    return method


def state(folder: Path) -> dict[str, Any]:
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    return {name: checkpoint[name] for name in ("state_dict", "optimizer_states", "global_step", "epoch")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


class Signal(pl.Callback):
    """Sends a signal to this process in a step."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            signal.raise_signal(self.number)


# ---- signals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_of_a_scheduler_lets_the_step_end_and_the_run_goes_on(
    number: signal.Signals,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if number == signal.SIGUSR1:  # Lightning has an answer of its own there, in the midst of a step
        job = {"NTASKS": 1, "NTASKS_PER_NODE": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "JOB_ID": 7, "JOB_NAME": "a"}
        for name, value in job.items():
            monkeypatch.setenv(f"SLURM_{name}", str(value))
    before = {each: signal.getsignal(each) for each in SIGNALS}
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, callbacks=[Signal(number, 5)])
    assert f"{number.name}: stopping after this step" in capsys.readouterr().err
    assert state(tmp_path)["global_step"] == 6
    assert not (tmp_path / "encoder").exists()
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["last.ckpt"]
    assert {each: signal.getsignal(each) for each in SIGNALS} == before
    train(tmp_path, resume=True)
    assert same(state(tmp_path), state(whole))


@pytest.mark.slow
def test_several_processes_stop_together_when_one_is_asked_between_two_epochs(tmp_path: Path) -> None:
    done = subprocess.run(command("signal_run.py", tmp_path), env=environment(), capture_output=True, timeout=200)
    assert done.returncode == 130, done.stderr[-2000:]
    assert state(tmp_path)["epoch"] == 0
    assert not (tmp_path / "encoder").exists()


def test_a_signal_before_training_begins_is_an_interruption_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    validate = "pc3d.methods.PointCMAE.validation_step"  # which Lightning tries before the first step
    monkeypatch.setattr(validate, lambda *_: signal.raise_signal(signal.SIGTERM))
    watched = ["--data.validation_fraction", "0.3"]
    assert main(["pretrain", "--config", CONFIG, "--output", str(tmp_path / "run"), *watched]) == 130
    assert "nothing was finished yet, start again with --overwrite" in capsys.readouterr().err


def test_a_launcher_may_repeat_ctrl_c_but_a_user_is_heard() -> None:
    with interruptible():
        one = Interruption()
        one.listen()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # asks for no more than the first
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        several = Interruption()
        several.listen(several=True, speak=False)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert several.requested
        several._since -= 3.0  # seconds later
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_of_several_processes_none_stops_before_all_have_decided() -> None:
    with interruptible():
        asked, other = Interruption(), Interruption()
        for each in (asked, other):
            each.listen(several=True, speak=False)
        asked.requested = True
        asked.saved()  # while a checkpoint was written
        assert not asked.stops
        asked.leave_if_saved()
        for each in (asked, other):
            each.decide(True)
            each.saved()
            with pytest.raises(KeyboardInterrupt):
                each.leave_if_saved()
        signal.raise_signal(signal.SIGINT)  # which reached the other one later


# ---- one command at a time ---------------------------------------------------------------------------------------


def test_a_folder_in_which_another_process_trains_is_left_alone(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    train(folder, max_epochs=1)
    held = state(folder)
    code = "import sys, pathlib\nfrom pc3d._files import alone_in\nwith alone_in(pathlib.Path(sys.argv[1])):\n"
    code += " print('held', flush=True)\n sys.stdin.read()"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        for how in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(BlockingIOError, match=f"another process is at work in {folder}: wait until"):
                train(folder, **how)
        other.kill()  # and the lock is gone
    assert same(state(folder), held)
    train(folder, resume=True, max_epochs=2)


def test_processes_that_are_forked_neither_share_the_lock_nor_keep_it(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with alone_in(tmp_path):
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)  # until the parent has looked
            os._exit(0)
        os.close(reader)
    try:
        code = "import sys, pathlib\nfrom pc3d._files import alone_in\nwith alone_in(pathlib.Path(sys.argv[1])): pass"
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    finally:
        os.close(writer)
        os.waitpid(child, 0)


def test_the_first_process_of_the_first_machine_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("NODE_RANK", "1")
    assert is_first_process()  # a run of its own on each machine
    assert not is_first_process(num_nodes=2)
    monkeypatch.setenv("NODE_RANK", "0")
    assert is_first_process(num_nodes=2)


# ---- options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("accelerator", "cuda", "trainer: .*; pc3d doctor shows which devices there are"),
        ("accelerator", "mps", "trainer.accelerator: mps cannot be used: pc3d has kernels for CPUs and CUDA"),
        ("max_time", "2s", "trainer: .*Expected a string in the format DD:HH:MM:SS"),
        ("precision", "bf16-true", "trainer.precision: bf16-true keeps the weights in 16 bits.*use bf16-mixed"),
        ("overfit_batches", "2", "trainer.overfit_batches: .*train on a pc3d.data.Selection"),
        ("strategy", "fsdp", "requires a GPU accelerator"),
        ("limit_train_batches", "0", "trainer.limit_train_batches: 0 trains nothing, .*: give 1 or more, or leave it"),
        ("max_epochs", "0", "trainer.max_epochs: 0 trains nothing"),
        ("max_steps", "0", "trainer.max_steps: 0 trains nothing"),
    ],
)
def test_what_lightning_refuses_costs_no_run(
    option: str, value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CUDAAccelerator, "is_available", lambda: False)
    folder = tmp_path / "run"
    with pytest.raises((ValueError, RuntimeError), match=message):
        train(folder, **{option: int(value) if value.isdigit() else value})
    assert not folder.exists()


def test_a_macs_gpu_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    # Lightning looks at the machine once and remembers it.
    monkeypatch.setattr("lightning_fabric.accelerators.mps.MPSAccelerator.is_available", lambda: True)
    assert MPSAccelerator.is_available()
    with pytest.raises(ValueError, match=r"trainer\.accelerator: gpu cannot be used: .* not for mps: give cpu"):
        train(tmp_path, accelerator="gpu", max_steps=1)
    engine = pretrain(cmae(), data(120), tmp_path, **{**QUIET, "accelerator": "auto", "max_epochs": 1})
    assert engine.strategy.root_device.type == "cpu"


def test_lightnings_refusals_are_errors_like_any_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["pretrain", "--config", CONFIG, "--output", str(tmp_path / "run")]
    assert main([*arguments, "--trainer.limit_train_batches", "0.01"]) == 1  # seen only when the data are loaded
    assert capsys.readouterr().err.startswith("error: trainer: You requested to check 0.01 of the `train_dataloader`")


def test_what_was_never_trained_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"not one step was trained, and nothing is exported: is trainer\.max_time too"
    ):
        train(tmp_path, max_time="00:00:00:00")
    assert not (tmp_path / "encoder").exists()


# ---- where runs end ----------------------------------------------------------------------------------------------


def test_a_run_of_few_steps_goes_on_within_its_epoch(whole: Path, tmp_path: Path) -> None:
    train(tmp_path, max_steps=3)
    assert (tmp_path / "encoder" / "config.json").exists()
    assert state(tmp_path)["global_step"] == 3
    train(tmp_path, resume=True)
    assert same(state(tmp_path), state(whole))


@pytest.mark.parametrize("every_n_steps", [None, 1])
def test_a_run_that_validation_ends_within_an_epoch_leaves_its_checkpoint(
    tmp_path: Path, every_n_steps: int | None
) -> None:
    def watched(folder: Path, *callbacks: pl.Callback, **options: Any) -> None:
        held_out = data(120, validation_fraction=0.2)  # 3 steps an epoch
        options = {"max_epochs": 2, "val_check_interval": 2, "callbacks": list(callbacks), **QUIET, **options}
        pretrain(cmae(), held_out, folder, every_n_steps=every_n_steps, **options)

    watched(tmp_path / "a", pl.callbacks.EarlyStopping("validation/loss", mode="max", min_delta=1e9, patience=1))
    assert (tmp_path / "a" / "encoder" / "config.json").exists()
    left = torch.load(tmp_path / "a" / "last.ckpt", weights_only=False)
    assert left["global_step"] == 5
    (stopping,) = (kept for name, kept in left["callbacks"].items() if name.startswith("EarlyStopping"))
    assert stopping["wait_count"] == 1  # and what it validated is not forgotten
    watched(tmp_path / "a", resume=True)
    watched(tmp_path / "b")
    assert same(state(tmp_path / "a"), state(tmp_path / "b"))


def test_a_run_that_is_killed_while_it_writes_goes_on_and_tidies_up(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        train(tmp_path, callbacks=[Stop(6)])
    for name in ("last.ckpt", "epoch_1.ckpt", "metrics.csv", "config.yaml"):
        (tmp_path / f".{name}.4711.partial").write_bytes(b"half")
    (tmp_path / ".other.4711.partial").touch()
    train(tmp_path, resume=True)
    assert [path.name for path in tmp_path.glob(".*.partial")] == [".other.4711.partial"]
    assert same(state(tmp_path), state(whole))


def test_a_run_goes_on_with_the_same_batches_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    arguments = ["pretrain", "--output", str(folder)]
    assert main([*arguments, "--config", CONFIG, "--trainer.max_steps", "2"]) == 0
    config = (folder / "config.yaml").read_text()
    capsys.readouterr()
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp_spawn"]
    for options, message in (
        (["--data.batch_size", "24"], "batches of 24 on each of 1 processes: those of the run are of 48 together"),
        (two, "batches of 48 on each of 2 processes: those of the run are of 48 together: --data.batch_size 24"),
    ):
        assert main([*arguments, "--resume", *options]) == 1
        assert message in capsys.readouterr().err
    assert (folder / "config.yaml").read_text() == config
