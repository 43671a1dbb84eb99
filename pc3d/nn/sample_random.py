"""Random numbers that belong to the samples of a global batch, not to a process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class SampleRandom:
    """Random numbers per sample, a function of seed, epoch, step in the epoch and index in the global batch only.

    No state is carried from step to step, so a run that was killed and resumed draws the same numbers as an
    uninterrupted one. A sample gets the same numbers for any number of processes. Each process holds a contiguous part
    of the global batch, as in :class:`pc3d.data.EpochSampler`; in the last batches of an epoch, parts may differ in
    length.

    Args:
        seed: seed of the run, at least 0.
        epoch: epoch, from 0.
        step: batch index within the epoch, from 0.
        batch_size: number of samples in this process.
        start: index of this process's first sample in the global batch.
        global_batch_size: number of samples in all processes; None for ``batch_size``.
            :func:`pc3d.nn.share_of_batch` computes ``start`` and this number.
        device: device of the generator. CPU and CUDA generators give different numbers.

    Raises:
        ValueError: a negative seed, epoch or step, or samples that are not within the global batch.
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
        # SeedSequence gives unrelated seeds for inputs that differ by one bit, such as consecutive steps.
        mixed = np.random.SeedSequence((seed, epoch, step)).generate_state(1, np.uint64)[0]
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(int(mixed) & (2**63 - 1))

    @classmethod
    def of(cls, generator: torch.Generator, batch_size: int) -> SampleRandom:
        """Draw from the given generator, for samples outside of a run; the state of the generator advances."""
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
        """A random choice of the rows of each sample where the mask is True.

        All choices are equally likely. Rows are in the order in which they were drawn.

        Args:
            mask: ``(N,)`` bool over packed rows.
            offsets: ``(batch_size + 1,)`` int64 of the samples.
            count: number of rows to choose from each sample, one number for all samples or one for each. If a sample
                has fewer rows, all are chosen.

        Returns:
            Indices of the chosen rows, int64, sample after sample.
        """
        # One number per sample, independent of its size, so that N processes draw the same as one.
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
