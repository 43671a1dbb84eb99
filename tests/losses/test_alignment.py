"""The contrast of shapes with texts and pictures, against its sums written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pc3d.losses import Dropped, negatives_to_keep, shape_contrast

SCALE = 4.0


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Five shapes; shape 0 has two targets, 1 none, 2 one, 3 three, 4 one."""
    generator = torch.Generator().manual_seed(0)
    shapes = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    owner = torch.tensor([3, 0, 2, 3, 4, 0, 3])
    return shapes, torch.randn(7, 6, generator=generator, dtype=torch.float64), owner


def cosine(a: Tensor, b: Tensor) -> float:
    return float(sum(a * b) / (sum(a * a) ** 0.5 * sum(b * b) ** 0.5))


def by_hand(shapes: Tensor, targets: Tensor, owner: Tensor, keep: Tensor | None = None, mode: str = "remove") -> float:
    with_target = sorted(set(owner.tolist()))

    def term(i: int, j: int) -> float:
        """exp of the logit of shape i and target j within a sum."""
        if keep is not None and owner[j] != i and not keep[i, owner[j]]:
            return 0.0 if mode == "remove" else 1.0
        return math.exp(SCALE * cosine(shapes[i], targets[j]))

    total = 0.0
    for i in with_target:
        own = [j for j in range(len(targets)) if owner[j] == i]
        for j in own:
            row = sum(term(i, k) for k in range(len(targets)))
            column = sum(term(h, j) for h in with_target)
            total -= (math.log(term(i, j) / row) + math.log(term(i, j) / column)) / len(own)
    return total / len(with_target) / 2


def test_it_is_the_sum_over_pairs(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    found = shape_contrast(*inputs, SCALE)
    assert found.loss.item() == pytest.approx(by_hand(*inputs), abs=1e-12)
    assert found.num_shapes == 4
    shapes, targets, owner = inputs
    right = sum(int(owner[max(range(7), key=lambda j: cosine(shapes[i], targets[j]))]) == i for i in (0, 2, 3, 4))
    assert found.accuracy.item() == right / 4


def test_with_one_target_each_it_is_two_cross_entropies() -> None:
    """The released code's formula, with a shape that has no text: hand-computed for three shapes."""
    shapes = torch.tensor([[1.0, 0], [0, 1], [1, 1]], dtype=torch.float64)
    texts = torch.tensor([[2.0, 0], [0, 3]], dtype=torch.float64)  # of shapes 0 and 2
    half = SCALE / math.sqrt(2)
    logits = [[SCALE, 0.0], [half, half]]
    rows = [math.log(math.exp(SCALE) + 1) - SCALE, math.log(2)]
    columns = [math.log(math.exp(SCALE) + math.exp(half)) - SCALE, math.log(1 + math.exp(half)) - half]
    expected = 0.5 * (sum(rows) / 2 + sum(columns) / 2)
    assert logits[1][1] == half
    found = shape_contrast(shapes, texts, torch.tensor([0, 2]), SCALE)
    assert found.loss.item() == pytest.approx(expected, abs=1e-12)
    assert found.num_shapes == 2


@pytest.mark.parametrize("mode", ["remove", "zero"])
def test_pairs_that_are_not_kept(mode: Dropped, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    keep = torch.rand(5, 5, generator=torch.Generator().manual_seed(1)) < 0.6
    keep[0, 0] = False  # own targets count whatever the mask says
    found = shape_contrast(*inputs, SCALE, keep=keep, dropped=mode)
    assert found.loss.item() == pytest.approx(by_hand(*inputs, keep, mode), abs=1e-12)
    assert abs(found.loss.item() - shape_contrast(*inputs, SCALE).loss.item()) > 1e-3


def test_gradients_reach_shapes_targets_and_the_scale(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    shapes, targets, owner = inputs
    scale = torch.tensor(SCALE, dtype=torch.float64, requires_grad=True)

    def function(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        return shape_contrast(a, b, owner, s).loss

    assert torch.autograd.gradcheck(function, (shapes.requires_grad_(), targets.requires_grad_(), scale))


def test_order_and_length_do_not_matter(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    shapes, targets, owner = inputs
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    expected = shape_contrast(*inputs, SCALE).loss
    torch.testing.assert_close(shape_contrast(3 * shapes, targets[order] / 7, owner[order], SCALE).loss, expected)


def test_no_target_at_all_gives_zero_and_a_zero_gradient() -> None:
    shapes = torch.randn(3, 4, requires_grad=True)
    scale = torch.tensor(2.0, requires_grad=True)
    found = shape_contrast(shapes, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), scale)
    found.loss.backward()  # type: ignore[no-untyped-call]
    assert (found.loss.item(), found.num_shapes) == (0.0, 0)
    assert found.accuracy.isnan()
    assert shapes.grad is not None
    assert scale.grad is not None
    assert shapes.grad.abs().max() == scale.grad == 0


def test_half_precision_is_compared_in_float32() -> None:
    shapes = torch.randn(3, 4).bfloat16()
    assert shape_contrast(shapes, shapes, torch.arange(3), 2.0).loss.dtype == torch.float32


def test_negatives_truth_table() -> None:
    nan = float("nan")
    similarity = torch.tensor([[0.5, 0.45, 0.5, 0.3], [0.1, 0.6, nan, 0.7], [0.2, 0.2, 0.9, 0.9], [0.0, 0.0, 0.0, nan]])
    group = torch.tensor([0, 0, 1, 0])
    # Rows: 0 has 1 too close (0.05), 2 of another seed, 3 far enough (0.2). 1 has 0 far, 3 even closer than itself.
    # 2 stands alone. 3 has no similarity with itself: nothing is known, all are kept.
    expected = [[True, False, True, True], [True, True, True, False], [True] * 4, [True] * 4]
    assert negatives_to_keep(similarity, group, 0.1).tolist() == expected
    assert negatives_to_keep(similarity, group, 0.01)[0].tolist() == [True] * 4
    exactly = torch.tensor([[0.5, 0.25], [0.0, 0.5]])
    assert negatives_to_keep(exactly, torch.zeros(2, dtype=torch.int64), 0.25).tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": torch.zeros(7, 5)}, r"must be \(B, D\) and \(M, D\), got \(5, 6\) and \(7, 5\)"),
        ({"owner": torch.zeros(3, dtype=torch.int64)}, r"owner must be \(7,\), the shape of each target, got \(3,\)"),
        ({"owner": torch.full((7,), 5)}, "owner must name shapes 0 to 4, got 5 to 5"),
        ({"keep": torch.ones(5, 4, dtype=torch.bool)}, r"keep must be \(5, 5\), got \(5, 4\)"),
        ({"dropped": "half"}, "dropped must be one of 'remove', 'zero', got 'half'"),
    ],
)
def test_bad_arguments_are_refused(
    changes: dict[str, Any], message: str, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    arguments: dict[str, Any] = dict(zip(("shapes", "targets", "owner"), inputs, strict=True))
    with pytest.raises(ValueError, match=message):
        shape_contrast(**{**arguments, "logit_scale": SCALE, **changes})
    with pytest.raises(ValueError, match=r"similarity must be \(B, B\) and group \(B,\), got \(2, 3\) and \(2,\)"):
        negatives_to_keep(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
