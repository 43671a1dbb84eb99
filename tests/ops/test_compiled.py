"""torch.compile, torch.export and torch.library's own checks of every operator."""

from __future__ import annotations

import pytest
import torch
from clouds import make, offsets_of
from torch import Tensor, nn

from pc3d.ops import ball_query, chamfer_distance, farthest_point_sample, gather, group, interpolate, knn


def arguments(device, dtype=torch.float32, requires_grad=False):
    """Arguments of every raw operator, by its name."""
    xyz, offsets = make("normal", 40, dtype).to(device), offsets_of([25, 0, 15]).to(device)
    query, query_offsets = make("normal", 9, dtype, seed=1).to(device), offsets_of([5, 0, 4]).to(device)
    rows, grad = torch.randn(40, 6, dtype=dtype, device=device), torch.randn(9, 6, dtype=dtype, device=device)
    index = torch.randint(-1, 40, (9,), device=device)
    several, weight = torch.randint(-1, 40, (9, 3), device=device), torch.rand(9, 3, dtype=dtype, device=device)
    start = torch.tensor([3, 0, 14], device=device)
    for tensor in (xyz, query, rows, grad, weight):
        tensor.requires_grad_(requires_grad)
    return {
        "farthest_point_sample": (xyz.detach(), offsets, offsets_of([5, 0, 6]).to(device), 11, start, False),
        "knn": (xyz, offsets, query, query_offsets, 4),
        "ball_query": (xyz.detach(), offsets, query.detach(), query_offsets, 0.9, 5, True),
        "nearest_both_ways": (xyz, offsets, query, query_offsets),
        "gather": (rows, index),
        "gather_backward": (grad, index, 40, False),
        "weighted_gather": (rows, several, weight),
        "weighted_gather_backward": (grad, rows, several, weight, True),
    }


NAMES = list(arguments("cpu"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(device, name, dtype, requires_grad):
    operator = getattr(torch.ops.pc3d, name).default
    checks = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if name == "knn" and requires_grad:
        # It adds all outputs up in the type of the first, an index here. The graphs below have this gradient.
        checks.remove("test_aot_dispatch_dynamic")
    results = torch.library.opcheck(operator, arguments(device, dtype, requires_grad)[name], test_utils=checks)
    assert set(results.values()) == {"SUCCESS"}


def dense_pipeline(xyz: Tensor, features: Tensor) -> Tensor:
    """Every operator on dense clouds; differentiable in both."""
    seeds = farthest_point_sample(xyz, 8, start="first")
    centers = gather(xyz, seeds)
    patches = group(xyz, knn(xyz, 6, query=centers).index, centers)
    ball = ball_query(xyz, 0.8, 5, query=centers, order="distance")
    pooled = gather(features, ball.index).amax(2) + patches.square().sum((2, 3))[..., None]
    spread = interpolate(pooled, centers, xyz)
    distances = knn(xyz, 3).squared_distance.sum()
    return spread.sum() + distances + chamfer_distance(patches.flatten(0, 1), patches.flatten(0, 1).flip(0) + 0.1)


def packed_pipeline(xyz: Tensor, features: Tensor, offsets: Tensor) -> Tensor:
    """The same on packed clouds."""
    near = knn(xyz, 4, offsets=offsets)
    pooled = gather(features, near.index).amax(1)
    ball = ball_query(xyz, 0.8, 5, offsets=offsets)
    pooled = pooled + gather(features, ball.index).sum(1)
    spread = interpolate(pooled, xyz, xyz + 0.01, offsets=offsets, query_offsets=offsets)
    return spread.sum() + chamfer_distance(xyz, xyz * 1.1, x_offsets=offsets, y_offsets=offsets)


def value_and_gradients(function, *inputs):
    leaves = [x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    value = function(*leaves)
    return [value, *torch.autograd.grad(value, [x for x in leaves if x.requires_grad])]


def close(own: Tensor, right: Tensor) -> None:
    # Gradients on CUDA add up in an order that varies, and inductor fuses sums.
    torch.testing.assert_close(own, right, rtol=1e-5, atol=1e-4)


def dense_inputs(device, num_clouds=3, num_points=50):
    xyz = make("normal", num_clouds * num_points).reshape(num_clouds, num_points, 3)
    return xyz.to(device), torch.randn(num_clouds, num_points, 7, generator=torch.Generator().manual_seed(0)).to(device)


@pytest.mark.parametrize("dynamic", [False, True])
def test_dense_graph_without_breaks(device, dynamic):
    compiled = torch.compile(dense_pipeline, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for num_clouds, num_points in ((3, 50), (2, 64)):
        inputs = dense_inputs(device, num_clouds, num_points)
        expected = value_and_gradients(dense_pipeline, *inputs)
        for own, right in zip(value_and_gradients(compiled, *inputs), expected, strict=True):
            close(own, right)


def test_packed_graph_without_breaks(device):
    compiled = torch.compile(packed_pipeline, fullgraph=True, backend="aot_eager")
    for lengths in ([50, 4, 30], [20, 64]):
        xyz = make("normal", sum(lengths)).to(device)
        inputs = (xyz, torch.randn(sum(lengths), 7, device=device), offsets_of(lengths).to(device))
        expected = value_and_gradients(packed_pipeline, *inputs)
        for own, right in zip(value_and_gradients(compiled, *inputs), expected, strict=True):
            close(own, right)


def test_packed_sampling_without_breaks(device):
    offsets = offsets_of([50, 30]).to(device)
    xyz = make("normal", 80).to(device)

    def sample(xyz: Tensor, offsets: Tensor) -> Tensor:
        return farthest_point_sample(xyz, 6, offsets=offsets)

    compiled = torch.compile(sample, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(xyz, offsets), sample(xyz, offsets))


def test_deterministic_algorithms_reach_the_compiled_gradient(device):
    _xyz, features = dense_inputs(device)
    index = torch.randint(0, 50, (3, 4000), device=device)
    compiled = torch.compile(lambda f: gather(f, index).square().sum(), fullgraph=True, backend="aot_eager")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (value_and_gradients(compiled, features)[1] for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(before)
    assert torch.equal(first, second)


class Model(nn.Module):
    """A layer around every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(3, 7)

    def forward(self, xyz: Tensor) -> Tensor:
        return dense_pipeline(xyz, self.lift(xyz))


def test_inductor(device):
    model = Model().to(device)
    xyz, _ = dense_inputs(device)
    expected = value_and_gradients(model, xyz)
    compiled = torch.compile(model, fullgraph=True)
    for own, right in zip(value_and_gradients(compiled, xyz), expected, strict=True):
        close(own, right)


def test_export(device):
    model = Model().to(device)
    xyz, _ = dense_inputs(device)
    points = torch.export.Dim("points", min=8, max=4096)
    program = torch.export.export(model, (xyz,), dynamic_shapes=({1: points},))
    names = {str(node.target) for node in program.graph.nodes if "pc3d" in str(node.target)}
    assert names == {
        f"pc3d.{name}.default"
        for name in ("farthest_point_sample", "knn", "ball_query", "nearest_both_ways", "gather", "weighted_gather")
    }
    for num_points in (50, 77):
        other, _ = dense_inputs(device, 3, num_points)
        close(program.module()(other), model(other))


def test_meta_tensors_have_shapes():
    xyz = torch.empty(40, 3, device="meta")
    offsets = torch.empty(3, dtype=torch.int64, device="meta")
    index, squared = torch.ops.pc3d.knn(xyz, offsets, xyz, offsets, 4)
    assert index.shape == squared.shape == (40, 4)
    assert index.dtype == torch.int64
    ball, count = torch.ops.pc3d.ball_query(xyz, offsets, xyz, offsets, 0.1, 6, False)
    assert ball.shape == (40, 6)
    assert count.shape == (40,)
