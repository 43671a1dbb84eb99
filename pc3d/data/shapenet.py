"""ShapeNet55 and ShapeNetSTRL, on which the Point-MAE family and POS-BERT pre-train, and ShapeNetPart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
import torch

from pc3d._progress import track
from pc3d.data.arrays import ArrayDataset
from pc3d.data.dataset import BadFileError, MissingDataError
from pc3d.data.files import FileDataset, OnError, check_on_error, read_lines
from pc3d.data.modelnet import read_table
from pc3d.data.transforms import Transform
from pc3d.data.types import PointCloud

_TERMS = "ShapeNet's terms of use (shapenet.org): non-commercial research and education"

# WordNet synset and English name of the 55 categories of ShapeNetCore, in the order of their labels.
SHAPENET55 = {
    "02691156": "airplane",
    "02747177": "trash bin",
    "02773838": "bag",
    "02801938": "basket",
    "02808440": "bathtub",
    "02818832": "bed",
    "02828884": "bench",
    "02843684": "birdhouse",
    "02871439": "bookshelf",
    "02876657": "bottle",
    "02880940": "bowl",
    "02924116": "bus",
    "02933112": "cabinet",
    "02942699": "camera",
    "02946921": "can",
    "02954340": "cap",
    "02958343": "car",
    "02992529": "cellphone",
    "03001627": "chair",
    "03046257": "clock",
    "03085013": "keyboard",
    "03207941": "dishwasher",
    "03211117": "display",
    "03261776": "earphone",
    "03325088": "faucet",
    "03337140": "file cabinet",
    "03467517": "guitar",
    "03513137": "helmet",
    "03593526": "jar",
    "03624134": "knife",
    "03636649": "lamp",
    "03642806": "laptop",
    "03691459": "loudspeaker",
    "03710193": "mailbox",
    "03759954": "microphone",
    "03761084": "microwave",
    "03790512": "motorbike",
    "03797390": "mug",
    "03928116": "piano",
    "03938244": "pillow",
    "03948459": "pistol",
    "03991062": "flowerpot",
    "04004475": "printer",
    "04074963": "remote",
    "04090263": "rifle",
    "04099429": "rocket",
    "04225987": "skateboard",
    "04256520": "sofa",
    "04330267": "stove",
    "04379243": "table",
    "04401088": "telephone",
    "04460130": "tower",
    "04468005": "train",
    "04530566": "watercraft",
    "04554684": "washer",
}
"""The 55 categories of ShapeNetCore: WordNet offset to name."""

# Parts of each category of ShapeNetPart, first and last, in the order of synsetoffset2category.txt.
SHAPENET_PARTS = {
    "Airplane": (0, 3),
    "Bag": (4, 5),
    "Cap": (6, 7),
    "Car": (8, 11),
    "Chair": (12, 15),
    "Earphone": (16, 18),
    "Guitar": (19, 21),
    "Knife": (22, 23),
    "Lamp": (24, 27),
    "Laptop": (28, 29),
    "Motorbike": (30, 35),
    "Mug": (36, 37),
    "Pistol": (38, 40),
    "Rocket": (41, 43),
    "Skateboard": (44, 46),
    "Table": (47, 49),
}
"""First and last part of each category of ShapeNetPart, as its files number them."""
_MOST_PARTS = 10_000  # each gets a name and an output of the network: one wrong number must not make billions of them


class ShapeNet55(FileDataset):
    """ShapeNet-55 in Point-BERT's form: 8,192 points per object, y up, not normalised.

    Pre-training in the Point-MAE family reads the train list, takes 1,024 random points, and normalises those:
    ``RandomSubsample(1024)``, ``Normalize()``, ``ScaleTranslate()``.

    Args:
        root: the folder with ``ShapeNet-55/{train,test}.txt`` and ``shapenet_pc/SYNSET-MODEL.npy``.
        split: ``"train"`` (41,952 with Point-BERT's lists), ``"test"`` (10,518), or ``"all"``, both, on which PCP-MAE
            pre-trains.
        lists: name of the folder with the lists; some projects ship shorter ones.
        on_error: see :class:`FileDataset`.
        transform: applied to every item.

    Raises:
        ValueError: an unknown split.
        MissingDataError: a list or a listed file is not there.
    """

    source = "ShapeNet55-34 as prepared by Point-BERT (Yu et al. 2022), github.com/lulutang0608/Point-BERT, DATASET.md"
    terms = _TERMS
    up = "y"

    def __init__(
        self,
        root: Path | str,
        split: Literal["train", "test", "all"] = "train",
        *,
        lists: str = "ShapeNet-55",
        on_error: OnError = "refuse",
        transform: Transform | None = None,
    ) -> None:
        if split not in ("train", "test", "all"):
            raise ValueError(f"split must be 'train', 'test' or 'all', got {split!r}")
        self.root, self.split = Path(root), split
        wanted = ("train", "test") if split == "all" else (split,)
        listings = [self.root / lists / f"{part}.txt" for part in wanted]
        self._require([listing for listing in listings if not listing.is_file()])
        names = [name for listing in listings for name in read_lines(listing)]
        paths = [self.root / "shapenet_pc" / name for name in names]
        self._require([path for path in paths if not path.is_file()])
        synsets = [name.partition("-")[0] for name in names]
        # Labels do not depend on the list: the 55 categories first, whatever else it names after them.
        order = [*SHAPENET55, *sorted(set(synsets) - set(SHAPENET55))]
        self.synsets = tuple(order)
        self.classes = tuple(SHAPENET55.get(synset, synset) for synset in order)
        index = {synset: label for label, synset in enumerate(order)}
        super().__init__(paths, [index[synset] for synset in synsets], on_error=on_error, transform=transform)

    def _require(self, missing: list[Path]) -> None:
        if missing:
            raise MissingDataError.of(type(self).__name__, missing, self.root, self.source, self.terms)

    def read(self, path: Path) -> PointCloud:
        try:
            xyz = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise BadFileError(path, f"cannot be read as .npy ({error}); truncated?") from error
        if not isinstance(xyz, np.ndarray) or xyz.ndim != 2 or xyz.shape[1] != 3 or len(xyz) == 0:
            raise BadFileError(path, f"has shape {getattr(xyz, 'shape', None)} in place of (8192, 3)")
        if not np.isfinite(xyz).all():
            raise BadFileError(path, "has coordinates that are not finite numbers")
        return PointCloud(xyz=torch.from_numpy(xyz.astype(np.float32)))


class ShapeNetSTRL(ArrayDataset):
    """ShapeNetCore in STRL's form, on which POS-BERT pre-trains: 57,448 objects of 2,048 points, without labels, y up.

    The whole file is held in memory: 1.4 GB in float32.

    Args:
        path: ``shapenet57448xyzonly.npz``, whose array ``data`` is (objects, points, 3); columns after the third are
            left out.
        on_error: ``"refuse"`` or ``"report"`` items with coordinates that are not finite.
        transform: applied to every item.

    Raises:
        MissingDataError: the file is not there.
        BadFileError: it is truncated, or its arrays are not as described.
    """

    source = "shapenet57448xyzonly.npz of the STRL project (Huang et al. 2021), github.com/yichen928/STRL"
    terms = _TERMS
    up = "y"

    def __init__(self, path: Path | str, *, on_error: OnError = "refuse", transform: Transform | None = None) -> None:
        path = Path(path)
        if not path.is_file():
            raise MissingDataError.of(type(self).__name__, [path], path.parent, self.source, self.terms)
        try:
            with np.load(path, allow_pickle=False) as file:
                data = file["data"]
        except (ValueError, OSError, EOFError, KeyError, BadZipFile) as error:
            raise BadFileError(path, f"cannot be read as .npz with an array 'data' ({error}); truncated?") from error
        if data.ndim != 3 or data.shape[2] < 3:
            raise BadFileError(path, f"data has shape {data.shape} in place of (objects, points, 3)")
        super().__init__(
            data[:, :, :3],
            np.full(len(data), -1),
            ids=[f"{path.stem}/{i}" for i in range(len(data))],
            classes=(),
            path=path,
            on_error=on_error,
            transform=transform,
        )


def _part_names(classes: tuple[str, ...], category_parts: tuple[tuple[int, ...], ...]) -> tuple[str, ...]:
    """As the official parts are named; one that several categories share, or none has, goes by its number."""
    names = {}
    for name, parts in zip(classes, category_parts, strict=True):
        for part in parts:
            names[part] = f"part {part}" if part in names else f"{name} {part - parts[0]}"
    return tuple(names.get(part, f"part {part}") for part in range(max(names, default=-1) + 1))


class ShapeNetPart(FileDataset):
    """ShapeNetPart with normals: 16 categories, 50 parts, a few hundred to a few thousand points per object.

    ``label`` is the category, by line of ``synsetoffset2category.txt``; ``segment`` is the part, numbered over all
    categories. y is up. The protocols normalise to the unit sphere and draw 2,048 points with replacement
    (``RandomSubsample(2048, replacement=True)``), and train on ``"trainval"``.

    A folder of the same layout with other categories works, too. Its parts are those of the objects in all its lists,
    which are read once to find them (with a progress bar). Numbers of parts are those of the files, even if some are
    not used.

    Args:
        root: the folder ``shapenetcore_partanno_segmentation_benchmark_v0_normal``, or one of its layout.
        split: ``"train"`` (12,137), ``"val"`` (1,870), ``"trainval"`` or ``"test"`` (2,874).
        on_error: see :class:`FileDataset`.
        transform: applied to every item.

    Raises:
        ValueError: an unknown split.
        MissingDataError: a list or a listed file is not there.
        BadFileError: a list is not as described, or a file with other categories than the official ones is bad.
    """

    source = (
        "shapenetcore_partanno_segmentation_benchmark_v0_normal.zip of the PointNet++ project (Yi et al. 2016, "
        "Qi et al. 2017), github.com/charlesq34/pointnet2"
    )
    terms = _TERMS
    up = "y"

    def __init__(
        self,
        root: Path | str,
        split: Literal["train", "val", "trainval", "test"] = "trainval",
        *,
        on_error: OnError = "refuse",
        transform: Transform | None = None,
    ) -> None:
        if split not in ("train", "val", "trainval", "test"):
            raise ValueError(f"split must be 'train', 'val', 'trainval' or 'test', got {split!r}")
        self.root, self.split = Path(root), split
        categories = self.root / "synsetoffset2category.txt"
        lists = [
            self.root / "train_test_split" / f"shuffled_{name}_file_list.json"
            for name in (("train", "val") if split == "trainval" else (split,))
        ]
        self._require([path for path in (categories, *lists) if not path.is_file()])
        rows = [line.rsplit(maxsplit=1) for line in read_lines(categories)]  # a name may have blanks
        if any(len(row) != 2 for row in rows):
            raise BadFileError(categories, "must have a name and a synset on each line")
        self.classes = tuple(row[0] for row in rows)
        self.synsets = tuple(row[1] for row in rows)
        if len(set(self.classes)) < len(rows) or len(set(self.synsets)) < len(rows):
            raise BadFileError(categories, "has a name or a synset twice")
        items = [item for path in lists for item in self._listed(path)]
        paths = [self.root / synset / f"{model}.txt" for synset, model in items]
        self._require([path for path in paths if not path.is_file()])
        if set(self.classes) == set(SHAPENET_PARTS):
            self.parts = tuple(
                f"{name} {part - first}"
                for name, (first, last) in SHAPENET_PARTS.items()
                for part in range(first, last + 1)
            )
            self.category_parts = tuple(
                tuple(range(first, last + 1)) for first, last in (SHAPENET_PARTS[name] for name in self.classes)
            )
        else:
            check_on_error(on_error)
            self.category_parts = self._found_parts(on_error)
            self.parts = _part_names(self.classes, self.category_parts)
        labels = [self.synsets.index(synset) for synset, _ in items]
        super().__init__(paths, labels, on_error=on_error, transform=transform)

    def _found_parts(self, on_error: OnError) -> tuple[tuple[int, ...], ...]:
        """The parts of each category: of all splits, so that every split has the same."""
        lists = [
            self.root / "train_test_split" / f"shuffled_{name}_file_list.json" for name in ("train", "val", "test")
        ]
        items = dict.fromkeys(item for path in lists if path.is_file() for item in self._listed(path))
        found: list[set[int]] = [set() for _ in self.classes]
        for synset, model in track(list(items), f"parts of {self.root.name}", "files"):
            path = self.root / synset / f"{model}.txt"
            self._require([] if path.is_file() else [path])
            try:
                segment = self.read(path).segment
            except BadFileError:
                if on_error == "refuse":
                    raise
                continue  # it is listed in skipped, if it is of this split
            assert segment is not None
            found[self.synsets.index(synset)].update(segment.unique().tolist())
        return tuple(tuple(sorted(parts)) for parts in found)

    def _listed(self, path: Path) -> list[tuple[str, str]]:
        try:
            entries = [str(entry).split("/") for entry in json.loads(path.read_text(encoding="utf-8-sig"))]
        except ValueError as error:
            raise BadFileError(path, f"is not a JSON list ({error}); truncated?") from error
        for entry in entries:
            if len(entry) != 3 or entry[1] not in self.synsets:
                raise BadFileError(path, f"{'/'.join(entry)!r} is not shape_data/SYNSET/MODEL with a known synset")
        return [(entry[1], entry[2]) for entry in entries]

    def _require(self, missing: list[Path]) -> None:
        if missing:
            raise MissingDataError.of(type(self).__name__, missing, self.root, self.source, self.terms)

    def read(self, path: Path) -> PointCloud:
        table = read_table(path, 7, None)
        segment = table[:, 6].round()
        if not torch.equal(segment, table[:, 6]) or bool((segment < 0).any()):
            raise BadFileError(path, "has part labels in its last column that are not counting numbers")
        if int(segment.max()) >= _MOST_PARTS:
            raise BadFileError(path, f"has part {int(segment.max())}, and a data set has at most {_MOST_PARTS:,} parts")
        if self.parts and int(segment.max()) >= len(self.parts):
            raise BadFileError(path, f"has part {int(segment.max())}, the data set has {len(self.parts)}")
        return PointCloud(xyz=table[:, :3].contiguous(), normal=table[:, 3:6].contiguous(), segment=segment.long())
