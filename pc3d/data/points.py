"""Any point or mesh file to a :class:`PointCloud`, through the library that reads its format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pc3d._extras import MissingExtraError
from pc3d.data.dataset import BadFileError
from pc3d.data.file_fields import LABEL_NAMES, MILLIMETRE, Array, Fields, near_origin
from pc3d.data.mesh_files import MESH_LOADERS, read_mesh, read_ply_points
from pc3d.data.pcd import read_pcd
from pc3d.data.pickles import OBJECTS_REMEDY
from pc3d.data.ply import read_ply_vertices
from pc3d.data.survey_files import read_e57, read_las
from pc3d.data.sweeps import read_sweep
from pc3d.data.tables import columns_beside, read_npy, read_npz, read_text
from pc3d.data.types import PointCloud

_READERS: dict[str, Callable[..., Fields]] = {
    ".ply": read_ply_points,
    **dict.fromkeys(MESH_LOADERS, read_mesh),
    ".pcd": read_pcd,
    **dict.fromkeys((".xyz", ".txt", ".csv", ".asc", ".pts", ".xyzrgb", ".xyzn"), read_text),
    ".las": read_las,
    ".laz": read_las,
    ".e57": read_e57,
    ".npy": read_npy,
    ".npz": read_npz,
    ".bin": read_sweep,
}
POINT_SUFFIXES = tuple(suffix for suffix in _READERS if suffix != ".bin")
"""Endings of files in folders of objects, where a ``.bin`` file is a part of a GLTF file."""
SCENE_SUFFIXES = tuple(suffix for suffix in _READERS if suffix not in MESH_LOADERS)
"""Endings of files that hold points of their own, which :func:`read_scene` reads."""


def read_points(path: Path | str, *, num_points: int = 10_000, seed: int = 0, drop_invalid: bool = False) -> PointCloud:
    """Read a point cloud, or sample one from a mesh.

    OFF, OBJ, STL, GLB and GLTF go through trimesh, LAS and LAZ through laspy, E57 through pye57, PCD through pypcd4,
    PLY, NPY, NPZ, BIN (:func:`read_scene`) and text (XYZ, TXT, CSV, ASC, PTS, XYZRGB, XYZN) through NumPy. Axes and
    units stay as stored (GLB and GLTF are y up by their standard). Colours and normals are kept, other properties are
    passed over. Text may have names of its columns above (x y z red green blue nx ny nz), or a file ``.columns`` in
    its folder or above names those of all tables there. In tables without names, three columns after x y z are normals
    where all have unit length, else colours; text that begins with the number of its points, as PTS files do, may have
    an intensity before them. Colours go up to 1, 255 or, where they have names, 65535, as the largest of a file tells.

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


def read_scene(path: Path | str, *, drop_invalid: bool = False, labels: bool | str = False) -> PointCloud:
    """Read a scan of a room, a building or a street: every point of the file, in its order, in metres as stored.

    PCD goes through pypcd4, LAS and LAZ through laspy (by pieces), E57 through pye57, PLY, NPY, NPZ, BIN (the sweeps of
    KITTI and nuScenes) and text (XYZ, TXT, CSV, ASC, PTS, XYZRGB, XYZN) through NumPy. Colours and normals are kept
    where the file has them: 8-bit and 16-bit colours, the latter also where they hold 8-bit values, as in many LAS
    files, in which colours that are black throughout count as none; points that a LAS file marks as withheld are read
    like the others. Of a PLY mesh the points are the vertices, with normals from the faces around if they have none of
    their own; an E57 file's scans are joined in their common frame.

    Coordinates that float32 does not resolve to a millimetre (UTM and the like) are moved in float64, before they
    become float32: ``xyz`` is then relative to ``meta["origin"]``, three floats to add for the coordinates of the file.

    Args:
        path: the file; its ending names the format.
        drop_invalid: leave out points that are not finite, as organised clouds mark empty pixels; ``meta`` then has
            their number as ``"dropped_points"`` and a boolean tensor over the rows of the file, ``"kept_rows"``.
            Otherwise such a file is refused.
        labels: also read the classes of the points, whole numbers, into ``segment``, as the file numbers them (NaN, as
            CloudCompare marks points without one, becomes -1): from the column, property, dimension or array of this
            name, or for True of the usual names, among them ``label``, ``class``, ``classification`` and ``segment``.
            In tables without names it is the last column; for BIN files, those of SemanticKITTI's ``NAME.label``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the ending is not one of those above.
        BadFileError: the file is truncated, empty, holds no points, not finite ones, or no classes that were asked for.
        ImportError: the library for the format is not installed; the message says how to get it.
    """
    path = Path(path)
    if path.suffix.lower() in MESH_LOADERS:
        raise ValueError(
            f"{path}: a {path.suffix} file is a mesh without points of its own; "
            "sample some with pc3d.data.read_points(path, num_points=...)"
        )
    readers = {name: _READERS[name] for name in SCENE_SUFFIXES}
    names = (labels.lower(),) if isinstance(labels, str) else LABEL_NAMES if labels else ()
    fields = read_fields(path, {**readers, ".ply": read_ply_vertices}, labels=names)
    segment = _classes(fields.pop("segment"), len(fields["xyz"]), path) if names else None
    cloud = as_cloud(fields, path, drop_invalid, resolution=MILLIMETRE)
    if segment is None:
        return cloud
    return cloud.replace(segment=segment[cloud.meta["kept_rows"]] if "kept_rows" in cloud.meta else segment)


def files_read(path: Path) -> list[Path]:
    """The files that decide what is read from one: itself, and of a table the list that names its columns."""
    is_table = _READERS.get(path.suffix.lower()) in (read_text, read_npy, read_npz)
    columns = columns_beside(path) if is_table else None
    return [path] if columns is None else [path, columns]


def read_fields(path: Path, readers: dict[str, Callable[..., Fields]], **options: Any) -> Fields:
    """What the reader for the ending of a file gives; whatever goes wrong is told with the path.

    Raises:
        FileNotFoundError, ValueError, BadFileError, ImportError: see :func:`read_points`.
    """
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{path}: no reader for {path.suffix!r} files; there are readers for {', '.join(readers)}: convert it to "
            "one of these, or store its rows of x y z with numpy.save"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file")
    if path.stat().st_size == 0:
        raise BadFileError(path, "is empty")
    try:
        return reader(path, **options)
    except (BadFileError, MissingExtraError):
        raise
    except Exception as error:  # whatever a parser raises on a broken file, the user needs the path
        kind, reason = path.suffix.lower()[1:], str(error) or type(error).__name__
        # Parsers of binary files seldom know what they stumbled over.
        cause = "; truncated or still being copied?" if kind in ("pcd", "las", "laz", "e57", "glb") else ""
        raise BadFileError(path, f"cannot be read as {kind.upper()}: {reason}{cause}") from error


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
    shape = np.shape(fields["xyz"])
    for name, values in fields.items():
        if values.shape != shape:
            raise BadFileError(path, f"{name} has shape {values.shape}, the coordinates have {shape}")
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
        if not np.isfinite(values).all():
            raise BadFileError(path, f"{name} has values that are not finite numbers")
    xyz, origin = near_origin(xyz, resolution)
    if origin is not None:
        meta["origin"] = origin
    if not np.abs(xyz).max() <= np.finfo(np.float32).max:
        raise BadFileError(path, f"has coordinates of up to {np.abs(xyz).max():.3g}, beyond the range of float32")
    tensors = {n: torch.from_numpy(np.ascontiguousarray(v, np.float32)) for n, v in {**fields, "xyz": xyz}.items()}
    if "normal" in tensors:
        tensors["normal"] = torch.nn.functional.normalize(tensors["normal"], dim=1)
    return PointCloud(**tensors, meta=meta)  # type: ignore[arg-type]  # the keys are xyz, rgb and normal


def _classes(values: Array, count: int, path: Path) -> torch.Tensor:
    """The classes of points, -1 for NaN.

    Raises:
        BadFileError: they are not as many whole numbers as points.
    """
    if values.size != count or values.dtype.kind not in "iuf":
        remedy = f": {OBJECTS_REMEDY}" if values.dtype.hasobject else ""
        raise BadFileError(
            path, f"the classes of its {count} points are {values.dtype} of shape {values.shape}{remedy}"
        )
    values = values.reshape(-1)
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), -1, values)
        if not (np.isfinite(values) & (values == np.round(values))).all():
            raise BadFileError(path, "the classes of its points are not whole numbers: another column may hold them")
    return torch.from_numpy(values.astype(np.int64))
