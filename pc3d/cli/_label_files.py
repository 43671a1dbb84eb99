"""What the verbs have in common that label the points of files: a PLY file, an NPZ file and a picture for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from pc3d._files import check_writable
from pc3d.cli import _output
from pc3d.cli._inputs import ON_ERROR_REMEDY, as_left_out, left_out_lines, nothing_left

if TYPE_CHECKING:
    from pc3d.data import PointCloud
    from pc3d.tasks import PartLabels, SceneLabels


class Labelled(NamedTuple):
    """The points of a file, as read, their labels, and what was noted on the way."""

    cloud: PointCloud
    labels: SceneLabels | PartLabels
    notes: tuple[str, ...] = ()


Writer = Callable[[Path, IO[bytes], Labelled], None]
"""Writes the labels of a file in one more format."""
Writers = Callable[[Path], Mapping[str, Writer]]
"""What else is written of a file than points, arrays and a picture, by endings; ``.ply`` takes the points' place."""


def no_more(path: Path) -> Mapping[str, Writer]:
    """Nothing besides points, arrays and a picture."""
    return {}


def add_options(parser: Any) -> None:
    """Give a parser the options about files and their results."""
    parser.add_argument("--output", type=str, required=True, help="Folder for the results.")
    parser.add_argument("--device", type=str, default="cpu", help="Where to compute, such as cpu or cuda.")
    parser.add_argument("--drop_invalid", action="store_true", help="Leave out points that are not finite numbers.")
    parser.add_argument(
        "--on_error",
        choices=["refuse", "report"],
        default="refuse",
        help="What to do with a file that cannot be used: refuse stops; report leaves the file out and lists it with "
        "the reason (with --json, as left_out beside the others).",
    )
    parser.add_argument(
        "--resume", action="store_true", help="Leave out files that have results of this model with these options."
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace earlier results.")


def label_files(
    kind: str,
    files: Sequence[Path],
    options: Any,
    choice: Sequence[str],
    classes: Sequence[str],
    label: Callable[[Path], Labelled],
    writers: Writers = no_more,
) -> None:
    """Label files one by one, write their results, and tell what is in them.

    Args:
        kind: what a file holds, in a word.
        files: to label; :func:`check_results` comes first.
        options: see :func:`add_options`.
        choice: the model and the options that labels depend on.
        classes: names of the labels.
        label: reads and labels a file.
        writers: of what else is wanted.

    Raises:
        BadFileError: a file cannot be used, and such files are to be refused.
        ValueError: none of them can be used.
    """
    from pc3d.data import BadFileError

    output = Path(options.output)
    made_by = {path: _made_by(path, choice) for path in files}
    targets = {path: _targets(path, output, writers) for path in files}
    done = [path for path in files if options.resume and _is_done(targets[path], made_by[path], options.overwrite)]
    output.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    left_out: list[dict[str, str]] = []
    try:
        for path in files:
            if path in done:
                found.append(_earlier(kind, path, targets[path]))
                continue
            try:
                result = label(path)
            except BadFileError as error:
                if options.on_error == "refuse":
                    raise BadFileError(error.path, f"{error.reason}; {ON_ERROR_REMEDY}") from error
                left_out.append(as_left_out(error))
                _output.say(left_out_lines(left_out[-1:])[0])
                continue
            told = {kind: str(path), "points": len(result.cloud), "notes": list(result.notes)}
            written = _write(path, targets[path], result, classes, made_by[path], writers)
            found.append({**told, **written})
    except KeyboardInterrupt:
        count = f"{len(found)} of {len(files)} {kind}s are done"
        raise KeyboardInterrupt(f"{count}; go on with the same command and --resume") from None
    except Exception:
        if found:
            _output.say(f"{len(found)} of {len(files)} {kind}s are done; --resume keeps them")
        raise
    if not found:
        raise nothing_left(str(files[0]) if len(files) == 1 else f"{len(files)} files", left_out)
    lines = [*(f"{one[kind]}: {_in_words(one)}" for one in found), *left_out_lines(left_out)]
    _output.result(
        found if options.on_error == "refuse" else {f"{kind}s": found, "left_out": left_out}, "\n".join(lines)
    )


def listed_files(given: Sequence[str], suffixes: Sequence[str], *, scene_folders: bool = False) -> list[Path]:
    """Files to label: those that were named, and of a folder the files in it that can be read.

    Args:
        given: paths of files and folders.
        suffixes: endings of files that can be read.
        scene_folders: a folder that :class:`pc3d.data.SceneFolder` would read as one scene counts as a file.

    Raises:
        FileNotFoundError: there is no such file or folder, or no file to read in it.
    """

    from pc3d.data.scenes import CLASSES_FILE

    def is_scene(path: Path) -> bool:
        return scene_folders and (path / "coord.npy").is_file()

    found: list[Path] = []
    for path in map(Path, given):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        if not path.is_dir() or is_scene(path):
            found.append(path if path.name else path.absolute())  # "." has no name for the results
            continue
        inside = sorted(file for file in path.iterdir() if not file.name.startswith("."))
        wanted = [
            file
            for file in inside
            if is_scene(file) or (file.is_file() and file.suffix.lower() in suffixes and file.name != CLASSES_FILE)
        ]
        others = [file.name + "/" * file.is_dir() for file in inside if file not in wanted]
        if not wanted:
            raise FileNotFoundError(f"{path} is a folder without files to read ({', '.join(suffixes)})")
        if others:
            more = f" and {len(others) - 5} more" if len(others) > 5 else ""
            _output.say(f"{path}: {len(wanted)} files; not read: {', '.join(others[:5])}{more}")
        found += wanted
    return found


def _name(path: Path) -> str:
    """Of the results of a file; the name of a folder has no ending, whatever follows a dot in it."""
    return path.name if path.is_dir() else path.stem


def _targets(path: Path, output: Path, writers: Writers) -> list[Path]:
    """The results of a file: points, arrays, a picture and what else is wanted."""
    endings = dict.fromkeys([".ply", ".npz", ".png", *writers(path)])
    return [_target(path, output, ending) for ending in endings]


def _target(path: Path, output: Path, ending: str) -> Path:
    name = _name(path)
    if ending == ".txt":  # ScanNet's benchmarks want the name of the scan, of the mesh scene0707_00_vh_clean_2.ply
        name = name.removesuffix("_vh_clean_2")
    return output / (name + ending)


def check_results(files: Sequence[Path], options: Any, writers: Writers = no_more) -> None:
    """Refuse, before any work, results that would replace others, and a folder that cannot be written."""
    output, overwrite = Path(options.output), options.overwrite or options.resume
    check_writable(output, "output")
    names = Counter(target.name for source in files for target in _targets(source, output, writers))
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ValueError(f"two files would have a result called {twice[0]!r}: give one at a time")
    for source in files:
        for target in _targets(source, output, writers):
            if any(target.resolve() == path.resolve() for path in files):
                raise ValueError(f"{target} is an input, and a result would have its place: choose another --output")
            if target.exists() and not overwrite:
                raise FileExistsError(
                    f"{target} exists: add --overwrite to replace it, --resume to keep what an interruption left, or "
                    "choose another --output"
                )


def _made_by(path: Path, choice: Sequence[str]) -> str:
    """What tells the results of a file from those of another model, with other options, or of a file that changed."""
    from pc3d.data.points import files_read
    from pc3d.evaluation.kept import content_key

    files = sorted(path.iterdir()) if path.is_dir() else files_read(path)
    found = [(file.name, file.stat()) for file in files]
    return content_key([*(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in found), *choice])


def _is_done(targets: Sequence[Path], made_by: str, overwrite: bool) -> bool:
    """Whether the results of a scene are there; its NPZ file is the last to come.

    Raises:
        FileExistsError: results of something else are, or files that may be the user's own.
    """
    from pc3d._files import open_npz

    scene, path, picture, *others = targets
    if not path.exists():
        found = [str(file) for file in (scene, picture, *others) if file.exists()]
        if found and not overwrite:
            raise FileExistsError(
                f"{found[0]} has no {path.name} beside it, so nothing tells what made it: add --overwrite to replace "
                "it, or choose another --output"
            )
        return False
    try:
        with open_npz(path) as file:
            same = "made_by" in file and str(file["made_by"]) == made_by
    except (ValueError, OSError):
        same = False
    if not same and not overwrite:
        raise FileExistsError(
            f"{path} is of another model, other options, another version of pc3d or PyTorch, or an earlier state of "
            "the file: add --overwrite to replace it, or choose another --output"
        )
    return same and all(file.exists() for file in (scene, *others))


def _earlier(kind: str, path: Path, files: Sequence[Path]) -> dict[str, Any]:
    """What :func:`label_files` told of a file before, from its results."""
    import numpy as np

    with np.load(files[1], allow_pickle=False) as file:
        label, (classes, notes) = file["label"], [[str(text) for text in file[name]] for name in ("classes", "notes")]
    label = label[label >= 0]
    _output.say("\n".join([f"{path}: done already", *(f"  {note}" for note in notes)]))
    told = {kind: str(path), "points": len(label), "notes": notes}
    shares = _shares(np.bincount(label, minlength=len(classes)).tolist(), classes)
    return {**told, "shares": shares, "written": [str(file) for file in files if file.exists()]}


def _write(
    path: Path, targets: Sequence[Path], result: Labelled, classes: Sequence[str], made_by: str, writers: Writers
) -> dict[str, Any]:
    """Write the results of a file; give their names, and the share of the points that each class has."""
    from pc3d._extras import MissingExtraError
    from pc3d._files import replace_atomically
    from pc3d.tasks.label_files import write_labelled_ply, write_labels_npz
    from pc3d.viz import class_colors, scene_figure

    cloud, labels, notes = result
    colors = class_colors(len(classes))
    scene, arrays, picture, *_ = targets
    figure = None
    try:
        rgb = None if cloud.rgb is None else cloud.rgb.numpy()
        figure = scene_figure(cloud.xyz.numpy(), labels.label.numpy(), classes, rgb=rgb, title=_name(path))
    except MissingExtraError as missing:
        _output.say(f"  no picture: {missing}")
    with ExitStack() as files:  # which come into place when all are written, the last of them first
        npz = files.enter_context(replace_atomically(arrays))
        write_labels_npz(npz, cloud, labels, colors, classes, made_by=made_by, notes=notes)
        if figure is not None:
            figure.savefig(files.enter_context(replace_atomically(picture)), format="png")
        more = writers(path)
        for ending, write in more.items():
            write(path, files.enter_context(replace_atomically(_target(path, scene.parent, ending))), result)
        if ".ply" not in more:
            write_labelled_ply(files.enter_context(replace_atomically(scene)), cloud, labels, colors, classes)
    counts = labels.label.bincount(minlength=len(classes)).tolist()
    written = [target for target in targets if figure is not None or target != picture]
    return {"shares": _shares(counts, classes), "written": [str(target) for target in written]}


def _shares(counts: Sequence[int], classes: Sequence[str]) -> dict[str, float]:
    """Give the share of the points that each class has, the largest first."""
    order = sorted(range(len(classes)), key=lambda k: -counts[k])
    return {classes[k]: counts[k] / sum(counts) for k in order if counts[k] > 0}


def _in_words(done: Mapping[str, Any]) -> str:
    """What :func:`label_files` tells, with the five largest shares."""
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in list(done["shares"].items())[:5])
    return f"{shares}; written: {', '.join(done['written'])}"
