"""Features of pictures and texts, computed once and stored in shards that name their tower."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from pc3d.data.dataset import BadFileError
from pc3d.image.extractors import Content, Extractor

_FORMAT = "pc3d image features 1"


class FeatureMismatchError(ValueError):
    """Stored features were computed by another tower, with other settings, or from other content."""


def content_hash(content: Content) -> str:
    """SHA-256 of pictures (shape and pixels) or texts."""
    digest = hashlib.sha256()
    for part in [content] if isinstance(content, str | np.ndarray) else content:
        data = part.encode() if isinstance(part, str) else np.ascontiguousarray(part).tobytes()
        shape = "text" if isinstance(part, str) else f"{part.dtype} {part.shape}"
        digest.update(f"{shape} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


class FeatureStore:
    """Stored features by id: ``store["chair_12"]["image"]``. Tensors are read on demand.

    Attributes:
        teacher: the identity of what computed them.

    Args:
        folder: with the shards that :func:`precompute` wrote.
        expect: an extractor's identity; features of any other are refused.

    Raises:
        FileNotFoundError: there are no shards.
        BadFileError: a shard is truncated or damaged, or an id stands twice.
        FeatureMismatchError: the shards were not computed by ``expect``, or differ among themselves.
    """

    def __init__(self, folder: Path | str, expect: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        paths = sorted(self.folder.glob("features-*.safetensors"))
        if not paths:
            raise FileNotFoundError(
                f"{self.folder} has no features-*.safetensors. They are written once: for objects with names and "
                f"pictures by python data_tools/target_features.py {self.folder.parent} (texts/ and images/ in it), "
                f"for scans with posed pictures by python data_tools/lift_features.py {self.folder} --root ROOT, for "
                "anything else by pc3d.image.precompute()"
            )
        self.teacher: dict[str, Any] = _header(paths[0])["teacher"]
        self._places: dict[str, tuple[Path, int]] = {}
        self._hashes: dict[str, str] = {}
        self._sums: dict[Path, str] = {}
        self._checked: set[Path] = set()
        for path in paths:
            header = _header(path)
            check_identity(path, header["teacher"], self.teacher if expect is None else expect)
            self._sums[path] = header["sum"]
            for row, (item, digest) in enumerate(header["items"]):
                if item in self._places:
                    raise BadFileError(path, f"has the id {item!r}, which {self._places[item][0].name} has too")
                self._places[item], self._hashes[item] = (path, row), digest

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, item: object) -> bool:
        return item in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def identity(self) -> dict[str, Any]:
        """What the features were made with."""
        return self.teacher

    def hash_of(self, item: str) -> str:
        """SHA-256 of the content that an item's features were computed from."""
        return self._hashes[item]

    def __getitem__(self, item: str) -> dict[str, Tensor]:
        """Features of an item by name, float32.

        Raises:
            KeyError: there is no such item.
            BadFileError: its shard was changed since it was written; looked at once per shard.
        """
        if item not in self._places:
            raise KeyError(f"{item!r} is none of the {len(self)} items of {self.folder}")
        path, row = self._places[item]
        if path not in self._checked:
            _verify(path, self._sums[path])
            self._checked.add(path)
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if not name.endswith(".offsets")]  # noqa: SIM118
            features = {}
            for name in names:
                start, stop = file.get_slice(f"{name}.offsets")[row : row + 2].tolist()
                features[name] = file.get_slice(name)[start:stop].float()
        return features


def check_identity(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse features that were computed differently. Versions of libraries may differ.

    Raises:
        FeatureMismatchError: naming what differs.
    """
    plain = json.loads(json.dumps(dict(expected)))
    keys = sorted({*found, *plain} - {"versions"})
    different = [
        f"{key}: {_short(found.get(key))}, expected {_short(plain.get(key))}"
        for key in keys
        if found.get(key) != plain.get(key)
    ]
    if different:
        raise FeatureMismatchError(
            f"{path}: made otherwise than expected; " + "; ".join(different) + ". Compute them anew into another folder"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 200 else text[:200] + "..."


def precompute(
    items: Iterable[tuple[str, Content]],
    extractor: Extractor,
    folder: Path | str,
    *,
    shard_size: int = 1000,
    dtype: torch.dtype = torch.float16,
    progress: Callable[[int, str], None] | None = None,
) -> FeatureStore:
    """Compute and store features. To resume an interrupted run, run it again: complete shards are kept.

    A shard is a safetensors file with the features of up to ``shard_size`` items. Its header names the extractor's
    identity (tower, SHA-256 of its weights, preprocessing, library versions), the id of every item with the SHA-256 of
    what it was computed from, and a SHA-256 of the features. One process writes into a folder at a time: split a large
    set into folders to compute it on several machines.

    Args:
        items: id and content. For ids that are already stored, only the content is compared.
        extractor: how features are computed.
        folder: where the shards go.
        shard_size: items per shard.
        dtype: of the stored features, float16 or float32.
        progress: called with the number of items done and the id after each.

    Returns:
        The store of all that is in the folder.

    Raises:
        FeatureMismatchError: the folder has features computed differently, or of other content under the same id.
        ValueError: an id stands twice, a feature does not fit into ``dtype``, or none can be computed of an item.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, got {shard_size}")
    if dtype not in (torch.float16, torch.float32):
        raise ValueError(f"dtype must be torch.float16 or torch.float32, got {dtype}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    teacher = json.loads(json.dumps(extractor.identity()))
    known = FeatureStore(folder, teacher) if any(folder.glob("features-*.safetensors")) else None
    waiting: list[tuple[str, str, dict[str, Tensor]]] = []
    seen: set[str] = set()
    for done, (item, content) in enumerate(items, start=1):
        if item in seen:
            raise ValueError(f"the id {item!r} stands twice in items")
        seen.add(item)
        digest = content_hash(content)
        if known is not None and item in known:
            if known.hash_of(item) != digest:
                raise FeatureMismatchError(
                    f"{folder}: {item!r} was computed from other content: compute it under another id or folder"
                )
        else:
            waiting.append((item, digest, _stored(item, _extracted(item, extractor, content), dtype)))
        if len(waiting) == shard_size:
            _write(folder, teacher, waiting)
            waiting = []
        if progress is not None:
            progress(done, item)
    if waiting:
        _write(folder, teacher, waiting)
    return FeatureStore(folder, teacher)


def _extracted(item: str, extractor: Extractor, content: Content) -> dict[str, Tensor]:
    """The features of an item; what is wrong with it is told with its id, as files are told with their path."""
    try:
        return extractor(content)
    except BadFileError:
        raise
    except ValueError as error:
        raise ValueError(f"{item}: {error}") from error


def _stored(item: str, features: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    kept = {}
    for name, value in features.items():
        kept[name] = value.to("cpu", dtype).contiguous()
        if not bool(kept[name].isfinite().all()):
            raise ValueError(f"{name} of {item!r} is not finite in {dtype} (largest {float(value.abs().max()):g})")
    return kept


def _write(folder: Path, teacher: dict[str, Any], waiting: list[tuple[str, str, dict[str, Tensor]]]) -> None:
    """One shard, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    for name in waiting[0][2]:
        parts = [features[name] for _, _, features in waiting]
        tensors[name] = torch.cat(parts)
        tensors[f"{name}.offsets"] = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
    header = {"teacher": teacher, "items": [[item, digest] for item, digest, _ in waiting], "sum": _sum(tensors)}
    data = save(tensors, {"format": _FORMAT, "header": json.dumps(header)})
    taken = [int(path.stem.partition("-")[2]) for path in folder.glob("features-*.safetensors")]
    path = folder / f"features-{max(taken, default=-1) + 1:05d}.safetensors"
    temporary = path.with_suffix(f".{os.getpid()}.part")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _sum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _verify(path: Path, expected: str) -> None:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if _sum(tensors) != expected:
        raise BadFileError(path, "was changed or damaged since it was written: delete it and run precompute again")


def _header(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != _FORMAT:
            raise BadFileError(path, f"has the format {metadata.get('format')!r}, expected {_FORMAT!r}")
        header: dict[str, Any] = json.loads(metadata["header"])
    except BadFileError:
        raise
    except Exception as error:  # safetensors has an error of its own, which derives from Exception
        raise BadFileError(path, f"not a readable shard ({error}); truncated or still being copied?") from error
    return header
