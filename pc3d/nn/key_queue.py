"""A queue of past keys that serve as negatives."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """The last ``length`` keys, first in, first out (MoCo, He et al., 2020); saved with a checkpoint.

    It starts empty: before it is full there are fewer negatives, not random ones.

    Args:
        length: how many; 0 for a queue that holds nothing.
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
        """The keys so far, ``(at most length, d)``, in no order."""
        # A copy: it may be part of a graph whose backward pass comes after the next keys have been added.
        return self.stored[: min(int(self.seen), self.length)].clone()

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Add keys ``(K, d)``, the same ones on every process; those that came first make room."""
        if self.length == 0:
            return
        # Of more than fit, the last ones stay, where they would be had all been written one by one.
        first = max(len(keys) - self.length, 0)
        slots = (self.seen + torch.arange(first, len(keys), device=keys.device)) % self.length
        self.stored.index_copy_(0, slots, keys[first:].to(self.stored.dtype))
        self.seen += len(keys)
