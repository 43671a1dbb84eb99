"""Meshes of polygons that are not convex."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pc3d.data import read_points

AREAS = {"an arrow": 1, "a comb": 11, "a frame": 8}
CORNERS = {
    "an arrow": [(0, 0), (2, 1), (0, 2), (1, 1)],
    "a comb": [(0, 0), (5, 0), (5, 3), (4, 3), (4, 1), (3, 1), (3, 3), (2, 3), (2, 1), (1, 1), (1, 3), (0, 3)],
    # With a bridge from a corner to the hole, which two edges lie on.
    "a frame": [(0, 0), (3, 0), (3, 3), (0, 3), (0, 0), (1, 1), (1, 2), (2, 2), (2, 1), (1, 1)],
}


def covers(shape: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if shape == "an arrow":
        return ((y - 1).abs() > 0.999 - x) & ((y - 1).abs() < 1.001 - x / 2)
    if shape == "a comb":
        return (y < 1.001) | (x % 2 < 1.001) | (x % 2 > 1.999)
    return ((x - 1.5).abs() > 0.499) | ((y - 1.5).abs() > 0.499)


def mesh(ending: str, corners: list[tuple[float, float]]) -> str:
    """The polygon, and far away a triangle and a convex polygon of five corners, each of area 1."""
    flat = [*corners, *((50 + x, y) for x, y in ((0, 0), (2, 0), (0, 1), (3, 0), (4, 0), (4, 1), (3.5, 1), (3, 1)))]
    places = [f"{x} {y} {x + 2 * y}" for x, y in flat]
    n = len(corners)
    faces = [range(n), range(n, n + 3), range(n + 3, n + 8)]
    if ending == ".obj":
        rows = [f"v {place}" for place in places]
        return "\n".join([*rows, *("f " + " ".join(str(k + 1) for k in face) for face in faces), ""])
    rows = [*places, *(f"{len(face)} " + " ".join(map(str, face)) for face in faces), ""]
    if ending == ".off":
        return "\n".join(["OFF", f"{len(flat)} 3 0", *rows])
    head = ["ply", "format ascii 1.0", f"element vertex {len(flat)}", *(f"property float {axis}" for axis in "xyz")]
    return "\n".join([*head, "element face 3", "property list uchar int vertex_indices", "end_header", *rows])


@pytest.mark.parametrize("ending", [".obj", ".off", ".ply"])
@pytest.mark.parametrize("turned", range(3))
@pytest.mark.parametrize("shape", AREAS)
def test_no_sample_lies_in_a_notch(tmp_path: Path, shape: str, turned: int, ending: str) -> None:
    """Whichever corner is the first, and whichever way the polygon goes round."""
    corners = CORNERS[shape][turned:] + CORNERS[shape][:turned]
    (tmp_path / f"a{ending}").write_text(mesh(ending, corners[::-1] if turned == 1 else corners))
    xyz = read_points(tmp_path / f"a{ending}", num_points=4000).xyz
    torch.testing.assert_close(xyz[:, 2], xyz[:, 0] + 2 * xyz[:, 1], atol=1e-4, rtol=0)
    x, y = xyz[xyz[:, 0] < 40, :2].T
    assert covers(shape, x, y).all()
    share = AREAS[shape] / (AREAS[shape] + 2)
    assert abs(len(x) / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5
    # The notches apart, all of the polygon is covered.
    low, high = torch.tensor(corners, dtype=torch.float32).aminmax(dim=0)
    seen = torch.stack([x, y], dim=1)
    assert (seen.amin(0) < low + 0.2).all()
    assert (seen.amax(0) > high - 0.2).all()
