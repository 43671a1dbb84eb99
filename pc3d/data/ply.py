"""PLY files: points, and the vertices of meshes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc3d._extras import require
from pc3d.data.dataset import BadFileError
from pc3d.data.file_fields import Array, Fields, check_complete, colours


def load_ply(path: Path, trimesh: Any) -> Any:
    """A PLY file as trimesh reads it, vertices in their order; refused if it is shorter than its header says."""
    loaded = trimesh.load(path, file_type="ply", process=False)
    raw = loaded.metadata.get("_ply_raw", {})
    if not hasattr(loaded, "vertices"):  # an empty scene, where the header promises no vertex
        raise BadFileError(path, "holds no points")
    lengths = [int(raw.get(element, {}).get("length", 0)) for element in ("vertex", "face")]
    check_complete(path, loaded, (lengths[0], lengths[1]))
    return loaded


def ply_points(loaded: Any) -> Fields:
    """The vertices of what :func:`load_ply` gave, with their colours and normals as far as the file has them."""
    fields: Fields = {"xyz": np.asarray(loaded.vertices)}
    raw = loaded.metadata.get("_ply_raw", {}).get("vertex", {}).get("data")
    names = set(raw.dtype.names or ()) if isinstance(raw, np.ndarray) else set(raw or ())

    def columns(wanted: tuple[str, str, str]) -> Array | None:
        if raw is None or not set(wanted) <= names:
            return None
        return np.stack([np.asarray(raw[name]).reshape(-1) for name in wanted], axis=1)

    rgb, normal = columns(("red", "green", "blue")), columns(("nx", "ny", "nz"))
    if rgb is not None:
        fields["rgb"] = colours(rgb)
    if normal is not None:
        fields["normal"] = normal
    return fields


def read_ply_vertices(path: Path, **_: Any) -> Fields:
    """The points of a PLY file, or the vertices of its mesh with normals from the faces where it has none."""
    loaded = load_ply(path, require("trimesh", extra="io", purpose="PLY files"))
    fields = ply_points(loaded)
    faces = np.asarray(getattr(loaded, "faces", np.empty((0, 3))), dtype=np.int64)
    if "normal" not in fields and len(faces) > 0:
        fields["normal"] = vertex_normals(fields["xyz"], faces)
    return fields


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
