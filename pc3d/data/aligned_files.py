"""Files of shapes with stored text and picture features: OpenShape's release, and shards."""

from __future__ import annotations

import io
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pc3d.data.aligned import RAW, RENDERING, RETRIEVAL, THUMBNAIL, Targets
from pc3d.data.dataset import BadFileError, MissingDataError, PointDataset
from pc3d.data.pickles import load_object_array
from pc3d.data.shard_files import shard_members
from pc3d.data.transforms import Transform
from pc3d.data.types import PointCloud

_WITH_THUMBNAIL = "Objaverse"
_CAPTIONS = {"blip_caption": "caption:blip", "msft_caption": "caption:azure"}
_SOURCE = "OpenShape's release (github.com/Colin97/OpenShape_code, section on training data)"
RELEASED_TOWER = "open_clip:ViT-bigG-14/laion2b_s39b_b160k"
"""The pair of towers that OpenShape's released features were made with (Liu et al. 2023, section 3.2)."""
TERMS = "those of Objaverse, ShapeNetCore, 3D-FUTURE and ABO, per shape"
TOOL = "data_tools/convert_openshape.py makes it"


def read_text_filter(path: Path | str | None) -> frozenset[str]:
    """Ids whose raw texts say nothing: those flagged ``"N"`` in a file like OpenShape's ``gpt4_filtering.json``.

    Args:
        path: the file; None for no filter.

    Raises:
        MissingDataError: there is no such file.
        BadFileError: the file is not a JSON object of ``id: {"flag": ...}``.
    """
    if path is None:
        return frozenset()
    if not Path(path).is_file():
        made = f"{_SOURCE}, data_tools/filter_texts.py makes one, and without a filter text_filter is null"
        raise MissingDataError.of("text_filter", [path], Path(), made, TERMS)
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
        return frozenset(name for name, entry in entries.items() if entry["flag"] == "N")
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise BadFileError(path, f'is not a JSON object of id: {{"flag": "Y" or "N"}} ({error!r})') from error


def without_raw_texts(targets: Targets) -> Targets:
    """The targets but for the texts of the kind ``"raw"``."""
    kept = [i for i, kind in enumerate(targets.text_kinds) if kind != RAW]
    return targets.select(kept, range(len(targets.image_kinds)))


def without_silent_texts(cloud: PointCloud, silent: frozenset[str]) -> PointCloud:
    """The shape, without its raw texts where its id is among those of :func:`read_text_filter`."""
    if cloud.meta["id"] not in silent:
        return cloud
    return cloud.replace(meta={**cloud.meta, "targets": without_raw_texts(cloud.meta["targets"])})


class OpenShapeFiles(PointDataset):
    """OpenShape's released shapes: one ``.npy`` file with a pickled dictionary for each shape, and a list of them.

    Clouds are in pc3d's frame (z up, right-handed; the files are y up), otherwise as stored: 10,000 points, colours,
    ``meta["id"]``, ``meta["dataset"]`` and ``meta["targets"]``. The pickles are read without executing code. Thumbnails
    of sets other than Objaverse are left out, and of Objaverse's raw texts all but the first, as in the released code.

    Args:
        root: where the paths of the list start. Leading folders of the paths that are not there are left out, so a
            release may lie elsewhere than on its authors' disk, ``/mnt/data``.
        split: the list: a JSON file of records with ``data_path``, ``id`` or ``uid`` and, if there are classes,
            ``category``; a path, or a path relative to ``root``.
        prompted: use names and captions averaged over prompt templates, as published; retrieved texts never are.
        text_filter: a file like ``gpt4_filtering.json``: shapes flagged ``"N"`` in it lose their raw texts.
        tower: name of the pair that made the features, that of the release; empty if not known.
        transform: applied to every item.

    Raises:
        MissingDataError: the list or the first shape of it is not there.
        BadFileError: the list is damaged; when an item is loaded, that its file is.
    """

    def __init__(
        self,
        root: Path | str,
        split: Path | str = "split/train_all.json",
        *,
        prompted: bool = True,
        text_filter: Path | str | None = None,
        tower: str = RELEASED_TOWER,
        transform: Transform | None = None,
    ) -> None:
        self.root, self.prompted, self.tower, self.transform = Path(root), prompted, tower, transform
        path = Path(split) if Path(split).is_file() else self.root / split
        if not path.is_file():
            raise MissingDataError.of("OpenShapeFiles", [path], self.root, _SOURCE, TERMS)
        self.split = path.stem
        self.records = _read_records(path)
        self._left_out = _leading_parts(self.root, self.records[0]["data_path"])
        if not self._path(0).is_file():
            below = self.root.joinpath(*Path(self.records[0]["data_path"]).parts[-3:])
            raise MissingDataError.of("OpenShapeFiles", [self._path(0), below], self.root, _SOURCE, TERMS)
        self.ids = [str(record.get("id", record.get("uid"))) for record in self.records]
        categories = [str(record.get("category", "")) for record in self.records]
        self.classes = tuple(sorted({name for name in categories if name}))
        number = {name: i for i, name in enumerate(self.classes)}
        self.labels = torch.tensor([number.get(name, -1) for name in categories], dtype=torch.int64)
        self._silent = read_text_filter(text_filter)

    def load(self, index: int) -> PointCloud:
        record, path = self.records[index], self._path(index)
        if not path.is_file():
            raise MissingDataError.of("OpenShapeFiles", [path], self.root, _SOURCE, TERMS)
        content = load_object_array(path)
        if not isinstance(content, dict):
            raise BadFileError(path, f"holds a {type(content).__name__}, expected a dictionary")
        try:
            cloud = _cloud_of(content, self.prompted)
        except (KeyError, TypeError, ValueError) as error:
            raise BadFileError(path, f"is not a shape of OpenShape: {error!r}") from error
        targets = replace(cloud.meta["targets"], text_tower=self.tower, image_tower=self.tower)
        meta = {"id": self.ids[index], "dataset": content.get("dataset", record.get("dataset", "")), "targets": targets}
        return without_silent_texts(cloud.replace(label=int(self.labels[index]), meta=meta), self._silent)

    def _path(self, index: int) -> Path:
        return self.root.joinpath(*Path(self.records[index]["data_path"]).parts[self._left_out :])


def _leading_parts(root: Path, path: str) -> int:
    """How many leading parts of a path of the list are not those of a file below ``root``; 0 if there is no such file.

    The released lists have the paths of their authors' disk, ``/mnt/data/.../DATASET/GROUP/ID.npy``.
    """
    parts = Path(path).parts
    return next((count for count in range(len(parts)) if root.joinpath(*parts[count:]).is_file()), 0)


def _read_records(path: Path) -> list[dict[str, Any]]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadFileError(path, f"not valid JSON ({error})") from error
    if not isinstance(records, list) or not records or not all(_is_record(record) for record in records):
        raise BadFileError(path, "must be a list of records with 'data_path' and 'id' or 'uid'")
    return records


def _is_record(record: object) -> bool:
    return isinstance(record, dict) and "data_path" in record and ("id" in record or "uid" in record)


def _cloud_of(content: Mapping[str, Any], prompted: bool) -> PointCloud:
    """A shape from the dictionary of a released file."""
    version = "prompt_avg" if prompted else "original"
    names = list(zip(content["text"], content["text_feat"], strict=True))
    # As in the released code: the name alone, of whatever else there may be.
    names = names[:1] if content["dataset"] == _WITH_THUMBNAIL else names
    texts = [(str(text), RAW, rows[version]) for text, rows in names]
    for key, kind in _CAPTIONS.items():
        if content[key]:
            texts.append((str(content[key]), kind, content[f"{key}_feat"][version]))
    retrieved = zip(content["retrieval_text"], content["retrieval_text_feat"], strict=True)
    texts += [(str(text), RETRIEVAL, rows["original"]) for text, rows in retrieved]
    images = [(RENDERING, row) for row in np.asarray(content["image_feat"])]
    if content["dataset"] == _WITH_THUMBNAIL and content.get("thumbnail_feat") is not None:
        images.insert(0, (THUMBNAIL, content["thumbnail_feat"]))
    targets = Targets(
        _stack([row for _, _, row in texts]),
        _stack([row for _, row in images]),
        tuple(text for text, _, _ in texts),
        tuple(kind for _, kind, _ in texts),
        tuple(kind for kind, _ in images),
    )
    xyz = torch.from_numpy(np.asarray(content["xyz"], dtype=np.float32))
    # From y up to z up, keeping it right-handed.
    xyz = torch.stack([xyz[:, 0], -xyz[:, 2], xyz[:, 1]], dim=1)
    rgb = torch.from_numpy(np.array(content["rgb"], dtype=np.float32))
    return PointCloud(xyz=xyz, rgb=rgb, meta={"targets": targets})


def _stack(rows: Sequence[Any]) -> Tensor:
    flat = [torch.from_numpy(np.array(row, dtype=np.float32).reshape(-1)) for row in rows]
    return torch.stack(flat) if flat else torch.zeros(0, 0)


# ---- shards ------------------------------------------------------------------------------------------------------

# What NumPy, zipfile and zlib make of damaged archives; they may seem encrypted, or of another compression.
_BAD_ARRAYS = (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, RuntimeError, KeyError, TypeError)


def pack_cloud(cloud: PointCloud, dtype: str = "float16") -> bytes:
    """A shape with its targets as an ``.npz`` file: what a shard holds of it.

    Keys: ``xyz`` (float32), ``rgb`` uint8 if there are colours, ``text_features`` and ``image_features`` in ``dtype``,
    ``texts``, ``text_kinds``, ``image_kinds``, ``text_tower``, ``image_tower``, ``id``, ``dataset``.

    Raises:
        ValueError: a feature is not finite in ``dtype``.
    """
    targets: Targets = cloud.meta["targets"]
    with np.errstate(over="ignore"):  # refused below
        text, image = (f.numpy().astype(dtype) for f in (targets.text_features, targets.image_features))
    arrays: dict[str, Any] = {
        "xyz": cloud.xyz.numpy().astype(np.float32),
        "text_features": text,
        "image_features": image,
        "texts": np.array(targets.texts, np.str_),
        "text_kinds": np.array(targets.text_kinds, np.str_),
        "image_kinds": np.array(targets.image_kinds, np.str_),
        "text_tower": np.array(targets.text_tower),
        "image_tower": np.array(targets.image_tower),
        "id": np.array(str(cloud.meta["id"])),
        "dataset": np.array(str(cloud.meta.get("dataset", ""))),
    }
    for name in ("xyz", "text_features", "image_features"):
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} of {cloud.meta['id']} has values that are not finite as {arrays[name].dtype}")
    if cloud.rgb is not None:
        arrays["rgb"] = (cloud.rgb * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def unpack_cloud(data: bytes, path: Path | str, where: str = "where the index says so") -> PointCloud:
    """The shape that :func:`pack_cloud` packed.

    Args:
        data: the bytes.
        path: of the shard that they are of.
        where: in it they lie, for the error.

    Raises:
        BadFileError: the bytes are not one.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        text, image = (torch.from_numpy(arrays[f"{name}_features"].astype(np.float32)) for name in ("text", "image"))
        texts, kinds, image_kinds = (tuple(map(str, arrays[name])) for name in ("texts", "text_kinds", "image_kinds"))
        towers = (str(arrays.get(name, "")) for name in ("text_tower", "image_tower"))  # older shards name none
        targets = Targets(text, image, texts, kinds, image_kinds, *towers)
        rgb = torch.from_numpy(arrays["rgb"].astype(np.float32) / 255.0) if "rgb" in arrays else None
        meta = {"id": str(arrays["id"]), "dataset": str(arrays["dataset"]), "targets": targets}
        return PointCloud(xyz=torch.from_numpy(arrays["xyz"]), rgb=rgb, meta=meta)
    except _BAD_ARRAYS as error:
        raise BadFileError(path, f"does not hold a packed shape {where} ({error!r})") from error


def shard_key(cloud: PointCloud) -> str:
    """Name of a shape within a shard, a WebDataset key: ``DATASET/ID``, other characters than ``A-Za-z0-9_-`` as _."""
    return f"{key_part(str(cloud.meta.get('dataset') or 'shapes'))}/{key_part(str(cloud.meta['id']))}"


def key_part(name: str) -> str:
    """A name as it may stand in a WebDataset key."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def write_shard(path: Path, clouds: Iterable[PointCloud], dtype: str = "float16") -> None:
    """Write shapes into a tar file, one ``KEY.npz`` each: a WebDataset shard."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for cloud in clouds:
            data = pack_cloud(cloud, dtype)
            member = tarfile.TarInfo(f"{shard_key(cloud)}.npz")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_index(
    path: Path, shards: Sequence[Path], labels: Mapping[str, int] | None = None, classes: Sequence[str] = ()
) -> None:
    """Write the index of a split: the shard of each shape, and its position there.

    Args:
        path: ``SPLIT-index.npz`` beside the shards.
        shards: in order.
        labels: class by id as it stands in the key; -1 for what is not there.
        classes: class names.

    Raises:
        BadFileError: a shard is damaged, or has a key that was there before.
    """
    keys: list[str] = []
    places = []
    for number, shard in enumerate(shards):
        for key, offset, size in shard_members(shard):
            keys.append(key)
            places.append((number, offset, size))
    repeated = next((key for key, count in _counts(keys).items() if count > 1), None)
    if repeated is not None:
        raise BadFileError(path, f"the shards have {repeated} more than once")
    place = np.array(places, np.int64).reshape(-1, 3)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(
            file,
            shards=np.array([shard.name for shard in shards], np.str_),
            shard=place[:, 0].astype(np.int32),
            offset=place[:, 1],
            size=place[:, 2],
            key=np.array([key.encode() for key in keys], np.bytes_),
            label=np.array([(labels or {}).get(key.rpartition("/")[2], -1) for key in keys], np.int32),
            classes=np.array(classes, np.str_),
        )
    partial.replace(path)


def _counts(keys: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for key in keys:
        found[key] = found.get(key, 0) + 1
    return found


class AlignedShards(PointDataset):
    """Shapes with targets in WebDataset shards, a million or more, with random access.

    ``SPLIT-index.npz`` holds the tar file and position of each shape, so in any order a shape costs one read. The order
    of an epoch is a permutation of the whole set, runs resume exactly, and batches of neighbours can be drawn
    (:class:`pc3d.methods.Mining`). The index takes about 60 bytes of memory per shape. WebDataset itself can read
    shards on a web server or in a bucket in their own order: each sample is ``KEY.npz``.

    Args:
        root: the folder.
        split: name before ``-index.npz``.
        text_filter: a file like ``gpt4_filtering.json``: shapes flagged ``"N"`` in it lose their raw texts.
        transform: applied to every item.

    Raises:
        MissingDataError: the index or a shard is not there.
        BadFileError: the index is damaged; when an item is loaded, that its shard is.
    """

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        *,
        text_filter: Path | str | None = None,
        transform: Transform | None = None,
    ) -> None:
        self.root, self.split, self.transform = Path(root), split, transform
        index = self.root / f"{split}-index.npz"
        if not index.is_file():
            raise MissingDataError.of(f"AlignedShards split {split!r}", [index], self.root, TOOL, TERMS)
        self._index = _read_index(index)
        self.shards = [self.root / str(name) for name in self._index["shards"]]
        missing: list[Path | str] = [path for path in self.shards if not path.is_file()]
        if missing:
            raise MissingDataError.of(f"AlignedShards split {split!r}", missing, self.root, TOOL, TERMS)
        self.classes = tuple(map(str, self._index["classes"]))
        self.labels = torch.from_numpy(self._index["label"].astype(np.int64))
        self._silent = read_text_filter(text_filter)

    def key(self, index: int) -> str:
        """WebDataset key of an item."""
        return bytes(self._index["key"][index]).decode()

    def load(self, index: int) -> PointCloud:
        path = self.shards[int(self._index["shard"][index])]
        with path.open("rb") as file:
            file.seek(int(self._index["offset"][index]))
            data = file.read(int(self._index["size"][index]))
        cloud = unpack_cloud(data, path).replace(label=int(self.labels[index]))
        return without_silent_texts(cloud, self._silent)


def _read_index(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ("shards", "shard", "offset", "size", "key", "label", "classes")}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError) as error:
        raise BadFileError(path, f"is not an index of shards ({error})") from error
