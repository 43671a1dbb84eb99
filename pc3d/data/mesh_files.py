"""Files of meshes, from which points are sampled."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pc3d._extras import require
from pc3d.data.dataset import BadFileError
from pc3d.data.file_fields import Array, Fields, beside, colours
from pc3d.data.gltf import plain_glb
from pc3d.data.off import read_off
from pc3d.data.pixels import eight_bits, texture_colours
from pc3d.data.ply import Triangles, ply_meshes, ply_points
from pc3d.data.ply_elements import read_ply
from pc3d.data.polygons import ears, left_by_fans

# What may stand before the name of a texture in a material file.
_TEXTURE_OPTIONS = re.compile(r"^(-[a-z]+( +(on|off|[-+]?[\d.]+|[rgbmlz])(?= ))* +)+")
# Of OBJ files: lines that the next one continues, no comments, which may end in the name of a folder; comments behind
# numbers and, in files of materials, behind colours; the lines that name files of materials; faces with negative
# numbers, with zeros, and with more corners than three.
_GOES_ON = re.compile(rb"^([^#\n]*)\\\n", re.MULTILINE)
_COMMENT_BEHIND = re.compile(rb"^((?:f|v|vt|vn) [^#\n]*)#.*$", re.MULTILINE)
_COMMENT_BEHIND_COLOUR = re.compile(rb"^([ \t]*K[ads][ \t][^#\r\n]*)#[^\r\n]*", re.MULTILINE | re.IGNORECASE)
_MATERIAL_FILES = re.compile(rb"^mtllib +(.*)$", re.MULTILINE)
_FROM_THE_END = re.compile(rb"^f [^\n]*-", re.MULTILINE)
_ZERO = re.compile(rb"^f (?:[^\n]* )?0+(?=[/ \n]|\Z)", re.MULTILINE)
_POLYGON = re.compile(rb"^f(?: +[^ \n]+){4}", re.MULTILINE)
# What stands for all files of materials of an OBJ file together.
_JOINED = "all materials"
_STL_HEADER, _STL_TRIANGLE = 84, 50


def _sampled(mesh: Any, num_points: int, rng: np.random.Generator) -> Fields:
    """Area-weighted uniform samples of one mesh with face normals and the colour of texture or vertices."""
    trimesh = require("trimesh", extra="io")
    visual, factor = mesh.visual, None
    textured = visual.kind == "texture" and visual.uv is not None
    if visual.kind == "texture" and hasattr(visual.material, "baseColorFactor"):
        factor = visual.material.baseColorFactor
        factor = np.ones(3) if factor is None else colours(np.asarray(factor)[:3])
    if textured and hasattr(visual.material, "to_simple"):
        visual.material = visual.material.to_simple()
    textured = textured and visual.material.image is not None
    drawn = trimesh.sample.sample_surface(mesh, num_points, seed=rng)
    xyz, face = np.asarray(drawn[0]), np.asarray(drawn[1])
    fields: Fields = {"xyz": xyz, "normal": np.asarray(mesh.face_normals)[face]}

    def mixed(of_vertices: Array) -> Array:
        weight = trimesh.triangles.points_to_barycentric(mesh.triangles[face], xyz)
        return np.asarray((of_vertices[mesh.faces[face], :3] * weight[:, :, None]).sum(axis=1))

    if visual.kind == "texture":
        if textured:
            # Trimesh would take neighbouring pixels for the middle of one, and make 16 bits white.
            picture = eight_bits(visual.material.image, "a texture")
            rgb = texture_colours(picture, mixed(np.asarray(visual.uv)))
        else:
            main = colours(np.asarray(visual.material.main_color)[:3]) if factor is None else 1
            rgb = np.ones((num_points, 3), np.float32) * main
        # In glTF the colours of texture, material and vertices are factors of one another.
        of_vertices = getattr(visual, "vertex_attributes", {}).get("color")
        rgb = rgb if factor is None else rgb * factor
        rgb = rgb if of_vertices is None else rgb * mixed(colours(np.asarray(of_vertices)))
        fields["rgb"] = np.clip(rgb, 0, 1).astype(np.float32)
    elif visual.kind == "vertex":
        fields["rgb"] = np.clip(mixed(np.asarray(visual.vertex_colors)) / 255, 0, 1).astype(np.float32)
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
    off = read_off(path)
    rgb = off.fields.get("rgb")
    if len(off.triangles) == 0:
        return off.fields
    paint: dict[str, Array] = {}
    if rgb is not None:
        paint["vertex_colors"] = np.round(rgb * 255).astype(np.uint8)
    elif off.face_rgb is not None:
        paint["face_colors"] = np.round(off.face_rgb * 255).astype(np.uint8)
    return trimesh.Trimesh(off.fields["xyz"], off.triangles, process=False, **paint)


def _load_stl(path: Path, trimesh: Any) -> Any:
    data = path.read_bytes()
    if b"\n" not in data and b"\0" not in data:  # text of old software
        data = data.replace(b"\r", b"\n")
    promised = struct.unpack_from("<I", data, _STL_HEADER - 4)[0] if len(data) >= _STL_HEADER else 0
    size = _STL_HEADER + promised * _STL_TRIANGLE
    begun = len(re.findall(rb"^\s*solid\b", data, re.MULTILINE | re.IGNORECASE))
    if begun and len(data) != size and b"\0" not in data[:_STL_HEADER]:
        ended = len(re.findall(rb"^\s*endsolid\b", data, re.MULTILINE | re.IGNORECASE))
        if ended < begun:
            raise BadFileError(path, f"is truncated: {begun} times solid, {ended} times endsolid")
    elif len(data) < size:
        found = max(len(data) - _STL_HEADER, 0) // _STL_TRIANGLE
        raise BadFileError(
            path, f"is truncated or not STL: its header promises {promised} triangles, {found} are there"
        )
    else:
        data = data[:size]  # what some programs append is no part of the format
    return trimesh.load(io.BytesIO(data), file_type="stl", process=False)


class _FilesBeside:
    """What a mesh refers to by name: materials and pictures, whatever folder they were in when it was written."""

    def __init__(self, path: Path, joined: bytes = b"") -> None:
        self._path = path
        self._joined = joined

    def get(self, name: str) -> bytes:
        if name == _JOINED:
            return self._joined
        found = self._found(name) or self._found(name.partition(" #")[0])  # a comment, or part of the name
        if found is not None:
            return found.read_bytes()
        warnings.warn(f"{self._path}: {name!r} is not beside it: read without its colours", stacklevel=2)
        raise FileNotFoundError(name)

    __getitem__ = get

    def _found(self, name: str) -> Path | None:
        return beside(self._path, _TEXTURE_OPTIONS.sub("", name.strip()).strip('"'))


def _load_obj(path: Path, trimesh: Any) -> Any:
    require("PIL", extra="io", purpose="textures")
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf").replace(b"\t", b" ").replace(b"\r\n", b"\n")
    data = data if b"\n" in data else data.replace(b"\r", b"\n")
    data = _GOES_ON.sub(rb"\1 ", data).replace(b"\\\n", b"\n")
    data = re.sub(rb"(?<=\n) +", b"", data)
    data = _COMMENT_BEHIND.sub(rb"\1", data)
    # Trimesh reads the first file of materials alone, and takes several names in its line for one.
    materials = _materials(path, _MATERIAL_FILES.findall(data))
    data = (f"mtllib {_JOINED}\n".encode() if materials else b"") + _MATERIAL_FILES.sub(b"", data)
    if _FROM_THE_END.search(data):
        data = _from_the_start(data)
    if _ZERO.search(data):  # numpy would take the last one
        raise ValueError("a face names vertex 0: OBJ counts from 1, and back from -1")
    if _POLYGON.search(data):
        data = _cut_polygons(data)
    resolver = _FilesBeside(path, materials)
    loaded = trimesh.load(io.BytesIO(data), file_type="obj", process=False, resolver=resolver)
    for part in loaded.geometry.values() if isinstance(loaded, trimesh.Scene) else [loaded]:
        material = getattr(part.visual, "material", None)
        # Without a material or a colour in it, trimesh puts a grey one, in a picture of no format or in numbers.
        if material is not None and (
            "kd" not in material.kwargs if material.image is None else material.image.format is None
        ):
            part.visual = trimesh.visual.ColorVisuals()
            material = None
        painted = part.vertex_attributes.get("color") if isinstance(part, trimesh.Trimesh) else None
        if painted is not None and (material is None or material.image is None):
            # Beside colours of vertices, the one colour of a material is what the program writes in any case.
            part.visual = trimesh.visual.ColorVisuals(part, vertex_colors=painted)
    return loaded


def _materials(path: Path, lines: list[bytes]) -> bytes:
    """What is in all the files of materials that an OBJ file names; those that are not there are told by a warning."""
    found = []
    for line in dict.fromkeys(lines):  # some programs name a file anew for each part
        try:
            whole = line.decode().strip()
        except UnicodeDecodeError:
            whole = line.decode("latin-1").strip()
        names = whole.split()
        # A name may have blanks.
        if beside(path, whole.strip('"')) or not any(beside(path, name) for name in names):
            names = [whole]
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found.append(_FilesBeside(path).get(name))
    return _COMMENT_BEHIND_COLOUR.sub(rb"\1", b"\n".join(found))


def _from_the_start(data: bytes) -> bytes:
    """An OBJ file whose negative numbers, which count back from where they stand, are those that count from the start.

    Trimesh counts them back from the end of the file.
    """
    counts = {b"v": 0, b"vt": 0, b"vn": 0}
    lines = data.split(b"\n")
    for row, line in enumerate(lines):
        key, *words = line.split() or [b""]
        if key in counts:
            counts[key] += 1
        elif key == b"f" and b"-" in line:
            corners = (zip(word.split(b"/"), counts.values(), strict=False) for word in words)
            lines[row] = b"f " + b" ".join(
                b"/".join(b"%d" % max(0, count + 1 + int(one)) if one[:1] == b"-" else one for one, count in corner)
                for corner in corners
            )  # 0, which is refused, for what is before the first
    return b"\n".join(lines)


def _cut_polygons(data: bytes) -> bytes:
    """An OBJ file of whose faces those are cut that trimesh would not stay within: it makes fans of all."""
    lines = data.split(b"\n")
    xyz = np.array([line.split()[1:4] for line in lines if line.startswith(b"v ")], np.float64)
    rows = [row for row, line in enumerate(lines) if line.startswith(b"f ")]
    faces = [lines[row].split()[1:] for row in rows]
    lengths = np.array([len(face) for face in faces], np.int64)
    corners = np.array([int(word.partition(b"/")[0]) - 1 for face in faces for word in face], np.int64)
    begins = np.cumsum(lengths) - lengths
    for one in left_by_fans(lengths, corners, xyz):
        triangles = ears(xyz[corners[begins[one] : begins[one] + lengths[one]]])
        lines[rows[one]] = b"\n".join(b"f " + b" ".join(faces[one][k] for k in triangle) for triangle in triangles)
    return b"\n".join(lines)


def _load_glb(path: Path, trimesh: Any) -> Any:
    require("PIL", extra="io", purpose="textures")
    return trimesh.load(io.BytesIO(plain_glb(path)), file_type="glb", process=False, resolver=_FilesBeside(path))


MESH_LOADERS: dict[str, Callable[[Path, Any], Any]] = {
    ".off": _load_off,
    ".stl": _load_stl,
    ".obj": _load_obj,
    ".glb": _load_glb,
    ".gltf": _load_glb,
}


def read_mesh(path: Path, *, num_points: int, seed: int) -> Fields:
    """Samples of the meshes of an OFF, STL, OBJ, GLB or GLTF file, or its points if it has no faces."""
    trimesh = require("trimesh", extra="io", purpose=f"{path.suffix} files")
    loaded = MESH_LOADERS[path.suffix.lower()](path, trimesh)
    if isinstance(loaded, dict):
        return loaded
    parts = _placed(loaded) if isinstance(loaded, trimesh.Scene) else [loaded]
    meshes = [part for part in parts if isinstance(part, trimesh.Trimesh)]
    clouds = [part for part in parts if isinstance(part, trimesh.PointCloud)]
    if clouds and not meshes:
        return _points_of(clouds)
    if clouds:
        count = sum(len(cloud.vertices) for cloud in clouds)
        warnings.warn(f"{path}: {count} points beside its meshes are passed over", stacklevel=2)
    return _sample_meshes(meshes, path, num_points, seed)


def load_meshes(path: Path) -> list[Any]:
    """The meshes of a file as trimesh's, where the file puts them; none if it has no faces.

    Args:
        path: GLB, GLTF, OBJ, PLY, OFF or STL; anything else is left to trimesh.

    Raises:
        Exception: whatever a parser comes up with.
    """
    trimesh = require("trimesh", extra="io", purpose=f"{path.suffix} files")
    suffix = path.suffix.lower()
    if suffix == ".ply":
        return ply_meshes(path, read_ply(path), trimesh)
    loaded = MESH_LOADERS[suffix](path, trimesh) if suffix in MESH_LOADERS else trimesh.load(path, process=False)
    parts = _placed(loaded) if isinstance(loaded, trimesh.Scene) else [loaded]
    return [part for part in parts if isinstance(part, trimesh.Trimesh) and len(part.faces)]


def _placed(scene: Any) -> list[Any]:
    """The parts of a scene where it puts them; trimesh forgets colours of vertices beside a material when it copies."""
    parts: list[Any] = scene.dump()
    for part in parts:
        visual = getattr(scene.geometry[part.metadata["name"]], "visual", None)  # lines have none
        kept = getattr(visual, "vertex_attributes", {}).get("color")
        if kept is not None:
            part.visual.vertex_attributes["color"] = kept
    return parts


def _points_of(clouds: list[Any]) -> Fields:
    """The points of clouds that stand where a mesh is expected, and colours where all have them."""
    fields: Fields = {"xyz": np.concatenate([cloud.vertices for cloud in clouds])}
    if all(np.shape(cloud.colors) == (len(cloud.vertices), 4) for cloud in clouds):
        fields["rgb"] = colours(np.concatenate([np.asarray(cloud.colors)[:, :3] for cloud in clouds]))
    return fields


def read_ply_points(path: Path, *, num_points: int, seed: int) -> Fields:
    """The points of a PLY file, or samples of its mesh if it has faces."""
    file = read_ply(path)
    if not len(Triangles(path, file)):
        return ply_points(path, file)
    meshes = ply_meshes(path, file, require("trimesh", extra="io", purpose="meshes"))
    return _sample_meshes(meshes, path, num_points, seed)
