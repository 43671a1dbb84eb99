"""Checkpoints that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tiny import QUIET, cmae, data, mae, same

from pc3d._files import replace_atomically
from pc3d.methods import AtomicCheckpointIO, RunCheckpoint, pretrain


def state(seed: int = 0) -> dict[str, Any]:
    return {"global_step": seed, "weights": torch.full((50_000,), float(seed))}


def partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def test_what_is_written_is_read_back_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "last.ckpt"
    plugin = AtomicCheckpointIO()
    for seed in (1, 2):
        plugin.save_checkpoint(state(seed), path)
        assert same(plugin.load_checkpoint(path), state(seed))
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    plugin = AtomicCheckpointIO()
    plugin.save_checkpoint(state(1), path)
    partial(path).symlink_to("/dev/full")  # every write through it fails with ENOSPC
    with pytest.raises(
        OSError, match=r"cannot write .*last\.ckpt.*No space left.*the file from before is intact"
    ) as info:
        plugin.save_checkpoint(state(2), path)
    assert info.value.errno == 28
    assert same(plugin.load_checkpoint(path), state(1))
    assert os.listdir(tmp_path) == ["last.ckpt"]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_failing_at_the_last_moment_leaves_the_last_checkpoint_whole(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    plugin = AtomicCheckpointIO()
    plugin.save_checkpoint(state(1), path)

    def fail(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, moment, fail)
    with pytest.raises(OSError, match=r"Permission denied.*is intact"):
        plugin.save_checkpoint(state(2), path)
    monkeypatch.undo()
    assert same(plugin.load_checkpoint(path), state(1))
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    for folder in (blocked, Path("/proc/pc3d")):  # neither can hold files, not even for root
        with pytest.raises(OSError, match=f"cannot write {folder}/last.ckpt.*nothing was written"):
            AtomicCheckpointIO().save_checkpoint(state(), folder / "last.ckpt")


def test_an_error_of_the_writer_is_passed_on_and_cleaned_up(tmp_path: Path) -> None:
    def write() -> None:
        with replace_atomically(tmp_path / "x") as file:
            file.write(b"half")
            raise KeyError("oops")

    with pytest.raises(KeyError, match="oops"):
        write()
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_told_once_of_files_that_belong_together(tmp_path: Path) -> None:
    def write() -> None:
        with replace_atomically(tmp_path / "x"), replace_atomically(tmp_path / "y"):
            raise OSError(28, "No space left on device")

    (tmp_path / "x").write_text("before")
    with pytest.raises(OSError, match="cannot write") as caught:
        write()
    assert caught.value.strerror == f"cannot write {tmp_path / 'y'} (No space left on device): nothing was written"
    assert (os.listdir(tmp_path), (tmp_path / "x").read_text()) == (["x"], "before")


def test_ctrl_c_while_a_missing_file_is_handled_stays_ctrl_c(tmp_path: Path) -> None:
    def write() -> None:
        with replace_atomically(tmp_path / "x"):
            try:
                open(tmp_path / "missing")  # noqa: SIM115
            except OSError:
                raise KeyboardInterrupt from None

    with pytest.raises(KeyboardInterrupt):
        write()
    assert os.listdir(tmp_path) == []


def test_a_file_that_may_not_be_replaced_stays(tmp_path: Path) -> None:
    with replace_atomically(tmp_path / "x", overwrite=False) as file:
        file.write(b"first")
    with pytest.raises(FileExistsError, match=r"x .*is intact"), replace_atomically(tmp_path / "x", overwrite=False):
        pass
    assert (os.listdir(tmp_path), (tmp_path / "x").read_bytes()) == (["x"], b"first")


class Innocent:
    """Any class whose pickle would have to be run."""


def test_reading_runs_no_code(tmp_path: Path) -> None:
    torch.save({"x": Innocent()}, tmp_path / "x.ckpt")
    for weights_only in (None, False, True):
        with pytest.raises(Exception, match="Weights only load failed"):
            AtomicCheckpointIO().load_checkpoint(tmp_path / "x.ckpt", weights_only=weights_only)
    with pytest.raises(FileNotFoundError):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "absent.ckpt")


def test_a_training_whose_disk_fills_up_stops_and_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, count = AtomicCheckpointIO.save_checkpoint, []

    def fill(self: AtomicCheckpointIO, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        count.append(path)
        if len(count) == 2:
            partial(Path(path)).symlink_to("/dev/full")
        save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", fill)
    with pytest.raises(OSError, match=r"cannot write .*last\.ckpt"):
        pretrain(cmae(), data(240), tmp_path / "a", max_epochs=3, **QUIET)
    assert torch.load(tmp_path / "a" / "last.ckpt", weights_only=True)["epoch"] == 0
    assert not (tmp_path / "a" / "encoder").exists()
    monkeypatch.undo()
    resumed = cmae()
    pretrain(resumed, data(240), tmp_path / "a", resume=True, max_epochs=3, **QUIET)
    whole = cmae()
    pretrain(whole, data(240), tmp_path / "b", max_epochs=3, **QUIET)
    assert same(resumed.state_dict(), whole.state_dict())


class _Spoil(pl.Callback):
    """Makes numbers NaN at a step, as a gradient or an activation that is not finite would."""

    def __init__(self, numbers: Callable[[pl.LightningModule], Iterable[torch.Tensor]]) -> None:
        self.numbers = numbers

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == 12:
            next(iter(self.numbers(module))).data[0] = float("nan")


def _statistics(module: pl.LightningModule) -> Iterable[torch.Tensor]:
    """Variances of batch norm, behind a mask, which is meant to hold infinities."""
    module.register_buffer("mask", torch.full((2,), -torch.inf))
    return (value for name, value in module.named_buffers() if name.endswith("running_var"))


@pytest.mark.parametrize("numbers", [pl.LightningModule.parameters, _statistics], ids=["weights", "batch norm"])
def test_weights_that_are_no_numbers_end_the_run_and_replace_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, numbers: Callable[[pl.LightningModule], Iterable[torch.Tensor]]
) -> None:
    with pytest.raises(
        ValueError, match=r"diverged: at step 12, weights are .* \(model\.\S+, for one\); .* from before"
    ):
        pretrain(mae(), data(), tmp_path, every_n_steps=4, max_epochs=3, callbacks=_Spoil(numbers), **QUIET)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 8
    assert all(bool(value.isfinite().all()) for value in kept["state_dict"].values())
    assert not (tmp_path / "encoder").exists()
    assert "can be resumed" not in caplog.text  # it would diverge again


def test_checkpoints_to_keep(tmp_path: Path) -> None:
    pretrain(mae(), data(240), tmp_path, max_epochs=3, keep_epochs=[1, 3], **QUIET)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["epoch_1.ckpt", "epoch_3.ckpt", "last.ckpt"]
    first = torch.load(tmp_path / "epoch_1.ckpt", weights_only=True)
    assert first["global_step"] == 2
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 6


def test_bad_interval_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every_n_steps must be at least 1, got 0"):
        RunCheckpoint(tmp_path, every_n_steps=0)
    for epoch in (0, -1):
        with pytest.raises(ValueError, match=rf"keep_epochs must be .* counted from 1, got \[5, {epoch}\]"):
            pretrain(mae(), data(), tmp_path / "run", keep_epochs=[5, epoch], max_epochs=1, **QUIET)
    assert not (tmp_path / "run").exists()
