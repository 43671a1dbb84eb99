"""``pc3d segment predict``: name the class of every point of scene files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pc3d.cli import _output
from pc3d.cli._devices import open_device
from pc3d.cli._parser import verb_parser

if TYPE_CHECKING:
    from pc3d.data import PointCloud
    from pc3d.tasks import SceneLabels, SceneSegmenter

_DESCRIPTION = """Label every point of scene files.

Reads PLY, PCD, LAS, LAZ, E57, XYZ, CSV, PTS, NPY and NPZ files of points in metres, z up, with or without colours and
normals. For each NAME.* the output folder receives NAME.ply (the points in the colours of their classes, with label and
confidence), NAME.npz (label, confidence, classes, class_colors, in the order of the file) and NAME.png (a picture).
After an interruption, --resume skips the files that are done."""


def build_parser() -> Any:
    """The parser of the verb."""
    parser = verb_parser("segment predict", _DESCRIPTION)
    parser.add_argument("run", type=str, help="Run folder of pc3d segment train.")
    parser.add_argument("scenes", type=str, nargs="+", help="Scene files.")
    parser.add_argument("--output", type=str, required=True, help="Folder for the results.")
    parser.add_argument("--scale", type=float, default=1.0, help="Metres of one unit of the files; 0.001 for mm.")
    parser.add_argument(
        "--voting",
        choices=["none", "scannet", "s3dis", "structured3d", "swin3d"],
        default="none",
        help="Sum predictions over the published views: quarter turns (scannet), scales and flips (s3dis), or twelve "
        "turns whose normalised logits are summed (swin3d).",
    )
    parser.add_argument(
        "--fragments",
        action="store_true",
        help="Give each point of a voxel its own forward pass, as benchmarks do; slow on dense scans.",
    )
    parser.add_argument("--max_points", type=int, default=400_000, help="Most voxels in one forward pass.")
    parser.add_argument("--context", type=float, default=2.0, help="Metres around a block that the network sees.")
    parser.add_argument("--device", type=str, default="cpu", help="Where to compute, such as cpu or cuda.")
    parser.add_argument("--drop_invalid", action="store_true", help="Leave out points that are not finite numbers.")
    parser.add_argument(
        "--resume", action="store_true", help="Leave out scenes that have results of this model with these options."
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace earlier results.")
    return parser


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    from pc3d.evaluation.kept import identity_of
    from pc3d.tasks import check_bounds, load_segmenter

    options = build_parser().parse_args(list(argv))
    output = Path(options.output)
    if not options.scale > 0:
        raise ValueError(f"scale must be positive, got {options.scale}")
    check_bounds(options.max_points, options.context)
    open_device(options.device)
    scenes = [Path(scene) for scene in options.scenes]
    _check_files(scenes, output, options.overwrite or options.resume)
    model = load_segmenter(options.run)
    identity = identity_of(model)
    made_by = {path: _made_by(identity, path, options) for path in scenes}
    done = [
        path for path in scenes if options.resume and _is_done(output / path.stem, made_by[path], options.overwrite)
    ]
    output.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    try:
        for path in scenes:
            found.append(
                _earlier(output, path) if path in done else _predict(model, path, output, options, made_by[path])
            )
    except KeyboardInterrupt:
        count = f"{len(found)} of {len(scenes)} scenes are done"
        raise KeyboardInterrupt(f"{count}; go on with the same command and --resume") from None
    except Exception:
        if found:
            _output.say(f"{len(found)} of {len(scenes)} scenes are done; --resume keeps them")
        raise
    lines = [f"{scene['scene']}: {_shares(scene['shares'])}; written: {', '.join(scene['written'])}" for scene in found]
    _output.result(found, "\n".join(lines))
    return None


def _predict(model: SceneSegmenter, path: Path, output: Path, options: Any, made_by: str) -> dict[str, Any]:
    """Name the points of a scene, write its files, and tell what is in it."""
    from pc3d.data import read_scene
    from pc3d.tasks import segment_scene, unit_notes, with_fields

    read = read_scene(path, drop_invalid=options.drop_invalid)
    in_metres = read.replace(xyz=read.xyz * options.scale)
    units = unit_notes(in_metres, model.voxel_size)
    cloud, notes = with_fields(in_metres, model.fields)
    notes = [*units, *notes]
    _output.say("\n".join([f"{path}: {len(cloud):,} points", *(f"  {note}" for note in notes)]))
    labels = segment_scene(
        model,
        cloud,
        voting=options.voting,
        use_fragments=options.fragments,
        max_points=options.max_points,
        context=options.context,
        device=options.device,
        progress=True,
    )
    for note in labels.notes:
        _output.say(f"  {note}")
    notes = [*notes, *labels.notes]
    told = {"scene": str(path), "points": len(cloud), "notes": notes}
    return {**told, **_write(output / path.stem, read, labels, model, made_by, notes)}


def _made_by(identity: str, path: Path, options: Any) -> str:
    """What tells the results of a scene from those of another model, with other options, or of a file that changed."""
    from pc3d.evaluation.kept import content_key

    # Not drop_invalid: a file has no other result without it, only none where points are invalid.
    names = ("scale", "voting", "fragments", "max_points", "context", "device")
    found = path.stat()
    state = f"{path.name} {found.st_size} {found.st_mtime_ns}"
    return content_key([identity, state, *(f"{name} {getattr(options, name)}" for name in names)])


def _is_done(stem: Path, made_by: str, overwrite: bool) -> bool:
    """Whether the results of a scene are there; its NPZ file is the last to come.

    Raises:
        FileExistsError: results of something else are, or files that may be the user's own.
    """
    from pc3d._files import open_npz

    scene, path, picture = (stem.with_name(stem.name + ending) for ending in (".ply", ".npz", ".png"))
    if not path.exists():
        found = [str(file) for file in (scene, picture) if file.exists()]
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
            "the scene: add --overwrite to replace it, or choose another --output"
        )
    return same and scene.exists()


def _earlier(output: Path, path: Path) -> dict[str, Any]:
    """What :func:`_predict` told of a scene before, from its files."""
    import numpy as np

    files = [output / (path.stem + ending) for ending in (".ply", ".npz", ".png")]
    with np.load(files[1], allow_pickle=False) as file:
        label, (classes, notes) = file["label"], [[str(text) for text in file[name]] for name in ("classes", "notes")]
    label = label[label >= 0]
    _output.say("\n".join([f"{path}: done already", *(f"  {note}" for note in notes)]))
    told = {"scene": str(path), "points": len(label), "notes": notes}
    shares = _in_order(np.bincount(label, minlength=len(classes)).tolist(), classes)
    return {**told, "shares": shares, "written": [str(file) for file in files if file.exists()]}


def _check_files(scenes: list[Path], output: Path, overwrite: bool) -> None:
    """Refuses, before any work, files that are not there or results that would replace others."""
    absent = [path for path in scenes if not path.is_file()]
    if absent:
        raise FileNotFoundError(f"{absent[0]} does not exist or is not a file")
    stems = [path.stem for path in scenes]
    twice = [stem for stem in stems if stems.count(stem) > 1]
    if twice:
        raise ValueError(f"two scenes are called {twice[0]!r}, their results would have one name: give one at a time")
    for stem in stems:
        for ending in (".ply", ".npz", ".png"):
            target = output / (stem + ending)
            if any(target.resolve() == path.resolve() for path in scenes):
                raise ValueError(f"{target} is an input, and a result would have its place: choose another --output")
            if target.exists() and not overwrite:
                raise FileExistsError(
                    f"{target} exists: add --overwrite to replace it, --resume to keep what an interruption left, or "
                    "choose another --output"
                )


def _write(
    stem: Path, cloud: PointCloud, labels: SceneLabels, model: SceneSegmenter, made_by: str, notes: list[str]
) -> dict[str, Any]:
    """The three files of a scene; their names, and the share of the points that each class has."""
    from pc3d._extras import MissingExtraError
    from pc3d._files import replace_atomically
    from pc3d.tasks.scene_files import write_labelled_ply, write_labels_npz
    from pc3d.viz import class_colors, scene_figure

    colors = class_colors(len(model.classes))
    targets = [stem.with_name(stem.name + ending) for ending in (".ply", ".npz", ".png")]
    figure = None
    try:
        rgb = None if cloud.rgb is None else cloud.rgb.numpy()
        figure = scene_figure(cloud.xyz.numpy(), labels.label.numpy(), model.classes, rgb=rgb, title=stem.name)
    except MissingExtraError as missing:
        _output.say(f"  no picture: {missing}")
        targets.pop()
    with ExitStack() as files:  # which come into place when all are written, the last of them first
        npz = files.enter_context(replace_atomically(targets[1]))
        write_labels_npz(npz, cloud, labels, colors, model.classes, made_by=made_by, notes=notes)
        if figure is not None:
            figure.savefig(files.enter_context(replace_atomically(targets[2])), format="png")
        write_labelled_ply(files.enter_context(replace_atomically(targets[0])), cloud, labels, colors, model.classes)
    counts = labels.label.bincount(minlength=len(model.classes)).tolist()
    return {"shares": _in_order(counts, model.classes), "written": [str(target) for target in targets]}


def _in_order(counts: Sequence[int], classes: Sequence[str]) -> dict[str, float]:
    """The share of the points that each class has, the largest first."""
    order = sorted(range(len(classes)), key=lambda k: -counts[k])
    return {classes[k]: counts[k] / sum(counts) for k in order if counts[k] > 0}


def _shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in list(shares.items())[:5])
