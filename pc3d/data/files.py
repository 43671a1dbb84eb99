"""Data sets with a file per object."""

from __future__ import annotations

import os
import warnings
import zlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from pc3d._progress import track
from pc3d.data.dataset import BadFileError, MissingDataError, PointDataset, SkippedFile
from pc3d.data.points import POINT_SUFFIXES, read_points
from pc3d.data.transforms import Transform
from pc3d.data.types import PointCloud

OnError = Literal["refuse", "report"]
_SPLITS = ("train", "val", "valid", "validation", "test")
# Class names; the folders to read with the label of each; the folders above them, which should hold no files.
_Layout = tuple[tuple[str, ...], list[tuple[int, Path]], list[Path]]


def check_on_error(on_error: str) -> None:
    """Raises ValueError for anything but the two ways to deal with a bad file."""
    if on_error not in ("refuse", "report"):
        raise ValueError(f"on_error must be 'refuse' or 'report', got {on_error!r}")


def read_lines(path: Path) -> list[str]:
    """What a list names, a name on each line.

    Raises:
        BadFileError: it is not text, or names nothing.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BadFileError(path, f"is not text in UTF-8 ({error})") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise BadFileError(path, "is an empty list")
    return names


class FileDataset(PointDataset):
    """A data set that reads one file per item, when the item is asked for.

    Args:
        paths: the files.
        labels: class of each file, -1 for unlabelled.
        on_error: what happens to a file that cannot be used. ``"refuse"``: asking for it raises
            :class:`BadFileError` with its path. ``"report"``: every file is read once at construction (with a
            progress bar), bad ones are left out and listed in ``skipped`` with the reason.
        transform: applied to every item.
    """

    def __init__(
        self, paths: Sequence[Path], labels: Sequence[int], *, on_error: OnError, transform: Transform | None
    ) -> None:
        check_on_error(on_error)
        self.paths = list(paths)
        self.labels = torch.tensor(list(labels), dtype=torch.int64)
        self.transform = transform
        if on_error == "report":
            self.skipped = self.verify()
            bad = {file.path for file in self.skipped}
            kept = [i for i, path in enumerate(self.paths) if path not in bad]
            self.paths = [self.paths[i] for i in kept]
            self.labels = self.labels[kept]

    @abstractmethod
    def read(self, path: Path) -> PointCloud:
        """The content of a file of this data set.

        Raises:
            BadFileError: the file cannot be used.
        """

    def load(self, index: int) -> PointCloud:
        path = self.paths[index]
        cloud = self.read(path)
        return cloud.replace(label=int(self.labels[index]), meta={"id": path.stem, "path": str(path), **cloud.meta})

    def verify(self) -> tuple[SkippedFile, ...]:
        """Read every file once and list those that cannot be used, with the reason."""
        bad = []
        for path in track(self.paths, f"checking {type(self).__name__}", "files"):
            try:
                self.read(path)
            except BadFileError as error:
                bad.append(SkippedFile(path, error.reason))
        return tuple(bad)


class FolderDataset(FileDataset):
    """Any folder of point or mesh files with a sub-folder per class.

    Without ``split`` the layout is ``root/CLASS/FILE``; with one, ``root/SPLIT/CLASS/FILE`` or, as in ModelNet,
    ``root/CLASS/SPLIT/FILE``, also where a class has the name of the split. Files may lie deeper within. Classes are
    the folder names in alphabetical order; a folder without class sub-folders gives unlabelled items. An item's id is
    the name of its file without the ending, or the path below ``root`` where several files have this name. Links to
    folders are followed. Hidden files and folders are passed over; every other file must lie in a class folder (of some
    split) and have one of the ``suffixes``, so that nothing is left out unnoticed.

    Args:
        root: the folder.
        split: ``"train"``, ``"test"``, ... or None.
        num_points: points to sample from a mesh; point clouds are read whole.
        seed: of that sampling; each file has its own stream, whatever else the folder holds.
        suffixes: which files to read; when None all that :func:`read_points` reads but those in ``ignore``.
        ignore: endings of files that belong to others and are passed over, such as material files, and text: class
            folders often hold a licence or a read-me.
        drop_invalid: leave out points that are not finite, see :func:`read_points`.
        on_error: see :class:`FileDataset`.
        transform: applied to every item.

    Raises:
        ValueError: ``suffixes`` has an ending that :func:`read_points` does not read.
        MissingDataError: the folder or the split is not there, or holds no files to read.
        BadFileError: with ``on_error="refuse"``, there are files with another ending or beside the class folders.
    """

    source = "any folder of point or mesh files, with a sub-folder per class"
    terms = "whatever holds for your files"

    def __init__(
        self,
        root: Path | str,
        split: str | None = None,
        *,
        num_points: int = 10_000,
        seed: int = 0,
        suffixes: Sequence[str] | None = None,
        ignore: Sequence[str] = (".mtl", ".png", ".jpg", ".jpeg", ".json", ".md", ".txt"),
        drop_invalid: bool = False,
        on_error: OnError = "refuse",
        transform: Transform | None = None,
    ) -> None:
        check_on_error(on_error)
        self.root, self.split = Path(root), split
        self.num_points, self.seed, self.drop_invalid = num_points, seed, drop_invalid
        if suffixes is None:
            suffixes = tuple(suffix for suffix in POINT_SUFFIXES if suffix not in ignore)
        unknown = sorted(set(suffixes) - set(POINT_SUFFIXES))
        if unknown:
            raise ValueError(f"suffixes must be among {POINT_SUFFIXES}, got {unknown}")
        self.classes, folders, above = self._class_folders()
        if split is None and has_splits(self.root):
            warnings.warn(
                f"{self.root} has splits, and all of them are read: name one for it alone, as in split='train' "
                "(--data.train.split train of a command)",
                stacklevel=2,
            )
        found = [(path, label) for label, folder in folders for path in visible_files(folder)]
        lost = {path for path, _ in found if not path.exists()}
        wanted = [(path, label) for path, label in found if path.suffix.lower() in suffixes and path not in lost]
        if not wanted:
            raise MissingDataError.of(
                f"{type(self).__name__}: no files to read ({', '.join(suffixes)})",
                [folder for _, folder in folders] or [self.root],
                self.root,
                self.source,
                self.terms,
            )
        strangers = [SkippedFile(path, "is a link to a file that is not there") for path, _ in found if path in lost]
        strangers += _strangers([path for path, _ in found if path not in lost], above, suffixes, ignore)
        if strangers and on_error == "refuse":
            raise BadFileError(
                strangers[0].path,
                f"{strangers[0].reason}; {len(strangers)} file(s) would be left out like this: move them away, add "
                'their ending to ignore, or list them with on_error="report" (--on_error report of a command, '
                "--data.train.on_error report of training)",
            )
        super().__init__(*zip(*wanted, strict=True), on_error=on_error, transform=transform)
        self.skipped = tuple(strangers) + self.skipped
        self._named = Counter(path.stem for path in self.paths)

    def load(self, index: int) -> PointCloud:
        cloud, path = super().load(index), self.paths[index]
        if self._named[path.stem] > 1:
            # In the layout OBJECT/model.obj the name of the file tells nothing apart.
            cloud.meta["id"] = path.relative_to(self.root).as_posix()
        return cloud

    def read(self, path: Path) -> PointCloud:
        # Keyed by the file's place in the folder, so that adding a file changes no other.
        key = zlib.crc32(path.relative_to(self.root).as_posix().encode())
        return read_points(
            path, num_points=self.num_points, seed=self.seed * 2**32 + key, drop_invalid=self.drop_invalid
        )

    def _class_folders(self) -> _Layout:
        if not self.root.is_dir():
            raise MissingDataError.of(type(self).__name__, [self.root], self.root, self.source, self.terms)
        if self.split is not None and (
            not (self.root / self.split).is_dir() or _is_class(self.root / self.split, self.split)
        ):
            return self._split_in_class(self.split)
        above = [] if self.split is None else [self.root]
        top = self.root if self.split is None else self.root / self.split
        classes = _subfolders(top)
        if not classes:
            return (), [(-1, top)], above
        return tuple(folder.name for folder in classes), list(enumerate(classes)), [*above, top]

    def _split_in_class(self, split: str) -> _Layout:
        classes = _subfolders(self.root)
        missing = [folder / split for folder in classes if not (folder / split).is_dir()]
        if missing or not classes:
            shown = missing if 0 < len(missing) < len(classes) else [self.root / split]
            source = (
                f"{self.source}, within a folder per split or above one; of files without splits, "
                "python data_tools/convert.py folder FILES OUT --test_share 0.2 makes train and test"
            )
            raise MissingDataError.of(f"{type(self).__name__} split {split!r}", shown, self.root, source, self.terms)
        folders = [(label, folder / split) for label, folder in enumerate(classes)]
        return tuple(folder.name for folder in classes), folders, [self.root, *classes]


def _strangers(
    found: Sequence[Path], above: Sequence[Path], suffixes: Sequence[str], ignore: Sequence[str]
) -> list[SkippedFile]:
    """The files that a folder data set does not read, and nothing excuses.

    Args:
        found: the files of the folders that are read.
        above: the folders that should hold nothing but folders.
        suffixes: endings that are read.
        ignore: endings that are passed over.
    """
    # A GLTF file has its numbers in others.
    data_of = {path.parent for path in found if path.suffix.lower() == ".gltf" and ".gltf" in suffixes}
    foreign = [
        path
        for path in found
        if path.suffix.lower() not in (*suffixes, *ignore)
        and not (path.suffix.lower() == ".bin" and path.parent in data_of)
    ]
    # An ending in ``ignore`` excuses a file here as well, unless it is one that is read.
    beside = [
        path
        for folder in above
        for path in visible_files(folder, deep=False)
        if path.suffix.lower() in suffixes or path.suffix.lower() not in ignore
    ]
    return [
        *(SkippedFile(path, f"has the ending {path.suffix!r}") for path in foreign),
        *(SkippedFile(path, "lies beside the folders that hold the classes, not in one of them") for path in beside),
    ]


def _is_class(folder: Path, split: str) -> bool:
    """Whether a folder with the name of a split is a class of that name, which has splits and nothing else in it."""
    within = {path.name for path in _subfolders(folder)}
    return split in within and within <= {split, *_SPLITS}


def has_splits(root: Path) -> bool:
    """Whether a folder is laid out by splits, above or below its classes."""
    folders = _subfolders(root)
    return any(
        "train" in names and len(names) > 1 and names <= set(_SPLITS)
        for names in ({path.name for path in _subfolders(folder)} for folder in (root, *folders))
    )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def visible_files(folder: Path, *, deep: bool = True) -> list[Path]:
    """What lies in a folder and is not hidden, links to folders followed, and links to nothing."""
    found = []
    for top, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if deep and not name.startswith(".") and not _round(Path(top, name))]
        found += [Path(top, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.is_file() or not path.exists())


def _round(folder: Path) -> bool:
    """Whether it is a link to a folder that was gone through to get to it: to follow it would go round for ever."""
    if not folder.is_symlink():
        return False
    target = folder.resolve()
    return any(above.resolve().is_relative_to(target) for above in folder.parents)
