"""Transforms of colours, with the magnitudes that Pointcept publishes. A cloud without colours passes unchanged.

Colours are in [0, 1] here; the published magnitudes in 0 to 255 are the same shares of that range.
"""

from __future__ import annotations

import torch

from pc3d.data.scene_transforms import check_probability, happens
from pc3d.data.transforms import Transform
from pc3d.data.types import PointCloud


class ChromaticAutoContrast(Transform):
    """Stretch every channel to the full range, and blend that with the original colours by a factor from U[0, 1].

    Args:
        probability: of doing so.
        blend: a fixed factor instead of the random one; 1 is the full stretch.

    Raises:
        ValueError: ``probability`` or ``blend`` is outside of [0, 1].
    """

    def __init__(self, probability: float = 0.2, blend: float | None = None) -> None:
        self.probability = check_probability(probability)
        self.blend = None if blend is None else check_probability(blend, "blend")

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        rgb = cloud.rgb
        if rgb is None or len(cloud) == 0 or not happens(self.probability, generator):
            return cloud
        low, high = rgb.amin(dim=0), rgb.amax(dim=0)
        # A channel of one value has nothing to stretch.
        stretched = torch.where(high > low, (rgb - low) / (high - low), rgb)
        drawn = float(torch.rand((), generator=generator, dtype=torch.float64))
        blend = drawn if self.blend is None else self.blend
        return cloud.replace(rgb=(1 - blend) * rgb + blend * stretched)


class ChromaticTranslation(Transform):
    """Add one offset from U[-ratio, ratio] per channel to all colours, clipped.

    Args:
        probability: of doing so.
        ratio: largest offset.

    Raises:
        ValueError: ``probability`` or ``ratio`` is outside of [0, 1].
    """

    def __init__(self, probability: float = 0.95, ratio: float = 0.05) -> None:
        self.probability, self.ratio = check_probability(probability), check_probability(ratio, "ratio")

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        rgb = cloud.rgb
        if rgb is None or not happens(self.probability, generator):
            return cloud
        offset = (torch.rand(3, generator=generator, dtype=torch.float64) * 2 - 1) * self.ratio
        return cloud.replace(rgb=(rgb + offset.to(rgb.dtype)).clamp(0, 1))


class ChromaticJitter(Transform):
    """Add Gaussian noise to every channel of every point, clipped.

    Args:
        probability: of doing so.
        std: standard deviation.

    Raises:
        ValueError: ``probability`` is outside of [0, 1], or ``std`` is negative.
    """

    def __init__(self, probability: float = 0.95, std: float = 0.05) -> None:
        if std < 0:
            raise ValueError(f"std must not be negative, got {std}")
        self.probability, self.std = check_probability(probability), float(std)

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        rgb = cloud.rgb
        if rgb is None or not happens(self.probability, generator):
            return cloud
        noise = torch.randn(rgb.shape, generator=generator, dtype=torch.float64) * self.std
        return cloud.replace(rgb=(rgb + noise.to(rgb.dtype)).clamp(0, 1))


class RandomColorDrop(Transform):
    """Replace all colours of a scene by one grey, so that a model learns to work without colours.

    Args:
        probability: of doing so.
        value: the grey: 0 (black) as in Pointcept, 0.5 as in the Swin3D authors' own code.

    Raises:
        ValueError: ``probability`` or ``value`` is outside of [0, 1].
    """

    def __init__(self, probability: float = 0.2, value: float = 0.0) -> None:
        self.probability, self.value = check_probability(probability), check_probability(value, "value")

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        if cloud.rgb is None or not happens(self.probability, generator):
            return cloud
        return cloud.replace(rgb=torch.full_like(cloud.rgb, self.value))
