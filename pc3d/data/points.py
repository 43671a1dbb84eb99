"""Any point or mesh file to a :class:`PointCloud`, through the library that reads its format."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pc3d._extras import MissingExtraError, require
from pc3d.data.dataset import BadFileError
from pc3d.data.file_fields import Fields, check_complete, colours
from pc3d.data.ply import Triangles, ply_meshes, ply_points, read_ply_vertices
from pc3d.data.ply_elements import read_ply
from pc3d.data.survey_files import read_e57, read_las
from pc3d.data.tables import read_npy, read_npz, read_text
from pc3d.data.types import PointCloud


def _read_pcd(path: Path, **_: Any) -> Fields:
    pypcd4 = require("pypcd4", extra="io", purpose="PCD files")
    cloud = pypcd4.PointCloud.from_path(path)
    missing = {"x", "y", "z"} - set(cloud.fields)
    if missing:
        raise BadFileError(path, f"has no field {sorted(missing)}; its fields are {list(cloud.fields)}")
    fields: Fields = {"xyz": cloud.numpy(("x", "y", "z"))}
    packed = next((name for name in ("rgb", "rgba") if name in cloud.fields), None)
    if packed is not None:
        # Three bytes packed into a 32-bit word, whatever the declared type of the field.
        word = np.ascontiguousarray(cloud.pc_data[packed]).view(np.uint32).reshape(-1)
        fields["rgb"] = colours(np.stack([word >> 16, word >> 8, word], axis=1).astype(np.uint8))
    names = ("normal_x", "normal_y", "normal_z")
    if set(names) <= set(cloud.fields):
        fields["normal"] = cloud.numpy(names)
    return fields


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


_MESH_LOADERS: dict[str, Callable[[Path, Any], Any]] = {
    ".off": _load_off,
    ".stl": _load_stl,
    ".obj": _load_textured,
    ".glb": _load_textured,
}


def _read_mesh(path: Path, *, num_points: int, seed: int) -> Fields:
    trimesh = require("trimesh", extra="io", purpose=f"{path.suffix} files")
    loaded = _MESH_LOADERS[path.suffix.lower()](path, trimesh)
    if isinstance(loaded, trimesh.PointCloud):
        return {"xyz": np.asarray(loaded.vertices)}
    meshes = loaded.dump() if isinstance(loaded, trimesh.Scene) else [loaded]
    return _sample_meshes([mesh for mesh in meshes if isinstance(mesh, trimesh.Trimesh)], path, num_points, seed)


def _read_ply(path: Path, *, num_points: int, seed: int) -> Fields:
    file = read_ply(path)
    if not len(Triangles(path, file)):
        return ply_points(path, file)
    meshes = ply_meshes(path, file, require("trimesh", extra="io", purpose="meshes"))
    return _sample_meshes(meshes, path, num_points, seed)


_READERS: dict[str, Callable[..., Fields]] = {
    ".ply": _read_ply,
    **dict.fromkeys(_MESH_LOADERS, _read_mesh),
    ".pcd": _read_pcd,
    ".xyz": read_text,
    ".txt": read_text,
    ".las": read_las,
    ".laz": read_las,
    ".e57": read_e57,
    ".npy": read_npy,
    ".npz": read_npz,
}
POINT_SUFFIXES = tuple(_READERS)
_MILLIMETRE = 1e-3


def read_points(path: Path | str, *, num_points: int = 10_000, seed: int = 0, drop_invalid: bool = False) -> PointCloud:
    """Read a point cloud, or sample one from a mesh.

    OFF, OBJ, STL and GLB go through trimesh, LAS and LAZ through laspy, E57 through pye57, PCD through pypcd4, PLY,
    NPY, NPZ and text (XYZ, TXT) through NumPy. Axes and units stay as stored (GLB is y up by its standard). Colours
    and normals are kept, other properties are passed over. Text may have names of its columns above (x y z red green
    blue nx ny nz). In tables without names, three columns after x y z are normals where all have unit length, else
    colours.

    A mesh is sampled uniformly by area, in random order, with face normals and the colours of its texture, vertices or
    faces; parts without a colour are white if others have one. Normals that a file gives as NaN are zero.
    Coordinates beyond what float32 resolves to a ten-thousandth of the extent (georeferenced surveys) are stored
    relative to ``meta["origin"]``, three floats to add for the coordinates of the file.

    Args:
        path: the file; its ending names the format.
        num_points: points to sample from a mesh; a point cloud is read whole.
        seed: of the sampling.
        drop_invalid: leave out rows with coordinates that are not finite, as organised clouds mark empty pixels, and
            put their number into ``meta["dropped_points"]``; otherwise such a file is refused.

    Returns:
        The cloud, ``meta["path"]`` telling where it is from.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the ending is not one of those above, or ``num_points`` is not positive.
        BadFileError: the file is truncated, empty, holds no points, or not finite ones.
        ImportError: the library for the format is not installed; the message says how to get it.
    """
    path = Path(path)
    if num_points < 1:
        raise ValueError(f"num_points must be at least 1, got {num_points}")
    fields = read_fields(path, _READERS, num_points=num_points, seed=seed)
    return as_cloud(fields, path, drop_invalid)


def read_scene(path: Path | str, *, drop_invalid: bool = False) -> PointCloud:
    """Read a scan of a room, a building or a street: every point of the file, in its order, in metres as stored.

    PCD goes through pypcd4, LAS and LAZ through laspy (by pieces), E57 through pye57, PLY, NPY, NPZ and text (XYZ, TXT)
    through NumPy. Colours and normals are kept where the file has them: 8-bit and 16-bit colours, the
    latter also where they hold 8-bit values, as in many LAS files, in which colours that are black throughout count as
    none. Of a PLY mesh the points are the vertices, with normals from the faces around if they have none of their own;
    an E57 file's scans are joined in their common frame.

    Coordinates that float32 does not resolve to a millimetre (UTM and the like) are moved in float64, before they
    become float32: ``xyz`` is then relative to ``meta["origin"]``, three floats to add for the coordinates of the file.

    Args:
        path: the file; its ending names the format.
        drop_invalid: leave out points that are not finite, as organised clouds mark empty pixels; ``meta`` then has
            their number as ``"dropped_points"`` and a boolean tensor over the rows of the file, ``"kept_rows"``.
            Otherwise such a file is refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the ending is not one of those above.
        BadFileError: the file is truncated, empty, holds no points, or not finite ones.
        ImportError: the library for the format is not installed; the message says how to get it.
    """
    path = Path(path)
    if path.suffix.lower() in _MESH_LOADERS:
        raise ValueError(
            f"{path}: a {path.suffix} file is a mesh without points of its own; "
            "sample some with pc3d.data.read_points(path, num_points=...)"
        )
    readers = {name: reader for name, reader in _READERS.items() if name not in _MESH_LOADERS}
    fields = read_fields(path, {**readers, ".ply": read_ply_vertices})
    return as_cloud(fields, path, drop_invalid, resolution=_MILLIMETRE)


def read_fields(path: Path, readers: dict[str, Callable[..., Fields]], **options: Any) -> Fields:
    """What the reader for the ending of a file gives; whatever goes wrong is told with the path.

    Raises:
        FileNotFoundError, ValueError, BadFileError, ImportError: see :func:`read_points`.
    """
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: no reader for {path.suffix!r} files; there are readers for {', '.join(readers)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file")
    if path.stat().st_size == 0:
        raise BadFileError(path, "is empty")
    try:
        return reader(path, **options)
    except (BadFileError, MissingExtraError):
        raise
    except Exception as error:  # whatever a parser raises on a broken file, the user needs the path
        reason = str(error) or type(error).__name__
        raise BadFileError(path, f"cannot be read as {path.suffix.lower()[1:].upper()}: {reason}") from error


def as_cloud(fields: Fields, path: Path, drop_invalid: bool, resolution: float | None = None) -> PointCloud:
    """The arrays of a file as a cloud, checked.

    Args:
        fields: what a reader gave.
        path: the file.
        drop_invalid: see :func:`read_points`.
        resolution: what float32 must resolve, or coordinates are moved to ``meta["origin"]``; a ten-thousandth of the
            extent when None.
    """
    meta: dict[str, Any] = {"path": str(path), "id": path.stem}
    if "normal" in fields:
        # Normals that could not be estimated are written as NaN, or as zeros where a program has to write some.
        normal = np.where(np.isfinite(fields["normal"]).all(axis=-1, keepdims=True), fields["normal"], 0)
        fields = {**fields, "normal": normal} if normal.any() else {n: v for n, v in fields.items() if n != "normal"}
    finite = np.asarray(np.isfinite(fields["xyz"]).all(axis=1))
    if not finite.all():
        if not drop_invalid:
            raise BadFileError(
                path,
                f"{int((~finite).sum())} of {len(finite)} points are not finite; drop_invalid=True (--drop_invalid of "
                "a command) leaves them out",
            )
        meta.update(dropped_points=int((~finite).sum()), kept_rows=torch.from_numpy(finite))
        fields = {name: values[finite] for name, values in fields.items()}
    xyz = np.asarray(fields["xyz"])
    if len(xyz) == 0:
        raise BadFileError(path, "holds no points")
    for name, values in fields.items():
        if values.shape != xyz.shape:
            raise BadFileError(path, f"{name} has shape {values.shape}, the coordinates have {xyz.shape}")
        if not np.isfinite(values).all():
            raise BadFileError(path, f"{name} has values that are not finite numbers")
    low, high = xyz.min(axis=0).astype(np.float64), xyz.max(axis=0).astype(np.float64)
    if resolution is None:
        # A file of float32 numbers has lost already what moving would keep.
        resolution = 1e-4 * float((high - low).max()) if xyz.dtype == np.float64 else np.inf
    step = max(np.abs(low).max(), np.abs(high).max()) * np.finfo(np.float32).eps
    if step > resolution > 0:
        origin = np.floor(low)
        xyz = xyz - origin
        meta["origin"] = tuple(float(value) for value in origin)
    tensors = {n: torch.from_numpy(np.ascontiguousarray(v, np.float32)) for n, v in {**fields, "xyz": xyz}.items()}
    if "normal" in tensors:
        tensors["normal"] = torch.nn.functional.normalize(tensors["normal"], dim=1)
    return PointCloud(**tensors, meta=meta)  # type: ignore[arg-type]  # the keys are xyz, rgb and normal
