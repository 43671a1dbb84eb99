"""Tasks, and distillation, in two processes: what they compute and what they say of validation is that of one."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny import QUIET, quiet
from tiny_objects import CLASSES, encoder, objects
from tiny_scenes import SmallRooms, unet
from torch import Tensor, nn

from pc3d.data import PointBatch, Rooms, SceneDataModule, Selection, collate
from pc3d.methods import DenseDistillation, pretrain
from pc3d.models import PointTransformerV3, PointViT, SparseUNet, Swin3D
from pc3d.tasks import Classification, PartSegmentation, SegmentationOptimisation, SemanticSegmentation
from pc3d.tasks.object_task import ObjectTask
from pc3d.tasks.segmentation import segmentation_loss

PARTS = ("low", "high")


def parts() -> PartSegmentation:
    sizes: dict[str, Any] = {"num_groups": 12, "group_size": 8, "num_points": 96, "tokenizer_dims": (8, 12, 16)}
    points = PointViT(16, 3, 2, num_cls_tokens=0, drop_path=0.0, **sizes)
    return PartSegmentation(points, len(CLASSES), 2, CLASSES, PARTS, head_dims=(16, 24, 24, 16))


def swin() -> Swin3D:
    sizes: dict[str, Any] = {"channels": (8, 16), "depths": (2, 1), "down_strides": (2,), "num_heads": (2, 2)}
    return Swin3D(**sizes, window_sizes=(3, 3), voxel_size=0.15, drop_path=0.0, decoder_drop_path=0.0)


def ptv3() -> PointTransformerV3:
    sizes: dict[str, Any] = {"channels": (16, 32), "depths": (1, 2), "decoder_channels": (16,), "decoder_depths": (1,)}
    return PointTransformerV3(**sizes, patch_size=32, voxel_size=0.15, drop_path=0.0)


TASKS: dict[str, Callable[[], pl.LightningModule]] = {
    "classification": lambda: Classification(encoder(drop_path=0.0), len(CLASSES), CLASSES),
    "parts": parts,
    "scenes, Swin3D": lambda: SemanticSegmentation(swin(), 24),
    "scenes, PTv3": lambda: SemanticSegmentation(ptv3(), 24),
    "scenes, U-Net": lambda: SemanticSegmentation(unet(), 24),
    "distillation": lambda: DenseDistillation(unet(), 3),
}


def task_of(name: str) -> pl.LightningModule:
    """Without what each process draws for itself."""
    torch.manual_seed(0)
    task = TASKS[name]()
    for module in task.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, SparseUNet | Swin3D | PointTransformerV3):
            module.training = False  # this module alone: the same point stands for a voxel every time
    return task.double()


def clouds(part: slice) -> PointBatch:
    """Some of four objects; of the parts of each, another share is known."""
    every = objects("test", 4)
    found = [every.load(i).select(slice(96)) for i in range(4)[part]]
    xyz = torch.cat([cloud.xyz for cloud in found])
    label = torch.stack([torch.as_tensor(cloud.label) for cloud in found])
    known = [torch.arange(96) % (2 + i) > 0 for i in range(4)[part]]
    segment = torch.where(torch.cat(known), (xyz[:, 2] > 0).long(), -1)
    return PointBatch(xyz.double(), torch.arange(len(found) + 1) * 96, label=label, segment=segment)


def rooms(part: slice) -> PointBatch:
    """Some of four rooms of different numbers of points, with colours for targets where they are bright."""
    every = Rooms("train")
    batch = collate([every.load(i).select(slice(i, None, 100 + 10 * i)) for i in range(4)[part]])
    assert batch.rgb is not None
    bright = batch.rgb.mean(1, keepdim=True) > 0.4
    return replace(batch, xyz=batch.xyz.double(), feature=batch.rgb * bright)


def loss_of(task: pl.LightningModule, part: slice) -> Tensor:
    if isinstance(task, ObjectTask):
        return task.loss(clouds(part))[0]
    batch = rooms(part)
    if isinstance(task, DenseDistillation):
        quiet(task)
        return task.training_step(batch, 0)
    assert isinstance(task, SemanticSegmentation)
    assert batch.segment is not None
    return segmentation_loss(task.segmenter(batch), batch.segment)


def step(name: str, part: slice) -> dict[str, Tensor]:
    """The mean over processes of loss and gradients, and the running statistics of batch norm; float64."""
    task = task_of(name)
    loss = loss_of(task, part)
    loss.backward()
    found = {path: p.grad for path, p in task.named_parameters() if p.grad is not None} | {"loss": loss.detach()}
    if dist.is_initialized():
        for value in found.values():
            dist.all_reduce(value)
            value /= dist.get_world_size()
    return found | {path: value for path, value in task.named_buffers() if value.is_floating_point()}


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    part = slice(0, 1) if rank == 0 else slice(1, 4)  # one object alone has no variance
    torch.save({name: step(name, part) for name in TASKS}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_step_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call,attr-defined]
    for name in TASKS:
        expected = step(name, slice(None))
        assert any("running_var" in path for path in expected if "head" in path or "encoder" in path)
        for rank in (0, 1):
            found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)[name]
            assert found.keys() == expected.keys()
            for path, value in expected.items():
                # Losses are computed in float32, whatever the weights are of.
                torch.testing.assert_close(found[path], value, rtol=1e-5, atol=1e-6, msg=f"{name} {path}")


def scenes(folder: Path, **options: Any) -> list[dict[str, str]]:
    """Train on rooms and watch three of them one by one, which do not go round; the rows with validation."""
    torch.manual_seed(0)
    watch = pl.callbacks.EarlyStopping("validation/miou", mode="max", patience=9)
    task = SemanticSegmentation(unet(), 24, optimisation=SegmentationOptimisation(learning_rate=0.0))
    rooms = SmallRooms()
    data = SceneDataModule(train=rooms, validation=Selection(rooms, range(3)), batch_size=4, eval_batch_size=1)
    pretrain(task, data, folder, max_epochs=1, limit_train_batches=1, callbacks=[watch], **QUIET, **options)
    with open(folder / "metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row["validation/miou"]]


@pytest.mark.slow
def test_two_processes_watch_and_may_stop_by_what_is_validated(tmp_path: Path) -> None:
    two = scenes(tmp_path / "two", devices=2, strategy="ddp_spawn")
    assert (tmp_path / "two" / "encoder" / "config.json").exists()
    assert len(two) == 1
    assert float(two[0]["validation/miou"]) > 0
