"""PCD files."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import IO, Any

import numpy as np

from pc3d._extras import require
from pc3d.data.dataset import BadFileError
from pc3d.data.file_fields import Fields, colours, named_fields


def read_pcd(path: Path, **_: Any) -> Fields:
    """The points of a PCD file: text, binary or compressed; ``rgb`` or ``rgba`` packed in a word, or a field each."""
    pypcd4 = require("pypcd4", extra="io", purpose="PCD files")
    pydantic = require("pydantic", extra="io", purpose="PCD files")
    try:
        with path.open("rb") as file:
            cloud = pypcd4.PointCloud.from_fileobj(_with_counts(file))
    except pydantic.ValidationError as error:
        faults = "; ".join(f"{' '.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ValueError(f"its header is wrong ({faults})") from error
    promised = int(cloud.metadata.points)
    data = np.atleast_1d(cloud.pc_data)  # of one line of text, pypcd4 makes a number
    if len(data) < promised:
        raise BadFileError(path, f"is truncated: the header promises {promised} points, {len(data)} are there")
    rows = data[:promised]
    fields = named_fields(path, {name: rows[name].reshape(-1) for name in cloud.fields})
    packed = next((name for name in ("rgb", "rgba") if name in cloud.fields), None)
    if packed is not None:
        # Three bytes packed into a 32-bit word, whatever the declared type of the field.
        word = np.ascontiguousarray(rows[packed]).view(np.uint32).reshape(-1)
        fields["rgb"] = colours(np.stack([word >> 16, word >> 8, word], axis=1).astype(np.uint8))
    return fields


def _with_counts(file: IO[bytes]) -> IO[bytes]:
    """A PCD file whose header has the line COUNT; the format lets it be left out where all counts are 1."""
    head = re.match(rb"(?:(?!DATA).*\n)*", file.read(4096))
    file.seek(0)
    types = None if head is None else re.search(rb"^TYPE +(.*\S)\s*\n", head[0], re.MULTILINE)
    if head is None or types is None or re.search(rb"^COUNT\b", head[0], re.MULTILINE):
        return file
    data = file.read()
    return io.BytesIO(data[: types.end()] + b"COUNT" + b" 1" * len(types[1].split()) + b"\n" + data[types.end() :])
