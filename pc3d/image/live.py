"""Features computed during training instead of stored ones: of a mapping, or of a data set in a YAML file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pc3d.data.dataset import PointDataset
from pc3d.data.sens import open_frames
from pc3d.data.types import PointCloud
from pc3d.image.extractors import Content, Extractor, PictureFeatures, TextFeatures
from pc3d.image.loading import load_image_tower, load_text_tower
from pc3d.image.pictures import Picture
from pc3d.image.prompts import ULIP_TEMPLATES
from pc3d.image.scans import Frames, Scan, ScanFeatures


class LiveFeatures:
    """Features computed on demand, with the same access as :class:`FeatureStore`.

    Args:
        contents: what to compute from, by id.
        extractor: how.
        keep: number of items whose features stay in memory, in each process that reads, so that epochs after the first
            compute nothing; the first ones requested are kept.

    Raises:
        ValueError: ``keep`` is negative.
    """

    def __init__(self, contents: Mapping[str, Content], extractor: Extractor, keep: int = 0) -> None:
        if keep < 0:
            raise ValueError(f"keep must not be negative, got {keep}")
        self.contents, self.extractor, self.keep = contents, extractor, keep
        self._kept: dict[str, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.contents)

    def __contains__(self, item: object) -> bool:
        return item in self.contents

    def __iter__(self) -> Iterator[str]:
        return iter(self.contents)

    def __getitem__(self, item: str) -> dict[str, Tensor]:
        if item in self._kept:
            return self._kept[item]
        if item not in self.contents:
            raise KeyError(f"{item!r} is none of the {len(self)} items")
        features = self.extractor(self.contents[item])
        if len(self._kept) < self.keep:
            self._kept[item] = features
        return features

    def identity(self) -> dict[str, Any]:
        """What the features are made with."""
        return self.extractor.identity()


class _Contents(Mapping[str, Any]):
    """Contents of the items of a data set by id, read when they are asked for."""

    def __init__(self, dataset: PointDataset, rows: Mapping[str, int], read: Callable[[int], Any]) -> None:
        self.dataset, self.rows, self.read = dataset, dict(rows), read

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, item: object) -> bool:
        return item in self.rows  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __getitem__(self, item: str) -> Any:
        return self.read(self.rows[item])


def _clouds(dataset: PointDataset) -> Iterator[tuple[int, str, PointCloud]]:
    for row in range(len(dataset)):
        cloud = dataset.load(row)
        yield row, str(cloud.meta["id"]), cloud


class LiveTexts(LiveFeatures):
    """Features of the names of shapes, computed during training: ``texts`` of :class:`pc3d.data.AlignedSet`.

    The set is read once for its names. Stored features (:func:`precompute`) are better for many epochs of a large set,
    and several runs can share them.

    Args:
        dataset: clouds with ``meta["id"]`` and ``text``; those without text have no features.
        tower: a name for :func:`load_text_tower`.
        templates: prompt templates for the names; by default OpenShape's 64, ``["{}"]`` for the names alone.
        weights: for :func:`load_text_tower`.
        keep: see :class:`LiveFeatures`.
    """

    def __init__(
        self,
        dataset: PointDataset,
        tower: str,
        templates: Sequence[str] | None = None,
        weights: str | None = None,
        keep: int = 100_000,
    ) -> None:
        names = {item: cloud.text for _, item, cloud in _clouds(dataset) if cloud.text}
        extractor = TextFeatures(
            load_text_tower(tower, weights), ULIP_TEMPLATES if templates is None else tuple(templates)
        )
        super().__init__(names, extractor, keep)


class LivePictures(LiveFeatures):
    """Features of the pictures of shapes, computed during training: ``images`` of :class:`pc3d.data.AlignedSet`.

    Args:
        dataset: clouds with ``meta["id"]`` and ``image``, such as ``Household(pictures=True)``.
        tower: a name for :func:`load_image_tower`.
        weights: for :func:`load_image_tower`.
        keep: see :class:`LiveFeatures`.

    Raises:
        ValueError: no item has a picture.
    """

    def __init__(self, dataset: PointDataset, tower: str, weights: str | None = None, keep: int = 100_000) -> None:
        rows = {item: row for row, item, cloud in _clouds(dataset) if cloud.image is not None}
        if not rows:
            raise ValueError(
                "dataset: none of its items has a picture: read it with pictures=True, or leave images out"
            )

        def read(row: int) -> Picture:
            image = dataset.load(row).image
            assert image is not None
            picture: Picture = image.numpy()
            return picture

        super().__init__(_Contents(dataset, rows, read), PictureFeatures(load_image_tower(tower, weights)), keep)


class LiveScans(LiveFeatures):
    """Image features of scans, lifted onto points during training: ``features`` of :class:`pc3d.data.LiftedSet`.

    Lifting a scan takes as long as the tower needs for all its pictures: seconds to minutes, whenever it is not kept.

    Args:
        dataset: scans with ``meta["id"]``; data sets with a method ``frames``, such as :class:`pc3d.data.Rooms`,
            include their pictures.
        tower: a name for :func:`load_image_tower`.
        frames: for other sets, the folder with a folder of frames per scan, see :func:`pc3d.data.open_frames`.
        frame_step: lift only every ``frame_step``-th frame.
        tolerance: metres between a point and the depth picture.
        short_side: short side of the scaled pictures, in pixels; by default the tower's own.
        unit: normalise each picture's feature before averaging.
        weights: for :func:`load_image_tower`.
        keep: see :class:`LiveFeatures`; a scan of 100,000 points and 512 channels takes 200 MB.
        depth_shift: of ``frames``, see :func:`pc3d.data.open_frames`.
        two_sided: for scans whose normals were estimated, see :func:`lift_frames`.
        cropped: of ``frames``, see :func:`pc3d.data.open_frames`.

    Raises:
        ValueError: ``frames`` is missing.
    """

    def __init__(
        self,
        dataset: PointDataset,
        tower: str,
        frames: Path | str | None = None,
        frame_step: int = 1,
        tolerance: float = 0.05,
        short_side: int | None = None,
        unit: bool = False,
        weights: str | None = None,
        keep: int = 16,
        depth_shift: float = 1000.0,
        two_sided: bool = False,
        cropped: bool = False,
    ) -> None:
        own: Callable[[int], Frames] | None = getattr(dataset, "frames", None)
        if own is None and frames is None:
            raise ValueError(f"frames: say where the pictures of the scans are, {type(dataset).__name__} brings none")
        known = getattr(dataset, "ids", None)  # spares reading all scans for their ids
        ids = [item for _, item, _ in _clouds(dataset)] if known is None else [str(item) for item in known]

        def frames_of(row: int) -> Frames:
            if frames is not None:
                return open_frames(Path(frames) / ids[row], depth_shift, cropped=cropped)
            assert own is not None
            return own(row)

        def read(row: int) -> Scan:
            return Scan(dataset.load(row), frames_of(row), frame_step)

        rows = {item: row for row, item in enumerate(ids)}
        extractor = ScanFeatures(
            load_image_tower(tower, weights),
            tolerance=tolerance,
            two_sided=two_sided,
            short_side=short_side,
            unit=unit,
        )
        super().__init__(_Contents(dataset, rows, read), extractor, keep)
