"""What ``--data`` and ``--encoder`` may say, turned into objects. Heavy imports stay inside the functions."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pc3d._files import check_writable
from pc3d.cli import _output
from pc3d.cli._parser import nearest

if TYPE_CHECKING:
    from pc3d.data import BadFileError, PointCloud, PointDataset, SkippedFile
    from pc3d.evaluation import Encoder, Features

HANDCRAFTED = ("descriptor", "pca")
NUM_POINTS = 1024
"""Points per cloud, where nothing says otherwise."""
Points = int | Literal["default"] | None
"""Points per cloud: a number, all for None, or what :func:`pc3d.cli._alignment.points_for` says."""
UpAxis = Literal["y", "z"]
OnError = Literal["refuse", "report"]
ON_ERROR_REMEDY = "--on_error report leaves such files out and lists them"
_MESH_POINTS = 10_000
_Y_UP = (".glb", ".gltf")
_PICTURES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")


@dataclass(frozen=True)
class Source:
    """A split of a data set, how its clouds are to be prepared, and which variant it is where there are several."""

    dataset: PointDataset
    sampling: Literal["first", "farthest", "random", "replacement"]
    normalize: Literal["none", "centroid", "box"]
    variant: str | None = None


def as_source(dataset: PointDataset, variant: str | None = None) -> Source:
    """A data set as encoders of objects take it.

    Sets whose points are in random or farthest-point order and whose clouds are in the unit sphere already are taken as
    stored; of everything else, farthest points are taken and brought into the unit sphere.

    Args:
        dataset: of pc3d or not.
        variant: which one it is, where there are several.
    """
    from pc3d import data as sets

    if isinstance(dataset, sets.ObjectSet | sets.ModelNetHDF5 | sets.ScanObjectNN):
        return Source(dataset, "first", "none", variant)
    by_centroid = sets.ModelNetResampled | sets.ModelNetCache | sets.ShapeNet55 | sets.ShapeNetPart | sets.FewShotFiles
    by_centroid |= sets.AlignedShards | sets.OpenShapeFiles | sets.OpenShapeTests
    return Source(dataset, "farthest", "centroid" if isinstance(dataset, by_centroid) else "box", variant)


Variant = Literal["obj_bg", "obj_only", "pb_t25", "pb_t25_r", "pb_t50_r", "pb_t50_rs", "modelnet40", "modelnet10"]


def open_split(
    data: str,
    split: str,
    num_points: int | None,
    variant: Variant | None = None,
    on_error: OnError = "refuse",
    drop_invalid: bool = False,
) -> Source:
    """A split of a data set, as :func:`as_source` prepares it.

    What encoders that are aligned with texts and pictures want is another matter:
    :func:`pc3d.cli._alignment.inputs_for`.

    Args:
        data: ``"household"``; or a folder with shards in pc3d's own format or of shapes with their targets, a published
            data set, or files by class.
        split: ``"train"`` or ``"test"``; of OpenShape's release, one of its lists, such as ``"lvis"``.
        num_points: points per item, where the set is cut when it is read; of a mesh at least as many are sampled.
        variant: which one of ScanObjectNN, or of ModelNet's text files; None takes the usual one.
        on_error: ``"report"`` lists in ``skipped`` what is known to be bad without reading files one by one; those that
            are read only when they are asked for may still raise :class:`pc3d.data.BadFileError`.
        drop_invalid: leave out points of files that are not finite.

    Raises:
        FileNotFoundError: neither a known name nor a folder.
        ValueError: the data set does not come in such a variant, or is to drop points and does not consist of files.
    """
    source = _open_split(data, split, num_points, variant, on_error, drop_invalid)
    if drop_invalid and not getattr(source.dataset, "drop_invalid", False):
        raise ValueError(
            f"drop_invalid: it is for files of points, and {data!r} is a {type(source.dataset).__name__}, which is "
            "taken as it is stored: leave the option out"
        )
    return source


def _open_split(
    data: str, split: str, num_points: int | None, variant: Variant | None, on_error: OnError, drop_invalid: bool
) -> Source:
    from pc3d import data as sets
    from pc3d.data.openshape_tests import has_openshape_tests

    root = Path(data)
    shards = _has_shards(root) or ((root / f"{split}.json").is_file() and not (root / split).is_dir())
    aligned = data != "household" and has_aligned_shards(root)
    released = data != "household" and _is_openshape_release(root)
    published = data != "household" and root.is_dir() and not shards and not aligned and not released
    if published and (chosen := _with_variants(root, split, variant, on_error)):
        return chosen
    if variant is not None:
        raise _no_variant(variant, data)
    if data == "household":
        note_hidden(data)
        return as_source(sets.Household(split, num_points=num_points))
    if not root.is_dir():
        raise FileNotFoundError(
            f"data: {data!r} is neither the name of an embedded data set ('household') nor a folder"
            f"{nearest(data, ['household'])}; looked for in {root.absolute()}"
        )
    if aligned:
        return as_source(sets.AlignedShards(root, split))
    if has_openshape_tests(root):
        return as_source(sets.OpenShapeTests(root, cast(Any, split)))
    if released:
        return as_source(sets.OpenShapeFiles(root, f"split/{split}.json"))
    if shards:
        return as_source(sets.ObjectSet(root, split, num_points=num_points))
    if is_few_shot(root):
        return as_source(sets.FewShotFiles(root, cast(Any, split), on_error=on_error))
    if any(root.glob("ply_data_*.h5")):
        return as_source(sets.ModelNetHDF5(root, cast(Any, split), on_error=on_error))
    if _is_shapenet55(root):
        return as_source(sets.ShapeNet55(root, cast(Any, split)))
    if _is_shapenet_part(root):
        return as_source(sets.ShapeNetPart(root, cast(Any, split)))
    try:
        return as_source(_folder(root, split, num_points, on_error, drop_invalid))
    except sets.MissingDataError as error:
        inner = next((path for path in sorted(root.iterdir()) if path.is_dir() and _is_published(path)), None)
        if inner is None:
            raise
        raise sets.MissingDataError(f"data: {data!r} is no data set, but there is one in it: {inner}") from error


def _folder(
    root: Path, split: str | None, num_points: int | None, on_error: OnError, drop_invalid: bool
) -> PointDataset:
    """A folder of files; under ``"report"`` without reading them all beforehand, as the set itself would."""
    from pc3d.data import FolderDataset

    unread = type("FolderDataset", (FolderDataset,), {"verify": lambda self: ()})
    chosen: type[FolderDataset] = FolderDataset if on_error == "refuse" else unread
    return chosen(root, split, num_points=_of_mesh(num_points), drop_invalid=drop_invalid, on_error=on_error)


def _of_mesh(num_points: int | None) -> int:
    """Points to sample from a mesh, so that as many as are wanted can be chosen from them."""
    return max(_MESH_POINTS, num_points or 0)


def _with_variants(root: Path, split: str, variant: Variant | None, on_error: OnError) -> Source | None:
    """A split of ScanObjectNN, of ModelNet's text files or of a cache of them, None if the folder holds none."""
    from pc3d import data as sets
    from pc3d.data.files import read_lines

    lists = [name for name in ("modelnet40", "modelnet10") if (root / f"{name}_shape_names.txt").is_file()]
    if lists:
        chosen = variant or lists[0]
        # The projects after Point-BERT pass on the cache without the text files that it was made from.
        classes = read_lines(root / f"{lists[0]}_shape_names.txt")
        cached = any(root.glob(f"{chosen}_*pts_fps.dat")) and not any((root / name).is_dir() for name in classes)
        # One file holds all of a cache: what is bad in it is known at once, that of other files when it is read.
        kind = partial(sets.ModelNetCache, on_error=on_error) if cached else sets.ModelNetResampled
        return as_source(kind(root, cast(Any, split), variant=cast(Any, chosen)), chosen)
    if not _is_scanobjectnn(root):
        return None
    # The folder without background says so in its name alone.
    chosen = variant or ("obj_only" if root.name.endswith("_nobg") else "obj_bg")
    found = sets.ScanObjectNN(root, cast(Any, split), variant=cast(Any, chosen), on_error=on_error)
    return as_source(found, chosen)


def _has_shards(root: Path) -> bool:
    return any(any(root.glob(f"{escape(path.stem)}-*.npz")) for path in root.glob("*.json"))


def has_aligned_shards(root: Path) -> bool:
    """Whether a folder holds a split of :class:`pc3d.data.AlignedShards`."""
    names = (path.name.removesuffix("-index.npz") for path in root.glob("*-index.npz"))
    return any(any(root.glob(f"{escape(name)}-*.tar")) for name in names)


def _is_openshape_release(root: Path) -> bool:
    """Whether a folder holds the shapes of OpenShape's release with one of its lists."""
    return any((root / "split" / f"{name}.json").is_file() for name in ("train_all", "train_no_lvis", "lvis"))


def _is_published(root: Path) -> bool:
    """Whether a folder holds one of the published data sets."""
    marks = ("ply_data_*.h5", "modelnet40_shape_names.txt", "modelnet10_shape_names.txt")
    own = _is_scanobjectnn(root) or _is_shapenet55(root) or _is_shapenet_part(root) or is_few_shot(root)
    return own or any(any(root.glob(mark)) for mark in marks)


def _is_scanobjectnn(root: Path) -> bool:
    folders = (root / "main_split", root / "main_split_nobg")
    return any(folder.is_dir() for folder in folders) or any(root.glob("*_objectdataset*.h5"))


def _is_shapenet55(root: Path) -> bool:
    return (root / "ShapeNet-55").is_dir() and (root / "shapenet_pc").is_dir()


def is_few_shot(root: Path) -> bool:
    """Whether a folder holds published few-shot episodes of one kind."""
    from pc3d.data.fewshot import few_shot_folders

    return root in few_shot_folders(root)


def _is_shapenet_part(root: Path) -> bool:
    return (root / "synsetoffset2category.txt").is_file()


def open_inputs(
    data: str,
    split: str,
    num_points: int | None,
    variant: Variant | None = None,
    on_error: OnError = "refuse",
    drop_invalid: bool = False,
) -> Source:
    """As :func:`open_split`, and also a single file of points, or a folder of such files without splits."""
    path = Path(data)
    if data != "household" and path.is_file():
        if variant is not None:
            raise _no_variant(variant, data)
        return as_source(_one_file(path, num_points, drop_invalid))
    if data == "household" or not path.is_dir() or variant is not None or _has_splits(path, split):
        return open_split(data, split, num_points, variant, on_error, drop_invalid)
    return as_source(_folder(path, None, num_points, on_error, drop_invalid))


def _no_variant(variant: Variant, data: str) -> ValueError:
    return ValueError(
        f"variant: {variant!r} is one of ScanObjectNN or of ModelNet's text files, and {data!r} is neither: "
        "leave the option out"
    )


def note_hidden(name: str) -> None:
    """Say so where the name of an embedded data set, which comes first in all commands, is that of a file or folder."""
    if Path(name).exists():
        _output.say_once(f"note: {name!r} is the embedded data set; the file or folder of that name here is ./{name}")


def open_objects(
    objects: Sequence[str],
    split: str,
    num_points: int | None,
    variant: Variant | None = None,
    on_error: OnError = "refuse",
    drop_invalid: bool = False,
) -> Source:
    """As :func:`open_inputs`; several files and folders of files are taken as one set, in the given order.

    Raises:
        FileNotFoundError: one of them is not there.
        ValueError: one of several is a data set that is prepared in another way than files are.
    """
    for name in objects:
        if name != "household" and not Path(name).exists():
            raise FileNotFoundError(
                f"objects: {name!r} is no file, no folder and no embedded data set ('household')"
                f"{nearest(name, ['household'])}"
            )
    sources = [open_inputs(name, split, num_points, variant, on_error, drop_invalid) for name in objects]
    if len(sources) == 1:
        return sources[0]
    for name, source in zip(objects, sources, strict=True):
        if (source.sampling, source.normalize) != ("farthest", "box"):
            raise ValueError(
                f"objects: {name!r} is a {type(source.dataset).__name__}, whose objects are prepared in another way "
                "than those of files: give it alone"
            )
    return as_source(_as_one([source.dataset for source in sources]))


def _as_one(parts: Sequence[Any]) -> PointDataset:
    """Sets of files as one; their paths tell clouds apart where names do not."""
    import torch

    from pc3d.data import PointDataset

    names = Counter(path.stem for part in parts for path in part.paths)
    places = [(part, row) for part in parts for row in range(len(part))]

    class SeveralSets(PointDataset):
        def __init__(self) -> None:
            self.classes = tuple(sorted({name for part in parts for name in part.classes}))
            labels = [(part, int(part.labels[row])) for part, row in places]
            numbers = [self.classes.index(part.classes[label]) if label >= 0 else -1 for part, label in labels]
            self.labels = torch.tensor(numbers)
            self.skipped = tuple(file for part in parts for file in part.skipped)

        def load(self, index: int) -> PointCloud:
            part, row = places[index]
            cloud, path = part.load(row), part.paths[row]
            name = cloud.meta["id"] if names[path.stem] == 1 else str(path)
            found: PointCloud = cloud.replace(label=int(self.labels[index]), meta={**cloud.meta, "id": name})
            return found

    return SeveralSets()


def _has_splits(root: Path, split: str) -> bool:
    """Whether a folder holds a data set with splits; any other is taken as files of points, whatever their names."""
    from pc3d.data.openshape_tests import has_openshape_tests

    if _has_shards(root) or has_aligned_shards(root) or _is_openshape_release(root) or has_openshape_tests(root):
        return True  # of another split perhaps: then the error says which there are
    if _is_published(root):
        return True
    classes = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return (root / split).is_dir() or (bool(classes) and all((path / split).is_dir() for path in classes))


def _one_file(path: Path, num_points: int | None, drop_invalid: bool) -> PointDataset:
    from pc3d.data import read_points
    from pc3d.data.files import FileDataset

    class OneFile(FileDataset):
        def read(self, path: Path) -> PointCloud:
            return read_points(path, num_points=_of_mesh(num_points), drop_invalid=drop_invalid)

    return OneFile([path], [-1], on_error="refuse", transform=None)


def turned_up(cloud: PointCloud, up: UpAxis | None, usual: UpAxis = "z", target: UpAxis = "z") -> PointCloud:
    """A cloud, turned so that another axis points up.

    Args:
        cloud: ``meta["path"]`` tells the file it is from, if any.
        up: the axis that points up in it; None for y in GLB files and the usual one in all others.
        usual: see ``up``.
        target: the axis that points up afterwards.
    """
    import torch

    from pc3d.data import TurnUp

    path = str(cloud.meta.get("path", "")).lower()
    return TurnUp(up or ("y" if path.endswith(_Y_UP) else usual), target)(cloud, torch.Generator())


def check_picture(option: str, path: str, overwrite: bool) -> None:
    """Refuse a file that no picture can be written to, before anything is computed."""
    if Path(path).suffix.lower() not in _PICTURES:
        raise ValueError(f"{option}: must end in one of {', '.join(_PICTURES)}, got {path!r}")
    check_writable(Path(path).parent, option)
    if Path(path).exists() and not overwrite:
        raise FileExistsError(f"{option}: {path} exists and would be lost: choose another name, or add --overwrite")


def as_left_out(file: SkippedFile | BadFileError) -> dict[str, str]:
    """A file that ``--on_error report`` leaves out, as plain data."""
    return {"path": str(file.path), "reason": file.reason}


def left_out_lines(files: Sequence[Mapping[str, str]]) -> list[str]:
    """What was left out, in words."""
    return [f"left out: {file['path']}: {file['reason']}" for file in files]


class LeftOut:
    """What ``--on_error`` does about files that cannot be used: it refuses the first, or lists them.

    Args:
        data: where they are from, for messages.
        dataset: is gone through with this as ``leave_out``.
        on_error: which of the two.

    Attributes:
        files: what is left out, as plain data, with what the data set itself left out.
        rows: positions in the data set.
    """

    def __init__(self, data: str, dataset: PointDataset, on_error: OnError) -> None:
        self.files = [as_left_out(file) for file in dataset.skipped]
        self.rows: set[int] = set()
        self._data, self._total, self._on_error = data, len(dataset), on_error

    def __call__(self, index: int, error: BadFileError) -> None:
        if self._on_error == "refuse":
            raise type(error)(error.path, f"{error.reason}; {ON_ERROR_REMEDY}") from error
        self.rows.add(index)
        self.files.append(as_left_out(error))
        if len(self.rows) == self._total:
            raise nothing_left(self._data, self.files)


def nothing_left(data: str, files: Sequence[Mapping[str, str]]) -> ValueError:
    """The error where all files were left out."""
    return ValueError(f"nothing in {data} can be read, first {files[0]['path']}: {files[0]['reason']}")


def open_encoder(
    encoder: str,
    *,
    untrained: bool,
    seed: int,
    data: str,
    num_points: Points,
    variant: Variant | None = None,
    device: str = "cpu",
    on_error: OnError = "refuse",
    drop_invalid: bool = False,
) -> tuple[Encoder, str]:
    """An encoder and its name for reports.

    Args:
        encoder: see :func:`read_encoder`; or ``"descriptor"`` or ``"pca"``.
        untrained: keep the architecture but draw fresh weights from ``seed``.
        seed: see ``untrained``; also the seed of the descriptor's pairs.
        data: where ``"pca"`` is fitted: the training split.
        num_points: points per cloud for that fit.
        variant: of the data set, see :func:`open_split`.
        device: where it computes; the handcrafted ones know the CPU alone.
        on_error: for that fit, see :func:`open_split`.
        drop_invalid: likewise.
    """
    from pc3d.cli._devices import open_device
    from pc3d.evaluation import PointPCA, ShapeDescriptor

    place = open_device(device)
    if encoder in HANDCRAFTED and untrained:
        raise ValueError(f"untrained: {encoder} has no weights that could be drawn anew: leave --untrained out")
    if encoder in HANDCRAFTED and place.type != "cpu":
        raise ValueError(f"device: {encoder} computes on the CPU, got {device!r}: leave --device out")
    if encoder == "descriptor":
        return ShapeDescriptor(seed), "the handcrafted shape descriptor"
    if encoder == "pca":
        points = NUM_POINTS if num_points == "default" else num_points
        source = open_split(data, "train", points, variant, on_error, drop_invalid)
        left_out = LeftOut(data, source.dataset, on_error)
        prepared: dict[str, Any] = {"sampling": source.sampling, "normalize": source.normalize, "leave_out": left_out}
        fitted = PointPCA().fit(source.dataset, num_points=points, **prepared)
        for line in left_out_lines(left_out.files):  # a command that uses another split does not tell of them
            _output.say(f"PCA: {line}")
        return fitted, "PCA of raw points"
    import torch

    from pc3d.models.described import describe
    from pc3d.models.hub import build_encoder

    model = read_encoder(encoder)
    if _default_pooling(model) is None:
        raise ValueError(
            f"{encoder} holds a {type(model).__name__}, an encoder of scenes, with features of points, not of clouds: "
            "pc3d.models.scene_features(pc3d.load_encoder(ENCODER), pc3d.data.read_scene(FILE)) gives them in "
            "Python, pc3d view FILE --encoder ENCODER shows them, pc3d segment train --encoder ENCODER judges them"
        )
    if untrained:
        # Built anew: fresh weights alone would leave the trained statistics of batch norm in place.
        torch.manual_seed(seed)
        model = cast(Any, build_encoder(describe(model))).eval().to(place)
        return model, f"{encoder}, untrained (fresh weights, seed {seed})"
    return model.to(place), encoder


def read_encoder(encoder: str) -> Any:
    """A trained encoder.

    Args:
        encoder: folder or Hub id of an exported encoder, or an official checkpoint of Point-MAE's family or POS-BERT.
    """
    from pc3d.models import load_encoder
    from pc3d.models.official_objects import SUFFIXES, load_official_objects

    path = Path(encoder)
    if path.suffix not in SUFFIXES or not path.is_file():
        return load_encoder(encoder)
    model, report = load_official_objects(path)
    _output.say_once(str(report))
    if report.kind == "classification":
        # 64 for ModelNet40, 128 for ScanObjectNN, 512 for 8,192 points: with another number it does badly.
        _output.say_once(
            f"note: a classifier's file does not tell its number of patches: {model.config['num_groups']} are taken, "
            "as for 1,024 points; pc3d.models.load_official_encoder(FILE, num_groups=128) and pc3d.save_encoder make "
            "an encoder of another number"
        )
    return model


def pooling_of(model: Encoder, pooling: str | None) -> str:
    """The pooling that was asked for, or that an encoder uses when none was.

    Raises:
        ValueError: one was asked for, and the encoder has no choice.
    """
    own = getattr(model, "pooling", None)
    if pooling is not None and own is not None:
        raise ValueError(
            f"pooling: {pooling!r} is for encoders with tokens, and a {type(model).__name__} has one way, {own}: leave "
            "the option out"
        )
    return pooling or _default_pooling(model) or "none"


def note_points(model: Any, num_points: int | None) -> None:
    """Say so where an encoder is given fewer or more points of each cloud than it is meant for."""
    from pc3d.models import points_meant_for

    meant = points_meant_for(model)
    if num_points is not None and meant is not None and num_points != meant:
        _output.say(
            f"note: the encoder is meant for {meant:,} points per cloud and sees {num_points:,}: --num_points {meant} "
            "judges it on what it was trained on"
        )


def _default_pooling(model: Any) -> str | None:
    """What ``encode`` pools by when not told; None where it gives no vector per cloud, as encoders of scenes."""
    parameter = inspect.signature(model.encode).parameters.get("pooling") if hasattr(model, "encode") else None
    return None if parameter is None else str(parameter.default)


def extract(model: Encoder, name: str, source: Source, data: str, split: str, **options: Any) -> Features:
    """Features of a split, prepared as its data set wants, with a progress bar."""
    from pc3d.data.dataset import folder_name
    from pc3d.evaluation import extract_features

    prepared: dict[str, Any] = {"sampling": source.sampling, "normalize": source.normalize}
    named = folder_name(data, source.variant)
    return extract_features(
        model, source.dataset, progress=True, data=named, split=split, name=name, **prepared, **options
    )
