"""Where initial weights are read: encoders that pc3d wrote, and the files of official code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from pc3d.models import (
    PointTransformerV3,
    PointViT,
    Swin3D,
    ViT3D,
    load_encoder,
    load_official_encoder,
    load_official_ptv3,
    load_official_swin3d,
    load_posbert_encoder,
)
from pc3d.models.swin3d_checkpoints import our_names

_OFFICIAL = (".pth", ".pt")


class Source(NamedTuple):
    """An encoder to take weights from.

    Attributes:
        encoder: the encoder.
        untold: its tensors that the file says nothing about, which are no one's weights.
    """

    encoder: nn.Module
    untold: frozenset[str]


def open_weights(source: str | os.PathLike[str], like: nn.Module, *, y_up: bool = False) -> Source:
    """Read the encoder that weights are to come from.

    An official file says less than an encoder needs; the rest is as in the network that takes the weights, whose class
    also says whose file it is: Point-MAE's family for :class:`PointViT`, POS-BERT for :class:`ViT3D` (the teacher),
    Swin3D for :class:`Swin3D`, PTv3, Sonata and Concerto for :class:`PointTransformerV3`.

    Args:
        source: run folder, folder or Hub id of an exported encoder; or an official ``.pth`` or ``.pt`` file.
        like: the encoder that the weights are for.
        y_up: as :func:`pc3d.models.load_official_swin3d`.

    Raises:
        ValueError: a file for which there is no reader or that is none, or ``y_up`` of what is no file of Swin3D.
    """
    path = Path(source)
    official = path.suffix in _OFFICIAL and path.is_file()
    if y_up and not (official and isinstance(like, Swin3D)):
        raise ValueError(f"y_up: only an official file of Swin3D has an upright axis to turn, got {source}")
    if not official:
        return Source(load_encoder(source), frozenset())
    if isinstance(like, PointViT):
        config = {name: value for name, value in like.config.items() if name != "num_cls_tokens"}
        return Source(load_official_encoder(path, keep_cls_tokens=True, **config)[0], frozenset())
    if isinstance(like, ViT3D):
        return Source(
            load_posbert_encoder(path, **_some(like, "num_heads", "group_size", "num_points", "drop_path"))[0],
            frozenset(),
        )
    if isinstance(like, Swin3D):
        model, _, report = load_official_swin3d(path, y_up=y_up, **_some(like, "voxel_size"))
        return Source(model, our_names(model, report.fresh))
    if isinstance(like, PointTransformerV3):
        return Source(load_official_ptv3(path, **_some(like, "voxel_size", "patch_size"))[0], frozenset())
    raise ValueError(
        f"encoder: {path} is an official file, and those are read for a PointViT (Point-MAE and its family), a ViT3D "
        f"(POS-BERT), a Swin3D or a PointTransformerV3, not for a {type(like).__name__}: give a run folder or an "
        "exported encoder"
    )


def _some(like: nn.Module, *names: str) -> dict[str, Any]:
    config: dict[str, Any] = getattr(like, "config", {})
    return {name: config[name] for name in names}
