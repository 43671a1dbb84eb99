"""Predictions on disk: a coloured PLY file that any viewer opens, and an NPZ file for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

import numpy as np
from numpy.typing import NDArray

from pc3d.data.ply_elements import class_comments
from pc3d.data.types import PointCloud
from pc3d.tasks.part_inference import PartLabels
from pc3d.tasks.scene_inference import SceneLabels


def write_labelled_ply(
    file: IO[bytes],
    cloud: PointCloud,
    labels: SceneLabels | PartLabels,
    colors: NDArray[np.floating],
    classes: Sequence[str],
) -> None:
    """Write a cloud as a binary PLY file: ``x y z``, the class's colour, ``label`` and ``confidence`` of each point.

    Coordinates are those of the original file: float64 if an origin was subtracted when it was read. The names of the
    classes are comments in the header.

    Args:
        file: where to write.
        cloud: the scene or object.
        labels: of its points.
        colors: ``(K, 3)`` in [0, 1], of the classes.
        classes: their K names.
    """
    origin = cloud.meta.get("origin")
    xyz = cloud.xyz.cpu().numpy()
    if origin is not None:
        xyz = xyz.astype(np.float64) + np.asarray(origin)
    number = "f8" if origin is not None else "f4"
    columns = [(axis, f"<{number}") for axis in "xyz"] + [(name, "u1") for name in ("red", "green", "blue")]
    rows = np.empty(len(xyz), dtype=[*columns, ("label", "<i4"), ("confidence", "<f4")])
    label = labels.label.cpu().numpy()
    shade = np.round(255 * np.asarray(colors)).astype(np.uint8)[label]
    for index, axis in enumerate("xyz"):
        rows[axis] = xyz[:, index]
    for index, name in enumerate(("red", "green", "blue")):
        rows[name] = shade[:, index]
    rows["label"], rows["confidence"] = label, labels.confidence.cpu().numpy()
    kinds = {"f4": "float", "f8": "double", "u1": "uchar", "i4": "int"}
    names = rows.dtype.names or ()
    header = [
        "ply",
        "format binary_little_endian 1.0",
        *class_comments(dict(enumerate(classes))),
        f"element vertex {len(rows)}",
        *(f"property {kinds[rows.dtype[name].str.lstrip('<|')]} {name}" for name in names),
        "end_header",
    ]
    file.write(("\n".join(header) + "\n").encode())
    file.write(rows.data)


def in_file_order(cloud: PointCloud, labels: SceneLabels | PartLabels) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Label and confidence of each point of a file, -1 and 0 for those that were left out when it was read."""
    kept = cloud.meta.get("kept_rows")
    rows = np.arange(len(cloud)) if kept is None else np.flatnonzero(np.asarray(kept))
    total = len(cloud) if kept is None else len(kept)
    label, confidence = np.full(total, -1, dtype=np.int16), np.zeros(total, dtype=np.float32)
    label[rows], confidence[rows] = labels.label.cpu().numpy(), labels.confidence.cpu().numpy()
    return label, confidence


def write_labels_npz(
    file: IO[bytes],
    cloud: PointCloud,
    labels: SceneLabels | PartLabels,
    colors: NDArray[np.floating],
    classes: Sequence[str],
    made_by: str = "",
    notes: Sequence[str] = (),
) -> None:
    """Write labels in the order of the file's points: ``label`` int16, ``confidence``, ``classes``, ``class_colors``.

    Points that were left out when the file was read (``meta["kept_rows"]``) have label -1 and confidence 0. Optional
    arguments are stored as well.

    Args:
        file: where to write.
        cloud: the scene or object.
        labels: of its points.
        colors: ``(K, 3)`` in [0, 1], of the classes.
        classes: their K names.
        made_by: to know the results again.
        notes: what was noted of the scene.
    """
    label, confidence = in_file_order(cloud, labels)
    np.savez_compressed(
        file,
        label=label,
        confidence=confidence,
        classes=np.array(classes),
        class_colors=np.asarray(colors, dtype=np.float32),
        made_by=made_by,
        notes=np.array(notes, dtype=np.str_),
    )
