"""What the benchmark of attention hands to its contenders."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from pc3d.ops import Windows


@pytest.fixture(scope="module")
def attention(import_script: Callable[[str], ModuleType]) -> ModuleType:
    return import_script("benchmarks/attention.py")


@pytest.mark.parametrize("longest", [1, 20, 128, 300])
@pytest.mark.parametrize("count", [1, 9, 40])
def test_flex_attention_is_told_the_blocks_of_its_windows(attention: ModuleType, count: int, longest: int) -> None:
    """They are those that PyTorch finds by looking at every pair."""
    lengths = torch.randint(1, longest + 1, (count,), generator=torch.Generator().manual_seed(count))
    window = torch.repeat_interleave(lengths)

    def together(_b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return window[i] == window[j]

    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    found = attention.window_blocks(Windows(torch.arange(len(window)), offsets), together)
    right = create_block_mask(together, None, None, len(window), len(window), device="cpu")
    assert found.shape == right.shape
    assert torch.equal(found.to_dense(), right.to_dense())


@pytest.mark.parametrize("count", [1, 4, 5, 9, 12])
def test_fewer_voxels_are_the_first_of_more(attention: ModuleType, count: int) -> None:
    whole = torch.arange(36).view(12, 3), torch.tensor([0, 5, 9, 12]), torch.rand(12, 9)
    coords, offsets, signals = attention.cut(whole, count)
    assert torch.equal(coords, whole[0][:count])
    assert torch.equal(signals, whole[2][:count])
    of_voxel = torch.repeat_interleave(whole[1].diff())[:count]
    assert torch.equal(torch.repeat_interleave(offsets.diff()), of_voxel)
