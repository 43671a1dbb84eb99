"""``pc3d segment predict``: name the class of every point of scene files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pc3d.cli import _output
from pc3d.cli._devices import open_device
from pc3d.cli._inputs import turned_up
from pc3d.cli._label_files import Labelled, Writer, add_options, check_results, label_files, listed_files
from pc3d.cli._parser import verb_parser, words_first

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pc3d.tasks import SceneSegmenter

_DESCRIPTION = """Label every point of scene files.

Reads PLY, PCD, LAS, LAZ, E57, XYZ, CSV, PTS, NPY, NPZ and BIN (KITTI, nuScenes) files of points, in metres (--scale)
with z up (--up), with or without colours and normals, and prepared scenes (folders with coord.npy). For each NAME.* the
output folder receives NAME.ply (the points in the colours of their classes, with label and confidence), NAME.npz
(label, confidence, classes, class_colors, in the order of the file) and NAME.png (a picture); with --like_input, a
copy of a LAS, LAZ or PLY file with all that is in it and the predicted classes; with --submission, NAME.txt for the
benchmarks of ScanNet. After an interruption, --resume skips the files that are done."""


def build_parser() -> Any:
    """The parser of the verb."""
    parser = verb_parser("segment predict", _DESCRIPTION)
    parser.add_argument("run", type=str, help="Run folder of pc3d segment train.")
    parser.add_argument("scenes", type=str, nargs="+", help="Scene files, prepared scenes, or folders of them.")
    parser.add_argument("--scale", type=float, default=1.0, help="Metres of one unit of the files; 0.001 for mm.")
    parser.add_argument("--up", choices=["y", "z"], default="z", help="Axis that points up in the files.")
    parser.add_argument(
        "--voting",
        choices=["none", "scannet", "s3dis", "structured3d", "swin3d"],
        default="none",
        help="Sum predictions over the published views: quarter turns (scannet), scales and flips (s3dis), or twelve "
        "turns whose normalised logits are summed (swin3d).",
    )
    parser.add_argument(
        "--use_fragments",
        type=bool,
        default=False,
        help="'true' gives each point of a voxel its own forward pass, as benchmarks do (slow on dense scans); with "
        "'false', the points of a voxel share one.",
    )
    parser.add_argument(
        "--max_points", type=int, default=400_000, help="Most points, one for each voxel, in one forward pass."
    )
    parser.add_argument("--context", type=float, default=2.0, help="Metres around a block that the network sees.")
    parser.add_argument(
        "--like_input",
        action="store_true",
        help="Also write a copy of each LAS or LAZ file with the predicted classes as its classification; for a PLY "
        "file NAME.ply is a copy with label and confidence added, in its own colours.",
    )
    parser.add_argument(
        "--submission",
        action="store_true",
        help="Also write NAME.txt: the number of the class of each point, one on a line, in the order of the file. Of "
        "ScanNet's SCAN_vh_clean_2.ply it is called SCAN.txt, as the benchmarks want.",
    )
    parser.add_argument(
        "--class_numbers",
        type=str,
        metavar="LIST",
        help="For --like_input and --submission: file with a number and a class on each line, such as '6 building'. "
        "By default classes are numbered in the order of the model, from 0; with --submission, those of ScanNet have "
        "the numbers of its benchmarks.",
    )
    add_options(parser)
    return parser


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    from pc3d.data.labelled_copies import check_copies
    from pc3d.data.points import SCENE_SUFFIXES
    from pc3d.evaluation.kept import identity_of
    from pc3d.tasks import check_bounds, load_segmenter

    parser = build_parser()
    options = parser.parse_args(words_first(parser, argv))
    if not options.scale > 0:
        raise ValueError(f"scale must be positive, got {options.scale}")
    check_bounds(options.max_points, options.context)
    open_device(options.device)
    scenes = listed_files(options.scenes, SCENE_SUFFIXES, scene_folders=True)
    if options.drop_invalid and all(path.is_dir() for path in scenes):
        raise ValueError("drop_invalid: it is for files, and prepared scenes are taken as stored: leave the option out")

    def copy(path: Path, file: IO[bytes], result: Labelled) -> None:
        _write_copy(path, file, result, numbers)

    def submit(path: Path, file: IO[bytes], result: Labelled) -> None:
        _write_submission(path, file, result, numbers)

    def writers(path: Path) -> Mapping[str, Writer]:
        copies: dict[str, Writer] = {path.suffix.lower(): copy} if options.like_input else {}
        return {**copies, ".txt": submit} if options.submission else copies

    check_results(scenes, options, writers)
    model = load_segmenter(options.run)
    numbers = _class_numbers(model.classes, options)
    if options.like_input:
        check_copies(scenes, numbers)
    # Not drop_invalid: a file has no other result without it, only none where points are invalid.
    names = ("scale", "up", "voting", "use_fragments", "max_points", "context", "device")
    choice = [identity_of(model), *(f"{name} {getattr(options, name)}" for name in names)]
    # Told apart: both would find the PLY file of the other, which is not the same.
    choice += [f"numbers {numbers}"] if options.like_input else []
    choice += [f"submission {numbers}"] if options.submission else []
    label_files(
        "scene",
        scenes,
        options,
        choice,
        model.classes,
        lambda path: _label(model, path, options),
        writers,
    )
    return None


def _class_numbers(classes: Sequence[str], options: Any) -> dict[str, int]:
    """The number of each class in copies of files and in submissions.

    Raises:
        ValueError: a list that nothing uses, or one that does not name all classes.
    """
    from pc3d.data.scan_files import read_class_codes
    from pc3d.data.scene_labels import SCANNET20, SCANNET20_IDS, SCANNET200, SCANNET200_IDS

    if options.class_numbers is None:
        published = {SCANNET20: SCANNET20_IDS, SCANNET200: SCANNET200_IDS} if options.submission else {}
        return dict(zip(classes, published.get(tuple(classes), range(len(classes))), strict=True))
    if not (options.like_input or options.submission):
        raise ValueError(
            "class_numbers: they are for what --like_input and --submission write: add one of them, or leave them out"
        )
    codes = read_class_codes(options.class_numbers)
    # The first where several numbers are of one class.
    numbers = {codes.names[place]: number for number, place in reversed(codes.index.items())}
    missing = [name for name in classes if name not in numbers]
    if missing:
        raise ValueError(
            f"class_numbers: {options.class_numbers} has no number for {', '.join(missing)}, which the model knows: "
            "give each a line with a number and its name"
        )
    return {name: numbers[name] for name in classes}


def _numbers_in_order(result: Labelled, numbers: Mapping[str, int]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Number and confidence of each point of a file, -1 and 0 for those that were left out when it was read."""
    import numpy as np

    from pc3d.tasks.label_files import in_file_order

    label, confidence = in_file_order(result.cloud, result.labels)
    return np.where(label < 0, -1, np.array(list(numbers.values()), np.int64)[label]), confidence


def _write_submission(path: Path, file: IO[bytes], result: Labelled, numbers: Mapping[str, int]) -> None:
    """The number of the class of each point on a line of its own."""
    classes, _ = _numbers_in_order(result, numbers)
    file.write("".join(f"{number}\n" for number in classes.tolist()).encode())


def _write_copy(path: Path, file: IO[bytes], result: Labelled, numbers: Mapping[str, int]) -> None:
    """A copy of a scene file with the numbers of its classes."""
    from pc3d.data.labelled_copies import copy_las, copy_ply

    classes, confidence = _numbers_in_order(result, numbers)
    if path.suffix.lower() == ".ply":
        copy_ply(path, file, classes, confidence, numbers)
    else:
        copy_las(path, file, classes)


def _label(model: SceneSegmenter, path: Path, options: Any) -> Labelled:
    """Name the points of a scene."""
    from pc3d.data import BadFileError, read_scene
    from pc3d.data.labelled_copies import check_copyable
    from pc3d.data.scenes import read_scene_folder
    from pc3d.tasks import is_too_large, segment_scene, unit_notes, with_fields

    read = read_scene_folder(path) if path.is_dir() else read_scene(path, drop_invalid=options.drop_invalid)
    if options.like_input:
        check_copyable(path)
    in_metres = turned_up(read.replace(xyz=read.xyz * options.scale), options.up)
    units = unit_notes(in_metres, model.voxel_size)
    if is_too_large(in_metres, model.voxel_size):
        raise BadFileError(path, "; ".join(units))
    cloud, notes = with_fields(in_metres, model.fields)
    notes = [*units, *notes]
    _output.say("\n".join([f"{path}: {len(cloud):,} points", *(f"  {note}" for note in notes)]))
    try:
        labels = segment_scene(
            model,
            cloud,
            voting=options.voting,
            use_fragments=options.use_fragments,
            max_points=options.max_points,
            context=options.context,
            device=options.device,
            progress=True,
        )
    except ValueError as error:  # of this scene: what was chosen for all has been checked
        raise BadFileError(path, str(error)) from error
    for note in labels.notes:
        _output.say(f"  {note}")
    return Labelled(read, labels, (*notes, *labels.notes))
