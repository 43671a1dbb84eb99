"""``pc3d classify``: train and evaluate a classifier of objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pc3d.cli import _classify_predict, _fewshot_training, _objects, _several_runs, _training
from pc3d.cli._devices import open_device
from pc3d.cli._judging import check_rows_folder, kept_beside

_SHORTHANDS = {
    **_objects.SHORTHANDS,
    **{f"--{name}": (f"--model.{name}",) for name in ("mode", "class_token", "freeze_bn", "label_smoothing")},
}
_DESCRIPTION = f"""Train a classifier of objects: the whole encoder (--mode full), or a head on a frozen one (linear,
mlp3).

One configuration describes the run: a YAML file (--config, a path or the name of one that ships with pc3d). An option
overrides any field, as in --trainer.max_epochs 10. --encoder starts from a pre-trained encoder (run folder, folder, Hub
id, or official .pth file); without it, training starts from fresh weights. The run folder (--output) receives the
resolved configuration, last.ckpt, metrics.csv, TensorBoard files and, at the end, the model (encoder/ and head/) of the
best epoch on the validation part, with its score on the test split in eval/. The test split is not used before.
--protocol legacy also evaluates the test split after each epoch and reports its best result next to the other. To
resume an interrupted run: pc3d classify train --output FOLDER --resume

{_several_runs.HELP}

{_objects.SHORTHANDS_HELP}, and so are --mode, --class_token, --freeze_bn and --label_smoothing."""


def build_parser() -> Any:
    """The parser of ``train``."""
    from pc3d.data import ObjectDataModule
    from pc3d.tasks import Classification

    parser = _training.training_parser("classify train", "classify", _DESCRIPTION)
    parser.shorthands = _SHORTHANDS
    parser.add_class_arguments(Classification, "model")
    parser.add_class_arguments(ObjectDataModule, "data")
    _training.add_trainer(parser)
    _several_runs.add_options(parser)
    parser.link_arguments("seed", "model.seed")
    parser.link_arguments("seed", "data.seed")
    # The data set says which classes there are.
    parser.link_arguments("data", "model.num_classes", compute_fn=_number_of_classes, apply_on="instantiate")
    parser.link_arguments("data", "model.class_names", compute_fn=_names_of_classes, apply_on="instantiate")
    return parser


def train(argv: Sequence[str]) -> int | None:
    """Run ``pc3d classify train``."""
    _objects.train(_verb(), argv)
    return None


def evaluate(
    run: str,
    root: str | None = None,
    split: str | None = None,
    variant: str | None = None,
    votes: int = 0,
    official_best_of: int = 1,
    batch_size: int = 64,
    device: str = "cpu",
    output: str | None = None,
    overwrite: bool = False,
    results: str | None = None,
    method: str | None = None,
) -> None:
    """Evaluate a trained classifier on the test split of its configuration, and print the whole protocol.

    Writes SPLIT.json (with votes, SPLIT_votes.json) into the folder eval/ of the run. If interrupted, the same command
    continues.

    Args:
        run: Run folder of pc3d classify train; --run itself may be left out.
        root: Folder of the data set, instead of the configuration's.
        split: Split, instead of the configuration's.
        variant: Variant of the data set, instead of the configuration's.
        votes: Also average the logits over this many random views of each object, prepared as in training (usual
            voting: 10). 0 for none.
        official_best_of: Repeat the votes this many times and also report the best round, as released code does with
            299. The best round is chosen on the test split, and labelled as such.
        batch_size: Objects per forward pass.
        device: Where to compute, such as cpu or cuda.
        output: Folder for the results, instead of eval/ of the run.
        overwrite: Replace earlier results.
        results: Folder for rows of pc3d results.
        method: Name in the table of results; the encoder's class and how it started by default.
    """
    from pc3d.data.dataset import check_same_classes
    from pc3d.evaluation import ClassificationResult, Kept, predict_logits, scores
    from pc3d.tasks import load_classifier

    if votes < 0 or official_best_of < 1:
        raise ValueError(
            f"votes must be at least 0 and official_best_of at least 1, got {votes} and {official_best_of}"
        )
    if official_best_of > 1 and not votes:
        raise ValueError(
            f"official_best_of: {official_best_of} repeats rounds of votes, and votes is 0: add --votes 10"
        )
    check_rows_folder(results, method)
    place = open_device(device)
    model, config = load_classifier(run)
    data = _objects.stored_data(Path(run), "classify", root=root, split=split, variant=variant)
    check_same_classes({"the model": config["classes"], data.name: data.dataset.classes})
    folder = Path(output) if output is not None else Path(run) / "eval"
    path = _objects.free_result_path(folder, f"{data.split}_votes" if votes else data.split, overwrite)
    model.to(place)
    choice = (run, root, split, variant, votes, official_best_of, batch_size, device)
    with Kept(kept_beside(path, *choice)) as kept:
        options: dict[str, Any] = {"seed": data.seed, "batch_size": batch_size, "progress": True, "kept": kept}
        logits, digest = predict_logits(model, data.dataset, data.prepare, **options)
        truth = data.dataset.labels.numpy()
        result = ClassificationResult(
            **_objects.result_fields(run, model, data, config["training"]),
            mode=config["mode"],
            test_hash=digest,
            scores=scores(truth, logits.argmax(1), tuple(config["classes"])),
            votes=_vote(model, data, votes, official_best_of, options) if votes else None,
        )
        _objects.write_result(result, path, results, method)


def _vote(model: Any, data: _objects.StoredData, votes: int, rounds: int, options: dict[str, Any]) -> Any:
    from pc3d.evaluation import Votes, vote_logits

    if data.augment is None:
        raise ValueError("votes are over views prepared as in training, and the configuration has no train_transforms")
    found = [
        # The first draw is that of the evaluation without votes.
        vote_logits(model, data.dataset, data.augment, votes, first_draw=1 + number * votes, **options)
        for number in range(rounds)
    ]
    return Votes.of(data.dataset.labels.numpy(), found, votes)


def judge(argv: Sequence[str]) -> int | None:
    """Run ``pc3d classify eval``."""
    return _objects.judge("classify eval", evaluate, argv)


def _verb() -> _objects.Verb:
    return _objects.Verb(build_parser, "classify", evaluate, "ClassificationResult")


def few_shot(argv: Sequence[str]) -> int | None:
    """Run ``pc3d classify fewshot``."""
    return _fewshot_training.main(argv, train, _verb().resolve)


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    verbs = {
        "train": ("train a classifier from a configuration file, and evaluate it once on the test split", train),
        "eval": ("evaluate a trained classifier again, by votes or on another split", judge),
        "predict": ("predict the class of objects in files, a folder or a data set", _classify_predict.main),
        "fewshot": ("fine-tune on several episodes of few objects, and average", few_shot),
    }
    return _objects.dispatch("classify", "Classification of objects.", verbs, argv)


def _number_of_classes(data: Any) -> int:
    return len(data.classes)


def _names_of_classes(data: Any) -> list[str]:
    return list(data.classes)
