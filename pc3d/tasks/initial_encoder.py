"""Load the weights of a pre-trained encoder into a task's encoder, all of them or none."""

from __future__ import annotations

import os
from typing import Any, Literal

import torch
from torch import nn

from pc3d.models import PointViT
from pc3d.tasks.initial_weights import InitialWeights, difference
from pc3d.tasks.weight_files import open_weights

ClassToken = Literal["fresh", "pretrained"]
_CLASS_TOKENS = ("cls_token", "cls_position")  # of a PointViT; other encoders keep theirs


@torch.no_grad()
def start_from(encoder: nn.Module, source: str | os.PathLike[str], class_token: ClassToken = "fresh") -> InitialWeights:
    """Load all weights of a pre-trained encoder into an encoder.

    Both must have the same architecture, except for settings without weights (number of patches, drop path). Class
    tokens of a :class:`PointViT` are an exception: those that the encoder lacks are dropped, and those that the source
    lacks stay freshly initialised. The report names both.

    Args:
        encoder: changed in place.
        source: run folder, folder or Hub id of an exported encoder; or an official ``.pth`` file, of the Point-MAE
            family for a :class:`PointViT`, of POS-BERT for a :class:`ViT3D`.
        class_token: ``"fresh"`` keeps the initial class token of the encoder, as the released fine-tuning of Point-CMAE
            does, whose names for it differ from those of pre-training; ``"pretrained"`` loads the first of the source.

    Raises:
        ValueError: a tensor is missing, has another shape, or has no place; or ``"pretrained"`` and there is no class
            token to take.
    """
    if class_token not in ("fresh", "pretrained"):
        raise ValueError(f"class_token must be 'fresh' or 'pretrained', got {class_token!r}")
    given_encoder = open_weights(source, encoder).encoder
    given, own = given_encoder.state_dict(), encoder.state_dict()
    exempt = _CLASS_TOKENS if isinstance(encoder, PointViT) else ()
    problems = [f"{name} is missing there" for name in own if name not in given and name not in exempt]
    problems += [f"{name} has no place here" for name in given if name not in own and name not in exempt]
    problems += [
        f"{name} is {tuple(given[name].shape)} there and {tuple(value.shape)} here"
        for name, value in own.items()
        if name in given and name not in exempt and given[name].shape != value.shape
    ]
    if problems:
        raise ValueError(
            f"encoder: the weights of {source} do not fit model.backbone: {'; '.join(problems[:3])}"
            f"{f' and {len(problems) - 3} more' if len(problems) > 3 else ''}. Give model.backbone the arguments that "
            f"it was built with{difference(encoder, given_encoder)}"
        )
    taken = [name for name in own if name not in exempt]
    for name in taken:
        own[name].copy_(given[name])
    if class_token == "pretrained":
        taken += _take_class_token(own, given, source)
    return InitialWeights(
        source=str(source),
        taken=tuple(taken),
        skipped=tuple(name for name in given if name in own and name not in taken),
        other_shape=(),
        unknown=tuple(name for name in given if name not in own),
        fresh=tuple(name for name in own if name not in taken),
    )


def _take_class_token(own: dict[str, torch.Tensor], given: dict[str, torch.Tensor], source: Any) -> list[str]:
    for side, where in ((own, "model.backbone"), (given, str(source))):
        if "cls_token" not in side:
            raise ValueError(f"class_token 'pretrained' needs a class token on both sides; {where} has none")
    for name in _CLASS_TOKENS:
        own[name].copy_(given[name][: len(own[name])])
    return list(_CLASS_TOKENS)
