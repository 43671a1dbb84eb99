"""``pc3d segment eval``: score a trained segmentation on labelled scenes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pc3d._configured import stored_objects
from pc3d._files import check_writable, read_config
from pc3d.cli import _output
from pc3d.cli._devices import open_device
from pc3d.cli._judging import check_rows_folder, kept_beside
from pc3d.cli._parser import nearest, run_verb
from pc3d.cli._segment_row import row_of, trained_on

if TYPE_CHECKING:
    from pc3d.data import PointDataset

SCENE_SETS = ("rooms", "scannet", "scannet200", "s3dis", "structured3d", "scenes")


def evaluate(
    run: str,
    data: str = "run",
    root: str | None = None,
    split: str | None = None,
    test_area: int | None = None,
    voting: Literal["none", "scannet", "s3dis", "structured3d", "swin3d"] = "none",
    use_fragments: bool = True,
    max_points: int = 400_000,
    context: float = 2.0,
    device: str = "cpu",
    output: str | None = None,
    overwrite: bool = False,
    results: str | None = None,
    method: str | None = None,
) -> None:
    """Score a trained segmentation: mIoU, mAcc, allAcc, a table of the classes, the confusion matrix.

    Writes DATA_SPLIT.json and the confusion matrix as DATA_SPLIT.png into the folder eval/ of the run. pc3d segment
    fold adds up the results of several folds. If interrupted, the same command continues. With the classes of
    ScanNet200, also the mean IoU of its head, common and tail classes, each over those that occur in the labels.

    Args:
        run: Run folder of pc3d segment train; --run itself may be left out.
        data: 'run' takes the test set of the run's configuration; or rooms, scannet, scannet200, s3dis, structured3d;
            or scenes for a folder of your own in the same layout.
        root: Folder of that data set; rooms has a small form inside the package.
        split: Split; null takes test (rooms, s3dis, structured3d, scenes) or val (scannet, whose test labels are not
            public). The published figures of structured3d are of its val.
        test_area: Area of s3dis that is held out, 1 to 6 (default 5): split test is its rooms, train the others'.
        voting: Sum predictions over the published views, with quarter turns (scannet), scales and flips (s3dis), or
            twelve turns whose normalised logits are summed (swin3d; its released code has a single pass for each).
        use_fragments: 'true' gives each point of a voxel its own forward pass, as benchmarks do (slow on dense scans);
            with 'false', the points of a voxel share one.
        max_points: Most points, one for each voxel, in one forward pass; larger scenes are cut into blocks.
        context: Metres around a block that the network sees.
        device: Where to compute, such as cpu or cuda.
        output: Folder for the results, instead of eval/ of the run.
        overwrite: Replace earlier results.
        results: Folder for a row of pc3d results; all training scenes are read for the hash in it. A row for several
            folds together needs it for every fold.
        method: Name in the table of results; the backbone's class and how it started by default.
    """
    from pc3d._files import replace_atomically
    from pc3d.data.scene_labels import SCANNET200, SCANNET200_GROUPS
    from pc3d.evaluation import Kept, write_rows
    from pc3d.evaluation.cost import measured
    from pc3d.tasks import check_bounds, evaluate_scenes, load_segmenter

    if data == "run" and root is not None:
        raise ValueError(f"root: {root!r} goes with --data; data 'run' reads where the configuration says")
    check_bounds(max_points, context)
    check_rows_folder(results, method)
    open_device(device)
    model = load_segmenter(run)
    if test_area is not None and data != "s3dis":
        raise ValueError(f"test_area: {test_area} goes with --data s3dis, got data {data!r}")
    if data == "s3dis" and split in (None, "test"):
        _check_held_out(Path(run), 5 if test_area is None else test_area)
    dataset, name = dataset_of_run(Path(run), split) if data == "run" else named_set(data, root, split, test_area)
    folder = Path(output) if output is not None else Path(run) / "eval"
    suffix = "" if voting == "none" else f"_{voting}_voting"
    check_writable(folder, "output")
    files = [folder / f"{name}{suffix}.{ending}" for ending in ("json", "png")]
    taken = [str(file) for file in files if file.exists()]
    if taken and not overwrite:
        raise FileExistsError(f"{taken[0]} exists: add --overwrite to replace it, or give another --output")
    training = None if results is None else trained_on(Path(run))
    options: dict[str, Any] = {
        "voting": voting,
        "use_fragments": use_fragments,
        "max_points": max_points,
        "context": context,
    }
    with Kept(kept_beside(files[0], str(run), root, split, device, sorted(options.items()))) as kept:
        with measured() as cost:
            matrix = evaluate_scenes(model, dataset, progress=True, device=device, kept=kept, **options)
        if kept.given_back:  # of what came before an interruption nobody knows the cost
            del cost["cpu_seconds"]
        scores = matrix.scores(model.classes)
        head = {"run": str(run), "data": name, "num_scenes": len(dataset), "scenes": matrix.scenes}
        result = {**head, **options, **scores.to_dict()}
        groups = scores.miou_of_groups(SCANNET200_GROUPS) if model.classes == SCANNET200 else {}
        result |= {"miou_of_groups": groups} if groups else {}
        if results is not None and training is not None:
            row = row_of(model, scores, dataset, name, training, options, cost, method)
            write_rows([row], results)
            result["row"] = row.to_dict()  # what pc3d segment fold makes one row of all folds of
        folder.mkdir(parents=True, exist_ok=True)
        drawn = draw_confusion(scores, files[1], f"{name}: mIoU {100 * scores.miou:.1f} %")
        with replace_atomically(files[0]) as file:
            file.write((json.dumps(result, indent=2) + "\n").encode())
    said = [str(scores), *(f"mIoU of {name} classes: {100 * value:.2f} %" for name, value in groups.items())]
    _output.result(result, "\n".join([*said, f"\nwritten: {files[0]}{drawn}"]))


def draw_confusion(scores: Any, path: Path, title: str) -> str:
    """Draws the confusion matrix; says where it is, or why not."""
    import numpy as np

    from pc3d._extras import MissingExtraError
    from pc3d._files import replace_atomically
    from pc3d.viz import confusion_figure

    try:
        figure = confusion_figure(np.array(scores.confusion), scores.classes, title=title)
    except MissingExtraError as missing:
        return f"; no picture: {missing}"
    with replace_atomically(path) as file:
        figure.savefig(file, format="png")
    return f", {path}"


def dataset_of_run(run: Path, split: str | None = None) -> tuple[PointDataset, str]:
    """The test set that the configuration of a run names, and a name for its results."""
    import jsonargparse

    from pc3d.data import PointDataset

    if split is not None:
        raise ValueError(f"split: {split!r} goes with --data; data 'run' takes the test set of the configuration")
    path = run / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: say what to judge the model on with --data and --root")
    test = read_config(path).get("data", {}).get("test")
    if not test:
        raise ValueError(f"{path} has no data.test: say what to judge the model on with --data and --root")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PointDataset, "test", required=True)
    dataset: PointDataset = stored_objects(parser, {"test": test}, path).test
    return dataset, _name_of(dataset)


def _name_of(dataset: PointDataset) -> str:
    """As :func:`named_set` names it: what a configuration calls its test set may be the split of validation."""
    from pc3d.data import S3DIS, ScanNet
    from pc3d.data.scene_labels import SCANNET200

    name = type(dataset).__name__.lower()
    if isinstance(dataset, S3DIS):  # whose splits are areas, usually the fifth
        return f"{name}_test" + ("" if dataset.areas == (5,) else f"_area_{'_'.join(map(str, dataset.areas))}")
    if isinstance(dataset, ScanNet) and dataset.classes == SCANNET200:
        name = "scannet200"
    split = getattr(dataset, "split", None)
    splits = split if isinstance(split, list | tuple) else [split if isinstance(split, str) else "test"]
    return "_".join([name, *map(_short, splits)])


def _short(split: str) -> str:
    """A split in the name of a file: what it is may be the path of a list or of a folder."""
    return Path(split).name.removesuffix(".json")


def _check_held_out(run: Path, area: int) -> None:
    """Refuses to call an area a test set that the run's configuration says it was trained on."""
    path = run / "config.yaml"
    if not path.is_file():
        return
    train = read_config(path).get("data", {}).get("train") or {}
    if str(train.get("class_path", "")).rpartition(".")[2] != "S3DIS":
        return
    options = train.get("init_args") or {}
    held_out = options.get("test_area", 5)
    areas = options.get("areas") or [other for other in range(1, 7) if other != held_out]
    if area in areas:
        others = [str(other) for other in range(1, 7) if other not in areas]
        raise ValueError(
            f"test_area: {run} was trained on Area {area}: judge it on an area that it has not seen "
            f"({', '.join(others) or 'there is none'}), or on its training rooms with --split train"
        )


def named_set(data: str, root: str | None, split: str | None, test_area: int | None) -> tuple[PointDataset, str]:
    from pc3d import data as sets

    if data not in SCENE_SETS:
        raise ValueError(f"data: {data!r} is none of run, {', '.join(SCENE_SETS)}{nearest(data, ['run', *SCENE_SETS])}")
    split = split or ("val" if data.startswith("scannet") else "test")
    if data == "rooms":
        return sets.Rooms(split, root), f"rooms_{split}"
    if root is None:
        raise ValueError(f"root: where is {data}? give the folder that holds it with --root")
    if data == "s3dis":
        if split not in ("train", "test"):
            raise ValueError(f"split of s3dis must be 'train' or 'test', got {split!r}")
        rooms = sets.S3DIS(root, "test" if split == "test" else "train", test_area=test_area or 5)
        return rooms, f"s3dis_{split}" + ("" if test_area is None else f"_area_{test_area}")
    if data == "scenes":
        return sets.SceneFolder(root, split), f"{Path(root).name}_{_short(split)}"
    if data == "structured3d":
        return sets.Structured3D(root, split), f"structured3d_{_short(split)}"
    return sets.ScanNet(root, split, classes=200 if data == "scannet200" else 20), f"{data}_{_short(split)}"


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    return run_verb("segment eval", evaluate, argv, words=["run"])
