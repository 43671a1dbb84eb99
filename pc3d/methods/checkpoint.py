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
from pc3d.data.aligned_stream import AlignedStream
from pc3d.data.module import PointDataModule
from pc3d.methods.interruption import Interruption, let_go


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


def global_batch_size(data: pl.LightningDataModule | None, processes: int) -> int | None:
    """Samples of a batch in all processes together; None where the data module does not say."""
    return data.batch_size * processes if isinstance(data, PointDataModule | AlignedStream) else None


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
        """Whether Ctrl-C was pressed, or a signal came that asks to stop, since the training began."""
        return self._interruption.stops

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From now on Ctrl-C, and a signal that asks to stop, lets the step end."""
        self._seen_step = trainer.global_step
        self._interruption.listen(several=trainer.world_size > 1, speak=trainer.is_global_zero)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Leave, if that was asked for and ``last.ckpt`` is of this moment."""
        # Not when it is written: what was logged for the last step or epoch is to be on the disk, too.
        try:
            self._interruption.leave_if_saved()
        except KeyboardInterrupt:
            let_go(trainer)
            raise

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Write ``last.ckpt`` if it is time."""
        step = trainer.global_step
        self._decide(trainer)
        # After the last batch of an epoch comes its validation, which a run resumed from here would leave out; the
        # checkpoint at the end of the epoch follows in any case. Between two steps there are gradients to keep.
        due = self.every_n_steps is not None and step % self.every_n_steps == 0 and step != self._saved_step
        asked = self._interruption.stops and step != self._seen_step
        ends = _ends_here(trainer) and step != self._saved_step
        self._seen_step = step
        if (due or asked or ends) and not trainer.is_last_batch:
            self._saved_step = step
            self._save(trainer, "last.ckpt")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``last.ckpt`` anew, if validation within an epoch follows the step that it is of, or ends the run."""
        if trainer.sanity_checking or trainer.is_last_batch:
            return
        # A run resumed from what was written before would go on with the next step, what was validated be forgotten.
        saved = self._saved_step == trainer.global_step
        if saved or _ends_here(trainer):
            self._saved_step = trainer.global_step
            self._save(trainer, "last.ckpt")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``last.ckpt``, and ``epoch_N.ckpt`` for epochs to keep, after a whole epoch."""
        if not trainer.is_last_batch:
            return
        self._decide(trainer)  # validation may have taken long
        self._saved_step = trainer.global_step
        if trainer.current_epoch + 1 in self.keep_epochs:
            self._save(trainer, f"epoch_{trainer.current_epoch + 1}.ckpt")
        self._save(trainer, "last.ckpt")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep how many samples a batch has in all processes together: a run that goes on with others is another."""
        checkpoint["global_batch_size"] = global_batch_size(getattr(trainer, "datamodule", None), trainer.world_size)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Say how to go on."""
        if (self.folder / "last.ckpt").exists():
            rank_zero_info(f"{self.folder} keeps what was done: the run can be resumed")

    def _decide(self, trainer: pl.Trainer) -> None:
        """Let all processes end at the same step, whichever of them was asked."""
        if trainer.world_size > 1:
            requested = self._interruption.requested
            self._interruption.decide(trainer.strategy.reduce_boolean_decision(requested, all=False))

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        trainer.save_checkpoint(self.folder / name, weights_only=False)  # the optimiser and the loops, too
        self._interruption.saved()


def _ends_here(trainer: pl.Trainer) -> bool:
    """Whether ``max_steps``, ``max_time`` or a callback ends the run after this step.

    That may cut an epoch short: a run that goes on has its rest to do.
    """
    return trainer.should_stop or trainer.global_step == trainer.max_steps
