"""Hard negatives: find the shapes that an encoder considers similar, from time to time during training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from pc3d._progress import progress_bar
from pc3d.data.dataset import PointDataset
from pc3d.data.loader import PointLoader
from pc3d.data.transforms import Transform
from pc3d.data.types import PointBatch
from pc3d.losses import Dropped
from pc3d.nn import rank, share_of_batch, world_size

_CELLS_AT_ONCE = 2**28  # 1 GB of cosines in float32, for any size of the set


@dataclass(frozen=True)
class Mining:
    """Batches of similar shapes (OpenShape, section 3.4): shapes drawn at random, each with some of its neighbours.

    The published second stage is a run that starts from the encoder of the first, with ``start_epoch=0`` and
    ``refresh_epochs=None``: the neighbours are those of the initial encoder. Its length and learning rate are not
    published.

    Attributes:
        group_size: m, number of shapes of each seed, itself included. The batch size must be a multiple of it;
            published are 40 groups of 5.
        num_neighbors: number of nearest shapes, the seed included, from which the others are drawn.
        start_epoch: epoch, from 0, at which mining begins.
        refresh_epochs: epochs after which the neighbours are computed again; None for never.
        threshold: δ of :func:`pc3d.losses.negatives_to_keep`.
        dropped: what to do with pairs that are no valid negatives (:func:`pc3d.losses.shape_contrast`).
        batch_size: shapes embedded at a time when neighbours are computed.

    Raises:
        ValueError: a number out of range.
    """

    group_size: int = 5
    num_neighbors: int = 32
    start_epoch: int = 0
    refresh_epochs: int | None = None
    threshold: float = 0.1
    dropped: Dropped = "remove"
    batch_size: int = 200

    def __post_init__(self) -> None:
        if not 2 <= self.group_size <= self.num_neighbors:
            raise ValueError(
                f"group_size must be between 2 and num_neighbors={self.num_neighbors}, got {self.group_size}"
            )
        if self.start_epoch < 0 or self.batch_size < 1:
            raise ValueError(
                f"start_epoch must be at least 0, batch_size at least 1, got {self.start_epoch} and {self.batch_size}"
            )
        if self.refresh_epochs is not None and self.refresh_epochs < 1:
            raise ValueError(f"refresh_epochs must be at least 1, or None for never, got {self.refresh_epochs}")

    def check(self, num_samples: int, batch_size: int) -> None:
        """Check the sizes of data set and batch at the start of the training, before the first epoch with mining.

        Raises:
            ValueError: there are fewer samples than neighbours, or a batch does not consist of whole groups.
        """
        if num_samples < self.num_neighbors:
            raise ValueError(
                f"num_neighbors={self.num_neighbors} needs as many shapes, the training set has {num_samples}"
            )
        if batch_size % self.group_size:
            raise ValueError(
                f"a batch of {batch_size} is not made of whole groups of {self.group_size}: choose a multiple for "
                "batch_size"
            )

    def is_on(self, epoch: int) -> bool:
        """Whether the batches of an epoch are mined."""
        return epoch >= self.start_epoch

    def is_due(self, epoch: int) -> bool:
        """Whether neighbours that exist already must be computed again at the start of an epoch."""
        every = self.refresh_epochs
        return every is not None and self.is_on(epoch) and (epoch - self.start_epoch) % every == 0


@torch.no_grad()
def embed_all(
    model: nn.Module,
    embed: Callable[[PointBatch], Tensor],
    dataset: PointDataset,
    transform: Transform | None,
    *,
    batch_size: int,
    num_workers: int = 0,
    seed: int = 0,
    device: torch.device,
) -> Tensor:
    """Unit embeddings ``(len(dataset), D)`` float32 of a data set, in evaluation mode; distributed over processes."""
    loader = PointLoader(
        dataset,
        min(batch_size, -(-len(dataset) // world_size())),
        transform=transform,
        shuffle=False,
        drop_last=False,
        num_workers=num_workers,
        seed=seed,
        persistent_workers=False,
    )
    was_training = model.training
    model.eval()
    found: Tensor | None = None
    try:
        positions = loader.sampler.batches(0)
        with progress_bar(len(positions), "neighbours", "batches", visible=rank() == 0) as advance:
            for rows, batch in zip(positions, loader, strict=True):
                vectors = F.normalize(embed(batch.to(device)).float(), dim=1)
                if found is None:
                    found = torch.zeros(len(dataset), vectors.shape[1], device=device)
                found[torch.tensor(rows, device=device)] = vectors
                advance(1)
    finally:
        model.train(was_training)
    assert found is not None  # training with an empty data set has no epochs
    if world_size() > 1:
        dist.all_reduce(found)
    return found


@torch.no_grad()
def nearest(vectors: Tensor, k: int) -> Tensor:
    """The k rows with the highest cosine to each row of unit vectors, itself first: ``(N, k)`` int32 on the CPU.

    The search is exact, in blocks of rows that are distributed over processes. The order of equal cosines is arbitrary.

    Raises:
        ValueError: there are fewer than k rows.
    """
    if len(vectors) < k:
        raise ValueError(f"num_neighbors={k} needs as many shapes, the training set has {len(vectors)}")
    share = -(-len(vectors) // world_size())
    start, stop = (min(share * r, len(vectors)) for r in (rank(), rank() + 1))
    result = torch.zeros(len(vectors), k, dtype=torch.int64, device=vectors.device)
    step = max(1, _CELLS_AT_ONCE // len(vectors))
    for begin in range(start, stop, step):
        rows = torch.arange(begin, min(begin + step, stop), device=vectors.device)
        cosine = vectors[rows] @ vectors.T
        cosine[torch.arange(len(rows), device=rows.device), rows] = float("inf")  # itself first, also among duplicates
        result[rows] = cosine.topk(k, dim=1).indices
    if world_size() > 1:
        dist.all_reduce(result)
    return result.int().cpu()


def group_numbers(batch_size: int, group_size: int, device: torch.device) -> Tensor:
    """The number ``(global batch,)`` of the seed of each shape of the global batch, in the order of processes."""
    start, total = share_of_batch(batch_size, device)
    if start % group_size or total % group_size:
        raise ValueError(f"a batch of {batch_size} is not made of whole groups of {group_size}")
    return torch.arange(total, device=device) // group_size
