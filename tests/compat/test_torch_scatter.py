"""The stand-in for torch_scatter against loops over the places."""

from __future__ import annotations

import pytest
import torch

from pc3d.compat import torch_scatter

INDEX = torch.tensor([3, 0, 3, 1, 3, 0])
"""Nothing is written to place 2."""


def by_loop(values: torch.Tensor, index: torch.Tensor, places: int, reduce: str) -> torch.Tensor:
    out = values.new_zeros(places)
    for place in range(places):
        mine = values[index == place]
        if len(mine):
            out[place] = getattr(mine, {"add": "sum"}.get(reduce, reduce))()
    return out


@pytest.mark.parametrize("reduce", ["sum", "add", "mean", "max", "min"])
def test_scatter_along_each_axis(reduce: str) -> None:
    src = torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 3
    index = torch.stack([INDEX, INDEX.flip(0)])
    out = torch_scatter.scatter(src, index, dim=1, reduce=reduce)  # trailing axes of an index are repeated
    assert out.shape == (2, 4, 3)
    for batch in range(2):
        for channel in range(3):
            expected = by_loop(src[batch, :, channel], index[batch], 4, reduce)
            torch.testing.assert_close(out[batch, :, channel], expected)
    last = torch_scatter.scatter(src.transpose(1, 2), INDEX, dim_size=6, reduce=reduce)  # one axis, along the last
    torch.testing.assert_close(last[1, 2], by_loop(src[1, :, 2], INDEX, 6, reduce))
    values = src[0].clone().requires_grad_()
    torch.autograd.gradcheck(lambda x: torch_scatter.scatter(x, INDEX, 0, reduce=reduce), values)


def test_largest_and_smallest_say_where_they_are_and_the_lowest_of_equals_has_the_gradient() -> None:
    src = torch.tensor([5, 1, 5, 2, 4, 1.0], requires_grad=True)
    value, where = torch_scatter.scatter_max(src, INDEX)
    assert value.tolist() == [1, 2, 0, 5]
    assert where.tolist() == [1, 3, 6, 0]
    value.sum().backward()
    assert src.grad is not None
    assert src.grad.tolist() == [1, 1, 0, 1, 0, 0]
    coords = torch.tensor([[4, -1], [2, 8], [3, -5], [0, 0], [9, 9], [2, 7]])
    value, where = torch_scatter.scatter_min(coords, INDEX, dim=0)
    assert value.tolist() == [[2, 7], [0, 0], [0, 0], [3, -5]]
    assert where.tolist() == [[1, 5], [3, 3], [6, 6], [2, 2]]


@pytest.mark.parametrize("reduce", ["max", "min", "sum", "mean"])
def test_what_is_not_a_number_is_told(reduce: str) -> None:
    src = torch.tensor([1.0, torch.nan, 5.0, 2.0, torch.nan, 7.0])
    out = torch_scatter.scatter(src, INDEX, 0, reduce=reduce)
    assert out.isnan().tolist() == [True, False, False, True]
    if reduce in ("max", "min"):
        assert getattr(torch_scatter, f"scatter_{reduce}")(src, INDEX, 0)[1].tolist() == [1, 3, 6, 4]


def test_out_takes_part() -> None:
    src, out = torch.tensor([5, 1, 5, 2, 4, 1.0]), torch.tensor([3.0, 1.0, 7.0, -1.0])
    assert torch_scatter.scatter(src, INDEX, out=out.clone(), reduce="max").tolist() == [3, 2, 7, 5]
    summed = out.clone()
    assert torch_scatter.scatter(src, INDEX, out=summed, reduce="sum") is summed
    assert summed.tolist() == [5, 3, 7, 13]


def test_means_of_integers_are_rounded_down() -> None:
    assert torch_scatter.scatter_mean(torch.tensor([-3, 2, 5]), torch.tensor([0, 0, 1])).tolist() == [-1, 5]


def test_softmax_among_those_of_a_place() -> None:
    src = 50 * torch.randn(6, 2, dtype=torch.float64)
    out = torch_scatter.scatter_softmax(src, INDEX, dim=0)
    for place in (0, 1, 3):
        mine = INDEX.eq(place)
        torch.testing.assert_close(out[mine], src[mine].softmax(0))
    values = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: torch_scatter.scatter_softmax(x, INDEX, 0), values)


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
def test_segments_of_sorted_rows(reduce: str) -> None:
    src = torch.randn(6, 2)
    by_rows = torch_scatter.segment_csr(src, torch.tensor([0, 2, 2, 6]), reduce=reduce)
    by_index = torch_scatter.segment_coo(src, torch.tensor([0, 0, 2, 2, 2, 2]), reduce=reduce)
    expected = torch.stack([by_loop(src[:, c], torch.tensor([0, 0, 2, 2, 2, 2]), 3, reduce) for c in range(2)], 1)
    torch.testing.assert_close(by_rows, expected)
    torch.testing.assert_close(by_index, expected)


def test_nothing_at_all() -> None:
    nothing = torch.empty(0, 2)
    for reduce in ("sum", "mean", "max"):
        out = torch_scatter.scatter(nothing, torch.empty(0, dtype=torch.int64), 0, dim_size=3, reduce=reduce)
        assert torch.equal(out, torch.zeros(3, 2))


def test_what_is_not_served_is_refused() -> None:
    src = torch.randn(6, 2)
    with pytest.raises(ValueError, match="'mul'"):
        torch_scatter.scatter(src, INDEX, 0, reduce="mul")
    with pytest.raises(ValueError, match="out is not served"):
        torch_scatter.scatter(src, INDEX, 0, out=torch.zeros(4, 2), reduce="mean")
    with pytest.raises(ValueError, match="from 0 to 6"):
        torch_scatter.segment_csr(src, torch.tensor([0, 2, 5]))
    with pytest.raises(ValueError, match=r"\(1, 6\)"):
        torch_scatter.segment_coo(src, INDEX[None])
