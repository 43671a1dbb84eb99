from __future__ import annotations

import math

import pytest
import torch

from pc3d.data import (
    Compose,
    FarthestPointSample,
    FirstPoints,
    IsotropicScaleShift,
    Jitter,
    KeepFields,
    Normalize,
    PointCloud,
    RandomPointDropout,
    RandomSubsample,
    RotateVertical,
    ScaleTranslate,
    Transform,
    TurnUp,
)

ALL = [
    RandomSubsample(64),
    RandomSubsample(4096, replacement=True),
    FarthestPointSample(64, start="random"),
    FirstPoints(64),
    Normalize(),
    ScaleTranslate(),
    IsotropicScaleShift(),
    RotateVertical(),
    Jitter(),
    RandomPointDropout(),
    RandomPointDropout(keep_length=False),
    TurnUp(),
    KeepFields(),
    Compose([RandomSubsample(64), Normalize(), ScaleTranslate()]),
]
RANDOM = [t for t in ALL if not isinstance(t, (FirstPoints, Normalize, TurnUp, KeepFields))]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("transform", ALL, ids=repr)
def test_same_seed_same_cloud_and_the_input_is_left_alone(transform: Transform, chair: PointCloud) -> None:
    before = {name: getattr(chair, name).clone() for name in ("xyz", "rgb", "normal")}
    torch.manual_seed(1)
    first = transform(chair, seeded(3))
    torch.manual_seed(2)  # the global generator must play no part
    second = transform(chair, seeded(3))
    assert torch.equal(first.xyz, second.xyz)
    if first.normal is not None:
        assert torch.equal(first.normal, second.normal)
    for name, value in before.items():
        assert torch.equal(getattr(chair, name), value), name


@pytest.mark.parametrize("transform", RANDOM, ids=repr)
def test_another_seed_gives_another_cloud(transform: Transform, chair: PointCloud) -> None:
    first, second = transform(chair, seeded(0)), transform(chair, seeded(1))
    assert first.xyz.shape != second.xyz.shape or not torch.equal(first.xyz, second.xyz)


def test_random_subsample_draws_distinct_points_uniformly() -> None:
    cloud = PointCloud(xyz=torch.arange(10.0)[:, None].expand(10, 3))
    generator, counts, first = seeded(0), torch.zeros(10), torch.zeros(10)
    for _ in range(3000):
        rows = RandomSubsample(4)(cloud, generator).xyz[:, 0].long()
        assert len(set(rows.tolist())) == 4
        counts[rows] += 1
        first[rows[0]] += 1
    # Four standard deviations of a binomial around the mean.
    assert (counts - 1200).abs().max() < 4 * math.sqrt(3000 * 0.4 * 0.6)
    assert (first - 300).abs().max() < 4 * math.sqrt(3000 * 0.1 * 0.9)


def test_sampling_more_than_there_is(chair: PointCloud, generator: torch.Generator) -> None:
    for transform in (RandomSubsample(4096), FirstPoints(4096), FarthestPointSample(4096)):
        with pytest.raises(ValueError, match=r"num_points=4096 exceeds the 2048 points of the cloud \("):
            transform(chair, generator)
    assert FarthestPointSample(4096, capped=True)(chair, generator) is chair
    drawn = RandomSubsample(4096, replacement=True)(chair, generator)
    assert len(drawn) == 4096
    known = {tuple(point) for point in chair.xyz.tolist()}
    assert all(tuple(point) in known for point in drawn.xyz.tolist())


@pytest.mark.parametrize("replacement", [False, True])
def test_sampling_from_nothing_is_refused(replacement: bool, generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="exceeds the 0 points"):
        RandomSubsample(1, replacement=replacement)(PointCloud(xyz=torch.zeros(0, 3)), generator)


def test_farthest_point_sample_is_greedy(chair: PointCloud, generator: torch.Generator) -> None:
    picked = FarthestPointSample(16)(chair, generator).xyz.double()
    everything = chair.xyz.double()
    assert torch.equal(picked[0], everything[0])
    for i in range(1, 16):
        distance = torch.cdist(everything, picked[:i]).amin(dim=1)
        own = torch.cdist(picked[i : i + 1], picked[:i]).amin()
        assert own >= distance.max() - 1e-6


def test_normalize_gives_a_centred_unit_cloud(chair: PointCloud, generator: torch.Generator) -> None:
    moved = chair.replace(xyz=chair.xyz * 7 + torch.tensor([3.0, -2.0, 9.0]), meta={"radius_m": 2.0})
    centred = Normalize()(moved, generator)
    assert centred.xyz.mean(dim=0).abs().max() < 1e-5
    assert centred.xyz.norm(dim=1).max().item() == pytest.approx(1, abs=1e-6)
    # A unit is as many metres as the largest distance from the centroid was units before.
    expected = 2.0 * (moved.xyz - moved.xyz.mean(dim=0)).norm(dim=1).max().item()
    assert centred.meta["radius_m"] == pytest.approx(expected, rel=1e-6)
    assert moved.meta["radius_m"] == 2.0
    boxed = Normalize(center="box")(moved, generator).xyz
    assert (boxed.amin(dim=0) + boxed.amax(dim=0)).abs().max() < 1e-5
    only_scaled = Normalize(center="none")(moved, generator).xyz
    torch.testing.assert_close(only_scaled * moved.xyz.norm(dim=1).max(), moved.xyz)
    assert Normalize(scale=False)(moved, generator).xyz.norm(dim=1).max() > 5


def test_normalize_of_one_place_and_of_nothing(generator: torch.Generator) -> None:
    same = PointCloud(xyz=torch.full((4, 3), 2.0))
    assert torch.equal(Normalize()(same, generator).xyz, torch.zeros(4, 3))
    many = PointCloud(xyz=torch.tensor([[0.1, 0.2, 0.3]]).repeat(10_000, 1))  # their mean is rounded
    for center in ("centroid", "box"):
        assert torch.equal(Normalize(center)(many, generator).xyz, torch.zeros(10_000, 3))
    with pytest.raises(ValueError, match="empty cloud"):
        Normalize()(PointCloud(xyz=torch.zeros(0, 3)), generator)


@pytest.mark.parametrize(
    ("transform", "low", "high", "shift"),
    [(ScaleTranslate(), 2 / 3, 3 / 2, 0.2), (IsotropicScaleShift(), 0.8, 1.25, 0.1)],
)
def test_published_scale_and_shift(transform: Transform, low: float, high: float, shift: float) -> None:
    """The map of a cloud is recovered from the images of the origin and the unit vectors."""
    probe = PointCloud(xyz=torch.cat([torch.zeros(1, 3), torch.eye(3)]).double())
    generator, scales, shifts = seeded(0), [], []
    for _ in range(2000):
        image = transform(probe, generator).xyz
        shifts.append(image[0])
        matrix = image[1:] - image[0]
        assert (matrix - matrix.diagonal().diag()).abs().max() < 1e-12
        scales.append(matrix.diagonal())
    scale, moved = torch.stack(scales), torch.stack(shifts)
    assert scale.min() >= low
    assert scale.max() <= high
    assert moved.abs().max() <= shift
    # Uniform on the whole interval: mean and variance, per axis.
    for values, a, b in ((scale, low, high), (moved, -shift, shift)):
        assert (values.mean(dim=0) - (a + b) / 2).abs().max() < 4 * (b - a) / math.sqrt(12 * 2000)
        assert (values.var(dim=0) / ((b - a) ** 2 / 12) - 1).abs().max() < 0.1
    axes_agree = bool(torch.allclose(scale[:, 0], scale[:, 1]))
    assert axes_agree is isinstance(transform, IsotropicScaleShift)


@pytest.mark.parametrize("transform", [ScaleTranslate(), RotateVertical("x"), RotateVertical("y"), RotateVertical("z")])
def test_normals_stay_normal(transform: Transform, generator: torch.Generator) -> None:
    """The image of a tilted plane has the image normals: every edge stays perpendicular to them."""
    normal = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, -0.5]).double(), dim=0)
    points = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    points = points - (points @ normal)[:, None] * normal
    moved = transform(PointCloud(xyz=points, normal=normal.expand(50, 3)), seeded(5))
    edges = moved.xyz[1:] - moved.xyz[:1]
    assert (edges @ moved.normal[0]).abs().max() < 1e-12
    assert (moved.normal.norm(dim=1) - 1).abs().max() < 1e-12


def test_rotation_about_y_follows_the_published_matrix() -> None:
    angle = float(torch.rand((), generator=seeded(9), dtype=torch.float64)) * 2 * math.pi
    c, s = math.cos(angle), math.sin(angle)
    matrix = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)
    points = torch.randn(20, 3, generator=seeded(0), dtype=torch.float64)
    rotated = RotateVertical("y")(PointCloud(xyz=points), seeded(9)).xyz
    torch.testing.assert_close(rotated, points @ matrix)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_rotation_keeps_height_and_lengths_and_is_proper(axis: str) -> None:
    identity = PointCloud(xyz=torch.eye(3, dtype=torch.float64))
    matrix = RotateVertical(axis)(identity, seeded(1)).xyz
    up = "xyz".index(axis)
    assert torch.equal(matrix[:, up], identity.xyz[:, up])
    torch.testing.assert_close(matrix @ matrix.T, identity.xyz)
    assert torch.linalg.det(matrix).item() == pytest.approx(1)


def test_rotation_angles_go_all_around() -> None:
    point = PointCloud(xyz=torch.tensor([[1.0, 0.0, 0.0]]).double())
    generator = seeded(0)
    angles = torch.tensor([math.atan2(*RotateVertical()(point, generator).xyz[0, [1, 0]].tolist()) for _ in range(800)])
    histogram = torch.histc(angles, bins=8, min=-math.pi, max=math.pi)
    assert (histogram - 100).abs().max() < 4 * math.sqrt(800 / 8 * 7 / 8)


def test_the_largest_angle_of_a_rotation_is_in_degrees() -> None:
    point = PointCloud(xyz=torch.tensor([[1.0, 0.0, 0.0]]).double())
    quarter = RotateVertical(max_degrees=90)
    x, y, _ = torch.cat([quarter(point, seeded(seed)).xyz for seed in range(200)]).T
    # All in one quarter of the circle, and close to both of its ends.
    assert (x > 0).all()
    assert (y <= 0).all()
    assert x.max() > 0.999
    assert x.min() < 0.05


def test_jitter_has_the_published_spread(generator: torch.Generator) -> None:
    origin = PointCloud(xyz=torch.zeros(20_000, 3))
    noise = Jitter()(origin, generator).xyz
    assert noise.abs().max() <= 0.05
    assert noise.std().item() == pytest.approx(0.01, rel=0.02)
    assert Jitter(std=1.0, clip=0.05)(origin, generator).xyz.abs().max().item() == pytest.approx(0.05)


def test_dropout_keeps_the_first_point_and_some_share(chair: PointCloud) -> None:
    shares = []
    for seed in range(200):
        kept = RandomPointDropout(keep_length=False)(chair, seeded(seed))
        assert torch.equal(kept.xyz[0], chair.xyz[0])
        shares.append(1 - len(kept) / len(chair))
        replaced = RandomPointDropout()(chair, seeded(seed))
        assert len(replaced) == len(chair)
        lost = (replaced.xyz != chair.xyz).any(dim=1)
        assert torch.equal(replaced.xyz[lost], chair.xyz[:1].expand(int(lost.sum()), 3))
        assert len(chair) - int(lost.sum()) == pytest.approx(len(kept), abs=2)
    assert max(shares) <= 0.9
    assert sum(shares) / 200 == pytest.approx(0.875 / 2, abs=0.08)


def test_turning_up_is_a_rotation_and_can_be_undone(chair: PointCloud, generator: torch.Generator) -> None:
    point = PointCloud(xyz=torch.tensor([[1.0, 2.0, 3.0]]))
    assert TurnUp("y", "z")(point, generator).xyz.tolist() == [[1.0, -3.0, 2.0]]
    back = TurnUp("y", "z")(TurnUp("z", "y")(chair, generator), generator)
    assert torch.equal(back.xyz, chair.xyz)
    assert torch.equal(back.normal, chair.normal)
    for source in "xyz":
        for target in "xyz":
            matrix = TurnUp(source, target)(PointCloud(xyz=torch.eye(3)), generator).xyz
            assert torch.linalg.det(matrix).item() == 1
            assert matrix["xyz".index(source), "xyz".index(target)] == 1


def test_keep_fields(chair: PointCloud, generator: torch.Generator) -> None:
    kept = KeepFields(["label", "rgb"])(chair, generator)
    assert kept.normal is None
    assert kept.text is None
    assert kept.rgb is chair.rgb
    assert kept.label == chair.label
    assert kept.meta == chair.meta


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomSubsample(0), "num_points must be at least 1, got 0"),
        (lambda: FarthestPointSample(4, start="last"), "start must be 'first' or 'random', got 'last'"),
        (lambda: Normalize(center="middle"), "got 'middle'"),
        (lambda: ScaleTranslate(scale=(1.5, 0.5)), "scale must be a pair 0 < low <= high"),
        (lambda: ScaleTranslate(shift=-1), "shift must not be negative"),
        (lambda: IsotropicScaleShift(scale=(0.0, 1.0)), "scale must be a pair 0 < low <= high"),
        (lambda: RotateVertical("w"), "axis must be 'x', 'y' or 'z', got 'w'"),
        (lambda: RotateVertical(max_degrees=-1), "max_degrees must not be negative"),
        (lambda: Jitter(std=-1), "std and clip must not be negative"),
        (lambda: RandomPointDropout(1.0), r"max_ratio must be in \[0, 1\)"),
        (lambda: TurnUp("y", "up"), "target must be 'x', 'y' or 'z', got 'up'"),
        (lambda: KeepFields(["colour"]), r"got \['colour'\]"),
    ],
)
def test_bad_arguments_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_dropout_of_coordinates_alone_leaves_colors_in_place() -> None:
    """As the released code of OpenShape: the colour of a lost point stays where no point is any more."""
    cloud = PointCloud(torch.arange(300.0).view(100, 3), rgb=torch.rand(100, 3))
    dropped = RandomPointDropout(coordinates_only=True)(cloud, torch.Generator().manual_seed(1))
    whole = RandomPointDropout()(cloud, torch.Generator().manual_seed(1))
    assert torch.equal(dropped.xyz, whole.xyz)
    lost = (dropped.xyz == cloud.xyz[0]).all(1)
    assert 1 < lost.sum() < 100
    assert dropped.rgb is cloud.rgb
    assert whole.rgb is not None
    assert not torch.equal(whole.rgb, cloud.rgb)
    with pytest.raises(ValueError, match="coordinates_only overwrites points, keep_length=False removes them"):
        RandomPointDropout(keep_length=False, coordinates_only=True)
