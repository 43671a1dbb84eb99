"""Random numbers that belong to the samples of a global batch rather than to a process."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class SampleRandom:
    """Uniform numbers per sample, fixed by seed, epoch, step in the epoch and index in the global batch alone.

    Nothing is carried from step to step, so a run that is killed and resumed draws what it would have drawn; and a
    sample gets the same numbers whether one process holds the global batch or W processes share it. As
    :class:`pc3d.data.EpochSampler` deals them, process r holds the r-th of W equal runs of the global batch.

    Args:
        seed: seed of the run, at least 0.
        epoch: epoch, from 0.
        step: batch index within the epoch, from 0.
        batch_size: samples in this process.
        rank: index of this process.
        world_size: number of processes.
        device: where the numbers are drawn. CPU and CUDA generators give different numbers.

    Raises:
        ValueError: a negative seed, epoch or step.
    """

    def __init__(
        self,
        seed: int,
        epoch: int,
        step: int,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in (("seed", seed), ("epoch", epoch), ("step", step)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        # SeedSequence mixes well where the inputs differ by one bit, as consecutive steps do.
        mixed = np.random.SeedSequence((seed, epoch, step)).generate_state(1, np.uint64)[0]
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(int(mixed) & (2**63 - 1))
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1) of shape ``(batch_size, *shape)``, float32."""
        everyone = torch.rand(
            self.batch_size * self.world_size, *shape, generator=self.generator, device=self.generator.device
        )
        return everyone[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
