"""Common base of classification and part segmentation: training on objects that keeps the best epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
from torch import Tensor, nn

from pc3d.data.types import PointBatch
from pc3d.evaluation.classification import content_hash
from pc3d.evaluation.cost import cpu_seconds
from pc3d.nn import all_reduce_sum
from pc3d.tasks.draws import draws_of_step
from pc3d.tasks.fine_tuning import FineTuning
from pc3d.tasks.selection import EpochScore, EpochSelection


class Tally(Protocol):
    """Counts that add up over batches and processes, and the scores they make."""

    counts: Tensor

    def means(self) -> dict[str, float]:
        """Name to score."""


class ObjectTask(pl.LightningModule, ABC):
    """Train a model of objects, and keep the best epoch on validation after the run.

    The data module defines what is evaluated after each epoch (:class:`pc3d.data.ObjectDataModule`). Dropout and drop
    path are drawn in each step from (seed, epoch, step, process), so an interrupted and resumed run ends like an
    uninterrupted one, bit for bit on a CPU.

    Args:
        model: has ``encoder``.
        optimisation: optimiser (AdamW by default) and its schedule.
        peak: the published learning rate.
        seed: of the draws within the network.

    Raises:
        ValueError: a negative seed.
    """

    score: str
    """Name of the score that chooses the epoch."""

    def __init__(self, model: nn.Module, optimisation: FineTuning, peak: float, seed: int) -> None:
        super().__init__()
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        self.model, self.optimisation, self.peak, self.seed = model, optimisation, peak, seed
        self.selection = EpochSelection()
        self._spent, self._started = 0.0, cpu_seconds()
        self._tallies: list[Tally] = []

    @property
    def encoder(self) -> nn.Module:
        """The encoder, which leaves the run."""
        encoder: nn.Module = self.model.encoder  # type: ignore[assignment]  # nn.Module's attributes have no types
        return encoder

    @abstractmethod
    def loss(self, batch: PointBatch) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and whether each of its objects or points was named rightly."""

    @abstractmethod
    def judge(self, batch: PointBatch, tally: Any, *, redraw: bool) -> None:
        """Count a batch in evaluation mode.

        Args:
            batch: prepared for evaluation.
            tally: of this task, see :meth:`tally`.
            redraw: as the literature judges the test split, with random draws where it draws.
        """

    @abstractmethod
    def tally(self) -> Tally:
        """An empty tally."""

    @abstractmethod
    def save(self, folder: Path, training: dict[str, Any]) -> None:
        """Write the model."""

    def export(self, folder: Path) -> None:
        """Write the model of the kept epoch: ``head/`` and ``encoder/``."""
        self.selection.restore(self.model)
        data = getattr(self.trainer, "datamodule", None)
        sizes = {name: None if (part := getattr(data, name, None)) is None else len(part) for name in _PARTS}
        training = {
            "seed": self.seed,
            "train_hash": "" if data is None or data.train is None else content_hash(data.train),
            "cpu_seconds": self._spent + cpu_seconds() - self._started,
            **self.selection.summary(self.current_epoch, self.score),
            **{f"num_{name}": size for name, size in sizes.items()},
        }
        self.save(folder, training)

    def on_fit_start(self) -> None:
        """Lightning keeps the modes it finds: an encoder that was loaded is in evaluation mode."""
        self._started = cpu_seconds()
        self.train()

    def training_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        """One step."""
        with draws_of_step(self.seed, self.current_epoch, batch_idx, batch.xyz.device):
            loss, hits = self.loss(batch)
        options: dict[str, Any] = {"batch_size": len(batch), "on_step": True, "on_epoch": True, "sync_dist": True}
        self.log("train/loss", loss.detach(), prog_bar=True, **options)
        self.log("train/accuracy", hits.float().mean() if hits.numel() else loss.new_zeros(()), **options)
        return loss

    def on_train_epoch_start(self) -> None:
        """Log the learning rate in force at the top of the network."""
        for optimizer in self.trainer.optimizers:
            self.log("train/learning_rate", optimizer.param_groups[-1]["lr"], sync_dist=True)

    def on_validation_epoch_start(self) -> None:
        """Start the counts anew."""
        self._tallies = [self.tally() for _ in self._watched()]

    def validation_step(self, batch: PointBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count a batch of what is watched."""
        redraw = self._watched()[dataloader_idx] == "test"
        with draws_of_step(self.seed, self.current_epoch, batch_idx, batch.xyz.device):
            self.judge(batch, self._tallies[dataloader_idx], redraw=redraw)

    def on_validation_epoch_end(self) -> None:
        """Log the scores and take them into the selection."""
        if self.trainer.sanity_checking:
            return
        found: dict[str, float] = {}
        for name, tally in zip(self._watched(), self._tallies, strict=True):
            tally.counts = all_reduce_sum(tally.counts.to(self.device)).cpu()
            scores = tally.means()
            found[name] = scores[self.score]
            for key, value in scores.items():
                # Alike on all processes, each of which may watch it to stop early.
                self.log(f"{name}/{key}", value, prog_bar=key == self.score, sync_dist=True)
        score = EpochScore(self.current_epoch + 1, found.get("validation"), found.get("test"))
        self.selection.record(score, self.model)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The selection goes with the run, and what it has cost."""
        checkpoint["cpu_seconds"] = self._spent + cpu_seconds() - self._started
        checkpoint["selection"] = self.selection.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """And comes back with it."""
        self._spent = checkpoint["cpu_seconds"]
        self.selection.load_state_dict(checkpoint["selection"])

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule, as long as the run or as ``schedule_epochs`` says."""
        return self.optimisation.build(self.model, self.encoder, self.peak, self.trainer.max_epochs)

    def _watched(self) -> tuple[str, ...]:
        watched: tuple[str, ...] = getattr(getattr(self.trainer, "datamodule", None), "watched", ("validation",))
        return watched


_PARTS = ("train", "validation", "test")
