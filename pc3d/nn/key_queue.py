"""A queue of past keys that serve as negatives."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """The last ``length`` keys, first in, first out (MoCo, He et al., 2020); stored in checkpoints.

    The queue starts empty, so there are fewer negatives until it is full (and no random ones).

    Args:
        length: capacity; 0 for a queue that never holds keys.
        dim: width d of a key.

    Raises:
        ValueError: a negative length, or a width below 1.
    """

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        if length < 0 or dim < 1:
            raise ValueError(f"length must be at least 0 and dim at least 1, got {length} and {dim}")
        self.length = length
        self.stored: Tensor
        self.seen: Tensor
        self.register_buffer("stored", torch.zeros(length, dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def keys(self) -> Tensor:
        """The stored keys, ``(at most length, d)``, in no particular order."""
        # A copy, because the backward pass that uses it may run after the next keys have been added.
        return self.stored[: min(int(self.seen), self.length)].clone()

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Add keys ``(K, d)``, the same on every process; they replace the oldest ones."""
        if self.length == 0:
            return
        # If there are more than fit, keep the last ones, in the slots that writing one by one would give.
        first = max(len(keys) - self.length, 0)
        slots = (self.seen + torch.arange(first, len(keys), device=keys.device)) % self.length
        self.stored.index_copy_(0, slots, keys[first:].to(self.stored.dtype))
        self.seen += len(keys)
