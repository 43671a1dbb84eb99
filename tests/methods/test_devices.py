"""Every method computes on a GPU what it computes on the CPU, and trains there."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openshape_tiny
import pytest
import test_distillation
import test_masked_scene
import test_scene_vicreg
import test_two_views
import tiny
import torch
from small_dcglr import dcglr
from torch import Tensor

from pc3d import load_encoder
from pc3d.data import Household, PointBatch, PointCloud, PointDataset, Rooms, SceneDataModule, collate
from pc3d.methods import Method, pretrain
from pc3d.models import DGCNN, PointNet
from pc3d.nn import SampleRandom

GPU_STEPS = 2
# Convolutions round their factors to 10 bits of mantissa on a GPU (TF32), PyTorch's default.
RELATIVE = 1e-2


def objects() -> PointBatch:
    household = Household("train", num_points=96)
    return collate([household[index] for index in range(0, 480, 60)])


def scenes() -> PointBatch:
    rooms, generator = Rooms("train"), torch.Generator().manual_seed(0)
    return collate([test_masked_scene.CROP(rooms[index], generator) for index in (0, 2)])


def pairs() -> PointBatch:
    return test_scene_vicreg.PAIRS([Rooms("train")[index] for index in (0, 2)], torch.Generator().manual_seed(0))


def lifted() -> PointBatch:
    batch = scenes()
    assert batch.rgb is not None
    assert batch.normal is not None
    return dataclasses.replace(batch, feature=torch.cat([batch.rgb - 0.4, batch.normal], dim=1))


def swin(build: Callable[..., Method]) -> Callable[[], Method]:
    return lambda: build(test_masked_scene.swin)


def distilled(objective: str) -> Callable[[], Method]:
    return lambda: test_distillation.method(objective=objective)


CASES: dict[str, tuple[Callable[[], Method], Callable[[], PointBatch]]] = {
    "PointMAE": (tiny.mae, objects),
    "PointCMAE": (tiny.cmae, objects),
    "PCPMAE": (lambda: test_two_views.pcp(), objects),
    "DCGLR of ViT3D": (dcglr, objects),
    "DCGLR of PointNet": (lambda: dcglr(PointNet(16)), objects),
    "DCGLR of DGCNN": (lambda: dcglr(DGCNN(16, k=4)), objects),
    "OpenShape": (openshape_tiny.method, lambda: openshape_tiny.batch_of(range(10))),
    "MaskedScene": (test_masked_scene.method, scenes),
    "MaskedScene of Swin3D": (swin(test_masked_scene.method), scenes),
    "MaskedScene of PointTransformerV3": (lambda: test_masked_scene.method(test_masked_scene.ptv3), scenes),
    "SceneVICReg": (test_scene_vicreg.method, pairs),
    "SceneVICReg of Swin3D": (swin(test_scene_vicreg.method), pairs),
    "SceneVICReg with masks": (lambda: test_scene_vicreg.method(mask_ratio=0.4), pairs),
    "DenseDistillation": (test_distillation.method, lifted),
    "DenseDistillation by PPKT": (distilled("ppkt"), lifted),
    "DenseDistillation by SLidR": (distilled("slidr"), lifted),
    **{name: (build, objects) for name, build in test_two_views.METHODS.items()},
}


class DrawnOnCpu(SampleRandom):
    """The same numbers for every device, whose generators differ."""

    def __init__(self, *arguments: Any, device: torch.device, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.device = device

    def uniform(self, *shape: int) -> Tensor:
        return super().uniform(*shape).to(self.device)

    def normal(self, *shape: int) -> Tensor:
        return super().normal(*shape).to(self.device)


def step(method: Method, batch: PointBatch) -> tuple[float, dict[str, Tensor]]:
    """The loss of a step in evaluation mode, and its gradients on the CPU."""
    method.draws = lambda batch, epoch, step: DrawnOnCpu(  # type: ignore[method-assign]
        0, epoch, step, batch_size=len(batch), device=batch.xyz.device
    )
    method.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    loss = method.eval().training_step(batch, 1)
    loss.backward()
    return loss.item(), {name: p.grad.cpu() for name, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_that_of_the_cpu(name: str, device: torch.device) -> None:
    build, make_batch = CASES[name]
    torch.manual_seed(0)
    method, batch = build(), make_batch()
    loss, gradients = step(copy.deepcopy(method), batch)
    found, found_gradients = step(method.to(device), batch.to(device))
    assert found == pytest.approx(loss, rel=RELATIVE)
    assert found_gradients.keys() == gradients.keys()
    of_all = torch.cat([gradient.flatten() for gradient in gradients.values()])
    difference = torch.cat([(found_gradients[k] - gradients[k]).flatten() for k in gradients])
    assert of_all.norm() > 0
    assert difference.norm() / of_all.norm() < 10 * RELATIVE


class Same(PointDataset):
    """The clouds of a batch, again and again."""

    def __init__(self, batch: PointBatch) -> None:
        self.clouds: list[PointCloud] = batch.unbind()
        self.classes, self.labels = ("all",), torch.zeros(len(self.clouds), dtype=torch.int64)

    def load(self, index: int) -> PointCloud:
        return self.clouds[index]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", ["PointCMAE", "DCGLR of ViT3D", "OpenShape", "MaskedScene of Swin3D", "MoCoV3"])
def test_a_run_trains_on_a_gpu(name: str, precision: str, tmp_path: Path) -> None:
    build, make_batch = CASES[name]
    method = build()
    before = copy.deepcopy(method.encoder.state_dict())
    data = SceneDataModule(train=Same(make_batch()), batch_size=2)
    options = {**tiny.QUIET, "accelerator": "gpu", "devices": 1, "precision": precision}
    pretrain(method, data, tmp_path, max_epochs=GPU_STEPS, **options)
    encoder = load_encoder(tmp_path)
    after = {key: value.cpu() for key, value in encoder.state_dict().items()}
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(after[key], before[key].cpu()) for key in after)
