from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import convolve1d

from pc3d.data import (
    CenterShift,
    ChromaticAutoContrast,
    ChromaticJitter,
    ChromaticTranslation,
    Compose,
    ElasticDistortion,
    GridSample,
    Jitter,
    PointBatch,
    PointCloud,
    PointLoader,
    RandomColorDrop,
    RandomDropout,
    RandomFlip,
    RandomRotate,
    Rooms,
    Rotate,
    SceneCollate,
    SphereCrop,
    Transform,
    fragments,
    mix3d,
    voting_views,
)

FIELDS = ("xyz", "rgb", "normal", "segment", "instance")
PUBLISHED = [
    CenterShift(),
    RandomDropout(probability=1.0),
    *RandomRotate.published(),
    RandomFlip(),
    Jitter(0.005, 0.02),
    ElasticDistortion(),
    ChromaticAutoContrast(1.0),
    ChromaticTranslation(),
    ChromaticJitter(),
    RandomColorDrop(0.5),
    GridSample(0.1),
    SphereCrop(2000),
    CenterShift(vertical=False),
]
ALL = [*PUBLISHED, RandomRotate(probability=1.0), Rotate(30.0, "x", "box"), Compose(PUBLISHED)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def room() -> PointCloud:
    """A bathroom, thinned."""
    cloud = Rooms("train")[2]
    return cloud.select(torch.randperm(len(cloud), generator=seeded(0))[:8000])


@pytest.fixture(scope="module")
def annotated(room: PointCloud) -> PointCloud:
    """The same with ten annotated points only."""
    rows = torch.randperm(len(room), generator=seeded(1))[:10]
    segment = torch.full((len(room),), -1).scatter(0, rows, room.segment[rows])
    return room.replace(segment=segment, meta={**room.meta, "limited_annotations": True})


@pytest.mark.parametrize("transform", ALL, ids=repr)
def test_same_seed_same_scene_and_the_input_is_left_alone(transform: Transform, room: PointCloud) -> None:
    before = {name: getattr(room, name).clone() for name in FIELDS}
    torch.manual_seed(1)
    first = transform(room, seeded(3))
    torch.manual_seed(2)  # the global generator must play no part
    second = transform(room, seeded(3))
    for name, value in before.items():
        assert torch.equal(getattr(first, name), getattr(second, name)), name
        assert torch.equal(getattr(room, name), value), name


@pytest.mark.parametrize("transform", ALL, ids=repr)
def test_clouds_of_one_point_and_without_colours_or_normals(transform: Transform, room: PointCloud) -> None:
    assert len(transform(room.select(slice(1)), seeded(0))) == 1
    bare = transform(PointCloud(xyz=room.xyz), seeded(0))
    assert bare.rgb is None
    assert bare.normal is None


def test_batches_do_not_depend_on_the_workers() -> None:
    rooms, transform = Rooms("train"), Compose(PUBLISHED)

    def batches(num_workers: int) -> list[PointBatch]:
        collate = SceneCollate(mix_probability=0.6)
        return list(PointLoader(rooms, 2, transform=transform, collate=collate, num_workers=num_workers, seed=4))

    alone = batches(0)
    assert {len(batch) for batch in alone} == {1, 2}  # some mixed, some not
    for num_workers in (2, 4):
        for one, other in zip(alone, batches(num_workers), strict=True):
            assert torch.equal(one.offsets, other.offsets)
            assert [meta["id"] for meta in one.meta] == [meta["id"] for meta in other.meta]
            for name in FIELDS:
                assert torch.equal(getattr(one, name), getattr(other, name)), name


# Geometry


def test_center_shift_by_hand() -> None:
    cloud = PointCloud(xyz=torch.tensor([[1.0, 2.0, 3.0], [5.0, -4.0, 9.0], [2.0, 0.0, 4.0]]))
    assert CenterShift()(cloud, seeded(0)).xyz.tolist() == [[-2, 3, 0], [2, -3, 6], [-1, 1, 1]]
    assert CenterShift(vertical=False)(cloud, seeded(0)).xyz[:, 2].tolist() == [3, 9, 4]


@pytest.mark.parametrize("transform", [*ALL, ElasticDistortion(probability=1.0)], ids=repr)
def test_empty_clouds_stay_as_they_are(transform: Transform, room: PointCloud) -> None:
    empty = room.select(torch.zeros(0, dtype=torch.int64))
    out = transform(empty, seeded(0))
    assert {name: getattr(out, name).shape for name in FIELDS} == {name: getattr(empty, name).shape for name in FIELDS}


@pytest.mark.parametrize(("axis", "source", "target"), [("z", 0, 1), ("x", 1, 2), ("y", 2, 0)])
def test_a_quarter_turn_follows_the_right_hand(axis: str, source: int, target: int) -> None:
    unit = torch.eye(3)
    cloud = PointCloud(xyz=2 * unit[source : source + 1], normal=unit[source : source + 1])
    turned = Rotate(90.0, axis)(cloud, seeded(0))
    torch.testing.assert_close(turned.xyz, 2 * unit[target : target + 1], atol=1e-6, rtol=0)
    torch.testing.assert_close(turned.normal, unit[target : target + 1], atol=1e-6, rtol=0)


def test_rotation_about_the_middle_of_the_box(room: PointCloud) -> None:
    turned = Rotate(180.0, "y", "box")(room, seeded(0))
    middle = (room.xyz.amin(dim=0) + room.xyz.amax(dim=0)) / 2
    expected = (room.xyz - middle) * torch.tensor([-1.0, 1.0, -1.0]) + middle
    torch.testing.assert_close(turned.xyz, expected, atol=1e-5, rtol=0)


def test_random_rotations_stay_within_their_angle() -> None:
    cloud = PointCloud(xyz=torch.tensor([[1.0, 0.0, 0.0]]))
    generator, angles = seeded(0), []
    transform = RandomRotate("z", 180.0)
    for _ in range(2000):
        x, y, _ = transform(cloud, generator).xyz[0].tolist()
        angles.append(math.degrees(math.atan2(y, x)))
    turned = [angle for angle in angles if angle != 0]
    assert abs(len(turned) - 1000) < 4 * math.sqrt(2000 * 0.25)
    # Uniform on [-180, 180]: mean 0, standard deviation 360 / sqrt(12).
    assert abs(np.mean(turned)) < 4 * 104 / math.sqrt(len(turned))
    assert np.std(turned) == pytest.approx(103.9, rel=0.05)
    tilt = RandomRotate.published()[1]
    corners = PointCloud(xyz=torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3))))
    for seed in range(50):
        moved = (tilt(corners, seeded(seed)).xyz - corners.xyz).norm(dim=1).max()
        assert moved <= 2 * math.sqrt(2) * math.sin(math.radians(180 / 64) / 2) + 1e-6


def test_flips_mirror_points_and_normals(room: PointCloud) -> None:
    both = RandomFlip(1.0)(room, seeded(0))
    sign = torch.tensor([-1.0, -1.0, 1.0])
    assert torch.equal(both.xyz, room.xyz * sign)
    assert torch.equal(both.normal, room.normal * sign)
    cloud = PointCloud(xyz=torch.ones(1, 3))
    seen = {tuple(RandomFlip(0.5)(cloud, seeded(seed)).xyz[0].tolist()) for seed in range(40)}
    assert seen == {(x, y, 1.0) for x in (1.0, -1.0) for y in (1.0, -1.0)}


def test_elastic_distortion_is_blurred_noise_interpolated(room: PointCloud) -> None:
    """Against SciPy: the published definition, step by step, on the same noise."""
    generator = seeded(5)
    torch.rand((), generator=generator, dtype=torch.float64)  # the draw that decides whether to bend
    xyz = room.xyz.numpy().astype(np.float64)
    for granularity, magnitude in ((0.2, 0.4), (0.8, 1.6)):
        low, high = xyz.min(axis=0), xyz.max(axis=0)
        nodes = ((high - low) // granularity).astype(int) + 3
        noise = torch.randn((3, *nodes.tolist()), generator=generator, dtype=torch.float64).numpy()
        for _ in range(2):
            for axis in (1, 2, 3):
                noise = convolve1d(noise, np.ones(3) / 3, axis=axis, mode="constant")
        axes = [np.linspace(low[i] - granularity, low[i] + granularity * (nodes[i] - 2), nodes[i]) for i in range(3)]
        values = RegularGridInterpolator(axes, noise.transpose(1, 2, 3, 0))(xyz)
        xyz = xyz + magnitude * values
    bent = ElasticDistortion(probability=1.0)(room, seeded(5))
    np.testing.assert_allclose(bent.xyz.numpy(), xyz, atol=2e-5)
    assert (bent.xyz - room.xyz).abs().max() > 0.05


def test_elastic_distortion_refuses_scenes_that_are_not_metric(room: PointCloud) -> None:
    with pytest.raises(ValueError, match=r"granularity 0\.2 does not go with a scene of"):
        ElasticDistortion(probability=1.0)(room.replace(xyz=room.xyz * 1000), seeded(0))
    with pytest.raises(ValueError, match="granularity > 0"):
        ElasticDistortion(((0.0, 1.0),))


# Colour


def test_auto_contrast_stretches_each_channel(room: PointCloud) -> None:
    rgb = room.rgb * torch.tensor([0.5, 0.2, 0.0]) + 0.1
    full = ChromaticAutoContrast(1.0, blend=1.0)(room.replace(rgb=rgb), seeded(0)).rgb
    low, high = rgb.amin(dim=0), rgb.amax(dim=0)
    torch.testing.assert_close(full[:, :2], ((rgb - low) / (high - low))[:, :2])
    torch.testing.assert_close(full[:, 2], rgb[:, 2])  # of one value: left alone
    some = ChromaticAutoContrast(1.0)(room.replace(rgb=rgb), seeded(0)).rgb
    factor = ((some - rgb) / (full - rgb))[(full - rgb).abs() > 0.1]
    assert factor.min() > 0
    assert factor.max() - factor.min() < 1e-4
    assert factor.max() < 1


def test_translation_and_jitter_of_colours() -> None:
    grey = PointCloud(xyz=torch.zeros(20_000, 3), rgb=torch.full((20_000, 3), 0.5))
    shifts = torch.stack([ChromaticTranslation(1.0)(grey, seeded(seed)).rgb[0] - 0.5 for seed in range(300)])
    assert shifts.abs().max() <= 0.05
    assert shifts.std().item() == pytest.approx(0.1 / math.sqrt(12), rel=0.08)
    moved = ChromaticTranslation(1.0)(grey, seeded(0)).rgb
    assert torch.equal(moved, moved[:1].expand_as(moved))
    noise = ChromaticJitter(1.0)(grey, seeded(0)).rgb - 0.5
    assert noise.std().item() == pytest.approx(0.05, rel=0.02)
    for transform in (ChromaticTranslation(1.0, 0.9), ChromaticJitter(1.0, 2.0)):
        rgb = transform(grey, seeded(0)).rgb
        assert 0 <= rgb.min() <= rgb.max() <= 1


def test_colour_drop_is_all_or_nothing(room: PointCloud) -> None:
    dropped = 0
    for seed in range(500):
        rgb = RandomColorDrop(0.2, value=0.5)(room, seeded(seed)).rgb
        dropped += int((rgb == 0.5).all())
        assert (rgb == 0.5).all() or rgb is room.rgb
    assert abs(dropped - 100) < 4 * math.sqrt(500 * 0.16)


# Sampling


def test_dropout_loses_a_fifth(room: PointCloud) -> None:
    sizes = [len(RandomDropout()(room, seeded(seed))) for seed in range(400)]
    assert set(sizes) == {8000, 6400}
    assert abs(sizes.count(6400) - 80) < 4 * math.sqrt(400 * 0.16)
    numbered = room.replace(instance=torch.arange(len(room)))
    kept = RandomDropout(0.5, 1.0)(numbered, seeded(0)).instance
    assert kept.diff().min() >= 1  # distinct, in their order


def cells(cloud: PointCloud, size: float) -> np.ndarray:
    return np.floor(cloud.xyz.numpy() / np.float32(size)).astype(np.int64)


def test_grid_sample_keeps_one_random_point_per_cell(room: PointCloud) -> None:
    sampled = GridSample(0.1)(room, seeded(0))
    np.testing.assert_array_equal(cells(sampled, 0.1), np.unique(cells(room, 0.1), axis=0))
    known = {tuple(point) for point in room.xyz.tolist()}
    assert all(tuple(point) in known for point in sampled.xyz.tolist())
    # Uniform within a cell: five points, two cells.
    cloud = PointCloud(xyz=torch.tensor([[0.1, 0, 0], [0.2, 0, 0], [0.3, 0, 0], [-0.1, 0, 0], [0.4, 0, 0]]))
    generator, counts = seeded(0), torch.zeros(5)
    for _ in range(2000):
        numbered = cloud.replace(instance=torch.arange(5))
        counts[GridSample(1.0)(numbered, generator).instance] += 1
    assert counts[3] == 2000
    assert (counts[[0, 1, 2, 4]] - 500).abs().max() < 4 * math.sqrt(2000 * 0.25 * 0.75)


@pytest.mark.parametrize("transform", [RandomDropout(0.9, 1.0), GridSample(0.5), Compose(PUBLISHED[:-2])], ids=repr)
def test_annotated_points_survive_the_loss_of_others(transform: Transform, annotated: PointCloud) -> None:
    def labels(cloud: PointCloud) -> list[tuple[int, int]]:
        rows = cloud.segment >= 0
        return sorted(zip(cloud.segment[rows].tolist(), cloud.instance[rows].tolist(), strict=True))

    for seed in range(5):
        sampled = transform(annotated, seeded(seed))
        assert len(sampled) < len(annotated)
        assert labels(sampled) == labels(annotated)
    without = annotated.replace(meta={})
    assert any(labels(transform(without, seeded(seed))) != labels(annotated) for seed in range(5))


def test_sphere_crop_keeps_the_nearest(room: PointCloud) -> None:
    cropped = SphereCrop(500)(room, seeded(3))
    generator = seeded(3)
    center = room.xyz[int(torch.randint(len(room), (), generator=generator))]
    distance = (room.xyz.double() - center.double()).norm(dim=1)
    kept = torch.isin(torch.arange(len(room)), distance.argsort()[:500])
    assert torch.equal(cropped.xyz, room.xyz[kept])
    assert torch.equal(cropped.instance, room.instance[kept])
    assert SphereCrop(8000)(room, seeded(0)) is room
    assert len(SphereCrop(None, 0.8)(room, seeded(0))) == 6400
    assert len(SphereCrop(7000, 0.8)(room, seeded(0))) == 6400


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomRotate("z", -1.0), "max_degrees must not be negative"),
        (lambda: RandomRotate("w"), "axis must be 'x', 'y' or 'z'"),
        (lambda: Rotate(1.0, "z", "middle"), "center must be 'origin' or 'box'"),
        (lambda: RandomFlip(1.5), r"probability must be between 0 and 1, got 1\.5"),
        (lambda: RandomDropout(1.0), r"ratio must be in \[0, 1\)"),
        (lambda: GridSample(0.0), r"voxel_size must be positive and finite, got 0\.0"),
        (lambda: SphereCrop(0), "max_points must be at least 1 or None"),
        (lambda: SphereCrop(1, 0.0), r"max_share must be in \(0, 1\]"),
        (lambda: ChromaticJitter(0.5, -0.1), "std must not be negative"),
        (lambda: SceneCollate(2.0), "mix_probability must be between 0 and 1"),
        (lambda: voting_views("kitti"), "kind must be 'none', 'scannet'"),
    ],
)
def test_bad_arguments_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# Mixing


def scene(rows: int, **fields: object) -> PointCloud:
    return PointCloud(xyz=torch.full((rows, 3), float(rows)), **fields)


def test_mixing_by_hand() -> None:
    first = scene(2, instance=torch.tensor([-1, 3]), segment=torch.tensor([0, 1]), meta={"id": "a"})
    second = scene(3, instance=torch.tensor([0, -1, 2]), segment=torch.tensor([5, 6, -1]), meta={"id": "b"})
    mixed = mix3d(first, second)
    assert mixed.instance.tolist() == [-1, 3, 4, -1, 6]
    assert mixed.segment.tolist() == [0, 1, 5, 6, -1]
    assert mixed.xyz[:, 0].tolist() == [2, 2, 3, 3, 3]
    assert mixed.meta == {"id": "a+b", "mixed": [{"id": "a"}, {"id": "b"}]}
    assert mix3d(first, second.replace(meta={"limited_annotations": True})).meta["limited_annotations"]
    assert mix3d(scene(0, instance=torch.zeros(0, dtype=torch.int64)), second.replace(segment=None)).instance[0] == 0
    with pytest.raises(ValueError, match="no single text"):
        mix3d(first, second.replace(text="b"))
    with pytest.raises(ValueError, match="1 of 2 clouds have no instance"):
        mix3d(first, second.replace(instance=None))


def test_collate_mixes_neighbours() -> None:
    clouds = [scene(rows) for rows in (1, 2, 3, 4, 5)]
    assert SceneCollate(1.0)(clouds, seeded(0)).lengths.tolist() == [3, 7, 5]
    assert SceneCollate(0.0)(clouds, seeded(0)).lengths.tolist() == [1, 2, 3, 4, 5]
    mixed = [len(SceneCollate(0.8)(clouds, seeded(seed))) == 3 for seed in range(500)]
    assert abs(sum(mixed) - 400) < 4 * math.sqrt(500 * 0.16)


# Test-time views


@pytest.mark.parametrize("voxel_size", [0.3, 0.05, 1e-4])
def test_fragments_take_every_point_by_turns(room: PointCloud, voxel_size: float) -> None:
    """Against the definition, cell by cell."""
    members: dict[tuple[int, ...], list[int]] = {}
    for row, cell in enumerate(map(tuple, cells(room, voxel_size).tolist())):
        members.setdefault(cell, []).append(row)
    ordered = [members[cell] for cell in sorted(members)]
    found = list(fragments(room, voxel_size))
    assert len(found) == max(map(len, ordered))
    for i, index in enumerate(found):
        assert index.tolist() == [rows[i % len(rows)] for rows in ordered]
    assert torch.equal(torch.cat(found).unique(), torch.arange(len(room)))


def test_fragments_of_nothing_and_of_the_impossible() -> None:
    assert list(fragments(PointCloud(xyz=torch.zeros(0, 3)), 0.02)) == []
    with pytest.raises(ValueError, match="voxel_size must be positive"):
        fragments(scene(3), 0.0)


def test_fragments_of_many_points_in_one_place_are_made_one_at_a_time(room: PointCloud) -> None:
    """All at once, these would be 50,000 x 2,000 indices: 800 MB; of a whole room, 40 GB."""
    xyz = torch.cat([room.xyz[:2000], room.xyz[:1].expand(50_000, 3)])
    with pytest.warns(UserWarning, match=r"50,\d+ fragments, each a pass .* --use_fragments false"):
        found = fragments(PointCloud(xyz=xyz), 0.02)
    first, second = next(found), next(found)
    assert len(first) == len(second) <= 2000
    assert not torch.equal(first, second)
    assert iter(found) is found  # nothing beyond what was asked for


@pytest.mark.parametrize(("kind", "count"), [("none", 1), ("scannet", 4), ("s3dis", 10), ("structured3d", 13)])
def test_voting_views(kind: str, count: int, room: PointCloud) -> None:
    views = [view(room, seeded(0)) for view in voting_views(kind)]
    assert len(views) == count
    keys = set()
    for view, again in zip(views, voting_views(kind), strict=True):
        assert torch.equal(view.xyz, again(room, seeded(1)).xyz)  # nothing is random
        # Where the x axis goes, and by how much it is scaled.
        basis = torch.linalg.lstsq(room.xyz.double(), view.xyz.double()).solution
        keys.add(tuple(round(value, 3) + 0.0 for value in basis[0].tolist()))
        assert basis[2, 2] == pytest.approx(basis[0].norm().item(), rel=1e-5)
    expected = {
        "none": {(1, 0)},
        "scannet": {(1, 0), (0, 1), (-1, 0), (0, -1)},
        "s3dis": {(sign * s, 0) for s in (0.9, 0.95, 1, 1.05, 1.1) for sign in (1, -1)},
        "structured3d": {(x * s, y * s) for s in (0.95, 1, 1.05) for x, y in ((1, 0), (0, 1), (-1, 0), (0, -1))},
    }[kind]
    assert keys == {(round(x, 3), round(y, 3), 0) for x, y in expected}


def test_views_of_swin3d_are_twelve_turns_about_z_that_stay_the_same(room: PointCloud) -> None:
    far = room.select(room.xyz[:, :2].norm(dim=1) > 1.0)
    assert far.normal is not None
    angles = []
    for view, again in zip(voting_views("swin3d"), voting_views("swin3d"), strict=True):
        seen = view(far, seeded(0))
        assert torch.equal(seen.xyz, again(far, seeded(1)).xyz)
        assert torch.equal(seen.xyz[:, 2], far.xyz[:, 2])
        before, after = (torch.complex(cloud.xyz[:, 0], cloud.xyz[:, 1]) for cloud in (far, seen))
        turn = (after / before)[0]
        assert turn.abs().item() == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(after, before * turn, rtol=1e-4, atol=1e-5)
        normal = torch.complex(far.normal[:, 0], far.normal[:, 1]) * turn
        assert seen.normal is not None
        torch.testing.assert_close(torch.complex(seen.normal[:, 0], seen.normal[:, 1]), normal, rtol=1e-4, atol=1e-5)
        angles.append(math.degrees(turn.angle().item()) % 360)
    angles.sort()
    gaps = [after - before for before, after in itertools.pairwise([*angles, angles[0] + 360])]
    assert len(angles) == 12
    assert max(gaps) < 120  # all around
    assert min(gaps) > 0.01  # no two the same
    assert max(gaps) - min(gaps) > 1  # drawn, not twelfths
