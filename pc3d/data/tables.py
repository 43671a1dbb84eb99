"""Point clouds as tables of numbers: text, NPY and NPZ."""

from __future__ import annotations

import csv
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from pc3d.data.dataset import BadFileError
from pc3d.data.file_fields import (
    COLUMN_NAMES,
    Array,
    Fields,
    colours,
    is_label,
    label_column,
    named_fields,
    names_places,
    read_table,
)
from pc3d.data.pickles import OBJECTS_REMEDY, load_object_array, read_npy_header

# What programs call arrays, in any case of letters.
_ARRAY_NAMES = {
    "xyz": (
        *("xyz", "points", "coord", "coords", "coordinates", "pos", "position", "positions"),
        *("pts", "pc", "pcd", "cloud", "point_cloud", "pointcloud", "data", "arr_0"),
    ),
    "rgb": ("rgb", "color", "colors", "colour", "colours"),
    "normal": ("normal", "normals"),
}
# What programs call columns that are read.
_COLUMNS = frozenset(chain(*chain(*COLUMN_NAMES.values())))
# Names the columns of the tables without names in its folder, and in those below.
COLUMNS_FILE = ".columns"
_OBJECTS = (
    "holds Python objects (a pickle), not one array of numbers: store rows of numbers with np.save, or named arrays as "
    f"in np.savez(path, xyz=..., rgb=..., normal=...); {OBJECTS_REMEDY}"
)
_COMMENT = re.compile(r"#|//")
_COMMENT_LINE = re.compile(r"\s*(#|//|%|;)\s*")
_SEPARATOR = re.compile(r"\s*[,;]\s*")
_BETWEEN = re.compile(r"\s*[,;]\s*|\s+")
_NUMBER = re.compile(r"\s*\"?[-+]?(\.?\d|nan|inf)", re.IGNORECASE)
# What Excel writes above a table to say what separates its columns.
_EXCEL = re.compile(r"sep=.?")
# Units behind names, as in "x [m]".
_UNIT = re.compile(r"\s*[\[(][^\])]*[\])]$")
# Not a number, as C programs on Windows write it, and in columns with names as R and databases do.
_WINDOWS_NAN = re.compile(r"[-+]?(1\.#[a-z]+\d*|nan\([a-z]*\))", re.IGNORECASE)
_MISSING = ("", "na", "n/a", "null", "none")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+(,\d+)?([eE][-+]?\d+)?")


def columns_beside(path: Path) -> Path | None:
    """The list of names of columns that holds for a table without names: the nearest one in or above its folder."""
    # Not path.absolute(), whose parents have "..": from work/ on, ../scans/a.txt is not below work/. Links are not
    # followed: a file may be kept elsewhere, and its folder is the one where it was named.
    candidates = (folder / COLUMNS_FILE for folder in Path(os.path.abspath(path)).parents)
    return next((file for file in candidates if file.is_file()), None)


def _names_beside(path: Path) -> tuple[list[str], Path | None]:
    """The names in the list that holds for a table, and this list; none where there is none.

    Raises:
        BadFileError: it does not name columns, x, y and z among them.
    """
    listing = columns_beside(path)
    if listing is None:
        return [], None
    names = [name for name in _BETWEEN.split(listing.read_text("utf-8-sig", "replace").strip()) if name]
    if not names_places(names):
        raise BadFileError(
            path, f"{listing} must name the columns of the files beside and below it, such as x y z intensity"
        )
    return names, listing


def _split_array(table: Array, path: Path, labels: Sequence[str]) -> Fields:
    """The fields of an array of which the file itself says nothing."""
    names, listing = _names_beside(path)
    if listing is None or table.ndim != 2:
        return split_columns(table, path, labels)
    _check_numbers(table, path, "the array")
    if len(names) != table.shape[1]:
        raise BadFileError(path, _other_count(table.shape[1], names, listing))
    return named_fields(path, {name: table[:, column] for column, name in enumerate(names)}, labels)


def _other_count(count: int, names: Sequence[str], listing: Path | None) -> str:
    """That a table has other columns than it names, or than the list beside it names."""
    named = f"{len(names)} columns ({' '.join(names)})"
    return f"names {named} and has {count}" if listing is None else f"has {count} columns, and {listing} names {named}"


def split_columns(table: Array, path: Path, labels: Sequence[str] = ()) -> Fields:
    """Columns x y z, and after them a normal, a colour, or both, told apart by their values; classes are the last."""
    _check_numbers(table, path, "the array")
    if labels and table.ndim == 2:
        if table.shape[1] not in (4, 7, 10):
            raise BadFileError(
                path,
                f"has {table.shape[1]} columns: 4, 7 or 10, with the classes of the points in the last, are understood"
                f"{_named(path, 'x y z intensity label', 'xyz=..., label=...')}",
            )
        return {**split_columns(table[:, :-1], path), "segment": table[:, -1]}
    if table.size == 0 and table.ndim == 2:
        raise BadFileError(path, "holds no points")
    if table.ndim != 2 or table.shape[1] < 3:
        raise BadFileError(path, f"has shape {table.shape}; rows of x y z [normal] [colour] of one cloud are expected")
    fields: Fields = {"xyz": table[:, :3]}
    rest = table[:, 3:]
    if rest.shape[1] not in (0, 3, 6):
        raise BadFileError(path, f"has {table.shape[1]} columns{_remedy(table, path)}")
    for start in range(0, rest.shape[1], 3):
        block = rest[:, start : start + 3]
        known = block[np.isfinite(block).all(axis=1)]  # organised clouds have NaN where there is no point
        length = np.linalg.norm(known.astype(np.float64), axis=1)
        unit = np.abs(length - 1) < 0.02
        # Nothing below 0 is a colour, so normals that are not known, zeros, may be among the others then.
        if "normal" not in fields and (unit.all() or ((known < 0).any() and (unit | (length == 0)).all())):
            fields["normal"] = block
        elif "rgb" not in fields and (known >= 0).all() and (known <= 255).all():
            fields["rgb"] = colours(block)
        else:
            raise BadFileError(
                path, f"columns {start + 4} to {start + 6} are neither unit normals nor colours in 0..1 or 0..255"
            )
    return fields


def _remedy(table: Array, path: Path) -> str:
    understood = ": 3 (xyz), 6 (and normals or colours) or 9 are understood"
    if len(table) == 3 and table.shape[1] > 9:
        return f"{understood}; x, y and z seem to be its rows: store the transposed array"
    columns, arrays = "x y z intensity red green blue nx ny nz", "xyz=..., rgb=..., normal=..."
    return f"{understood}{_named(path, columns, arrays)}"


def _named(path: Path, columns: str, arrays: str) -> str:
    """How to say what the columns of a file are, in words."""
    beside = f"a file {COLUMNS_FILE} in its folder or above may name them for all, such as {columns}"
    if path.suffix.lower() in (".npy", ".npz"):
        return f"; leave others out, or store named arrays: np.savez(path, {arrays}); or {beside}"
    return (
        f" without names; a first line may name them, such as {columns}: those of other names are passed over; or "
        f"{beside}"
    )


def _check_numbers(values: Array, path: Path, name: str) -> None:
    if values.dtype.kind not in "iuf":
        raise BadFileError(path, f"{name} must hold numbers, has {values.dtype}")


class _Layout(NamedTuple):
    delimiter: str | None
    decimal_comma: bool
    names: list[str]
    in_comment: bool
    promised: int | None


def read_text(path: Path, labels: Sequence[str] = (), **_: Any) -> Fields:
    """The points of a text file: numbers between spaces, tabs, commas or semicolons, with or without names above.

    In files that begin with the number of points, as PTS files do, the fourth of four or seven columns is an intensity
    (of five or eight where the last is the class of a point). What a list beside the file says (:data:`COLUMNS_FILE`)
    counts more than a comment, and less than a line of names.
    """
    with path.open("rb") as start:
        # Two bytes at the beginning tell UTF-16, three mark UTF-8 as programs for Windows write it.
        encoding = "utf-16" if start.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    with path.open(encoding=encoding, errors="replace") as file:
        layout, first = _layout(file)
        listing = None
        if not layout.names or layout.in_comment:
            beside, listing = _names_beside(path)
            layout = layout if listing is None else layout._replace(names=beside, in_comment=False)
        names = layout.names
        # From the file itself: a survey of millions of lines is not held as text.
        if names and not layout.in_comment:
            names = [name for name in names if _is_read(name, labels)]
            table = read_table(_columns(chain([first], file), layout, path, labels, listing), ",")
        else:
            table = read_table(_numbers(chain([first], file), layout.decimal_comma), layout.delimiter)
    if layout.promised is not None and layout.promised != len(table):
        raise BadFileError(path, f"promises {layout.promised} points in its first line, {len(table)} are there")
    if len(names) == table.shape[1] and len(table) > 0:
        read = Counter(name.lower() for name in names if _is_read(name, labels))
        if repeated := [name for name, count in read.items() if count > 1]:
            raise BadFileError(path, f"has several columns of the names {repeated}: rename those that are not meant")
        fields = named_fields(path, {name: table[:, column] for column, name in enumerate(names)}, labels)
        # A comment like "x y z of the points" may have as many words by chance.
        if len(fields) > 1 or not layout.in_comment or table.shape[1] not in (3, 6, 9):
            return fields
    with_intensity = (5, 8) if labels else (4, 7)
    if table.shape[1] in with_intensity and (layout.promised is not None or path.suffix.lower() == ".pts"):
        table = np.delete(table, 3, axis=1)
    return split_columns(table, path, labels)


def _is_read(name: str, labels: Sequence[str]) -> bool:
    return name.lower() in _COLUMNS or is_label(name, labels)


def _layout(file: IO[str]) -> tuple[_Layout, str]:
    """What the lines above the numbers say, and the first line of numbers.

    Raises:
        ValueError: a line is neither numbers nor names nor a comment.
    """
    names: list[str] = []
    in_comment, promised = False, None
    for line in file:
        comment = _COMMENT_LINE.match(line)
        text = line[comment.end() if comment else 0 :].strip(" \t\r\n;")
        # Between separators, names may have blanks: CloudCompare writes "X,Y,Z,Original cloud index".
        splits = (_SEPARATOR.split(text), _BETWEEN.split(text))
        separated, words = ([_UNIT.sub("", word.strip('"')) for word in split] for split in splits)
        named = next((split for split in (separated, words) if names_places(split)), None)
        if named is not None:
            names, in_comment = named, comment is not None
        elif comment or words == [""] or _EXCEL.fullmatch(text):
            pass
        elif len(words) == 1 and words[0].isdecimal() and promised is None:
            promised = int(words[0])
        elif _NUMBER.match(line) or (names and not in_comment):
            return _Layout(*_delimiter(line), names, in_comment, promised), line
        else:
            raise ValueError(
                f"the line {line.strip()[:60]!r} is neither numbers nor names of columns, x y z among them; begin it "
                "with # to have it passed over"
            )
    return _Layout(None, False, names, in_comment, promised), ""


def _delimiter(line: str) -> tuple[str | None, bool]:
    """What stands between numbers, None for blanks, and whether a comma stands before their decimals."""
    if ";" in line:
        return ";", "," in line
    words = line.split()
    if len(words) >= 3 and "," in line and all(_DECIMAL_COMMA.fullmatch(word) for word in words):
        return None, True
    return ("," if "," in line else None), False


def _numbers(lines: Iterable[str], decimal_comma: bool) -> Iterator[str]:
    for line in lines:
        if ".#" in line or "(" in line:
            line = _WINDOWS_NAN.sub("nan", line)
        kept = _COMMENT.split(line, maxsplit=1)[0].strip(" \t\r\n,;")
        if kept:
            yield kept.replace(",", ".") if decimal_comma else kept


def _columns(
    lines: Iterable[str], layout: _Layout, path: Path, labels: Sequence[str], listing: Path | None
) -> Iterator[str]:
    """Those columns of a table with names that are read, between commas; the others may hold words or nothing."""
    kept = (_WINDOWS_NAN.sub("nan", line) for line in lines if line.strip() and not _COMMENT.match(line.lstrip()))
    rows: Iterable[list[str]]
    if layout.delimiter is None:
        rows = (_COMMENT.split(line, maxsplit=1)[0].split() for line in kept)
    else:
        rows = csv.reader(kept, delimiter=layout.delimiter, skipinitialspace=True)
    wanted = [column for column, name in enumerate(layout.names) if _is_read(name, labels)]
    for number, row in enumerate(rows):
        while len(row) > len(layout.names) and not row[-1].strip():
            row.pop()  # a separator at the end of the line
        if len(row) != len(layout.names):
            found = _other_count(len(row), layout.names, listing)
            if number:
                raise BadFileError(path, f"{found} in row {number}: truncated?")
            remedy = "" if listing else ": name each, or begin the line with # where it is no list of names"
            raise BadFileError(path, found + remedy)
        cells = [row[column].strip(' "') for column in wanted]
        cells = ["nan" if cell.lower() in _MISSING else cell for cell in cells]
        yield ",".join(cell.replace(",", ".") for cell in cells) if layout.decimal_comma else ",".join(cells)


def read_npy(path: Path, labels: Sequence[str] = (), **_: Any) -> Fields:
    """The points of an array: rows of numbers, records with names, or a dictionary of arrays."""
    with path.open("rb") as file:
        _check_promise(path, file, path.stat().st_size)
    try:
        array = np.load(path, allow_pickle=False)
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        held = load_object_array(path)
        if not isinstance(held, dict):
            raise BadFileError(path, _OBJECTS) from error
        wanted = {name: np.asarray(values) for name, values in held.items() if _known(name, labels)}
        return _from_arrays(wanted, path, [*held], labels)
    if array.dtype.names is None:
        return _split_array(array, path, labels)
    records = array.reshape(-1)
    return _from_arrays({name: records[name] for name in array.dtype.names}, path, labels=labels)


def _check_promise(path: Path, file: IO[bytes], size: int) -> None:
    """Refuse an array that a file of this size cannot hold, before NumPy makes room for it."""
    try:
        shape, kind = read_npy_header(file)
    except (ValueError, EOFError):
        return  # NumPy says what is wrong
    promised, there = math.prod(shape) * kind.itemsize, size - file.tell()
    if not kind.hasobject and promised > there:
        raise BadFileError(path, f"is truncated: an array of {shape} {kind} has {promised} bytes, {there} are there")


def read_npz(path: Path, labels: Sequence[str] = (), **_: Any) -> Fields:
    """The points of an archive of arrays."""
    with np.load(path, allow_pickle=False) as archive:
        unnamed = re.compile(r"arr_\d+")
        wanted = [name for name in archive.files if _known(name, labels) or unnamed.fullmatch(name)]
        for entry in archive.zip.infolist():
            if entry.filename.removesuffix(".npy") in wanted:
                with archive.zip.open(entry) as file:
                    _check_promise(path, file, entry.file_size)
        try:
            arrays = {name: archive[name] for name in wanted}
        except ValueError as error:
            if "Object arrays" not in str(error):
                raise
            raise BadFileError(path, _OBJECTS) from error
        if "arr_0" in arrays and all(unnamed.fullmatch(name) for name in arrays):
            # Arrays without names are told apart like columns.
            shape = arrays["arr_0"].shape
            blocks = [array for array in arrays.values() if array.shape == shape and len(shape) == 2]
            return _split_array(np.concatenate(blocks, axis=1) if blocks else arrays["arr_0"], path, labels)
        return _from_arrays(arrays, path, archive.files, labels)


def _known(name: object, labels: Sequence[str]) -> bool:
    return isinstance(name, str) and (
        _is_read(name, labels) or any(name.lower() in aliases for aliases in _ARRAY_NAMES.values())
    )


def _from_arrays(
    arrays: Mapping[str, Array], path: Path, names: Sequence[str] | None = None, labels: Sequence[str] = ()
) -> Fields:
    lower = {name.lower(): values for name, values in arrays.items()}
    found = {
        field: next(((name, lower[name]) for name in aliases if name in lower), None)
        for field, aliases in _ARRAY_NAMES.items()
    }
    if found["xyz"] is None and names_places(lower):
        fields = named_fields(path, arrays)
    elif found["xyz"] is None:
        others = list(arrays if names is None else names)
        raise BadFileError(path, f"has none of the keys {_ARRAY_NAMES['xyz']} for coordinates, but {others}")
    else:
        fields = split_columns(found["xyz"][1], path)
    for field in ("rgb", "normal"):
        if (entry := found[field]) is not None:
            name, values = entry
            _check_numbers(values, path, name)
            if field == "rgb":
                # A fourth channel is how opaque a point is.
                values = colours(values[:, :3] if values.ndim == 2 and values.shape[1] == 4 else values)
            fields[field] = values
    if labels:
        fields["segment"] = label_column(path, arrays, labels, names)
    return fields
