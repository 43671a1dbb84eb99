"""Whether collapse is seen."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from pc3d.methods.collapse import CollapseWatch, effective_rank, feature_spread


def features(step: int) -> Tensor:
    return torch.randn(32, 16, generator=torch.Generator().manual_seed(step))


def test_spread_and_rank_of_known_features() -> None:
    assert feature_spread(torch.ones(8, 5)).item() == pytest.approx(0, abs=1e-6)
    assert effective_rank(torch.ones(8, 5)).item() == pytest.approx(1, abs=1e-5)
    # The corners of a simplex of four: three singular values of 2 / sqrt 3 after centring, mean 0.
    corners = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    assert feature_spread(corners).item() == pytest.approx((4 / 3) ** 0.5)
    assert effective_rank(corners).item() == pytest.approx(3)
    rows = features(0).double()
    unit = rows / rows.norm(dim=1, keepdim=True)
    assert feature_spread(rows).item() == pytest.approx((unit.std(0).square().mean() ** 0.5 * 16**0.5).item())
    p = torch.linalg.svdvals(unit)
    p = p / p.sum()
    assert effective_rank(rows).item() == pytest.approx(math.exp(-(p * p.log()).sum()), rel=1e-6)


def test_entropies_of_distributions() -> None:
    watch, spread = CollapseWatch(), features(0)
    certain = 100 * torch.eye(4).repeat(8, 1)
    values = watch(spread, certain)
    assert values["mean_entropy"].item() == pytest.approx(0, abs=1e-6)
    assert values["entropy_of_mean"].item() == pytest.approx(math.log(4))
    values = watch(spread, torch.zeros(32, 4))
    assert values["mean_entropy"].item() == values["entropy_of_mean"].item() == pytest.approx(math.log(4))
    values = watch(spread, 100 * torch.eye(4)[[1] * 32])
    assert values["entropy_of_mean"].item() == pytest.approx(0, abs=1e-6)
    assert set(watch(spread)) == {"feature_spread", "effective_rank"}


class Constant(nn.Module):
    """A collapsed backbone: whatever it sees, it says the same."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(16))

    def forward(self, clouds: Tensor) -> Tensor:
        return self.value.expand(len(clouds), -1) + 1e-4 * clouds.mean(1)[:, :1]


def test_a_constant_backbone_is_reported_once_with_what_to_do() -> None:
    watch, backbone = CollapseWatch(patience=10), Constant()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(9):
            watch(backbone(torch.rand(32, 64, 3)))
        watch(features(0))  # not in a row
        for _ in range(9):
            watch(backbone(torch.rand(32, 64, 3)))
    with pytest.warns(UserWarning, match=r"same for 10 steps.*collapsed.*lower learning rate"):
        watch(backbone(torch.rand(32, 64, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(30):
            watch(backbone(torch.rand(32, 64, 3)))


def test_distributions_that_tell_nothing_are_reported_though_features_differ() -> None:
    watch = CollapseWatch(patience=3)
    same, different = torch.tensor([[5.0, 0, 0, 0]]).repeat(32, 1), 10 * torch.eye(4).repeat(8, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for logits in (same, same, different, same, same):
            watch(features(0), logits)
    with pytest.warns(UserWarning, match=r"distributions .* same for 3 steps.*momentum closer to 1"):
        watch(features(0), same)


def test_healthy_features_features_of_one_cloud_and_nan() -> None:
    watch = CollapseWatch(patience=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(20):
            watch(features(step))
            watch(features(step)[:1])
    watch = CollapseWatch(patience=1)
    with pytest.warns(UserWarning, match="feature_spread nan"):
        watch(torch.full((4, 3), float("nan")))


def test_bad_arguments_are_refused() -> None:
    for threshold, patience in ((0.0, 5), (0.1, 0)):
        with pytest.raises(ValueError, match="threshold, patience and information must be positive"):
            CollapseWatch(threshold, patience)


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    part = slice(0, 1) if rank == 0 else slice(1, 6)  # one cloud alone has no spread
    torch.save(CollapseWatch()(features(0)[part], features(1)[part]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_measure_the_global_batch(tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call,attr-defined]
    rows, logits = features(0)[:6].double(), features(1)[:6].double()
    unit = rows / rows.norm(dim=1, keepdim=True)
    probability = logits.exp() / logits.exp().sum(1, keepdim=True)
    mean, singular = probability.mean(0), torch.linalg.svdvals(unit)
    share = singular / singular.sum()
    expected = {
        "feature_spread": (unit.var(0).sum()) ** 0.5,
        "effective_rank": (-(share * share.log()).sum()).exp(),
        "mean_entropy": -(probability * probability.log()).sum(1).mean(),
        "entropy_of_mean": -(mean * mean.log()).sum(),
    }
    for rank in (0, 1):
        measured = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert {name: value.item() for name, value in measured.items()} == pytest.approx(
            {name: value.item() for name, value in expected.items()}, rel=1e-5
        )
