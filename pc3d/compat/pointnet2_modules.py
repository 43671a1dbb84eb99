"""The layers of ``pointnet2_ops.pointnet2_modules``, with the parameter names of the original."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pc3d.compat import pointnet2_ops


def build_shared_mlp(mlp_spec: Sequence[int], bn: bool = True) -> nn.Sequential:
    """1 x 1 convolutions from each width to the next, with batch normalisation (or a bias if not ``bn``) and ReLU."""
    layers: list[nn.Module] = []
    for width, next_width in pairwise(mlp_spec):
        layers.append(nn.Conv2d(width, next_width, kernel_size=1, bias=not bn))
        if bn:
            layers.append(nn.BatchNorm2d(next_width))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class PointnetSAModuleMSG(nn.Module):
    """Set abstraction at several radii around the same farthest points; ``npoint=None`` takes the cloud as one group.

    The first width in each of ``mlps`` is that of the features; ``use_xyz`` adds 3 for the coordinates.
    """

    def __init__(
        self,
        npoint: int | None,
        radii: Sequence[float | None],
        nsamples: Sequence[int | None],
        mlps: Sequence[Sequence[int]],
        bn: bool = True,
        use_xyz: bool = True,
    ) -> None:
        super().__init__()
        self.npoint = npoint
        self.groupers, self.mlps = nn.ModuleList(), nn.ModuleList()
        for radius, nsample, (width, *widths) in zip(radii, nsamples, mlps, strict=True):
            self.mlps.append(build_shared_mlp([width + 3 * use_xyz, *widths], bn))
            if npoint is None:
                self.groupers.append(pointnet2_ops.GroupAll(use_xyz))
            elif radius is None or nsample is None:
                raise ValueError(f"npoint={npoint} needs a radius and nsample, got {radius} and {nsample}")
            else:
                self.groupers.append(pointnet2_ops.QueryAndGroup(radius, nsample, use_xyz))

    def forward(self, xyz: Tensor, features: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
        """Map points (B, N, 3) and features (B, C, N) to centres (B, npoint, 3) and features of their groups.

        Features (B, sum of last widths, npoint) are maxima over each group. Centres are None if the cloud is one group.
        """
        centers = None
        if self.npoint is not None:
            index = pointnet2_ops.furthest_point_sample(xyz, self.npoint)
            centers = pointnet2_ops.gather_operation(xyz.transpose(1, 2), index).transpose(1, 2).contiguous()
        groups = (grouper(xyz, centers, features) for grouper in self.groupers)
        return centers, torch.cat([mlp(group).amax(-1) for mlp, group in zip(self.mlps, groups, strict=True)], dim=1)


class PointnetSAModule(PointnetSAModuleMSG):
    """Set abstraction at one radius."""

    def __init__(
        self,
        mlp: Sequence[int],
        npoint: int | None = None,
        radius: float | None = None,
        nsample: int | None = None,
        bn: bool = True,
        use_xyz: bool = True,
    ) -> None:
        super().__init__(npoint, [radius], [nsample], [mlp], bn, use_xyz)


class PointnetFPModule(nn.Module):
    """Feature propagation: interpolation from the three nearest points by inverse distance, then a shared MLP."""

    def __init__(self, mlp: Sequence[int], bn: bool = True) -> None:
        super().__init__()
        self.mlp = build_shared_mlp(mlp, bn)

    def forward(
        self, unknown: Tensor, known: Tensor | None, unknow_feats: Tensor | None, known_feats: Tensor
    ) -> Tensor:
        """Interpolate ``known_feats`` (B, C, m) to points (B, n, 3), append their own features, apply the MLP.

        If ``known`` is None, ``known_feats`` (B, C, 1) belong to the whole cloud.
        """
        if known is None:
            carried = known_feats.expand(-1, -1, unknown.shape[1])
        else:
            distance, index = pointnet2_ops.three_nn(unknown, known)
            weight = 1 / (distance + 1e-8)
            carried = pointnet2_ops.three_interpolate(known_feats, index, weight / weight.sum(2, keepdim=True))
        joined = carried if unknow_feats is None else torch.cat([carried, unknow_feats], dim=1)
        return self.mlp(joined.unsqueeze(-1)).squeeze(-1)  # type: ignore[no-any-return]
