"""Swin3D against its description: counts, one whole block and level by loops, and what must not matter."""

from __future__ import annotations

from itertools import pairwise
from math import lcm
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pc3d.data import PointBatch, PointCloud, Rooms, collate
from pc3d.models import Swin3D, load_encoder, save_encoder
from pc3d.models.swin3d import SwinScene
from pc3d.nn import SegmentationHead
from pc3d.nn.swin3d import SwinBlock

SMALL: dict[str, Any] = {
    "channels": (16, 32, 32),
    "depths": (2, 1, 2),
    "down_strides": (3, 2),
    "window_sizes": (3, 4, 5),
    "voxel_size": 0.125,
}


def small(**changes: Any) -> Swin3D:
    """A network whose tables matter: they are drawn wider than for training."""
    torch.manual_seed(0)
    model = Swin3D(**{**SMALL, **changes})
    for name, value in model.named_parameters():
        if "table" in name or name.endswith("bias"):
            nn.init.normal_(value, std=0.2)
    return model


@pytest.fixture(scope="module")
def clouds() -> list[PointCloud]:
    """Corners of two scanned rooms, one point per voxel, a crumb of a third, and nothing at all.

    The scans are stored in whole millimetres, so pairs lie a voxel apart to the rounding error, on the border of two
    bins; the points are moved by less than a millimetre, so that no test hangs on a rounding error.
    """
    rooms, generator = Rooms("train"), torch.Generator().manual_seed(0)
    cut = [room.select((room.xyz[:, :2] < 1.3).all(1)) for room in (rooms[0], rooms[1])]
    cut = [room.replace(xyz=room.xyz + 5e-4 * torch.rand(room.xyz.shape, generator=generator)) for room in cut]
    cut = [room.select(_one_per_voxel(room.xyz)) for room in cut]
    return [*cut, rooms[2].select(slice(3)), rooms[2].select(slice(0))]


def _one_per_voxel(xyz: Tensor) -> Tensor:
    _, inverse = torch.floor(xyz / 0.125).unique(dim=0, return_inverse=True)
    first = {voxel: row for row, voxel in reversed(list(enumerate(inverse.tolist())))}
    return torch.tensor(sorted(first.values()))


@pytest.mark.parametrize(
    ("preset", "signals", "decoder_attention", "count"),
    [
        ("small", "xyz_rgb", False, 23_573_593),
        ("large", "xyz_rgb", False, 60_757_465),
        ("small", "xyz_rgb_normal", False, 25_098_121),
        ("large", "xyz_rgb_normal", False, 63_298_345),
        ("small", "xyz_rgb", True, 26_496_361),
        ("small", "xyz_rgb_normal", True, 28_228_249),
        ("large", "xyz_rgb", True, 68_239_945),
        ("large", "xyz_rgb_normal", True, 71_126_425),
    ],
)
def test_parameter_counts_are_the_published_ones(
    preset: str, signals: str, decoder_attention: bool, count: int
) -> None:
    with torch.device("meta"):
        model = getattr(Swin3D, preset)(signals=signals, decoder_attention=decoder_attention)
        head = SegmentationHead(model.feature_dim, 25)
    assert sum(p.numel() for network in (model, head) for p in network.parameters()) == count


def test_presets_are_the_published_sizes() -> None:
    with torch.device("meta"):
        model, large = Swin3D(), Swin3D.large(down_strides=(2, 2, 2, 2), voxel_size=0.04)
    assert model.config["num_heads"] == [6, 6, 12, 24, 24]
    assert model.config["window_sizes"] == [5, 7, 7, 7, 7]
    assert model.config["down_strides"] == [3, 2, 2, 2]
    assert large.config["num_heads"] == [10, 10, 20, 40, 40]
    assert [len(level) for level in model.levels] == [2, 4, 9, 4, 4]  # type: ignore[arg-type]
    rates = [block.drop_path for level in model.levels for block in level]  # type: ignore[union-attr]
    assert rates == pytest.approx(torch.linspace(0, 0.3, 23).tolist())
    assert {step.block.drop_path for step in model.upsamples} == {0.1}  # type: ignore[union-attr]


# --- The network once more, in loops and float64 -----------------------------------------------------------------


def by_loops_attention(block: SwinBlock, x: Tensor, cells: Tensor, place: Tensor, scalars: Tensor, window: int,
                       shift: int) -> Tensor:  # fmt: skip
    """Attention of one block: ``cells`` with the scene in front, ``place`` in the voxel, colour and normal."""
    attention = block.attention
    heads, width = attention.num_heads, attention.head_dim
    rows = [8 * window] * 3 + [32] * scalars.shape[1]
    names = ("query_table", "key_table", "value_table")
    tables = [getattr(attention, name).split(rows) for name in names]
    qkv = (x @ attention.qkv.weight.T + attention.qkv.bias).view(-1, 3, heads, width)
    moved = cells.clone()
    moved[:, 1:] += shift
    windows: dict[tuple[int, ...], list[int]] = {}
    for row, (scene, *cell) in enumerate(moved.tolist()):
        windows.setdefault((scene, *[c // window for c in cell]), []).append(row)
    out = torch.zeros(len(x), heads, width, dtype=torch.float64)
    for members in windows.values():
        for i in members:
            logits, values = [], []
            for j in members:
                apart = (moved[i, 1:] + place[i]) - (moved[j, 1:] + place[j])
                differences = torch.cat([4 * apart, 8 * (scalars[i] - scalars[j])]).tolist()
                found = [
                    [group[a][min(max(int((d + rows[a] / 2) // 1), 0), rows[a] - 1)] for a, d in enumerate(differences)]
                    for group in tables
                ]
                query, key = qkv[i, 0] / width**0.5, qkv[j, 1]
                tq, tk, tv = (sum(group) for group in found)
                logits.append((query * key).sum(1) + (query * tq).sum(1) + (key * tk).sum(1))  # type: ignore[operator]
                values.append(qkv[j, 2] + tv)
            share = torch.stack(logits).softmax(0)
            out[i] = (share[..., None] * torch.stack(values)).sum(0)
    return out.flatten(1) @ attention.projection.weight.T + attention.projection.bias


def norm(x: Tensor, layer: nn.Module) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(1, keepdim=True) + 1e-5) * layer.weight + layer.bias


def by_loops(model: Swin3D, clouds: list[PointCloud]) -> list[Tensor]:
    """The features of all levels after their blocks; scenes with one point per voxel."""
    size = model.voxel_size
    cells = torch.cat(
        [torch.cat([torch.full((len(c), 1), b), torch.floor(c.xyz / size).long()], 1) for b, c in enumerate(clouds)]
    )
    order = torch.tensor(sorted(range(len(cells)), key=lambda row: cells[row].tolist()))
    cells, xyz = cells[order], torch.cat([c.xyz for c in clouds])[order].double() / size
    rgb, normal = (torch.cat([getattr(c, name) for c in clouds])[order].double() for name in ("rgb", "normal"))
    scalars = torch.cat([2 * rgb - 1, normal], 1)
    inputs = torch.cat([scalars, xyz - cells[:, 1:]], 1)
    index = {tuple(cell): row for row, cell in enumerate(cells.tolist())}
    x = torch.zeros(len(cells), model.feature_dim, dtype=torch.float64)
    for row, (b, *cell) in enumerate(cells.tolist()):
        for k in range(27):
            offset = (k // 9 - 1, k // 3 % 3 - 1, k % 3 - 1)
            at = index.get((b, *[c + o for c, o in zip(cell, offset, strict=True)]))
            if at is not None:
                x[row] += inputs[at] @ model.stem.conv.weight[k]
    stem = model.stem.norm
    x = ((x - stem.running_mean) / torch.sqrt(stem.running_var + 1e-5) * stem.weight + stem.bias).relu()
    scalars, stride, features = scalars / 1.001, 1, []
    for level, window in enumerate(model.window_sizes):
        if level:
            x, cells, xyz, scalars = by_loops_down(model, level - 1, x, cells, xyz, scalars, stride)
            stride *= model.down_strides[level - 1]
        place = xyz / stride - cells[:, 1:]
        for number, block in enumerate(model.levels[level]):  # type: ignore[arg-type]
            shift = window // 2 if number % 2 else 0
            x = x + by_loops_attention(block, norm(x, block.norm1), cells, place, scalars, window, shift)
            hidden = norm(x, block.norm2) @ block.mlp[0].weight.T + block.mlp[0].bias
            x = x + (hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))) @ block.mlp[2].weight.T + block.mlp[2].bias
        features.append(x)
    return features


def by_loops_down(model: Swin3D, level: int, x: Tensor, cells: Tensor, xyz: Tensor, scalars: Tensor,
                  stride: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    factor, layer = model.down_strides[level], model.downsamples[level]
    children: dict[tuple[int, ...], list[int]] = {}
    for row, (b, *cell) in enumerate(cells.tolist()):
        children.setdefault((b, *[c // factor for c in cell]), []).append(row)
    chosen, pooled = [], []
    for coarse in sorted(children):
        raw = torch.cat([xyz, scalars], 1)[children[coarse]]
        apart = (raw - raw.mean(0)).square().sum(1)
        nearest = (apart <= apart.min() * 1.0001).nonzero()[0]  # two children alone are equally near
        chosen.append(children[coarse][int(nearest)])
        scene = (cells[:, 0] == coarse[0]).nonzero()[:, 0]
        apart = (xyz[scene] - xyz[chosen[-1]]).square().sum(1)
        near = scene[apart.argsort(stable=True)[:16]]
        pooled.append((norm(x[near], layer.norm) @ layer.linear.weight.T).amax(0))  # type: ignore[arg-type]
    keep = torch.tensor(chosen)
    return torch.stack(pooled), torch.tensor(sorted(children)), xyz[keep], scalars[keep]


@torch.no_grad()
def test_the_encoder_is_what_the_paper_and_the_code_describe(clouds: list[PointCloud]) -> None:
    scenes = [cloud.select((cloud.xyz < edge).all(1)) for cloud, edge in zip(clouds, (0.6, 0.75), strict=False)]
    assert [len(scene) > 80 for scene in scenes] == [True, True]
    scenes.append(clouds[2].select(_one_per_voxel(clouds[2].xyz)))  # fewer voxels than there are neighbours
    model = small().double().eval()
    nn.init.uniform_(model.stem.norm.running_mean, -0.1, 0.1)
    nn.init.uniform_(model.stem.norm.running_var, 0.5, 1.0)
    levels = model.encode(collate(scenes))
    for ours, theirs in zip(levels, by_loops(model, scenes), strict=True):
        torch.testing.assert_close(ours.features, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_decoder_interpolates_between_the_three_nearest_coarse_points(clouds: list[PointCloud]) -> None:
    model, batch = small().eval(), collate(clouds[:3])
    scene = model.scene(batch)
    encoded = model.encode_voxels(scene, model.embed(scene))
    x = encoded[-1].double()
    for step, index in zip(model.upsamples, (1, 0), strict=True):
        fine, coarse = scene.levels[index], scene.levels[index + 1]
        step64 = step.double()
        low = norm(x, step64.coarse[0]) @ step64.coarse[1].weight.T + step64.coarse[1].bias
        joined = norm(encoded[index].double(), step64.skip[0]) @ step64.skip[1].weight.T + step64.skip[1].bias
        for b in range(3):
            rows = slice(int(fine.grid.offsets[b]), int(fine.grid.offsets[b + 1]))
            source = slice(int(coarse.grid.offsets[b]), int(coarse.grid.offsets[b + 1]))
            apart = torch.cdist(fine.position[rows].double(), coarse.position[source].double())
            distance, nearest = apart.topk(min(3, apart.shape[1]), largest=False)
            weight = 1 / (distance + 1e-8)
            weight = weight / weight.sum(1, keepdim=True)
            joined[rows] += (weight[..., None] * low[source][nearest]).sum(1)
        found = step64(x, encoded[index].double(), (coarse.position, fine.position),
                       (coarse.grid.offsets, fine.grid.offsets))  # fmt: skip
        torch.testing.assert_close(found, joined, rtol=1e-4, atol=1e-4)
        x = step64.block(joined, fine.contexts[0])


# --- What must not matter ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_order_of_the_points_does_not_matter(clouds: list[PointCloud]) -> None:
    model, cloud = small().eval(), clouds[0]
    order = torch.randperm(len(cloud), generator=torch.Generator().manual_seed(0))
    features = model.point_features(collate([cloud]))
    shuffled = model.point_features(collate([cloud.select(order)]))
    torch.testing.assert_close(shuffled, features[order], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_scene_alone_and_in_a_batch(clouds: list[PointCloud]) -> None:
    model = small().eval()
    together = model.point_features(collate(clouds))
    assert together.shape == (sum(map(len, clouds)), 16)
    alone = torch.cat([model.point_features(collate([cloud])) for cloud in clouds])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_only_shifts_by_a_multiple_of_all_windows_change_nothing(clouds: list[PointCloud]) -> None:
    model, batch = small().eval(), collate(clouds[:2])
    xyz = batch.xyz.double()
    period = lcm(3 * 1, 4 * 3, 5 * 6)  # window times stride, in voxels

    def moved(steps: int) -> Tensor:
        shift = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64) * steps * model.voxel_size
        return model.point_features(PointBatch(xyz + shift, batch.offsets, rgb=batch.rgb, normal=batch.normal))

    still = moved(0)
    torch.testing.assert_close(moved(period), still, rtol=1e-5, atol=1e-5)
    assert (moved(1) - still).abs().max() > 1e-2


@torch.no_grad()
def test_every_point_gets_the_features_of_its_voxel(clouds: list[PointCloud]) -> None:
    """Points beyond the first of a voxel count for nothing in evaluation, but get its features."""
    model, cloud = small().eval(), clouds[0]
    crowd = cloud.xyz.mul(8).floor().add(0.5).div(8)  # centres of the voxels of 1/8 m
    both = PointCloud(torch.cat([cloud.xyz, crowd]), torch.rand(2 * len(cloud), 3), torch.rand(2 * len(cloud), 3))
    both.rgb[: len(cloud)], both.normal[: len(cloud)] = cloud.rgb, cloud.normal  # type: ignore[index]
    features = model.point_features(collate([both]))
    assert torch.equal(features[: len(cloud)], model.point_features(collate([cloud])))
    assert torch.equal(features[: len(cloud)], features[len(cloud) :])


@torch.no_grad()
def test_levels(clouds: list[PointCloud]) -> None:
    batch = collate(clouds)
    levels = small().eval().encode(batch)
    assert [level.stride for level in levels] == [1, 3, 6]
    for fine, coarse in pairwise(levels):
        assert fine.parent is not None
        factor = coarse.stride // fine.stride
        assert torch.equal(coarse.coords[fine.parent], torch.div(fine.coords, factor, rounding_mode="floor"))
        for row in range(0, len(coarse.coords), 7):  # a child stands for each
            assert (fine.xyz[fine.parent == row] == coarse.xyz[row]).all(1).any()
    assert levels[-1].parent is None


@torch.no_grad()
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same(clouds: list[PointCloud]) -> None:
    model, batch = small().eval(), collate(clouds)
    wanted = model.point_features(batch)
    found = model.cuda().point_features(batch.to("cuda"))
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-3, atol=1e-3)


# --- Training ----------------------------------------------------------------------------------------------------


def gradients(model: Swin3D, batch: PointBatch) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(5)
    model.zero_grad()
    features = model.point_features(batch)
    features.square().sum().backward()
    return features.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_checkpointing_changes_nothing_but_memory(clouds: list[PointCloud]) -> None:
    batch = collate(clouds[:2])
    kept, wanted = gradients(small(drop_path=0.2).train(), batch)
    again, found = gradients(small(drop_path=0.2, checkpointing=True).train(), batch)
    assert torch.equal(again, kept)
    assert wanted.keys() == dict(small().named_parameters()).keys()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_checkpointing_keeps_less_for_the_backward_pass(clouds: list[PointCloud]) -> None:
    batch = collate(clouds[:2])

    def kept(checkpointing: bool) -> int:
        sizes: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model = small(checkpointing=checkpointing, depths=(4, 4, 4)).train()
            features = model.point_features(batch)
        assert features.requires_grad
        parameters = {p.data_ptr() for p in model.parameters()}
        return sum(size for pointer, size in sizes.items() if pointer not in parameters)

    assert kept(True) < 0.5 * kept(False)


def test_gradients_are_the_differences_of_the_loss(clouds: list[PointCloud]) -> None:
    """Along one random direction through all parameters, in float64, by steps too short to meet a kink."""
    model, batch = small().double().eval(), collate([cloud.select((cloud.xyz < 0.7).all(1)) for cloud in clouds[:2]])
    weight = torch.randn(len(batch.xyz), model.feature_dim, dtype=torch.float64)
    parameters = list(model.parameters())

    def loss() -> Tensor:
        return (model.point_features(batch) * weight).sum()

    slopes = torch.autograd.grad(loss(), parameters)
    direction = [torch.randn_like(p) for p in parameters]
    wanted = sum(float((g * d).sum()) for g, d in zip(slopes, direction, strict=True))
    ends = []
    with torch.no_grad():
        for step in (1e-8, -2e-8):
            for parameter, towards in zip(parameters, direction, strict=True):
                parameter += step * towards
            ends.append(float(loss()))
    assert (ends[0] - ends[1]) / 2e-8 == pytest.approx(wanted, rel=1e-4)


def test_drop_path_leaves_out_voxels_not_scenes(clouds: list[PointCloud]) -> None:
    torch.manual_seed(0)
    block = SwinBlock(16, 2, 3, "xyz", drop_path=0.5).train()
    ones = torch.ones(4000, 16)
    dropped = block._thin(ones)
    assert sorted(set(dropped.flatten().tolist())) == [0.0, 2.0]
    assert torch.equal(dropped, dropped[:, :1].expand(-1, 16))
    assert dropped[:, 0].mean().item() == pytest.approx(1.0, abs=0.06)
    assert block.eval()._thin(ones) is ones


def test_training_draws_points_and_the_seed_fixes_them(clouds: list[PointCloud]) -> None:
    room = Rooms("train")[0]
    batch = collate([room.select((room.xyz < 0.8).all(1))])
    model = small(drop_path=0.0, decoder_drop_path=0.0).train()
    with torch.no_grad():
        first, second = (model.point_features(batch) for _ in range(2))
        assert not torch.equal(first, second)
        torch.manual_seed(1)
        again = model.point_features(batch)
        torch.manual_seed(1)
        assert torch.equal(model.point_features(batch), again)


def test_a_few_steps_fit_a_room(clouds: list[PointCloud]) -> None:
    batch = collate(clouds[:2])
    torch.manual_seed(0)
    model, head = Swin3D(**{**SMALL, "drop_path": 0.0}).train(), nn.Linear(16, 24)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=0.01)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(head(model.point_features(batch)), batch.segment, ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@torch.no_grad()
def test_half_precision(clouds: list[PointCloud]) -> None:
    model, batch = small().eval(), collate(clouds)
    wanted = model.point_features(batch)
    scale = wanted.std()
    with torch.autocast("cpu", torch.bfloat16):
        cast = model.point_features(batch)
    halved = model.bfloat16().point_features(batch)
    assert halved.dtype == torch.bfloat16
    for found in (cast, halved):
        assert (found.float() - wanted).std() < 0.05 * scale


def test_a_step_under_autocast(clouds: list[PointCloud]) -> None:
    model, batch = small().train(), collate(clouds[:2])
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.point_features(batch).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())  # type: ignore[arg-type]


@pytest.mark.parametrize("training", [False, True])
def test_an_attention_block_compiles_without_a_graph_break(clouds: list[PointCloud], training: bool) -> None:
    model = small(drop_path=0.5).train(training)
    scene: SwinScene = model.scene(collate(clouds))
    block, context = model.levels[0][1], scene.levels[0].contexts[1]  # type: ignore[index]
    features = torch.randn(len(scene.inputs), 16, requires_grad=True)
    torch.manual_seed(0)  # which voxels lose a branch in training
    expected = block(features, context)
    wanted = torch.autograd.grad(expected.square().sum(), [features, *block.parameters()])
    torch._dynamo.reset()
    torch.manual_seed(0)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")(features, context)
    found = torch.autograd.grad(compiled.square().sum(), [features, *block.parameters()])
    torch.testing.assert_close(compiled, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model = Swin3D.tiny()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.08), name
            assert module.bias is None or not module.bias.any(), name
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm1d):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), name
            assert not module.bias.any(), name
    for name, value in model.named_parameters():
        if "table" in name:
            assert value.std().item() == pytest.approx(0.02, rel=0.08), name
    assert model.stem.conv.weight.abs().max() <= 1 / (27 * 9) ** 0.5


# --- Storage and refusals ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_saved_and_loaded(clouds: list[PointCloud], tmp_path: Path) -> None:
    model = small(signals="xyz_rgb").eval()
    save_encoder(model, tmp_path)
    loaded = load_encoder(tmp_path)
    assert isinstance(loaded, Swin3D)
    assert loaded.config == model.config
    batch = collate(clouds)
    assert torch.equal(loaded.point_features(batch), model.point_features(batch))


def test_missing_fields_are_explained(clouds: list[PointCloud]) -> None:
    bare = PointBatch(clouds[0].xyz, torch.tensor([0, len(clouds[0])]))
    with pytest.raises(ValueError, match=r"signals='xyz_rgb_normal', but this batch has no rgb and no normal: load"):
        small().point_features(bare)
    assert small(signals="xyz").eval().point_features(bare).shape == (len(clouds[0]), 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": (), "depths": ()}, "channels must name the width of at least one level"),
        ({"depths": (1, 1)}, r"depths must have 3 numbers for 3 levels, got \[1, 1\]"),
        ({"down_strides": (2, 2, 2)}, r"down_strides must have 2 numbers for 3 levels"),
        ({"down_strides": (1, 2)}, r"down_strides must be at least 2, got \[1, 2\]"),
        ({"window_sizes": (0, 1, 1)}, r"window_sizes must be at least 1"),
        ({"num_heads": (3, 2, 2)}, "channels must be a multiple of num_heads, got channels=16, 3 heads"),
        ({"voxel_size": -1.0}, "voxel_size must be positive, got -1.0"),
        ({"signals": "rgb"}, "signals must be one of xyz, xyz_rgb, xyz_rgb_normal, got 'rgb'"),
        ({"drop_path": 1.0}, r"drop_path must lie in \[0, 1\), got 1.0"),
    ],
)
def test_bad_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)
