"""What an encoder of objects says of places within a cloud, for networks that name every point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from pc3d.models.dgcnn import DGCNN
from pc3d.models.object_encoder import ObjectEncoder
from pc3d.models.openshape import OpenShapePointBERT
from pc3d.models.openshape_fcnn import OpenShapeFCNN
from pc3d.models.openshape_sparse import OpenShapeSparseConv
from pc3d.models.point_net import PointNet
from pc3d.models.point_vit import PointViT
from pc3d.models.vit3d import ViT3D

TokenEncoder: TypeAlias = PointViT | ViT3D | OpenShapePointBERT
LocalEncoder: TypeAlias = TokenEncoder | PointNet | DGCNN | OpenShapeSparseConv | OpenShapeFCNN
"""Encoders of objects that say something of places: every one of the package."""


def describes_places(encoder: nn.Module) -> bool:
    """Whether an encoder of objects has :func:`local_features`: those of the package, and what offers as much.

    That is ``local_features(xyz)``, from ``(B, N, 3)`` to ``(B, N, local_dim)``, and the attribute ``local_dim``; see
    :class:`ObjectEncoder`.
    """
    if isinstance(encoder, LocalEncoder):
        return True
    return isinstance(encoder, ObjectEncoder) and hasattr(encoder, "local_features") and hasattr(encoder, "local_dim")


def local_features(
    encoder: nn.Module, xyz: Tensor, rgb: Tensor | None = None, layers: tuple[int, int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Features within clouds and the places that they describe.

    Of encoders with tokens those of three blocks at the centres of the groups; of the others what they, or their
    published segmentation network, know of each point by itself: :meth:`PointNet.local_features`,
    :meth:`DGCNN.local_features`, :meth:`OpenShapeSparseConv.local_features`, :meth:`OpenShapeFCNN.local_features`; of a
    class of your own its ``local_features``.

    Args:
        encoder: any that :func:`describes_places`.
        xyz: ``(B, N, 3)``.
        rgb: ``(B, N, 3)`` in [0, 1], for encoders that read colours.
        layers: of an encoder with tokens, which three blocks; see :func:`three_layers`.

    Returns:
        ``(B, T, F)`` and ``(B, T, 3)``, in the frame of ``xyz``.
    """
    if isinstance(encoder, TokenEncoder):
        return center_features(encoder, xyz, three_layers(encoder, layers), rgb)
    describe = cast(Any, encoder).local_features
    return describe(xyz, rgb) if getattr(encoder, "reads_rgb", False) else describe(xyz), xyz


def local_dim(encoder: nn.Module) -> int:
    """F of :func:`local_features`."""
    if isinstance(encoder, TokenEncoder):
        return 3 * int(encoder.config.get("width", encoder.embed_dim))
    return int(cast(Any, encoder).local_dim)


def least_points(encoder: nn.Module) -> int:
    """How many points a cloud must have for :func:`local_features`."""
    # OpenShape's transformer repeats points where a patch has too few; the others find so many different ones.
    names = ("num_groups",) if isinstance(encoder, OpenShapePointBERT) else ("num_groups", "group_size", "k")
    numbers = [cast(Any, encoder).config.get(name) for name in names]
    return max([1, *(number for number in numbers if isinstance(number, int))])


def vector_only(encoder: nn.Module, layers: Sequence[int] | None = None) -> list[nn.Module]:
    """The modules that only the vector of the whole cloud needs, not :func:`local_features` of these blocks."""
    names: Sequence[str] = getattr(encoder, "vector_only", ())
    modules = [getattr(encoder, name) for name in names]
    if isinstance(encoder, TokenEncoder):
        blocks = encoder.blocks if isinstance(encoder, OpenShapePointBERT) else encoder.transformer.blocks
        modules += list(blocks)[three_layers(encoder, layers)[2] + 1 :]
    return modules


def three_layers(encoder: TokenEncoder, layers: Sequence[int] | None) -> tuple[int, int, int]:
    """The blocks asked for, or those after a third, two thirds and all of the depth.

    Raises:
        ValueError: not three ascending blocks that the encoder has, or it has fewer than three.
    """
    depth = int(cast(Any, encoder.config["depth"]))
    if depth < 3:
        raise ValueError(f"three blocks are read: take a {type(encoder).__name__} of depth >= 3, got {depth}")
    chosen = tuple(layers or (depth // 3 - 1, 2 * depth // 3 - 1, depth - 1))
    if len(chosen) != 3 or not 0 <= chosen[0] < chosen[1] < chosen[2] < depth:
        raise ValueError(f"layers must be three ascending blocks of 0..{depth - 1}, got {chosen}")
    return chosen


def center_features(
    encoder: TokenEncoder, xyz: Tensor, layers: tuple[int, int, int], rgb: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The outputs ``(B, G, 3 C)`` of three blocks, each through the final norm where there is one, and the centres.

    OpenShape's transformer, which reads ``rgb``, has none.
    """
    if isinstance(encoder, OpenShapePointBERT):
        kept, centers = encoder.group_layers(xyz, layers, rgb)
    elif isinstance(encoder, ViT3D):
        kept, centers = encoder.group_layers(xyz, layers)
    else:
        centers, _, tokens = encoder.tokenizer(xyz)
        _, outputs = encoder.transformer.layers(tokens, encoder.position(centers), keep=layers)
        kept = [encoder.norm(layer) for layer in outputs]
    return torch.cat(kept, dim=-1), centers
