"""NT-Xent, VICReg and Barlow Twins against their sums written out, and their symmetries."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from pc3d.losses import barlow_twins, nt_xent, vicreg
from pc3d.nn import gather_rows

B, D = 7, 5
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nt_xent": lambda first, second: nt_xent(first, second, 0.3),
    "vicreg": lambda first, second: torch.stack(vicreg(first, second)),
    "barlow_twins": lambda first, second: torch.stack(barlow_twins(first, second)),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


@pytest.fixture
def views() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(B, D, generator=generator, dtype=torch.float64) * torch.tensor([0.1, 0.5, 1, 2, 4])
    return first, first + 0.5 * torch.randn(B, D, generator=generator, dtype=torch.float64)


def test_nt_xent_is_the_sum_over_all_views(views: tuple[Tensor, Tensor]) -> None:
    rows = [(row / row.norm()).tolist() for row in torch.cat(views)]

    def similarity(i: int, j: int) -> float:
        return sum(a * b for a, b in zip(rows[i], rows[j], strict=True)) / 0.3

    total = 0.0
    for i in range(2 * B):
        below = sum(math.exp(similarity(i, k)) for k in range(2 * B) if k != i)
        total -= math.log(math.exp(similarity(i, (i + B) % (2 * B))) / below)
    assert nt_xent(*views, 0.3).item() == pytest.approx(total / (2 * B), rel=1e-12)


def columns(rows: Tensor) -> list[list[float]]:
    result: list[list[float]] = rows.T.tolist()
    return result


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def covariance(a: list[float], b: list[float], count: int) -> float:
    return sum((x - mean(a)) * (y - mean(b)) for x, y in zip(a, b, strict=True)) / count


def test_vicreg_is_its_three_sums(views: tuple[Tensor, Tensor]) -> None:
    pairs = zip(views[0].flatten().tolist(), views[1].flatten().tolist(), strict=True)
    invariance = mean([(a - b) ** 2 for a, b in pairs])
    variance = off_diagonal = 0.0
    for view in map(columns, views):
        variance += mean([max(0.0, 1 - math.sqrt(covariance(a, a, B - 1) + 1e-4)) for a in view])
        for j in range(D):
            off_diagonal += sum(covariance(view[j], view[k], B - 1) ** 2 for k in range(D) if k != j) / D
    terms = vicreg(*views)
    assert [term.item() for term in terms] == pytest.approx([invariance, variance, off_diagonal], rel=1e-12)
    assert vicreg(*views, target_std=0.01).variance.item() == 0  # every dimension has more


def test_barlow_twins_is_its_two_sums(views: tuple[Tensor, Tensor]) -> None:
    one, other = map(columns, views)
    invariance = redundancy = 0.0
    for j in range(D):
        for k in range(D):
            scale = math.sqrt((covariance(one[j], one[j], B) + 1e-5) * (covariance(other[k], other[k], B) + 1e-5))
            correlation = covariance(one[j], other[k], B) / scale
            invariance += (1 - correlation) ** 2 if j == k else 0.0
            redundancy += correlation**2 if j != k else 0.0
    assert [term.item() for term in barlow_twins(*views)] == pytest.approx([invariance, redundancy], rel=1e-10)


@each_loss
def test_gradients(loss: Callable[[Tensor, Tensor], Tensor], views: tuple[Tensor, Tensor]) -> None:
    assert torch.autograd.gradcheck(loss, tuple(view.requires_grad_() for view in views))


@each_loss
def test_the_order_of_clouds_and_of_views_does_not_matter(
    loss: Callable[[Tensor, Tensor], Tensor], views: tuple[Tensor, Tensor]
) -> None:
    first, second = views
    order = torch.randperm(B, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss(first[order], second[order]), loss(first, second))
    torch.testing.assert_close(loss(second, first), loss(first, second))
    assert not torch.allclose(loss(first, second[order]), loss(first, second))  # which belongs to which does


def test_what_each_loss_does_not_see(views: tuple[Tensor, Tensor]) -> None:
    first, second = views
    torch.testing.assert_close(nt_xent(3 * first, second / 2), nt_xent(first, second))
    scale, shift = torch.rand(2, D, dtype=torch.float64) + 0.5
    terms = barlow_twins(first * scale + shift, second / scale - shift, eps=1e-12)
    torch.testing.assert_close(torch.stack(terms), torch.stack(barlow_twins(first, second, eps=1e-12)))
    torch.testing.assert_close(torch.stack(vicreg(first + shift, second + shift)), torch.stack(vicreg(first, second)))


def test_values_of_the_best_and_the_collapsed() -> None:
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert [term.item() for term in barlow_twins(corners, corners)] == pytest.approx([0, 0], abs=1e-9)
    assert [term.item() for term in vicreg(corners, corners)] == [0, 0, 0]
    same = torch.ones(4, 2, dtype=torch.float64)
    assert nt_xent(same, same).item() == pytest.approx(math.log(7))
    assert [term.item() for term in barlow_twins(same, same)] == [2, 0]
    assert vicreg(same, same).variance.item() == pytest.approx(2 * (1 - 0.01))
    same.requires_grad_()
    for loss in LOSSES.values():  # and no gradient that is not a number
        (gradient,) = torch.autograd.grad(loss(same, same.detach()).sum(), same)
        assert gradient.isfinite().all()


@each_loss
def test_mixed_precision_is_computed_in_float32(
    loss: Callable[[Tensor, Tensor], Tensor], views: tuple[Tensor, Tensor]
) -> None:
    first, second = (view.bfloat16() for view in views)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(first, second)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(first.float(), second.float()))


def gradients(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """Of every loss, with respect to the rows at hand, and its value."""
    found = {}
    for name, loss in LOSSES.items():
        rows = first.clone().requires_grad_()
        value = loss(gather_rows(rows), gather_rows(second)).sum()
        (found[name],) = torch.autograd.grad(value, rows)
        found[f"value of {name}"] = value.detach()
    return found


def worker(rank: int, folder: str, first: Tensor, second: Tensor) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    part = slice(0, 3) if rank == 0 else slice(3, None)  # uneven on purpose
    torch.save(gradients(first[part], second[part]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_compute_what_one_does(tmp_path: Path, views: tuple[Tensor, Tensor]) -> None:
    mp.spawn(worker, args=(str(tmp_path), *views), nprocs=2)  # type: ignore[no-untyped-call,attr-defined]
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, expected in gradients(*views).items():
        if name.startswith("value"):
            torch.testing.assert_close(one[name], expected)
            torch.testing.assert_close(two[name], expected)
        else:  # distributed training takes the mean over processes
            torch.testing.assert_close(torch.cat([one[name], two[name]]) / 2, expected)


@each_loss
def test_bad_arguments_are_refused(loss: Callable[[Tensor, Tensor], Tensor], views: tuple[Tensor, Tensor]) -> None:
    first, second = views
    for bad in ((first, second[:4]), (first[:, :3], second), (first[0], second[0]), (first[:1], second[:1])):
        with pytest.raises(ValueError, match=r"both be \(B, d\) with at least two rows, got"):
            loss(*bad)


def test_a_temperature_must_be_positive(views: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"temperature must be positive, got 0\.0"):
        nt_xent(*views, 0.0)
