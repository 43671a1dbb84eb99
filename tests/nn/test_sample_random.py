"""Random numbers per sample of the global batch."""

from __future__ import annotations

import itertools

import pytest
import torch

from pc3d.nn import SampleRandom


def draw(seed: int = 0, epoch: int = 0, step: int = 0, batch_size: int = 6, **process: int) -> torch.Tensor:
    random = SampleRandom(seed, epoch, step, batch_size=batch_size, **process)  # type: ignore[arg-type]
    return torch.cat([random.uniform(5), random.uniform(2, 3).flatten(1), random.uniform()[:, None]], dim=1)


def test_the_same_step_draws_the_same_and_another_one_something_else() -> None:
    assert torch.equal(draw(3, 1, 4), draw(3, 1, 4))
    for other in (draw(4, 1, 4), draw(3, 2, 4), draw(3, 1, 5), draw(3, 4, 1)):
        assert not torch.equal(draw(3, 1, 4), other)


@pytest.mark.parametrize("sizes", [(3, 3), (2, 2, 2), (4, 2), (2, 2, 1, 1)])
def test_processes_together_draw_what_one_does(sizes: tuple[int, ...]) -> None:
    starts = [sum(sizes[:r]) for r in range(len(sizes))]
    shares = [draw(batch_size=n, start=s, global_batch_size=6) for n, s in zip(sizes, starts, strict=True)]
    assert torch.equal(torch.cat(shares), draw())


@pytest.mark.parametrize("start", [-1, 4])
def test_a_share_outside_of_the_global_batch_is_refused(start: int) -> None:
    with pytest.raises(ValueError, match=f"samples {start} to {start + 3} are not within a global batch of 6"):
        draw(batch_size=3, start=start, global_batch_size=6)


def test_the_default_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = draw()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(draw(), first)


def test_numbers_are_uniform() -> None:
    numbers = torch.cat([draw(step=step).flatten() for step in range(300)]).double()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 5 * (1 / 12 / len(numbers)) ** 0.5


@pytest.mark.parametrize("name", ["seed", "epoch", "step"])
def test_negative_numbers_are_refused(name: str) -> None:
    arguments = {"seed": 0, "epoch": 0, "step": 0, name: -1}
    with pytest.raises(ValueError, match=f"{name} must be at least 0, got -1"):
        SampleRandom(**arguments, batch_size=1)


@pytest.mark.parametrize("sizes", [(3, 3), (4, 2)])
def test_normal_numbers_are_normal_and_shared_out_alike(sizes: tuple[int, ...]) -> None:
    whole = SampleRandom(0, 0, 0, batch_size=6).normal(7, 3)
    starts = [sum(sizes[:r]) for r in range(len(sizes))]
    shares = [
        SampleRandom(0, 0, 0, batch_size=n, start=s, global_batch_size=6).normal(7, 3)
        for n, s in zip(sizes, starts, strict=True)
    ]
    assert torch.equal(torch.cat(shares), whole)
    numbers = SampleRandom(0, 0, 1, batch_size=100).normal(1000).double().flatten()
    count = len(numbers)
    assert abs(numbers.mean()) < 5 / count**0.5
    assert abs(numbers.square().mean() - 1) < 5 * (2 / count) ** 0.5
    # Within one standard deviation lies erf(1 / sqrt 2) of a normal distribution.
    assert abs((numbers.abs() < 1).double().mean() - 0.6826895) < 5 * (0.217 / count) ** 0.5


def test_some_rows_are_so_many_of_those_that_may_be_drawn() -> None:
    mask = torch.arange(30) % 3 > 0
    offsets = torch.tensor([0, 9, 9, 30])  # 6, 0 and 14 rows may be drawn
    for count, expected in ((4, (4, 0, 4)), (10, (6, 0, 10)), ([2, 5, 20], (2, 0, 14)), ([0, 0, 3], (0, 0, 3))):
        rows = SampleRandom(0, 0, 0, batch_size=3).some_rows(mask, offsets, count)
        assert rows.unique().numel() == len(rows)
        assert bool(mask[rows].all())
        drawn = [((rows >= a) & (rows < b)).sum().item() for a, b in itertools.pairwise(offsets)]
        assert tuple(drawn) == expected


def test_every_row_is_drawn_about_as_often() -> None:
    mask, offsets = torch.tensor([True] * 4 + [False] + [True] * 3), torch.tensor([0, 8])
    drawn = [SampleRandom(0, 0, step, batch_size=1).some_rows(mask, offsets, 2) for step in range(700)]
    count = torch.cat(drawn).bincount(minlength=8)
    assert count[4] == 0
    assert count[mask].sum() == 1400
    assert (count[mask] - 200).abs().max() < 50  # four deviations of 700 draws at 2 / 7


def test_processes_together_draw_the_rows_that_one_does() -> None:
    mask, offsets = torch.rand(60, generator=torch.Generator().manual_seed(0)) > 0.3, torch.tensor([0, 20, 35, 60])
    whole = SampleRandom(0, 0, 0, batch_size=3).some_rows(mask, offsets, [5, 3, 9])
    first = SampleRandom(0, 0, 0, batch_size=1, global_batch_size=3).some_rows(mask[:20], offsets[:2], [5])
    share = SampleRandom(0, 0, 0, batch_size=2, start=1, global_batch_size=3)
    assert torch.equal(torch.cat([first, share.some_rows(mask[20:], offsets[1:] - 20, [3, 9]) + 20]), whole)
