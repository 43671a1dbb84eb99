"""``pc3d segment``: train and evaluate a semantic segmentation of scenes, and apply it to files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from pc3d._files import read_config
from pc3d.cli import _output, _training
from pc3d.cli._parser import OK, USAGE, nearest

_VERBS = {
    "train": "train a backbone and a head on labelled scenes, from a configuration file",
    "eval": "score a trained model on a data set: mIoU, per-class table, confusion matrix",
    "fold": "add the results of several folds up to one, as S3DIS 6-fold is scored",
    "predict": "name the class of every point of scene files",
    "openvocab": "make a model from a distilled encoder and the names of classes, without labels",
}
_DESCRIPTION = """Train a semantic segmentation of scenes.

One configuration describes the run: a YAML file (--config, a path or the name of one that ships with pc3d). An option
overrides any field, as in --trainer.max_epochs 10 or --model.encoder runs/pretrained. The run folder (--output)
receives the resolved configuration, last.ckpt, metrics.csv, TensorBoard files and, at the end, the model: encoder/,
which load_encoder reads, and head/. To resume an interrupted run: pc3d segment train --output FOLDER --resume

Shorthands: --root for the folder of all data sets of the configuration, --label_fraction, --labelled_points and
--scene_fraction for those of --data, --encoder, --skip, --y_up and --freeze for those of --model. --encoder is a run
folder, a folder, a Hub id, or an official .pth file of Swin3D, PTv3, Sonata or Concerto."""
_SHORTHANDS = {
    **{f"--{name}": f"--data.{name}" for name in ("label_fraction", "labelled_points", "scene_fraction")},
    **{f"--{name}": f"--model.{name}" for name in ("encoder", "skip", "y_up", "freeze")},
}

_ROOT = "--data.{}.init_args.root"


def _help() -> str:
    width = max(map(len, _VERBS))
    lines = [f"  {verb:<{width}}  {summary}" for verb, summary in _VERBS.items()]
    return "\n".join(
        [
            "usage: pc3d segment VERB [options]",
            "",
            "Semantic segmentation of scenes.",
            "",
            "verbs:",
            *lines,
            "",
            "pc3d segment VERB --help lists the options of a verb.",
        ]
    )


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return OK if argv else USAGE
    verb, *rest = argv
    if verb == "train":
        return train(rest)
    if verb == "eval":
        from pc3d.cli._segment_eval import main as judge

        return judge(rest)
    if verb == "fold":
        from pc3d.cli._segment_fold import main as fold

        return fold(rest)
    if verb == "predict":
        from pc3d.cli._segment_predict import main as predict

        return predict(rest)
    if verb == "openvocab":
        from pc3d.cli._segment_openvocab import main as openvocab

        return openvocab(rest)
    print(f"error: unknown verb {verb!r} of pc3d segment{nearest(verb, _VERBS)}\n\n{_help()}", file=sys.stderr)
    return USAGE


def build_parser() -> Any:
    """The parser of ``train``."""
    from pc3d.data import SceneDataModule
    from pc3d.tasks import SemanticSegmentation

    parser = _training.training_parser("segment train", "segment", _DESCRIPTION)
    in_full = {**_SHORTHANDS, "--root": _ROOT.format("train")}
    parser.shorthands = {name: (target,) for name, target in in_full.items()}
    parser.add_class_arguments(SemanticSegmentation, "model")
    parser.add_class_arguments(SceneDataModule, "data")
    _training.add_trainer(parser)
    parser.link_arguments("seed", "model.seed")
    parser.link_arguments("seed", "data.seed")
    # The data set says which classes there are.
    parser.link_arguments("data", "model.num_classes", compute_fn=_number_of_classes, apply_on="instantiate")
    parser.link_arguments("data", "model.class_names", compute_fn=_names_of_classes, apply_on="instantiate")
    return parser


def train(argv: Sequence[str]) -> int | None:
    """Run ``pc3d segment train``."""
    arguments = _with_roots(_training.with_config([_in_full(argument) for argument in argv], "segment"))
    trainer, folder = _training.train(build_parser(), arguments, _before)
    if trainer.is_global_zero:
        scores = {
            name.partition("/")[2]: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("validation/")
        }
        lines = ["validation: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items())] if scores else []
        lines.append(f"model written to {folder.path} (encoder/ and head/)")
        _output.result({"run": str(folder.path), "validation": scores}, "\n".join(lines))
        _output.say(f"judge it with: pc3d segment eval {folder.path}")
    return None


def _in_full(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return _SHORTHANDS.get(name, name) + equals + value


def _with_roots(argv: Sequence[str]) -> list[str]:
    """The arguments, with ``--root`` written out for every data set that the configurations name.

    It follows the last configuration, so that ``--data.test.init_args.root`` still has its say.
    """
    look = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    look.add_argument("--root")
    look.add_argument("--config", action="append", default=[])
    known, _ = look.parse_known_args(list(argv))
    if known.root is None:
        return list(argv)
    data = [read_config(path).get("data") or {} for path in known.config]
    sets = [name for name in ("train", "validation", "test") if any(one.get(name) for one in data)] or ["train"]
    look = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    look.add_argument("--root")
    others = look.parse_known_args(list(argv))[1]
    # The value of a separate --config is the argument after it.
    after = [i + (2 if others[i] == "--config" else 1) for i in range(len(others)) if _is_config(others[i])]
    place = max(after, default=0)
    return [*others[:place], *(f"{_ROOT.format(name)}={known.root}" for name in sets), *others[place:]]


def _is_config(argument: str) -> bool:
    return argument == "--config" or argument.startswith("--config=")


def _before(objects: Any) -> None:
    """Says what the backbone starts from."""
    from pc3d.methods import is_first_process

    if objects.model.initial is not None and is_first_process():
        _output.say(objects.model.initial)


def _number_of_classes(data: Any) -> int:
    if not data.classes:
        raise ValueError(
            f"data.train: {data.train!r} names no classes of points: give it some (of a SceneFolder, a line each in "
            "classes.txt of its root), or take the data set of the benchmark: pc3d.data.ScanNet, S3DIS or Structured3D"
        )
    return len(data.classes)


def _names_of_classes(data: Any) -> list[str]:
    return list(data.classes)
