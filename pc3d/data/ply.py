"""PLY files: points, and meshes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc3d._extras import require
from pc3d.data.dataset import BadFileError
from pc3d.data.file_fields import Array, Fields, beside, named_colours, named_fields
from pc3d.data.ply_elements import Element, Lists, PlyFile, num_rows, read_ply
from pc3d.data.polygons import cut

_TEXTURE_COORDINATES = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"))
_NO_LISTS = Lists(np.empty(0, np.int64), np.empty(0, np.int64))


def ply_points(path: Path, file: PlyFile, labels: Sequence[str] = ()) -> Fields:
    """The vertices of a file, with their colours and normals as far as it has them.

    Args:
        path: of the file.
        file: what it holds.
        labels: see :func:`pc3d.data.file_fields.named_fields`.

    Raises:
        BadFileError: there are no vertices, or no classes that were asked for.
    """
    vertex = file.elements.get("vertex")
    if vertex is None:
        raise BadFileError(path, f"has no element 'vertex', but {list(file.elements)}")
    fields = named_fields(path, _columns(vertex), labels)
    if len(fields["xyz"]) == 0:
        raise BadFileError(path, "holds no points")
    return fields


def _columns(element: Element) -> dict[str, Array]:
    return {name: values for name, values in element.items() if not isinstance(values, Lists)}


class Triangles:
    """The polygons of a PLY file cut into triangles, or its strips of triangles where it has no polygons.

    Attributes:
        vertices: ``(F, 3)`` int64 vertices of each triangle.
        polygon: ``(F,)`` int64 which polygon a triangle is of.
        corner: ``(F, 3)`` int64 which corners of that polygon it has.

    Raises:
        BadFileError: a corner is not a vertex.
    """

    def __init__(self, path: Path, file: PlyFile) -> None:
        face = file.elements.get("face", {})
        lists = face.get("vertex_indices", face.get("vertex_index"))
        if not isinstance(lists, Lists):
            strips = file.elements.get("tristrips", {}).get("vertex_indices")
            lists = _of_strips(strips) if isinstance(strips, Lists) else _NO_LISTS
        lengths, corners = lists
        num_vertices = num_rows(file.elements.get("vertex", {}))
        if corners.size and not 0 <= corners.min() <= corners.max() < num_vertices:
            raise BadFileError(
                path, f"has faces with vertices {corners.min()} to {corners.max()}, of which it has {num_vertices}"
            )
        corners = corners.astype(np.int64)
        xyz = ply_points(path, file)["xyz"] if (lengths > 3).any() else np.empty((0, 3))
        self.polygon, self.corner = cut(lengths, corners, xyz)
        self.vertices = corners[_begins(lengths)[self.polygon][:, None] + self.corner]
        self._lengths = lengths

    def __len__(self) -> int:
        return len(self.polygon)

    def texture_coordinates(self, file: PlyFile) -> tuple[Array, Array] | None:
        """Where the corners lie in which picture: ``(F, 3, 2)`` and ``(F,)``, -1 for none; None without any."""
        vertex, face = file.elements["vertex"], file.elements.get("face", {})
        lists, number = face.get("texcoord"), face.get("texnumber")
        if isinstance(lists, Lists):
            complete = (lists.lengths == 2 * self._lengths)[self.polygon]
            place = np.where(complete, _begins(lists.lengths)[self.polygon], 0)[:, None] + 2 * self.corner
            # Polygons without coordinates take any, which are not looked at.
            place = np.where(complete[:, None], place, 0)
            values = np.append(lists.values, [0.0, 0.0])
            picture = np.zeros(len(self), np.int64) if number is None else np.asarray(number)[self.polygon]
            return np.stack([values[place], values[place + 1]], axis=2), np.where(complete, picture, -1)
        for names in _TEXTURE_COORDINATES:
            if set(names) <= set(vertex):
                of_vertices = np.stack([np.asarray(vertex[name]) for name in names], axis=1)
                return of_vertices[self.vertices], np.zeros(len(self), np.int64)
        return None


def _of_strips(strips: Lists) -> Lists:
    """Strips of triangles, which -1 ends, as triangles: each vertex makes one with the two before it."""
    lengths, corners = strips
    place = np.arange(len(corners))
    strip = np.repeat(np.arange(len(lengths)), lengths)
    # Strips begin with a list, and behind -1.
    begins = np.ones(len(corners), bool)
    begins[1:] = (strip[1:] != strip[:-1]) | (corners[:-1] < 0)
    first = np.maximum.accumulate(np.where(begins, place, 0))
    last = place[(place - first >= 2) & (corners >= 0)]
    # Every other one goes round the other way.
    odd = (last - first[last]) % 2
    triangles = np.stack([corners[last - 2 + odd], corners[last - 1 - odd], corners[last]], axis=1)
    return Lists(np.full(len(last), 3), triangles.reshape(-1))


def _begins(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.asarray(np.cumsum(lengths) - lengths)


def read_ply_vertices(path: Path, labels: Sequence[str] = ()) -> Fields:
    """The points of a PLY file, or the vertices of its mesh with normals from the faces where it has none."""
    file = read_ply(path)
    fields = ply_points(path, file, labels)
    triangles = Triangles(path, file)
    if "normal" not in fields and len(triangles) > 0:
        fields["normal"] = vertex_normals(fields["xyz"], triangles.vertices)
    return fields


def ply_meshes(path: Path, file: PlyFile, trimesh: Any) -> list[Any]:
    """The faces of a file as trimesh's meshes, one for each texture; none if it has no faces.

    Colours are those of the texture, else of the vertices, else of the faces. A texture whose picture cannot be opened
    is told by a warning.
    """
    fields, triangles = ply_points(path, file), Triangles(path, file)
    meshes, plain = [], np.ones(len(triangles), bool)
    textured = triangles.texture_coordinates(file) if file.textures else None
    if textured is not None:
        coordinates, number = textured
        for index, name in enumerate(file.textures):
            rows = number == index
            picture = _picture(path, name) if rows.any() else None
            if picture is not None:
                # Corners at one vertex may lie at different places of the picture.
                corners = fields["xyz"][triangles.vertices[rows]].reshape(-1, 3)
                visual = trimesh.visual.TextureVisuals(uv=coordinates[rows].reshape(-1, 2), image=picture)
                faces = np.arange(len(corners)).reshape(-1, 3)
                meshes.append(trimesh.Trimesh(corners, faces, visual=visual, process=False))
                plain &= ~rows
    if plain.any():
        colour: dict[str, Array] = {}
        if "rgb" in fields:
            colour["vertex_colors"] = _bytes(fields["rgb"])
        elif (of_faces := named_colours(_columns(file.elements.get("face", {})))) is not None:
            colour["face_colors"] = _bytes(of_faces[triangles.polygon[plain]])
        meshes.append(trimesh.Trimesh(fields["xyz"], triangles.vertices[plain], process=False, **colour))
    return meshes


def _bytes(rgb: Array) -> NDArray[np.uint8]:
    return np.asarray(np.round(rgb * 255), np.uint8)


def _picture(path: Path, name: str) -> Any:
    pillow = require("PIL.Image", extra="io", purpose="textures")
    try:
        picture = pillow.open(beside(path, name) or path.parent / name)
        picture.load()
        return picture
    except OSError as error:
        warnings.warn(f"{path}: its texture {name!r} cannot be opened ({error}): read without it", stacklevel=2)
        return None


def vertex_normals(vertices: Array, faces: NDArray[np.int64]) -> NDArray[np.float32]:
    """Unit normals ``(V, 3)``: the mean of those of the faces around, weighted by area; 0 where there are none."""
    corners = vertices.astype(np.float64)[faces]
    # The length of the cross product is twice the area of the triangle.
    weighted = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.stack(
        [np.bincount(faces.reshape(-1), np.repeat(weighted[:, axis], 3), minlength=len(vertices)) for axis in range(3)],
        axis=1,
    )
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.asarray(np.divide(total, length, out=np.zeros_like(total), where=length > 0), np.float32)
