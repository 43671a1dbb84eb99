"""Random numbers that belong to the samples of a global batch rather than to a process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class SampleRandom:
    """Random numbers per sample, fixed by seed, epoch, step in the epoch and index in the global batch alone.

    Nothing is carried from step to step, so a run that is killed and resumed draws what it would have drawn; and a
    sample gets the same numbers whether one process holds the global batch or several share it, each a contiguous run
    of it as :class:`pc3d.data.EpochSampler` deals them; the last runs of an epoch may differ in length.

    Args:
        seed: seed of the run, at least 0.
        epoch: epoch, from 0.
        step: batch index within the epoch, from 0.
        batch_size: samples in this process.
        start: index in the global batch of this process's first sample.
        global_batch_size: samples in all processes together; ``batch_size`` when None
            (:func:`pc3d.nn.share_of_batch` finds both).
        device: where the numbers are drawn. CPU and CUDA generators give different numbers.

    Raises:
        ValueError: a negative seed, epoch or step, or a share that is not within the global batch.
    """

    def __init__(
        self,
        seed: int,
        epoch: int,
        step: int,
        *,
        batch_size: int,
        start: int = 0,
        global_batch_size: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in (("seed", seed), ("epoch", epoch), ("step", step)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        self.batch_size, self.start = batch_size, start
        self.global_batch_size = batch_size if global_batch_size is None else global_batch_size
        if start < 0 or start + batch_size > self.global_batch_size:
            raise ValueError(
                f"samples {start} to {start + batch_size} are not within a global batch of {self.global_batch_size}: "
                "start + batch_size must be at most global_batch_size"
            )
        # SeedSequence mixes well where the inputs differ by one bit, as consecutive steps do.
        mixed = np.random.SeedSequence((seed, epoch, step)).generate_state(1, np.uint64)[0]
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(int(mixed) & (2**63 - 1))

    @classmethod
    def of(cls, generator: torch.Generator, batch_size: int) -> SampleRandom:
        """The numbers of a generator of one's own, for samples that belong to no run; it is advanced."""
        draws = cls(0, 0, 0, batch_size=batch_size, device=generator.device)
        draws.generator = generator
        return draws

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1) of shape ``(batch_size, *shape)``, float32."""
        everyone = torch.rand(self.global_batch_size, *shape, generator=self.generator, device=self.generator.device)
        return self._own(everyone)

    def normal(self, *shape: int) -> Tensor:
        """Normal numbers of mean 0 and standard deviation 1 of shape ``(batch_size, *shape)``, float32."""
        everyone = torch.randn(self.global_batch_size, *shape, generator=self.generator, device=self.generator.device)
        return self._own(everyone)

    def some_rows(self, mask: Tensor, offsets: Tensor, count: int | Sequence[int]) -> Tensor:
        """Of the rows of each sample where the mask is set, ``count``, or all where there are fewer.

        Every choice is equally likely, and has the order in which it was drawn.

        Args:
            mask: ``(N,)`` bool over packed rows.
            offsets: ``(batch_size + 1,)`` int64 of the samples.
            count: how many of each sample, at most; a number for all, or one for each.
        """
        # One number per sample, whatever its size: N processes draw what one process would.
        words = (self.uniform().double() * 2**24).long().tolist()
        counts = [count] * len(words) if isinstance(count, int) else count
        chosen = []
        for word, start, stop, number in zip(words, offsets[:-1].tolist(), offsets[1:].tolist(), counts, strict=True):
            rows = mask[start:stop].nonzero().flatten() + start
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(word))[:number]
            chosen.append(rows[order.to(rows.device)])
        return torch.cat(chosen)

    def _own(self, everyone: Tensor) -> Tensor:
        return everyone[self.start : self.start + self.batch_size]
