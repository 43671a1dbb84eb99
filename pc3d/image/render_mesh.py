"""Render meshes by ray casting with Embree, without a display or OpenGL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pc3d._extras import MissingExtraError, require
from pc3d.image.cameras import Camera
from pc3d.image.meshes import Mesh
from pc3d.image.rendering import Rendering, shade

_RAYS = 1_000_000  # at once, which bounds the memory


class MeshRenderer:
    """Renders one mesh from any number of cameras; the search structure is built once.

    Args:
        mesh: what to draw.

    Raises:
        ImportError: embreex is not installed, or has no build for this machine (there is none for Linux on ARM):
            :func:`pc3d.image.render_points` draws sampled points anywhere.
    """

    def __init__(self, mesh: Mesh) -> None:
        try:
            require("embreex", extra="image", purpose="rendering meshes")
            caster = require("trimesh.ray.ray_pyembree", extra="image", purpose="rendering meshes")
        except MissingExtraError as error:
            raise MissingExtraError(
                f"{error}; where embreex has no build (Linux on ARM), sample points and use render_points"
            ) from error
        trimesh = require("trimesh", extra="image")
        self.mesh = mesh
        self._corners = mesh.vertices[mesh.faces]
        edges = self._corners[:, 1:] - self._corners[:, :1]
        self._normal = torch.linalg.cross(edges[:, 0], edges[:, 1])
        # Embree computes in float32, which a mesh far from the origin would not fit.
        self._middle = (mesh.vertices.amin(0) + mesh.vertices.amax(0)) / 2
        moved = (mesh.vertices - self._middle).numpy()
        self._caster: Any = caster.RayMeshIntersector(trimesh.Trimesh(moved, mesh.faces.numpy(), process=False))

    def first_hit(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find the first hit of rays on the mesh.

        Embree finds the triangle in float32; place and distance are computed in float64 from the triangle's plane.

        Args:
            origins, directions: ``(M, 3)``.

        Returns:
            ``(M,)`` int64 face or -1, ``(M,)`` float64 distance in lengths of the direction (0 for none), and ``(M,
            3)`` float64 barycentric weights.
        """
        parts = [
            self._caster.intersects_first((o - self._middle).numpy(), d.numpy())
            for o, d in zip(origins.split(_RAYS), directions.split(_RAYS), strict=True)
        ]
        face = torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64))
        hit = face >= 0
        distance = torch.zeros(len(face), dtype=torch.float64)
        weight = torch.zeros(len(face), 3, dtype=torch.float64)
        corners, normal = self._corners[face[hit]], self._normal[face[hit]]
        start, way = origins[hit].double(), directions[hit].double()
        distance[hit] = ((corners[:, 0] - start) * normal).sum(1) / (way * normal).sum(1)
        place = start + way * distance[hit][:, None]
        weight[hit] = _barycentric(place, corners, normal)
        return face, distance, weight

    def render(self, camera: Camera, supersample: int = 2) -> Rendering:
        """One picture. Depth, normal and face are those of the pixels' centres; colour and alpha are averaged.

        Args:
            camera: where from.
            supersample: rays per pixel along each axis for the colour; 1 takes that of the centre.

        Raises:
            ValueError: ``supersample`` is below 1.
        """
        if supersample < 1:
            raise ValueError(f"supersample must be at least 1, got {supersample}")
        origins, directions = camera.rays(camera.pixel_centers())
        face, depth, weight = self.first_hit(origins, directions)
        normal = self._turned(face, directions)
        if supersample == 1:
            color = self._colors(face, weight, normal, directions)
        else:
            fine = camera.resized(camera.width * supersample, camera.height * supersample)
            origins, directions = fine.rays(fine.pixel_centers())
            fine_face, _, fine_weight = self.first_hit(origins, directions)
            fine_color = self._colors(fine_face, fine_weight, self._turned(fine_face, directions), directions)
            blocks = fine_color.reshape(camera.height, supersample, camera.width, supersample, 4)
            color = blocks.mean(dim=(1, 3)).reshape(-1, 4)
        # Colours were weighted by alpha, so that the edge of the object does not darken.
        solid = color[:, :3] / color[:, 3:].clamp(min=1e-9)
        rgba = torch.cat([solid, color[:, 3:]], dim=1)
        shape = (camera.height, camera.width)
        return Rendering(
            camera,
            (rgba * 255).round().clamp(0, 255).to(torch.uint8).reshape(*shape, 4).numpy(),
            depth.reshape(shape),
            normal.reshape(*shape, 3),
            face.reshape(shape),
        )

    def sees(self, camera: Camera, xyz: Tensor, tolerance: float = 1e-4) -> Tensor:
        """Which points on the surface the camera sees, exactly: nothing blocks the ray to the point.

        Args:
            camera: where from.
            xyz: ``(N, 3)`` points on the mesh.
            tolerance: of their distance from it, as a part of their depth.

        Returns:
            ``(N,)`` bool; points outside the picture are not seen.
        """
        uv, depth = camera.project(xyz)
        inside = camera.inside(uv, depth)
        rows = torch.nonzero(inside).flatten()
        face, distance, _ = self.first_hit(*camera.rays(uv[rows]))
        inside[rows] = (face < 0) | (distance >= depth[rows] * (1 - tolerance))
        return inside

    def _turned(self, face: Tensor, directions: Tensor) -> Tensor:
        """Unit normals, of whichever side looks at the camera; 0 where there is no face."""
        normal = normalize(self._normal[face.clamp(min=0)], dim=1)
        away = (normal * directions).sum(dim=1, keepdim=True) > 0
        return torch.where((face >= 0)[:, None], torch.where(away, -normal, normal), 0.0)

    def _colors(self, face: Tensor, weight: Tensor, normal: Tensor, directions: Tensor) -> Tensor:
        """``(M, 4)`` shaded colour times alpha, and alpha."""
        color = torch.zeros(len(face), 4)
        hit = face >= 0
        light = shade(normal[hit], -normalize(directions[hit], dim=1)).float()
        color[hit, :3] = self.mesh.color_at(face[hit], weight[hit]) * light[:, None]
        color[hit, 3] = 1.0
        return color


def _barycentric(place: Tensor, corners: Tensor, normal: Tensor) -> Tensor:
    """Weights ``(M, 3)`` of places in the planes of triangles, cut off at the triangles' edges."""
    area = (normal * normal).sum(dim=1)
    edges = [(1, 2), (2, 0), (0, 1)]
    parts = [
        (torch.linalg.cross(corners[:, b] - corners[:, a], place - corners[:, a]) * normal).sum(dim=1) / area
        for a, b in edges
    ]
    weight = torch.stack(parts, dim=1).clamp(0, 1)
    return weight / weight.sum(dim=1, keepdim=True)


def render_mesh(mesh: Mesh, cameras: Sequence[Camera], supersample: int = 2) -> list[Rendering]:
    """Render pictures of a mesh with depth, normals and the face behind every pixel, see :class:`MeshRenderer`."""
    renderer = MeshRenderer(mesh)
    return [renderer.render(camera, supersample) for camera in cameras]
