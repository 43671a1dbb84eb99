"""The scene benchmarks, prepared in Pointcept's layout: ScanNet, S3DIS and Structured3D."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pc3d.data.dataset import BadFileError, MissingDataError
from pc3d.data.scene_labels import S3DIS_CLASSES, SCANNET20, SCANNET200, STRUCTURED3D_CLASSES, scannet_split
from pc3d.data.scenes import SceneFolder
from pc3d.data.transforms import Transform
from pc3d.data.types import PointCloud


class ScanNet(SceneFolder):
    """ScanNet v2 (Dai et al. 2017): 1,201 training, 312 validation and 100 test scans of rooms, 20 or 200 classes.

    Points are the vertices of the annotated meshes, not axis-aligned. The data-efficient benchmark (Hou et al. 2021)
    has two forms: limited reconstructions, a list of 12 to 240 scans (``scenes_list``), and limited annotations, 20 to
    200 labelled points in every scan (``labelled_points``); validation is the full one in both. With limited
    annotations, all other points have ``segment`` -1, ``meta["limited_annotations"]`` is set, and transforms that drop
    points keep the annotated ones.

    Args:
        root: the folder with ``train``, ``val`` and ``test``.
        split: one of these, or several.
        classes: 20, or 200 for ScanNet200.
        scenes_list: text file with a scan per line, such as the benchmark's ``tasks/scenes/10.txt``.
        labelled_points: file with the rows of the annotated points of every scan, such as the benchmark's
            ``tasks/points/points20``: what ``torch.save`` made of a dictionary, or the same in ``.json``.
        transform: applied to every item.

    Raises:
        MissingDataError: a folder, a listed scan or the rows of a scan are not there.
        BadFileError: a scan lies in a split that is not its official one; a file cannot be used.
        ValueError: ``classes`` is neither 20 nor 200.
    """

    source = "www.scan-net.org (script sent after signing the terms); then data_tools/prepare_scenes.py scannet"
    terms = "ScanNet's terms of use: non-commercial research and education, signed by each user, not to be passed on"

    def __init__(
        self,
        root: Path | str,
        split: str | Sequence[str] = "train",
        *,
        classes: Literal[20, 200] = 20,
        scenes_list: Path | str | None = None,
        labelled_points: Path | str | None = None,
        transform: Transform | None = None,
    ) -> None:
        if classes not in (20, 200):
            raise ValueError(f"classes must be 20 or 200, got {classes}")
        super().__init__(
            root,
            split,
            classes=SCANNET20 if classes == 20 else SCANNET200,
            segment=f"segment{classes}",
            scenes_list=scenes_list,
            transform=transform,
        )
        for name, path in zip(self.ids, self.paths, strict=True):
            self._check_split(name, path)
        self._annotated = None if labelled_points is None else self._read_annotated(Path(labelled_points))

    def load(self, index: int) -> PointCloud:
        cloud = super().load(index)
        if self._annotated is None or cloud.segment is None:
            return cloud
        rows = torch.from_numpy(self._annotated[self.ids[index]])
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(cloud):
            raise BadFileError(
                self.paths[index],
                f"has {len(cloud)} points, labelled_points names {int(rows.min())} to {int(rows.max())}",
            )
        segment = torch.full_like(cloud.segment, -1).scatter(0, rows, cloud.segment[rows])
        return cloud.replace(segment=segment, meta={**cloud.meta, "limited_annotations": True})

    def _check_split(self, name: str, path: Path) -> None:
        try:
            official = scannet_split(name)
        except ValueError:
            return  # a scan of the user's own
        for folder in path.relative_to(self.root).parts[:-1]:
            if folder in ("train", "val", "test") and folder != official:
                raise BadFileError(path, f"lies in {folder}, but officially belongs to {official}: move it there")

    def _read_annotated(self, path: Path) -> dict[str, Any]:
        if not path.is_file():
            raise MissingDataError.of(
                "labelled points of ScanNet",
                [path],
                path.parent,
                "the data-efficient benchmark of www.scan-net.org (tasks/points)",
                self.terms,
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else _load_torch(path)
            rows = {str(name): np.asarray(row, dtype=np.int64).reshape(-1) for name, row in content.items()}
        except (ValueError, TypeError, AttributeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise BadFileError(path, f"must hold a dictionary from scans to rows of points ({error})") from error
        missing: list[Path | str] = [name for name in self.ids if name not in rows]
        if missing:
            raise MissingDataError.of(
                f"labelled points of scans in {path.name}", missing, path.parent, self.source, self.terms
            )
        return rows


def _load_torch(path: Path) -> Any:
    # The benchmark's files hold lists or NumPy arrays; nothing else is let in.
    core: Any = np._core if hasattr(np, "_core") else np.core
    arrays = [core.multiarray._reconstruct, core.multiarray.scalar, np.ndarray, np.dtype]
    arrays += [type(np.dtype(f"{kind}{width}")) for kind in "iu" for width in (1, 2, 4, 8)]
    arrays += [(core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct")]
    with torch.serialization.safe_globals(arrays):
        return torch.load(path, weights_only=True)


class S3DIS(SceneFolder):
    """S3DIS (Armeni et al. 2016): 272 rooms in six areas, 13 classes, every point labelled.

    The published text files have no normals, so items have none unless the set was prepared with them: by Pointcept,
    from the mesh of the 2D-3D-S download, or by ``prepare_scenes.py s3dis --normals estimated``, from the points.

    Args:
        root: the folder with ``Area_1`` to ``Area_6``.
        split: ``"test"`` for ``test_area``, ``"train"`` for the other five.
        test_area: the area that is held out; 5 is the usual one.
        areas: these areas, whatever the split.
        transform: applied to every item.

    Raises:
        MissingDataError: an area is not there.
        ValueError: a number is not that of an area.
    """

    source = (
        "the S3DIS request form of Stanford's building parser project (Stanford3dDataset_v1.2_Aligned_Version); then "
        "data_tools/prepare_scenes.py s3dis"
    )
    terms = "S3DIS's own terms: research use, agreed to by each user before the download"

    def __init__(
        self,
        root: Path | str,
        split: Literal["train", "test"] = "train",
        *,
        test_area: int = 5,
        areas: Sequence[int] | None = None,
        transform: Transform | None = None,
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        if areas is None:
            areas = [test_area] if split == "test" else [area for area in range(1, 7) if area != test_area]
        unknown = sorted({test_area, *areas} - set(range(1, 7)))
        if unknown:
            raise ValueError(f"areas are numbered 1 to 6, got {unknown}")
        self.areas = tuple(areas)
        super().__init__(root, [f"Area_{area}" for area in areas], classes=S3DIS_CLASSES, transform=transform)

    def scene_id(self, path: Path) -> str:
        return f"{path.parent.name}-{path.name}"

    @classmethod
    def folds(cls, root: Path | str) -> Iterator[tuple[S3DIS, S3DIS]]:
        """The six pairs of training and test rooms of the 6-fold protocol, area 1 held out first.

        Scores are computed once, from the confusion matrices of the six test areas added up.
        """
        for area in range(1, 7):
            yield cls(root, "train", test_area=area), cls(root, "test", test_area=area)


class Structured3D(SceneFolder):
    """Structured3D (Zheng et al. 2020): 21,800 rooms of 3,500 rendered homes, 25 of the NYU40 classes.

    Args:
        root: the folder with ``train``, ``val`` and ``test``.
        split: one of these, or several.
        transform: applied to every item.

    Raises:
        MissingDataError: a folder is not there.
    """

    source = "structured3d-dataset.org (panorama and perspective zips); then data_tools/prepare_scenes.py structured3d"
    terms = "Structured3D's terms of use: non-commercial research, agreed to by each user before the download"

    def __init__(
        self, root: Path | str, split: str | Sequence[str] = "train", *, transform: Transform | None = None
    ) -> None:
        super().__init__(root, split, classes=STRUCTURED3D_CLASSES, transform=transform)

    def scene_id(self, path: Path) -> str:
        return f"{path.parent.name}_{path.name}"
