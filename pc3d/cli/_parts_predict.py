"""``pc3d parts predict``: predict the part of every point of objects in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pc3d.cli import _objects, _output
from pc3d.cli._devices import open_device
from pc3d.cli._inputs import turned_up
from pc3d.cli._label_files import Labelled, add_options, check_results, label_files, listed_files
from pc3d.cli._parser import verb_parser, words_first

if TYPE_CHECKING:
    import torch

    from pc3d.data import Compose, PointCloud

_DESCRIPTION = """Predict the part of every point of objects in files.

Reads every format of points and meshes that pc3d knows; of a mesh, points are sampled. Objects are centred and scaled,
and should have the orientation of those that the model was trained on, see --up. For each NAME.* the output folder
receives NAME.ply (the points in the colours of their parts, with label and confidence), NAME.npz (label, confidence,
classes, class_colors; of points, in the order of the file) and NAME.png (a picture). After an interruption, --resume
skips the files that are done."""


def build_parser() -> Any:
    """The parser of the verb."""
    parser = verb_parser("parts predict", _DESCRIPTION)
    parser.add_argument("run", type=str, help="Run folder of pc3d parts train.")
    parser.add_argument(
        "objects", type=str, nargs="+", help="Files of points or meshes, or folders of them, all of one category."
    )
    parser.add_argument("--category", type=str, help="Category of the objects; needed if the model knows several.")
    parser.add_argument("--num_points", type=int, default=10_000, help="Points to sample from a mesh.")
    parser.add_argument(
        "--up",
        choices=["y", "z"],
        help="Axis that points up in the files, GLB files included; they are turned to the run's. By default they are "
        "taken as stored.",
    )
    add_options(parser)
    return parser


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    from pc3d.data import read_points
    from pc3d.data.points import POINT_SUFFIXES
    from pc3d.evaluation.kept import identity_of
    from pc3d.tasks import load_part_segmenter, segment_object
    from pc3d.tasks.trained_objects import stored_preparation

    parser = build_parser()
    options = parser.parse_args(words_first(parser, argv))
    place = open_device(options.device)
    files = listed_files(options.objects, POINT_SUFFIXES)
    check_results(files, options)
    model, known = load_part_segmenter(options.run)
    category = _category(options.category, known["categories"])
    prepare = stored_preparation(Path(options.run))
    target = "z" if options.up is None else _objects.stored_up(Path(options.run))
    model.to(place)

    def label(path: Path) -> Labelled:
        cloud = read_points(path, num_points=options.num_points, drop_invalid=options.drop_invalid)
        _output.say(f"{path}: {len(cloud):,} points")
        turned = cloud if options.up is None else turned_up(cloud, options.up, target=target)
        return Labelled(cloud, segment_object(model, _prepared(turned, prepare), category, known["category_parts"]))

    settings = {"category": category, "num_points": options.num_points, "up": options.up, "device": place}
    choice = [identity_of(model), *(f"{name} {value}" for name, value in settings.items())]
    label_files("object", files, options, choice, known["parts"], label)
    return None


def _category(name: str | None, known: Sequence[str]) -> int:
    """The number of a category.

    Raises:
        ValueError: the model does not know it, or knows several and none was named.
    """
    if name is None and len(known) == 1:
        return 0
    if name is None or name not in known:
        told = "is needed" if name is None else f"is {name!r}"
        raise ValueError(f"category {told}: the model knows {', '.join(known)}")
    return list(known).index(name)


def _prepared(cloud: PointCloud, prepare: Compose) -> torch.Tensor:
    """Coordinates as the model takes them, of every point in its place.

    Raises:
        ValueError: the run evaluates a part of the points only.
    """
    import torch

    from pc3d.data import Normalize

    generator = torch.Generator().manual_seed(0)
    prepared = prepare(Normalize("box")(cloud, generator), generator)
    if len(prepared) != len(cloud):
        raise ValueError(
            f"data.eval_transforms of the run leave {len(prepared)} of {len(cloud)} points, so that the others have no "
            "part: train with transforms for evaluation that keep every point"
        )
    return prepared.xyz
