"""Projection, colours and figures of point clouds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pc3d.data import Household
from pc3d.viz import ReconstructionRow, height_colors, project, reconstruction_figure, shade


def test_projection_from_the_front_and_from_above() -> None:
    xyz = np.eye(3)
    flat, nearness = project(xyz, azimuth=0, elevation=0)  # camera on the x axis: y goes right, z goes up
    np.testing.assert_allclose(flat, [[0, 0], [1, 0], [0, 1]], atol=1e-12)
    np.testing.assert_allclose(nearness, [1, 0, 0], atol=1e-12)
    _, nearness = project(xyz, azimuth=0, elevation=90)
    np.testing.assert_allclose(nearness, [0, 0, 1], atol=1e-12)


def test_projection_keeps_lengths() -> None:
    xyz = np.random.default_rng(0).normal(size=(50, 3))
    flat, nearness = project(xyz, azimuth=33, elevation=21)
    np.testing.assert_allclose((flat**2).sum(1) + nearness**2, (xyz**2).sum(1))
    with pytest.raises(ValueError, match=r"\(N, 3\)"):
        project(xyz[:, :2])


def test_height_colours_depend_on_height_alone() -> None:
    xyz = np.array([[0, 0, 0], [5, 5, 0], [0, 0, 1], [0, 0, 2.0]])
    colors = height_colors(xyz)
    assert colors.shape == (4, 3)
    np.testing.assert_array_equal(colors[0], colors[1])
    assert len(np.unique(colors, axis=0)) == 3
    assert height_colors(np.zeros((2, 3))).shape == (2, 3)
    assert height_colors(np.zeros((0, 3))).shape == (0, 3)


def test_shade_fades_the_far_and_leaves_the_near() -> None:
    colors = np.full((3, 3), 0.2)
    faded = shade(colors, np.array([0.0, 1.0, 2.0]), strength=1.0)
    np.testing.assert_allclose(faded[:, 0], [1.0, 0.6, 0.2])
    np.testing.assert_array_equal(shade(colors, np.ones(3)), colors)


def test_reconstruction_figure_draws_every_point_of_real_objects(tmp_path: Path) -> None:
    clouds = [Household("test").load(index) for index in (10, 50)]
    rows = [
        ReconstructionRow(c.text or "", c.xyz.numpy(), c.xyz[:500].numpy(), c.xyz[500:900].numpy(), c.rgb.numpy())
        for c in clouds
        if c.rgb is not None
    ]
    figure = reconstruction_figure(rows, title="two objects")
    drawn = [sum(len(points.get_offsets()) for points in axes.collections) for axes in figure.axes]
    assert drawn == [2048, 2048, 2548, 2548, 900, 900]
    assert [axes.get_title() for axes in figure.axes[:2]] == [row.title for row in rows]
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 20_000
    with pytest.raises(ValueError, match="nothing to draw"):
        reconstruction_figure([])
