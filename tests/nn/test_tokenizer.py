"""The patch tokenizer: geometry by brute force on real objects, the mini-PointNet as convolutions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pc3d.data import Household
from pc3d.nn import MiniPointNet, PatchTokenizer, PositionEmbedding
from pc3d.nn.tokenizer import LinearBeforeNorm


@pytest.fixture(scope="module")
def objects() -> Tensor:
    data = Household("test", num_points=256)
    return torch.stack([data[i].xyz for i in (0, 40, 80)])


def test_patches_are_the_nearest_points_of_farthest_points(objects: Tensor) -> None:
    centers, neighborhood = PatchTokenizer(8, num_groups=12, group_size=9).cut(objects)
    for cloud, middles, patches in zip(objects, centers, neighborhood, strict=True):
        chosen = [0]
        reach = (cloud - cloud[0]).square().sum(1)
        while len(chosen) < 12:
            chosen.append(int(reach.argmax()))
            reach = torch.minimum(reach, (cloud - cloud[chosen[-1]]).square().sum(1))
        assert torch.equal(middles, cloud[chosen])
        for middle, patch in zip(middles, patches, strict=True):
            squared = (cloud - middle).square().sum(1).sort().values[:9]
            torch.testing.assert_close(patch.square().sum(1), squared, rtol=1e-4, atol=1e-7)
            assert patch[0].abs().max() == 0  # the centre itself is nearest


def as_convolutions(network: MiniPointNet, patches: Tensor) -> Tensor:
    """The published wording: 1x1 convolutions on (B G, 3, S), global maximum in front of local features."""

    def convolution(linear: nn.Linear) -> nn.Conv1d:
        conv = nn.Conv1d(linear.in_features, linear.out_features, 1).to(linear.weight.dtype)
        conv.weight.data, conv.bias.data = linear.weight.data[..., None], linear.bias.data  # type: ignore[union-attr]
        return conv

    def norm(source: nn.BatchNorm1d) -> nn.BatchNorm1d:
        copy = nn.BatchNorm1d(source.num_features).to(source.weight.dtype)
        copy.load_state_dict(source.state_dict())
        return copy.train(source.training)

    first, second = network.first, network.second
    batch, groups, size, _ = patches.shape
    x = patches.reshape(batch * groups, size, 3).transpose(1, 2)
    x = convolution(first[3])(norm(first[1])(convolution(first[0])(x)).relu())  # type: ignore[arg-type]
    x = torch.cat([x.max(2, keepdim=True).values.expand_as(x), x], dim=1)
    x = convolution(second[2])(norm(second[0])(convolution(network.mix)(x)).relu())  # type: ignore[arg-type]
    return x.max(2).values.reshape(batch, groups, -1)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_the_published_stack_of_convolutions(training: bool) -> None:
    torch.manual_seed(0)
    network = MiniPointNet(24, (16, 20, 28)).double().train(training)
    for buffer in (network.first[1], network.second[0]):
        nn.init.uniform_(buffer.running_var, 0.5, 2)  # type: ignore[arg-type]
        nn.init.normal_(buffer.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(buffer.weight, 0.5, 2)  # type: ignore[arg-type]
    patches = torch.randn(2, 5, 7, 3).double()
    expected = as_convolutions(network, patches)
    torch.testing.assert_close(network(patches), expected, rtol=1e-10, atol=1e-10)


def test_published_size() -> None:
    assert sum(p.numel() for p in MiniPointNet(384).parameters()) == 494_464


def test_the_order_of_points_within_a_patch_does_not_matter() -> None:
    torch.manual_seed(0)
    network = MiniPointNet(24, (16, 20, 28)).eval()
    patches = torch.randn(2, 5, 7, 3)
    torch.testing.assert_close(network(patches[:, :, torch.randperm(7)]), network(patches))


@pytest.mark.parametrize("training", [True, False])
def test_gradients_in_front_of_batch_norm_are_the_true_ones_without_their_rounding_noise(
    training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = MiniPointNet(24, (16, 20, 28)).double().train(training)
    patches, weight = torch.randn(2, 5, 7, 3).double(), torch.randn(2, 5, 24).double()

    def gradients() -> dict[str, Tensor]:
        network.zero_grad()
        (network(patches) * weight).sum().backward()
        return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}

    ours = gradients()
    monkeypatch.setattr(LinearBeforeNorm, "shift", lambda self: self.bias)
    plain = gradients()
    assert ours.keys() == plain.keys() == dict(network.named_parameters()).keys()
    for name, value in plain.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-11, msg=name)
        if name in ("first.0.bias", "first.3.bias", "mix.bias"):
            assert ours[name].any() != training, name


def test_gradients_reach_every_parameter(objects: Tensor) -> None:
    tokenizer = PatchTokenizer(8, 12, 9, dims=(8, 8, 8))
    tokenizer(objects).tokens.square().sum().backward()
    assert all(parameter.grad is not None for parameter in tokenizer.parameters())
    norm = tokenizer.network.first[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.weight.grad is not None
    assert norm.weight.grad.abs().max() > 0


def test_geometry_stays_in_float32_under_autocast(objects: Tensor) -> None:
    tokenizer = PatchTokenizer(8, 12, 9).eval()
    expected = tokenizer.cut(objects)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        patches = tokenizer(objects)
    assert patches.centers.dtype == patches.neighborhood.dtype == torch.float32
    assert torch.equal(patches.centers, expected[0])
    assert torch.equal(patches.neighborhood, expected[1])
    assert patches.tokens.dtype == torch.bfloat16


def test_points_near_the_origin_are_skipped_only_on_request() -> None:
    # On a line, the origin is what the third sample takes: the middle between 1 and -1.
    xyz = torch.tensor([[[1.0, 0, 0], [-1, 0, 0], [0, 0, 0], [0.2, 0, 0]]])
    plain, _ = PatchTokenizer(8, 3, 2).cut(xyz)
    official, _ = PatchTokenizer(8, 3, 2, ignore_near_origin=True).cut(xyz)
    assert plain[0, :, 0].tolist() == pytest.approx([1, -1, 0])
    assert official[0, :, 0].tolist() == pytest.approx([1, -1, 0.2])
    barely = xyz.clone()
    barely[0, 2, 1] = 0.032  # squared norm above 1e-3: a candidate again
    official, _ = PatchTokenizer(8, 3, 2, ignore_near_origin=True).cut(barely)
    assert official[0, 2].tolist() == pytest.approx([0, 0.032, 0])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 8, 3), "8 points, fewer than group_size=9"),
        ((2, 10, 3), "10 points, fewer than num_groups=12"),
        ((10, 3), r"shape \(B, N, 3\), got \(10, 3\)"),
        ((2, 20, 4), r"got \(2, 20, 4\)"),
    ],
)
def test_clouds_that_are_too_small_or_misshapen_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchTokenizer(8, 12 if shape[1] == 10 else 4, 9).cut(torch.rand(shape))


def test_bad_widths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"three positive widths, got \(128, 256\)"):
        MiniPointNet(8, (128, 256))


def test_sinusoids_of_centres_written_out() -> None:
    position = PositionEmbedding(12, "sinusoids").double()
    centers = torch.randn(2, 3, 3, dtype=torch.float64)
    for center, features in zip(centers.view(6, 3), position.features(centers).view(6, 12), strict=True):
        expected = []
        for coordinate in center.tolist():
            expected += [math.sin(coordinate), math.sin(coordinate / 100)]
            expected += [math.cos(coordinate), math.cos(coordinate / 100)]
        torch.testing.assert_close(features, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(position(centers), position.embed(position.features(centers)))
    assert position(centers).shape == (2, 3, 12)


def test_bad_position_features_are_refused() -> None:
    with pytest.raises(ValueError, match='position_features="sinusoids" needs an embed_dim that 6 divides, got 16'):
        PositionEmbedding(16, "sinusoids")
    with pytest.raises(ValueError, match=r"position_features must be .*'fourier'"):
        PositionEmbedding(12, "fourier")  # type: ignore[arg-type]


def test_the_gradient_of_a_maximum_goes_to_the_first_of_equal_points(objects: Tensor) -> None:
    """A patch made of copies of one point is one point, and only its first copy is told to move."""
    network = MiniPointNet(12, (8, 16, 24)).eval()
    one = objects[:, :5, None] - objects.mean(1)[:, None, None]
    copies = one.repeat(1, 1, 7, 1).requires_grad_()
    network(copies).square().sum().backward()
    assert copies.grad is not None
    assert copies.grad[:, :, 0].abs().min() > 0
    assert copies.grad[:, :, 1:].abs().max() == 0


def test_without_gradients_no_index_of_a_maximum_is_searched(objects: Tensor) -> None:
    network = PatchTokenizer(12, num_groups=6, group_size=8, dims=(8, 16, 24)).eval()
    trained = network(objects).tokens
    with torch.no_grad(), torch.profiler.profile() as profiled:
        tokens = network(objects).tokens
    assert torch.equal(tokens, trained)
    names = {event.key for event in profiled.key_averages()}
    assert "aten::amax" in names
    assert "aten::max" not in names
