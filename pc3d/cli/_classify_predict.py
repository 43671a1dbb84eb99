"""``pc3d classify predict``: predict the class of objects."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pc3d._files import check_writable, read_config
from pc3d.cli import _objects, _output
from pc3d.cli._devices import open_device
from pc3d.cli._inputs import (
    LeftOut,
    OnError,
    Points,
    Source,
    UpAxis,
    Variant,
    left_out_lines,
    note_points,
    open_objects,
    turned_up,
)
from pc3d.cli._judging import interrupted, kept_beside
from pc3d.cli._parser import run_verb

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from pc3d.data import PointDataset, Transform


def predict(
    run: str,
    objects: list[str],
    variant: Variant | None = None,
    split: str = "test",
    num_points: Points = "default",
    up: UpAxis | None = None,
    drop_invalid: bool = False,
    batch_size: int = 64,
    device: str = "cpu",
    on_error: OnError = "refuse",
    output: str | None = None,
    overwrite: bool = False,
) -> None:
    """Predict the class of objects in files, a folder or a data set; the training data are not needed.

    Files are first prepared as by other commands (farthest points, centred, scaled into the unit sphere), then like the
    test objects of the run. Objects should have the orientation of those that the model was trained on, see --up. If
    interrupted, the same command continues.

    Args:
        run: Run folder of pc3d classify train; --run itself may be left out.
        objects: Files of points or meshes, and folders of them; or one data set, a folder or 'household' (embedded).
            --objects itself may be left out.
        variant: Variant of ScanObjectNN or of ModelNet's text files.
        split: Split of the data set; not used for plain files.
        num_points: Points per object, instead of those that the model was trained with; null takes all.
        up: Axis that points up in the data, GLB files included; they are turned to the run's. By default they are taken
            as stored.
        drop_invalid: Leave out points of files that are not finite numbers.
        batch_size: Objects per forward pass.
        device: Where to compute, such as cpu or cuda.
        on_error: What to do with a file that cannot be used: 'refuse' stops; 'report' leaves the file out and lists it
            with the reason (with --json, as left_out beside objects).
        output: CSV file to write, with the columns id, predicted, confidence (the softmax's), label (if there is one).
        overwrite: Replace an existing file.
    """
    from pc3d._files import replace_atomically
    from pc3d.evaluation import Kept, predict_logits
    from pc3d.tasks import load_classifier

    path = None if output is None else Path(output)
    if path is not None:
        check_writable(path.parent, "output")
    if path is not None and path.exists() and not overwrite:
        raise FileExistsError(f"output: {path} exists: choose another name, or add --overwrite to replace it")
    place = open_device(device)
    model, config = load_classifier(run)
    points = None if num_points == "default" else num_points
    source = open_objects(objects, split, points, variant, on_error, drop_invalid)
    prepare = _preparation(Path(run), model, source, num_points, up)
    dataset, ids = _with_ids(source.dataset)
    left_out = LeftOut(
        objects[0] if len(objects) == 1 else f"{len(objects)} files and folders", source.dataset, on_error
    )

    choice = (run, objects, variant, split, num_points, up, drop_invalid, batch_size, device, on_error)
    with Kept(interrupted("classify predict", *choice) if path is None else kept_beside(path, *choice)) as kept:
        options: dict[str, Any] = {"batch_size": batch_size, "progress": True, "kept": kept, "leave_out": left_out}
        logits, _ = predict_logits(model.to(place), dataset, prepare, **options)
        rows = [row for row in range(len(dataset)) if row not in left_out.rows]
        labels = [int(dataset.labels[row]) for row in rows]
        known = [dataset.classes[label] if label >= 0 else None for label in labels]
        found = _predictions(logits, config["classes"], [ids[row] for row in rows], known)
        if path is not None:
            with replace_atomically(path) as file:
                file.write(_table(found).encode())
    _tell(path, found, left_out.files, on_error)


def _with_ids(dataset: PointDataset) -> tuple[PointDataset, dict[int, str]]:
    """The same clouds, and the id of each that has been read, by its position."""
    from pc3d.data import PointCloud, PointDataset

    ids: dict[int, str] = {}

    class WithIds(PointDataset):
        labels, classes = dataset.labels, dataset.classes

        def load(self, index: int) -> PointCloud:
            cloud = dataset.load(index)
            ids[index] = str(cloud.meta.get("id", index))
            return cloud

    return WithIds(), ids


def _preparation(run: Path, model: Any, source: Source, num_points: Points, up: UpAxis | None) -> Transform:
    """What is done to a cloud before the network sees it.

    First comes what other commands do, then what the run does to test objects.
    """
    from pc3d.data import BadFileError, FarthestPointSample, FirstPoints, PointCloud, RandomSubsample, Transform
    from pc3d.evaluation.features import preparation
    from pc3d.models import points_meant_for
    from pc3d.ops import farthest_point_sample
    from pc3d.tasks.trained_objects import stored_preparation

    chosen = None if num_points == "default" else num_points
    first_steps = preparation(chosen, "first", source.normalize)
    own_steps = stored_preparation(run)
    target = "z" if up is None else _objects.stored_up(run)
    most, stored = chosen, None
    if num_points == "default":
        most = points_meant_for(model.encoder)
        if source.sampling == "first":  # else a run's own step would choose among more points than in eval
            stored = _points_read(run)
    else:
        note_points(model.encoder, chosen)
        sampling = FirstPoints | FarthestPointSample | RandomSubsample
        own_steps.transforms = [step for step in own_steps.transforms if not isinstance(step, sampling)]

    class Prepare(Transform):
        def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
            cloud = cloud if up is None else turned_up(cloud, up, target=target)
            cloud = cloud.select(slice(stored))
            if source.sampling == "farthest" and num_points is not None:
                # In this order also where all are taken: the run's own step may take a prefix.
                cloud = cloud.select(farthest_point_sample(cloud.xyz[None], min(len(cloud), most or len(cloud)))[0])
            try:
                prepared: PointCloud = own_steps(first_steps(cloud, generator), generator)
                return prepared
            except ValueError as error:
                if "path" not in cloud.meta:
                    raise
                reason = str(error).replace(f" ({cloud.meta['path']})", "")  # the error names the file itself
                raise BadFileError(cloud.meta["path"], reason) from error

    return Prepare()


def _points_read(run: Path) -> int | None:
    """How many of the points that shards store a run read of each object; None where its data set is not cut so."""
    training = read_config(run / "config.yaml").get("data", {}).get("train") or {}
    found: int | None = training.get("init_args", {}).get("num_points")
    return found


def _predictions(
    logits: NDArray[np.float32], names: Sequence[str], ids: Sequence[str], labels: Sequence[str | None]
) -> list[dict[str, Any]]:
    """The class of each object, with its softmax."""
    import torch

    shares = torch.from_numpy(logits).softmax(1).numpy()
    return [
        {"id": name, "predicted": names[row.argmax()], "confidence": round(float(row.max()), 4), "label": label}
        for name, row, label in zip(ids, shares, labels, strict=True)
    ]


def _table(found: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()


def _tell(
    path: Path | None, found: list[dict[str, Any]], left_out: Sequence[Mapping[str, str]], on_error: OnError
) -> None:
    lines = [f"{one['id']}: {one['predicted']} ({one['confidence']:.2f})" for one in found]
    lines = [*(lines if path is None else [f"{path}: {len(found)} objects"]), *left_out_lines(left_out)]
    _output.result(found if on_error == "refuse" else {"objects": found, "left_out": list(left_out)}, "\n".join(lines))


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    return run_verb("classify predict", predict, argv, words=["run", "objects"])
