"""Checkpoints, written atomically: to a temporary file that is flushed to the disk and then moved into place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
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

# Of batch norm.
_STATISTICS = ("running_mean", "running_var")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written atomically and read without running code from them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            TypeError: ``storage_options`` were given.
            OSError: the file cannot be written, for example because the disk is full; an older file is intact.
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
        """Read a checkpoint; only tensors and plain values are accepted, for any ``weights_only``.

        Raises:
            FileNotFoundError: the file does not exist.
        """
        return super().load_checkpoint(path, map_location, weights_only=True)


def global_batch_size(data: pl.LightningDataModule | None, processes: int) -> int | None:
    """Number of samples of a batch over all processes; None if the data module does not define it."""
    return data.batch_size * processes if isinstance(data, PointDataModule | AlignedStream) else None


class _DivergedError(ValueError):
    """Weights are no longer finite numbers."""


class RunCheckpoint(pl.callbacks.Checkpoint):
    """Write ``last.ckpt`` of a run folder at the end of each epoch and, optionally, after every few steps.

    Args:
        folder: the run folder.
        every_n_steps: also write ``last.ckpt`` after each multiple of this number of optimiser steps.
        keep_epochs: finished epochs, counted from 1, whose checkpoint is also kept as ``epoch_N.ckpt``.

    Raises:
        ValueError: ``every_n_steps`` or one of ``keep_epochs`` below 1; a run resumed with another optimiser; or, when
            a checkpoint is due, weights that are no longer finite numbers.
    """

    def __init__(self, folder: Path, every_n_steps: int | None = None, keep_epochs: Sequence[int] = ()) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        if any(epoch < 1 for epoch in keep_epochs):
            raise ValueError(f"keep_epochs must be numbers of epochs, counted from 1, got {list(keep_epochs)}")
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.keep_epochs = frozenset(keep_epochs)
        self._saved_step = self._seen_step = -1
        self._optimizers: list[str] | None = None  # of the run that is resumed
        self._interruption = Interruption()

    @property
    def asked_to_stop(self) -> bool:
        """Whether Ctrl-C or another signal has requested a stop since the training began."""
        return self._interruption.stops

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse to resume with another optimiser, before it gets a state that it cannot read."""
        before, now = self._optimizers, _optimizers_of(trainer)
        if before is not None and before != now:
            raise ValueError(
                f"cannot resume with the optimiser {', '.join(now)}: that of the run is {', '.join(before)}"
            )
        if trainer.ckpt_path is not None:
            # A configure_optimizers that reads trainer.estimated_stepping_batches has started the train loader, before
            # its place in the epoch is restored, and Lightning does not restore that of a loader that is there.
            trainer.fit_loop._combined_loader = None  # as Lightning's own tuner has it loaded anew

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to signals: from now on, Ctrl-C and other signals that request a stop let the step end."""
        self._seen_step = trainer.global_step
        self._interruption.listen(several=trainer.world_size > 1, speak=trainer.is_global_zero)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop, if a stop was requested and ``last.ckpt`` is up to date."""
        # Here, not when the checkpoint is written, so that the logs of the last step or epoch reach the disk, too.
        try:
            self._interruption.leave_if_saved()
        except KeyboardInterrupt:
            let_go(trainer)
            raise

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Write ``last.ckpt`` if it is due."""
        step = trainer.global_step
        self._decide(trainer)
        # Not after the last batch of an epoch: a run resumed from here would skip the validation, and the checkpoint at
        # the end of the epoch follows anyway. Not between two optimiser steps: accumulated gradients would be lost.
        due = self.every_n_steps is not None and step % self.every_n_steps == 0 and step != self._saved_step
        asked = self._interruption.stops and step != self._seen_step
        ends = _ends_here(trainer) and step != self._saved_step
        self._seen_step = step
        if (due or asked or ends) and not trainer.is_last_batch:
            self._saved_step = step
            self._save(trainer, "last.ckpt")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``last.ckpt`` after validation within an epoch if it is of this step, or if the run ends here."""
        if trainer.sanity_checking or trainer.is_last_batch:
            return
        # A run resumed from the earlier checkpoint would continue with the next step and lose this validation.
        saved = self._saved_step == trainer.global_step
        if saved or _ends_here(trainer):
            self._saved_step = trainer.global_step
            self._save(trainer, "last.ckpt")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``last.ckpt`` after a complete epoch, and ``epoch_N.ckpt`` if the epoch is to be kept."""
        if not trainer.is_last_batch:
            return
        self._decide(trainer)  # a stop may have been requested during validation
        self._saved_step = trainer.global_step
        if trainer.current_epoch + 1 in self.keep_epochs:
            self._save(trainer, f"epoch_{trainer.current_epoch + 1}.ckpt")
        self._save(trainer, "last.ckpt")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the global batch size and the optimiser: a run can be resumed only with the same."""
        checkpoint["global_batch_size"] = global_batch_size(getattr(trainer, "datamodule", None), trainer.world_size)
        checkpoint["optimizers"] = _optimizers_of(trainer)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note which optimiser the run has, for when there is one to compare it with."""
        self._optimizers = checkpoint.get("optimizers")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Tell the user that the run can be resumed, unless it failed before its first step now, or diverged."""
        if not isinstance(exception, _DivergedError) and self._seen_step >= 0 and (self.folder / "last.ckpt").exists():
            rank_zero_info(f"{self.folder} keeps what was done: the run can be resumed")

    def _decide(self, trainer: pl.Trainer) -> None:
        """Let all processes stop at the same step if any of them got a request."""
        if trainer.world_size > 1:
            requested = self._interruption.requested
            self._interruption.decide(trainer.strategy.reduce_boolean_decision(requested, all=False))

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        self._check_finite(trainer)  # or NaN would replace the last good weights, and be exported in the end
        trainer.save_checkpoint(self.folder / name, weights_only=False)  # with the states of optimiser and loops
        self._interruption.saved()

    def _check_finite(self, trainer: pl.Trainer) -> None:
        module = trainer.lightning_module
        # An infinite activation in one batch spoils the statistics for good, while the weights may stay finite. Other
        # buffers may hold what is not finite, such as masks.
        statistics = (item for item in module.named_buffers() if item[0].endswith(_STATISTICS))
        numbers = chain(module.named_parameters(), statistics)
        broken = next((name for name, value in numbers if not bool(value.detach().isfinite().all())), None)
        # All processes stop together, also if each holds another part of the weights.
        if trainer.strategy.reduce_boolean_decision(broken is None, all=True):
            return
        kept = self.folder / "last.ckpt"
        raise _DivergedError(
            f"training has diverged: at step {trainer.global_step}, weights are not finite numbers"
            + (f" ({broken}, for one)" if broken else "")
            + (f"; {kept} is from before" if kept.exists() else "; no checkpoint was written")
            + ": try a lower learning rate or --trainer.gradient_clip_val; --trainer.detect_anomaly true finds the "
            "operation that makes the first NaN"
        )


def _optimizers_of(trainer: pl.Trainer) -> list[str]:
    return [type(optimizer).__name__ for optimizer in trainer.optimizers]


def _ends_here(trainer: pl.Trainer) -> bool:
    """Whether ``max_steps``, ``max_time`` or a callback ends the run after this step.

    This may be within an epoch, the rest of which a resumed run has to do.
    """
    return trainer.should_stop or trainer.global_step == trainer.max_steps
