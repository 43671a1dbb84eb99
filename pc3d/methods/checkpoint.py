"""Checkpoints that are whole or not there: written beside, flushed to the disk, then moved into place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_info

from pc3d._files import replace_atomically
from pc3d.methods.interruption import Interruption


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written atomically and read without running code from them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            TypeError: ``storage_options`` were given.
            OSError: the disk is full, the folder unwritable, ...; an older file of this name is left whole.
        """
        if storage_options is not None:
            raise TypeError(f"storage_options are not supported, got {storage_options!r}")
        with replace_atomically(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, location: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Read a checkpoint; only tensors and plain values are accepted, whatever ``weights_only`` says.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return super().load_checkpoint(path, map_location, weights_only=True)


class RunCheckpoint(pl.callbacks.Checkpoint):
    """Keeps ``last.ckpt`` of a run folder current: at the end of each epoch, and every few steps if asked.

    Args:
        folder: the run folder.
        every_n_steps: also write ``last.ckpt`` after every so many optimiser steps.
        keep_epochs: epochs (finished, counted from 1) whose checkpoint is also kept as ``epoch_N.ckpt``.

    Raises:
        ValueError: ``every_n_steps`` below 1.
    """

    def __init__(self, folder: Path, every_n_steps: int | None = None, keep_epochs: Sequence[int] = ()) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.keep_epochs = frozenset(keep_epochs)
        self._saved_step = self._seen_step = -1
        self._interruption = Interruption()

    @property
    def asked_to_stop(self) -> bool:
        """Whether Ctrl-C was pressed since the training began."""
        return self._interruption.requested

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From now on Ctrl-C lets the step end."""
        self._seen_step = trainer.global_step
        if trainer.world_size == 1:  # several processes would not end at the same step
            self._interruption.listen()

    def on_train_batch_start(self, *_: Any) -> None:
        """Leave, if that was asked for and ``last.ckpt`` is of this moment."""
        # Not when it is written: what was logged for the last step or epoch is to be on the disk, too.
        self._interruption.leave_if_saved()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Write ``last.ckpt`` if it is time."""
        step = trainer.global_step
        # After the last batch of an epoch comes its validation, which a run resumed from here would leave out; the
        # checkpoint at the end of the epoch follows in any case. Between two steps there are gradients to keep.
        due = self.every_n_steps is not None and step % self.every_n_steps == 0 and step != self._saved_step
        asked = self._interruption.requested and step != self._seen_step
        self._seen_step = step
        if (due or asked) and not trainer.is_last_batch:
            self._saved_step = step
            self._save(trainer, "last.ckpt")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``last.ckpt``, and ``epoch_N.ckpt`` for epochs to keep."""
        self._saved_step = trainer.global_step
        if trainer.current_epoch + 1 in self.keep_epochs:
            self._save(trainer, f"epoch_{trainer.current_epoch + 1}.ckpt")
        self._save(trainer, "last.ckpt")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Say how to go on."""
        if (self.folder / "last.ckpt").exists():
            rank_zero_info(f"{self.folder} keeps what was done: the run can be resumed")

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        trainer.save_checkpoint(self.folder / name, weights_only=False)  # the optimiser and the loops, too
        self._interruption.saved()
