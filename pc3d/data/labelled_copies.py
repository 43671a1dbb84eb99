"""Copies of LAS, LAZ and PLY files with other classes of their points; everything else in them stays as it is."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pc3d._extras import MissingExtraError, require
from pc3d.data.dataset import BadFileError
from pc3d.data.ply_elements import CLASS_COMMENT, ORDERS, PlyHeader, class_comments, read_ply_header, row_type

COPIED_SUFFIXES = (".las", ".laz", ".ply")
_CHUNK = 1_000_000
_FIRST_EVLR = 235  # where the header of LAS 1.4 says where the extended records begin
_ADDED = {"label": ("int", "i4"), "confidence": ("float", "f4")}


def check_copies(files: Sequence[Path], numbers: Mapping[str, int]) -> None:
    """Refuse, before any work, what no copy can hold.

    Args:
        files: to copy. What is wrong with one that cannot be read at all is told when it is read.
        numbers: of the classes, by their names.

    Raises:
        ValueError: a file is of another format, or a number does not fit in it.
    """
    for path in files:
        suffix = path.suffix.lower()
        if path.is_dir() or suffix not in COPIED_SUFFIXES:
            raise ValueError(
                f"like_input: a copy is made of {', '.join(COPIED_SUFFIXES)} files alone, got {path}: leave the option "
                "out, or convert the file"
            )
        if suffix != ".ply":
            try:
                kind = _las_header(path).point_format.id
            except MissingExtraError:
                raise
            except Exception:  # whatever a parser raises on a broken file
                continue
            _check_numbers(path, kind, numbers)


def check_copyable(path: Path) -> None:
    """Refuse a file that can be read, and is not made to be copied.

    Raises:
        BadFileError: a LAZ file refers to places behind its points, or the points of a PLY file do not come first.
    """
    if path.suffix.lower() == ".ply":
        with path.open("rb") as file:
            _check_plain(path, read_ply_header(path, file))
    else:
        _check_movable(path, _las_header(path))


def _check_numbers(path: Path, kind: int, numbers: Mapping[str, int]) -> None:
    """Refuse numbers of classes beyond those that a point format has room for."""
    bits, most = (8, 255) if kind >= 6 else (5, 31)
    beyond = next((item for item in numbers.items() if not 0 <= item[1] <= most), None)
    if beyond is not None:
        other = "" if kind >= 6 else ", or convert the file to point format 6 or higher, which holds 0 to 255"
        raise ValueError(
            f"class_numbers: {beyond[1]} of {beyond[0]!r} does not fit in the {bits} bits that point format {kind} of "
            f"{path} has for classes: give numbers from 0 to {most} with --class_numbers{other}"
        )


def copy_las(source: Path, target: IO[bytes], classes: NDArray[np.int64]) -> None:
    """Copy a LAS or LAZ file with other classes of its points.

    Header, records and all other dimensions are copied byte by byte. In a LAZ file only the place of the extended
    records changes, which come after the compressed points.

    Args:
        source: the file.
        target: where to write; can seek.
        classes: ``(N,)`` in the order of the file; points with -1 keep theirs.

    Raises:
        BadFileError: it holds another number of points, or what cannot be moved.
    """
    header = _las_header(source)
    _check_movable(source, header)
    if header.point_count != len(classes):
        raise BadFileError(source, f"has {header.point_count} points, and classes are given for {len(classes)}")
    with source.open("rb") as file:
        target.write(file.read(header.offset_to_point_data))
        if header.are_points_compressed:
            _copy_compressed(file, target, header, classes)
            return
        for begin in range(0, len(classes), _CHUNK):
            wanted = classes[begin : begin + _CHUNK]
            piece = bytearray(file.read(len(wanted) * header.point_format.size))
            _set_classes(piece, header, wanted)
            target.write(piece)
        shutil.copyfileobj(file, target)


def _copy_compressed(file: IO[bytes], target: IO[bytes], header: Any, classes: NDArray[np.int64]) -> None:
    lazrs = require("lazrs", extra="io", purpose="LAZ files")
    record = header.vlrs.get("LasZipVlr")[0].record_data
    settings = lazrs.LazVlr(record)
    reader, writer = lazrs.LasZipDecompressor(file, record), lazrs.LasZipCompressor(target, settings)
    for begin in range(0, len(classes), _CHUNK):
        wanted = classes[begin : begin + _CHUNK]
        piece = bytearray(len(wanted) * header.point_format.size)
        reader.decompress_many(piece)
        _set_classes(piece, header, wanted)
        writer.compress_many(np.frombuffer(piece, np.uint8))
        if settings.uses_variable_size_chunks():
            writer.finish_current_chunk()
    writer.done()
    if header.number_of_evlrs:
        target.seek(0, 2)
        begin = target.tell()
        file.seek(header.start_of_first_evlr)
        shutil.copyfileobj(file, target)
        target.seek(_FIRST_EVLR)
        target.write(begin.to_bytes(8, "little"))
        target.seek(0, 2)


def _set_classes(piece: bytearray, header: Any, classes: NDArray[np.int64]) -> None:
    """Replace the classes of points as they are stored; the byte of formats 0 to 5 has three flags, too."""
    place, bits = (16, 0xFF) if header.point_format.id >= 6 else (15, 0x1F)
    column = np.frombuffer(piece, np.uint8).reshape(len(classes), -1)[:, place]
    column[:] = np.where(classes < 0, column, (column & ~np.uint8(bits)) | classes.astype(np.uint8))


def _las_header(path: Path) -> Any:
    laspy = require("laspy", extra="io", purpose="LAS and LAZ files")
    with laspy.open(path, read_evlrs=False) as reader:
        return reader.header


def _check_movable(path: Path, header: Any) -> None:
    """Refuse LAZ files that refer to places behind their points, which are elsewhere in a copy."""
    if not header.are_points_compressed:
        return
    if any(record.user_id == "copc" for record in header.vlrs):
        raise BadFileError(path, "is a COPC file, whose index a copy would not fit: convert it to plain LAS or LAZ")
    if header.start_of_waveform_data_packet_record:
        raise BadFileError(path, "holds waveforms behind its points: convert it to LAS, which is copied with them")


def copy_ply(
    source: Path,
    target: IO[bytes],
    classes: NDArray[np.int64],
    confidence: NDArray[np.float32],
    numbers: Mapping[str, int],
) -> None:
    """Copy a PLY file with two more properties of its points, ``label`` and ``confidence``.

    Properties of these names are replaced. All others, other elements such as faces, and comments are kept; the
    numbers of the classes come as comments.

    Args:
        source: the file.
        target: where to write.
        classes: ``(N,)`` number of the class of each point, -1 for none.
        confidence: ``(N,)``.
        numbers: of the classes, by their names.

    Raises:
        BadFileError: its points are not its first element, have lists among their properties, or are others in number.
    """
    with source.open("rb") as file:
        header = read_ply_header(source, file)
        _check_plain(source, header)
        _, count, properties = header.elements[0]
        if count != len(classes):
            raise BadFileError(source, f"has {count} points, and classes are given for {len(classes)}")
        file.seek(0)
        target.write(_with_classes(file.read(header.size), numbers))
        kept = [column for column, item in enumerate(properties) if item.name not in _ADDED]
        if header.kind == "ascii":
            _copy_text_rows(file, target, kept, classes, confidence)
            return
        order = ORDERS[header.kind]
        stored = row_type(properties, order, [0] * len(properties))
        rows = np.fromfile(file, stored, count)
        added = [(label, order + code) for label, (_, code) in _ADDED.items()]
        wider = np.empty(count, [*((f"{column}", stored[column]) for column in kept), *added])
        for column in kept:
            wider[f"{column}"] = rows[f"{column}"]
        wider["label"], wider["confidence"] = classes, confidence
        target.write(wider.data)
        shutil.copyfileobj(file, target)


def _check_plain(path: Path, header: PlyHeader) -> None:
    """Refuse PLY files whose points do not come first, or have lists."""
    name, _, properties = header.elements[0] if header.elements else ("", 0, [])
    if name != "vertex" or any(item.count_code is not None for item in properties):
        raise BadFileError(
            path, "has points behind another element or with lists, of which no copy is made: leave out --like_input"
        )


def _with_classes(header: bytes, numbers: Mapping[str, int]) -> bytes:
    """The header of a PLY file with the properties of a copy."""
    lines = [line for line in header.splitlines(keepends=True) if not CLASS_COMMENT.match(line.decode("latin-1"))]
    words = [line.split() for line in lines]
    begin = next(i for i, line in enumerate(words) if line[:2] == [b"element", b"vertex"])
    end = next(i for i in range(begin + 1, len(lines)) if words[i][:1] in ([b"element"], [b"end_header"]))
    line_end = lines[begin][len(lines[begin].rstrip(b"\r\n")) :]
    own = [
        lines[i]
        for i in range(begin + 1, end)
        if words[i][:1] != [b"property"] or words[i][-1].decode("latin-1").lower() not in _ADDED
    ]
    names = {number: name for name, number in numbers.items()}
    comments = [line.encode() + line_end for line in class_comments(names)]
    added = [f"property {kind} {name}".encode() + line_end for name, (kind, _) in _ADDED.items()]
    return b"".join([*lines[:begin], *comments, lines[begin], *own, *added, *lines[end:]])


def _copy_text_rows(
    file: IO[bytes], target: IO[bytes], kept: list[int], classes: NDArray[np.int64], confidence: NDArray[np.float32]
) -> None:
    """The rest of a PLY file in text, with two more numbers in each line of a point."""
    more = iter(zip(classes.tolist(), confidence.tolist(), strict=True))
    for line in file.read().splitlines(keepends=True):
        added = next(more, None) if line.strip() else None
        if added is None:
            target.write(line)
            continue
        words = line.split()
        line_end = line[len(line.rstrip(b"\r\n")) :] or b"\n"
        target.write(b" ".join([*(words[column] for column in kept), b"%d %.6g" % added]) + line_end)
