"""OFF files: meshes and point sets as text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pc3d.data.dataset import BadFileError
from pc3d.data.file_fields import Array, Fields, colours, fans, read_table

_KEYWORD = re.compile(rb"(?:ST)?([CN]*)OFF(?=\d|\b)", re.IGNORECASE)
_COUNTS = re.compile(rb"\d+\s+\d+(\s+\d+)?")


@dataclass(frozen=True)
class OffFile:
    """What an OFF file holds.

    Attributes:
        fields: the vertices, with colours and normals if it has them.
        triangles: ``(F, 3)`` int64 vertices of the triangles that its polygons are cut into.
        face_rgb: ``(F, 3)`` colours of the triangles in [0, 1], or None.
    """

    fields: Fields
    triangles: NDArray[np.int64]
    face_rgb: Array | None


def read_off(path: Path) -> OffFile:
    """The vertices and faces of an OFF file.

    Comments and blank lines are passed over. The keyword may be in small letters or missing, and counts may be glued to
    it (``OFF490 518 0``). Before OFF, C announces colours of the vertices, N normals, ST places on a texture, which are
    passed over. Faces may have colours; white are those without, where others have one.

    Raises:
        ValueError: there is no keyword, there are no counts, or the body has fewer lines than the counts promise.
        BadFileError: there are no vertices, or a corner of a face is none.
    """
    lines = [line.partition(b"#")[0].strip() for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()]
    lines = [line for line in lines if line]
    with_colour, with_normal, body = _header(lines)
    try:
        num_vertices, num_faces = (int(word) for word in body[0].split()[:2])
    except (IndexError, ValueError):
        if body and body[0].upper().startswith(b"BINARY"):
            raise ValueError("is a binary OFF file, which is not read: export it as text") from None
        raise ValueError("has no line with the numbers of vertices and faces after OFF") from None
    if len(body) - 1 < num_vertices + num_faces:
        raise ValueError(
            f"is truncated: the header promises {num_vertices} vertices and {num_faces} faces, "
            f"{len(body) - 1} lines follow"
        )
    fields = _vertices(path, body[1 : 1 + num_vertices], with_colour, with_normal)
    triangles, face_rgb = _faces(path, body[1 + num_vertices : 1 + num_vertices + num_faces], num_vertices)
    return OffFile(fields, triangles, face_rgb)


def _header(lines: list[bytes]) -> tuple[bool, bool, list[bytes]]:
    """Whether vertices have colours and normals, and the lines from that of the counts on."""
    if not lines:
        raise ValueError("is empty")
    keyword = _KEYWORD.match(lines[0])
    if keyword is None:
        if _COUNTS.fullmatch(lines[0]):
            return False, False, lines
        raise ValueError(f"does not begin with OFF but with {lines[0][:40]!r}")
    announced, glued = keyword[1].upper(), lines[0][keyword.end() :].strip()
    return b"C" in announced, b"N" in announced, ([glued] if glued else []) + lines[1:]


def _vertices(path: Path, lines: list[bytes], with_colour: bool, with_normal: bool) -> Fields:
    if not lines:
        raise BadFileError(path, "holds no points")
    table = read_table(line.decode("latin-1") for line in lines)
    first = 6 if with_normal else 3
    if table.shape[1] < first + (3 if with_colour else 0):
        raise ValueError(f"has {table.shape[1]} numbers a vertex, fewer than its keyword announces")
    fields: Fields = {"xyz": table[:, :3]}
    if with_normal:
        fields["normal"] = table[:, 3:6]
    if with_colour:
        fields["rgb"] = colours(table[:, first : first + 3])
    return fields


def _faces(path: Path, lines: list[bytes], num_vertices: int) -> tuple[NDArray[np.int64], Array | None]:
    lengths, corners, painted, paint = [], [], [], []
    for line in lines:
        words = line.split()
        length = int(words[0])
        if not 0 <= length < len(words):
            raise ValueError(f"has a face with fewer corners than it says, {line[:60].decode('latin-1')!r}; truncated?")
        lengths.append(length)
        corners += words[1 : length + 1]
        # One number more is a place in a table of colours that the file does not have.
        painted.append(len(words) >= length + 4)
        paint += words[length + 1 : length + 4] if painted[-1] else []
    vertices = np.array(corners, np.bytes_).astype(np.int64)
    if vertices.size and not 0 <= vertices.min() <= vertices.max() < num_vertices:
        raise BadFileError(
            path, f"has faces with vertices {vertices.min()} to {vertices.max()}, of which it has {num_vertices}"
        )
    number = np.array(lengths, np.int64)
    polygon, corner = fans(number)
    triangles = vertices[(np.cumsum(number) - number)[polygon][:, None] + corner]
    if not paint:
        return triangles, None
    rgb = np.ones((len(lines), 3), np.float32)
    values = np.array(paint, np.bytes_).astype(np.float64).reshape(-1, 3)
    rgb[painted] = colours(values if any(b"." in word for word in paint) else values.astype(np.int64))
    return triangles, rgb[polygon]
