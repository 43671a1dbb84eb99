"""ViT3D, PointNet and DGCNN: what they compute, what it does not depend on, and how they are stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pc3d.data import Household
from pc3d.models import (
    DGCNN,
    ObjectEncoder,
    PointNet,
    PointPartSegmenter,
    PointViT,
    ViT3D,
    attention_map,
    classifier_of,
    load_encoder,
    save_attention_map,
    save_encoder,
)
from pc3d.nn.shared_mlp import EdgeConv, nearest_features

SMALL: dict[str, Callable[[], ObjectEncoder]] = {
    "ViT3D": lambda: ViT3D(24, 2, 4, group_size=8, point_dim=16, position="mlp"),
    "PointNet": lambda: PointNet(32),
    "DGCNN": lambda: DGCNN(32, k=6),
    "PointViT": lambda: PointViT(24, 2, 4, num_groups=16, group_size=8, tokenizer_dims=(8, 16, 16)),
}


@pytest.fixture(scope="module")
def objects() -> Tensor:
    data = Household("test", num_points=256)
    return torch.stack([data[i].xyz for i in range(0, 124, 31)])


def small(name: str) -> ObjectEncoder:
    """With statistics of batch norm that are not those of a fresh one."""
    torch.manual_seed(0)
    encoder = SMALL[name]()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)  # of either sign
            nn.init.normal_(module.bias, std=0.1)
    return encoder.eval()


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_sizes_are_the_published_ones() -> None:
    assert count(ViT3D()) == 17_158_080
    assert count(ViT3D(192, 4, 4)) == 1_255_424
    # Shared layers without bias and their norms.
    widths = [3, 64, 64, 64, 128, 512]
    assert count(PointNet()) == sum(a * b + 2 * b for a, b in pairwise(widths))
    # The paper's classifier for 40 classes, 1.81 million, without its last two layers.
    assert count(DGCNN()) == 1_809_576 - (512 * 256 + 256 + 2 * 256) - (256 * 40 + 40)


def normed(x: Tensor, norm: nn.Module) -> Tensor:
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return (x - norm.running_mean.double()) * scale + norm.bias.double()


def shared(x: Tensor, mlp: Any, slope: float = 0.0) -> Tensor:
    layers = list(mlp.layers)
    for linear, norm in zip(layers[::3], layers[1::3], strict=True):
        x = normed(x @ linear.weight.double().T, norm)
        x = torch.where(x > 0, x, slope * x)
    return x


@torch.no_grad()
def test_point_net_is_its_formula(objects: Tensor) -> None:
    encoder = small("PointNet")
    expected = torch.stack([shared(cloud.double(), encoder.mlp).max(0).values for cloud in objects])
    torch.testing.assert_close(encoder.encode(objects).double(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_point_net_says_of_points_what_its_segmentation_network_reads(objects: Tensor) -> None:
    encoder = small("PointNet")
    assert isinstance(encoder, PointNet)
    found, layers = encoder.local_features(objects), encoder.mlp.layers
    assert found.shape == (4, 256, encoder.local_dim)
    for ours, cloud in zip(found.double(), objects.double(), strict=True):
        local = shared(cloud, SimpleNamespace(layers=layers[:6]))
        whole = shared(local, SimpleNamespace(layers=layers[6:])).max(0).values
        torch.testing.assert_close(ours[:, :64], local, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours[:, 64:], whole.expand(256, -1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[:, 0, 64:], encoder.encode(objects))


def edge_convolution(layer: EdgeConv, x: Tensor) -> Tensor:
    """Of one cloud, point by point and edge by edge as the paper writes it."""
    weight, out = layer.linear.weight.double(), []
    for i in range(len(x)):
        distance = (x - x[i]).square().sum(1)
        edges = torch.stack([torch.cat([x[j] - x[i], x[i]]) for j in distance.argsort()[: layer.k]])
        responses = normed(edges @ weight.T, layer.norm)
        out.append(torch.where(responses > 0, responses, 0.2 * responses).max(0).values)
    return torch.stack(out)


@torch.no_grad()
def test_dgcnn_is_its_formula(objects: Tensor) -> None:
    encoder, cloud = small("DGCNN"), objects[0, :60]
    assert isinstance(encoder, DGCNN)
    x, found = cloud.double(), []
    for layer in encoder.edges:
        assert isinstance(layer, EdgeConv)
        x = edge_convolution(layer, x)
        found.append(x)
    points = shared(torch.cat(found, 1), encoder.mix, 0.2)
    pooled = torch.cat([points.max(0).values, points.mean(0)])
    expected = normed(pooled @ encoder.linear.weight.double().T, encoder.norm)
    torch.testing.assert_close(encoder.encode(cloud[None])[0].double(), expected, rtol=1e-4, atol=1e-4)
    # What its segmentation network reads of points: all edge convolutions, and the maximum over the cloud.
    read = torch.cat([*found, points.max(0).values.expand(60, -1)], dim=1)
    assert read.shape[1] == encoder.local_dim
    torch.testing.assert_close(encoder.local_features(cloud[None])[0].double(), read, rtol=1e-4, atol=1e-4)


def test_edge_convolution_has_the_gradient_of_its_formula() -> None:
    torch.manual_seed(0)
    layer, x = EdgeConv(3, 5, 4).double().eval(), torch.randn(1, 12, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(12, 5, dtype=torch.float64)
    (ours,) = torch.autograd.grad((layer(x)[0] * weight).sum(), x)
    (theirs,) = torch.autograd.grad((edge_convolution(layer, x[0]) * weight).sum(), x)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("width", [3, 16])
def test_neighbours_in_feature_space(width: int) -> None:
    features = torch.randn(2, 50, width, generator=torch.Generator().manual_seed(0)) + 10
    found = nearest_features(features, 7)
    distance = torch.cdist(features.double(), features.double())
    expected = distance.argsort(dim=2)[..., :7]
    assert torch.equal(found.sort(-1).values, expected.sort(-1).values)


@torch.no_grad()
def test_vit3d_is_its_formula(objects: Tensor) -> None:
    encoder, cloud = small("ViT3D"), objects[1, :60]
    assert isinstance(encoder, ViT3D)
    xyz = cloud.double()
    chosen = [0]
    while len(chosen) < math.ceil(60 / 8):
        distance = torch.stack([(xyz - xyz[c]).norm(dim=1) for c in chosen]).min(0).values
        chosen.append(int(distance.argmax()))
    features, tokens = shared(xyz, encoder.points), []
    for c in chosen:
        members = (xyz - xyz[c]).norm(dim=1).argsort()[:8]
        joined = torch.stack([torch.cat([features[j] - features[c], features[c]]) for j in members])
        tokens.append(shared(joined, encoder.groups).max(0).values)
    assert encoder.position is not None
    position = encoder.double().position(xyz[chosen])  # type: ignore[misc]
    x = torch.cat([encoder.cls_token, torch.stack(tokens) + position])[None]
    for block in encoder.transformer.blocks:
        x = block(x)
    x = encoder.norm(x)[0]
    encoder.float()
    output = encoder(cloud[None])
    torch.testing.assert_close(output.centers[0], cloud[chosen])
    torch.testing.assert_close(output.tokens[0].double(), x[1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder.encode(cloud[None])[0].double(), x[0], rtol=1e-4, atol=1e-4)


def test_positions_are_one_embedding_of_centres() -> None:
    torch.manual_seed(0)
    assert count(ViT3D(24, 2, 4, position="mlp")) - count(ViT3D(24, 2, 4)) == 3 * 128 + 128 + 128 * 24 + 24


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_features_depend_on_the_cloud_alone(name: str, objects: Tensor) -> None:
    encoder = small(name)
    together = encoder.encode(objects)
    assert together.shape == (4, encoder.embed_dim)
    assert torch.equal(together, encoder.encode(objects))
    alone = torch.cat([encoder.encode(cloud[None]) for cloud in objects])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)
    # The first point is where farthest point sampling begins.
    order = torch.cat([torch.tensor([0]), 1 + torch.randperm(255, generator=torch.Generator().manual_seed(0))])
    torch.testing.assert_close(encoder.encode(objects[:, order]), together, rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_clouds_may_have_any_number_of_points(name: str) -> None:
    encoder = small(name)
    cloud = Household("test", num_points=1844)[0].xyz
    for points in (64, 65, 512, 922, 1844):
        features = encoder.encode(cloud[None, :points])
        assert features.shape == (1, encoder.embed_dim)
        assert features.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_no_clouds_have_no_features(name: str) -> None:
    encoder, none = small(name), torch.zeros(0, 64, 3)
    assert encoder.encode(none).shape == (0, encoder.embed_dim)
    assert classifier_of(encoder, num_classes=5).eval()(none).shape == (0, 5)


@torch.no_grad()
@pytest.mark.parametrize("build", [SMALL["PointNet"], lambda: PointViT(24, 3, 4, num_groups=16, group_size=8)])
def test_no_clouds_have_no_parts(build: Callable[[], ObjectEncoder]) -> None:
    segmenter = PointPartSegmenter(build(), num_parts=7, num_categories=2, head_dims=(8, 8, 8, 8)).eval()
    assert segmenter(torch.zeros(0, 64, 3), torch.zeros(0, dtype=torch.int64)).shape == (0, 64, 7)


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_coordinates_of_any_floating_type_are_read(name: str, objects: Tensor) -> None:
    encoder = small(name)
    expected = encoder.encode(objects)
    assert torch.equal(encoder.encode(objects.double()), expected)  # as of an array by torch.from_numpy
    assert torch.equal(encoder.encode(objects.half()), encoder.encode(objects.half().float()))
    precise = encoder.double().encode(objects.double())
    assert precise.dtype == torch.float64
    torch.testing.assert_close(precise.float(), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(
        TypeError, match=r"xyz must hold floating-point coordinates, got torch.int64: pass xyz.float\(\)"
    ):
        encoder.encode(torch.zeros(2, 256, 3, dtype=torch.int64))


def test_the_number_of_tokens_follows_the_number_of_points() -> None:
    encoder = ViT3D(16, 1, 2, group_size=32).eval()
    found = [encoder(torch.rand(1, points, 3)).tokens.shape[1] for points in (922, 512, 256, 128, 64)]
    assert found == [29, 16, 8, 4, 2]


@torch.no_grad()
@pytest.mark.parametrize("name", ["PointNet", "DGCNN", "ViT3D"])
def test_any_pooling_of_the_probes_is_understood(name: str, objects: Tensor) -> None:
    encoder = small(name)
    assert encoder.encode(objects, "max+mean").shape == (4, encoder.embed_dim)
    if name == "ViT3D":
        output = encoder(objects)
        torch.testing.assert_close(encoder.encode(objects), output.cls[:, 0])
        torch.testing.assert_close(encoder.encode(objects, "max+mean"), output.tokens.amax(1) + output.tokens.mean(1))
        assert encoder.encode(objects, "concat(cls,max,mean)").shape == (4, 3 * encoder.embed_dim)
        with pytest.raises(ValueError, match=r"pooling must be one of max, .*'median'"):
            encoder.encode(objects, "median")
    else:
        assert torch.equal(encoder.encode(objects, "max+mean"), encoder.encode(objects))


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_an_encoder_comes_back_as_it_was(name: str, objects: Tensor, tmp_path: Path) -> None:
    encoder = small(name)
    loaded = load_encoder(save_encoder(encoder, tmp_path), expect=ObjectEncoder)  # type: ignore[type-abstract]
    assert type(loaded) is type(encoder)
    assert loaded.config == encoder.config
    assert torch.equal(loaded.encode(objects), encoder.encode(objects))


@pytest.mark.parametrize("name", SMALL)
def test_all_parameters_are_trained_and_reset(name: str, objects: Tensor) -> None:
    torch.manual_seed(0)
    encoder = SMALL[name]().train()
    encoder.reset_parameters()
    fresh = {key: value.clone() for key, value in encoder.state_dict().items()}
    (encoder.encode(objects) * torch.randn(4, encoder.embed_dim)).sum().backward()
    for key, parameter in encoder.named_parameters():
        assert parameter.grad is not None, key
        parameter.data.add_(1)
    torch.manual_seed(1)
    encoder.reset_parameters()
    changed = 0
    for key, value in encoder.state_dict().items():
        assert value.shape == fresh[key].shape
        if "running" in key or "tracked" in key or key.endswith(("norm.weight", "norm.bias")):
            assert torch.equal(value, fresh[key]), key
        changed += not torch.equal(value, fresh[key])
    assert changed > 3


@torch.no_grad()
@pytest.mark.parametrize("tokens", ["ViT3D", "PointViT"])
def test_attention_maps_are_those_of_the_last_block(tokens: str, objects: Tensor) -> None:
    encoder: Any = small("ViT3D")
    if tokens == "PointViT":
        torch.manual_seed(0)
        encoder = PointViT(24, 2, 4, num_groups=16, group_size=8, num_cls_tokens=2, tokenizer_dims=(8, 16, 16)).eval()
    seen: list[Tensor] = []
    last = encoder.transformer.blocks[-1].attention
    handle = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].double()))
    output = encoder(objects)
    handle.remove()
    found = attention_map(encoder.train(), objects)
    assert encoder.training
    torch.testing.assert_close(found.centers, output.centers)
    qkv = seen[0] @ last.qkv.weight.double().T + (0 if last.qkv.bias is None else last.qkv.bias.double())
    for head in range(4):
        columns = slice(head * 6, head * 6 + 6)
        query, key = qkv[:, 0, :24][:, columns], qkv[:, :, 24:48][..., columns]
        score = (query[:, None] * key).sum(-1) / 6**0.5
        expected = score.exp() / score.exp().sum(1, keepdim=True)
        torch.testing.assert_close(found.attention[:, head].double(), expected[:, 1:], rtol=1e-4, atol=1e-6)
    nearest = torch.cdist(objects.double(), found.centers.double()).argmin(2)
    for cloud in range(4):
        assert torch.equal(found.per_point[cloud], found.attention[cloud][:, nearest[cloud]])


@torch.no_grad()
def test_masks_keep_the_fewest_tokens_of_the_share(objects: Tensor) -> None:
    found = attention_map(small("ViT3D"), objects)  # type: ignore[arg-type]
    mask = found.mask(0.6)
    assert mask.shape == found.per_point.shape
    for attention, values, kept in zip(
        found.attention.flatten(0, 1), found.per_point.flatten(0, 1), mask.flatten(0, 1), strict=True
    ):
        needed, total = 0, 0.0
        falling = sorted(attention.tolist(), reverse=True)
        while total < 0.6 * sum(falling) - 1e-9:
            total += falling[needed]
            needed += 1
        assert torch.equal(kept, values >= falling[needed - 1])
    assert found.mask(1.0).all()
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\], got 0"):
        found.mask(0.0)


def test_attention_maps_are_written_for_a_viewer(objects: Tensor, tmp_path: Path) -> None:
    encoder = small("ViT3D")
    assert isinstance(encoder, ViT3D)
    path = save_attention_map(encoder, objects[0], tmp_path / "new" / "map.npz")
    with np.load(path) as file:
        assert {name: file[name].shape for name in file} == {
            "xyz": (256, 3),
            "attention": (4, 32),
            "centers": (32, 3),
            "per_point": (4, 256),
        }
        assert np.array_equal(file["per_point"], attention_map(encoder, objects[:1]).per_point[0].numpy())
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        save_attention_map(encoder, objects[0], tmp_path / "map.txt")
    with pytest.raises(ValueError, match="one cloud"):
        save_attention_map(encoder, objects, path)
    with pytest.raises(TypeError, match="needs a PointViT or a ViT3D, got PointNet"):
        attention_map(small("PointNet"), objects)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_cls_tokens=0"):
        attention_map(small("PointViT"), objects)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ViT3D(25), "embed_dim must be a multiple of num_heads"),
        (lambda: ViT3D(group_size=0), "group_size must be at least 1, got 0"),
        (lambda: ViT3D(position="sine"), 'position must be "none" or "mlp"'),  # type: ignore[arg-type]
        (lambda: PointNet(0), "embed_dim must be at least 1, got 0"),
        (lambda: DGCNN(k=0), "k must be at least 1, got 0"),
    ],
)
def test_bad_sizes_are_refused(build: Callable[[], ObjectEncoder], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(("name", "message"), [("ViT3D", "fewer than group_size=8"), ("DGCNN", "fewer than k=6")])
def test_clouds_that_do_not_fit_are_refused(name: str, message: str, objects: Tensor) -> None:
    with pytest.raises(ValueError, match=message):
        small(name).encode(objects[:, :5])
    with pytest.raises(ValueError, match=r"xyz must have shape \(B, N, 3\), got \(256, 3\)"):
        small(name).encode(objects[0])
    for wrong in (objects.numpy(), list(objects)):
        with pytest.raises(TypeError, match=f"xyz must be a torch.Tensor .B, N, 3., got {type(wrong).__name__}"):
            small(name).encode(wrong)  # type: ignore[arg-type]
