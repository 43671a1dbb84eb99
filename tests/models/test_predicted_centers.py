"""The network of PCP-MAE: who sees whom, what is hidden, where gradients stop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pc3d.data import Household
from pc3d.models import Branch, PointViT, PredictedCenterModel
from pc3d.nn import Patches, PositionFeatures, TransformerBlock, random_mask

FEATURES: tuple[PositionFeatures, ...] = ("coordinates", "sinusoids")


def build(features: PositionFeatures = "sinusoids", **changes: Any) -> PredictedCenterModel:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"num_groups": 16, "group_size": 8, "tokenizer_dims": (8, 16, 16), **changes}
    encoder = PointViT(24, 2, 4, position_features=features, **arguments)
    model = PredictedCenterModel(encoder, decoder_depth=2, decoder_num_heads=4).eval()
    for parameter in model.parameters():  # away from the nearly symmetric initial weights
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def objects() -> Tensor:
    data = Household("test", num_points=256)
    return torch.stack([data[i].xyz for i in (3, 50, 100)])


@pytest.fixture(scope="module")
def mask() -> Tensor:
    return random_mask(torch.rand(3, 16, generator=torch.Generator().manual_seed(0)), 0.6)


def heads(rows: Tensor) -> list[Tensor]:
    return list(rows.split(6, dim=-1))  # 4 heads of 24


def streams(block: TransformerBlock, visible: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """One block on a cloud's two streams ``(V, C)`` and ``(M, C)``: visible rows see visible ones, hidden rows all."""

    def attend(rows: Tensor, others: Tensor) -> Tensor:
        weight = block.attention.qkv.weight
        query, key, value = rows @ weight[:24].T, others @ weight[24:48].T, others @ weight[48:].T
        parts = [
            torch.stack([torch.softmax(k @ one * 6**-0.5, 0) @ v for one in q])
            for q, k, v in zip(heads(query), heads(key), heads(value), strict=True)
        ]
        return block.attention.projection(torch.cat(parts, dim=1))  # type: ignore[no-any-return]

    of_visible, of_hidden = block.norm1(visible), block.norm1(hidden)
    visible = visible + attend(of_visible, of_visible)
    hidden = hidden + attend(of_hidden, torch.cat([of_visible, of_hidden]))
    return visible + block.mlp(block.norm2(visible)), hidden + block.mlp(block.norm2(hidden))


@pytest.mark.parametrize("features", FEATURES)
@torch.no_grad()
def test_a_step_is_the_two_streams_of_the_description(features: Any, objects: Tensor, mask: Tensor) -> None:
    model = build(features).double()
    encoder, (decoder,) = model.encoder, model.branch_decoders()
    patches = encoder.tokenizer(objects.double())
    (branch,) = model(objects.double(), [mask])
    assert branch.position is not None
    assert branch.true_position is not None
    for b in range(3):
        seen, unseen = (~mask[b]).nonzero().flatten(), mask[b].nonzero().flatten()
        visible, hidden = patches.tokens[b, seen], patches.tokens[b, unseen]
        where = encoder.position(patches.centers[b, seen])
        for block in encoder.transformer.blocks:
            visible, hidden = streams(block, visible + where, hidden + model.hidden_position)  # type: ignore[arg-type]
        predicted = model.center_head(encoder.norm(hidden))
        torch.testing.assert_close(branch.position[b], predicted)
        torch.testing.assert_close(branch.true_position[b], encoder.position.features(patches.centers[b, unseen]))

        x = torch.cat([encoder.norm(visible), decoder.mask_token.expand(len(unseen), -1)])[None]
        positions = torch.cat([where, encoder.position.embed(predicted)])
        for block in decoder.transformer.blocks:
            x = block(x + positions)
        points = decoder.head(decoder.norm(x[0, len(seen) :])).view(-1, 8, 3)
        torch.testing.assert_close(branch.predicted[b], points)
        torch.testing.assert_close(branch.features[b, torch.cat([seen, unseen])], x[0])
        torch.testing.assert_close(branch.target[b], patches.neighborhood[b, unseen])


@torch.no_grad()
def test_where_the_hidden_patches_are_reaches_nothing_but_the_target(objects: Tensor, mask: Tensor) -> None:
    model = build()
    patches = model.encoder.tokenizer(objects)
    moved = patches._replace(centers=patches.centers + mask[..., None] * torch.randn(3, 16, 3))
    (one,), (other,) = (model.reconstruct(some, [mask], 9) for some in (patches, moved))
    assert torch.equal(one.predicted, other.predicted)
    assert torch.equal(one.position, other.position)  # type: ignore[arg-type]
    assert not torch.equal(one.true_position, other.true_position)  # type: ignore[arg-type]


@torch.no_grad()
def test_what_the_hidden_patches_are_does_not_reach_the_visible_ones(objects: Tensor, mask: Tensor) -> None:
    """The encoder makes of the visible patches what Point-MAE's makes of them: it can be used without the rest."""
    model = build()
    patches = model.encoder.tokenizer(objects)
    other = patches._replace(tokens=patches.tokens + mask[..., None] * torch.randn(3, 16, 24))
    seen: list[Tensor] = []
    model.branch_decoders()[0].transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, :7]))
    (one,), (another,) = (model.reconstruct(some, [mask], 9) for some in (patches, other))
    assert not torch.equal(one.position, another.position)  # type: ignore[arg-type]
    assert torch.equal(*seen)
    visible, centers = (value[~mask].view(3, 7, -1) for value in (patches.tokens, patches.centers))
    torch.testing.assert_close(seen[0], model.encoder.encode_tokens(visible, centers)[0], rtol=1e-4, atol=1e-5)


def test_reconstruction_does_not_teach_the_positions_nor_positions_the_decoder(objects: Tensor, mask: Tensor) -> None:
    model = build()

    def reached(value: Tensor) -> set[str]:
        model.zero_grad()
        value.backward()
        return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}

    (branch,) = model(objects, [mask])
    by_points = reached(branch.predicted.square().sum())
    assert not any(name.startswith("center_head") for name in by_points)
    assert "hidden_position" not in by_points
    assert "encoder.position.0.weight" in by_points
    (branch,) = model(objects, [mask])
    assert branch.position is not None
    by_positions = reached(branch.position.square().sum())
    assert {
        "hidden_position",
        "center_head.3.weight",
        "encoder.transformer.blocks.0.attention.qkv.weight",
    } <= by_positions
    assert not any(name.startswith("decoders") for name in by_positions)
    # Nothing is left over. (Evaluation mode: the biases before batch norm have gradients, too.)
    assert by_points | by_positions == {name for name, _ in model.named_parameters()}


@torch.no_grad()
def test_permuting_the_tokens_permutes_the_features(objects: Tensor, mask: Tensor) -> None:
    model = build()
    patches = model.encoder.tokenizer(objects)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    shuffled = Patches(*(value[:, order] for value in patches))
    (one,) = model.reconstruct(patches, [mask], 9)
    (other,) = model.reconstruct(shuffled, [mask[:, order]], 9)
    torch.testing.assert_close(other.features, one.features[:, order], rtol=1e-4, atol=1e-5)


def test_a_step_compiles_without_a_graph_break(objects: Tensor, mask: Tensor) -> None:
    model = build()
    patches = model.encoder.tokenizer(objects)
    torch._dynamo.reset()
    (compiled,) = torch.compile(model.reconstruct, fullgraph=True, backend="aot_eager")(patches, [mask], 9)
    (plain,) = model.reconstruct(patches, [mask], 9)
    for name in Branch._fields:
        torch.testing.assert_close(getattr(compiled, name), getattr(plain, name), rtol=1e-4, atol=1e-5)


def test_class_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="needs an encoder with num_cls_tokens=0, got num_cls_tokens=1"):
        build(num_cls_tokens=1)
