"""PCD files."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from pc3d._extras import require
from pc3d.data.dataset import BadFileError
from pc3d.data.file_fields import Fields, colours, named_fields

_HEADER_BYTES = 1 << 16


def read_pcd(path: Path, labels: Sequence[str] = (), **_: Any) -> Fields:
    """The points of a PCD file: text, binary or compressed; ``rgb`` or ``rgba`` packed in a word, or a field each."""
    pypcd4 = require("pypcd4", extra="io", purpose="PCD files")
    pydantic = require("pydantic", extra="io", purpose="PCD files")
    try:
        with path.open("rb") as file:
            cloud = pypcd4.PointCloud.from_fileobj(_tidied(path, file))
    except pydantic.ValidationError as error:
        faults = "; ".join(f"{' '.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ValueError(f"its header is wrong ({faults})") from error
    promised = int(cloud.metadata.points)
    data = np.atleast_1d(cloud.pc_data)  # of one line of text, pypcd4 makes a number
    if len(data) < promised:
        raise BadFileError(path, f"is truncated: the header promises {promised} points, {len(data)} are there")
    rows = data[:promised]
    fields = named_fields(path, {name: rows[name].reshape(-1) for name in cloud.fields}, labels)
    packed = next((name for name in ("rgb", "rgba") if name in cloud.fields), None)
    if packed is not None:
        # Three bytes packed into a 32-bit word, whatever the declared type of the field.
        word = np.ascontiguousarray(rows[packed]).view(np.uint32).reshape(-1)
        fields["rgb"] = colours(np.stack([word >> 16, word >> 8, word], axis=1).astype(np.uint8))
    return fields


def _tidied(path: Path, file: IO[bytes]) -> IO[bytes]:
    """A PCD file as pypcd4 wants it: every line in its header, and a blank between numbers of text.

    COUNT may be left out where all counts are 1, POINTS where WIDTH and HEIGHT say it; before version 0.7 FIELDS was
    called COLUMNS.

    Raises:
        BadFileError: the header promises more than there is.
    """
    header = re.match(rb"(?:(?!DATA\b).*\n)*DATA\s+(\w+).*\n", file.read(_HEADER_BYTES))
    if header is None:
        file.seek(0)
        return file  # pypcd4 says what is wrong
    lines = [line.split() for line in header[0].splitlines()]
    found = {line[0]: line[1:] for line in lines if line and not line[0].startswith(b"#")}
    tidy = {key: found[key] for key in found if key not in (b"VERSION", b"COLUMNS", b"DATA")}
    if b"COLUMNS" in found:
        tidy.setdefault(b"FIELDS", found[b"COLUMNS"])
    if b"TYPE" in found:
        tidy.setdefault(b"COUNT", [b"1"] * len(found[b"TYPE"]))
    if b"WIDTH" in found and b"HEIGHT" in found:
        tidy.setdefault(b"POINTS", [b"%d" % (int(found[b"WIDTH"][0]) * int(found[b"HEIGHT"][0]))])
    _check_promise(path, header[1], tidy, path.stat().st_size - header.end())
    tidy[b"DATA"] = found[b"DATA"]
    version = found.pop(b"VERSION", [b".7"])
    if header[1] != b"ascii" and tidy == found and version[0] in (b".7", b"0.7"):
        file.seek(0)
        return file
    file.seek(header.end())
    data = file.read()
    if header[1] == b"ascii":
        data = b"\n".join(b" ".join(line.split()) for line in data.splitlines())
    return io.BytesIO(b"".join(b" ".join([key, *words]) + b"\n" for key, words in tidy.items()) + data)


def _check_promise(path: Path, data: bytes, header: dict[bytes, list[bytes]], there: int) -> None:
    """Refuse points that a file has no bytes for, before pypcd4 makes room for them.

    Args:
        path: of the file.
        data: how they are stored; how many there are in compressed ones, nothing tells.
        header: what it says, word by word; pypcd4 says what is wrong with it.
        there: bytes behind the header.
    """
    words = [header.get(key, []) for key in (b"SIZE", b"COUNT", b"POINTS")]
    if not all(of_key and all(word.isdigit() for word in of_key) for of_key in words):
        return
    sizes, counts, (promised, *_) = ([int(word) for word in of_key] for of_key in words)
    if data == b"binary":
        width = sum(size * count for size, count in zip(sizes, counts, strict=False))
        if promised * width > there:
            found = there // width
            raise BadFileError(path, f"is truncated: the header promises {promised} points, {found} are there")
    elif data == b"ascii" and promised and 2 * sum(counts) - 1 > there:  # a digit each, and what is between them
        raise BadFileError(
            path, f"is truncated: the header promises {sum(counts)} numbers a point, {there} bytes are there"
        )
