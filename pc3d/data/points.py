"""Any point or mesh file to a :class:`PointCloud`, through the library that reads its format."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pc3d._extras import MissingExtraError, require
from pc3d.data.dataset import BadFileError
from pc3d.data.types import PointCloud

Array = NDArray[Any]
# Arrays of one file: xyz always, rgb in [0, 1] and normal where the file has them.
Fields = dict[str, Array]

_ALIASES = {
    "xyz": ("xyz", "points", "coord", "coords", "pos", "pc", "data", "arr_0"),
    "rgb": ("rgb", "color", "colors", "colour"),
    "normal": ("normal", "normals"),
}


def _colours(values: Array) -> Array:
    """Colours in [0, 1]: integers by the range of their type, floats as they are or, above 1, as 0..255."""
    if values.dtype.kind in "ui":
        # 16-bit fields are often filled with 8-bit values (LAS files above all).
        top = 255 if values.dtype.itemsize == 1 or (values.size and values.max() <= 255) else np.iinfo(np.uint16).max
    else:
        # Rounding may lift a saturated channel a little above 1.
        top = 255 if values.size and values.max() > 1 + 1e-3 else 1
    return np.asarray(np.clip(values / top, 0, 1), np.float32)


def _split_columns(table: Array, path: Path) -> Fields:
    """Columns x y z, and after them a normal, a colour, or both, told apart by their values."""
    if table.ndim != 2 or table.shape[1] < 3:
        raise BadFileError(path, f"has shape {table.shape}; rows of x y z [normal] [colour] are expected")
    fields: Fields = {"xyz": table[:, :3]}
    rest = table[:, 3:]
    if rest.shape[1] not in (0, 3, 6):
        raise BadFileError(
            path, f"has {table.shape[1]} columns: 3 (xyz), 6 (and normals or colours) or 9 are understood"
        )
    for start in range(0, rest.shape[1], 3):
        block = rest[:, start : start + 3]
        unit = np.abs(np.linalg.norm(block.astype(np.float64), axis=1) - 1) < 0.02
        if "normal" not in fields and unit.all():
            fields["normal"] = block
        elif "rgb" not in fields and (block >= 0).all() and (block <= 255).all():
            fields["rgb"] = _colours(block)
        else:
            raise BadFileError(
                path, f"columns {start + 4} to {start + 6} are neither unit normals nor colours in 0..1 or 0..255"
            )
    return fields


def _read_text(path: Path, **_: Any) -> Fields:
    text = path.read_text(encoding="utf-8", errors="replace")
    first = next((line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")), "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # numpy warns about an empty file; it is refused below
        table = np.loadtxt(io.StringIO(text), dtype=np.float64, delimiter="," if "," in first else None, ndmin=2)
    return _split_columns(table, path)


def _read_npy(path: Path, **_: Any) -> Fields:
    return _split_columns(np.load(path, allow_pickle=False), path)


def _read_npz(path: Path, **_: Any) -> Fields:
    with np.load(path, allow_pickle=False) as archive:
        names = {field: next((n for n in aliases if n in archive), None) for field, aliases in _ALIASES.items()}
        if names["xyz"] is None:
            raise BadFileError(path, f"has none of the keys {_ALIASES['xyz']} for coordinates, but {archive.files}")
        arrays = {field: archive[name] for field, name in names.items() if name is not None}
    fields = _split_columns(arrays["xyz"], path)
    for field in ("rgb", "normal"):
        if field in arrays:
            fields[field] = _colours(arrays[field]) if field == "rgb" else arrays[field]
    return fields


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
        fields["rgb"] = _colours(np.stack([word >> 16, word >> 8, word], axis=1).astype(np.uint8))
    names = ("normal_x", "normal_y", "normal_z")
    if set(names) <= set(cloud.fields):
        fields["normal"] = cloud.numpy(names)
    return fields


def _read_las(path: Path, **_: Any) -> Fields:
    laspy = require("laspy", extra="io", purpose="LAS and LAZ files")
    if path.suffix.lower() == ".laz":
        require("lazrs", extra="io", purpose="LAZ files")
    cloud = laspy.read(path)
    if len(cloud.points) != cloud.header.point_count:
        raise BadFileError(path, f"holds {len(cloud.points)} of the {cloud.header.point_count} points of its header")
    fields: Fields = {"xyz": np.asarray(cloud.xyz)}
    names = set(cloud.point_format.dimension_names)
    if {"red", "green", "blue"} <= names:
        fields["rgb"] = _colours(np.stack([np.asarray(cloud[name]) for name in ("red", "green", "blue")], axis=1))
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
        fields["rgb"] = _colours(np.asarray(drawn[2])[:, :3])
    elif visual.kind == "texture":
        colour = np.asarray(visual.material.main_color)[:3]
        fields["rgb"] = np.tile(_colours(colour), (num_points, 1))
    elif visual.kind == "vertex":
        weight = trimesh.triangles.points_to_barycentric(mesh.triangles[face], xyz)
        corners = np.asarray(visual.vertex_colors)[mesh.faces[face], :3]
        mixed = (corners * weight[:, :, None]).sum(axis=1) / 255
        fields["rgb"] = np.clip(mixed, 0, 1).astype(np.float32)
    elif visual.kind == "face":
        fields["rgb"] = _colours(np.asarray(visual.face_colors)[face, :3])
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
    shared = set.intersection(*(set(fields) for fields in drawn))
    order = rng.permutation(num_points)
    return {name: np.concatenate([fields[name] for fields in drawn])[order] for name in shared}


def _ply_points(loaded: Any) -> Fields:
    fields: Fields = {"xyz": np.asarray(loaded.vertices)}
    raw = loaded.metadata.get("_ply_raw", {}).get("vertex", {}).get("data")
    names = set(raw.dtype.names or ()) if isinstance(raw, np.ndarray) else set(raw or ())

    def columns(wanted: tuple[str, str, str]) -> Array | None:
        if raw is None or not set(wanted) <= names:
            return None
        return np.stack([np.asarray(raw[name]).reshape(-1) for name in wanted], axis=1)

    rgb, normal = columns(("red", "green", "blue")), columns(("nx", "ny", "nz"))
    if rgb is not None:
        fields["rgb"] = _colours(rgb if rgb.dtype.kind == "f" else rgb.astype(np.uint8))
    if normal is not None:
        fields["normal"] = normal
    return fields


def _check_complete(path: Path, loaded: Any, promised: tuple[int, int]) -> None:
    """Refuse a file whose parser came back with fewer vertices or faces than its header promises."""
    found = len(loaded.vertices), len(getattr(loaded, "faces", ()))
    # A polygon becomes several triangles, so more faces than promised are fine.
    if found[0] != promised[0] or found[1] < promised[1]:
        raise BadFileError(
            path,
            f"the header promises {promised[0]} vertices and {promised[1]} faces, {found[0]} and {found[1]} are usable",
        )


def load_ply(path: Path, trimesh: Any) -> Any:
    """A PLY file as trimesh reads it, vertices in their order; refused if it is shorter than its header says."""
    loaded = trimesh.load(path, file_type="ply", process=False)
    raw = loaded.metadata.get("_ply_raw", {})
    lengths = [int(raw.get(element, {}).get("length", 0)) for element in ("vertex", "face")]
    _check_complete(path, loaded, (lengths[0], lengths[1]))
    return loaded


def _load_off(path: Path, trimesh: Any) -> Any:
    data, num_vertices, num_faces = repaired_off(path.read_bytes())
    loaded = trimesh.load(io.BytesIO(data), file_type="off", process=False)
    _check_complete(path, loaded, (num_vertices, num_faces))
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
    ".ply": load_ply,
    ".off": _load_off,
    ".stl": _load_stl,
    ".obj": _load_textured,
    ".glb": _load_textured,
}


def _read_mesh(path: Path, *, num_points: int, seed: int) -> Fields:
    trimesh = require("trimesh", extra="io", purpose=f"{path.suffix} files")
    suffix = path.suffix.lower()
    loaded = _MESH_LOADERS[suffix](path, trimesh)
    if suffix == ".ply" and len(getattr(loaded, "faces", ())) == 0:
        return _ply_points(loaded)
    if isinstance(loaded, trimesh.PointCloud):
        return {"xyz": np.asarray(loaded.vertices)}
    meshes = loaded.dump() if isinstance(loaded, trimesh.Scene) else [loaded]
    return _sample_meshes([mesh for mesh in meshes if isinstance(mesh, trimesh.Trimesh)], path, num_points, seed)


_READERS: dict[str, Callable[..., Fields]] = {
    **dict.fromkeys(_MESH_LOADERS, _read_mesh),
    ".pcd": _read_pcd,
    ".xyz": _read_text,
    ".txt": _read_text,
    ".las": _read_las,
    ".laz": _read_las,
    ".npy": _read_npy,
    ".npz": _read_npz,
}
POINT_SUFFIXES = tuple(_READERS)


def read_points(path: Path | str, *, num_points: int = 10_000, seed: int = 0, drop_invalid: bool = False) -> PointCloud:
    """Read a point cloud, or sample one from a mesh.

    PLY, OFF, OBJ, STL and GLB go through trimesh, LAS and LAZ through laspy, PCD through pypcd4, NPY, NPZ and text
    (XYZ, TXT) through NumPy. Axes and units stay as stored (GLB is y up by its standard). Colours and normals are kept.
    In tables without names, three columns after x y z are normals where all have unit length, else colours.

    A mesh is sampled uniformly by area, in random order, with face normals and the colours of its texture or vertices.
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
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: no reader for {path.suffix!r} files; there are readers for {', '.join(_READERS)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file")
    if path.stat().st_size == 0:
        raise BadFileError(path, "is empty")
    try:
        fields = reader(path, num_points=num_points, seed=seed)
    except (BadFileError, MissingExtraError):
        raise
    except Exception as error:  # whatever a parser raises on a broken file, the user needs the path
        reason = str(error) or type(error).__name__
        raise BadFileError(path, f"cannot be read as {path.suffix.lower()[1:].upper()}: {reason}") from error
    return _as_cloud(fields, path, drop_invalid)


def _as_cloud(fields: Fields, path: Path, drop_invalid: bool) -> PointCloud:
    meta: dict[str, Any] = {"path": str(path), "id": path.stem}
    finite = np.asarray(np.isfinite(fields["xyz"]).all(axis=1))
    if not finite.all():
        if not drop_invalid:
            raise BadFileError(
                path,
                f"{int((~finite).sum())} of {len(finite)} points are not finite; drop_invalid=True leaves them out",
            )
        meta["dropped_points"] = int((~finite).sum())
        fields = {name: values[finite] for name, values in fields.items()}
    xyz = np.asarray(fields["xyz"])
    if len(xyz) == 0:
        raise BadFileError(path, "holds no points")
    for name, values in fields.items():
        if values.shape != xyz.shape:
            raise BadFileError(path, f"{name} has shape {values.shape}, the coordinates have {xyz.shape}")
        if not np.isfinite(values).all():
            raise BadFileError(path, f"{name} has values that are not finite numbers")
    extent = float((xyz.max(axis=0) - xyz.min(axis=0)).max())
    if xyz.dtype == np.float64 and np.abs(xyz).max() * np.finfo(np.float32).eps > 1e-4 * extent > 0:
        origin = np.floor(xyz.min(axis=0))
        xyz = xyz - origin
        meta["origin"] = tuple(float(value) for value in origin)
    tensors = {n: torch.from_numpy(np.ascontiguousarray(v, np.float32)) for n, v in {**fields, "xyz": xyz}.items()}
    if "normal" in tensors:
        tensors["normal"] = torch.nn.functional.normalize(tensors["normal"], dim=1)
    return PointCloud(**tensors, meta=meta)  # type: ignore[arg-type]  # the keys are xyz, rgb and normal
