"""Scenes in the layout that Pointcept made common: a folder per scene, a ``.npy`` file per attribute."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pc3d.data.dataset import BadFileError, MissingDataError, PointDataset
from pc3d.data.file_fields import MILLIMETRE, near_origin
from pc3d.data.files import read_lines
from pc3d.data.pickles import unreadable
from pc3d.data.transforms import Transform
from pc3d.data.types import PointCloud

CLASSES_FILE = "classes.txt"
_MOST_OF_NORMALS = 1.01  # beyond any rounding; what pictures stored as "none", such as (-1, -1, -1), is longer than 1


class SceneFolder(PointDataset):
    """Scenes as folders with ``coord.npy`` and any of ``color.npy``, ``normal.npy``, ``segment.npy``, ``instance.npy``.

    Coordinates are metres, colours 0 to 255 (floats none of which exceeds 1: 0 to 1), normals of length 1, classes
    index into ``classes`` with -1 for none. A scene is any folder with a ``coord.npy``, one to three levels below that
    of its split. Sets that Pointcept prepared load unchanged, as do those that ``data_tools/prepare_scenes.py`` writes.

    Coordinates that float32 cannot resolve to a millimetre are shifted, see :func:`read_scene`.

    Items carry ``xyz`` and whatever of ``rgb``, ``normal``, ``segment`` and ``instance`` has a file (test splits have
    no classes); ``meta`` has ``id`` and ``path``. Scenes are read on demand.

    Args:
        root: the folder with the splits.
        split: name of a sub-folder, several of them, or a ``.json`` file (a list of scene folders, relative to
            ``root``).
        classes: names of the classes; None for those in ``classes.txt`` of the root, a name on each line, or none if
            there is no such file.
        segment: name of the file with the classes, without its ending.
        scenes_list: only the scenes that this text file names, one per line: an official subset.
        transform: applied to every item.

    Raises:
        MissingDataError: the folder, a split or a listed scene is not there.
        ValueError: ``split`` is empty.
        BadFileError: (when a scene is read) an array is truncated, or does not go with the coordinates or the classes.
    """

    source = "any folder of scenes in Pointcept's layout; data_tools/prepare_scenes.py writes it from raw downloads"
    terms = "whatever holds for your scans"

    def __init__(
        self,
        root: Path | str,
        split: str | Sequence[str] = "train",
        *,
        classes: Sequence[str] | None = None,
        segment: str = "segment",
        scenes_list: Path | str | None = None,
        transform: Transform | None = None,
    ) -> None:
        self.root, self.split, self.transform = Path(root), split, transform
        self.classes, self._segment = tuple(_listed_classes(self.root) if classes is None else classes), segment
        folders = self._scene_folders()
        found = {self.scene_id(path): path for path in folders}
        if len(found) < len(folders):
            twice = next(path for path in folders if found[self.scene_id(path)] != path)
            raise BadFileError(twice, f"there is another scene of this name, {found[self.scene_id(twice)]}")
        if scenes_list is not None:
            found = self._listed(found, Path(scenes_list))
        self.ids, self.paths = list(found), list(found.values())
        # A scene has no class of its own.
        self.labels = torch.full((len(self.paths),), -1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.split!r}, {len(self)} scenes, {len(self.classes)} classes)"

    def scene_id(self, path: Path) -> str:
        """Name of a scene: the name of its folder."""
        return path.name

    def load(self, index: int) -> PointCloud:
        folder = self.paths[index]
        cloud = read_scene_folder(folder)
        fields: dict[str, torch.Tensor] = {}
        for field, name in (("segment", self._segment), ("instance", "instance")):
            if (folder / f"{name}.npy").is_file():
                fields[field] = self._read_ids(folder / f"{name}.npy", len(cloud), field == "segment")
        return cloud.replace(**fields, meta={**cloud.meta, "id": self.ids[index]})

    def _read_ids(self, path: Path, num_points: int, classes: bool) -> torch.Tensor:
        values = _read_npy(path)
        if values.size != num_points or values.dtype.kind not in "iu":
            raise BadFileError(path, f"must hold {num_points} integers, has {values.dtype} {values.shape}")
        ids = values.reshape(-1).astype(np.int64)
        if classes and num_points and not -1 <= ids.min() <= ids.max() < len(self.classes):
            raise BadFileError(
                path,
                f"has classes {ids.min()} to {ids.max()}, expected -1 (none) to {len(self.classes) - 1}"
                + (f": name them in classes, or in {self.root / CLASSES_FILE}" if not self.classes else ""),
            )
        return torch.from_numpy(ids)

    def _scene_folders(self) -> list[Path]:
        if isinstance(self.split, str) and self.split.endswith(".json"):
            return self._from_json(Path(self.split))
        splits = [self.split] if isinstance(self.split, str) else list(self.split)
        if not splits:
            raise ValueError("split must name at least one folder, got an empty list")
        missing: list[Path | str] = [self.root / name for name in splits if not (self.root / name).is_dir()]
        if missing:
            raise MissingDataError.of(f"{type(self).__name__}", missing, self.root, self.source, self.terms)
        folders = [path.parent for name in splits for path in find_below(self.root / name, "coord.npy")]
        if not folders:
            raise MissingDataError.of(
                f"{type(self).__name__}: no scenes",
                [self.root / name / "SCENE" / "coord.npy" for name in splits],
                self.root,
                self.source,
                self.terms,
            )
        return folders

    def _from_json(self, path: Path) -> list[Path]:
        path = path if path.is_file() else self.root / path
        if not path.is_file():
            raise MissingDataError.of(type(self).__name__, [path], self.root, self.source, self.terms)
        try:
            names = json.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise BadFileError(path, f"not valid JSON ({error})") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise BadFileError(path, "must be a list of scene folders, relative to the root")
        folders = [self.root / name for name in names]
        missing: list[Path | str] = [folder for folder in folders if not (folder / "coord.npy").is_file()]
        if missing:
            raise MissingDataError.of(
                f"{type(self).__name__}: {path.name}", missing, self.root, self.source, self.terms
            )
        return folders

    def _listed(self, found: dict[str, Path], path: Path) -> dict[str, Path]:
        if not path.is_file():
            raise MissingDataError.of(
                f"scene list of {type(self).__name__}", [path], self.root, self.source, self.terms
            )
        names = [name for line in path.read_text(encoding="utf-8-sig").splitlines() if (name := line.strip())]
        missing: list[Path | str] = [name for name in names if name not in found]
        if missing:
            raise MissingDataError.of(
                f"{type(self).__name__}: scenes of {path.name}", missing, self.root, self.source, self.terms
            )
        return {name: found[name] for name in names}


def _listed_classes(root: Path) -> list[str]:
    path = root / CLASSES_FILE
    return read_lines(path) if path.is_file() else []


def read_scene_folder(folder: Path | str) -> PointCloud:
    """Read a scene in the layout of :class:`SceneFolder` without its labels: ``xyz``, and ``rgb`` and ``normal`` where
    it has them. Normals that are not finite are zero, as in :func:`pc3d.data.read_scene`.

    Raises:
        BadFileError: a file is not there, truncated, or does not go with the coordinates.
    """
    folder = Path(folder)
    coord = _read_npy(folder / "coord.npy")
    if coord.ndim != 2 or coord.shape[1] != 3 or coord.dtype.kind != "f" or not np.isfinite(coord).all():
        raise BadFileError(
            folder / "coord.npy", f"must hold finite floats of shape (N, 3), has {coord.dtype} {coord.shape}"
        )
    fields: dict[str, torch.Tensor] = {}
    for field, name in (("rgb", "color"), ("normal", "normal")):
        if (folder / f"{name}.npy").is_file():
            values = _read_npy(folder / f"{name}.npy")
            if values.shape != coord.shape:
                raise BadFileError(folder / f"{name}.npy", f"has shape {values.shape}, coord {coord.shape}")
            fields[field] = _unit_colors(values, folder) if field == "rgb" else _known_normals(values, folder)
    meta: dict[str, Any] = {"id": folder.name, "path": str(folder)}
    if len(coord):
        coord, origin = near_origin(coord, MILLIMETRE)
        meta |= {} if origin is None else {"origin": origin}
    return PointCloud(
        xyz=torch.from_numpy(coord.astype(np.float32)),
        meta=meta,
        **fields,  # type: ignore[arg-type]  # the keys are per-point fields
    )


def find_below(folder: Path, pattern: str, levels: Sequence[int] = (1, 2, 3)) -> list[Path]:
    """What matches a pattern so many levels below a folder, sorted; unlike ``rglob``, this follows links to folders.

    Hidden files and folders are passed over: file systems leave some beside the user's own (``._NAME``).
    """
    found = (path for level in levels for path in folder.glob("*/" * level + pattern))
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def _unit_colors(stored: NDArray[Any], folder: Path) -> torch.Tensor:
    """Colours as float32 from 0 to 1: integers count to 255, and so do floats if any exceeds 1."""
    values = torch.from_numpy(stored.astype(np.float32))
    highest = 1 if stored.dtype.kind == "f" and (values <= 1).all() else 255
    if not ((values >= 0) & (values <= highest)).all():
        raise BadFileError(folder / "color.npy", "must hold colours from 0 to 255, or floats from 0 to 1")
    return values / highest


def _known_normals(stored: NDArray[Any], folder: Path) -> torch.Tensor:
    """Normals as float32, zeros where none could be estimated: one NaN reaches all points that a network sees."""
    values = torch.from_numpy(stored.astype(np.float32))
    values = values.masked_fill(~values.isfinite().all(dim=1, keepdim=True), 0)
    largest = float(values.abs().max()) if len(values) else 0.0
    if largest > _MOST_OF_NORMALS:
        raise BadFileError(
            folder / "normal.npy",
            f"must hold normals of length 1, or 0 for unknown ones, has {stored.dtype} up to {largest:g}: divide "
            "them by their length",
        )
    return values


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        values: NDArray[Any] = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise BadFileError(path, "is not there (any more)") from error
    except (ValueError, OSError, EOFError) as error:
        raise unreadable(path, ".npy", error) from error
    return values
