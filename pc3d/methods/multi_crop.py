"""Views of clouds for self-distillation: large crops for teacher and student, small crops for the student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from pc3d.nn import SampleRandom, ViewAugmentation

GLOBAL_VIEWS = 2
GLOBAL = ViewAugmentation(crop=(0.5, 0.9))
LOCAL = ViewAugmentation(crop=(0.2, 0.5))


class Views(NamedTuple):
    """The views of a batch, each ``(B, n, 3)`` with its own n.

    Attributes:
        whole: the two global views, input of teacher and student.
        parts: local views and low-resolution copies, input of the student only.
    """

    whole: list[Tensor]
    parts: list[Tensor]


@dataclass(frozen=True)
class MultiCrop:
    """Two global crops, some local crops and, optionally, two low-resolution copies of each size.

    The counts, ratios and magnitudes are those of POS-BERT's released code. The paper of DCGLR mentions global and
    local views but states none of them.

    Attributes:
        global_view: makes the two global views.
        local_view: makes the local views.
        num_local: number of local views.
        low_resolution: numbers of points. For each number, two copies of the whole cloud are reduced to this many
            points by farthest point sampling, after jitter and a translation of up to 1 along each axis. The released
            code has 512, 256, 128 and 64, probably for its masked tokens.

    Raises:
        ValueError: a negative number of local views, or of points.
    """

    global_view: ViewAugmentation = GLOBAL
    local_view: ViewAugmentation = LOCAL
    num_local: int = 8
    low_resolution: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.num_local < 0:
            raise ValueError(f"num_local must not be negative, got {self.num_local}")
        if any(size < 1 for size in self.low_resolution):
            raise ValueError(f"low_resolution must be numbers of points, got {list(self.low_resolution)}")

    def __call__(self, xyz: Tensor, draws: SampleRandom, parts: bool = True) -> Views:
        """Compute the views of clouds ``(B, N, 3)``; if ``parts`` is False, only the global ones."""
        whole = [self.global_view(xyz, draws) for _ in range(GLOBAL_VIEWS)]
        if not parts:
            return Views(whole, [])
        smaller = [self.local_view(xyz, draws) for _ in range(self.num_local)]
        for size in self.low_resolution:
            copy = ViewAugmentation(crop=None, scale=None, translation=1.0, num_points=size)
            smaller += [copy(xyz, draws) for _ in range(GLOBAL_VIEWS)]
        return Views(whole, smaller)


MULTI_CROP = MultiCrop()
