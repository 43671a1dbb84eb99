"""What ``pc3d view`` is asked to show: files, items of data sets, run folders."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pc3d.cli._inputs import UpAxis, as_source, note_hidden, turned_up
from pc3d.cli._parser import nearest
from pc3d.cli._segment_eval import SCENE_SETS, named_set

if TYPE_CHECKING:
    from pc3d.data import PointCloud, PointDataset, SceneFolder

# Names beyond are of numbers into which other things are packed, and there would be a name for each number below.
_MOST_CLASSES = 1 << 16

# Which options act on what is named.
_OF_FILES, _OF_SETS = {"up", "drop_invalid"}, {"root", "split", "item"}
_MEANT_FOR = {
    "up": "files of points, and none is named: data sets are shown as stored",
    "drop_invalid": "files of points, and none is named",
    "root": "a data set, and none is named",
    "split": "a data set that is named without its split, and none is",
    "item": "a data set or folder that is named without its items, or a run that is named alone, and none is",
}


@dataclass
class Shown:
    """A cloud to show.

    Attributes:
        name: what it is.
        cloud: with all its fields.
        classes: names of the numbers in ``cloud.segment``.
        sampling: how an encoder of objects takes its points, see :func:`pc3d.evaluation.extract_features`.
        normalize: how they are brought into the unit sphere for it, likewise.
        unit: of the coordinates; empty where it is not known.
        categories: names of the numbers in ``cloud.label``.
    """

    name: str
    cloud: PointCloud
    classes: tuple[str, ...] = ()
    sampling: Literal["first", "farthest", "random", "replacement"] = "farthest"
    normalize: Literal["none", "centroid", "box"] = "box"
    unit: str = ""
    categories: tuple[str, ...] = ()


@dataclass
class Opened:
    """All that is to be shown, the run folder among it, and what the user should know."""

    shown: list[Shown] = field(default_factory=list)
    run: Path | None = None
    notes: list[str] = field(default_factory=list)


def open_all(
    what: Sequence[str],
    *,
    data: str | None,
    root: str | None,
    split: str,
    item: Sequence[int] | None,
    num_points: int,
    up: UpAxis | None,
    drop_invalid: bool,
    labels: bool = False,
) -> Opened:
    """Open what a user names.

    Args:
        what: files, ``DATA:SPLIT:ITEM``, folders of files, at most one run folder.
        data: a data set by the name or folder that other verbs take, whose items are shown too.
        root: folder of a data set of scenes.
        split: of ``data``.
        item: which items of ``data``, of a folder, or of the run's data.
        num_points: points to sample from a mesh.
        up: the axis that points up in files; y in GLB files and z in all others when None.
        drop_invalid: leave out points that are not finite.
        labels: read the classes of the points of files.

    Raises:
        FileNotFoundError, ValueError: what is named is not there, or not understood.
    """
    found = Opened()
    used: set[str] = set()
    for word in what:
        path = Path(word)
        if word in ("household", "rooms"):
            found.shown += items_of(open_dataset(word, split, root), word, item, split)
            used |= _OF_SETS
        elif path.is_file():
            found.shown.append(_of_file(path, num_points, up, drop_invalid, labels))
            used |= _OF_FILES
        elif path.is_dir() and is_run(path):
            if found.run is not None:
                raise ValueError(f"what: {found.run} and {path} are both run folders: show one at a time")
            found.run = path
        elif (path / "coord.npy").is_file():
            found.shown.append(_of_scene(path.absolute()))
        elif path.is_dir():
            found.shown += items_of(open_dataset(word, split, root), word, item, split)
            used |= _OF_SETS
        else:
            name, own_split, items = _named(word)
            found.shown += items_of(
                open_dataset(name, own_split or split, root), name, items or item, own_split or split
            )
            used |= _OF_SETS - ({"split"} if own_split else set()) - ({"item"} if items else set())
    if data is not None:
        found.shown += items_of(open_dataset(data, split, root), data, item, split)
        used |= _OF_SETS
    if not found.shown and found.run is None:
        raise ValueError(
            "what: name something to see: a file of points or a mesh, an item of a data set as in household:test:12 or "
            "rooms:test:0, or a run folder"
        )
    if found.run is not None and not found.shown:
        used.add("item")
    _check_options(
        used, up=up, drop_invalid=drop_invalid or None, root=root, item=item, split=None if split == "test" else split
    )
    return found


def _check_options(used: set[str], **given: object) -> None:
    for name, value in given.items():
        if value is not None and name not in used:
            raise ValueError(f"{name}: {value!r} is for {_MEANT_FOR[name]}: leave the option out")


def is_run(folder: Path) -> bool:
    """Whether a folder is one that pc3d pretrain, segment, parts or classify trains in, or has begun to."""
    begun = (folder / "config.yaml").is_file() and (folder / "tensorboard").is_dir()
    return begun or any((folder / name).exists() for name in ("encoder/config.json", "head/config.json", "last.ckpt"))


def _of_file(path: Path, num_points: int, up: UpAxis | None, drop_invalid: bool, labels: bool) -> Shown:
    from pc3d.data import read_points, read_scene
    from pc3d.data.points import SCENE_SUFFIXES

    if labels and path.suffix.lower() in SCENE_SUFFIXES:
        cloud = read_scene(path, drop_invalid=drop_invalid, labels=True)
        return Shown(path.name, turned_up(cloud, up), _class_names(path))
    return Shown(path.name, turned_up(read_points(path, num_points=num_points, drop_invalid=drop_invalid), up))


def _class_names(path: Path) -> tuple[str, ...]:
    """Names of the classes in the comments of a PLY file, as ``segment predict`` and ``parts predict`` write them."""
    from pc3d.data.ply_elements import read_ply_header
    from pc3d.viz.view import class_name

    if path.suffix.lower() != ".ply":
        return ()
    with path.open("rb") as file:
        classes = read_ply_header(path, file).classes
    count = 1 + max((number for number in classes if number < _MOST_CLASSES), default=-1)
    return tuple(classes.get(number, class_name(number, ())) for number in range(count))


def _of_scene(folder: Path) -> Shown:
    """A scene of a prepared folder, named by its own."""
    from pc3d.data.scenes import CLASSES_FILE

    # Rooms of Structured3D lie two levels below their split, unless what lies there is the root itself.
    deep = _is_structured3d(folder) and not (folder.parents[1] / CLASSES_FILE).is_file()
    split = folder.parents[1 if deep else 0]
    scenes = _prepared(split.parent, split.name)
    return shown_item(scenes, scenes.paths.index(folder))


def _is_structured3d(scene: Path) -> bool:
    return re.fullmatch(r"scene_\d{5}/room_\w+", f"{scene.parent.name}/{scene.name}") is not None


def _prepared(root: Path, split: str) -> SceneFolder:
    """The scenes of a prepared folder: ScanNet's by the names of its files of classes; those of the other benchmarks by
    the names of their folders, unless the root names classes of its own."""
    from pc3d.data import S3DIS, ScanNet, SceneFolder, Structured3D
    from pc3d.data.scenes import CLASSES_FILE, find_below

    if find_below(root / split, "segment20.npy"):
        return ScanNet(root, split)
    if not (root / CLASSES_FILE).is_file():
        if re.fullmatch("Area_[1-6]", split):
            return S3DIS(root, areas=[int(split[-1])])
        if any(_is_structured3d(path.parent) for path in find_below(root / split, "coord.npy")):
            return Structured3D(root, split)
    return SceneFolder(root, split)


def _named(word: str) -> tuple[str, str | None, list[int] | None]:
    """``DATA``, ``DATA:SPLIT`` or ``DATA:SPLIT:ITEMS``; items as in ``3``, ``3,7`` or ``3-6``."""
    name, *rest = word.split(":")
    if len(rest) > 2:
        raise ValueError(f"what: {word!r} is not DATA:SPLIT:ITEM, as in household:test:12")
    items = None
    if len(rest) == 2:
        try:
            ranges = [[int(end) for end in part.split("-")] for part in rest[1].split(",")]
            items = [number for ends in ranges for number in range(ends[0], ends[-1] + 1)]
        except ValueError:
            raise ValueError(f"what: the items of {word!r} must be like 12, 3,7 or 3-6; got {rest[1]!r}") from None
    return name, rest[0] if rest else None, items


def open_dataset(data: str, split: str, root: str | None) -> PointDataset:
    """A data set of objects or scenes.

    Raises:
        FileNotFoundError: neither a known name nor a folder.
        ValueError: a root or a split that does not go with it.
    """
    from pc3d.cli._inputs import open_inputs
    from pc3d.data.scenes import find_below

    if data == "rooms" and root is None:
        note_hidden(data)
    # Without a root, the name of a set that is not embedded can only mean what lies here.
    if data == "rooms" or (data in SCENE_SETS and (root is not None or not Path(data).exists())):
        return named_set(data, root, split, None)[0]
    if root is not None:
        raise ValueError(f"root: {root!r} goes with a set of scenes ({', '.join(SCENE_SETS)}); got {data!r}")
    if data != "household" and not Path(data).exists():
        known = ["household", *SCENE_SETS]
        raise FileNotFoundError(
            f"{data!r} is no file, no folder and no data set ({', '.join(known)}){nearest(data, known)}"
        )
    if data != "household" and find_below(Path(data, split), "coord.npy"):
        return _prepared(Path(data), split)
    if data != "household" and find_below(Path(data), "coord.npy", levels=(1,)):  # a split itself
        folder = Path(data).absolute()
        if split not in ("test", folder.name):
            raise ValueError(
                f"split: {data} is the split {folder.name!r} itself, got {split!r}: name the folder above it"
            )
        return _prepared(folder.parent, folder.name)
    if _holds_rooms(Path(data), split):
        return named_set("rooms", data, split, None)[0]
    return open_inputs(data, split, None).dataset


def _holds_rooms(folder: Path, split: str) -> bool:
    """Whether a folder holds a split of :class:`pc3d.data.Rooms`."""
    try:
        description = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(description, dict) and "rooms" in description


def items_of(dataset: PointDataset, name: str, items: Sequence[int] | None, split: str = "") -> list[Shown]:
    """Some items of a data set, the first one when None.

    Raises:
        IndexError: there is no such item.
    """
    found = []
    for number in [0] if items is None else items:
        if not 0 <= number < len(dataset):
            raise ValueError(f"item: {name} {split} has items 0 to {len(dataset) - 1}, got {number}")
        found.append(shown_item(dataset, number))
    return found


def shown_item(dataset: PointDataset, number: int) -> Shown:
    """An item as stored, without the transform of the data set."""
    cloud = dataset.load(number)
    scene = _is_scene(dataset)
    label = cloud.label
    named = dataset.classes[label] if not scene and label is not None and 0 <= label < len(dataset.classes) else ""
    title = str(cloud.text or named or cloud.meta.get("id") or number)
    classes = dataset.classes if scene else dataset.parts
    how, unit = as_source(dataset), "m" if scene else ""
    categories = () if scene else tuple(dataset.classes)
    return Shown(f"{title} ({number})", cloud, tuple(classes), how.sampling, how.normalize, unit, categories)


def _is_scene(dataset: PointDataset) -> bool:
    from pc3d.data import Rooms, SceneFolder

    return isinstance(dataset, Rooms | SceneFolder)
