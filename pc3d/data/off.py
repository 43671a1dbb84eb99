"""OFF files: meshes and point sets as text."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pc3d.data.dataset import BadFileError
from pc3d.data.file_fields import Array, Fields, colours, read_table
from pc3d.data.polygons import cut

_KEYWORD = re.compile(rb"(ST)?([CN]*)OFF(?=\d|\b)", re.IGNORECASE)
_COUNTS = re.compile(rb"\d+\s+\d+(\s+\d+)?")
# In capitals but for the n, which would announce normals as a capital one.
_MORE_DIMENSIONS = re.compile(rb"(ST)?C?N?(4|n|4n)OFF\b")


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
    passed over. Faces may have colours; white are those without, where others have one. Lines may end anywhere in a
    file that has none.

    Raises:
        ValueError: there is no keyword, there are no counts, or the body has fewer lines than the counts promise.
        BadFileError: there are no vertices, or a corner of a face is none.
    """
    lines = [line.partition(b"#")[0].strip() for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()]
    lines = [line for line in lines if line]
    announced, body = _header(lines)
    body = _in_lines(announced, body)
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
    fields = _vertices(path, body[1 : 1 + num_vertices], announced)
    triangles, face_rgb = _faces(path, body[1 + num_vertices : 1 + num_vertices + num_faces], fields["xyz"])
    return OffFile(fields, triangles, face_rgb)


class _Announced(NamedTuple):
    """What vertices have beside their place."""

    texture: bool = False
    colour: bool = False
    normal: bool = False


def _header(lines: list[bytes]) -> tuple[_Announced, list[bytes]]:
    """What the keyword says, and the lines from that of the counts on."""
    if not lines:
        raise ValueError("is empty")
    if _MORE_DIMENSIONS.match(lines[0]):
        raise ValueError("is an OFF file of other than three dimensions, which is not read: export it in three")
    keyword = _KEYWORD.match(lines[0])
    if keyword is None:
        if _COUNTS.fullmatch(lines[0]):
            return _Announced(), lines
        raise ValueError(f"does not begin with OFF but with {lines[0][:40]!r}")
    letters, glued = keyword[2].upper(), lines[0][keyword.end() :].strip()
    announced = _Announced(keyword[1] is not None, b"C" in letters, b"N" in letters)
    return announced, ([glued] if glued else []) + lines[1:]


def _in_lines(announced: _Announced, body: list[bytes]) -> list[bytes]:
    """A line for the counts, each vertex and each face where they stand in fewer; else the lines as they are."""
    counts = b" ".join(body[:3]).split()[:3]
    if len(counts) < 3 or not all(word.isdigit() for word in counts):
        return body
    num_vertices, num_faces = int(counts[0]), int(counts[1])
    if len(body) > num_vertices + num_faces and len(body[0].split()) > 1:
        return body
    words = b" ".join(body).split()
    width = 3 + 3 * announced.normal + 4 * announced.colour + 2 * announced.texture
    if 3 + width * num_vertices + num_faces > len(words):
        return body
    ends = [3 + width * row for row in range(num_vertices + 1)]
    for _ in range(num_faces):
        length = words[ends[-1]] if ends[-1] < len(words) else b""
        ends.append(ends[-1] + 1 + int(length) if length.isdigit() else len(words) + 1)
    whole = ends[-1] == len(words)
    return [b" ".join(words[start:end]) for start, end in pairwise([0, *ends])] if whole else body


def _vertices(path: Path, lines: list[bytes], announced: _Announced) -> Fields:
    if not lines:
        raise BadFileError(path, "holds no points")
    table = read_table(line.decode("latin-1") for line in lines)
    first, width = 6 if announced.normal else 3, table.shape[1]
    if width < first + 3 * announced.colour:
        raise ValueError(f"has {width} numbers a vertex, fewer than its keyword announces")
    fields: Fields = {"xyz": table[:, :3]}
    if announced.normal:
        fields["normal"] = table[:, 3:6]
    if announced.colour:
        # How opaque a vertex is, the fourth, tells 0..255 from 0..1 where the others are dark.
        end = max(first + 3, min(first + 4, width - 2 * announced.texture))
        fields["rgb"] = colours(table[:, first:end])[:, :3]
    elif width > first + 2 * announced.texture:
        warnings.warn(
            f"{path}: has {width} numbers a vertex, more than its keyword announces: those after the first {first} are "
            "passed over; COFF announces colours",
            stacklevel=2,
        )
    return fields


def _faces(path: Path, lines: list[bytes], xyz: Array) -> tuple[NDArray[np.int64], Array | None]:
    num_vertices = len(xyz)
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
    polygon, corner = cut(number, vertices, xyz)
    triangles = vertices[(np.cumsum(number) - number)[polygon][:, None] + corner]
    if not paint:
        return triangles, None
    rgb = np.ones((len(lines), 3), np.float32)
    values = np.array(paint, np.bytes_).astype(np.float64).reshape(-1, 3)
    rgb[painted] = colours(values if any(b"." in word for word in paint) else values.astype(np.int64))
    return triangles, rgb[polygon]
