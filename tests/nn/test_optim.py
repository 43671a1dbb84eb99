"""The learning-rate table of the released code, and which parameters are decayed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pc3d.nn import epoch_learning_rate, warmup_cosine, weight_decay_groups

# Learning rate in force during an epoch of the released loop (301 epochs, peak 1e-3).
OFFICIAL = {
    0: "1e-06",
    1: "1e-06",
    2: "1.009e-04",
    10: "9.001e-04",
    11: "9.973e-04",
    50: "9.357e-04",
    100: "7.548e-04",
    150: "5.057e-04",
    200: "2.553e-04",
    250: "7.056e-05",
    275: "1.940e-05",
    300: "1.03e-06",
}


@pytest.mark.parametrize(("epoch", "rate"), OFFICIAL.items())
def test_the_official_table(epoch: int, rate: str) -> None:
    digits = len(rate.partition("e")[0].partition(".")[2])
    assert f"{epoch_learning_rate(epoch, stepping='official'):.{digits}e}" == rate


def test_clean_stepping_is_one_epoch_ahead() -> None:
    for epoch in range(300):
        assert epoch_learning_rate(epoch) == epoch_learning_rate(epoch + 1, stepping="official")
    assert epoch_learning_rate(0) == 1e-6


def test_the_cosine_clock_is_not_shifted_by_the_warm_up() -> None:
    assert warmup_cosine(10) == pytest.approx(1e-6 + 0.5 * 999e-6 * (1 + math.cos(math.pi * 10 / 300)))
    assert warmup_cosine(300) == warmup_cosine(1000) == 1e-6
    assert max(warmup_cosine(t) for t in range(300)) < 1e-3


def test_no_warm_up() -> None:
    assert warmup_cosine(0, warmup_epochs=0) == pytest.approx(1e-3)


def test_only_matrices_that_are_not_tokens_are_decayed() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.BatchNorm1d(4), nn.Linear(4, 5))
    module.register_parameter("token", nn.Parameter(torch.zeros(1, 4)))
    module.register_parameter("frozen", nn.Parameter(torch.zeros(2, 2), requires_grad=False))
    decayed, spared = weight_decay_groups(module, 0.05, [module.token])  # type: ignore[list-item]
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {"0.weight", "3.weight"}
    assert {names[id(p)] for p in spared["params"]} == {
        "0.bias",
        "1.weight",
        "1.bias",
        "2.weight",
        "2.bias",
        "3.bias",
        "token",
    }
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)


def test_a_foreign_token_is_refused() -> None:
    with pytest.raises(ValueError, match="1 parameters that do not belong to Linear"):
        weight_decay_groups(nn.Linear(2, 2), 0.05, [nn.Parameter(torch.zeros(1))])
