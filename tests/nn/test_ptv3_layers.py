"""Layers of Point Transformer V3 against loops over patches and voxels in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pc3d.nn.point_transformer_v3 import GridPool, GridUnpool, PTv3Block, SerialAttention, batch_norm
from pc3d.nn.serialization import serial_patches
from pc3d.ops import kernel_map

WIDTH, HEADS = 12, 3


def looped_attention(layer: SerialAttention, features: Tensor, rows: list[list[int]], patch_size: int) -> Tensor:
    """Every voxel by itself: the scenes' voxels in order are cut into runs, of which the last ends with the scene."""
    qkv = features @ layer.qkv.weight.T + layer.qkv.bias
    query, key, value = qkv.view(len(features), 3, HEADS, WIDTH // HEADS).unbind(1)
    mixed = torch.zeros_like(features)
    for scene in rows:
        for place, row in enumerate(scene):
            begin = max(min(place // patch_size * patch_size, len(scene) - patch_size), 0)
            seen = scene[begin : begin + patch_size]
            for head in range(HEADS):
                scores = torch.stack([query[row, head] @ key[other, head] for other in seen])
                weights = torch.softmax(scores / (WIDTH // HEADS) ** 0.5, 0)
                part = sum(weight * value[other, head] for weight, other in zip(weights, seen, strict=True))
                mixed[row, head * 4 : head * 4 + 4] = part
    return mixed @ layer.projection.weight.T + layer.projection.bias


@torch.no_grad()
@pytest.mark.parametrize("patch_size", [1, 5, 8, 30])
def test_attention_is_that_of_every_voxel_to_its_patch(patch_size: int) -> None:
    torch.manual_seed(0)
    offsets = torch.tensor([0, 19, 19, 22, 23, 31])
    rows = torch.cat([offsets[i] + torch.randperm(int(n)) for i, n in enumerate(offsets.diff())])
    layer, features = SerialAttention(WIDTH, HEADS).double(), torch.randn(31, WIDTH, dtype=torch.float64)
    found = layer(features, serial_patches(rows, offsets, patch_size))
    in_order = [part.tolist() for part in rows.split(offsets.diff().tolist())]
    torch.testing.assert_close(found, looped_attention(layer, features, in_order, patch_size))


@torch.no_grad()
def test_a_block_adds_position_attention_and_mlp() -> None:
    torch.manual_seed(0)
    coords = (torch.rand(4, 4, 4) < 0.5).nonzero().int()
    offsets = torch.tensor([0, len(coords)])
    same, patches = kernel_map(coords, offsets=offsets), serial_patches(torch.randperm(len(coords)), offsets, 8)
    block = PTv3Block(WIDTH, HEADS).double().eval()
    for value in block.parameters():
        nn.init.normal_(value, std=0.3)
    x, other = torch.randn(2, len(coords), WIDTH, dtype=torch.float64)
    for convolved in (None, other):
        dense = torch.zeros(1, WIDTH, 4, 4, 4, dtype=torch.float64)
        dense[0, :, coords[:, 0].long(), coords[:, 1].long(), coords[:, 2].long()] = (
            x if convolved is None else other
        ).T
        kernel = block.position.weight.view(3, 3, 3, WIDTH, WIDTH).permute(4, 3, 0, 1, 2)
        around = F.conv3d(dense, kernel, block.position.bias, padding=1)
        position = around[0, :, coords[:, 0].long(), coords[:, 1].long(), coords[:, 2].long()].T
        expected = x + block.position_norm(block.position_linear(position))
        expected = expected + block.attention(block.norm1(expected), patches)
        expected = expected + block.mlp[2](F.gelu(block.mlp[0](block.norm2(expected))))
        torch.testing.assert_close(block(x, same, patches, convolved), expected)


def test_drop_path_drops_branches_of_voxels_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    block = PTv3Block(WIDTH, HEADS, drop_path=0.25).train()
    for value in (block.position_norm.weight, block.position_norm.bias):
        nn.init.zeros_(value)
    for value in block.mlp[2].parameters():
        nn.init.zeros_(value)
    offsets = torch.tensor([0, 4000])
    coords = torch.arange(4000).int()[:, None].expand(-1, 3).contiguous()
    same, patches = kernel_map(coords, offsets=offsets), serial_patches(torch.arange(4000), offsets, 100)
    x = torch.randn(4000, WIDTH)
    with torch.no_grad():
        branch = block.eval()(x, same, patches) - x
        drawn = block.train()(x, same, patches) - x
    kept = drawn.abs().amax(1) > 0
    assert kept.float().mean() == pytest.approx(0.75, abs=0.03)
    torch.testing.assert_close(drawn[kept], branch[kept] / 0.75, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("norm", [batch_norm, nn.LayerNorm])
def test_pooling_takes_the_maximum_and_unpooling_adds_what_lies_around(norm: type[nn.Module]) -> None:
    torch.manual_seed(0)
    parent = torch.tensor([2, 0, 1, 1, 0, 2, 2])
    pool, unpool = GridPool(5, 6, norm).double().eval(), GridUnpool(6, 5, 4, norm).double().eval()
    fine = torch.randn(7, 5, dtype=torch.float64)
    lifted = pool.linear(fine)
    largest = torch.stack([lifted[parent == coarse].max(0).values for coarse in range(3)])
    coarse = F.gelu(pool.norm(largest))
    torch.testing.assert_close(pool(fine, parent, 3), coarse)
    joined, skip = unpool(coarse, fine, parent)
    rows = [unpool.skip(fine[i : i + 1]) + unpool.coarse(coarse[parent[i] : parent[i] + 1]) for i in range(7)]
    torch.testing.assert_close(joined, torch.cat(rows))
    torch.testing.assert_close(skip, unpool.skip(fine))


def test_the_batch_norm_has_the_published_constants() -> None:
    layer = batch_norm(3)
    assert isinstance(layer, nn.BatchNorm1d)
    assert (layer.eps, layer.momentum) == (1e-3, 0.01)
