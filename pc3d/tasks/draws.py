"""Random draws within networks as a function of the step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from pc3d.nn.distributed import rank


@contextmanager
def draws_of_step(seed: int, epoch: int, step: int, device: torch.device) -> Iterator[None]:
    """PyTorch's default generators as a function of (seed, epoch, step, process); outside they are left as they were.

    A run that was broken off and resumed so draws what one that was left alone draws.

    Args:
        seed: of the run, at least 0.
        epoch: from 0.
        step: batch index within the epoch.
        device: where the network computes.
    """
    word = np.random.SeedSequence((seed, epoch, step, rank())).generate_state(1, np.uint64)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(word[0]) & (2**63 - 1))
        yield
