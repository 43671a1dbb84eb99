"""OpenShape small enough to train in a moment, on real objects with made-up targets; and a step in two processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pc3d.data import (
    AlignedSet,
    ChooseTargets,
    Household,
    PointBatch,
    PointDataModule,
    RandomSubsample,
    Selection,
    collate,
)
from pc3d.methods import OpenShape, StepDecay
from pc3d.models import OpenShapePointBERT

TEXT, IMAGE = 6, 10
SIZES: dict[str, Any] = {
    "embed_dim": 16,
    "width": 64,
    "depth": 1,
    "num_heads": 1,
    "mlp_dim": 64,
    "patch_dim": 16,
    "num_groups": 8,
    "radius": 0.5,
    "group_size": 8,
    "num_points": 64,
}


def encoder(**changes: Any) -> OpenShapePointBERT:
    torch.manual_seed(0)
    return OpenShapePointBERT(**{**SIZES, **changes})


def method(**changes: Any) -> OpenShape:
    arguments = {"text_dim": TEXT, "image_dim": IMAGE, "optimisation": StepDecay(learning_rate=3e-3), **changes}
    return OpenShape(**({} if "start_from" in changes else {"encoder": encoder()}), **arguments)


def aligned(count: int = 40, text: int = TEXT, image: int = IMAGE, views: int = 3) -> AlignedSet:
    """Objects with one text each but every fifth, and some pictures each but every seventh."""
    household = Selection(Household("train", num_points=96), range(count))
    generator = torch.Generator().manual_seed(1)
    names = [str(household[i].meta["id"]) for i in range(count)]
    texts = {name: {"prompt_avg": torch.randn(1, text, generator=generator)} for i, name in enumerate(names) if i % 5}
    images = {name: {"image": torch.randn(views, image, generator=generator)} for i, name in enumerate(names) if i % 7}
    return AlignedSet(household, texts, images)


def data(count: int = 40, batch_size: int = 10, **changes: Any) -> PointDataModule:
    return PointDataModule(
        train=aligned(count, **changes),
        train_transforms=[ChooseTargets(), RandomSubsample(64)],
        eval_transforms=[RandomSubsample(64)],
        batch_size=batch_size,
    )


def batch_of(rows: range) -> PointBatch:
    """Objects with all their targets: 0 and 5 have no text, 0 and 7 no picture."""
    found = aligned()
    return collate([found[i].select(slice(64)) for i in rows])


def step(rows: range, **changes: Any) -> dict[str, Tensor]:
    """Loss, gradients and what a step logged of one batch, in double precision and evaluation mode."""
    torch.manual_seed(0)
    one = method(**changes).double().eval()
    logged: dict[str, Tensor] = {}
    one.log = lambda name, value, **_: logged.__setitem__(name, value)  # type: ignore[method-assign,assignment]
    batch = batch_of(rows)
    batch = PointBatch(batch.xyz.double(), batch.offsets, rgb=batch.rgb, meta=batch.meta)
    loss = one._step(batch, 0, 0, "train")
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in one.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **logged, **gradients}


def worker(rank: int, folder: str) -> None:
    """Rank 0 has 4 shapes, rank 1 has 6: other numbers of shapes, of texts and of pictures."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(step(range(0, 4) if rank == 0 else range(4, 10)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


__all__ = ["IMAGE", "TEXT", "aligned", "batch_of", "data", "encoder", "method", "nn", "step", "worker"]
