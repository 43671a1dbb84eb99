from __future__ import annotations

import socket
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing

from pc3d.data import Compose, Household, PointLoader, RandomSubsample, ScaleTranslate, Selection


def _loader(batch_size: int) -> PointLoader:
    objects = Selection(Household("test"), range(23))
    return PointLoader(objects, batch_size, transform=Compose([RandomSubsample(128), ScaleTranslate()]), seed=5)


def _write_epoch(rank: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save([batch.xyz for batch in _loader(4)], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_see_the_batches_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_write_epoch, args=(port, str(tmp_path)), nprocs=2)
    shares = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    alone = [batch.xyz for batch in _loader(8)]
    assert len(alone) == len(shares[0]) == len(shares[1]) == 2
    for i, batch in enumerate(alone):
        assert torch.equal(torch.cat([shares[0][i], shares[1][i]]), batch)
