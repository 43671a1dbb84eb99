"""Base class of all pre-training methods, and an optimiser with a warm-up and cosine schedule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from pc3d.data.types import PointBatch
from pc3d.models import save_encoder
from pc3d.nn import SampleRandom, epoch_learning_rate, rank, share_of_batch, weight_decay_groups
from pc3d.nn.optim import ADAMW_BETAS, OptimizerFactory, Stepping, build_optimizer, check_optimizer


@dataclass(frozen=True)
class Optimisation:
    """Optimiser (AdamW by default) with a learning rate that is set once per epoch (Point-MAE's recipe).

    Attributes:
        learning_rate: peak of the schedule; not scaled by the batch size.
        weight_decay: of everything but one-dimensional parameters and tokens.
        betas: of AdamW.
        min_learning_rate: start of the warm-up and end of the cosine.
        warmup_epochs: length of the linear warm-up.
        schedule_epochs: length of the schedule; None for the trainer's ``max_epochs``.
        stepping: ``"clean"`` sets the rate before each epoch; ``"official"`` repeats the released loop, which lags an
            epoch behind (:func:`pc3d.nn.epoch_learning_rate`).
        optimizer: another optimiser than AdamW, by its class, with the same groups and schedule.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = ADAMW_BETAS
    min_learning_rate: float = 1e-6
    warmup_epochs: int = 10
    schedule_epochs: int | None = None
    stepping: Stepping = "clean"
    optimizer: OptimizerFactory | None = None

    def __post_init__(self) -> None:
        check_optimizer(self.optimizer, self.betas, self.weight_decay)

    def build(self, module: nn.Module, undecayed: Iterable[nn.Parameter], max_epochs: int | None) -> dict[str, Any]:
        """Optimiser and scheduler in the form that Lightning expects from ``configure_optimizers``.

        Raises:
            ValueError: neither ``schedule_epochs`` nor ``max_epochs`` sets the length of the schedule.
        """
        epochs = self.schedule_epochs if self.schedule_epochs is not None else max_epochs
        if epochs is None or epochs < 1:
            raise ValueError(
                f"the learning-rate schedule needs a length: set trainer.max_epochs (got {max_epochs}) "
                f"or schedule_epochs (got {self.schedule_epochs})"
            )
        groups = weight_decay_groups(module, self.weight_decay, undecayed)
        optimizer = build_optimizer(groups, self.learning_rate, self.optimizer, self.betas)

        def factor(epoch: int) -> float:
            rate = epoch_learning_rate(
                epoch,
                stepping=self.stepping,
                base=self.learning_rate,
                minimum=self.min_learning_rate,
                warmup_epochs=self.warmup_epochs,
                epochs=epochs,
            )
            return rate / self.learning_rate

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


PUBLISHED = Optimisation()


class Method(pl.LightningModule, ABC):
    """Base class of pre-training methods. A method trains networks, one of which is the exported encoder.

    A subclass defines :attr:`encoder`, ``training_step`` and ``configure_optimizers``. ``pc3d view`` and ``pc3d
    report`` draw a method that hides and predicts parts of objects if it has ``reconstruct(xyz, generator=...)``, from
    clouds ``(B, N, 3)`` and a generator to a :class:`Reconstruction`.

    Args:
        seed: of the method's own draws (masks, drop path); initial weights come from PyTorch's default generator.

    Raises:
        ValueError: a negative seed.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        self.seed = seed

    @property
    @abstractmethod
    def encoder(self) -> nn.Module:
        """The network that downstream tasks use."""

    def export(self, folder: Path) -> None:
        """Export the encoder into the run folder, as ``encoder/``."""
        save_encoder(self.encoder, folder / "encoder")

    def draws(self, batch: PointBatch, epoch: int, batch_idx: int) -> SampleRandom:
        """The random numbers of a step: those of this process's samples within the global batch."""
        start, total = share_of_batch(len(batch), batch.xyz.device)
        return SampleRandom(
            self.seed,
            epoch,
            batch_idx,
            batch_size=len(batch),
            start=start,
            global_batch_size=total,
            device=batch.xyz.device,
        )

    @contextmanager
    def default_draws(self, epoch: int, batch_idx: int, device: torch.device) -> Iterator[None]:
        """Seed PyTorch's default generators by step and process; on exit, restore their states."""
        word = np.random.SeedSequence((self.seed, epoch, batch_idx, rank())).generate_state(1, np.uint64)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(word[0]) & (2**63 - 1))
            yield

    def log_step(
        self, stage: str, values: Mapping[str, Tensor], batch_size: int, prog_bar: Collection[str] = ("loss",)
    ) -> None:
        """Log scalars as ``stage/name``, averaged over processes, for each training step and each epoch."""
        for name, value in values.items():
            self.log(
                f"{stage}/{name}",
                value.detach(),
                on_step=stage == "train",
                on_epoch=True,
                prog_bar=name in prog_bar,
                sync_dist=True,
                batch_size=batch_size,
            )

    def on_train_epoch_start(self) -> None:
        """Log the learning rate of the epoch."""
        for optimizer in self.trainer.optimizers:
            self.log("train/learning_rate", optimizer.param_groups[0]["lr"], sync_dist=True)
