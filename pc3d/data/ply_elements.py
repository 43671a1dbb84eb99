"""The elements of a PLY file: text or binary, with lists of any lengths."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from pc3d.data.dataset import BadFileError
from pc3d.data.file_fields import Array, read_table

# Codes that NumPy and struct share.
_CODES = {
    **{"char": "b", "uchar": "B", "short": "h", "ushort": "H", "int": "i", "uint": "I", "float": "f", "double": "d"},
    **{"int8": "b", "uint8": "B", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I"},
    **{"float32": "f", "float64": "d", "int64": "q", "uint64": "Q"},
}
ORDERS = {"ascii": "<", "binary_little_endian": "<", "binary_big_endian": ">"}
_HEADER_BYTES = 1 << 20
CLASS_COMMENT = re.compile(r"\s*comment class (-?\d+) (.*)")
"""The comment that names a class of ``label``, see :func:`class_comments`."""


class Lists(NamedTuple):
    """A property whose rows are lists: their lengths ``(N,)`` int64, and all values, one list after the other."""

    lengths: Array
    values: Array


Element = dict[str, Array | Lists]


def num_rows(element: Element) -> int:
    """How many rows an element has, 0 without properties."""
    first = next(iter(element.values()), ())
    return len(first.lengths if isinstance(first, Lists) else first)


@dataclass(frozen=True)
class PlyFile:
    """What a PLY file holds.

    Attributes:
        elements: of each element its properties by their names, in lower case.
        textures: file names of the pictures that the comments name.
    """

    elements: dict[str, Element]
    textures: tuple[str, ...]


class _Property(NamedTuple):
    name: str
    code: str
    count_code: str | None  # of a list


@dataclass(frozen=True)
class PlyHeader:
    """What a PLY file says of itself.

    Attributes:
        kind: one of :data:`ORDERS`.
        elements: names, how many rows, and their properties.
        textures: file names of the pictures that the comments name.
        classes: names of the classes that the comments name, by their numbers.
        size: bytes until the elements begin.
    """

    kind: str
    elements: list[tuple[str, int, list[_Property]]]
    textures: tuple[str, ...]
    classes: dict[int, str]
    size: int


def class_comments(names: Mapping[int, str]) -> list[str]:
    """The lines of a header that name the classes of points, in the order of the mapping."""
    return [f"comment class {number} {name}" for number, name in names.items()]


def read_ply(path: Path) -> PlyFile:
    """Everything in a PLY file.

    Raises:
        BadFileError: it is no PLY file, or holds less than its header promises.
    """
    with path.open("rb") as file:
        header = read_ply_header(path, file)
        file.seek(header.size)
        if header.kind == "ascii":
            try:
                lines = _lines(file)
                elements = {row[0]: _text_rows(path, lines, *row) for row in header.elements}
            except ValueError as error:
                file.seek(header.size)
                elements = _without_lines(path, file, header, error)
        else:
            order = ORDERS[header.kind]
            elements = {row[0]: _binary_rows(path, file, *row, order) for row in header.elements}
    return PlyFile(elements, header.textures)


def read_ply_header(path: Path, file: IO[bytes]) -> PlyHeader:
    """The header of a PLY file, which has just been opened.

    Raises:
        BadFileError: it is no PLY file.
    """
    data = file.read(_HEADER_BYTES)
    start = re.match(rb"ply[ \t]*(\r\n|\n\r|\n|\r)", data)
    if start is None:
        raise BadFileError(path, f"cannot be read as PLY: it begins with {data[:20]!r}, not with a line 'ply'")
    # Old software ends lines with a lone carriage return, and the first byte after the header may look like another.
    line_end = start[1] if start[1] in (b"\r", b"\n\r") else rb"\r?\n"
    end = re.compile(rb"end_header[ \t]*" + line_end).search(data, start.end())
    if end is None:
        raise BadFileError(path, "cannot be read as PLY: the line 'end_header' is missing; truncated?")
    kind, textures = "", []
    classes: dict[int, str] = {}
    elements: list[tuple[str, int, list[_Property]]] = []
    # Comments may be in any encoding.
    for line in re.split(r"[\r\n]+", data[start.end() : end.start()].decode("latin-1")):
        match line.split():
            case ["format", word, *_] if word in ORDERS:
                kind = word
            case ["element", name, count] if count.isdecimal():
                elements.append((name, int(count), []))
            case ["property", "list", count_type, item_type, name] if elements and {count_type, item_type} <= set(
                _CODES
            ):
                elements[-1][2].append(_Property(name.lower(), _CODES[item_type], _CODES[count_type]))
            case ["property", item_type, name] if elements and item_type in _CODES:
                elements[-1][2].append(_Property(name.lower(), _CODES[item_type], None))
            case ["comment", "TextureFile", *_]:
                textures.append(line.split("TextureFile", 1)[1].strip())
            case ["comment", "class", _, *_] if named := CLASS_COMMENT.fullmatch(line):
                classes[int(named[1])] = named[2].encode("latin-1").decode("utf-8", "replace").strip()
            case [] | ["comment", *_] | ["obj_info", *_]:
                pass
            case _:
                raise BadFileError(path, f"cannot be read as PLY: its header has the line {line!r}")
    if not kind:
        raise BadFileError(path, f"cannot be read as PLY: its header has no line 'format' with one of {list(ORDERS)}")
    return PlyHeader(kind, elements, tuple(textures), classes, end.end())


def _lines(file: IO[bytes]) -> Iterator[str]:
    """The lines of a text that hold something, whichever way they end."""
    for raw in file:
        for line in raw.decode("latin-1").replace("\r", "\n").split("\n"):
            if line.strip():
                yield line


def _without_lines(path: Path, file: IO[bytes], header: PlyHeader, error: ValueError) -> dict[str, Element]:
    """The elements of a text whose lines are not its rows, as the format lets them be.

    Raises:
        ValueError: ``error``, the one of reading it by lines, unless there are just the numbers that are promised.
    """
    elements = {}
    try:
        numbers = np.fromiter((float(word) for line in _lines(file) for word in line.split()), np.float64).tobytes()
        for name, count, properties in header.elements:
            elements[name], size = _numbers_of(path, numbers, name, count, properties) if properties else ({}, 0)
            numbers = numbers[size:]
    except (ValueError, OverflowError):  # the latter of an infinite length
        raise error from None
    if numbers:
        raise error
    return elements


def _short(path: Path, name: str, promised: int, found: int) -> BadFileError:
    return BadFileError(
        path, f"is truncated: the header promises {promised} of the element {name!r}, {found} are there"
    )


def _text_rows(path: Path, lines: Iterator[str], name: str, count: int, properties: list[_Property]) -> Element:
    if not properties:  # its rows are blank lines, which are passed over
        return {}
    if all(item.count_code is None for item in properties):
        table = read_table(islice(lines, count))
        if len(table) < count:
            raise _short(path, name, count, len(table))
        if count and table.shape[1] != len(properties):
            raise BadFileError(
                path, f"has {table.shape[1]} numbers a line where {name!r} has {len(properties)} properties"
            )
        if not count:
            return {item.name: np.empty(0, item.code) for item in properties}
        return {item.name: _as_declared(table[:, column], item.code) for column, item in enumerate(properties)}
    rows = list(islice(lines, count))
    if len(rows) < count:
        raise _short(path, name, count, len(rows))
    numbers = np.array(" ".join(rows).split(), dtype=np.str_).astype(np.float64).tobytes()
    element, size = _numbers_of(path, numbers, name, count, properties)
    if size != len(numbers):
        raise BadFileError(path, f"has lines of {name!r} with more numbers than their lists have items")
    return element


def _numbers_of(path: Path, numbers: bytes, name: str, count: int, properties: list[_Property]) -> tuple[Element, int]:
    """The rows at the beginning of numbers of a text, which are doubles, and how many bytes of these they take."""
    as_double = [_Property(item.name, "d", None if item.count_code is None else "d") for item in properties]
    element, size = _rows_of_lists(path, numbers, name, count, as_double, "<")
    for item in properties:
        column = element[item.name]
        if isinstance(column, Lists):
            element[item.name] = Lists(column.lengths, _as_declared(column.values, item.code))
        else:
            element[item.name] = _as_declared(column, item.code)
    return element, size


def _as_declared(values: Array, code: str) -> Array:
    """Numbers in the type that tells colours in 0..255 from those in 0..1; as they are where that would lose some."""
    if code in "fd":
        return values.astype(code)
    fit = (values == np.trunc(values)) & (values >= np.iinfo(code).min) & (values <= np.iinfo(code).max)
    return values.astype(code) if fit.all() else values


def _binary_rows(
    path: Path, file: IO[bytes], name: str, count: int, properties: list[_Property], order: str
) -> Element:
    if any(item.count_code is not None for item in properties):
        start = file.tell()
        element, size = _rows_of_lists(path, file.read(), name, count, properties, order)
        file.seek(start + size)
        return element
    kind = row_type(properties, order, [0] * len(properties))
    there = os.fstat(file.fileno()).st_size - file.tell()
    if count * kind.itemsize > there:  # before there is room for what the header promises
        raise _short(path, name, count, there // kind.itemsize)
    rows = np.fromfile(file, kind, count)
    return {item.name: rows[f"{column}"] for column, item in enumerate(properties)}


def row_type(properties: list[_Property], order: str, lengths: list[int]) -> np.dtype[np.void]:
    """A row whose lists have these lengths. Columns go by their number: names may occur twice."""
    fields: list[tuple[str, str] | tuple[str, str, tuple[int]]] = []
    for column, (item, length) in enumerate(zip(properties, lengths, strict=True)):
        if item.count_code is None:
            fields.append((f"{column}", order + item.code))
        else:
            fields += [(f"{column} length", order + item.count_code), (f"{column}", order + item.code, (length,))]
    return np.dtype(fields)


def _rows_of_lists(
    path: Path, data: bytes, name: str, count: int, properties: list[_Property], order: str
) -> tuple[Element, int]:
    """The properties of ``count`` rows at the beginning of ``data``, and how many bytes they take."""
    places, lengths, size = _places(path, data, name, min(count, 1), properties, order)
    if count:  # Usually all lists are as long as those of the first row.
        alike = row_type(properties, order, lengths[:, 0].tolist())
        rows = np.frombuffer(data, alike, min(count, len(data) // alike.itemsize))
        columns = [column for column, item in enumerate(properties) if item.count_code is not None]
        if len(rows) == count and all((rows[f"{c} length"] == lengths[c, 0]).all() for c in columns):
            return {
                item.name: rows[f"{c}"]
                if item.count_code is None
                else Lists(np.full(count, lengths[c, 0]), rows[f"{c}"].reshape(-1))
                for c, item in enumerate(properties)
            }, count * alike.itemsize
        places, lengths, size = _places(path, data, name, count, properties, order)
    raw = np.frombuffer(data, np.uint8)
    element: Element = {}
    for column, item in enumerate(properties):
        number = lengths[column]
        width = struct.calcsize(order + item.code)
        before = np.cumsum(number) - number
        first = np.repeat(places[column] - before * width, number) + np.arange(number.sum()) * width
        values = raw[first[:, None] + np.arange(width)].view(order + item.code).reshape(-1)
        element[item.name] = values if item.count_code is None else Lists(number, values)
    return element, size


def _places(
    path: Path, data: bytes, name: str, count: int, properties: list[_Property], order: str
) -> tuple[Array, Array, int]:
    """Where the values of each property and row begin, how many there are, and where the last row ends."""
    sizes = [struct.calcsize(order + item.code) for item in properties]
    counters = [None if item.count_code is None else struct.Struct(order + item.count_code) for item in properties]
    smallest = sum(size if counter is None else counter.size for counter, size in zip(counters, sizes, strict=True))
    # No more rows than can be there, whatever the header promises.
    places, lengths = np.empty((2, len(properties), min(count, len(data) // smallest + 1)), np.int64)
    position = 0
    for row in range(count):
        for column, (counter, size) in enumerate(zip(counters, sizes, strict=True)):
            number = 1
            if counter is not None:
                if position + counter.size > len(data):
                    raise _short(path, name, count, row)
                number = int(counter.unpack_from(data, position)[0])
                position += counter.size
            if number < 0 or position + number * size > len(data):
                raise _short(path, name, count, row)
            places[column, row], lengths[column, row] = position, number
            position += number * size
    return places, lengths, position
