"""An uneven last batch over two processes: masks and drop path are those of one process."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny import cmae
from torch import Tensor

from pc3d.data import Household, PointLoader, RandomSubsample, Selection


def last_draws(batch_size: int) -> list[Tensor]:
    """Masks and drop path scales of the second batch of 11 real objects, 5 after 6."""
    method, objects = cmae(), Selection(Household("test"), range(11))
    loader = PointLoader(objects, batch_size, transform=RandomSubsample(96), shuffle=False, drop_last=False)
    batch = list(loader)[-1]
    draws = method.draws(batch, 0, 1)
    masks = [method.draw_mask(torch.zeros(len(batch), 12, 3), draws) for _ in range(2)]
    _, decoders = method._draw_drop_path(draws)
    return [*masks, *(scales.movedim(2, 0) for scales in decoders)]


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(last_draws(3), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_draw_what_one_does(tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call,attr-defined]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = last_draws(6)
    for ours, others, expected in zip(first, second, alone, strict=True):
        assert torch.equal(torch.cat([ours, others]), expected)
