"""Sparse convolution on spconv's kernels against pc3d's own, and the way there, which needs no spconv."""

from __future__ import annotations

import gc
import sys

import pytest
import torch
from torch import Tensor

from pc3d._extras import MissingExtraError
from pc3d.data import Rooms, collate
from pc3d.models import SparseUNet
from pc3d.nn import SparseConv3d, spconv_backend, spconv_conv3d, use_spconv
from pc3d.ops import KernelMap, kernel_map, sparse_conv3d, voxelize

KERNELS = [(3, 1), (1, 1), (2, 2), (3, 2), (3, 3)]


@pytest.fixture
def spconv() -> None:
    pytest.importorskip("spconv.pytorch", reason="optional: pip install spconv-cu126 ninja")


def two_scenes() -> tuple[Tensor, Tensor]:
    """Voxels of two corners of real rooms, in random order, and offsets."""
    coords, lengths = [], [0]
    for index in range(2):
        xyz = Rooms("train")[index].xyz
        found = voxelize(xyz[((xyz - xyz.amin(0)) < 1.0).all(1)], 0.1).coords
        coords.append(found[torch.randperm(len(found), generator=torch.Generator().manual_seed(index))])
        lengths.append(len(found))
    return torch.cat(coords), torch.tensor(lengths).cumsum(0)


def room_map(size: int, stride: int, device: torch.device | str = "cpu") -> KernelMap:
    coords, offsets = two_scenes()
    return kernel_map(coords.to(device), offsets=offsets.to(device), kernel_size=size, stride=stride)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("size", "stride"), KERNELS)
def test_pairs_gathered_multiplied_and_scattered_are_the_convolution(size: int, stride: int, transposed: bool) -> None:
    """What spconv does with the pairs, in a loop over taps."""
    table = room_map(size, stride)
    rows, counts = spconv_backend._as_pairs(table.neighbors)
    assert (rows.dtype, counts.dtype, rows.shape) == (torch.int32, torch.int32, (2, size**3, len(table.neighbors)))
    rows_in, rows_out = len(table.reverse), len(table.neighbors)
    if transposed:
        rows, (rows_in, rows_out) = rows.flip(0), (rows_out, rows_in)
    features, weight = random(rows_in, 3), random(size**3, 3, 4, seed=1)
    out = torch.zeros(rows_out, 4)
    for tap, count in enumerate(counts.tolist()):
        reads, writes = rows[:, tap, :count].long()
        assert bool((rows[:, tap, count:] == -1).all())
        assert len(writes.unique()) == count
        out[writes] += features[reads] @ weight[tap]
    torch.testing.assert_close(out, sparse_conv3d(features, weight, table, transposed=transposed), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("spconv")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("size", "stride"), KERNELS)
def test_results_and_gradients_are_those_of_pc3d(
    device: torch.device, size: int, stride: int, transposed: bool
) -> None:
    table = room_map(size, stride, device)
    rows = len(table.neighbors) if transposed else len(table.reverse)
    values = random(rows, 6), random(size**3, 6, 10, seed=1), random(10, seed=2)
    results = []
    for convolve in (sparse_conv3d, spconv_conv3d):
        leaves = [value.to(device).requires_grad_() for value in values]
        out = convolve(leaves[0], leaves[1], table, leaves[2], transposed=transposed)
        push = random(*out.shape, seed=3).to(device)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, push)])
    # Sums of up to 27 * 10 products of numbers about 1; of all voxels in the gradients of weight and bias.
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6 * float(ours.abs().max()) + 1e-5)


@pytest.mark.usefixtures("spconv")
def test_half_precision(device: torch.device) -> None:
    table = room_map(3, 1, device)
    features, weight = random(len(table.reverse), 16, dtype=torch.float16), random(27, 16, 8, seed=1) / 20
    exact = sparse_conv3d(features.to(device).double(), weight.half().to(device).double(), table)
    out = spconv_conv3d(features.to(device), weight.half().to(device), table)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=27 * 2**-11 * float(exact.abs().max()))
    with torch.autocast(device.type, torch.float16):
        assert torch.equal(spconv_conv3d(features.to(device).float(), weight.to(device), table), out)


@pytest.mark.usefixtures("spconv")
def test_no_voxels(device: torch.device) -> None:
    coords = torch.zeros(0, 3, dtype=torch.int32, device=device)
    table = kernel_map(coords, offsets=torch.zeros(3, dtype=torch.int64, device=device))
    leaves = random(0, 6).to(device).requires_grad_(), random(27, 6, 5).to(device).requires_grad_()
    out = spconv_conv3d(*leaves, table)
    assert out.shape == (0, 5)
    for_features, for_weight = torch.autograd.grad(out.sum(), leaves)
    assert for_features.shape == (0, 6)
    assert not bool(for_weight.any())


@pytest.mark.usefixtures("spconv")
def test_a_network_runs_on_spconv_when_told_to(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    from spconv.pytorch import functional

    room = Rooms("train")[0]
    torch.manual_seed(0)
    model = SparseUNet(channels=(8, 12), blocks=(1, 1), voxel_size=0.3, signals="xyz_rgb").to(device)
    batch = collate([room.select(slice(None, None, 4))]).to(device)
    calls = []
    for name in ("SparseConvFunction", "SparseInverseConvFunction"):
        apply = getattr(functional, name).apply
        monkeypatch.setattr(
            getattr(functional, name), "apply", lambda *a, name=name, apply=apply: calls.append(name) or apply(*a)
        )
    results = []
    for backend in ("pc3d", "spconv"):
        if backend == "spconv":
            assert not calls
            assert use_spconv(model) is model
        torch.manual_seed(1)  # a random point stands for each voxel
        model.zero_grad()
        features = model.point_features(batch)
        features.square().mean().backward()
        results.append([features.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert set(calls) == {"SparseConvFunction", "SparseInverseConvFunction"}
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-4 * max(1.0, float(ours.abs().max())))


def test_pairs_are_made_once_for_a_map_and_go_with_it() -> None:
    gc.collect()
    before = len(spconv_backend._pairs)
    table, other = room_map(2, 2), room_map(2, 2)
    assert spconv_backend._pairs_of(table) is spconv_backend._pairs_of(table)
    assert spconv_backend._pairs_of(other) is not spconv_backend._pairs_of(table)
    assert len(spconv_backend._pairs) == before + 2
    del table, other
    gc.collect()
    assert len(spconv_backend._pairs) == before


def test_without_spconv_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spconv.pytorch.functional", None)
    layer = SparseConv3d(2, 3)
    with pytest.raises(MissingExtraError, match=r'backend "spconv" needs spconv: pip install spconv-cu126'):
        use_spconv(layer)
    assert layer.backend == "pc3d"  # as before: nothing is half changed
    layer.backend = "spconv"
    with pytest.raises(MissingExtraError, match="or stay with pc3d's own kernels"):
        layer(torch.zeros(3, 2), kernel_map(torch.eye(3, dtype=torch.int32)))


@pytest.mark.parametrize(
    ("features", "weight", "error", "message"),
    [
        (
            torch.zeros(3, 2).double(),
            torch.zeros(27, 2, 4).double(),
            ValueError,
            "features is torch.float64, for which",
        ),
        (torch.zeros(3, 2).bfloat16(), torch.zeros(27, 2, 4).bfloat16(), ValueError, "take float32 or float16"),
        (torch.zeros(3, 2), torch.zeros(27, 2, 4).half(), ValueError, "weight is torch.float16, features are"),
        (torch.zeros(4, 2), torch.zeros(27, 2, 4), ValueError, r"features must have shape \(3, C_in\), got \(4, 2\)"),
        (torch.zeros(3, 2), torch.zeros(8, 2, 4), ValueError, r"weight must have shape \(27, 2, C_out\), got \(8,"),
        (torch.zeros(3, 2), torch.zeros(27, 2, 4, device="meta"), ValueError, "weight is on meta, kernel_map on cpu"),
        ([1.0], torch.zeros(27, 2, 4), TypeError, "features must be a tensor, got list"),
    ],
)
def test_bad_input_is_named(
    features: Tensor, weight: Tensor, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spconv_backend, "import_spconv", lambda: None)  # looked at before spconv is called
    with pytest.raises(error, match=message):
        spconv_conv3d(features, weight, kernel_map(torch.eye(3, dtype=torch.int32)))


def test_other_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="kernel_map must come from kernel_map"):
        spconv_conv3d(torch.zeros(3, 2), torch.zeros(27, 2, 4), None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="module has no SparseConv3d layer that could run on spconv: Linear"):
        use_spconv(torch.nn.Linear(2, 2))
