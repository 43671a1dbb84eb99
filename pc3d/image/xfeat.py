"""XFeat (Potje et al., CVPR 2024): dense features for matching, from a network of half a million parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import instance_norm, interpolate

from pc3d.image.pictures import Preprocessing
from pc3d.image.towers import ImageTower


class _Unit(nn.Module):
    """Convolution, batch norm without weights, ReLU; ``layer`` is what the published file calls it."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        convolution = nn.Conv2d(inputs, outputs, kernel_size, stride, padding=kernel_size // 2, bias=False)
        self.layer = nn.Sequential(convolution, nn.BatchNorm2d(outputs, affine=False), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.layer(x))


class XFeatBackbone(nn.Module):
    """The descriptor branch (section 3.1, figure 3): three scales, summed at an eighth of the picture.

    Input is a grey picture ``(B, 1, H, W)``, sides multiples of 32; output ``(B, 64, H / 8, W / 8)``, not normalised.
    The keypoint and reliability heads of the published file are left out: lifting needs features of every place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.skip1 = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(1, 24, 1))
        self.block1 = nn.Sequential(_Unit(1, 4), _Unit(4, 8, stride=2), _Unit(8, 8), _Unit(8, 24, stride=2))
        self.block2 = nn.Sequential(_Unit(24, 24), _Unit(24, 24))
        self.block3 = nn.Sequential(_Unit(24, 64, stride=2), _Unit(64, 64), _Unit(64, 64, kernel_size=1))
        self.block4 = nn.Sequential(_Unit(64, 64, stride=2), _Unit(64, 64), _Unit(64, 64))
        self.block5 = nn.Sequential(
            _Unit(64, 128, stride=2), _Unit(128, 128), _Unit(128, 128), _Unit(128, 64, kernel_size=1)
        )
        self.block_fusion = nn.Sequential(_Unit(64, 64), _Unit(64, 64), nn.Conv2d(64, 64, 1))

    def forward(self, grey: Tensor) -> Tensor:
        grey = instance_norm(grey)
        eighth = self.block3(self.block2(self.block1(grey) + self.skip1(grey)))
        sixteenth = self.block4(eighth)
        size = eighth.shape[2:]
        coarser = [interpolate(x, size, mode="bilinear") for x in (sixteenth, self.block5(sixteenth))]
        return torch.as_tensor(self.block_fusion(eighth + coarser[0] + coarser[1]))


class XFeatTower(ImageTower):
    """XFeat's descriptors as dense features, 64 numbers per 8 x 8 pixels. Colours are averaged to grey.

    It has no global feature, because its mean distinguishes pictures poorly. Descriptors are meant to be compared by
    cosine.
    """

    # The coarsest scale is a 32nd of the picture, so that is what sides must divide into.
    _ROUND = 32

    def __init__(self, model: XFeatBackbone, name: str) -> None:
        preprocessing = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bilinear")
        super().__init__(name, preprocessing, width=None, dense_width=64, stride=8)
        self.model = model
        self._freeze()

    def _dense(self, pixels: Tensor) -> Tensor:
        sides = [max(self._ROUND, round(side / self._ROUND) * self._ROUND) for side in pixels.shape[2:]]
        grid = [side // self.stride for side in pixels.shape[2:]]
        if sides != list(pixels.shape[2:]):
            pixels = interpolate(pixels, sides, mode="bilinear", align_corners=False)
        features: Tensor = self.model(pixels.mean(dim=1, keepdim=True))
        return features if list(features.shape[2:]) == grid else interpolate(features, grid, mode="bilinear")
