"""The classification and part segmentation models."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pc3d.models import PointClassifier, PointPartSegmenter, PointViT, ViT3D
from pc3d.models.local_features import center_features
from pc3d.models.official_names import official_slots
from pc3d.ops import knn


def small(**changes: int) -> PointViT:
    torch.manual_seed(0)
    return PointViT(24, 3, 4, num_groups=16, group_size=8, tokenizer_dims=(8, 16, 16), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("head", "count"), [("linear", 31_528), ("mlp3", 274_728)])
def test_a_frozen_classifier_trains_exactly_its_head_and_class_token(head: str, count: int) -> None:
    model = PointClassifier(PointViT(num_cls_tokens=1), 40, head)  # type: ignore[arg-type]
    model.freeze_encoder()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


@torch.no_grad()
def test_the_classifier_sees_the_class_token_first_and_the_maximum_second() -> None:
    model = PointClassifier(small(num_cls_tokens=1), 5, "linear").eval()
    xyz = torch.rand(2, 64, 3)
    tokens, _, cls = model.encoder(xyz)
    assert cls is not None
    weight, bias = model.head[0].weight, model.head[0].bias
    expected = cls[:, 0] @ weight[:, :24].T + tokens.max(1).values @ weight[:, 24:].T + bias  # type: ignore[index,union-attr]
    torch.testing.assert_close(model(xyz), expected)


def test_a_classifier_needs_one_class_token_and_a_known_head() -> None:
    with pytest.raises(ValueError, match="num_cls_tokens=1, got 0"):
        PointClassifier(small(), 5)
    with pytest.raises(ValueError, match="head must be one of full, mlp3, linear, got 'mlp'"):
        PointClassifier(small(num_cls_tokens=1), 5, "mlp")  # type: ignore[arg-type]


@torch.no_grad()
def test_part_segmentation_follows_its_description() -> None:
    torch.manual_seed(1)
    model = PointPartSegmenter(small(), num_parts=7, num_categories=3).eval()
    xyz, category = torch.rand(2, 40, 3), torch.tensor([2, 0])
    encoder = model.encoder
    centers, _, tokens = encoder.tokenizer(xyz)
    position, layers = encoder.position(centers), []
    for block in encoder.transformer.blocks:  # a third, two thirds and all of three blocks: each of them
        tokens = block(tokens + position)
        layers.append(encoder.norm(tokens))
    features = torch.cat(layers, dim=-1)
    neighbors = knn(centers, 3, query=xyz)
    weight = 1 / (neighbors.squared_distance + 1e-8)
    weight = weight / weight.sum(-1, keepdim=True)
    near = torch.stack([features[b][neighbors.index[b]] for b in range(2)])
    per_point = model.propagation(torch.cat([xyz, (near * weight[..., None]).sum(2)], -1).view(80, -1)).view(2, 40, -1)
    label = model.category(F.one_hot(category, 3).float())
    whole = torch.cat([features.max(1).values, features.mean(1), label], 1)
    logits = model.head(torch.cat([per_point, whole[:, None].expand(2, 40, -1)], -1).view(80, -1)).view(2, 40, 7)
    torch.testing.assert_close(model(xyz, category), logits.log_softmax(-1), rtol=1e-4, atol=1e-5)


def test_sure_points_still_teach_the_part_segmenter_under_autocast() -> None:
    torch.manual_seed(1)
    model = PointPartSegmenter(small(), num_parts=7, num_categories=3).eval()
    with torch.no_grad():
        model.head[-1].bias[3] += 8  # type: ignore[index,operator]  # as after long training
    seen: list[torch.Tensor] = []
    model.head[-1].register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.autocast("cpu", torch.bfloat16):
        found = model(torch.rand(2, 40, 3), torch.tensor([2, 0])).flatten(0, 1)
    (logits,) = seen
    assert logits.dtype == torch.bfloat16
    part = torch.full((80,), 3)
    (ours,) = torch.autograd.grad(F.nll_loss(found.float(), part), logits)
    exact = (logits.detach().double().softmax(1) - F.one_hot(part, 7)) / 80
    torch.testing.assert_close(ours.double(), exact, rtol=2**-8, atol=0)  # rounded to bfloat16 once


@torch.no_grad()
def test_part_segmentation_reads_three_blocks_of_vit3d() -> None:
    torch.manual_seed(1)
    encoder = ViT3D(24, 6, 4, group_size=8, point_dim=8, position="mlp")
    model = PointPartSegmenter(encoder, num_parts=7, num_categories=3).eval()
    assert model.layers == (1, 3, 5)
    xyz = torch.rand(2, 40, 3)
    features, centers = center_features(encoder, xyz, model.layers)
    assert features.shape == (2, 5, 72)
    # Hooks on the blocks see what each makes of class token and groups.
    seen: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: seen.append(out)) for block in encoder.transformer.blocks]
    output = encoder(xyz)
    for hook in hooks:
        hook.remove()
    assert torch.equal(centers, output.centers)
    for place, block in enumerate((1, 3, 5)):
        expected = encoder.norm(seen[block][:, 1:])
        torch.testing.assert_close(features[..., 24 * place : 24 * (place + 1)], expected)
    torch.testing.assert_close(features[..., 48:], output.tokens)
    with pytest.raises(TypeError, match="no counterpart of this PointPartSegmenter"):
        official_slots(model)
    log_probabilities = model(xyz, torch.tensor([2, 0]))
    torch.testing.assert_close(log_probabilities.exp().sum(-1), torch.ones(2, 40))


def test_part_segmentation_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="num_cls_tokens=0, got 1"):
        PointPartSegmenter(small(num_cls_tokens=1))
    for layers in ((0, 0, 1), (2, 1, 0), (0, 1, 3)):
        with pytest.raises(ValueError, match=r"three ascending blocks of 0\.\.2"):
            PointPartSegmenter(small(), layers=layers)
    with pytest.raises(ValueError, match=r"category must have shape \(2,\), got \(3,\)"):
        PointPartSegmenter(small())(torch.rand(2, 40, 3), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("head", ["full", "linear"])
def test_both_models_train(head: str) -> None:
    classifier = PointClassifier(small(num_cls_tokens=1), 5, head)  # type: ignore[arg-type]
    F.cross_entropy(classifier(torch.rand(4, 64, 3)), torch.arange(4)).backward()
    segmenter = PointPartSegmenter(small(), 7, 3)
    output = segmenter(torch.rand(2, 40, 3), torch.tensor([0, 1]))
    F.nll_loss(output.flatten(0, 1), torch.randint(7, (80,))).backward()
    for model in (classifier, segmenter):
        assert all(p.grad is not None for p in model.parameters())
