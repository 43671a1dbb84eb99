"""The learning-rate table of the released code, which parameters are decayed, and by which optimiser."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from pc3d.methods import Optimisation, StepDecay, StepOptimisation
from pc3d.nn import epoch_learning_rate, warmup_cosine, weight_decay_groups
from pc3d.tasks import FineTuning, SegmentationOptimisation

RATE, DECAY = 0.25, 0.5
# Of each optimisation: how it builds what Lightning takes, whether biases are decayed, and fields without a warm-up.
OPTIMISATIONS: dict[type, tuple[Callable[[Any, nn.Module], dict[str, Any]], bool, dict[str, Any]]] = {
    Optimisation: (lambda made, model: made.build(model, [], 10), False, {"warmup_epochs": 0}),
    StepOptimisation: (
        lambda made, model: made.build(model, [], 0, 10),
        False,
        {"weight_decay": (DECAY, DECAY), "warmup_epochs": 0},
    ),
    StepDecay: (lambda made, model: made.build(model), True, {}),
    FineTuning: (lambda made, model: made.build(model, model, RATE, 10), False, {"warmup_epochs": 0}),
    SegmentationOptimisation: (lambda made, model: made.build(model, 10), True, {"schedule": "constant"}),
}


def optimisation(kind: type, **fields: Any) -> Any:
    return kind(**{"learning_rate": RATE, "weight_decay": DECAY, **OPTIMISATIONS[kind][2], **fields})


def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def set_gradients(model: nn.Linear, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


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


@pytest.mark.parametrize("kind", OPTIMISATIONS)
def test_without_an_optimizer_every_step_is_one_of_adamw(kind: type) -> None:
    build, decays_biases, _ = OPTIMISATIONS[kind]
    ours, theirs = model(), model()
    built = build(optimisation(kind), ours)
    groups = [
        {"params": [theirs.weight], "weight_decay": DECAY},
        {"params": [theirs.bias], "weight_decay": DECAY if decays_biases else 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-8)
    for step in range(5):
        for group in reference.param_groups:
            group["lr"] = built["optimizer"].param_groups[0]["lr"]
        set_gradients(ours, step)
        set_gradients(theirs, step)
        built["optimizer"].step()
        built["lr_scheduler"]["scheduler"].step()
        reference.step()
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.bias, theirs.bias)


@pytest.mark.parametrize("factory", [torch.optim.SGD, partial(torch.optim.SGD, momentum=0.9)])
@pytest.mark.parametrize("kind", OPTIMISATIONS)
def test_rates_and_weight_decay_are_those_of_any_optimizer(kind: type, factory: Any) -> None:
    build, decays_biases, _ = OPTIMISATIONS[kind]
    trained, before = model(), model()
    set_gradients(trained, 0)
    built = build(optimisation(kind, optimizer=factory), trained)
    built["optimizer"].step()  # momentum counts from the second step on
    assert trained.weight.grad is not None
    assert trained.bias.grad is not None
    weight = before.weight - RATE * (trained.weight.grad + DECAY * before.weight)
    bias = before.bias - RATE * (trained.bias.grad + (DECAY * before.bias if decays_biases else 0.0))
    torch.testing.assert_close(trained.weight, weight)
    torch.testing.assert_close(trained.bias, bias)


@pytest.mark.parametrize("kind", OPTIMISATIONS)
def test_an_optimizer_that_does_not_fit_is_refused_at_once(kind: type) -> None:
    def one_rate(params: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(params)

    for factory, message in (
        (torch.optim.Muon, "optimizer: Muon cannot be used: Muon only supports 2D parameters"),
        (torch.optim.Rprop, "optimizer: Rprop has no weight decay: set weight_decay of the optimisation to 0"),
        (partial(torch.optim.SGD, momentum=-1), "optimizer: SGD cannot be used: Invalid momentum value: -1"),
        (one_rate, "optimizer: one_rate cannot be used: .* unexpected keyword argument 'lr'"),
    ):
        with pytest.raises(ValueError, match=message):
            optimisation(kind, optimizer=factory)
    with pytest.raises(ValueError, match=r"betas=\(0.8, 0.9\) are those of AdamW, .* give SGD its own"):
        optimisation(kind, optimizer=torch.optim.SGD, betas=(0.8, 0.9))
    without = optimisation(kind, optimizer=torch.optim.Rprop, weight_decay=(0, 0) if kind is StepOptimisation else 0)
    assert isinstance(OPTIMISATIONS[kind][0](without, model())["optimizer"], torch.optim.Rprop)


@pytest.mark.parametrize("kind", OPTIMISATIONS)
def test_an_optimizer_is_copied_and_sent_to_other_processes(kind: type) -> None:
    made = optimisation(kind, optimizer=partial(torch.optim.SGD, momentum=0.9))
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert OPTIMISATIONS[kind][0](other, model())["optimizer"].param_groups[0]["momentum"] == 0.9
