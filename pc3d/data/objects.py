"""Object sets in pc3d's own folder format, and the household set that ships with the package."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pc3d.data.dataset import BadFileError, MissingDataError, PointDataset, SkippedFile
from pc3d.data.pickles import unreadable
from pc3d.data.transforms import Transform
from pc3d.data.types import PointCloud

_UNKNOWN_PART = 255
_REQUIRED = {"points": 3, "label": 1, "id": 1}
_OPTIONAL = {"normals": 3, "rgb": 3, "part": 2, "radius": 1, "text": 1}
_CARRIED = ("creator", "licence", "tags", "category", "size_m", "has_rgb")


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError) as error:
        raise unreadable(path, ".npz", error) from error


def _checked_shard(path: Path) -> dict[str, NDArray[Any]]:
    shard = _read_npz(path)
    missing = sorted(set(_REQUIRED) - set(shard))
    if missing:
        raise BadFileError(path, f"keys {missing} are missing; it has {sorted(shard)}")
    wanted = {key: ndim for key, ndim in {**_REQUIRED, **_OPTIONAL}.items() if key in shard}
    points = shard["points"]
    for key, ndim in wanted.items():
        shape = shard[key].shape
        # Rows go with the objects, and for per-point values columns with the points, of three numbers each.
        if len(shape) != ndim or shape[:2] != points.shape[: min(ndim, 2)] or (ndim == 3 and shape[2] != 3):
            expected = "(n, P, 3)" if key == "points" else f"one that goes with points {points.shape}"
            raise BadFileError(path, f"{key} has shape {shape}, expected {expected}")
    finite = np.asarray(np.isfinite(points).all(axis=(1, 2)))
    if not finite.all():
        raise BadFileError(path, f"points of item {shard['id'][np.flatnonzero(~finite)[0]]} are not finite numbers")
    return {key: shard[key] for key in wanted}


class ObjectSet(PointDataset):
    """A split of objects from a folder of shards.

    The folder holds ``SPLIT.json`` (class names, one record per item, list of shards) and the shards it names: ``.npz``
    files with ``points`` float16 or float32 ``(n, P, 3)``, ``label``, ``id`` and, if the set has them, ``normals`` int8
    (unit normal x 127), ``rgb`` uint8, ``radius`` (metres of one unit), ``text`` and ``part`` (255 = unknown).
    ``SPLIT-icons.npz`` (``id``, ``icon``) is optional. In pc3d's own sets coordinates are z up, the bounding box is
    centred at the origin and the farthest point is at distance 1. Other sets may have ``"up": "y"`` in ``SPLIT.json``.
    Points are in random order, so the first points are a random subsample. ``data_tools/convert.py`` writes this
    format.

    Items have ``xyz``, ``rgb``, ``normal``, ``label``, ``text``, with parts also ``segment`` (-1 = unknown), and
    ``meta`` with ``id``, ``radius_m``, ``creator``, ``licence`` and the other entries of the record. ``groups`` is the
    ``duplicate_group`` of the records, an integer that near-identical models share; None unless every record has one.

    Args:
        root: the folder.
        split: name of the ``.json`` file: ``"train"``, ``"test"``, ...
        num_points: points of an item: the first ones of those stored; None takes all.
        transform: applied to every item.
        labelled_only: leave out unlabelled items.
        pictures: also give each item its preview picture, ``(96, 96, 3)`` uint8 on white.

    Raises:
        MissingDataError: the folder, the split or a shard is not there.
        BadFileError: a file is truncated, or its content is not as above.
        ValueError: more points are asked for than are stored.
    """

    source = (
        "any folder in pc3d's object format: SPLIT.json and the shards it lists; of files in class sub-folders, "
        "python data_tools/convert.py folder FILES OUT --test_share 0.2 makes one"
    )
    terms = "as the set's own JSON file says, per item"

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        *,
        num_points: int | None = 2048,
        transform: Transform | None = None,
        labelled_only: bool = False,
        pictures: bool = False,
    ) -> None:
        self.root, self.split, self.transform = Path(root), split, transform
        description = self.read_description(self.root, split)
        self.up = description.get("up", "z")
        self.classes = tuple(description.get("classes", ()))
        self.parts = tuple(description.get("parts", ()))
        self.items: list[dict[str, Any]] = description["items"]
        self.skipped = tuple(SkippedFile(Path(f["path"]), f["reason"]) for f in description.get("skipped", ()))
        self._data = self._read_shards(self._shard_paths(description))
        self.num_points = self._data["points"].shape[1] if num_points is None else num_points
        self._check_items()
        self._icons = self._read_icons() if pictures else None
        labels = self._data["label"].astype(np.int64)
        self._rows = np.flatnonzero(labels >= 0) if labelled_only else np.arange(len(labels))
        self.labels = torch.from_numpy(labels[self._rows])
        self.groups = self._read_groups()

    def load(self, index: int) -> PointCloud:
        row, data, n = self._rows[index], self._data, self.num_points
        record = self.items[row]
        meta: dict[str, Any] = {"id": str(data["id"][row])}
        if "radius" in data:
            meta["radius_m"] = float(data["radius"][row])
        meta.update({key: record[key] for key in _CARRIED if key in record})
        fields: dict[str, Any] = {}
        if "rgb" in data:
            fields["rgb"] = torch.from_numpy(data["rgb"][row, :n].astype(np.float32) / 255.0)
        if "normals" in data:
            normal = torch.from_numpy(data["normals"][row, :n].astype(np.float32))
            fields["normal"] = torch.nn.functional.normalize(normal, dim=1)
        if "part" in data:
            part = data["part"][row, :n].astype(np.int64)
            fields["segment"] = torch.from_numpy(np.where(part == _UNKNOWN_PART, -1, part))
        if self._icons is not None:
            fields["image"] = torch.tensor(self._icons[row])
        return PointCloud(
            xyz=torch.from_numpy(data["points"][row, :n].astype(np.float32)),
            label=int(self.labels[index]),
            text=str(data["text"][row]) if "text" in data else None,
            meta=meta,
            **fields,
        )

    @classmethod
    def read_description(cls, root: Path, split: str) -> dict[str, Any]:
        """What ``SPLIT.json`` says.

        Raises:
            MissingDataError: it is not there.
            BadFileError: it is not as described.
        """
        path = root / f"{split}.json"
        if not path.is_file():
            found = sorted(p.stem for p in root.glob("*.json")) if root.is_dir() else []
            name = f"{cls.__name__} split {split!r}"
            if found:  # a wrong name, or a part of the set that was not fetched
                name = f"{cls.__name__} has no split {split!r}; splits found there: {found}"
            raise MissingDataError.of(name, [path], root, cls.source, cls.terms)
        try:
            description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BadFileError(path, f"not valid JSON ({error})") from error
        if not isinstance(description, dict) or not isinstance(description.get("items"), list):
            raise BadFileError(path, "has no list 'items' with a record per object")
        if description.get("up", "z") not in ("y", "z"):
            raise BadFileError(path, f"has up {description['up']!r}, the axis that points up must be 'y' or 'z'")
        return description

    def _shard_paths(self, description: dict[str, Any]) -> list[Path]:
        names = description.get("shards")
        paths = [self.root / name for name in names] if names else sorted(self.root.glob(f"{self.split}-[0-9]*.npz"))
        missing: list[Path | str] = [path for path in paths if not path.is_file()]
        if not paths:
            missing = [self.root / f"{self.split}-000.npz"]
        if missing:
            raise MissingDataError.of(type(self).__name__, missing, self.root, self.source, self.terms)
        return paths

    def _read_shards(self, paths: list[Path]) -> dict[str, NDArray[Any]]:
        shards = [_checked_shard(path) for path in paths]
        for path, shard in zip(paths, shards, strict=True):
            if set(shard) != set(shards[0]) or shard["points"].shape[1] != shards[0]["points"].shape[1]:
                raise BadFileError(path, f"differs from {paths[0].name} in its keys or in the points per object")
        return {key: np.concatenate([shard[key] for shard in shards]) for key in shards[0]}

    def _check_items(self) -> None:
        path = self.root / f"{self.split}.json"
        stored = [str(name) for name in self._data["id"]]
        listed = [item.get("id") for item in self.items]
        if stored != listed:
            raise BadFileError(
                path, f"lists {len(listed)} items that are not the {len(stored)} of the shards, in order"
            )
        labels = self._data["label"]
        if labels.size and not -1 <= labels.min() <= labels.max() < len(self.classes):
            raise BadFileError(path, f"labels go from {labels.min()} to {labels.max()} for {len(self.classes)} classes")
        part = self._data.get("part")
        if part is not None and (part[part != _UNKNOWN_PART] >= len(self.parts)).any():
            raise BadFileError(path, f"the shards have more parts than the {len(self.parts)} that 'parts' names")
        if not 1 <= self.num_points <= self._data["points"].shape[1]:
            raise ValueError(
                f"num_points must be between 1 and the {self._data['points'].shape[1]} points that {self.root} stores "
                f"per object, got {self.num_points}"
            )

    def _read_groups(self) -> torch.Tensor | None:
        groups = [item.get("duplicate_group") for item in self.items]
        if not groups or any(group is None for group in groups):
            return None
        wrong = next((group for group in groups if type(group) is not int), None)
        if wrong is not None:
            path = self.root / f"{self.split}.json"
            raise BadFileError(path, f"has a duplicate_group that is not an integer but {wrong!r}")
        return torch.tensor(groups, dtype=torch.int64)[torch.from_numpy(self._rows)]

    def _read_icons(self) -> NDArray[np.uint8]:
        path = self.root / f"{self.split}-icons.npz"
        if not path.is_file():
            raise MissingDataError.of(f"pictures of {type(self).__name__}", [path], self.root, self.source, self.terms)
        icons = _read_npz(path)
        if not {"id", "icon"} <= set(icons) or not np.array_equal(icons["id"], self._data["id"]):
            raise BadFileError(path, "must hold 'id' and 'icon' for the items of the shards, in their order")
        return icons["icon"]


class Household(ObjectSet):
    """The furniture and household objects that ship inside the package: 611 models in 21 classes.

    487 are for training (365 of them labelled) and 124 for testing. Each has 2,048 points with normals and colours, an
    English name and a preview picture. No model, and no near-identical one, is in both splits. The models are from the
    Sweet Home 3D furniture libraries; creator and licence (CC BY 3.0 or CC0) are in each item's ``meta``; see NOTICE.

    Args:
        split: ``"train"`` or ``"test"``.
        num_points: at most 2,048; the first points, which are a random subsample; None takes all.
        transform: applied to every item.
        labelled_only: leave out the 122 training objects without a class.
        pictures: also give each item its preview picture, ``(96, 96, 3)`` uint8.
        root: a folder with a larger version in the same format, instead of the embedded one.
    """

    source = "it ships inside the package pc3d: reinstall it; a larger version is any folder in the same format"
    terms = "CC BY 3.0 or CC0 per item, see NOTICE"

    def __init__(
        self,
        split: str = "train",
        *,
        num_points: int | None = 2048,
        transform: Transform | None = None,
        labelled_only: bool = False,
        pictures: bool = False,
        root: Path | str | None = None,
    ) -> None:
        super().__init__(
            Path(__file__).parent / "household" if root is None else root,
            split,
            num_points=num_points,
            transform=transform,
            labelled_only=labelled_only,
            pictures=pictures,
        )
