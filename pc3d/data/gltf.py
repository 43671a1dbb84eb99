"""GLB and GLTF files, in the part of the format that trimesh reads as it is meant.

Of glTF 2.0, trimesh takes integers that stand for fractions as they are, and the first places on a picture whichever a
material asks for; it passes over fans of triangles, what hangs on a camera and the changes of sparse accessors. A file
is written anew without.
"""

from __future__ import annotations

import base64
import json
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from pc3d.data.dataset import BadFileError
from pc3d.data.file_fields import Array, beside

# What no decoder is there for, or only with a package that pc3d does not ask for.
_NOT_READ = {
    **dict.fromkeys(
        ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression"),
        "is compressed by {}, which is not read: export it without compression",
    ),
    "EXT_mesh_gpu_instancing": "places its meshes by {}, which is not read: export it without instances",
}
_VERSION = "is not glTF 2, the only version that is read"
_TYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_TRIANGLES, _FAN = 4, 6
_FLOAT, _WHOLE = 5126, 5125
_CHUNK = struct.Struct("<I4s")
Tree = dict[str, Any]


def plain_glb(path: Path) -> bytes:
    """A GLB or GLTF file as one GLB of floats, with the places on the picture of the base colour first.

    Raises:
        BadFileError: it is truncated, a file that it names is not there, or it needs what is not read.
    """
    tree, binary = _described(path)
    # Before the buffers, of which some are there for a decoder to fill.
    needed = [name for name in tree.get("extensionsRequired", ()) if name in _NOT_READ]
    if needed:
        raise BadFileError(path, _NOT_READ[needed[0]].format(needed[0]))
    data = _joined(path, tree, binary)
    _check_counts(path, tree, len(data))
    buffer = _Buffer(path, tree, data)
    for material in tree.get("materials", ()):
        _base_colour(material)
    for mesh in tree.get("meshes", ()):
        for primitive in mesh["primitives"]:
            _plain_primitive(tree, buffer, primitive)
    nodes = tree.get("nodes", ())
    for node in nodes:
        node.pop("camera", None)
    if nodes and not tree.get("scenes"):
        # Scenes may be left out; then all nodes are shown that hang on no other.
        below = {child for node in nodes for child in node.get("children", ())}
        tree["scenes"] = [{"nodes": [number for number in range(len(nodes)) if number not in below]}]
    for image in tree.get("images", ()):
        if not image.get("uri", "data:").startswith("data:"):
            image["uri"] = unquote(image["uri"])
    if any("source" not in t and "KHR_texture_basisu" in t.get("extensions", ()) for t in tree.get("textures", ())):
        warnings.warn(f"{path}: its pictures are KTX2, which are not read: read without their colours", stacklevel=2)
    return buffer.written()


def _described(path: Path) -> tuple[Tree, bytes]:
    """The description of a file, and the buffer within it."""
    whole, binary = path.read_bytes(), b""
    if whole[:4] == b"glTF":
        chunks = dict(_chunks(path, whole))
        text, binary = chunks[b"JSON"], chunks.get(b"BIN\0", b"")
    else:
        text = whole
    tree: Tree = json.loads(text)
    if not isinstance(tree, dict) or str(tree.get("asset", {}).get("version", "2"))[0] != "2":
        raise BadFileError(path, _VERSION)
    return tree, binary


def _joined(path: Path, tree: Tree, binary: bytes) -> bytes:
    """The buffers of a description as one."""
    data, begins = bytearray(), []
    for buffer in tree.get("buffers", ()):
        begins.append(len(data))
        content = _content(path, buffer["uri"]) if "uri" in buffer else binary
        if len(content) < buffer["byteLength"]:
            raise BadFileError(
                path, f"is truncated: {len(content)} of {buffer['byteLength']} bytes of a buffer are there"
            )
        data += content + b"\0" * (-len(content) % 4)
    for view in tree.get("bufferViews", ()):
        view["byteOffset"] = view.get("byteOffset", 0) + begins[view["buffer"]]
        view["buffer"] = 0
    return bytes(data)


def _check_counts(path: Path, tree: Tree, size: int) -> None:
    """Refuse accessors that claim more values than there are, for which trimesh would make room.

    Those without data, which stand for zeros, may claim as many as the others have: moves of vertices that stay.
    """
    most, without = 0, []
    for number, accessor in enumerate(tree.get("accessors", ())):
        count = accessor["count"]
        if "bufferView" not in accessor:
            without.append((number, count))
            continue
        view = tree["bufferViews"][accessor["bufferView"]]
        if accessor["componentType"] not in _TYPES or accessor["type"] not in _WIDTHS:
            continue  # trimesh says so
        item = np.dtype(_TYPES[accessor["componentType"]]).itemsize * _WIDTHS[accessor["type"]]
        stride = view.get("byteStride", item)
        room = size - view["byteOffset"] - accessor.get("byteOffset", 0)
        if stride < 1 or (count - 1) * stride + item > room:
            raise BadFileError(
                path,
                f"is truncated: accessor {number} has {count} items of {item} bytes every {stride} bytes, and {room} "
                "bytes are there",
            )
        most = max(most, count)
    for number, count in without:
        if count > most:
            raise BadFileError(
                path, f"is truncated: accessor {number} has {count} items and no data, others have at most {most}"
            )


def _chunks(path: Path, whole: bytes) -> Iterator[tuple[bytes, bytes]]:
    version, length = struct.unpack_from("<II", whole, 4)
    if version != 2:
        raise BadFileError(path, _VERSION)
    if len(whole) < length:
        raise BadFileError(path, f"is truncated: it promises {length} bytes, {len(whole)} are there")
    place = 12
    while place + _CHUNK.size <= length:
        size, kind = _CHUNK.unpack_from(whole, place)
        yield kind, whole[place + _CHUNK.size : place + _CHUNK.size + size]
        place += _CHUNK.size + size


def _content(path: Path, uri: str) -> bytes:
    if uri.startswith("data:"):
        return base64.b64decode(uri.partition(",")[2])
    name = unquote(uri)
    place = PurePosixPath(name.replace("\\", "/"))
    if place.is_absolute() or ".." in place.parts:  # a file from elsewhere is not to read what it likes
        raise BadFileError(path, f"its data are in {name!r}, which is not below its folder: copy that there")
    found = beside(path, name)
    if found is None:
        raise BadFileError(path, f"its data are in {name!r}, which is not beside it: copy that too")
    return found.read_bytes()


class _Buffer:
    """The numbers that a description refers to, by the number of their accessor."""

    def __init__(self, path: Path, tree: Tree, data: bytes) -> None:
        self._path, self._tree, self._data = path, tree, data
        self._added: list[bytes] = []
        self._size = len(data)

    def is_plain(self, accessor: int) -> bool:
        """Whether they are what they stand for."""
        found = self._tree["accessors"][accessor]
        # Without a view they are zeros.
        return "sparse" not in found and not ("bufferView" in found and found.get("normalized", False))

    def values(self, accessor: int) -> Array:
        """What they stand for, ``(N, width)``."""
        found = self._tree["accessors"][accessor]
        kind, width = np.dtype(_TYPES[found["componentType"]]), _WIDTHS[found["type"]]
        if "bufferView" in found:
            raw = self._stored(found, kind, found["count"], width)
        else:
            raw = np.zeros((found["count"], width), kind)
        if "sparse" in found:
            count, index, value = (found["sparse"][key] for key in ("count", "indices", "values"))
            rows = self._stored(index, np.dtype(_TYPES[index["componentType"]]), count, 1)
            raw = raw.copy()
            raw[rows[:, 0]] = self._stored(value, kind, count, width)
        return np.maximum(raw / np.iinfo(kind).max, -1) if found.get("normalized", False) else raw

    def _stored(self, place: Tree, kind: np.dtype[Any], count: int, width: int) -> Array:
        """Numbers as they are in the view that is named, ``(count, width)``."""
        view = self._tree["bufferViews"][place["bufferView"]]
        strides = (view.get("byteStride", width * kind.itemsize), kind.itemsize)
        start = view["byteOffset"] + place.get("byteOffset", 0)
        found: Array = np.ndarray((count, width), kind, self._data, start, strides)
        return found

    def add(self, values: Array, component: int) -> int:
        """The number of a new accessor of these values."""
        array = np.ascontiguousarray(values, _TYPES[component])
        kind = "SCALAR" if array.ndim == 1 else f"VEC{array.shape[1]}"
        self._tree["bufferViews"].append({"buffer": 0, "byteOffset": self._size, "byteLength": array.nbytes})
        self._added.append(array.tobytes())  # four bytes a number, so that the next begins where it may
        self._size += array.nbytes
        self._tree["accessors"].append(
            {
                **{"bufferView": len(self._tree["bufferViews"]) - 1, "componentType": component},
                **{"count": len(array), "type": kind},
            }
        )
        return len(self._tree["accessors"]) - 1

    def written(self) -> bytes:
        """All of it as a GLB file."""
        self._tree["buffers"] = [{"byteLength": self._size}]
        text = json.dumps(self._tree).encode()
        text += b" " * (-len(text) % 4)
        head = struct.pack("<4sII", b"glTF", 2, 12 + 2 * _CHUNK.size + len(text) + self._size)
        parts = [head, _CHUNK.pack(len(text), b"JSON"), text, _CHUNK.pack(self._size, b"BIN\0"), self._data]
        return b"".join([*parts, *self._added])


def _base_colour(material: Tree) -> None:
    """Gives a material of specular colours and glossiness its diffuse colour as base colour, a lamp that of its light.

    Programs write pictures that light is not to change as the light of something black.
    """
    glossy = material.get("extensions", {}).pop("KHR_materials_pbrSpecularGlossiness", None)
    if glossy is not None:
        names = {"diffuseFactor": "baseColorFactor", "diffuseTexture": "baseColorTexture"}
        material["pbrMetallicRoughness"] = {names[name]: value for name, value in glossy.items() if name in names}
    base, light = material.get("pbrMetallicRoughness", {}), material.get("emissiveFactor", (0, 0, 0))
    if any(light) and not any(base.get("baseColorFactor", (1, 1, 1))[:3]):
        material["pbrMetallicRoughness"] = {"baseColorFactor": [*light, 1]}
        if "emissiveTexture" in material:
            material["pbrMetallicRoughness"]["baseColorTexture"] = material["emissiveTexture"]


def _plain_primitive(tree: Tree, buffer: _Buffer, primitive: Tree) -> None:
    attributes = primitive["attributes"]
    for name in ("POSITION", "COLOR_0"):  # of colours in 16 bits, as Blender writes them, trimesh keeps the lower 8
        if name in attributes and not buffer.is_plain(attributes[name]):
            attributes[name] = buffer.add(buffer.values(attributes[name]), _FLOAT)
    if "indices" in primitive and not buffer.is_plain(primitive["indices"]):
        primitive["indices"] = buffer.add(buffer.values(primitive["indices"])[:, 0], _WHOLE)
    if primitive.get("mode", _TRIANGLES) == _FAN:
        count = tree["accessors"][attributes["POSITION"]]["count"]
        corner = buffer.values(primitive["indices"])[:, 0] if "indices" in primitive else np.arange(count)
        first = np.full(max(len(corner) - 2, 0), corner[0])
        triangles = np.stack([first, corner[1:-1], corner[2:]], axis=1)
        primitive.update(mode=_TRIANGLES, indices=buffer.add(triangles.reshape(-1), _WHOLE))
    material = tree["materials"][primitive["material"]] if "material" in primitive else {}
    texture = material.get("pbrMetallicRoughness", {}).get("baseColorTexture")
    if texture is None:
        return
    moved = texture.get("extensions", {}).get("KHR_texture_transform", {})
    name = f"TEXCOORD_{moved.get('texCoord', texture.get('texCoord', 0))}"
    if name in attributes and (moved or name != "TEXCOORD_0" or not buffer.is_plain(attributes[name])):
        attributes["TEXCOORD_0"] = buffer.add(_moved(buffer.values(attributes[name]), moved), _FLOAT)


def _moved(place: Array, how: Tree) -> NDArray[np.float64]:
    """Places on a picture scaled, turned and moved, as KHR_texture_transform says."""
    u, v = (place * how.get("scale", (1, 1))).T
    angle = how.get("rotation", 0)
    # Counter-clockwise as one sees it: v points down.
    turned = np.stack([np.cos(angle) * u + np.sin(angle) * v, np.cos(angle) * v - np.sin(angle) * u], axis=1)
    return np.asarray(turned + how.get("offset", (0, 0)))
