"""Tokenizer of clouds: farthest point sampling, nearest neighbours, a mini-PointNet; and the position embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pc3d.nn._checks import as_read_by, check_dense, check_enough_points
from pc3d.nn.batch_norm import GlobalBatchNorm
from pc3d.ops import farthest_point_sample, gather, group, knn

PositionFeatures = Literal["coordinates", "sinusoids"]
"""Input features of a position embedding."""


class Patches(NamedTuple):
    """Clouds divided into G overlapping patches of S points.

    Attributes:
        centers: ``(B, G, 3)`` patch centres, points of the cloud.
        neighborhood: ``(B, G, S, 3)`` points of each patch relative to its centre, nearest first; not rescaled.
        tokens: ``(B, G, C)`` embedded patches.
    """

    centers: Tensor
    neighborhood: Tensor
    tokens: Tensor


class LinearBeforeNorm(nn.Linear):
    """A linear layer before a batch normalisation, which in training removes any constant.

    The exact gradient of the bias is therefore 0. Autograd would compute rounding noise around 0, and Adam would divide
    it by its own magnitude: the bias would drift at the speed of the learning rate, differently on every machine and
    number of processes. Here the gradient is exactly 0. In evaluation mode, where the statistics of the norm are fixed,
    the bias has its usual gradient.
    """

    def shift(self) -> Tensor:
        """The bias; in training its gradient is 0, but it stays in the graph, as distributed training requires."""
        return self.bias.detach() + 0.0 * self.bias if self.training else self.bias

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``."""
        return F.linear(input, self.weight, self.shift())


class MiniPointNet(nn.Module):
    """Embed each patch separately (Point-MAE, section 3.1; the tokenizer of Point-BERT).

    Linear 3→128, batch norm, ReLU, linear 128→256; concatenation of the maximum over the patch and the features of each
    point; linear 512→512, batch norm, ReLU, linear 512→C; maximum over the patch.

    Args:
        embed_dim: C.
        dims: the hidden widths 128, 256 and 512 above.

    Raises:
        ValueError: not three positive widths.
    """

    def __init__(self, embed_dim: int, dims: Sequence[int] = (128, 256, 512)) -> None:
        super().__init__()
        if len(dims) != 3 or min(dims) < 1:
            raise ValueError(f"tokenizer_dims must be three positive widths, got {tuple(dims)}")
        hidden, self.local_width, mixed = dims
        self.mix = LinearBeforeNorm(2 * self.local_width, mixed)
        self.first = nn.Sequential(
            LinearBeforeNorm(3, hidden),
            GlobalBatchNorm(hidden),
            nn.ReLU(inplace=True),
            LinearBeforeNorm(hidden, self.local_width),
        )
        self.second = nn.Sequential(GlobalBatchNorm(mixed), nn.ReLU(inplace=True), nn.Linear(mixed, embed_dim))

    def forward(self, neighborhood: Tensor) -> Tensor:
        """Map ``(B, G, S, 3)`` centred patches to ``(B, G, C)`` tokens."""
        batch, groups, size, _ = neighborhood.shape
        local = self.first(neighborhood.reshape(-1, 3)).view(batch * groups, size, self.local_width)
        # [W_g | W_l] (global ; local) = W_g global + W_l local: the global term is the same for all points of a patch,
        # so it is computed once per patch instead of once per point.
        of_patch = F.linear(_maximum(local, 1), self.mix.weight[:, : self.local_width], self.mix.shift())
        of_point = F.linear(local, self.mix.weight[:, self.local_width :])
        mixed = of_point.add_(of_patch[:, None]).view(batch * groups * size, self.mix.out_features)
        features: Tensor = self.second(mixed)
        return _maximum(features.view(batch, groups, size, features.shape[-1]), 2)


def _maximum(features: Tensor, dim: int) -> Tensor:
    """The maximum along a dimension; the gradient goes to the first of equal values."""
    # amax takes a fifth of the time on a CPU, but would divide the gradient among equal values.
    return features.max(dim).values if features.requires_grad else features.amax(dim)


class PatchTokenizer(nn.Module):
    """Divide clouds into patches and embed them.

    Args:
        embed_dim: width C of a token.
        num_groups: G, patches per cloud; the centres come from farthest point sampling from the first point on.
        group_size: S, points per patch: the S nearest points of the cloud, the centre included.
        dims: hidden widths of :class:`MiniPointNet`.
        ignore_near_origin: as the farthest point sampling of the official CUDA extension, ignore points whose squared
            norm is at most 1e-3, except the first. False by default, because this leaves a hole in clouds centred at
            the origin.
    """

    def __init__(
        self,
        embed_dim: int,
        num_groups: int,
        group_size: int,
        *,
        dims: Sequence[int] = (128, 256, 512),
        ignore_near_origin: bool = False,
    ) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.group_size = group_size
        self.ignore_near_origin = ignore_near_origin
        self.network = MiniPointNet(embed_dim, dims)

    def forward(self, xyz: Tensor) -> Patches:
        """Divide clouds ``(B, N, 3)`` into patches and embed them.

        Raises:
            ValueError: ``xyz`` is not ``(B, N, 3)``, or N is below ``group_size`` or ``num_groups``.
        """
        centers, neighborhood = self.cut(xyz)
        return Patches(centers, neighborhood, self.network(neighborhood))

    def cut(self, xyz: Tensor) -> tuple[Tensor, Tensor]:
        """Centres ``(B, G, 3)`` and patches ``(B, G, S, 3)`` without embedding, in float32 also under autocast."""
        check_dense(xyz)
        for name, needed in (("num_groups", self.num_groups), ("group_size", self.group_size)):
            check_enough_points(xyz, needed, name)
        with torch.autocast(xyz.device.type, enabled=False):
            xyz = as_read_by(self, xyz)
            index = farthest_point_sample(xyz, self.num_groups, ignore_near_origin=self.ignore_near_origin)
            centers = gather(xyz, index)
            neighbors = knn(xyz, self.group_size, query=centers).index
            return centers, group(xyz, neighbors, centers)


class PositionEmbedding(nn.Sequential):
    """Position embedding of patches: a small network on features of the centre coordinates ``(..., 3)``.

    Args:
        embed_dim: C.
        features: input of the network. ``"coordinates"`` (Point-BERT, Point-MAE): the 3 coordinates;
            linear 3→128, GELU, linear 128→C. ``"sinusoids"`` (PCP-MAE): with D = C / 6 frequencies
            ``w_k = 10000^(-k / D)``, for each axis the D sines and then the D cosines of ``w_k`` times the coordinate;
            linear C→C, GELU, linear C→C.

    Raises:
        ValueError: unknown features, or sinusoids with a C that is not a multiple of 6.
    """

    def __init__(self, embed_dim: int, features: PositionFeatures = "coordinates") -> None:
        if features not in ("coordinates", "sinusoids"):
            raise ValueError(f'position_features must be "coordinates" or "sinusoids", got {features!r}')
        if features == "sinusoids" and embed_dim % 6:
            raise ValueError(f'position_features="sinusoids" needs an embed_dim that 6 divides, got {embed_dim}')
        self.num_features, hidden = (3, 128) if features == "coordinates" else (embed_dim, embed_dim)
        super().__init__(nn.Linear(self.num_features, hidden), nn.GELU(), nn.Linear(hidden, embed_dim))

    def forward(self, input: Tensor) -> Tensor:
        """Map centres ``(..., 3)`` to ``(..., C)``."""
        return self.embed(self.features(input))

    def features(self, centers: Tensor) -> Tensor:
        """Input features ``(..., num_features)`` of the network, from centres ``(..., 3)``."""
        if self.num_features == 3:
            return centers
        count = self.num_features // 6
        frequency = 10000.0 ** (-torch.arange(count, dtype=centers.dtype, device=centers.device) / count)
        angle = centers[..., None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)

    def embed(self, features: Tensor) -> Tensor:
        """Map features ``(..., num_features)`` to ``(..., C)``."""
        embedded: Tensor = super().forward(features)  # type: ignore[no-untyped-call]
        return embedded
