"""An index of shapes on disk, which can be searched by text, picture or shape."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pc3d._extras import require
from pc3d._files import replace_text

_FORMAT = "pc3d shape index 2"
_HEAD = "index.json"
_CANDIDATES = 200  # chosen by cosines of half precision, then compared in single precision
# Measured on 100,000 vectors (usearch 2.26): the process grew by this much a vector beside the vectors; 149 of it are
# the graph as it is written to the file.
_GRAPH_BYTES = 260


@dataclass(frozen=True)
class Hit:
    """A shape found by a search.

    Attributes:
        id: its name.
        score: cosine with the query; with several queries, the smallest.
        record: what was stored with it: ``path``, ``text``, ``label``, ...
    """

    id: str
    score: float
    record: dict[str, Any] = field(default_factory=dict)


def weights_digest(module: torch.nn.Module) -> str:
    """First 16 hexadecimal digits of SHA-256 over names, shapes and values of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


class ShapeIndex:
    """An index of shapes, searched by cosine (usearch: approximate neighbour graph, half-precision vectors).

    A folder holds ``index.json`` and, for its newest generation, the vectors and a line of JSON per shape. A generation
    is complete before ``index.json`` names it, so an interrupted :meth:`save` preserves the previous one.

    Memory: 2 bytes per dimension and about 260 bytes for graph and keys, so a million shapes take 2.8 GB in CLIP's 1280
    dimensions, 3.6 GB in the joint 1664 of MiniLM and EfficientNet-Lite0 (:meth:`bytes_for`), names and records apart.
    While shapes are added, the library reserves ahead, up to twice as much.

    Attributes:
        ids: names of the shapes, in the order in which they were added.
        records: what was stored with each.
        made_by: what made the vectors: the encoder's path and the digest of its weights.

    Args:
        folder: of an existing or new index.
        dim: width of the vectors of a new index.
        made_by: see above; an existing index of another ``digest`` is refused.

    Raises:
        FileNotFoundError: there is no index in the folder, and no ``dim`` to start one.
        ValueError: the index is damaged, of another width, or of another encoder.
    """

    def __init__(self, folder: Path | str, *, dim: int | None = None, made_by: dict[str, Any] | None = None) -> None:
        self._library = require("usearch.index", extra="search", purpose="the index of shapes")
        self.folder = Path(folder)
        self.ids: list[str] = []
        self.records: list[dict[str, Any]] = []
        self.made_by = made_by or {}
        self._generation = 0
        if (self.folder / _HEAD).is_file():
            self._open(dim)
        elif dim is None:
            raise FileNotFoundError(f"{self.folder} holds no index of shapes: make one with pc3d index build")
        else:
            self._index = self._empty(dim)
        self._known = {name: row for row, name in enumerate(self.ids)}

    def _empty(self, dim: int) -> Any:
        return self._library.Index(ndim=dim, metric="cos", dtype="f16")

    def _open(self, dim: int | None) -> None:
        path = self.folder / _HEAD
        try:
            head = json.loads(path.read_text(encoding="utf-8"))
            if head["format"] != _FORMAT:
                raise ValueError(f"format {head['format']!r}, expected {_FORMAT!r}; build it anew in another folder")
            self._generation, width, made_by = int(head["generation"]), int(head["dim"]), dict(head["made_by"])
            self._index = self._empty(width)
            self._index.load(str(self._file("usearch")))
            with self._file("jsonl").open(encoding="utf-8") as file:
                for line in map(json.loads, file):  # one at a time: there may be millions
                    self.ids.append(str(line["id"]))
                    self.records.append(dict(line["record"]))
        except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
            raise ValueError(f"{path} is not a whole index of shapes: {error}") from error
        if len(self._index) != len(self.ids):
            raise ValueError(f"{path} is damaged: {len(self._index)} vectors for {len(self.ids)} shapes")
        given = self.made_by.get("digest")
        if given is not None and given != made_by.get("digest"):
            raise ValueError(
                f"{self.folder} was made by {made_by.get('encoder')} [{made_by.get('digest')}], its vectors cannot be "
                f"compared with those of {self.made_by.get('encoder')} [{given}]: use that encoder, or another folder"
            )
        if dim is not None and dim != width:
            raise ValueError(f"{self.folder} is an index of {width} dimensions, got vectors of {dim}")
        self.made_by = made_by

    def _file(self, suffix: str) -> Path:
        return self.folder / f"shapes-{self._generation:06}.{suffix}"

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, name: object) -> bool:
        return name in self._known

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self._index.ndim)

    @staticmethod
    def bytes_for(count: int, dim: int) -> int:
        """Approximate memory of an index with this many vectors."""
        return count * (2 * dim + _GRAPH_BYTES)

    def record(self, name: str) -> dict[str, Any] | None:
        """What was stored with a shape; None if there is no such shape."""
        row = self._known.get(name)
        return None if row is None else self.records[row]

    def add(
        self,
        names: Sequence[str],
        vectors: NDArray[Any],
        records: Iterable[dict[str, Any]] = (),
        *,
        renew: bool = False,
    ) -> int:
        """Add shapes; those whose name exists already are skipped or replaced.

        Args:
            names: one per vector.
            vectors: ``(n, dim)``, any length but 0.
            records: plain data to keep with each.
            renew: replace the vector and the record of an existing shape with the same name.

        Returns:
            How many were new.

        Raises:
            ValueError: lengths or widths that do not fit, or a vector that has no direction.
        """
        kept = list(records) or [{}] * len(names)
        if vectors.shape != (len(names), self.dim) or len(kept) != len(names):
            raise ValueError(
                f"vectors must be ({len(names)}, {self.dim}) with a record each, got {vectors.shape} and {len(kept)}"
            )
        length = np.linalg.norm(vectors, axis=1)
        if not (np.isfinite(length) & (length > 0)).all():
            bad = int(np.flatnonzero(~(np.isfinite(length) & (length > 0)))[0])
            raise ValueError(f"the vector of {names[bad]} is 0 or not finite: look at its points, or the encoder")
        before, places = len(self.ids), {}
        for row, name in enumerate(names):
            if name not in self._known:
                self._known[name] = len(self.ids)
                self.ids.append(name)
                self.records.append(kept[row])
            elif not renew or self._known[name] in places:
                continue
            places[self._known[name]] = row
        there = [place for place in places if place < before]
        for place in there:
            self.records[place] = kept[places[place]]
        if there:
            self._index.remove(np.array(there, dtype=np.uint64))
        if places:
            rows = list(places.values())
            unit = (vectors[rows] / length[rows, None]).astype(np.float32)
            self._index.add(np.array(list(places), dtype=np.uint64), unit, threads=torch.get_num_threads())
        return len(self.ids) - before

    def search(
        self, queries: NDArray[Any], count: int = 10, *, scale: float | Sequence[float] = 1.0, exact: bool = False
    ) -> list[Hit]:
        """Find the shapes nearest to a query, or to all of several queries.

        Args:
            queries: ``(dim,)``, or ``(Q, dim)`` for shapes that are near to each of them: the smallest of the Q cosines
                counts (OpenShape, section 4.4). All shapes are compared then.
            count: how many.
            scale: what cosines are multiplied with (:attr:`pc3d.models.AlignedShapeEncoder.joint_scale`), of all
                queries or of each.
            exact: compare a single query with every vector, too, instead of following the graph.

        Returns:
            Best first; fewer than ``count`` if there are no more.

        Raises:
            ValueError: a width or a number of scales that does not fit, or a count below 1.
        """
        queries = np.atleast_2d(np.asarray(queries, dtype=np.float32))
        if queries.shape[1] != self.dim or len(queries) == 0:
            raise ValueError(f"queries must be ({self.dim},) or (Q, {self.dim}), got {queries.shape}")
        scales = np.atleast_1d(np.asarray(scale, dtype=np.float32))
        if scales.shape not in ((1,), (len(queries),)):
            raise ValueError(f"scale must be a number, or one for each of {len(queries)} queries, got {scales.shape}")
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        if len(self) == 0:
            return []
        if len(queries) == 1:
            rows = self._nearest(queries[0], min(len(self), count), exact)[0]
        else:
            rows = self._near_all(queries, scales, max(count, _CANDIDATES))
        rows = np.sort(rows)
        vectors = np.asarray(self._index.get(rows.astype(np.uint64)), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        units = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        score = (vectors @ units.T * scales).min(1)
        order = np.argsort(-score, kind="stable")[:count]
        return [Hit(self.ids[rows[i]], float(score[i]), self.records[rows[i]]) for i in order]

    def _nearest(
        self, query: NDArray[np.float32], count: int, exact: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows of shapes near to a query, and their cosines, to half precision."""
        found = self._index.search(query, count, exact=exact, threads=torch.get_num_threads())
        return found.keys.astype(np.int64), 1 - found.distances

    def _near_all(self, queries: NDArray[np.float32], scales: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Rows of the shapes whose smallest cosine with several queries is largest.

        All shapes are compared: the one that is near to all may be far down the list of each.
        """
        least = np.full(len(self), np.inf, dtype=np.float32)
        for query, scale in zip(queries, np.broadcast_to(scales, len(queries)), strict=True):
            rows, cosine = self._nearest(query, len(self), exact=True)
            least[rows] = np.minimum(least[rows], cosine * scale)
        return np.argsort(-least, kind="stable")[:count]

    def save(self) -> None:
        """Write a new generation, and remove the previous one.

        Raises:
            OSError: the folder cannot be written; the index there is as it was.
            RuntimeError: an interruption left shapes without vectors; likewise.
        """
        if len(self._index) != len(self.ids):
            counts = f"{len(self._index)} vectors for {len(self.ids)} shapes"
            raise RuntimeError(f"{counts}, an addition was broken off: {self.folder} is left as it was")
        self.folder.mkdir(parents=True, exist_ok=True)
        before = [self._file("usearch"), self._file("jsonl")] if self._generation else []
        self._generation += 1
        try:
            self._index.save(str(self._file("usearch")))
        except RuntimeError as error:  # with the system's words alone
            raise OSError(f"{self._file('usearch')} cannot be written ({error}): the index is as it was") from error
        lines = (
            json.dumps({"id": name, "record": record}) for name, record in zip(self.ids, self.records, strict=True)
        )
        replace_text(self._file("jsonl"), "".join(f"{line}\n" for line in lines))
        head = {"format": _FORMAT, "generation": self._generation, "dim": self.dim, "made_by": self.made_by}
        replace_text(self.folder / _HEAD, json.dumps(head, indent=1) + "\n")
        for path in before:
            path.unlink(missing_ok=True)
