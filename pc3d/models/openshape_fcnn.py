"""OpenShape's small network of sparse convolutions, from its comparison of backbones before scaling."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pc3d.models.openshape import Axes, check_choice, check_cloud, check_pooling, to_frame, with_colors
from pc3d.models.openshape_sparse import LeakyConv, embedding_head, reset_sparse_convolutions
from pc3d.nn._checks import as_read_by
from pc3d.nn.batch_norm import GlobalBatchNorm
from pc3d.nn.sparse import scene_of_rows
from pc3d.ops import KernelMap, gather, gather_max, kernel_map, segment_reduce, voxelize, voxelize_coords


class _Reads(NamedTuple):
    """What each layer reads: ``(convolution, pooling)`` of the four stages, ancestors after each, the last three."""

    stages: list[tuple[KernelMap, KernelMap]]
    parents: list[Tensor]
    merge: list[KernelMap]
    shape: Tensor


class _Scales(NamedTuple):
    """Features ``(V, sum of channels[1:])`` of the finest voxels, each point's voxel, and what the layers read."""

    features: Tensor
    inverse: Tensor
    reads: _Reads


class OpenShapeFCNN(nn.Module):
    """The 5.3 M sparse convolutions of OpenShape (Liu et al., NeurIPS 2023, section 3.3), before they were scaled up.

    The network has a linear layer on the points and their mean in each voxel. Four stages follow, each of a 3x3x3
    convolution (strided by 2 except in the first) and a 3x3x3 maximum strided by 2. Every finest voxel gets the
    features of the voxels that contain it after each stage (edges of 2, 8, 32 and 128 voxels). Three strided
    convolutions, the concatenated maximum and mean over a shape, and three linear layers follow. The output is not
    normalised. The released configuration does not state the widths: these give the paper's number of parameters.

    Args:
        embed_dim: D of the output, 1280 for OpenCLIP ViT-bigG-14.
        channels: width of the points' features and of the four stages.
        merged_dim: width of the last three convolutions.
        hidden_dim: of the hidden linear layers.
        voxel_size: edge of a voxel in the units of the points.
        dropout: after the first linear layer.
        axes: see :func:`pc3d.models.openshape.to_frame`; published is ``"mirrored"``, the default does not mirror.
        num_points: points per cloud that the encoder is meant for; it changes no computation.

    Raises:
        ValueError: a size that is not positive, or not five widths.
    """

    reads_rgb = True
    pooling = "none (the embedding)"
    vector_only = ("merge", "head")

    def __init__(
        self,
        embed_dim: int = 1280,
        channels: Sequence[int] = (32, 48, 64, 96, 128),
        merged_dim: int = 128,
        hidden_dim: int = 1024,
        voxel_size: float = 0.02,
        dropout: float = 0.5,
        axes: Axes = "z_up",
        num_points: int = 10_000,
    ) -> None:
        super().__init__()
        if len(channels) != 5 or min(channels) < 1:
            raise ValueError(f"channels must be five positive widths, got {list(channels)}")
        if min(embed_dim, merged_dim, hidden_dim) < 1:
            raise ValueError(
                f"embed_dim, merged_dim and hidden_dim must be at least 1, got {embed_dim}, {merged_dim}, {hidden_dim}"
            )
        if not voxel_size > 0:
            raise ValueError(f"voxel_size must be positive, got {voxel_size}")
        check_choice("axes", axes, Axes)
        self.config: dict[str, Any] = {
            "embed_dim": embed_dim,
            "channels": list(channels),
            "merged_dim": merged_dim,
            "hidden_dim": hidden_dim,
            "voxel_size": voxel_size,
            "dropout": dropout,
            "axes": axes,
            "num_points": num_points,
        }
        self.embed_dim, self.local_dim = embed_dim, sum(channels[1:])
        self.points = nn.Sequential(nn.Linear(6, channels[0], bias=False), GlobalBatchNorm(channels[0]), nn.LeakyReLU())
        self.stages = nn.ModuleList([LeakyConv(a, b) for a, b in pairwise(channels)])
        widths = (self.local_dim, merged_dim, merged_dim)
        self.merge = nn.ModuleList([LeakyConv(width, merged_dim) for width in widths])
        self.head = embedding_head(2 * merged_dim, hidden_dim, embed_dim, dropout)
        reset_sparse_convolutions(self)

    def forward(self, xyz: Tensor, rgb: Tensor | None = None) -> Tensor:
        """As :meth:`encode`."""
        features, _, reads = self._scales(xyz, rgb)
        for convolution, read in zip(self.merge, reads.merge, strict=True):
            features = convolution(features, read)
        pooled = [segment_reduce(features, reads.shape, xyz.shape[0], kind) for kind in ("max", "mean")]
        embedding: Tensor = self.head(torch.cat(pooled, dim=1))
        return embedding

    def local_features(self, xyz: Tensor, rgb: Tensor | None = None) -> Tensor:
        """Concatenated features of the voxels that contain each point after all four stages, before merging.

        Args:
            xyz: ``(B, N, 3)``.
            rgb: ``(B, N, 3)`` in [0, 1]; grey when left out.

        Returns:
            ``(B, N, sum of channels[1:])``.
        """
        scales = self._scales(xyz, rgb)
        return gather(scales.features, scales.inverse).view(*xyz.shape[:2], scales.features.shape[1])

    def _scales(self, xyz: Tensor, rgb: Tensor | None) -> _Scales:
        check_cloud(xyz, rgb)
        if xyz.shape[1] == 0:
            raise ValueError("clouds must have points, got none")
        with torch.no_grad(), torch.autocast(xyz.device.type, enabled=False):
            xyz = to_frame(as_read_by(self, xyz), self.config["axes"])
            cuts = torch.arange(xyz.shape[0] + 1, device=xyz.device) * xyz.shape[1]
            found = voxelize(xyz.flatten(0, 1), self.config["voxel_size"], offsets=cuts)
            reads = _reads(found.coords, found.offsets)
        of_points = self.points(with_colors(xyz, rgb).flatten(0, 1))
        features = segment_reduce(of_points, found.inverse, found.coords.shape[0], "mean")
        scales = []
        for stage, (read, pooling), parents in zip(self.stages, reads.stages, reads.parents, strict=True):
            features = gather_max(stage(features, read), pooling.neighbors.long())
            scales.append(gather(features, parents))
        return _Scales(torch.cat(scales, dim=1), found.inverse, reads)

    def encode(self, xyz: Tensor, pooling: str = "none", *, rgb: Tensor | None = None) -> Tensor:
        """One vector per cloud.

        Args:
            xyz: ``(B, N, 3)`` in the unit sphere, z up.
            pooling: ignored; there is only one embedding.
            rgb: ``(B, N, 3)`` in [0, 1]; grey when left out.

        Returns:
            ``(B, embed_dim)``, not normalised.

        Raises:
            ValueError: wrong shapes, clouds without points, or a voxel size far too small for the coordinates.
        """
        check_pooling(pooling)
        return self.forward(xyz, rgb)


def _reads(coords: Tensor, offsets: Tensor) -> _Reads:
    stages, parents = [], []
    here, cuts = coords, offsets
    parent = torch.arange(coords.shape[0], device=coords.device)
    for stage in range(4):
        maps = []
        for stride in (1 if stage == 0 else 2, 2):
            maps.append(kernel_map(here, offsets=cuts, stride=stride))
            if stride > 1:  # both order coarse voxels by cloud, then by coordinates
                parent = voxelize_coords(here, stride, offsets=cuts).inverse[parent]
            here, cuts = maps[-1].coords, maps[-1].offsets
        stages.append((maps[0], maps[1]))
        parents.append(parent)
    merge = []
    here, cuts = coords, offsets
    for _ in range(3):
        merge.append(kernel_map(here, offsets=cuts, stride=2))
        here, cuts = merge[-1].coords, merge[-1].offsets
    return _Reads(stages, parents, merge, scene_of_rows(cuts, here.shape[0]))
