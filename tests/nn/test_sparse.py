"""Voxels with one point each, and convolutions on them, against loops and dense convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pc3d.data import Rooms
from pc3d.nn import ConvNormReLU, ResidualBlock, SegmentationHead, SparseConv3d, voxel_grid
from pc3d.ops import KernelMap, kernel_map

EDGE = 6


@pytest.fixture(scope="module")
def room() -> Tensor:
    """Every eighth point of a scanned room."""
    return Rooms("train")[0].xyz[::8]


def sparse_box(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two scenes in a box of 6^3 voxels, a third of it occupied: sorted coordinates and offsets."""
    generator = torch.Generator().manual_seed(seed)
    coords, lengths = [], [0]
    for _ in range(2):
        occupied = torch.rand(EDGE, EDGE, EDGE, generator=generator) < 0.3
        coords.append(occupied.nonzero().int())
        lengths.append(len(coords[-1]))
    return torch.cat(coords), torch.tensor(lengths).cumsum(0)


def to_dense(features: Tensor, coords: Tensor, offsets: Tensor, edge: int = EDGE) -> Tensor:
    volume = features.new_zeros(len(offsets) - 1, features.shape[1], edge, edge, edge)
    for b in range(len(offsets) - 1):
        for row in range(int(offsets[b]), int(offsets[b + 1])):
            x, y, z = coords[row].tolist()
            volume[b, :, x, y, z] = features[row]
    return volume


def read(volume: Tensor, coords: Tensor, offsets: Tensor) -> Tensor:
    rows = []
    for b in range(len(offsets) - 1):
        x, y, z = coords[int(offsets[b]) : int(offsets[b + 1])].long().unbind(1)
        rows.append(volume[b, :, x, y, z].T)
    return torch.cat(rows)


def dense_weight(weight: Tensor, size: int) -> Tensor:
    """``(K^3, in, out)`` with x slowest, as ``conv3d`` takes it."""
    return weight.reshape(size, size, size, *weight.shape[1:]).permute(4, 3, 0, 1, 2)


def double_conv(*arguments: int, **options: bool) -> SparseConv3d:
    torch.manual_seed(1)
    return SparseConv3d(*arguments, **options).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("voxel_size", [0.05, 0.2])
def test_a_voxel_holds_its_points_and_the_first_stands_for_it(room: Tensor, voxel_size: float) -> None:
    xyz, offsets = torch.cat([room, room[:500] - 3.0]), torch.tensor([0, len(room), len(room), len(room) + 500])
    grid, inverse = voxel_grid(xyz, voxel_size, offsets)
    members: dict[tuple[int, ...], list[int]] = {}
    for row, cell in enumerate(torch.floor(xyz / voxel_size).int().tolist()):
        members.setdefault((0 if row < len(room) else 2, *cell), []).append(row)
    assert len(grid.coords) == len(members)
    scenes = [0] * int(grid.offsets[1]) + [2] * int(grid.offsets[3] - grid.offsets[2])
    keys = [(scene, *cell) for scene, cell in zip(scenes, grid.coords.tolist(), strict=True)]
    assert keys == sorted(members)
    assert grid.point.tolist() == [members[key][0] for key in keys]
    for row, key in list(enumerate(keys))[::97]:
        assert inverse[members[key]].tolist() == [row] * len(members[key])
    expected = (xyz[grid.point].double() / voxel_size - grid.coords).float()
    torch.testing.assert_close(grid.local, expected, rtol=0, atol=1e-5)


def test_a_random_point_is_each_point_of_the_voxel_equally_often() -> None:
    xyz = torch.tensor([[0.1, 0.1, 0.1], [1.5, 0.0, 0.0], [0.4, 0.2, 0.2], [0.9, 0.9, 0.9]])
    offsets = torch.tensor([0, 4])
    torch.manual_seed(0)
    draws = [voxel_grid(xyz, 1.0, offsets, random_point=True)[0].point.tolist() for _ in range(900)]
    assert {point for _, point in draws} == {1}
    for row in (0, 2, 3):
        assert sum(point == row for point, _ in draws) == pytest.approx(300, abs=60)


def test_positions_keep_their_precision_far_from_the_origin(room: Tensor) -> None:
    """A scan in map coordinates: hundreds of kilometres east, in float64."""
    near, far = room.double(), room.double() + torch.tensor([4.0e5, -2.0e5, 0.0], dtype=torch.float64)
    offsets = torch.tensor([0, len(room)])
    for voxel_size in (0.0625, 0.5):  # so that the shift is a whole number of voxels
        grid, _ = voxel_grid(near, voxel_size, offsets)
        shifted, _ = voxel_grid(far, voxel_size, offsets)
        torch.testing.assert_close(shifted.position(), grid.position(), rtol=0, atol=1e-5)
        steps = (near[grid.point] - near[grid.point[0]]) / voxel_size
        torch.testing.assert_close(grid.position() - grid.position()[0], steps.float(), rtol=0, atol=1e-4)


def test_scenes_without_points_have_no_voxels() -> None:
    grid, inverse = voxel_grid(torch.zeros(0, 3), 0.1, torch.tensor([0, 0, 0]), random_point=True)
    assert grid.coords.shape == grid.local.shape == grid.position().shape == (0, 3)
    assert grid.offsets.tolist() == [0, 0, 0]
    assert inverse.shape == grid.point.shape == (0,)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_convolution_is_the_dense_one_read_where_there_are_voxels(size: int) -> None:
    coords, offsets = sparse_box()
    conv = double_conv(4, 7, size, bias=True)
    torch.nn.init.normal_(conv.bias)
    features = torch.randn(len(coords), 4, dtype=torch.float64)
    ours = conv(features, kernel_map(coords, offsets=offsets, kernel_size=size))
    volume = F.conv3d(
        to_dense(features, coords, offsets), dense_weight(conv.weight, size), conv.bias, padding=size // 2
    )
    torch.testing.assert_close(ours, read(volume, coords, offsets))


def test_strided_convolution_and_its_transpose_are_the_dense_ones() -> None:
    coords, offsets = sparse_box(1)
    halved = kernel_map(coords, offsets=offsets, kernel_size=2, stride=2)
    down, up = double_conv(4, 5, 2), double_conv(5, 3, 2, transposed=True)
    features = torch.randn(len(coords), 4, dtype=torch.float64)
    coarse = down(features, halved)
    volume = F.conv3d(to_dense(features, coords, offsets), dense_weight(down.weight, 2), stride=2)
    torch.testing.assert_close(coarse, read(volume, halved.coords, halved.offsets))
    raised = F.conv_transpose3d(
        to_dense(coarse, halved.coords, halved.offsets, EDGE // 2),
        up.weight.reshape(2, 2, 2, 5, 3).permute(3, 4, 0, 1, 2),
        stride=2,
    )
    torch.testing.assert_close(up(coarse, halved), read(raised, coords, offsets))


def map_of(coords: Tensor, offsets: Tensor) -> KernelMap:
    return kernel_map(coords, offsets=offsets)


@pytest.mark.parametrize("out_channels", [4, 6])
def test_a_residual_block_is_two_normed_convolutions_around_a_shortcut(out_channels: int) -> None:
    coords, offsets = sparse_box(2)
    torch.manual_seed(0)
    block = ResidualBlock(4, out_channels).double()
    features = torch.randn(len(coords), 4, dtype=torch.float64)

    def conv_norm(rows: Tensor, conv: SparseConv3d) -> Tensor:
        volume = F.conv3d(to_dense(rows, coords, offsets), dense_weight(conv.weight, 3), padding=1)
        rows = read(volume, coords, offsets)
        return (rows - rows.mean(0)) / torch.sqrt(rows.var(0, unbiased=False) + 1e-5)

    inner = conv_norm(features, block.first.conv).relu()
    shortcut = features
    if out_channels != 4:
        rows = features @ block.shortcut[0].weight.T  # type: ignore[index]
        shortcut = (rows - rows.mean(0)) / torch.sqrt(rows.var(0, unbiased=False) + 1e-5)
    expected = (conv_norm(inner, block.conv) + shortcut).relu()
    torch.testing.assert_close(block(features, map_of(coords, offsets)), expected)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    conv = SparseConv3d(9, 48, bias=True)
    bound = 1 / (27 * 9) ** 0.5
    assert conv.weight.abs().max() <= bound
    assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not conv.bias.any()  # type: ignore[union-attr]


def test_a_module_in_half_precision_takes_float_features() -> None:
    coords, offsets = sparse_box()
    torch.manual_seed(0)
    layer = ConvNormReLU(4, 8).eval()
    features = torch.randn(len(coords), 4)
    wanted = layer(features, map_of(coords, offsets))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(features, map_of(coords, offsets)).float(), wanted, rtol=0.05, atol=0.05)
    halved = layer.bfloat16()(features, map_of(coords, offsets))
    assert halved.dtype == torch.bfloat16
    torch.testing.assert_close(halved.float(), wanted, rtol=0.05, atol=0.05)


def test_the_segmentation_head_is_two_linear_layers_with_a_norm_between() -> None:
    torch.manual_seed(0)
    head, features = SegmentationHead(8, 3).double(), torch.randn(50, 8, dtype=torch.float64)
    hidden = features @ head[0].weight.T + head[0].bias
    normed = (hidden - hidden.mean(0)) / torch.sqrt(hidden.var(0, unbiased=False) + 1e-5)
    torch.testing.assert_close(head(features), normed.relu() @ head[3].weight.T + head[3].bias)
