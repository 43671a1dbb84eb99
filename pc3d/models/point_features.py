"""Features of single points from any encoder, and the relevance of points for a text."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from pc3d.data.types import PointCloud, collate
from pc3d.models.aligned import AlignedShapeEncoder
from pc3d.models.attention_map import attention_map
from pc3d.models.dgcnn import DGCNN
from pc3d.models.local_features import describes_places, local_features
from pc3d.models.openshape import OpenShapePointBERT
from pc3d.models.point_net import PointNet
from pc3d.models.point_transformer_v3 import PointTransformerV3
from pc3d.models.point_vit import PointViT
from pc3d.models.sparse_unet import SparseUNet
from pc3d.models.swin3d import Swin3D
from pc3d.models.vit3d import ViT3D
from pc3d.models.voxel_features import UpcastFeatures
from pc3d.ops import farthest_point_sample, interpolate, knn

_OF_VOXELS = (SparseUNet, Swin3D, PointTransformerV3)


def reads_scenes(encoder: nn.Module) -> bool:
    """Whether an encoder takes whole scenes, of any number of points and in metres, rather than objects."""
    return hasattr(encoder, "point_features")


@torch.no_grad()
def scene_features(encoder: nn.Module, cloud: PointCloud) -> Tensor:
    """Compute features of every point of a scene, in evaluation mode.

    For voxel encoders, these are the features of all levels without the decoder (:class:`UpcastFeatures`), which
    pre-training may not have trained. For others, they are their ``point_features``.

    Args:
        encoder: an encoder of scenes; it computes on the device of its parameters.
        cloud: with the fields that it reads.

    Returns:
        ``(N, C)``.

    Raises:
        TypeError: an encoder of objects.
        ValueError: the cloud lacks a field that the encoder reads.
    """
    if not reads_scenes(encoder):
        raise TypeError(f"{type(encoder).__name__} is an encoder of objects: see object_features")
    device = next(encoder.parameters()).device
    with _Evaluation(encoder):
        features: Tensor = scene_describer(encoder).point_features(collate([cloud]).to(device))
    return features


def scene_describer(encoder: nn.Module) -> Any:
    """What describes the points of scenes by an encoder of scenes: for voxel encoders, all levels without decoder."""
    return UpcastFeatures(encoder) if isinstance(encoder, _OF_VOXELS) else encoder


@torch.no_grad()
def object_features(encoder: nn.Module, xyz: Tensor, query: Tensor | None = None, rgb: Tensor | None = None) -> Tensor:
    """Compute features of any points of an object, in evaluation mode.

    For encoders with tokens, these are the features of the tokens after the last block. For :class:`PointNet` and
    :class:`DGCNN`, they are the features of the points before the maximum over the cloud. For OpenShape's sparse
    convolutions, they are the features of the voxels that contain a point, of all levels. They are interpolated to the
    queries from the three nearest tokens or points, weighted by inverse squared distance, as for part segmentation
    (PointNet++, section 3.4).

    Args:
        encoder: a :class:`PointViT`, :class:`ViT3D`, :class:`PointNet`, :class:`DGCNN`, :class:`OpenShapePointBERT`,
            :class:`OpenShapeSparseConv` or :class:`OpenShapeFCNN`, an :class:`ObjectEncoder` of your own with
            ``local_features``, or one of them in an :class:`AlignedShapeEncoder`.
        xyz: ``(N, 3)``, what the encoder sees: as many points as it is meant for, in the unit sphere.
        query: ``(M, 3)`` the points to describe, in the same frame; ``xyz`` when None.
        rgb: ``(N, 3)`` in [0, 1] of ``xyz``, for encoders that read colours.

    Returns:
        ``(M, C)``.

    Raises:
        TypeError: an encoder without features of single points.
    """
    inner = encoder.encoder if isinstance(encoder, AlignedShapeEncoder) else encoder
    with _Evaluation(encoder):
        features, places = _described(inner, xyz, rgb)
    query = xyz if query is None else query
    return interpolate(features.float(), places.float(), query.float().contiguous(), clamp=True)


def _described(encoder: nn.Module, xyz: Tensor, rgb: Tensor | None) -> tuple[Tensor, Tensor]:
    """Features ``(T, C)`` and the places ``(T, 3)`` that they describe."""
    if isinstance(encoder, PointViT | ViT3D):
        tokens, centers, _ = encoder(xyz[None])
        return tokens[0], centers[0]
    if isinstance(encoder, PointNet | DGCNN):
        return encoder(xyz[None])[0], xyz
    colors = None if rgb is None else rgb[None]
    if isinstance(encoder, OpenShapePointBERT):
        # Where the first centre is a random point: what looks at features leaves the draws of others as they are.
        with torch.random.fork_rng(devices=[]):
            (last,), centers = encoder.group_layers(xyz[None], [len(encoder.blocks) - 1], colors)
        return last[0], centers[0]
    if describes_places(encoder):
        features, places = local_features(encoder, xyz[None], colors)
        return features[0], places[0]
    raise TypeError(
        f"{type(encoder).__name__} says nothing of single points: features of points are those of a PointViT, ViT3D, "
        "PointNet, DGCNN, OpenShapePointBERT, OpenShapeSparseConv, OpenShapeFCNN, SparseUNet, Swin3D or "
        "PointTransformerV3, or of any ObjectEncoder with local_features(xyz) and local_dim"
    )


@torch.no_grad()
def text_relevance(
    aligned: AlignedShapeEncoder,
    xyz: Tensor,
    text: Tensor,
    query: Tensor | None = None,
    rgb: Tensor | None = None,
    *,
    num_parts: int = 48,
    share: float = 0.12,
    batch_size: int = 16,
) -> Tensor:
    """Compute the relevance of each part of an object for a text, for an encoder with one vector per object.

    This uses occlusion (Zeiler and Fergus, 2014, section 4.2, there for pictures). The points around each of some
    evenly spread centres are removed in turn. The centre is credited with the decrease of the cosine to the text: that
    of the whole minus that of the rest. Queries get the mean over their three nearest centres, weighted by inverse
    squared distance. A positive value means that without this part the shape is less similar to the text.

    Args:
        aligned: the encoder.
        xyz: ``(N, 3)`` the object as the encoder wants it.
        text: ``(text_dim,)`` feature of the text tower.
        query: ``(M, 3)`` points to colour; ``xyz`` when None.
        rgb: ``(N, 3)`` colours of ``xyz`` in [0, 1].
        num_parts: centres.
        share: of the points that is taken away each time.
        batch_size: clouds per forward pass.

    Returns:
        ``(M,)`` differences of cosines.

    Raises:
        ValueError: no share of the points, or all of them.
    """
    kept = len(xyz) - round(share * len(xyz))
    if not 0 < kept < len(xyz):
        raise ValueError(f"share must leave some points of {len(xyz)} and take some away, got {share}")
    centers = farthest_point_sample(xyz[None], min(num_parts, len(xyz)))[0]
    away = (xyz[None] - xyz[centers][:, None]).square().sum(2)
    # Of each, the points farthest from the centre stay, in their order.
    rest = away.argsort(dim=1, descending=True)[:, :kept].sort(dim=1).values
    target = torch.nn.functional.normalize(aligned.text_targets(text[None]), dim=1)[0]

    def cosine(rows: Tensor) -> Tensor:
        colors = None if rgb is None else rgb[rows]
        embedding = aligned.in_text_space(aligned.encode(xyz[rows], rgb=colors))
        return torch.nn.functional.normalize(embedding, dim=1) @ target

    with _Evaluation(aligned):
        whole = cosine(torch.arange(len(xyz))[None])
        without = torch.cat([cosine(rows) for rows in rest.split(batch_size)])
    lost = (whole - without)[:, None].float()
    query = xyz if query is None else query
    return interpolate(lost, xyz[centers].float(), query.float().contiguous(), clamp=True)[:, 0]


@torch.no_grad()
def point_attention(encoder: nn.Module, xyz: Tensor, query: Tensor | None = None) -> Tensor:
    """Compute the attention of the class token in the last block, for every head, at any points of an object.

    Args:
        encoder: a :class:`PointViT` with class token or a :class:`ViT3D`.
        xyz: ``(N, 3)`` what the encoder sees.
        query: ``(M, 3)``; ``xyz`` when None. Each gets the attention to the token with the nearest centre.

    Returns:
        ``(heads, M)``, the mean over tokens being 1 where attention is even: weights times the number of tokens.

    Raises:
        TypeError: an encoder without attention.
        ValueError: an encoder without class token.
    """
    found = attention_map(cast(Any, encoder), xyz[None])
    query = xyz if query is None else query
    nearest = knn(found.centers[0], 1, query=query).index[:, 0]
    return found.attention[0, :, nearest] * found.attention.shape[2]


class _Evaluation:
    """Evaluation mode for the time of a ``with`` block."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.was_training = module, module.training

    def __enter__(self) -> None:
        self.module.eval()

    def __exit__(self, *_: object) -> None:
        self.module.train(self.was_training)
