"""Files of laser surveys: LAS, LAZ and E57."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pc3d._extras import MissingExtraError, require
from pc3d.data.dataset import BadFileError
from pc3d.data.file_fields import Array, Fields, colours, is_label, label_column

_CHUNK = 1_000_000
_CHANNELS = ("red", "green", "blue")


def read_las(path: Path, labels: Sequence[str] = (), **_: Any) -> Fields:
    """The points of a LAS or LAZ file, float64, their colours unless all are black (which means: none), and classes."""
    laspy = require("laspy", extra="io", purpose="LAS and LAZ files")
    if path.suffix.lower() == ".laz":
        require("lazrs", extra="io", purpose="LAZ files")
    with laspy.open(path) as reader:
        count = int(reader.header.point_count)
        dimensions = list(reader.header.point_format.dimension_names)
        there = (path.stat().st_size - reader.header.offset_to_point_data) // reader.header.point_format.size
        if not reader.header.are_points_compressed and there < count:  # before there is room for what it promises
            raise BadFileError(path, f"holds {max(there, 0)} of the {count} points of its header")
        colored = set(_CHANNELS) <= set(dimensions)
        pieces: list[Array] = []
        xyz, rgb = np.empty((count, 3)), np.empty((count if colored else 0, 3), np.uint16)
        read = 0
        for points in reader.chunk_iterator(_CHUNK):
            rows = slice(read, read + len(points))
            for axis, (name, channel) in enumerate(zip("xyz", _CHANNELS, strict=True)):
                xyz[rows, axis] = points[name]
                if colored:
                    rgb[rows, axis] = points[channel]
            if labels:
                wanted = {name: points[name] for name in dimensions if is_label(name, labels)}
                pieces.append(np.array(label_column(path, wanted, labels, dimensions)))
            read += len(points)
    if read != count:
        raise BadFileError(path, f"holds {read} of the {count} points of its header")
    fields = {"xyz": xyz, "rgb": colours(rgb)} if rgb.any() else {"xyz": xyz}
    return {**fields, "segment": np.concatenate(pieces)} if pieces else fields


def read_e57(path: Path, labels: Sequence[str] = (), **_: Any) -> Fields:
    """The valid points of all scans of an E57 file in their common frame, and colours where every scan has them."""
    if labels:
        raise BadFileError(path, "has no classes of its points, as no E57 file has: write it as LAS or PLY")
    try:
        pye57 = require("pye57", extra="io", purpose="E57 files")
    except MissingExtraError as error:
        raise MissingExtraError(f"{error}; where pye57 has no build (Linux on ARM), convert the file to LAS") from error

    file = pye57.E57(str(path))
    bytes_for_colours = file.make_buffer

    def make_buffer(field_name: str, capacity: int, do_conversion: bool = True, do_scaling: bool = True) -> Any:
        """Room for colours of any range: into pye57's bytes those in 16 bits or in 0..1 do not go."""
        options = (do_conversion, do_scaling)
        if not field_name.startswith("color"):
            return bytes_for_colours(field_name, capacity, *options)
        values = np.empty(capacity, np.float32)
        return values, pye57.libe57.SourceDestBuffer(file.image_file, field_name, values, capacity, *options)

    file.make_buffer = make_buffer
    try:
        scans = [file.read_scan(i, colors=True, ignore_missing_fields=True) for i in range(file.scan_count)]
    finally:
        file.close()
    if not scans:
        raise BadFileError(path, "holds no scans")

    def columns(names: tuple[str, str, str]) -> list[Array]:
        return [np.stack([scan[name] for name in names], axis=1) for scan in scans]

    fields: Fields = {"xyz": np.concatenate(columns(("cartesianX", "cartesianY", "cartesianZ")))}
    channels = ("colorRed", "colorGreen", "colorBlue")
    colored = sum(set(channels) <= set(scan) for scan in scans)
    if 0 < colored < len(scans):
        count = f"{len(scans) - colored} of {len(scans)}"
        warnings.warn(f"{path}: {count} scans have no colours: read without", stacklevel=2)
    if colored == len(scans):
        # Scanners differ in their range of colours.
        fields["rgb"] = np.concatenate([colours(of_scan) for of_scan in columns(channels)])
    return fields
