"""Whole scenes: blocks, fragments, views, made-up fields, and the memory that a large scene may take."""

from __future__ import annotations

import copy
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_scenes import Pointwise, SmallRooms, unet
from torch import Tensor

from pc3d.data import (
    CenterShift,
    GridSample,
    PointBatch,
    PointCloud,
    Rooms,
    Rotate,
    collate,
    fragments,
    voting_views,
)
from pc3d.data.dataset import PointDataset
from pc3d.evaluation import Kept
from pc3d.ops import knn, voxelize
from pc3d.tasks import (
    SceneSegmenter,
    estimate_normals,
    evaluate_scenes,
    scene_blocks,
    scene_inference,
    segment_scene,
    unit_notes,
    with_fields,
)


@pytest.fixture(scope="module")
def room() -> PointCloud:
    """A real room, one point in each cell of 20 cm."""
    return GridSample(0.2)(Rooms("test")[0], torch.Generator().manual_seed(0))


def pointwise(num_classes: int = 5) -> SceneSegmenter:
    torch.manual_seed(0)
    return SceneSegmenter(Pointwise(), [str(k) for k in range(num_classes)], head="linear")


# ---- blocks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_points", [50, 333, 1000])
def test_blocks_hold_every_point_once_within_the_bound_and_all_of_its_surroundings(
    max_points: int, room: PointCloud
) -> None:
    context = 0.3
    blocks = list(scene_blocks(room.xyz, max_points, context))
    cores = torch.cat([block.rows[block.is_core] for block in blocks])
    assert torch.equal(cores.sort().values, torch.arange(len(room)))
    assert all(len(block.rows) <= max_points for block in blocks)
    assert all((block.rows.diff() > 0).all() for block in blocks)
    assert len(blocks) <= 4 * len(room) / max_points
    for block in blocks:
        core = room.xyz[block.rows[block.is_core]]
        low, high = core.amin(0), core.amax(0)
        distance = (room.xyz - room.xyz.clamp(low, high)).abs().amax(1)  # to the box
        inside = set(block.rows.tolist())
        left_out = [i for i in range(len(room)) if i not in inside]
        if len(block.rows) < max_points and left_out:
            assert distance[left_out].min() > context - 1e-5
        elif left_out:  # full: what is left out is no nearer than what is in
            assert distance[left_out].min() >= distance[block.rows].max() - 1e-5


def test_a_scene_within_the_bound_is_one_block_in_its_own_order(room: PointCloud) -> None:
    (block,) = scene_blocks(room.xyz, len(room), 1.0)
    assert torch.equal(block.rows, torch.arange(len(room)))
    assert list(scene_blocks(torch.zeros(0, 3), 10, 1.0)) == []


def test_points_in_one_place_are_cut_all_the_same() -> None:
    blocks = list(scene_blocks(torch.zeros(1000, 3), 64, 1.0))
    assert sum(int(block.is_core.sum()) for block in blocks) == 1000
    assert max(len(block.rows) for block in blocks) <= 64


def test_blocks_of_voxels_are_as_large_as_the_network_sees_them_however_dense_the_scan(room: PointCloud) -> None:
    voxel_size, context, max_voxels = 0.1, 0.3, 700
    generator = torch.Generator().manual_seed(0)
    dense = room.xyz.repeat_interleave(30, dim=0)
    dense = dense + 0.03 * torch.rand(dense.shape, generator=generator)
    num_voxels = len(voxelize(dense, voxel_size).coords)
    blocks = list(scene_blocks(dense, max_voxels, context, voxel_size=voxel_size))
    cores = torch.cat([block.rows[block.is_core] for block in blocks])
    assert torch.equal(cores.sort().values, torch.arange(len(dense)))
    assert len(dense) > 10 * num_voxels
    assert len(blocks) <= 4 * num_voxels / max_voxels + 1  # counting points, there would be 20 times as many
    full = 0
    for block in blocks:
        assert (block.rows.diff() > 0).all()
        assert len(voxelize(dense[block.rows], voxel_size).coords) <= max_voxels
        inside = torch.zeros(len(dense), dtype=torch.bool)
        inside[block.rows] = True
        core = dense[block.rows[block.is_core]]
        left_out = dense[~inside]
        distance = (left_out - left_out.clamp(core.amin(0), core.amax(0))).abs().amax(1)  # to the box
        assert distance.min() > block.context - 1e-5
        full += block.context < context - 1e-6
    assert full < len(blocks)


def test_cores_hold_few_enough_points_for_their_class_sums() -> None:
    """A thousand points in each of 40 voxels: all voxels would fit, their class sums are bounded all the same."""
    xyz = (torch.arange(40_000) % 40).float()[:, None] * torch.tensor([1.0, 0.0, 0.0]) + 0.5
    blocks = list(scene_blocks(xyz, 100, 2.0, voxel_size=1.0))
    assert len(blocks) > 1
    assert max(int(block.is_core.sum()) for block in blocks) <= 1600
    assert sum(int(block.is_core.sum()) for block in blocks) == 40_000


def test_blocks_are_made_one_at_a_time(room: PointCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first is computed, the second does not exist yet, with a bar or without."""
    made = 0

    def watched(*arguments: Any, **options: Any) -> Iterator[Any]:
        nonlocal made
        for block in scene_blocks(*arguments, **options):
            made += 1
            yield block

    monkeypatch.setattr(scene_inference, "scene_blocks", watched)
    model, made_when_seen = SceneSegmenter(Watched(0.2), ["a", "b"], head="linear"), []
    model.register_forward_pre_hook(lambda *_: made_when_seen.append(made))
    segment_scene(model, room, use_fragments=False, max_points=300, context=0.1, progress=True)
    assert len(made_when_seen) > 3
    assert made_when_seen == list(range(1, made + 1))


# ---- a scene as a whole and in blocks ----------------------------------------------------------------------------


def test_a_network_that_looks_at_points_alone_gives_the_same_in_blocks(room: PointCloud) -> None:
    model = pointwise()
    whole, blocked = (torch.zeros(len(room), 5) for _ in range(2))
    first = segment_scene(model, room, probabilities=whole)
    second = segment_scene(model, room, probabilities=blocked, max_points=300, context=0.0)
    torch.testing.assert_close(blocked, whole)
    assert torch.equal(first.label, second.label)
    assert torch.equal(first.label, whole.argmax(1))
    torch.testing.assert_close(first.confidence, whole.max(1).values)


def test_a_network_that_looks_no_farther_than_the_context_gives_the_same_in_blocks(room: PointCloud) -> None:
    torch.manual_seed(0)
    # One level of 0.4 m voxels: three convolutions see 1.2 m and the voxel at the end of it.
    one_level = unet(channels=(8,), blocks=(1,))
    model = SceneSegmenter(one_level, ["a", "b", "c"], head="linear")
    whole, blocked, narrow = (torch.zeros(len(room), 3) for _ in range(3))
    segment_scene(model, room, probabilities=whole, use_fragments=False)
    centred = CenterShift()(room, torch.Generator()).xyz
    bound = len(voxelize(centred, 0.4).coords) - 1
    assert len(list(scene_blocks(centred, bound, 1.6, voxel_size=0.4))) > 1
    segment_scene(model, room, probabilities=blocked, use_fragments=False, max_points=bound, context=1.61)
    torch.testing.assert_close(blocked, whole, rtol=1e-4, atol=1e-5)
    segment_scene(model, room, probabilities=narrow, use_fragments=False, max_points=bound, context=0.0)
    assert (narrow - whole).abs().max() > 1e-3  # so the context is what makes them equal


# ---- fragments and views -----------------------------------------------------------------------------------------


def _away_from_borders(
    room: PointCloud, voxel_size: float, turns: Sequence[float] = (0.0, math.pi / 2), corner: bool = False
) -> Tensor:
    """Points that no rounding error of turns puts into another voxel; those that span the room among them.

    With ``corner``, voxels are counted from the lowest corner of each turn; points there are lowest however rounded.
    """
    low, high = room.xyz.amin(0), room.xyz.amax(0)
    place = ((room.xyz - (low + high) / 2) / voxel_size)[:, :2].double()
    keep = torch.ones(len(room), dtype=torch.bool)
    for turn in turns:
        c, s = math.cos(turn), math.sin(turn)
        turned = place @ torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
        turned = turned - turned.amin(0) if corner else turned
        keep &= (((turned - turned.round()).abs() > 1e-3) | (corner & (turned < 1e-3))).all(1)
    assert torch.equal(room.xyz[keep].amin(0), low), "choose another room"
    assert torch.equal(room.xyz[keep].amax(0), high), "choose another room"
    return keep


def test_voting_adds_the_probabilities_of_all_fragments_of_all_views(room: PointCloud) -> None:
    """The published protocol written out for one block."""
    room = room.select(_away_from_borders(room, 0.4))
    torch.manual_seed(0)
    model = SceneSegmenter(unet(), ["a", "b", "c"]).eval()
    found = torch.zeros(len(room), 3)
    segment_scene(model, room, voting="scannet", probabilities=found)
    low, high = room.xyz.amin(0), room.xyz.amax(0)
    centred = room.xyz - torch.tensor([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    total = torch.zeros(len(room), 3)
    for turn in range(4):
        c, s = round(math.cos(turn * math.pi / 2)), round(math.sin(turn * math.pi / 2))
        turned = PointCloud(centred @ torch.tensor([[c, s, 0], [-s, c, 0], [0, 0, 1.0]]), room.rgb)
        pieces = list(fragments(turned, 0.4))
        assert torch.cat(pieces).unique().numel() == len(room)
        for piece in pieces:
            with torch.no_grad():
                total[piece] += model(collate([turned.select(piece)])).softmax(1)
    torch.testing.assert_close(found, total / total.sum(1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_voting_of_swin3d_adds_logits_of_unit_l1_norm(room: PointCloud) -> None:
    """The released protocol written out in float64: twelve turns, each on voxels from its lowest corner, one pass."""
    turns = [math.radians(view.degrees) for view in voting_views("swin3d") if isinstance(view, Rotate)]
    room = room.select(_away_from_borders(room, 0.4, turns, corner=True))
    torch.manual_seed(0)
    model = SceneSegmenter(unet(), list("abcde"), head="linear").eval()
    torch.nn.init.normal_(model.head.weight)  # type: ignore[arg-type]  # so that points differ in their classes
    torch.nn.init.zeros_(model.head.bias)  # type: ignore[arg-type]
    found = torch.zeros(len(room), 5)
    labels = segment_scene(model, room, voting="swin3d", use_fragments=False, probabilities=found)
    low, high = room.xyz.amin(0), room.xyz.amax(0)
    centred = (room.xyz - torch.tensor([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])).double()
    assert room.rgb is not None
    exact = copy.deepcopy(model).double()
    score, total = (torch.zeros(len(room), 5, dtype=torch.float64) for _ in range(2))
    for turn in turns:
        c, s = math.cos(turn), math.sin(turn)
        seen = centred @ torch.tensor([[c, s, 0], [-s, c, 0], [0, 0, 1]], dtype=torch.float64)
        seen = seen - seen.amin(0)
        first: dict[tuple[int, ...], int] = {}
        stands_for = [first.setdefault(tuple(cell), i) for i, cell in enumerate((seen / 0.4).floor().int().tolist())]
        chosen = sorted(first.values())
        place = {i: row for row, i in enumerate(chosen)}
        with torch.no_grad():
            logits = exact(collate([PointCloud(seen[chosen], room.rgb[chosen].double())]))
        votes = logits[[place[i] for i in stands_for]]
        score += votes / sum(votes[:, k].abs() for k in range(5))[:, None]
        total += votes.exp() / sum(votes[:, k].exp() for k in range(5))[:, None]
    torch.testing.assert_close(found, (total / 12).float(), rtol=1e-4, atol=1e-5)
    best = score.sort(1, descending=True)
    clear = best.values[:, 0] - best.values[:, 1] > 1e-4
    assert clear.float().mean() > 0.98
    assert torch.equal(labels.label[clear], best.indices[clear, 0])
    assert torch.equal(labels.confidence, found.gather(1, labels.label[:, None])[:, 0])
    assert (labels.label != found.argmax(1)).any()  # so the two rules are told apart


def test_turns_are_nothing_to_a_network_that_looks_at_points_alone(room: PointCloud) -> None:
    model = pointwise()
    plain, turned = (
        segment_scene(model, room, voting=kind, max_points=300, context=0.0) for kind in ("none", "swin3d")
    )
    assert torch.equal(turned.label, plain.label)
    torch.testing.assert_close(turned.confidence, plain.confidence)
    torch.nn.init.zeros_(model.head.weight)  # type: ignore[arg-type]
    torch.nn.init.zeros_(model.head.bias)  # type: ignore[arg-type]
    mute = segment_scene(model, room, voting="swin3d", use_fragments=False)
    assert (mute.label == 0).all()  # a norm of zero divides nothing
    torch.testing.assert_close(mute.confidence, torch.full((len(room),), 0.2))


def test_one_point_in_each_voxel_is_one_fragment(room: PointCloud) -> None:
    # Far enough apart that no two share a voxel, wherever the grid lies.
    room = room.select(knn(room.xyz, 2).squared_distance[:, 1] > 3 * 0.01**2)
    torch.manual_seed(0)
    model = SceneSegmenter(unet(voxel_size=0.01), ["a", "b", "c"])
    assert len(list(fragments(room, 0.01))) == 1
    fragmented, single = (segment_scene(model, room, use_fragments=value) for value in (True, False))
    torch.testing.assert_close(fragmented.confidence, single.confidence)
    assert torch.equal(fragmented.label, single.label)


def test_the_model_is_left_as_it_was(room: PointCloud) -> None:
    model = pointwise().train()
    segment_scene(model, room)
    assert model.training
    with pytest.raises(ValueError, match="reads rgb, which the scene does not have: store them with it"):
        segment_scene(model, room.replace(rgb=None))
    for field in ("rgb", "xyz"):
        holes = getattr(room, field).clone()
        holes[7:9, 1] = torch.nan
        with pytest.raises(ValueError, match=rf"{field} is not finite at 2 of [\d,]+ points, first in row 7"):
            segment_scene(model, room.replace(**{field: holes}))
    with pytest.raises(ValueError, match="probabilities must have shape"):
        segment_scene(model, room, probabilities=torch.zeros(3, 5))
    with pytest.raises(ValueError, match="max_points must be at least 2, got 1"):
        segment_scene(model, room, max_points=1)
    with pytest.raises(ValueError, match="context must not be negative"):
        segment_scene(model, room, context=-1.0)
    assert segment_scene(model, room.select(slice(0))).label.shape == (0,)


# ---- the bound ---------------------------------------------------------------------------------------------------


class Watched(Pointwise):
    """Remembers how many points it saw at once."""

    def __init__(self, voxel_size: float | None = None) -> None:
        super().__init__(voxel_size=voxel_size)
        self.seen: list[int] = []

    def point_features(self, batch: PointBatch) -> Tensor:
        self.seen.append(len(batch.xyz))
        return super().point_features(batch)


def test_no_forward_pass_of_a_large_scene_sees_more_points_than_the_bound() -> None:
    """A room repeated over a floor."""
    num_points, max_points = 500_000, 40_000
    base = Rooms("test")[0]
    size = base.xyz.amax(0) - base.xyz.amin(0)
    side = math.ceil(math.sqrt(num_points / len(base)))
    steps = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float() * size[:2]
    xyz = torch.cat([base.xyz + torch.cat([step, torch.zeros(1)]) for step in steps])
    assert base.rgb is not None
    cloud = PointCloud(xyz, base.rgb.repeat(len(steps), 1))
    assert len(cloud) >= num_points
    model = SceneSegmenter(Watched(), [str(k) for k in range(24)], head="linear")
    found = segment_scene(model, cloud, max_points=max_points, context=0.5, use_fragments=False)
    assert isinstance(model.backbone, Watched)
    assert max(model.backbone.seen) <= max_points
    assert sum(model.backbone.seen) >= len(cloud)
    assert found.label.min() >= 0
    # A repeated room is labelled like the first: heights and colours are the same.
    assert torch.equal(found.label[: len(base)], found.label[-len(base) :])


MEMORY = """
import ctypes, sys
from pathlib import Path
import torch
from pc3d.data import PointCloud, Rooms
from pc3d.tasks import SceneSegmenter, segment_scene

sys.path.insert(0, sys.argv[1])
from tiny_scenes import Pointwise

torch.set_num_threads(1)
room = Rooms("test")[0]

def resident(name):
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name)).split()[1])

def segment(num_points, voxel_size, max_points):
    side = int((num_points / len(room)) ** 0.5) + 1
    tiles = torch.cartesian_prod(torch.arange(side), torch.arange(side), torch.tensor([0])) * room.xyz.amax(0)
    xyz = (tiles[:, None] + room.xyz).view(-1, 3)[:num_points].clone()
    scene = PointCloud(xyz, room.rgb.expand(len(tiles), -1, 3).reshape(-1, 3)[:num_points].clone())
    model = SceneSegmenter(Pointwise(voxel_size=voxel_size), [str(k) for k in range(24)], head="linear")
    seen = []
    model.register_forward_pre_hook(lambda _, batch: seen.append(len(batch[0].xyz)))
    ctypes.CDLL(None).malloc_trim(0)  # what was left before could be used again unseen
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    found = segment_scene(model, scene, use_fragments=False, max_points=max_points, context=0.5)
    peak = 1024 * (resident("VmHWM") - before)
    assert len(found.label) == num_points and found.label.min() >= 0
    return peak, max(seen)

segment(100_000, None, 20_000)
for voxel_size, max_points in ((None, 100_000), (0.1, 20_000)):
    for num_points in (1_000_000, 5_000_000):
        print(*segment(num_points, voxel_size, max_points))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to read peak memory")
def test_five_million_points_take_no_more_memory_than_is_stated() -> None:
    """Beside the scene, 97 bytes a point were measured without voxels, and 60 with ten points in each.

    Probabilities kept for the whole scene, not for a block, are 96 more, and fail; so do features.
    """
    command = [sys.executable, "-c", MEMORY, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    runs = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    for (small, _), (large, largest_pass), max_points, core_points, bytes_a_point in (
        (*runs[:2], 100_000, 100_000, 120),
        (*runs[2:], 20_000, 16 * 20_000, 75),
    ):
        # What does not grow with the scene: class sums of a block, their mean, the votes and logits behind them.
        block = 4 * core_points * 24 * 4
        assert large - small < bytes_a_point * 4_000_000
        assert large < bytes_a_point * 5_000_000 + block
        assert largest_pass <= max_points


def test_a_dense_scan_in_one_pass_is_bounded_by_its_voxels_and_says_what_was_cut(
    room: PointCloud, tmp_path: Path
) -> None:
    """A dozen points a voxel; the labels are those that the network gives the scene as a whole."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    dense = room.select(torch.arange(len(room)).repeat_interleave(3))
    dense = dense.replace(xyz=dense.xyz + 0.05 * torch.rand(dense.xyz.shape, generator=generator))
    model = SceneSegmenter(unet(channels=(8,), blocks=(1,)), ["a", "b", "c"], head="linear").eval()
    found = torch.zeros(len(dense), 3)
    num_voxels = len(voxelize(CenterShift()(dense, generator).xyz, 0.4).coords)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, batch: seen.append(len(batch[0].xyz)))
    labels = segment_scene(model, dense, use_fragments=False, max_points=num_voxels, context=2.0, probabilities=found)
    assert seen == [num_voxels]
    assert len(dense) > 8 * num_voxels
    assert labels.notes == ()
    with torch.no_grad():
        expected = model(collate([CenterShift()(dense, generator)])).softmax(1)  # every point given
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    bound = num_voxels // 2
    (note,) = segment_scene(model, dense, use_fragments=False, max_points=bound, context=2.0).notes
    assert max(seen[2:]) <= bound
    assert re.search(r"\d of \d blocks see less than 2 m around them, the narrowest [01]\.\d\d m: .* raise it", note)
    rooms = [dense.replace(segment=torch.zeros(len(dense), dtype=torch.int64))]
    with pytest.warns(UserWarning, match="blocks see less than 2 m around them"):
        evaluate_scenes(model, Scenes(rooms, ["a", "b", "c"]), use_fragments=False, max_points=bound)
    counts = []
    for _ in range(2):
        seen.clear()
        kept = Kept(tmp_path)
        with pytest.warns(UserWarning, match="blocks see less than 2 m around them"):
            matrix = evaluate_scenes(
                model, Scenes(rooms, ["a", "b", "c"]), use_fragments=False, max_points=bound, kept=kept
            )
        counts.append(matrix.counts)
        kept.save()
    assert seen == []  # given back, and what was noted with it
    assert torch.equal(*counts)


class Scenes(PointDataset):
    """Scenes that are there already."""

    def __init__(self, clouds: list[PointCloud], classes: list[str]) -> None:
        self.clouds, self.classes, self.labels = clouds, classes, None

    def __len__(self) -> int:
        return len(self.clouds)

    def load(self, index: int) -> PointCloud:
        return self.clouds[index]


# ---- scores ------------------------------------------------------------------------------------------------------


def test_scores_count_every_labelled_point_of_a_data_set() -> None:
    rooms = SmallRooms("test")
    model = SceneSegmenter(Pointwise(), rooms.classes, head="linear")
    matrix = evaluate_scenes(model, rooms)
    labels = torch.cat([cloud.segment for cloud in rooms if cloud.segment is not None])
    assert torch.equal(matrix.counts.sum(1), labels[labels >= 0].bincount(minlength=24))
    with pytest.raises(ValueError, match="the model knows the classes 0, 1, the data set has wall"):
        evaluate_scenes(pointwise(2), rooms)


# ---- units -----------------------------------------------------------------------------------------------------------


def test_a_scene_that_is_hardly_in_metres_is_told(room: PointCloud) -> None:
    """The room has one point in each cell of 20 cm."""
    assert unit_notes(room, 0.1) == unit_notes(room, 0.2) == unit_notes(room, None) == []
    assert unit_notes(room.select(slice(0)), 0.1) == []
    (far,) = unit_notes(room.replace(xyz=1000 * room.xyz), 0.1)
    assert re.fullmatch(r"the scene is \d,\d{3} m long: coordinates must be metres \(--scale 0.001 .*\)", far)
    # In units of 5 cm, points are 4 m apart.
    (lonely,) = unit_notes(room.replace(xyz=20 * room.xyz), 0.1)
    cells = len({tuple(cell) for cell in (20 * room.xyz / 0.4).floor().int().tolist()})
    assert f"{len(room):,} points lie in {cells:,} cubes of 0.4 m" in lonely
    assert unit_notes(room.replace(xyz=20 * room.xyz), None) == []


def test_stray_points_are_told_from_other_units(room: PointCloud) -> None:
    xyz = room.xyz.clone()
    xyz[[7, 40]] = torch.tensor([[0.0, 0.0, -9999.0], [3.4e38, 3.4e38, 3.4e38]])
    (note,) = unit_notes(room.replace(xyz=xyz), 0.1)
    assert f"2 of {len(room):,} points lie more than 500 m from the others, first row 7: remove them" in note
    (note,) = unit_notes(PointCloud(torch.tensor([[0.0, 0, 0], [0, 0, 600]])), 0.1)
    assert note.startswith("the scene is 600 m long")


# ---- fields that a scene lacks -----------------------------------------------------------------------------------


def test_normals_are_those_of_the_surfaces_seen_from_within() -> None:
    cloud = Rooms("test")[1]
    assert cloud.normal is not None
    assert cloud.segment is not None
    flat = cloud.segment < 3  # walls, floor, ceiling
    cosine = (estimate_normals(cloud.xyz) * cloud.normal).sum(1)[flat]
    assert cosine.median() > 0.95
    assert (cosine > 0).float().mean() > 0.95
    torch.testing.assert_close(estimate_normals(cloud.xyz).norm(dim=1), torch.ones(len(cloud)))
    assert estimate_normals(torch.zeros(3, 3)).isfinite().all()
    assert estimate_normals(torch.zeros(0, 3)).shape == (0, 3)


def test_strays_far_outside_turn_no_normal() -> None:
    """KITTI's sweeps have some 20 m below the ground."""
    cloud = Rooms("test")[1].select(slice(None, None, 10))
    strays = cloud.xyz.mean(0) + torch.tensor([[0.0, 0.0, -30.0], [0.0, 60.0, -30.0], [0.0, 0.0, -31.0]])
    floor = cloud.segment == 1
    assert (estimate_normals(torch.cat([cloud.xyz, strays]))[:-3][floor][:, 2] > 0).float().mean() > 0.95


def test_missing_fields_are_made_up_with_a_note(room: PointCloud) -> None:
    bare = PointCloud(room.xyz)
    filled, notes = with_fields(bare, ("rgb", "normal"))
    assert filled.rgb is not None
    assert (filled.rgb == 0.5).all()
    assert filled.normal is not None
    assert [note.partition(":")[0] for note in notes] == ["no colours", "no normals"]
    same, none = with_fields(room, ("rgb", "normal"))
    assert same is room
    assert none == []
    assert with_fields(bare, ()) == (bare, [])
