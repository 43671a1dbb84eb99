"""``pc3d parts``: train and evaluate a part segmentation of objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pc3d.cli import _objects, _several_runs, _training
from pc3d.cli._devices import open_device
from pc3d.cli._judging import check_rows_folder, kept_beside

_DESCRIPTION = f"""Train a part segmentation of objects whose category is known.

One configuration describes the run: a YAML file (--config, a path or the name of one that ships with pc3d). An option
overrides any field, as in --trainer.max_epochs 10. --encoder starts from a pre-trained encoder (run folder, folder, Hub
id, or official .pth file), whose class tokens are dropped; without it, training starts from fresh weights. The run
folder (--output) receives the resolved configuration, last.ckpt, metrics.csv, TensorBoard files and, at the end, the
model (encoder/ and head/) of the best epoch on the validation part, with its score on the test split in eval/. The test
split is not used before. --protocol legacy also evaluates the test split after each epoch, on points drawn with
replacement as the released code does, and reports its best result next to the other. To resume an interrupted run: pc3d
parts train --output FOLDER --resume

{_several_runs.HELP}

{_objects.SHORTHANDS_HELP}."""


def build_parser() -> Any:
    """The parser of ``train``."""
    from pc3d.data import ObjectDataModule
    from pc3d.tasks import PartSegmentation

    parser = _training.training_parser("parts train", "parts", _DESCRIPTION)
    parser.shorthands = _objects.SHORTHANDS
    parser.add_class_arguments(PartSegmentation, "model")
    parser.add_class_arguments(ObjectDataModule, "data")
    _training.add_trainer(parser)
    _several_runs.add_options(parser)
    parser.link_arguments("seed", "model.seed")
    parser.link_arguments("seed", "data.seed")
    # The data set says which categories and parts there are.
    for name, compute in (
        ("num_categories", _number_of_categories),
        ("num_parts", _number_of_parts),
        ("category_names", _names_of_categories),
        ("part_names", _names_of_parts),
        ("category_parts", _parts_of_categories),
    ):
        parser.link_arguments("data", f"model.{name}", compute_fn=compute, apply_on="instantiate")
    return parser


def train(argv: Sequence[str]) -> int | None:
    """Run ``pc3d parts train``."""
    _objects.train(_objects.Verb(build_parser, "parts", evaluate, "PartResult"), argv)
    return None


def evaluate(
    run: str,
    root: str | None = None,
    split: str | None = None,
    protocol: Literal["held_out", "legacy"] = "held_out",
    batch_size: int = 16,
    device: str = "cpu",
    output: str | None = None,
    overwrite: bool = False,
    results: str | None = None,
    method: str | None = None,
) -> None:
    """Evaluate a trained part segmentation on the test split of its configuration, and print the whole protocol.

    Writes SPLIT.json (with --protocol legacy, SPLIT_legacy.json) into the folder eval/ of the run. If interrupted, the
    same command continues.

    Args:
        run: Run folder of pc3d parts train; --run itself may be left out.
        root: Folder of the data set, instead of the configuration's.
        split: Split, instead of the configuration's.
        protocol: 'held_out' evaluates every stored point once; 'legacy' evaluates points drawn with replacement, as
            released code does, and labels the result as such.
        batch_size: Objects per forward pass.
        device: Where to compute, such as cpu or cuda.
        output: Folder for the results, instead of eval/ of the run.
        overwrite: Replace earlier results.
        results: Folder for rows of pc3d results.
        method: Name in the table of results; the encoder's class and how it started by default.
    """
    from pc3d.evaluation import Kept, PartResult, PartTally, content_hash
    from pc3d.tasks import evaluate_parts, load_part_segmenter

    place = open_device(device)
    check_rows_folder(results, method)
    model, config = load_part_segmenter(run)
    data = _objects.stored_data(Path(run), "parts", root=root, split=split)
    for name, ours, theirs in (
        ("categories", config["categories"], data.dataset.classes),
        ("parts", config["parts"], data.dataset.parts),
    ):
        if list(ours) != list(theirs):
            raise ValueError(
                f"{data.name} has other {name} ({', '.join(theirs[:3])}, ...) than the model ({', '.join(ours[:3])}, "
                "...): judge it on a set with those that it was trained for"
            )
    folder = Path(output) if output is not None else Path(run) / "eval"
    name = data.split if protocol == "held_out" else f"{data.split}_{protocol}"
    path = _objects.free_result_path(folder, name, overwrite)
    with Kept(kept_beside(path, run, root, split, batch_size, device)) as kept:
        tally = evaluate_parts(
            model.to(place),
            data.dataset,
            PartTally(config["categories"], config["category_parts"]),
            data.prepare,
            protocol=protocol,
            seed=data.seed,
            batch_size=batch_size,
            progress=True,
            kept=kept,
        )
        result = PartResult(
            **_objects.result_fields(run, model, data, config["training"]),
            test_hash=content_hash(data.dataset),
            protocol=protocol,
            num_points=model.encoder.config["num_points"],
            scores=tally.scores(),
        )
        _objects.write_result(result, path, results, method)


def judge(argv: Sequence[str]) -> int | None:
    """Run ``pc3d parts eval``."""
    return _objects.judge("parts eval", evaluate, argv)


def predict(argv: Sequence[str]) -> int | None:
    """Run ``pc3d parts predict``."""
    from pc3d.cli import _parts_predict

    return _parts_predict.main(argv)


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    verbs = {
        "train": ("train a part segmentation from a configuration file, and evaluate it once on the test split", train),
        "eval": ("evaluate a trained part segmentation again, by the legacy protocol or on another split", judge),
        "predict": ("predict the part of every point of objects in files", predict),
    }
    return _objects.dispatch("parts", "Part segmentation of objects.", verbs, argv)


def _number_of_categories(data: Any) -> int:
    return len(data.classes)


def _names_of_categories(data: Any) -> list[str]:
    return list(data.classes)


def _number_of_parts(data: Any) -> int:
    return len(data.parts)


def _names_of_parts(data: Any) -> list[str]:
    return list(data.parts)


def _parts_of_categories(data: Any) -> list[list[int]]:
    # A set without parts is refused for that, by the model.
    return [list(parts) for parts in data.category_parts] if data.parts else []
