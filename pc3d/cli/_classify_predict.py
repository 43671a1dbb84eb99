"""``pc3d classify predict``: predict the class of objects."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pc3d.cli import _objects, _output
from pc3d.cli._devices import open_device
from pc3d.cli._inputs import Variant, open_inputs


def predict(
    run: str,
    data: str,
    variant: Variant | None = None,
    split: str = "test",
    batch_size: int = 64,
    device: str = "cpu",
    output: str | None = None,
    overwrite: bool = False,
) -> None:
    """Predict the class of objects in files, a folder or a data set; the training data are not needed.

    Files are first prepared as by other commands (farthest points, centred, scaled into the unit sphere), then like the
    test objects of the run. Objects should have the orientation of those that the model was trained on.

    Args:
        run: Run folder of pc3d classify train.
        data: A file of points or a mesh, a folder of such files, or a folder with a data set.
        variant: Variant of ScanObjectNN or of ModelNet's text files.
        split: Split of the data set; not used for plain files.
        batch_size: Objects per forward pass.
        device: Where to compute, such as cpu or cuda.
        output: CSV file to write, with the columns id, predicted, confidence (the softmax's), label (if there is one).
        overwrite: Replace an existing file.
    """
    import torch

    from pc3d._files import replace_atomically
    from pc3d.data import PointCloud, Transform
    from pc3d.evaluation import predict_logits
    from pc3d.evaluation.features import preparation
    from pc3d.ops import farthest_point_sample
    from pc3d.tasks import load_classifier

    path = None if output is None else Path(output)
    if path is not None and path.exists() and not overwrite:
        raise FileExistsError(f"output: {path} exists: choose another name, or add --overwrite to replace it")
    place = open_device(device)
    model, config = load_classifier(run)
    own_steps = _objects.stored_preparation(Path(run))
    source = open_inputs(data, split, None, variant)
    meant = getattr(model.encoder, "config", {}).get("num_points")
    ids: list[str] = []

    class AsJudged(Transform):
        """What was said above; the ids of the clouds are noted on the way."""

        def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
            ids.append(str(cloud.meta.get("id", len(ids))))
            if source.sampling == "farthest":
                # In this order also where all are taken: the run's own step may take a prefix.
                number = min(len(cloud), meant or len(cloud))
                cloud = cloud.select(farthest_point_sample(cloud.xyz[None], number)[0])
            return own_steps(preparation(None, "first", source.normalize)(cloud, generator), generator)

    logits, _ = predict_logits(model.to(place), source.dataset, AsJudged(), batch_size=batch_size, progress=True)
    shares = torch.from_numpy(logits).softmax(1).numpy()
    names, own = config["classes"], source.dataset.classes
    labels = [own[label] if label >= 0 else None for label in source.dataset.labels.tolist()]
    found = [
        {"id": name, "predicted": names[row.argmax()], "confidence": round(float(row.max()), 4), "label": label}
        for name, row, label in zip(ids, shares, labels, strict=True)
    ]
    if path is not None:
        with replace_atomically(path) as file:
            file.write(_table(found).encode())
    lines = [f"{one['id']}: {one['predicted']} ({one['confidence']:.2f})" for one in found]
    _output.result(found, "\n".join(lines) if path is None else f"{path}: {len(found)} objects")


def _table(found: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()


def main(argv: Sequence[str]) -> int | None:
    """Run ``pc3d classify predict``."""
    return _objects.judge("classify predict", predict, argv)
