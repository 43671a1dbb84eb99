"""InfoNCE against loops, and the queue of past keys."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pc3d.losses import info_nce
from pc3d.nn import KeyQueue


def rows(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 6, generator=generator, dtype=torch.float64), dim=1)


def slowly(query: Tensor, keys: Tensor, own: list[int], queue: Tensor, temperature: float) -> float:
    total = 0.0
    for i, positive in enumerate(own):
        top = math.exp(float(query[i] @ keys[positive]) / temperature)
        negatives = [key for j, key in enumerate(keys) if j != positive] + list(queue)
        total -= math.log(top / (top + sum(math.exp(float(query[i] @ key) / temperature) for key in negatives)))
    return total / len(own)


@pytest.mark.parametrize("length", [0, 5])
def test_it_is_the_formula_and_the_own_key_is_no_negative(length: int) -> None:
    query, keys, queue = rows(3, 0), rows(7, 1), rows(length, 2)
    own = [4, 2, 0]
    value = info_nce(query, keys, torch.tensor(own), queue=queue, temperature=0.2)
    assert value.item() == pytest.approx(slowly(query, keys, own, queue, 0.2))
    half = info_nce(query, keys, torch.tensor(own), queue=queue, temperature=0.2, denominator=torch.tensor(6.0))
    assert half.item() == pytest.approx(value.item() / 2)


def test_one_cloud_alone_has_nothing_to_be_told_from() -> None:
    assert info_nce(rows(1, 0), rows(1, 1), torch.tensor([0])).item() == 0


def test_the_order_of_the_batch_does_not_matter() -> None:
    query, keys, order = rows(8, 0), rows(8, 1), torch.randperm(8, generator=torch.Generator().manual_seed(3))
    value = info_nce(query, keys, torch.arange(8))
    assert info_nce(query[order], keys[order], torch.arange(8)).item() == pytest.approx(value.item(), rel=1e-12)


def test_mixed_precision_is_computed_in_float32() -> None:
    query, keys = rows(4, 0).float(), rows(4, 1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = info_nce(query, keys, torch.arange(4))
    assert value.dtype == torch.float32
    assert value.item() == info_nce(query, keys, torch.arange(4)).item()


def test_bad_arguments_are_refused() -> None:
    query, own = rows(3, 0), torch.arange(3)
    for bad, message in (
        ((query, query[:, :2], own), r"query and keys must be .*\(3, 6\) and \(3, 2\)"),
        ((query, query, own[:2]), r"own must be \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            info_nce(*bad)
    with pytest.raises(ValueError, match=r"queue must be \(Q, 6\)"):
        info_nce(query, query, own, queue=query[:, :1])
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        info_nce(query, query, own, temperature=0.0)


def test_the_queue_is_first_in_first_out() -> None:
    queue, everything = KeyQueue(5, 6), rows(30, 0).float()
    assert queue.keys().shape == (0, 6)
    given = 0
    for count in (2, 2, 3, 1, 12, 5):
        before = queue.keys().clone()
        read = queue.keys()
        queue.enqueue(everything[given : given + count])
        assert torch.equal(read, before)  # what was read before stays as it was
        given += count
        expected = everything[max(given - 5, 0) : given]
        assert sorted(queue.keys().tolist()) == sorted(expected.tolist())
        one_by_one = torch.zeros(5, 6)
        for index in range(given):
            one_by_one[index % 5] = everything[index]
        assert torch.equal(queue.stored, one_by_one)


def test_the_queue_comes_back_from_a_checkpoint() -> None:
    queue, other = KeyQueue(5, 6), KeyQueue(5, 6)
    queue.enqueue(rows(7, 0))
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.enqueue(rows(2, 1))
    assert torch.equal(queue.keys(), other.keys())


def test_an_empty_queue_stays_empty_and_bad_sizes_are_refused() -> None:
    queue = KeyQueue(0, 6)
    queue.enqueue(rows(4, 0))
    assert queue.keys().shape == (0, 6)
    with pytest.raises(ValueError, match="length must be at least 0 and dim at least 1, got -1 and 6"):
        KeyQueue(-1, 6)
