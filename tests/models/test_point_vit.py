"""The encoder as users meet it: whole clouds in, tokens and features out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pc3d.data import Household
from pc3d.models import EncoderOutput, PointViT
from pc3d.models.point_vit import POOLINGS

SMALL: dict[str, Any] = {
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 4,
    "num_groups": 16,
    "group_size": 8,
    "num_points": 256,
    "tokenizer_dims": (8, 16, 16),
}


def small(**changes: Any) -> PointViT:
    torch.manual_seed(0)
    return PointViT(**{**SMALL, **changes}).eval()


@pytest.fixture(scope="module")
def objects() -> Tensor:
    data = Household("test", num_points=256)
    return torch.stack([data[i].xyz for i in range(0, 124, 31)])


@torch.no_grad()
@pytest.mark.parametrize("num_cls_tokens", [0, 1, 2])
def test_output(objects: Tensor, num_cls_tokens: int) -> None:
    output = small(num_cls_tokens=num_cls_tokens)(objects)
    assert output.tokens.shape == (4, 16, 24)
    assert output.centers.shape == (4, 16, 3)
    assert (None if output.cls is None else output.cls.shape) == ((4, 1, 24) if num_cls_tokens else None)
    torch.testing.assert_close(output.tokens.mean(-1), torch.zeros(4, 16), atol=1e-5, rtol=0)  # after the final norm


@torch.no_grad()
def test_poolings_are_what_their_names_say(objects: Tensor) -> None:
    encoder = small(num_cls_tokens=1)
    tokens, _, cls = encoder(objects)
    largest, mean = tokens.max(1).values, tokens.sum(1) / 16
    assert cls is not None
    expected = {
        "max": largest,
        "mean": mean,
        "max+mean": largest + mean,
        "concat(max,mean)": torch.cat([largest, mean], 1),
        "concat(cls,max,mean)": torch.cat([cls[:, 0], largest, mean], 1),
        "cls": cls[:, 0],
    }
    assert set(expected) == set(POOLINGS)
    for pooling, value in expected.items():
        torch.testing.assert_close(encoder.encode(objects, pooling), value)  # type: ignore[arg-type]


@torch.no_grad()
def test_features_do_not_depend_on_the_batch_or_on_chance(objects: Tensor) -> None:
    encoder = small(num_cls_tokens=2)
    together = encoder.encode(objects)
    assert torch.equal(together, encoder.encode(objects))
    alone = torch.cat([encoder.encode(cloud[None]) for cloud in objects])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_order_of_points_after_the_first_does_not_matter(objects: Tensor) -> None:
    encoder = small()
    order = torch.cat([torch.tensor([0]), 1 + torch.randperm(255, generator=torch.Generator().manual_seed(0))])
    torch.testing.assert_close(encoder.encode(objects[:, order]), encoder.encode(objects), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_each_row_gets_the_class_token_it_asks_for(objects: Tensor) -> None:
    encoder = small(num_cls_tokens=2)
    assert encoder.cls_token is not None
    encoder.cls_token[1] += 1
    patches = encoder.tokenizer(objects[:1])
    tokens, centers = patches.tokens.repeat(2, 1, 1), patches.centers.repeat(2, 1, 1)
    encoded, cls = encoder.encode_tokens(tokens, centers, cls_index=torch.tensor([0, 1]))
    default = encoder(objects[:1])
    assert cls is not None
    torch.testing.assert_close(encoded[0], default.tokens[0])
    assert (encoded[0] - encoded[1]).abs().max() > 1e-4


@pytest.mark.parametrize("training", [False, True])
def test_the_whole_encoder_compiles_without_a_graph_break(objects: Tensor, training: bool) -> None:
    encoder = small(num_cls_tokens=1, drop_path=0.0).train(training)

    def run(function: Callable[[Tensor], EncoderOutput]) -> tuple[EncoderOutput, dict[str, Tensor]]:
        encoder.zero_grad()
        output = function(objects)
        assert output.cls is not None
        (output.tokens.square().sum() + output.cls.sum()).backward()
        return output, {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}

    expected, wanted = run(encoder)
    torch._dynamo.reset()
    compiled, found = run(torch.compile(encoder, fullgraph=True, backend="aot_eager"))
    for ours, theirs in zip(compiled, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert wanted.keys() == dict(encoder.named_parameters()).keys()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    encoder = PointViT(depth=2, num_cls_tokens=2)
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.06), name
            assert module.weight.mean().abs() < 2e-3, name
            assert module.bias is None or not module.bias.any(), name
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm1d):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), name
            assert not module.bias.any(), name
    for token in (encoder.cls_token, encoder.cls_position):
        assert token is not None
        assert token.std().item() == pytest.approx(0.02, rel=0.1)


def test_class_tokens_escape_weight_decay_and_their_positions_do_not() -> None:
    encoder = small(num_cls_tokens=2)
    assert [id(p) for p in encoder.undecayed()] == [id(encoder.cls_token)]
    assert small().undecayed() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_groups": 0}, "num_groups must be at least 1, got 0"),
        ({"num_cls_tokens": -1}, "num_cls_tokens must be at least 0, got -1"),
        ({"embed_dim": 25}, "embed_dim must be a multiple of num_heads"),
        ({"tokenizer_dims": (1, 2)}, "tokenizer_dims"),
    ],
)
def test_bad_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_bad_pooling_is_refused(objects: Tensor) -> None:
    with pytest.raises(ValueError, match=r"pooling must be one of max, mean.*got 'median'"):
        small().encode(objects, "median")  # type: ignore[arg-type]
    for pooling in ("concat(cls,max,mean)", "cls"):
        with pytest.raises(ValueError, match="num_cls_tokens=0"):
            small().encode(objects, pooling)  # type: ignore[arg-type]


def test_reset_parameters_leaves_nothing_of_the_training(objects: Tensor) -> None:
    encoder = small(num_cls_tokens=1).train()
    fresh = {name: value.clone() for name, value in encoder.state_dict().items()}
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    encoder(objects).tokens.square().mean().backward()
    optimizer.step()
    moved = {name for name, value in encoder.state_dict().items() if not torch.equal(value, fresh[name])}
    assert "tokenizer.network.first.1.running_var" in moved
    torch.manual_seed(0)
    encoder.reset_parameters()
    for name, value in encoder.state_dict().items():
        if "norm" in name or name.startswith(("tokenizer.network.first.1.", "tokenizer.network.second.0.")):
            assert torch.equal(value, fresh[name]), name
