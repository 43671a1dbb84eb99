"""One sample, a packed batch of samples, and the conversion between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

_PER_POINT = ("xyz", "rgb", "normal", "segment", "instance", "feature")
_INTEGER = ("segment", "instance")


def _check_per_point(name: str, value: Tensor, num_points: int) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}: use torch.from_numpy(...)")
    width = value.shape[-1] if name == "feature" and value.ndim == 2 else 3
    shape = (num_points,) if name in _INTEGER else (num_points, width)
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must have shape {shape} (one row per point of xyz), got {tuple(value.shape)}")
    if name in _INTEGER:
        if value.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, got {value.dtype}: use {name}.long()")
    elif not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}: use {name}.float()")


@dataclass
class PointCloud:
    """One object or scene as points.

    Attributes:
        xyz: ``(N, 3)`` float coordinates, right-handed; metres for scenes, unit sphere for objects.
        rgb: ``(N, 3)`` float colours in [0, 1], or None.
        normal: ``(N, 3)`` unit normals, or None.
        label: class of the whole cloud; -1 for unlabelled, None if not applicable.
        segment: ``(N,)`` int64 part or semantic class of each point, or None; -1 for unknown.
        instance: ``(N,)`` int64 number of the object that each point is on, or None; -1 for none.
        text: a name or caption, or None.
        image: ``(H, W, 3)`` uint8 picture of the object, or None.
        feature: ``(N, C)`` float features of an image tower at each point (:class:`pc3d.data.LiftedSet`), or None; a
            row of zeros for a point that no picture shows.
        meta: everything else: ``id``, ``radius_m`` (metres of one unit), creator, licence, path, ...

    Raises:
        TypeError: a field is not a tensor of the right kind.
        ValueError: a per-point field has another length than ``xyz``.
    """

    xyz: Tensor
    rgb: Tensor | None = None
    normal: Tensor | None = None
    label: int | None = None
    segment: Tensor | None = None
    instance: Tensor | None = None
    text: str | None = None
    image: Tensor | None = None
    feature: Tensor | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.xyz, Tensor):
            raise TypeError(f"xyz must be a torch.Tensor, got {type(self.xyz).__name__}: use torch.from_numpy(...)")
        if self.xyz.ndim != 2:
            raise ValueError(f"xyz must have shape (N, 3), got {tuple(self.xyz.shape)}")
        for name in _PER_POINT:
            value = getattr(self, name)
            if value is not None:
                _check_per_point(name, value, self.xyz.shape[0])
        image = self.image
        if image is not None and (image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != 3):
            raise ValueError(f"image must be uint8 of shape (H, W, 3), got {image.dtype} {tuple(image.shape)}")

    def __len__(self) -> int:
        return self.xyz.shape[0]

    def replace(self, **changes: Any) -> PointCloud:
        """A copy with some fields changed; the others are shared, not copied."""
        return dataclasses.replace(self, **changes)

    def select(self, index: Tensor | slice) -> PointCloud:
        """The cloud made of some of its points.

        Args:
            index: int64 ``(M,)`` rows, a boolean ``(N,)`` mask, or a slice; applied to every per-point field.
        """
        fields = {name: getattr(self, name) for name in _PER_POINT}
        return self.replace(**{name: value[index] for name, value in fields.items() if value is not None})


@dataclass
class PointBatch:
    """Clouds of any lengths, packed: cloud ``b`` is rows ``offsets[b]:offsets[b + 1]``.

    Attributes:
        xyz: ``(sum N, 3)`` coordinates.
        offsets: ``(B + 1,)`` int64, ascending, ``offsets[0] == 0``.
        rgb: ``(sum N, 3)`` in [0, 1], or None.
        normal: ``(sum N, 3)``, or None.
        label: ``(B,)`` int64 with -1 for unlabelled, or None.
        segment: ``(sum N,)`` int64, or None.
        instance: ``(sum N,)`` int64, or None; numbers count within each cloud.
        text: one string per cloud, or None.
        image: ``(B, H, W, 3)`` uint8, or None.
        feature: ``(sum N, C)``, or None.
        meta: one dictionary per cloud.
    """

    xyz: Tensor
    offsets: Tensor
    rgb: Tensor | None = None
    normal: Tensor | None = None
    label: Tensor | None = None
    segment: Tensor | None = None
    instance: Tensor | None = None
    text: list[str] | None = None
    image: Tensor | None = None
    feature: Tensor | None = None
    meta: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        """Number of clouds."""
        return self.offsets.shape[0] - 1

    @property
    def lengths(self) -> Tensor:
        """``(B,)`` int64 number of points of each cloud."""
        return self.offsets.diff()

    def _map(self, function: Callable[[Tensor], Tensor]) -> PointBatch:
        fields: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields.update({name: function(value) for name, value in fields.items() if isinstance(value, Tensor)})
        return PointBatch(**fields)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> PointBatch:
        """The batch with every tensor on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PointBatch:
        """The batch in page-locked memory, for asynchronous copies to the GPU."""
        return self._map(lambda tensor: tensor.pin_memory())

    def dense(self, name: str = "xyz") -> Tensor:
        """A per-point field as ``(B, N, ...)``, without a copy.

        Args:
            name: ``"xyz"``, ``"rgb"``, ``"normal"``, ``"segment"``, ``"instance"`` or ``"feature"``.

        Raises:
            ValueError: the clouds differ in length, or the batch has no such field.
        """
        if name not in _PER_POINT:
            raise ValueError(f"name must be one of {_PER_POINT}, got {name!r}")
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ValueError(f"this batch has no {name}: the data set does not provide it")
        num_clouds, num_rows = len(self), value.shape[0]
        if num_clouds == 0:
            return value.reshape(0, 0, *value.shape[1:])
        num_points = num_rows // num_clouds
        expected = torch.arange(num_clouds + 1, device=self.offsets.device) * num_points
        if num_points * num_clouds != num_rows or not torch.equal(self.offsets, expected):
            lengths = self.lengths.tolist()
            raise ValueError(
                f"dense() needs clouds of equal length, got {min(lengths)} to {max(lengths)} points: "
                "add a sampling transform such as RandomSubsample(num_points), to data.train_transforms and, for "
                "validation and test, to data.eval_transforms; or use the packed layout with offsets"
            )
        return value.view(num_clouds, num_points, *value.shape[1:])

    def unbind(self) -> list[PointCloud]:
        """The clouds of the batch, one by one; their tensors are views."""
        clouds = []
        for b, (start, stop) in enumerate(pairwise(self.offsets.tolist())):
            per_point: dict[str, Any] = {
                name: value[start:stop] for name in _PER_POINT if (value := getattr(self, name)) is not None
            }
            cloud = PointCloud(
                **per_point,
                label=None if self.label is None else int(self.label[b]),
                text=None if self.text is None else self.text[b],
                image=None if self.image is None else self.image[b],
                meta=self.meta[b] if self.meta else {},
            )
            clouds.append(cloud)
        return clouds


def _all_or_none(clouds: Sequence[PointCloud], name: str) -> list[Any] | None:
    values = [getattr(cloud, name) for cloud in clouds]
    missing = [position for position, value in enumerate(values) if value is None]
    if len(missing) == len(values):
        return None
    if missing:
        where = clouds[missing[0]].meta.get("id", f"position {missing[0]}")
        raise ValueError(
            f"{len(missing)} of {len(values)} clouds have no {name} (first: {where}) while the others do: "
            f"drop {name} with the transform KeepFields, or batch clouds of one kind"
        )
    return values


def collate(clouds: Sequence[PointCloud]) -> PointBatch:
    """Pack clouds into one batch.

    A field that no cloud has stays None. ``label`` is filled with -1 if only some clouds have one.

    Args:
        clouds: one or more samples, of any lengths (empty ones too).

    Raises:
        ValueError: there is no cloud; some clouds have a field that others lack; pictures or features differ in size.
    """
    if len(clouds) == 0:
        raise ValueError("collate needs at least one PointCloud, got an empty list")
    lengths = torch.tensor([0] + [len(cloud) for cloud in clouds])
    widths = sorted({cloud.feature.shape[1] for cloud in clouds if cloud.feature is not None})
    if len(widths) > 1:
        raise ValueError(f"feature differs in width among the clouds, {widths}: take features of one tower")
    packed: dict[str, Any] = {
        name: None if values is None else torch.cat(values)
        for name, values in ((name, _all_or_none(clouds, name)) for name in _PER_POINT)
    }
    labels = [cloud.label for cloud in clouds]
    images = _all_or_none(clouds, "image")
    if images is not None and len({tuple(image.shape) for image in images}) > 1:
        raise ValueError(f"pictures differ in size: {sorted({tuple(image.shape) for image in images})}; resize them")
    return PointBatch(
        **packed,
        offsets=lengths.cumsum(0),
        label=None
        if all(label is None for label in labels)
        else torch.tensor([-1 if label is None else label for label in labels]),
        text=_all_or_none(clouds, "text"),
        image=None if images is None else torch.stack(images),
        meta=[cloud.meta for cloud in clouds],
    )
