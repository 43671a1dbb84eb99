"""The network of Point-MAE and Point-CMAE: order of tokens, symmetries, masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pc3d.data import Household
from pc3d.losses import patch_chamfer, token_contrast
from pc3d.models import Branch, MaskedPointModel, PointViT
from pc3d.nn import Patches, random_mask


def build(num_branches: int, num_cls_tokens: int = 0) -> MaskedPointModel:
    torch.manual_seed(0)
    encoder = PointViT(24, 2, 4, num_groups=16, group_size=8, num_cls_tokens=num_cls_tokens, tokenizer_dims=(8, 16, 16))
    model = MaskedPointModel(encoder, num_branches, decoder_depth=2, decoder_num_heads=4).eval()
    for parameter in model.parameters():  # away from the nearly symmetric initial weights
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def objects() -> Tensor:
    data = Household("test", num_points=256)
    return torch.stack([data[i].xyz for i in (3, 50, 100)])


def masks(count: int, seed: int = 0) -> list[Tensor]:
    noise = torch.rand(count, 3, 16, generator=torch.Generator().manual_seed(seed))
    return [random_mask(one, 0.6) for one in noise]


def losses(branches: list[Branch], both: Tensor) -> Tensor:
    chamfer = [patch_chamfer(b.predicted, b.target) for b in branches]
    pairs = (branches[0].features, branches[1].features, both)
    contrasts = [token_contrast(*pairs), token_contrast(*pairs, contrast="all_tokens")]
    return torch.stack([*chamfer, *contrasts])


@torch.no_grad()
def test_shapes_and_targets(objects: Tensor) -> None:
    model, (mask,) = build(1), masks(1)
    (branch,) = model(objects, [mask])
    assert branch.predicted.shape == branch.target.shape == (3, 9, 8, 3)
    assert branch.features.shape == (3, 16, 24)
    neighborhood = model.encoder.tokenizer(objects).neighborhood
    assert torch.equal(branch.target, neighborhood[mask].view(3, 9, 8, 3))


@torch.no_grad()
def test_features_are_in_the_order_of_the_tokens_and_before_the_final_norm(objects: Tensor) -> None:
    """Decoding one cloud token by token, as the description says, without index lists."""
    model, (mask,) = build(1), masks(1)
    (branch,) = model(objects, [mask])
    encoder, decoder = model.encoder, model.branch_decoders()[0]
    patches = encoder.tokenizer(objects)
    for b in range(3):
        visible = [i for i in range(16) if not mask[b, i]]
        hidden = [i for i in range(16) if mask[b, i]]
        encoded, _ = encoder.encode_tokens(patches.tokens[b : b + 1, visible], patches.centers[b : b + 1, visible])
        sequence = torch.cat([encoded, decoder.mask_token.expand(1, 9, -1)], dim=1)
        x = sequence
        for block in decoder.transformer.blocks:
            x = block(x + decoder.position(patches.centers[b : b + 1, visible + hidden]))
        for place, token in enumerate(visible + hidden):
            torch.testing.assert_close(branch.features[b, token], x[0, place], rtol=1e-4, atol=1e-5)
        points = decoder.head(decoder.norm(x[0, len(visible) :])).view(9, 8, 3)
        torch.testing.assert_close(branch.predicted[b], points, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_permuting_the_tokens_leaves_every_loss_unchanged(objects: Tensor) -> None:
    model, pair = build(2, num_cls_tokens=2), masks(2)
    patches = model.encoder.tokenizer(objects)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    shuffled = Patches(*(value[:, order] for value in patches))
    one = losses(model.reconstruct(patches, pair, 9), pair[0] & pair[1])
    other = losses(model.reconstruct(shuffled, [mask[:, order] for mask in pair], 9), (pair[0] & pair[1])[:, order])
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_swapping_the_branches_swaps_the_losses(objects: Tensor) -> None:
    model, pair = build(2, num_cls_tokens=2), masks(2)
    both = pair[0] & pair[1]
    first, second, same, _ = losses(model(objects, pair), both)
    model.decoders = nn.ModuleList(reversed(list(model.decoders)))
    for token in (model.encoder.cls_token, model.encoder.cls_position):
        assert token is not None
        token.copy_(token.flip(0))
    swapped_first, swapped_second, swapped_same, _ = losses(model(objects, pair[::-1]), both)
    torch.testing.assert_close(swapped_first, second)
    torch.testing.assert_close(swapped_second, first)
    torch.testing.assert_close(swapped_same, same)


@torch.no_grad()
def test_branches_have_their_own_class_token(objects: Tensor) -> None:
    model, pair = build(2, num_cls_tokens=2), masks(2)
    before = model(objects, pair)
    assert model.encoder.cls_token is not None
    model.encoder.cls_token[1] += 1
    after = model(objects, pair)
    assert torch.equal(before[0].predicted, after[0].predicted)
    assert not torch.equal(before[1].predicted, after[1].predicted)


def test_every_parameter_gets_a_gradient(objects: Tensor) -> None:
    model, pair = build(2, num_cls_tokens=2), masks(2)
    losses(model.train()(objects, pair), pair[0] & pair[1])[:3].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    zero = {name for name, parameter in model.named_parameters() if not parameter.grad.any()}  # type: ignore[union-attr]
    # Batch norm takes out whatever is constant over the rows before it.
    assert zero == {f"encoder.tokenizer.network.{name}.bias" for name in ("first.0", "first.3", "mix")}


def test_a_whole_step_compiles_without_a_graph_break(objects: Tensor) -> None:
    model, pair = build(2, num_cls_tokens=2), masks(2)
    patches = model.encoder.tokenizer(objects)
    torch._dynamo.reset()
    compiled = torch.compile(model.reconstruct, fullgraph=True, backend="aot_eager")(patches, pair, 9)
    for ours, theirs in zip(compiled, model.reconstruct(patches, pair, 9), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_initial_decoder_weights() -> None:
    torch.manual_seed(0)
    model = MaskedPointModel(PointViT(depth=1), 1, decoder_depth=1)
    decoder = model.branch_decoders()[0]
    for name, module in decoder.transformer.named_modules():
        if isinstance(module, nn.Linear):
            bound = (6 / (module.in_features + module.out_features)) ** 0.5
            assert module.weight.abs().max().item() == pytest.approx(bound, rel=1e-3), name
            assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02), name
            assert module.bias is None or not module.bias.any(), name
    assert decoder.head.weight.abs().max().item() == pytest.approx(384**-0.5, rel=1e-3)  # PyTorch's default
    assert decoder.head.bias.abs().max() > 0
    assert decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.2)


def test_wrong_masks_are_refused(objects: Tensor) -> None:
    model = build(2)
    first, second = masks(2)
    with pytest.raises(ValueError, match="2 branches, got 1 masks"):
        model(objects, [first])
    with pytest.raises(TypeError, match="bool"):
        model(objects, [first.float(), second])
    fewer = random_mask(torch.rand(3, 16), 0.3)
    with pytest.raises(ValueError, match=r"same number of tokens, got \[4, 9\]"):
        model(objects, [first, fewer])


def test_class_tokens_must_fit_the_branches() -> None:
    with pytest.raises(ValueError, match="num_cls_tokens=1; with 2 branches it must be 0 or 2"):
        build(2, num_cls_tokens=1)
    with pytest.raises(ValueError, match="num_branches must be at least 1"):
        build(0)
