"""A method and data small enough to train in a moment, on real objects."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from pc3d.data import Household, PointDataModule, RandomSubsample, ScaleTranslate
from pc3d.methods import Method, Optimisation, PointCMAE, PointMAE
from pc3d.models import PointViT

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}


def encoder(num_cls_tokens: int, **changes: Any) -> PointViT:
    arguments = {"num_groups": 12, "group_size": 8, "num_points": 96, "drop_path": 0.2, **changes}
    return PointViT(16, 2, 2, num_cls_tokens=num_cls_tokens, tokenizer_dims=(8, 12, 16), **arguments)


def cmae(**changes: Any) -> PointCMAE:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "decoder_depth": 2,
        "decoder_num_heads": 2,
        "decoder_drop_path": 0.2,
        "optimisation": Optimisation(warmup_epochs=1),
        **changes,
    }
    return PointCMAE(encoder(2), **arguments)


def mae(**changes: Any) -> PointMAE:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"decoder_depth": 2, "decoder_num_heads": 2, **changes}
    return PointMAE(encoder(0), **arguments)


def data(batch_size: int = 60, **changes: Any) -> PointDataModule:
    """487 objects: 8 steps an epoch at the default batch size."""
    train = Household("train", num_points=192)
    transforms = [RandomSubsample(96), ScaleTranslate()]
    return PointDataModule(train=train, train_transforms=transforms, batch_size=batch_size, **changes)


class Stop(pl.Callback):
    """Breaks off at a step, with nothing saved for the occasion."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise InterruptedError


def quiet(method: Method) -> dict[str, float]:
    """Lets a method log without a trainer; what it logs is found in the result."""
    values: dict[str, float] = {}
    method.log = lambda name, value, **_: values.__setitem__(name, float(value))  # type: ignore[method-assign,assignment]
    return values


def same(first: Any, second: Any) -> bool:
    """Whether two nested states agree bit for bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)


def command(script: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, str(Path(__file__).parent / script), *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


__all__ = ["QUIET", "Stop", "cmae", "command", "data", "encoder", "environment", "mae", "pl"]
__all__ += ["quiet", "same"]
