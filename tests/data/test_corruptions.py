"""Corruptions: counts, bounds and magnitudes as defined, worse with the level, the same for the same seed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pc3d.data import CORRUPTIONS, MODELNET_C, SEVERITIES, Corrupt, Household, Normalize, PointCloud


@pytest.fixture(scope="module")
def cloud() -> PointCloud:
    return Household("test").load(3).select(slice(0, 1024))


def corrupt(kind: str, severity: int, cloud: PointCloud, seed: int = 0) -> Tensor:
    transform: Any = Corrupt(kind, severity)  # type: ignore[arg-type]
    return transform(cloud, torch.Generator().manual_seed(seed)).xyz


def test_the_seven_of_the_benchmark_are_there() -> None:
    assert MODELNET_C == ("scale", "jitter", "rotate", "drop_global", "drop_local", "add_global", "add_local")
    assert (*MODELNET_C, "density", "drop_color", "occlusion") == CORRUPTIONS


@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        ("scale", (1024,) * 5),
        ("jitter", (1024,) * 5),
        ("rotate", (1024,) * 5),
        ("drop_global", (768, 640, 512, 384, 256)),
        ("drop_local", (924, 824, 724, 624, 524)),
        ("add_global", (1034, 1044, 1054, 1064, 1074)),
        ("add_local", (1124, 1224, 1324, 1424, 1524)),
        ("density", (512, 256, 128, 85, 64)),
        ("drop_color", (1024,) * 5),
        ("occlusion", (922, 819, 717, 614, 512)),
    ],
)
def test_counts_are_exact_at_every_level(kind: str, counts: tuple[int, ...], cloud: PointCloud) -> None:
    for seed in range(3):
        assert tuple(len(corrupt(kind, severity, cloud, seed)) for severity in SEVERITIES) == counts


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_same_seed_same_cloud_and_the_given_one_is_left_alone(kind: str, cloud: PointCloud) -> None:
    before = cloud.xyz.clone()
    first, again, other = (corrupt(kind, 3, cloud, seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert kind in ("density", "drop_color") or first.shape != other.shape or not torch.equal(first, other)
    assert torch.equal(cloud.xyz, before)
    assert torch.isfinite(first).all()
    assert first.dtype == cloud.xyz.dtype


@pytest.mark.parametrize("severity", SEVERITIES)
def test_scale_stays_within_its_bounds_and_fills_the_unit_sphere(severity: int, cloud: PointCloud) -> None:
    largest = 1.5 + 0.1 * severity
    for seed in range(5):
        ratio = corrupt("scale", severity, cloud, seed) / cloud.xyz
        ratio = ratio[(cloud.xyz.abs() > 0.05).all(1)]
        # Every axis has one factor; any two are at most s / (1 / s) apart.
        torch.testing.assert_close(ratio.amin(0), ratio.amax(0), atol=0, rtol=1e-4)
        assert ratio.mean(0).max() / ratio.mean(0).min() <= largest**2 * (1 + 1e-4)
        xyz = corrupt("scale", severity, cloud, seed)
        torch.testing.assert_close(xyz.norm(dim=1).max(), torch.tensor(1.0))
    centred = Normalize("box")(cloud, torch.Generator())
    xyz = corrupt("scale", severity, centred)
    torch.testing.assert_close(xyz.amin(0), -xyz.amax(0), atol=1e-6, rtol=0)  # the box is still centred


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jitter_has_its_deviation(severity: int, cloud: PointCloud) -> None:
    noise = corrupt("jitter", severity, cloud) - cloud.xyz
    # 3,072 draws: the standard error of a deviation is 1.3 %.
    assert float(noise.std()) == pytest.approx(0.01 * severity, rel=0.06)
    assert abs(float(noise.mean())) < 0.001 * severity


@pytest.mark.parametrize("severity", SEVERITIES)
def test_rotations_are_proper_and_their_angles_bounded(severity: int) -> None:
    corners = PointCloud(torch.eye(3, dtype=torch.float64))
    bound = math.pi / 30 * severity
    largest = 0.0
    for seed in range(60):
        matrix = corrupt("rotate", severity, corners, seed)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(3, dtype=torch.float64))
        assert float(torch.det(matrix)) == pytest.approx(1)
        # Angles of Rz Ry Rx, read from its entries.
        y = math.asin(-float(matrix[2, 0]))
        x = math.atan2(float(matrix[2, 1]), float(matrix[2, 2]))
        z = math.atan2(float(matrix[1, 0]), float(matrix[0, 0]))
        assert max(abs(x), abs(y), abs(z)) <= bound + 1e-9
        largest = max(largest, abs(x), abs(y), abs(z))
    assert largest > 0.9 * bound


def marked(cloud: PointCloud) -> PointCloud:
    """The cloud with fields that say which point each is."""
    rows = torch.arange(len(cloud))
    normal = torch.nn.functional.normalize(cloud.xyz.flip(1) + 0.1, dim=1)
    feature = rows[:, None].repeat(1, 2).float()
    return cloud.replace(normal=normal, segment=rows, instance=rows + 7, feature=feature)


@pytest.mark.parametrize("kind", ["drop_global", "drop_local", "density", "occlusion"])
def test_what_is_left_was_there_and_keeps_its_fields(kind: str, cloud: PointCloud) -> None:
    before = marked(cloud)
    done = Corrupt(kind, 4)(before, torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    assert done.segment is not None
    assert 0 < len(done.segment.unique()) == len(done) < len(before)
    for name in ("xyz", "rgb", "normal", "instance", "feature"):
        assert torch.equal(getattr(done, name), getattr(before, name)[done.segment]), name


@pytest.mark.parametrize("kind", ["scale", "jitter", "rotate"])
def test_points_that_move_keep_colors_and_parts(kind: str, cloud: PointCloud) -> None:
    before = marked(cloud)
    done = Corrupt(kind, 4)(before, torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    assert not torch.equal(done.xyz, before.xyz)
    for name in ("rgb", "segment", "instance", "feature"):
        assert torch.equal(getattr(done, name), getattr(before, name)), name


def test_normals_stay_perpendicular_to_the_surface() -> None:
    """A triangle through three points, and its normal by the cross product, before and after."""
    corners = torch.tensor([[0.1, 0.2, 0.9], [0.5, -0.4, 0.3], [-0.6, 0.1, 0.2]], dtype=torch.float64)

    def normals(xyz: Tensor) -> Tensor:
        across = torch.linalg.cross(xyz[1] - xyz[0], xyz[2] - xyz[0])
        return torch.nn.functional.normalize(across, dim=0).repeat(3, 1)

    for kind in ("rotate", "scale"):
        done = Corrupt(kind, 5)(PointCloud(corners, normal=normals(corners)), torch.Generator().manual_seed(3))  # type: ignore[arg-type]
        assert done.normal is not None
        torch.testing.assert_close(done.normal, normals(done.xyz))
    still = Corrupt("jitter", 5)(PointCloud(corners, normal=normals(corners)), torch.Generator())
    assert still.normal is not None
    assert torch.equal(still.normal, normals(corners))


@pytest.mark.parametrize("kind", ["add_global", "add_local"])
def test_added_points_are_grey_and_of_no_part(kind: str, cloud: PointCloud) -> None:
    before = marked(cloud)
    done = Corrupt(kind, 2)(before, torch.Generator())  # type: ignore[arg-type]
    assert done.rgb is not None
    assert before.rgb is not None
    assert torch.equal(done.rgb[:1024], before.rgb)
    assert (done.rgb[1024:] == 0.4).all()
    for name in ("segment", "instance"):
        assert getattr(done, name).tolist() == [*getattr(before, name).tolist(), *[-1] * (len(done) - 1024)]
    assert (done.normal, done.feature, done.label) == (None, None, cloud.label)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_lost_colors_are_grey_and_nothing_else_changes(severity: int, cloud: PointCloud) -> None:
    before = marked(cloud).replace(rgb=cloud.xyz.abs().clamp(0.01, 0.39))
    done = Corrupt("drop_color", severity)(before, torch.Generator().manual_seed(2))
    assert done.rgb is not None
    assert before.rgb is not None
    grey = (done.rgb == 0.4).all(1)
    assert int(grey.sum()) == round(1024 * 0.2 * severity)
    assert torch.equal(done.rgb[~grey], before.rgb[~grey])
    assert severity == 5 or not grey[: int(grey.sum())].all()
    for name in ("xyz", "normal", "segment"):
        assert torch.equal(getattr(done, name), getattr(before, name))
    with pytest.raises(ValueError, match="drop_color needs a cloud with colours"):
        Corrupt("drop_color", severity)(before.replace(rgb=None), torch.Generator())


def test_local_loss_makes_holes_where_global_loss_does_not(cloud: PointCloud) -> None:
    """How far the points of the cloud are from what is left of it, with about as many lost."""
    scattered = corrupt("drop_global", 3, cloud)  # 512 lost
    holes = corrupt("drop_local", 5, cloud)  # 500 lost
    distance = [torch.cdist(cloud.xyz, left).amin(1).mean() for left in (scattered, holes)]
    assert distance[1] > 2 * distance[0]


@pytest.mark.parametrize("seed", range(4))
def test_from_one_side_the_far_half_of_a_ball_is_hidden(seed: int) -> None:
    ball = torch.nn.functional.normalize(torch.randn(1024, 3, generator=torch.Generator().manual_seed(9)), dim=1)
    left = corrupt("occlusion", 5, PointCloud(ball), seed)
    viewer = torch.nn.functional.normalize(left.mean(0), dim=0)
    # Around the rim both halves are seen; away from it all of the near side is left and nothing of the far one.
    assert ((left @ viewer) > 0.5).sum() == ((ball @ viewer) > 0.5).sum()
    assert not ((left @ viewer) < -0.5).any()
    # At a mild level it is the deepest points that are lost, those at the far end of the line of sight.
    mild = corrupt("occlusion", 1, PointCloud(ball), seed)
    lost = ball[~(ball[:, None] == mild[None]).all(2).any(1)]
    assert len(lost) == 102
    assert (lost @ viewer).max() < -0.6


def test_what_stands_behind_a_wall_is_lost_first() -> None:
    """Two squares one behind the other, seen from above or below: nothing of the nearer one is lost."""
    square = torch.rand(500, 2, generator=torch.Generator().manual_seed(2)) * 1.2 - 0.6
    walls = torch.cat([torch.cat([square, torch.full((500, 1), z)], 1) for z in (-0.1, 0.1)])
    for seed in (0, 4, 7):  # whose viewers look at the squares rather than along them
        left = corrupt("occlusion", 3, PointCloud(walls), seed)
        counts = sorted(int((left[:, 2] == z).sum()) for z in walls[:, 2].unique())
        assert counts == [200, 500], seed


@pytest.mark.parametrize("kind", ["add_global", "add_local"])
def test_added_points_are_in_the_unit_sphere_behind_the_others(kind: str, cloud: PointCloud) -> None:
    xyz = corrupt(kind, 5, cloud)
    assert torch.equal(xyz[:1024], cloud.xyz)
    added = xyz[1024:]
    assert added.norm(dim=1).max() <= 1 + 1e-6
    nearest = torch.cdist(added, cloud.xyz).amin(1)
    # Clusters lie around the surface, with deviations up to 0.125 per axis; uniform points do not.
    assert (nearest.mean() < 0.2) if kind == "add_local" else (nearest.max() > 0.2)


def test_uniform_points_fill_the_ball_evenly() -> None:
    many = PointCloud(torch.zeros(100_000, 3))
    radius = corrupt("add_global", 5, many)[100_000:].norm(dim=1)
    assert len(radius) == round(50 * 100_000 / 1024)
    # P(r < t) = t^3.
    for t in (0.5, 0.8):
        assert float((radius < t).float().mean()) == pytest.approx(t**3, abs=0.03)


def test_even_thinning_is_even(cloud: PointCloud) -> None:
    left = corrupt("density", 3, cloud)
    spacing = torch.cdist(left, left).fill_diagonal_(9).amin(1)
    prefix = torch.cdist(cloud.xyz[:128], cloud.xyz[:128]).fill_diagonal_(9).amin(1)
    assert spacing.min() > 2 * prefix.min()


def test_counts_follow_the_number_of_points(cloud: PointCloud) -> None:
    half = cloud.select(slice(0, 512))
    assert len(corrupt("drop_local", 2, half)) == 512 - 100
    assert len(corrupt("add_local", 2, half)) == 512 + 100
    for kind in CORRUPTIONS:
        assert len(corrupt(kind, 5, cloud.select(slice(0, 1)))) >= 1


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="kind must be one of scale"):
        Corrupt("blur", 1)  # type: ignore[arg-type]
    for severity in (0, 6):
        with pytest.raises(ValueError, match="severity must be one of"):
            Corrupt("scale", severity)
    with pytest.raises(ValueError, match="empty cloud"):
        Corrupt("scale", 1)(PointCloud(torch.zeros(0, 3)), torch.Generator())
