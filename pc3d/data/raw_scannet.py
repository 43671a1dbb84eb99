"""A raw scan of ScanNet v2 (mesh, segments, aggregation) as the arrays of the prepared layout."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pc3d.data.dataset import BadFileError
from pc3d.data.ply import Triangles, ply_points, vertex_normals
from pc3d.data.ply_elements import read_ply
from pc3d.data.scene_labels import SCANNET20_IDS, SCANNET200_IDS

Arrays = dict[str, NDArray[Any]]
NO_CLASS = -1


class ScanNetCategory(NamedTuple):
    """Train ids of a raw category; -1 where it belongs to none of the classes."""

    segment20: int
    segment200: int


def read_scannet_categories(path: Path | str) -> dict[str, ScanNetCategory]:
    """The table ``scannetv2-labels.combined.tsv``: raw category to train ids.

    Of a category that is listed twice ("object") the first row counts.

    Raises:
        BadFileError: it lacks a column.
    """
    path = Path(path)
    # Copies of this file have all kinds of line ends, doubled ones among them.
    lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    table: dict[str, ScanNetCategory] = {}
    for row in csv.DictReader(lines, delimiter="\t"):
        try:
            ids = (_train_id(SCANNET20_IDS, row["nyu40id"]), _train_id(SCANNET200_IDS, row["id"]))
        except (KeyError, ValueError) as error:
            raise BadFileError(
                path, f"must have the columns id, raw_category and nyu40id, with numbers ({error})"
            ) from error
        table.setdefault(row["raw_category"], ScanNetCategory(*ids))
    if not table:
        raise BadFileError(path, "holds no categories")
    return table


def _train_id(ids: tuple[int, ...], number: str | None) -> int:
    # An empty cell is a category without a class.
    value = int(number) if number else 0
    return ids.index(value) if value in ids else NO_CLASS


def read_scannet_scan(
    folder: Path | str, categories: dict[str, ScanNetCategory], *, labels_required: bool = True
) -> tuple[Arrays, list[str]]:
    """A scan as ``coord``, ``color``, ``normal`` and, if annotated, ``segment20``, ``segment200`` and ``instance``.

    Points are the vertices of ``NAME_vh_clean_2.ply``, in their order, not axis-aligned. Every group of the
    aggregation gives the vertices of its segments its id as instance and its category's classes; later groups overwrite
    earlier ones. Instances of categories without a class are kept.

    Args:
        folder: the scan's folder, whose name the files begin with.
        categories: what :func:`read_scannet_categories` gave.
        labels_required: refuse a scan without ``NAME.aggregation.json``; only the test split is published without.

    Returns:
        The arrays, and notes: categories that the table does not know.

    Raises:
        BadFileError: a file is not there, truncated, or does not go with the mesh.
    """
    folder = Path(folder)
    mesh_path = folder / f"{folder.name}_vh_clean_2.ply"
    try:
        file = read_ply(mesh_path)
        mesh = ply_points(mesh_path, file)
        vertices = np.asarray(mesh["xyz"], dtype=np.float32)
        normal = vertex_normals(vertices, Triangles(mesh_path, file).vertices)
    except BadFileError:
        raise
    except Exception as error:  # whatever a parser raises on a broken file, the user needs the path
        raise BadFileError(mesh_path, f"cannot be read as a mesh: {error}") from error
    if "rgb" not in mesh:
        raise BadFileError(mesh_path, "has no colours at its vertices")
    arrays: Arrays = {"coord": vertices, "color": np.round(mesh["rgb"] * 255).astype(np.uint8), "normal": normal}
    aggregation = folder / f"{folder.name}.aggregation.json"
    if not aggregation.is_file():
        if labels_required:
            raise BadFileError(aggregation, "is not there: download the annotations; only test scans have none")
        return arrays, []
    groups = _json_key(aggregation, "segGroups")
    segments_path = folder / f"{folder.name}_vh_clean_2.0.010000.segs.json"
    segments = np.asarray(_json_key(segments_path, "segIndices"), dtype=np.int64)
    if segments.shape != (len(vertices),):
        raise BadFileError(segments_path, f"has {segments.size} indices for {len(vertices)} vertices")
    labels, notes = _labels(segments, groups, categories, aggregation)
    return {**arrays, **labels}, notes


def _labels(
    segments: NDArray[np.int64], groups: list[Any], categories: dict[str, ScanNetCategory], path: Path
) -> tuple[Arrays, list[str]]:
    labels: Arrays = {name: np.full(len(segments), -1, np.int16) for name in ("segment20", "segment200", "instance")}
    unknown = set()
    order = segments.argsort(kind="stable")
    ordered = segments[order]
    for group in groups:
        try:
            name, number, parts = group["label"], int(group["id"]), np.asarray(group["segments"], dtype=np.int64)
        except (KeyError, TypeError, ValueError) as error:
            raise BadFileError(path, f"has a group without id, label or segments ({error})") from error
        bounds = zip(np.searchsorted(ordered, parts), np.searchsorted(ordered, parts, side="right"), strict=True)
        rows = np.concatenate([order[start:stop] for start, stop in bounds]) if len(parts) else order[:0]
        category = categories.get(name)
        if category is None:
            unknown.add(name)
            category = ScanNetCategory(NO_CLASS, NO_CLASS)
        labels["segment20"][rows], labels["segment200"][rows] = category
        labels["instance"][rows] = number
    return labels, [f"{path}: category {name!r} is not in the table, left without a class" for name in sorted(unknown)]


def _json_key(path: Path, key: str) -> list[Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))[key]
    except FileNotFoundError as error:
        raise BadFileError(path, "is not there") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadFileError(path, f"must be JSON with a list {key!r} ({error})") from error
    if not isinstance(values, list):
        raise BadFileError(path, f"must be JSON with a list {key!r}")
    return values
