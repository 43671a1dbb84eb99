"""A result of ``pc3d segment eval``, or several folds of them, as a row of ``pc3d results``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pc3d._configured import stored_objects
from pc3d._files import read_config

if TYPE_CHECKING:
    from pc3d.data import PointDataset, SceneDataModule
    from pc3d.evaluation import Row
    from pc3d.evaluation.segmentation import SegmentationScores
    from pc3d.tasks import SceneSegmenter

_TRAINER = ("max_epochs", "max_steps", "gradient_clip_val", "precision", "accumulate_grad_batches")


def trained_on(run: Path) -> tuple[dict[str, Any], SceneDataModule]:
    """The configuration of a run, and the data that it describes.

    Raises:
        FileNotFoundError: the run has no configuration, or its training scenes are not where it says.
        ValueError: the configuration names no training scenes.
    """
    import jsonargparse

    from pc3d.data import SceneDataModule

    path = run / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"results: {path} does not exist, which says what the row of {run} is a result of")
    config = read_config(path)
    # The scenes that are judged are known already; the seed is that of the run, which cut validation scenes out.
    data = {**config.get("data", {}), "test": None, "seed": int(config.get("seed", 0))}
    if not data.get("train"):
        raise ValueError(f"results: {path} has no data.train, which a row tells")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SceneDataModule, "data")
    module: SceneDataModule = stored_objects(parser, {"data": data}, path).data
    return config, module


def row_of(
    model: SceneSegmenter,
    scores: SegmentationScores,
    dataset: PointDataset,
    name: str,
    training: tuple[dict[str, Any], SceneDataModule],
    options: dict[str, Any],
    cost: dict[str, float],
    method: str | None,
) -> Row:
    """The row; hashes are over coordinates and classes of all scenes, which are read for it.

    Args:
        model: what was judged.
        scores: what came out.
        dataset: the scenes that were judged.
        name: of the data, with split.
        training: see :func:`trained_on`.
        options: how it was judged.
        cost: of judging.
        method: name in the table; the backbone's class and how it started when None.
    """
    from pc3d.evaluation import Row, content_hash
    from pc3d.evaluation.result import versions
    from pc3d.evaluation.rows import data_hash

    config, module = training
    assert module.train is not None
    settings = {key: value for key, value in config.get("model", {}).items() if key not in ("encoder", "seed")}
    start, data = config.get("model", {}).get("encoder"), config.get("data", {})
    started = "from scratch" if start is None else "pre-trained"
    seen = "fragments" if options["use_fragments"] else "single pass"
    votes = "" if options["voting"] == "none" else f", {options['voting']} voting"
    return Row(
        method=method or f"{type(model.backbone).__name__}, {started}",
        protocol=f"scene segmentation ({seen}{votes})",
        selection="fixed",  # the last epoch is kept, whatever a validation part says
        data=name,
        data_hash=data_hash(content_hash(module.train), content_hash(dataset)),
        seed=int(config.get("seed", 0)),
        metrics=metrics_of(scores),
        num_train=len(module.train),
        num_test=len(dataset),
        config={
            "started": started,
            **{key: options[key] for key in ("max_points", "context")},
            "model": settings,
            # Without folders: what they hold is in the hash.
            "data": {key: value for key, value in data.items() if key not in ("train", "validation", "test", "seed")},
            "trainer": {key: config.get("trainer", {}).get(key) for key in _TRAINER},
        },
        details={"start": start or "fresh weights", "iou": dict(zip(scores.classes, scores.iou, strict=True))},
        versions=versions(),
        cost={**cost, "parameters": sum(parameter.numel() for parameter in model.parameters())},
    )


def row_of_folds(rows: Sequence[Row], paths: Sequence[Path], scores: SegmentationScores, method: str | None) -> Row:
    """One row for several folds; its hash is over theirs, in whatever order they were given.

    Items are counted in each fold that has them: a test scene once, a training scene as often as it was trained on.

    Args:
        rows: a row for each fold.
        paths: the files that they were in, for messages.
        scores: of the folds together.
        method: name in the table; that of the folds when None.

    Raises:
        ValueError: the folds differ in more than their data.
    """
    from pc3d.evaluation import Row

    first = rows[0]
    for row, path in zip(rows, paths, strict=True):
        for name in ("method", "protocol", "selection", "seed", "config"):
            if getattr(row, name) == getattr(first, name) or (name == "method" and method):
                continue
            remedy = "name them with --method" if name == "method" else "train and judge all folds alike"
            raise ValueError(
                f"results: {path} is of another {name} than {paths[0]}, so one row cannot tell both: {remedy}, or "
                "leave --results out"
            )
    names = sorted({row.data.partition("_area_")[0] for row in rows})
    return Row(
        method=method or first.method,
        protocol=first.protocol,
        selection=first.selection,
        data=f"{'+'.join(names)}, {len(rows)} folds",
        data_hash=hashlib.sha256(" ".join(sorted(row.data_hash for row in rows)).encode()).hexdigest()[:16],
        seed=first.seed,
        metrics=metrics_of(scores),
        num_train=sum(row.num_train for row in rows),
        num_test=sum(row.num_test for row in rows),
        config=first.config,
        details={
            "folds": [{"data": row.data, "start": row.details.get("start"), "metrics": row.metrics} for row in rows],
            "iou": dict(zip(scores.classes, scores.iou, strict=True)),
        },
        versions={
            # Of folds that were judged months apart several.
            name: " and ".join(sorted({row.versions[name] for row in rows if name in row.versions}))
            for name in dict.fromkeys(name for row in rows for name in row.versions)
        },
        cost={
            name: (sum if name == "cpu_seconds" else max)(row.cost[name] for row in rows)
            for name in first.cost
            if all(name in row.cost for row in rows)  # one that was interrupted lacks its seconds
        },
    )


def metrics_of(scores: SegmentationScores) -> dict[str, float]:
    """What a row tells of the scores, the first of which a table shows."""
    return {key: getattr(scores, key) for key in ("miou", "macc", "allacc", "miou_present")}
