"""OpenShape's residual network of sparse convolutions: one vector per shape in the space of a 2D model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pc3d.models.openshape import Axes, check_choice, check_cloud, check_pooling, to_frame, with_colors
from pc3d.nn._checks import as_read_by
from pc3d.nn.batch_norm import GlobalBatchNorm
from pc3d.nn.sparse import ConvNormReLU, ResidualBlock, SparseConv3d, scene_of_rows
from pc3d.ops import KernelMap, gather, kernel_map, segment_reduce, voxelize

_WIDTHS = (32, 64, 128, 256)
_STEM = 32
LAYERS: dict[str, tuple[int, ...]] = {"29m": (1, 1, 1, 1), "34m": (2, 2, 2, 2), "41m": (3, 4, 6, 3)}


class ShapeVoxels(NamedTuple):
    """Voxelised clouds, ready for :class:`OpenShapeSparseConv`.

    Attributes:
        inputs: ``(V, 6)`` mean place and colour of the points of each finest voxel.
        stem: what the 5x5x5 stem reads.
        down: of each of the four halvings, finest first.
        same: neighbours within each halved level.
        parents: ``(V,)`` int64 of each halved level: its row that holds each *finest* voxel.
        merge: what the two last, strided convolutions read.
        inverse: ``(B N,)`` int64, the finest voxel of each point.
        shape: ``(W,)`` int64, the cloud of each voxel that they leave.
        num_clouds: B.
    """

    inputs: Tensor
    stem: KernelMap
    down: list[KernelMap]
    same: list[KernelMap]
    parents: list[Tensor]
    merge: list[KernelMap]
    inverse: Tensor
    shape: Tensor
    num_clouds: int


class LeakyConv(nn.Module):
    """A sparse convolution, batch norm over all voxels of the batch, leaky ReLU of slope 0.01."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = SparseConv3d(in_channels, out_channels)
        self.norm = GlobalBatchNorm(out_channels)

    def forward(self, features: Tensor, kernel_map: KernelMap) -> Tensor:
        """Map ``(N, in_channels)`` to ``(M, out_channels)``."""
        return F.leaky_relu(self.norm(self.conv(features, kernel_map)))


def embedding_head(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    """The three linear layers after pooling, with batch norm and leaky ReLU between them."""
    return nn.Sequential(
        nn.Linear(inputs, hidden, bias=False),
        GlobalBatchNorm(hidden),
        nn.LeakyReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden, bias=False),
        GlobalBatchNorm(hidden),
        nn.LeakyReLU(),
        nn.Linear(hidden, outputs),
    )


@torch.no_grad()
def reset_sparse_convolutions(network: nn.Module) -> None:
    """Normal weights of variance ``2 / fan_out`` (He et al., 2015), the released code's initialisation.

    Of the shortcuts' linear layers that code takes the number of *inputs* for the fan-out.
    """
    for module in network.modules():
        if isinstance(module, SparseConv3d):
            taps, _, outputs = module.weight.shape
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / (taps * outputs)))
        elif isinstance(module, ResidualBlock):
            for linear in module.shortcut.modules():
                if isinstance(linear, nn.Linear):
                    nn.init.normal_(linear.weight, std=math.sqrt(2.0 / linear.in_features))


class OpenShapeSparseConv(nn.Module):
    """OpenShape-SparseConv (Liu et al., NeurIPS 2023, appendix): a ResNet of sparse convolutions with merged scales.

    Points are grouped into voxels, whose inputs are the mean position and colour of their points. After a 5x5x5 stem
    come four levels, each halved by a 2x2x2 convolution and followed by residual blocks (widths 32, 64, 128, 256).
    Every finest voxel gets the features of the voxels that contain it on all four levels. Two strided 3x3x3
    convolutions follow, then the concatenated maximum and mean over all voxels of a shape, and three linear layers. The
    output is not normalised.

    Shapes are expected in the unit sphere, z up.

    Args:
        embed_dim: D of the output, 1280 for OpenCLIP ViT-bigG-14.
        layers: residual blocks of the four levels; (3, 4, 6, 3) is the main model.
        hidden_dim: width of the last convolution and of the hidden linear layers.
        voxel_size: edge of a voxel in the units of the points.
        dropout: after the first linear layer.
        axes: see :func:`pc3d.models.openshape.to_frame`; published is ``"mirrored"``, the default does not mirror.
        num_points: points per cloud that the encoder is meant for; it changes no computation.

    Raises:
        ValueError: a size that is not positive, or not four levels.
    """

    reads_rgb = True
    pooling = "none (the embedding)"
    vector_only = ("merge", "head")
    local_dim = sum(_WIDTHS)

    def __init__(
        self,
        embed_dim: int = 1280,
        layers: Sequence[int] = (3, 4, 6, 3),
        hidden_dim: int = 1024,
        voxel_size: float = 0.02,
        dropout: float = 0.5,
        axes: Axes = "z_up",
        num_points: int = 10_000,
    ) -> None:
        super().__init__()
        if len(layers) != 4 or min(layers) < 1:
            raise ValueError(f"layers must be four positive numbers of blocks, got {list(layers)}")
        if embed_dim < 1 or hidden_dim < 1:
            raise ValueError(f"embed_dim and hidden_dim must be at least 1, got {embed_dim} and {hidden_dim}")
        if not voxel_size > 0:
            raise ValueError(f"voxel_size must be positive, got {voxel_size}")
        check_choice("axes", axes, Axes)
        self.config: dict[str, Any] = {
            "embed_dim": embed_dim,
            "layers": list(layers),
            "hidden_dim": hidden_dim,
            "voxel_size": voxel_size,
            "dropout": dropout,
            "axes": axes,
            "num_points": num_points,
        }
        self.embed_dim = embed_dim
        self.stem = ConvNormReLU(6, _STEM, 5)
        before = (_STEM, *_WIDTHS[:-1])
        self.downsamples = nn.ModuleList([ConvNormReLU(width, width, 2) for width in before])
        self.levels = nn.ModuleList(
            [
                nn.ModuleList([ResidualBlock(inputs if i == 0 else width, width) for i in range(count)])
                for inputs, width, count in zip(before, _WIDTHS, layers, strict=True)
            ]
        )
        half = hidden_dim // 2
        self.merge = nn.ModuleList([LeakyConv(sum(_WIDTHS), half), LeakyConv(half, hidden_dim)])
        self.head = embedding_head(2 * hidden_dim, hidden_dim, embed_dim, dropout)
        reset_sparse_convolutions(self)

    @classmethod
    def of_size(cls, size: str = "41m", **changes: Any) -> OpenShapeSparseConv:
        """One of the published sizes, named by its parameters with an output of 1280 dimensions.

        Args:
            size: ``"29m"``, ``"34m"`` or ``"41m"`` (the main model).
            **changes: other arguments of the class.

        Raises:
            ValueError: an unknown size.
        """
        if size not in LAYERS:
            raise ValueError(f"size must be one of {', '.join(LAYERS)}, got {size!r}")
        return cls(**{"layers": LAYERS[size], **changes})

    def forward(self, xyz: Tensor, rgb: Tensor | None = None) -> Tensor:
        """As :meth:`encode`."""
        voxels = self.voxels(xyz, rgb)
        features = self._scales(voxels)
        for convolution, reads in zip(self.merge, voxels.merge, strict=True):
            features = convolution(features, reads)
        pooled = [segment_reduce(features, voxels.shape, voxels.num_clouds, kind) for kind in ("max", "mean")]
        embedding: Tensor = self.head(torch.cat(pooled, dim=1))
        return embedding

    def local_features(self, xyz: Tensor, rgb: Tensor | None = None) -> Tensor:
        """Concatenated features of the voxels that contain each point on all four levels, before merging.

        Args:
            xyz: ``(B, N, 3)``.
            rgb: ``(B, N, 3)`` in [0, 1]; grey when left out.

        Returns:
            ``(B, N, 480)``.
        """
        voxels = self.voxels(xyz, rgb)
        features = self._scales(voxels)
        return gather(features, voxels.inverse).view(*xyz.shape[:2], features.shape[1])

    def _scales(self, voxels: ShapeVoxels) -> Tensor:
        """Of every finest voxel, the features of those that hold it on all levels: ``(V, 480)``."""
        features = self.stem(voxels.inputs, voxels.stem)
        scales = []
        for index, (down, blocks) in enumerate(zip(self.downsamples, self.levels, strict=True)):
            features = down(features, voxels.down[index])
            for block in blocks:  # type: ignore[attr-defined]
                features = block(features, voxels.same[index])
            scales.append(gather(features, voxels.parents[index]))
        return torch.cat(scales, dim=1)

    def encode(self, xyz: Tensor, pooling: str = "none", *, rgb: Tensor | None = None) -> Tensor:
        """One vector per cloud.

        Args:
            xyz: ``(B, N, 3)``.
            pooling: ignored; there is only one embedding.
            rgb: ``(B, N, 3)`` in [0, 1]; grey when left out.

        Returns:
            ``(B, embed_dim)``, not normalised.

        Raises:
            ValueError: wrong shapes, clouds without points, or a voxel size far too small for the coordinates.
        """
        check_pooling(pooling)
        return self.forward(xyz, rgb)

    @torch.no_grad()
    def voxels(self, xyz: Tensor, rgb: Tensor | None = None) -> ShapeVoxels:
        """Cut clouds into voxels and find what every convolution reads; computed in float32, or float64."""
        check_cloud(xyz, rgb)
        if xyz.shape[1] == 0:
            raise ValueError("clouds must have points, got none")
        with torch.autocast(xyz.device.type, enabled=False):
            xyz = to_frame(as_read_by(self, xyz), self.config["axes"])
            points = with_colors(xyz, rgb).flatten(0, 1)
            cuts = torch.arange(xyz.shape[0] + 1, device=xyz.device) * xyz.shape[1]
            found = voxelize(points[:, :3].contiguous(), self.config["voxel_size"], offsets=cuts)
            inputs = segment_reduce(points, found.inverse, found.coords.shape[0], "mean")
        return _shape_voxels(inputs, found.inverse, found.coords, found.offsets)


def _shape_voxels(inputs: Tensor, inverse: Tensor, coords: Tensor, offsets: Tensor) -> ShapeVoxels:
    merge: list[KernelMap] = []
    merged, merged_offsets = coords, offsets
    for _ in range(2):
        merge.append(kernel_map(merged, offsets=merged_offsets, stride=2))
        merged, merged_offsets = merge[-1].coords, merge[-1].offsets
    stem = kernel_map(coords, offsets=offsets, kernel_size=5)
    down: list[KernelMap] = []
    same: list[KernelMap] = []
    parents: list[Tensor] = []
    for _ in _WIDTHS:
        down.append(kernel_map(coords, offsets=offsets, kernel_size=2, stride=2))
        parent = down[-1].reverse.amax(1).long()  # one of the eight slots names it, the others are -1
        parents.append(parent if not parents else parent[parents[-1]])
        coords, offsets = down[-1].coords, down[-1].offsets
        same.append(kernel_map(coords, offsets=offsets))
    shape = scene_of_rows(merged_offsets, merged.shape[0])
    return ShapeVoxels(inputs, stem, down, same, parents, merge, inverse, shape, offsets.shape[0] - 1)
