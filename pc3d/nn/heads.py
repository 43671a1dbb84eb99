"""Heads: networks from features to predictions, or to the input of a self-supervised loss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pc3d.nn.batch_norm import GlobalBatchNorm
from pc3d.nn.init import init_token
from pc3d.nn.tokenizer import LinearBeforeNorm


class SegmentationHead(nn.Sequential):
    """Linear C→C, batch norm, ReLU, linear C→K on rows ``(N, C)``: the classifier of Swin3D (released code).

    The weights have PyTorch's default initialisation of linear layers. At 48 channels they are four times as large as
    in the released code, which draws all weights of Swin3D from a normal distribution with standard deviation 0.02.
    This is our choice, for runs of few steps.

    Args:
        in_features: C.
        num_classes: K.
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__(
            LinearBeforeNorm(in_features, in_features),
            GlobalBatchNorm(in_features),
            nn.ReLU(inplace=True),
            nn.Linear(in_features, num_classes),
        )


class ProjectionHead(nn.Sequential):
    """Linear, batch norm, ReLU, ..., linear: the projector (and predictor) of contrastive methods.

    Args:
        dims: widths from input to output: ``(C, 2048, 256)`` is two linear layers, ``(C, 4096, 4096, 256)`` three.
        norm: batch norm after every layer but the last.
        last_norm: batch norm without scale and shift after the last, as in SimCLR and MoCo v3.
        last_bias: a bias in the last layer if no norm follows. VICReg and Barlow Twins have none, because their losses
            do not depend on it.

    Raises:
        ValueError: fewer than two widths, or one below 1.

    Source:
        SimCLR (Chen et al., 2020); MoCo v3 (Chen et al., 2021), released code; VICReg (Bardes et al., 2022).
    """

    def __init__(self, dims: Sequence[int], norm: bool = True, last_norm: bool = False, last_bias: bool = True) -> None:
        if len(dims) < 2 or min(dims) < 1:
            raise ValueError(f"dims must be at least two positive widths, got {tuple(dims)}")
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise(dims)):
            last = index == len(dims) - 2
            normed = last_norm if last else norm
            layers.append(nn.Linear(before, after, bias=not normed and (last_bias or not last)))
            if last and last_norm:
                layers.append(GlobalBatchNorm(after, affine=False))
            elif not last:
                layers += [*([GlobalBatchNorm(after)] if norm else []), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class DistillationHead(nn.Module):
    """DINO's head: an MLP with GELU, normalisation to unit length, and cosines with K prototypes.

    The last layer of the released code has weight normalisation with the lengths of its rows fixed to 1. Here the
    prototypes are divided by their lengths, which computes the same. Their lengths still matter to the optimiser: its
    steps rotate short prototypes faster. They are therefore initialised as in the released code, uniform within
    ``1 / sqrt(bottleneck)`` (PyTorch's default for a linear layer), not normal with standard deviation 0.02 like the
    MLP.

    Args:
        in_features: C.
        num_prototypes: K, width of the output.
        hidden: width of the two hidden layers of the MLP.
        bottleneck: width of the output of the MLP, which is normalised to unit length.

    Raises:
        ValueError: a width below 1.

    Source:
        DINO (Caron et al., 2021), appendix C; K = 512 for point clouds comes from POS-BERT (Fu et al., 2022).
    """

    def __init__(self, in_features: int, num_prototypes: int = 512, hidden: int = 2048, bottleneck: int = 256) -> None:
        super().__init__()
        widths = {"in_features": in_features, "num_prototypes": num_prototypes, "hidden": hidden}
        for name, value in {**widths, "bottleneck": bottleneck}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.mlp = nn.Sequential(
            nn.Linear(in_features, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.prototypes = nn.Parameter(torch.empty(num_prototypes, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                init_token(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.uniform_(self.prototypes, -(bottleneck**-0.5), bottleneck**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(B, C)`` to ``(B, K)`` cosines."""
        return F.linear(F.normalize(self.mlp(features), dim=-1), F.normalize(self.prototypes, dim=-1))
