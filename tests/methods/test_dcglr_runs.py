"""DCGLR resumed is DCGLR left alone, bit for bit, and two processes are one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_dcglr import SIZES, dcglr, small_data
from test_resume import Stop, final_state, per_step
from tiny import QUIET, same

from pc3d.data import Household, PointBatch, collate
from pc3d.methods import DCGLR, InstanceContrast, pretrain
from pc3d.models import ViT3D


def train(folder: Path, *, stop: int | None = None, resume: bool = False) -> DCGLR:
    torch.manual_seed(0)
    method = dcglr(ViT3D(16, 2, 2, group_size=8, point_dim=8, drop_path=0.2), momentum=(0.5, 1.0))
    torch.manual_seed(int(time.time()))  # a resumed process has another state of PyTorch's default generator
    callbacks = [] if stop is None else [Stop(stop)]
    pretrain(
        method, small_data(240), folder, resume=resume, every_n_steps=1, callbacks=callbacks, max_epochs=3, **QUIET
    )
    return method


def test_resumed_in_any_epoch(tmp_path: Path) -> None:
    """Two steps an epoch; prototypes are frozen in the first. Broken off within the first and within the second."""
    whole = train(tmp_path / "whole")
    for stop in (1, 3):
        folder = tmp_path / str(stop)
        with pytest.raises(InterruptedError):
            train(folder, stop=stop)
        method = train(folder, resume=True)
        assert same(dict(method.state_dict()), dict(whole.state_dict()))
        assert same(final_state(folder), final_state(tmp_path / "whole"))
        assert per_step(folder) == per_step(tmp_path / "whole")


def clouds() -> list[Any]:
    data = Household("test", num_points=64)
    return [data[index] for index in range(0, 50, 10)]


def two_steps(kind: str, part: slice) -> dict[str, Any]:
    """Gradients of two steps, the second with a centre and a queue, and what is remembered; float64."""
    contrast: Any = {**SIZES["contrast"], "kind": kind, "local_to_global": True}
    method = dcglr(contrast=InstanceContrast(**contrast)).double()
    method.log = lambda *_, **__: None  # type: ignore[method-assign]
    batch = collate(clouds()[part])
    batch = PointBatch(batch.xyz.double(), batch.offsets)
    for step in range(2):
        method.training_step(batch, step).backward()
    gradients = {name: p.grad for name, p in method.student.named_parameters()}
    buffers = {name: b for name, b in method.named_buffers() if not name.endswith("num_batches_tracked")}
    return {"gradients": gradients, "buffers": buffers}


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    part = slice(0, 3) if rank == 0 else slice(3, 5)
    torch.save({kind: two_steps(kind, part) for kind in ("infonce", "npair_shared_head")}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_of_unequal_batches_are_one(tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call,attr-defined]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for kind in ("infonce", "npair_shared_head"):
        one = two_steps(kind, slice(None))
        for name, gradient in one["gradients"].items():
            # Distributed training averages the gradients of its processes.
            mean = (first[kind]["gradients"][name] + second[kind]["gradients"][name]) / 2
            torch.testing.assert_close(mean, gradient, rtol=1e-7, atol=1e-9, msg=f"{kind} {name}")
        for name, value in one["buffers"].items():  # the centre, the queue, statistics of student and teacher
            for part in (first, second):
                torch.testing.assert_close(part[kind]["buffers"][name], value, rtol=1e-9, atol=1e-9, msg=name)
        assert one["buffers"]["center"].abs().max() > 0
