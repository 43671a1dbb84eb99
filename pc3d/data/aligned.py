"""Shapes with stored features of their texts and pictures, for alignment with a frozen 2D model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from pc3d.data.dataset import PointDataset
from pc3d.data.transforms import Transform
from pc3d.data.types import PointBatch, PointCloud

RAW, RETRIEVAL, CAPTION = "raw", "retrieval", "caption"
THUMBNAIL, RENDERING = "thumbnail", "rendering"
RELEASED_CAPTIONERS = ("blip", "azure")


@dataclass(frozen=True)
class Targets:
    """Features of the texts and pictures of one shape, stored in ``meta["targets"]`` of its cloud.

    Attributes:
        text_features: ``(T, D)`` float32, not necessarily of unit length; T may be 0.
        image_features: ``(V, E)`` float32; V may be 0.
        texts: the T texts.
        text_kinds: of each text ``"raw"`` (a name that the shape came with), ``"caption:WHO"`` (by the captioner WHO)
            or ``"retrieval"`` (of a similar picture on the web).
        image_kinds: of each picture ``"thumbnail"`` (made by the author of the shape) or ``"rendering"``.
        text_tower: name of the tower that computed the text features; empty if unknown.
        image_tower: name of the tower that computed the picture features, likewise.

    Raises:
        ValueError: the lists do not go with the features, or an unknown kind.
    """

    text_features: Tensor
    image_features: Tensor
    texts: tuple[str, ...]
    text_kinds: tuple[str, ...]
    image_kinds: tuple[str, ...]
    text_tower: str = ""
    image_tower: str = ""

    def __post_init__(self) -> None:
        for name, features, lists in (
            ("text_features", self.text_features, (self.texts, self.text_kinds)),
            ("image_features", self.image_features, (self.image_kinds,)),
        ):
            if features.ndim != 2 or any(len(values) != len(features) for values in lists):
                lengths = [len(values) for values in lists]
                raise ValueError(
                    f"{name} must have a row per entry of its lists {lengths}, got {tuple(features.shape)}"
                )

        known = {"text_kinds": (RAW, RETRIEVAL, CAPTION), "image_kinds": (THUMBNAIL, RENDERING)}
        for name, kinds in known.items():
            unknown = [kind for kind in getattr(self, name) if str(kind).partition(":")[0] not in kinds]
            if unknown:
                raise ValueError(f"{name} must be among {', '.join(kinds)}, got {unknown[0]!r}")

    def select(self, texts: Sequence[int], images: Sequence[int]) -> Targets:
        """Some of the texts and some of the pictures."""
        return replace(
            self,
            text_features=self.text_features[list(texts)],
            image_features=self.image_features[list(images)],
            texts=tuple(self.texts[i] for i in texts),
            text_kinds=tuple(self.text_kinds[i] for i in texts),
            image_kinds=tuple(self.image_kinds[i] for i in images),
        )


def targets_of(batch: PointBatch) -> list[Targets]:
    """The targets of each cloud of a batch.

    Raises:
        ValueError: a cloud has none.
    """
    found = [meta.get("targets") for meta in batch.meta]
    if not found or any(not isinstance(entry, Targets) for entry in found):
        raise ValueError(
            "clouds have no targets, the features of their texts and pictures: load them with OpenShapeFiles, "
            "AlignedShards or AlignedSet"
        )
    return [entry for entry in found if isinstance(entry, Targets)]


class ChooseTargets(Transform):
    """Draw the texts and pictures of a shape for one training step (OpenShape, section 3.1, and its code).

    The first text is drawn uniformly from one candidate of each kind that the shape has: a uniformly drawn raw text,
    the caption of a uniformly drawn captioner (none if it wrote nothing), and a uniformly drawn retrieved text. If no
    text is drawn, the shape is trained only with its picture. The first picture is the thumbnail, if there is one, with
    a given probability, else a uniformly drawn rendering. Further texts and pictures are drawn uniformly from the rest,
    without repetition.

    Args:
        num_texts: number of texts; 1 as published, more add further positives. A shape with fewer returns all.
        num_images: number of pictures, likewise.
        kinds: which kinds of text are used.
        captioners: which captioners may be drawn. ``"published"``: the two of the release, blip and azure, even if one
            wrote nothing, and any other that wrote something for the shape (ours; only the others if only they did).
            None draws among those that wrote something.
        thumbnail_probability: see above.

    Raises:
        ValueError: a number below 0, an unknown kind, a bare name as captioners, or a probability outside of [0, 1].
    """

    def __init__(
        self,
        num_texts: int = 1,
        num_images: int = 1,
        kinds: Sequence[str] = (RAW, CAPTION, RETRIEVAL),
        captioners: Sequence[str] | Literal["published"] | None = "published",
        thumbnail_probability: float = 0.5,
    ) -> None:
        if num_texts < 0 or num_images < 0:
            raise ValueError(f"num_texts and num_images must not be negative, got {num_texts} and {num_images}")
        unknown = sorted(set(kinds) - {RAW, CAPTION, RETRIEVAL})
        if unknown:
            raise ValueError(f"kinds must be among raw, caption, retrieval, got {unknown}")
        if not 0.0 <= thumbnail_probability <= 1.0:
            raise ValueError(f"thumbnail_probability must be in [0, 1], got {thumbnail_probability}")
        self.num_texts, self.num_images, self.kinds = num_texts, num_images, tuple(kinds)
        if isinstance(captioners, str) and captioners != "published":
            raise ValueError(f"captioners must be a list of names, 'published' or None, got {captioners!r}")
        self.captioners = captioners if captioners is None or isinstance(captioners, str) else tuple(captioners)
        self.thumbnail_probability = thumbnail_probability

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        targets = cloud.meta.get("targets")
        if not isinstance(targets, Targets):
            name = f" ({cloud.meta['id']})" if "id" in cloud.meta else ""
            raise ValueError(f"the cloud{name} has no targets to choose from: load it with AlignedShards or the like")
        texts = self._texts(targets, generator)
        images = self._images(targets, generator)
        return cloud.replace(meta={**cloud.meta, "targets": targets.select(texts, images)})

    def _texts(self, targets: Targets, generator: torch.Generator) -> list[int]:
        if self.num_texts == 0:
            return []
        usable = [i for i, kind in enumerate(targets.text_kinds) if kind.partition(":")[0] in self.kinds]
        candidates = [self._one_of(targets, kind, generator) for kind in self.kinds]
        present = [index for index in candidates if index is not None]
        if not present:
            return []
        first = _draw(present, generator)
        return [first, *_draw_several([i for i in usable if i != first], self.num_texts - 1, generator)]

    def _one_of(self, targets: Targets, kind: str, generator: torch.Generator) -> int | None:
        wanted = kind
        if kind == CAPTION:
            named = [f"{CAPTION}:{who}" for who in self._who(targets)]
            if not named:
                return None
            wanted = _draw(named, generator)
        members = [i for i, found in enumerate(targets.text_kinds) if found == wanted]
        return _draw(members, generator) if members else None

    def _who(self, targets: Targets) -> Sequence[str]:
        """The captioners that may be drawn for a shape."""
        if isinstance(self.captioners, tuple):
            return self.captioners
        wrote = sorted({kind.partition(":")[2] for kind in targets.text_kinds if kind.startswith(f"{CAPTION}:")})
        others = [who for who in wrote if who not in RELEASED_CAPTIONERS]
        if self.captioners is None:
            return wrote
        return others if others and others == wrote else [*RELEASED_CAPTIONERS, *others]

    def _images(self, targets: Targets, generator: torch.Generator) -> list[int]:
        thumbnails = [i for i, kind in enumerate(targets.image_kinds) if kind == THUMBNAIL]
        renderings = [i for i, kind in enumerate(targets.image_kinds) if kind == RENDERING]
        if self.num_images == 0 or not targets.image_kinds:
            return []
        lucky = float(torch.rand((), generator=generator, dtype=torch.float64)) < self.thumbnail_probability
        first = _draw(thumbnails if thumbnails and (lucky or not renderings) else renderings, generator)
        rest = [i for i in range(len(targets.image_kinds)) if i != first]
        return [first, *_draw_several(rest, self.num_images - 1, generator)]


def _draw(values: Sequence[Any], generator: torch.Generator) -> Any:
    return values[int(torch.randint(len(values), (), generator=generator))]


def _draw_several(values: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
    order = torch.randperm(len(values), generator=generator)[: max(count, 0)]
    return [values[i] for i in order.tolist()]


class TurnSlightly(Transform):
    """A small random rotation about all three axes, with clipped normal angles (PointNet++'s perturbation).

    Points are row vectors multiplied by ``Rz Ry Rx``; normals follow.

    Args:
        std_degrees: standard deviation of each angle before the clipping; published as 0.06 radians.
        max_degrees: the largest angle; published as 0.18 radians.

    Raises:
        ValueError: ``std_degrees`` or ``max_degrees`` is negative.
    """

    def __init__(self, std_degrees: float = math.degrees(0.06), max_degrees: float = math.degrees(0.18)) -> None:
        if std_degrees < 0 or max_degrees < 0:
            raise ValueError(f"std_degrees and max_degrees must not be negative, got {std_degrees} and {max_degrees}")
        self.std_degrees, self.max_degrees = float(std_degrees), float(max_degrees)

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        std, most = math.radians(self.std_degrees), math.radians(self.max_degrees)
        angles = (torch.randn(3, generator=generator, dtype=torch.float64) * std).clamp(-most, most)
        matrix = torch.eye(3, dtype=torch.float64)
        for axis in (0, 1, 2):
            sine, cosine = angles[axis].sin(), angles[axis].cos()
            first, second = (axis + 1) % 3, (axis + 2) % 3
            turn = torch.eye(3, dtype=torch.float64)
            turn[first, first] = turn[second, second] = cosine
            turn[first, second], turn[second, first] = -sine, sine
            matrix = turn @ matrix
        normal = None if cloud.normal is None else cloud.normal @ matrix.to(cloud.normal.dtype)
        return cloud.replace(xyz=cloud.xyz @ matrix.to(cloud.xyz.dtype), normal=normal)


class StoredFeatures(Protocol):
    """Features by id, as :class:`pc3d.image.FeatureStore` keeps them.

    If it also has ``identity()``, its ``"name"`` is that of the tower that computed them.
    """

    def __contains__(self, item: object) -> bool:
        """Whether there are features of an item."""

    def __getitem__(self, item: str) -> dict[str, Tensor]:
        """Features of an item by name."""


class AlignedSet(PointDataset):
    """Any data set, joined by id with stored features of its texts and pictures.

    Args:
        dataset: clouds with ``meta["id"]``; a cloud's ``text`` is its one raw text.
        texts: features of each text under ``text_feature``, ``(1, D)``; None for none. A shape whose id is missing has
            no text.
        images: features of the pictures under ``"image"``, ``(V, E)``, likewise. Targets keep the names of the towers
            that made texts and images, so that a method which expects others can refuse them.
        text_feature: ``"prompt_avg"`` (over templates, published for names) or ``"original"``.
        transform: applied to every item, such as :class:`ChooseTargets`.

    Raises:
        ValueError: neither texts nor images are given.
    """

    def __init__(
        self,
        dataset: PointDataset,
        texts: StoredFeatures | None = None,
        images: StoredFeatures | None = None,
        *,
        text_feature: Literal["prompt_avg", "original"] = "prompt_avg",
        transform: Transform | None = None,
    ) -> None:
        if texts is None and images is None:
            raise ValueError("texts and images are both None: there is nothing to align shapes with")
        self.dataset, self.texts, self.images = dataset, texts, images
        self.text_feature, self.transform = text_feature, transform
        self.classes, self.parts, self.skipped = dataset.classes, dataset.parts, dataset.skipped
        self.labels, self.groups = dataset.labels, dataset.groups
        self._towers = _tower_of(texts), _tower_of(images)

    def load(self, index: int) -> PointCloud:
        cloud = self.dataset.load(index)
        item = str(cloud.meta["id"])
        text = _rows(self.texts, item, self.text_feature)
        image = _rows(self.images, item, "image")
        names = (cloud.text or "",) * len(text)
        targets = Targets(text, image, names, (RAW,) * len(text), (RENDERING,) * len(image), *self._towers)
        return cloud.replace(meta={**cloud.meta, "targets": targets})


def _rows(stored: StoredFeatures | None, item: str, name: str) -> Tensor:
    return torch.zeros(0, 0) if stored is None or item not in stored else stored[item][name]


def _tower_of(stored: StoredFeatures | None) -> str:
    identity = getattr(stored, "identity", None)
    return "" if identity is None else str(identity().get("name", ""))


class Ensemble(PointDataset):
    """Several data sets as one, each with a weight.

    With weight w, every item of a set is visited ``floor(w)`` times per epoch. The fractional part adds
    ``round(fraction * size)`` visits of items that are drawn anew in each epoch. Items have no labels, because classes
    of different sets differ in meaning.

    Args:
        datasets: the sets; their own transforms still apply.
        weights: visits of each item per epoch, one number per set; by default all 1.

    Raises:
        ValueError: no set, or weights that are not one positive number per set, or one that leaves no visit of its set.
    """

    def __init__(self, datasets: Sequence[PointDataset], weights: Sequence[float] | None = None) -> None:
        self.datasets = list(datasets)
        self.weights = [1.0] * len(self.datasets) if weights is None else [float(weight) for weight in weights]
        if not self.datasets or len(self.weights) != len(self.datasets) or min(self.weights) <= 0:
            raise ValueError(
                f"weights must be one positive number for each of the {len(self.datasets)} data sets, got {weights}"
            )
        sizes = [round(weight * len(one)) for one, weight in zip(self.datasets, self.weights, strict=True)]
        if 0 in sizes:
            number = sizes.index(0)
            weight, items = self.weights[number], len(self.datasets[number])
            raise ValueError(
                f"weights: {weight:g} of the {items} items of data set {number} is no visit per epoch: raise the "
                "weight, or leave the set out"
            )
        self._bounds = np.cumsum([0, *sizes])
        self.skipped = tuple(file for one in self.datasets for file in one.skipped)
        self.labels = torch.full((int(self._bounds[-1]),), -1, dtype=torch.int64)

    def load(self, index: int) -> PointCloud:
        one, position = self._place(index)
        return one.load(position % len(one)).replace(label=None)

    def sample(self, index: int, generator: torch.Generator) -> PointCloud:
        index = self._checked(index)
        one, position = self._place(index)
        whole = len(one) * (position // len(one) + 1)
        visits = int(self._bounds[self._number(index) + 1] - self._bounds[self._number(index)])
        if whole > visits:  # in the last, incomplete round
            position = int(torch.randint(len(one), (), generator=generator))
        return one.sample(position % len(one), generator).replace(label=None)

    def _number(self, index: int) -> int:
        return int(np.searchsorted(self._bounds, index, side="right")) - 1

    def _place(self, index: int) -> tuple[PointDataset, int]:
        number = self._number(index)
        return self.datasets[number], index - int(self._bounds[number])
