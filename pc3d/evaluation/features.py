"""Frozen features of a data set, with a description of how they were computed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pc3d._files import replace_atomically
from pc3d._progress import progress_bar
from pc3d.data import (
    BadFileError,
    Compose,
    FarthestPointSample,
    FirstPoints,
    Normalize,
    PointCloud,
    PointDataset,
    Transform,
)
from pc3d.evaluation.kept import Kept, identity_of
from pc3d.nn._checks import TooFewPointsError

Array = NDArray[np.float32]
Labels = NDArray[np.int64]
Sampling = Literal["first", "farthest", "random", "replacement"]
Centering = Literal["none", "centroid", "box"]
LeaveOut = Callable[[int, BadFileError], None]


@runtime_checkable
class Encoder(Protocol):
    """Interface of anything that encodes clouds as vectors: a trained or untrained network, a handcrafted descriptor.

    If the attribute ``reads_rgb`` is true, ``encode`` also gets the colours of clouds that have them, as ``rgb``.
    """

    def encode(self, xyz: Tensor, pooling: str = "max+mean") -> Tensor:
        """``(B, N, 3)`` coordinates to ``(B, D)`` features; no masking, no augmentation."""
        ...


@dataclass(frozen=True)
class Features:
    """Features of one split of a data set and where they came from.

    Attributes:
        values: ``(n, D)`` float32.
        labels: ``(n,)`` int64 class of each item, -1 for unlabelled.
        classes: class names; empty if the data set has none.
        ids: the items' names.
        data: name of the data set.
        split: name of the split.
        content_hash: first 16 hexadecimal digits of SHA-256 over the coordinates that were encoded and the labels.
        num_points: points per cloud, or of the largest cloud if ``"random"`` sampling found smaller ones; None if
            clouds of different length were encoded whole.
        sampling: how ``num_points`` were taken: the ``"first"`` stored, ``"farthest"`` point sampling, ``"random"``,
            which takes all points of smaller clouds, or ``"replacement"``, drawn with it.
        normalize: ``"none"``, or how clouds were brought into the unit sphere: centred by ``"centroid"`` or ``"box"``.
        pooling: how the encoder pooled its tokens.
        encoder: what made the features.
        groups: ``(n,)`` int64, equal for near-identical items, which cross-validation keeps in one fold; None if the
            data set does not define them.
        num_unlabelled: items without a class.

    Raises:
        ValueError: the shapes do not fit, or a value is not finite.
    """

    values: Array
    labels: Labels
    classes: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    data: str = "unnamed"
    split: str = ""
    content_hash: str = ""
    num_points: int | None = None
    sampling: Sampling = "first"
    normalize: Centering = "none"
    pooling: str = "max+mean"
    encoder: str = "encoder"
    groups: Labels | None = None
    num_unlabelled: int = field(init=False)

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.labels.shape != self.values.shape[:1]:
            raise ValueError(f"values must be (n, D) and labels (n,), got {self.values.shape} and {self.labels.shape}")
        if self.groups is not None and self.groups.shape != self.labels.shape:
            raise ValueError(f"groups must be (n,) as the labels {self.labels.shape}, got {self.groups.shape}")
        if not np.isfinite(self.values).all():
            bad = int(np.flatnonzero(~np.isfinite(self.values).all(axis=1))[0])
            name = f" ({self.ids[bad]})" if self.ids else ""
            raise ValueError(f"values of item {bad}{name} are not finite numbers: look at its points, or the encoder")
        object.__setattr__(self, "num_unlabelled", int((self.labels < 0).sum()))

    def __len__(self) -> int:
        return len(self.labels)

    def labelled(self) -> tuple[Array, Labels]:
        """Values and labels of the items that have a class.

        Raises:
            ValueError: no item has one.
        """
        keep = self.labels >= 0
        if not keep.any():
            raise ValueError(f"no item of {self.data} {self.split} has a label: a probe needs labelled items")
        return self.values[keep], self.labels[keep]

    def labelled_groups(self) -> Labels | None:
        """Groups of the items that have a class, None where they are not known."""
        return None if self.groups is None else self.groups[self.labels >= 0]


def extract_features(
    encoder: Encoder,
    dataset: PointDataset,
    *,
    batch_size: int = 32,
    pooling: str = "max+mean",
    num_points: int | None = 1024,
    sampling: Sampling = "first",
    normalize: Centering = "none",
    progress: bool = False,
    data: str | None = None,
    split: str | None = None,
    name: str | None = None,
    kept: Kept | None = None,
    leave_out: LeaveOut | None = None,
) -> Features:
    """Encode every item of a data set in evaluation mode, without masking, augmentation or gradient.

    The data set's own transform is not applied, so the result depends only on the stored data and the encoder. pc3d's
    data sets store points in random order, and ModelNet40's HDF5 files in farthest-point order, so in both the first
    ``num_points`` cover the object. For scans and files in another order use ``sampling="farthest"``.

    Args:
        encoder: what to probe. A ``torch.nn.Module`` is put into ``eval()``; its mode is restored at the end.
        dataset: labelled or not.
        batch_size: clouds per call of ``encode``.
        pooling: passed to ``encode``.
        num_points: points per cloud; None uses every point, with clouds of equal length batched together.
        sampling: ``"first"`` takes the first points in stored order, ``"farthest"`` an evenly spread subset,
            ``"random"`` a random subset in random order, the same in every call (of smaller clouds, all points).
            ``"replacement"`` draws as many points with replacement, also of smaller clouds, likewise (the released code
            of OpenShape, of ScanObjectNN).
        normalize: ``"none"`` takes coordinates as stored; ``"centroid"`` and ``"box"`` centre each cloud and scale it
            into the unit sphere, after sampling.
        progress: show a progress bar on standard error.
        data: name of the data set for reports; by default its class name.
        split: name of the split for reports.
        name: name of the encoder for reports; by default its class name.
        kept: returns what was encoded before an interruption, batch by batch; use the same ``batch_size``.
        leave_out: is told the position of each item whose file cannot be used or has too few points, and why; the item
            has no row in the result. By default such an item is refused.

    Returns:
        The features, in the order of the data set.

    Raises:
        TypeError: ``dataset`` is no :class:`pc3d.data.PointDataset`.
        ValueError: the set is empty, ``num_points`` exceeds what an item has, features are not finite, or every item
            was left out.
        BadFileError: a file cannot be used, or has too few points for the encoder.
    """
    prepare = preparation(num_points, sampling, normalize)
    if not isinstance(dataset, PointDataset):
        raise TypeError(
            f"dataset must be a pc3d.data.PointDataset, got {type(dataset).__name__}: a class with load, labels and "
            "classes of a few lines makes one of any data"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if len(dataset) == 0:
        raise ValueError("dataset is empty: nothing to encode")
    digest, ids, blocks = hashlib.sha256(), [], []
    largest = 0
    used = np.ones(len(dataset), dtype=bool)
    unread = (row for row in range(len(dataset)) if used[row])  # of the next batch: those before it have been read

    def without(index: int, error: BadFileError) -> None:
        assert leave_out is not None
        leave_out(index, error)
        used[index] = False
        advance(1)

    device = next((p.device for p in encoder.parameters()), None) if isinstance(encoder, torch.nn.Module) else None
    made_by = "" if kept is None else identity_of(encoder)
    with _frozen(encoder), progress_bar(len(dataset), "encode", "clouds", visible=progress) as advance:
        for clouds in batches(dataset, batch_size, prepare, None if leave_out is None else without):
            read = [torch.stack([cloud.xyz for cloud in clouds]), *_colors(encoder, clouds)]
            rows = list(islice(unread, len(clouds)))
            encode = partial(_encode, encoder, read, pooling, device)
            try:
                blocks.append(encode() if kept is None else kept.of([made_by, str(device), pooling, *read], encode))
            except TooFewPointsError as error:
                leave_out_batch(clouds, rows, error, None if leave_out is None else without)
                continue
            largest = max(largest, len(clouds[0]))
            for value in read:
                digest.update(np.ascontiguousarray(value.to(torch.float32).numpy()).tobytes())
            ids += [str(cloud.meta.get("id", "")) for cloud in clouds]
            advance(len(clouds))
    if not blocks:
        raise ValueError(f"all {len(dataset)} items of dataset were left out: nothing to encode")
    labels = dataset.labels.numpy().astype(np.int64)[used]
    digest.update(labels.tobytes())
    return Features(
        values=np.concatenate(blocks),
        labels=labels,
        classes=tuple(dataset.classes),
        ids=tuple(ids),
        data=data or type(dataset).__name__,
        split=split or str(getattr(dataset, "split", "")),
        content_hash=digest.hexdigest()[:16],
        num_points=None if num_points is None else largest,
        sampling=sampling,
        normalize=normalize,
        pooling=getattr(encoder, "pooling", pooling),
        encoder=name or type(encoder).__name__,
        groups=None if dataset.groups is None else dataset.groups.numpy().astype(np.int64)[used],
    )


def _encode(encoder: Encoder, read: list[Tensor], pooling: str, device: torch.device | None) -> Array:
    """Features of a batch: its coordinates, perhaps its colours."""
    xyz, *rgb = (value.to(device) for value in read)
    colors = {"rgb": rgb[0]} if rgb else {}
    values: Array = encoder.encode(xyz, pooling=pooling, **colors).float().cpu().numpy()
    return values


def _colors(encoder: Encoder, clouds: list[PointCloud]) -> list[Tensor]:
    """The colours of a batch, where the encoder reads them and every cloud has them."""
    colors = [cloud.rgb for cloud in clouds if cloud.rgb is not None]
    return [torch.stack(colors)] if getattr(encoder, "reads_rgb", False) and len(colors) == len(clouds) else []


class _RandomPoints(Transform):
    """At most so many points, in random order; or exactly as many, drawn with replacement."""

    def __init__(self, num_points: int, replacement: bool = False) -> None:
        if num_points < 1:
            raise ValueError(f"num_points must be at least 1, got {num_points}")
        self.num_points, self.replacement = num_points, replacement

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        generator = torch.Generator().manual_seed(0)
        if self.replacement and len(cloud) > 0:
            return cloud.select(torch.randint(len(cloud), (self.num_points,), generator=generator))
        return cloud.select(torch.randperm(len(cloud), generator=generator)[: self.num_points])


def preparation(num_points: int | None, sampling: Sampling, normalize: Centering) -> Compose:
    """What happens to a cloud before it is encoded, see :func:`extract_features`.

    Raises:
        ValueError: ``sampling`` or ``normalize`` is none of the known ones, or ``num_points`` is below 1.
    """
    for name, value, known in (("sampling", sampling, Sampling), ("normalize", normalize, Centering)):
        if value not in get_args(known):
            raise ValueError(f"{name} must be one of {get_args(known)}, got {value!r}")
    steps: list[Transform] = []
    if num_points is not None:
        kinds: dict[str, Callable[[int], Transform]] = {
            "first": FirstPoints,
            "farthest": FarthestPointSample,
            "random": _RandomPoints,
            "replacement": partial(_RandomPoints, replacement=True),
        }
        steps.append(kinds[sampling](num_points))
    if normalize != "none":
        steps.append(Normalize(normalize))
    return Compose(steps)


def batches(
    dataset: PointDataset, size: int, prepare: Compose, leave_out: LeaveOut | None = None
) -> Iterator[list[PointCloud]]:
    """The clouds of a data set in order, prepared, at most ``size`` at a time; all of a batch of one length, and all
    with colours or none, so that no cloud's features depend on its neighbours.

    Raises:
        ValueError: a cloud has fewer points than the preparation takes; the message names it.
        BadFileError: a file cannot be used. ``leave_out`` gets this and the above in place of the caller.
    """
    generator = torch.Generator()  # no step of the preparation draws from it
    pending: list[PointCloud] = []
    for index in range(len(dataset)):
        if leave_out is None:
            cloud = prepare(dataset.load(index), generator)
        else:
            try:
                cloud = _usable(dataset.load(index), prepare, generator)
            except BadFileError as error:
                leave_out(index, error)
                continue
        if pending and (len(pending) == size or _kind(pending[0]) != _kind(cloud)):
            yield pending
            pending = []
        pending.append(cloud)
    if pending:
        yield pending


def _usable(cloud: PointCloud, prepare: Compose, generator: torch.Generator) -> PointCloud:
    """A cloud, prepared; that it has too few points is a fault of its file."""
    try:
        return prepare(cloud, generator)
    except ValueError as error:
        if "path" not in cloud.meta:
            raise
        raise BadFileError(cloud.meta["path"], str(error)) from error


def leave_out_batch(
    clouds: Sequence[PointCloud], rows: Sequence[int], error: TooFewPointsError, leave_out: LeaveOut | None
) -> None:
    """What is done about clouds of one batch that have too few points for a network.

    Args:
        clouds: of the batch, all of one length.
        rows: where they are in the data set.
        error: what the network said.
        leave_out: is told each of them; None refuses the first.

    Raises:
        BadFileError: nothing is to be left out.
        TooFewPointsError: a cloud is of no file.
    """
    for row, cloud in zip(rows, clouds, strict=True):
        if "path" not in cloud.meta:
            raise error
        bad = BadFileError(cloud.meta["path"], str(error))
        if leave_out is None:
            raise bad from error
        leave_out(row, bad)


def _kind(cloud: PointCloud) -> tuple[int, bool]:
    return len(cloud), cloud.rgb is None


@contextmanager
def _frozen(encoder: Encoder) -> Iterator[None]:
    if not isinstance(encoder, torch.nn.Module):
        with torch.no_grad():
            yield
        return
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def save_features(features: Features, path: Path | str, *, overwrite: bool = False) -> Path:
    """Write features to an ``.npz`` file that numpy reads without pickle.

    Keys: ``features`` ``(n, D)`` float32, ``label`` ``(n,)`` int64, ``id`` and ``classes`` strings, and the scalars
    ``data``, ``split``, ``encoder``, ``pooling``, ``num_points`` (-1 for all), ``sampling``, ``normalize`` and
    ``content_hash``.

    Args:
        features: what to write.
        path: must end in ``.npz``; its folder is made if needed.
        overwrite: replace an existing file.

    Returns:
        The path.

    Raises:
        FileExistsError: the file is there and ``overwrite`` is False.
        ValueError: another suffix.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path must end in .npz, got {path}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists and would be lost: choose another name, or overwrite=True")
    with replace_atomically(path) as file:
        np.savez(
            file,
            features=features.values,
            label=features.labels,
            id=np.array(features.ids, dtype=str),
            classes=np.array(features.classes, dtype=str),
            data=features.data,
            split=features.split,
            encoder=features.encoder,
            pooling=features.pooling,
            sampling=features.sampling,
            normalize=features.normalize,
            num_points=-1 if features.num_points is None else features.num_points,
            content_hash=features.content_hash,
        )
    return path
