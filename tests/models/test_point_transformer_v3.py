"""Point Transformer V3: what goes in, what comes out, and what must not matter."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pc3d.data import PointBatch, PointCloud, Rooms, collate
from pc3d.models import PointTransformerV3, SparseUNet, UpcastFeatures, load_encoder, save_encoder, scene_features
from pc3d.nn.point_transformer_v3 import PTv3Block
from pc3d.ops import voxelize
from pc3d.tasks.optimisation import SegmentationOptimisation

SMALL: dict[str, Any] = {
    "channels": (16, 32, 32),
    "depths": (1, 2, 1),
    "decoder_channels": (16, 32),
    "decoder_depths": (1, 1),
    "patch_size": 64,
    "voxel_size": 0.2,
    "signals": "xyz_rgb",
}
VARIANTS = ["ptv3", "sonata"]


def small(**changes: Any) -> PointTransformerV3:
    torch.manual_seed(0)
    return PointTransformerV3(**{**SMALL, **changes})


@pytest.fixture(scope="module")
def clouds() -> list[PointCloud]:
    """Corners of two scanned rooms, a crumb of a third, a single point, and nothing at all."""
    rooms = Rooms("train")
    cut = [room.select((room.xyz[:, :2] < 1.6).all(1)) for room in (rooms[0], rooms[1])]
    empty = torch.zeros(0, dtype=torch.int64)
    return [cut[0].select(slice(None, None, 4)), cut[1].select(slice(None, None, 3)), rooms[2].select(slice(3)),
            rooms[2].select(slice(1)), rooms[2].select(empty)]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_point_gets_the_features_of_its_voxel(variant: str, clouds: list[PointCloud]) -> None:
    model, batch = small(variant=variant).eval(), collate(clouds)
    features = model.point_features(batch)
    assert features.shape == (len(batch.xyz), model.feature_dim) == (len(batch.xyz), 16)
    cells = torch.floor(clouds[0].xyz / 0.2).tolist()
    rows: dict[tuple[float, ...], int] = {}
    for row, cell in enumerate(cells):
        first = rows.setdefault(tuple(cell), row)
        assert torch.equal(features[row], features[first])
    assert len(features[: len(cells)].unique(dim=0)) > len(rows) // 2


@torch.no_grad()
def test_levels(clouds: list[PointCloud]) -> None:
    batch = collate(clouds)
    levels = small().eval().encode(batch)
    assert [level.stride for level in levels] == [1, 2, 4]
    assert [level.features.shape[1] for level in levels] == [16, 32, 32]
    for low, high in pairwise(levels[0].offsets.tolist()):
        if high > low:
            assert levels[0].coords[low:high].amin(0).tolist() == [0, 0, 0]
    for fine, coarse in pairwise(levels):
        assert fine.parent is not None
        assert torch.equal(coarse.coords[fine.parent], fine.coords // 2)
        scene = torch.bucketize(fine.parent, coarse.offsets[1:], right=True)
        assert torch.equal(scene, torch.bucketize(torch.arange(len(fine.coords)), fine.offsets[1:], right=True))
        torch.testing.assert_close(coarse.xyz[3], fine.xyz[fine.parent == 3].mean(0))
    assert levels[-1].parent is None


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_scene_alone_and_in_a_batch(variant: str, clouds: list[PointCloud]) -> None:
    model = small(variant=variant).eval()
    together = model.point_features(collate(clouds))
    alone = torch.cat([model.point_features(collate([cloud])) for cloud in clouds])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_nothing_at_all_has_no_features(clouds: list[PointCloud]) -> None:
    for variant in VARIANTS:
        assert small(variant=variant).eval().point_features(collate(clouds[-1:])).shape == (0, 16)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_shifts_by_whole_voxels_change_nothing(variant: str, clouds: list[PointCloud]) -> None:
    model = small(voxel_size=0.25, variant=variant).eval()
    batch = collate(clouds)
    shift = torch.tensor([3.0, -2.0, 1.0]) * 0.25
    moved = PointBatch(batch.xyz.double() + shift, batch.offsets, rgb=batch.rgb)
    still = PointBatch(batch.xyz.double(), batch.offsets, rgb=batch.rgb)
    torch.testing.assert_close(model.point_features(moved), model.point_features(still), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_evaluation_repeats_itself_and_training_shuffles_the_curves(clouds: list[PointCloud]) -> None:
    model, batch = small(drop_path=0.0).eval(), collate(clouds[:2])
    assert torch.equal(model.point_features(batch), model.point_features(batch))
    model.train()
    # Of clouds with one point in a voxel, or the point that stands for it would differ, too.
    batch = collate([cloud.select(voxelize(cloud.xyz, 0.2).first) for cloud in clouds[:2]])
    first_patches = set()
    for seed in range(40):
        torch.manual_seed(seed)
        first_patches.add(tuple(model.scene(batch).levels[0].patches[0].full[0].tolist()))
    assert len(first_patches) == 4  # along each curve


@torch.no_grad()
def test_the_stem_reads_what_it_says(clouds: list[PointCloud]) -> None:
    room = Rooms("train")[0].select(slice(None, None, 50))
    batch = collate([room, room.replace(xyz=room.xyz + 3.0)])
    rows = small(voxel_size=1e-4).scene(batch).inverse  # a voxel for each point
    low, high = room.xyz.amin(0), room.xyz.amax(0)
    place = room.xyz - torch.cat([((low + high) / 2)[:2], low[2:]])
    assert room.rgb is not None
    assert room.normal is not None
    for variant, changes, columns in (
        ("ptv3", {"signals": "xyz_rgb"}, [2 * room.rgb - 1]),
        ("ptv3", {"signals": "xyz_rgb_normal"}, [2 * room.rgb - 1, room.normal]),
        ("ptv3", {"signals": "xyz_rgb_normal", "unit_colors": True}, [room.rgb, room.normal]),
        ("sonata", {"signals": "xyz"}, [place]),
        ("sonata", {"signals": "xyz_rgb_normal"}, [place, room.rgb, room.normal]),
        ("sonata", {"signals": "xyz_rgb", "unit_colors": False}, [place, 2 * room.rgb - 1]),
    ):
        inputs = small(variant=variant, voxel_size=1e-4, **changes).eval().scene(batch).inputs
        torch.testing.assert_close(inputs[rows], torch.cat(columns, 1).repeat(2, 1), rtol=1e-4, atol=1e-5)
    inputs = small(signals="xyz").eval().scene(batch).inputs
    assert inputs.shape[1] == 3
    assert 0 <= inputs.min() < inputs.max() <= 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_parameters_learn_and_draws_are_seeded(variant: str, clouds: list[PointCloud]) -> None:
    model, batch = small(variant=variant, drop_path=0.0).train(), collate(clouds)
    torch.manual_seed(0)
    first = model.point_features(batch)
    (first * torch.randn_like(first)).mean().backward()
    for name, value in model.named_parameters():
        # A bias before a batch norm changes nothing, nor does a key's before a softmax.
        if not (variant == "ptv3" and name.endswith(("linear.bias", "skip.0.bias", "coarse.0.bias"))):
            assert value.grad is not None, name
            assert value.grad.abs().max() > 0, name
    assert not torch.equal(first, model.point_features(batch))
    torch.manual_seed(0)
    assert torch.equal(first, model.point_features(batch))


def test_without_decoder_points_get_the_features_of_all_levels(clouds: list[PointCloud]) -> None:
    encoder, batch = small(decoder_channels=()).eval(), collate(clouds)
    assert encoder.feature_dim == 80
    assert not any(name.startswith(encoder.decoder_only) for name, _ in encoder.named_parameters())
    with torch.no_grad():
        features = encoder.point_features(batch)
        assert torch.equal(features, UpcastFeatures(encoder).point_features(batch))
        whole = small().eval()
        whole.load_state_dict(encoder.state_dict(), strict=False)
        assert torch.equal(features, UpcastFeatures(whole).point_features(batch))
        of_scene = scene_features(whole, clouds[0])
        torch.testing.assert_close(of_scene, features[: len(of_scene)], rtol=1e-4, atol=1e-5)
    (features_again := encoder.train().point_features(batch)).square().mean().backward()
    assert features_again.shape == features.shape
    assert all(value.grad is not None for value in encoder.parameters())


def test_a_step_fits_a_room_better(clouds: list[PointCloud]) -> None:
    model, batch = small().train(), collate(clouds)
    assert batch.segment is not None
    head = torch.nn.Linear(16, 24)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=0.01)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(head(model.point_features(batch)), batch.segment, ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_is_near_float32(variant: str, clouds: list[PointCloud]) -> None:
    model, batch = small(variant=variant).eval(), collate(clouds)
    with torch.no_grad():
        exact = model.point_features(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.point_features(batch)
        rough.float().square().mean().backward()
    assert all(value.grad is None or value.grad.isfinite().all() for value in model.parameters())
    assert (rough.float() - exact).square().mean() < 0.01 * exact.square().mean()


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"variant": "sonata", "decoder_channels": (), "orders": ("hilbert",)}])
def test_saved_and_loaded(changes: dict[str, Any], clouds: list[PointCloud], tmp_path: Path) -> None:
    model = small(**changes).eval()
    save_encoder(model, tmp_path)
    loaded = load_encoder(tmp_path, expect=PointTransformerV3)
    assert loaded.config == model.config
    batch = collate(clouds)
    assert torch.equal(loaded.point_features(batch), model.point_features(batch))
    with pytest.raises(ValueError, match="holds a PointTransformerV3, but a SparseUNet is needed here"):
        load_encoder(tmp_path, expect=SparseUNet)


@pytest.mark.parametrize(("preset", "parameters"), [("base", 46_166_272), ("sonata", 108_461_328), ("tiny", 1_143_072)])
def test_the_presets_have_the_published_sizes(preset: str, parameters: int) -> None:
    with torch.device("meta"):
        model = getattr(PointTransformerV3, preset)()
    assert sum(value.numel() for value in model.parameters()) == parameters


def test_drop_path_rises_to_the_coarsest_level() -> None:
    model = small(decoder_depths=(1, 2), drop_path=0.3)
    blocks = {name: block.drop_path for name, block in model.named_modules() if isinstance(block, PTv3Block)}
    of_encoder = [rate for name, rate in blocks.items() if name.startswith("levels")]
    of_decoder = [rate for name, rate in blocks.items() if name.startswith("decoder")]
    assert of_encoder == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert of_decoder == pytest.approx([0.0, 0.3, 0.15])  # within a level of the decoder it falls, as published


def test_blocks_learn_at_the_rate_of_blocks() -> None:
    model = small()
    rates = {id(p): group["lr"] for group in SegmentationOptimisation().groups(model) for p in group["params"]}
    slow = {name for name, value in model.named_parameters() if rates[id(value)] < 0.001}
    assert slow == {name for name, _ in model.named_parameters() if name.startswith(("levels.", "decoder."))}


def test_missing_fields_are_explained(clouds: list[PointCloud]) -> None:
    bare = PointBatch(clouds[0].xyz, torch.tensor([0, len(clouds[0])]))
    with pytest.raises(ValueError, match=r"signals='xyz_rgb', but this batch has no rgb: .* signals='xyz'"):
        small().point_features(bare)
    assert small(signals="xyz").eval().point_features(bare).shape == (len(clouds[0]), 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": ()}, "channels must name the width of at least one level, got none"),
        ({"depths": (1, 1)}, r"depths must have 3 numbers for 3 levels, got \[1, 1\]"),
        ({"depths": (1, 0, 1)}, r"depths must be at least 1, got \[1, 0, 1\]"),
        ({"decoder_channels": (16,)}, "decoder_channels must have 2 numbers for 3 levels, or none for no decoder"),
        ({"decoder_depths": (1,)}, r"decoder_depths must have 2 numbers for 3 levels, got \[1\]"),
        ({"num_heads": (1, 3, 2)}, "channels must be multiples of num_heads, got 32 with 3 heads"),
        ({"decoder_num_heads": (5, 2)}, "decoder_channels must be multiples of decoder_num_heads, got 16 with 5 heads"),
        ({"channels": (24, 32, 32)}, "num_heads: a head has 16 channels by default, which 24 is no multiple of"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"orders": ("z", "peano")}, r"orders must be some of z, .*, got \['z', 'peano'\]"),
        ({"orders": ()}, r"orders must be some of z, .*, got \[\]"),
        ({"voxel_size": 0.0}, "voxel_size must be positive, got 0.0"),
        ({"variant": "v2"}, "variant must be 'ptv3' or 'sonata', got 'v2'"),
        ({"drop_path": 1.0}, r"drop_path must lie in \[0, 1\), got 1.0"),
        ({"signals": "rgb"}, "signals must be one of xyz, xyz_rgb, xyz_rgb_normal, got 'rgb'"),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_a_scene_with_a_point_far_away_is_refused(clouds: list[PointCloud]) -> None:
    xyz = torch.cat([clouds[0].xyz, torch.tensor([[3e5, 0.0, 0.0]])])
    batch = PointBatch(xyz, torch.tensor([0, len(xyz)]))
    with pytest.raises(ValueError, match=r"voxels long, more than the 1048575 .* remove points that lie far outside"):
        small(signals="xyz").point_features(batch)
