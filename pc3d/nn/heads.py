"""What turns features into predictions."""

from __future__ import annotations

from torch import nn

from pc3d.nn.batch_norm import GlobalBatchNorm
from pc3d.nn.tokenizer import LinearBeforeNorm


class SegmentationHead(nn.Sequential):
    """Linear C→C, batch norm, ReLU, linear C→K on rows ``(N, C)``: the classifier of Swin3D (released code).

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
