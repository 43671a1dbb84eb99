"""Files of meshes, from which points are sampled."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pc3d._extras import require
from pc3d.data.dataset import BadFileError
from pc3d.data.file_fields import Fields, check_complete, colours
from pc3d.data.ply import Triangles, ply_meshes, ply_points
from pc3d.data.ply_elements import read_ply


def repaired_off(data: bytes) -> tuple[bytes, int, int]:
    """An OFF file with its header in order, and the numbers of vertices and faces that the header promises.

    Comments and blank lines go, the keyword is in capitals on a line of its own, counts that were glued to it
    (``OFF490 518 0``) stand on the next. The body is not touched.

    Raises:
        ValueError: there is no keyword, there are no counts, or the body has fewer lines than the counts promise.
    """
    lines = [line.partition(b"#")[0].strip() for line in data.splitlines()]
    lines = [line for line in lines if line]
    if not lines or not lines[0].upper().lstrip(b"CN").startswith(b"OFF"):
        raise ValueError(f"does not begin with OFF but with {lines[0][:40]!r}" if lines else "is empty")
    position = lines[0].upper().index(b"OFF") + 3
    keyword, glued = lines[0][:position].upper(), lines[0][position:].strip()
    body = ([glued] if glued else []) + lines[1:]
    try:
        num_vertices, num_faces = (int(word) for word in body[0].split()[:2])
    except (IndexError, ValueError):
        raise ValueError("has no line with the numbers of vertices and faces after OFF") from None
    if len(body) - 1 < num_vertices + num_faces:
        raise ValueError(
            f"is truncated: the header promises {num_vertices} vertices and {num_faces} faces, "
            f"{len(body) - 1} lines follow"
        )
    counts = b"%d %d 0" % (num_vertices, num_faces)
    return b"\n".join([keyword, counts, *body[1 : 1 + num_vertices + num_faces], b""]), num_vertices, num_faces


def _sampled(mesh: Any, num_points: int, rng: np.random.Generator) -> Fields:
    """Area-weighted uniform samples of one mesh with face normals and the colour of texture or vertices."""
    trimesh = require("trimesh", extra="io")
    visual = mesh.visual
    textured = visual.kind == "texture" and visual.uv is not None
    if textured and hasattr(visual.material, "to_simple"):
        visual.material = visual.material.to_simple()
    textured = textured and visual.material.image is not None
    drawn = trimesh.sample.sample_surface(mesh, num_points, sample_color=textured, seed=rng)
    xyz, face = np.asarray(drawn[0]), np.asarray(drawn[1])
    fields: Fields = {"xyz": xyz, "normal": np.asarray(mesh.face_normals)[face]}
    if textured:
        fields["rgb"] = colours(np.asarray(drawn[2])[:, :3])
    elif visual.kind == "texture":
        colour = np.asarray(visual.material.main_color)[:3]
        fields["rgb"] = np.tile(colours(colour), (num_points, 1))
    elif visual.kind == "vertex":
        weight = trimesh.triangles.points_to_barycentric(mesh.triangles[face], xyz)
        corners = np.asarray(visual.vertex_colors)[mesh.faces[face], :3]
        mixed = (corners * weight[:, :, None]).sum(axis=1) / 255
        fields["rgb"] = np.clip(mixed, 0, 1).astype(np.float32)
    elif visual.kind == "face":
        fields["rgb"] = colours(np.asarray(visual.face_colors)[face, :3])
    return fields


def _sample_meshes(meshes: list[Any], path: Path, num_points: int, seed: int) -> Fields:
    faces = sum(len(mesh.faces) for mesh in meshes)
    if faces == 0:
        raise BadFileError(path, "has no faces: empty, truncated or not a mesh")
    if not all(np.isfinite(mesh.vertices).all() for mesh in meshes):
        raise BadFileError(path, "has vertices that are not finite numbers")
    area = np.array([mesh.area for mesh in meshes])
    if area.sum() <= 0:
        raise BadFileError(path, f"has {faces} faces of zero total area")
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(num_points, area / area.sum())
    drawn = [_sampled(mesh, int(n), rng) for mesh, n in zip(meshes, counts, strict=True) if n > 0]
    if any("rgb" in fields for fields in drawn):
        # White is what glTF gives a mesh without a material.
        drawn = [{"rgb": np.ones((len(fields["xyz"]), 3), np.float32), **fields} for fields in drawn]
    order = rng.permutation(num_points)
    return {name: np.concatenate([fields[name] for fields in drawn])[order] for name in drawn[0]}


def _load_off(path: Path, trimesh: Any) -> Any:
    data, num_vertices, num_faces = repaired_off(path.read_bytes())
    loaded = trimesh.load(io.BytesIO(data), file_type="off", process=False)
    check_complete(path, loaded, (num_vertices, num_faces))
    return loaded


def _load_stl(path: Path, trimesh: Any) -> Any:
    data = path.read_bytes()
    if data[:5] == b"solid" and b"facet normal" in data[:1000] and b"endsolid" not in data[-1000:]:
        raise BadFileError(path, "is truncated: there is no endsolid")
    return trimesh.load(io.BytesIO(data), file_type="stl", process=False)


def _load_textured(path: Path, trimesh: Any) -> Any:
    require("PIL", extra="io", purpose="textures")
    return trimesh.load(path, file_type=path.suffix.lower()[1:], process=False)


MESH_LOADERS: dict[str, Callable[[Path, Any], Any]] = {
    ".off": _load_off,
    ".stl": _load_stl,
    ".obj": _load_textured,
    ".glb": _load_textured,
}


def read_mesh(path: Path, *, num_points: int, seed: int) -> Fields:
    """Samples of the meshes of an OFF, STL, OBJ or GLB file."""
    trimesh = require("trimesh", extra="io", purpose=f"{path.suffix} files")
    loaded = MESH_LOADERS[path.suffix.lower()](path, trimesh)
    if isinstance(loaded, trimesh.PointCloud):
        return {"xyz": np.asarray(loaded.vertices)}
    meshes = loaded.dump() if isinstance(loaded, trimesh.Scene) else [loaded]
    return _sample_meshes([mesh for mesh in meshes if isinstance(mesh, trimesh.Trimesh)], path, num_points, seed)


def read_ply_points(path: Path, *, num_points: int, seed: int) -> Fields:
    """The points of a PLY file, or samples of its mesh if it has faces."""
    file = read_ply(path)
    if not len(Triangles(path, file)):
        return ply_points(path, file)
    meshes = ply_meshes(path, file, require("trimesh", extra="io", purpose="meshes"))
    return _sample_meshes(meshes, path, num_points, seed)
