"""``pc3d pretrain``: train an encoder without labels, from a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pc3d._configured import instantiate
from pc3d.cli import _output, _training
from pc3d.cli._training import changed_sections

__all__ = ["build_parser", "changed_sections", "load_method", "main", "resolve", "shipped_configs"]

_DESCRIPTION = """Pre-train an encoder without labels.

One configuration describes the run: a YAML file (--config, a path or the name of one that ships with pc3d). An option
overrides any field, as in --trainer.max_epochs 10 or --model.mask_ratio 0.7. The run folder (--output) receives the
resolved configuration, last.ckpt, metrics.csv, TensorBoard files and, at the end, encoder/, which load_encoder reads.
To resume an interrupted run: pc3d pretrain --output FOLDER --resume

Data are batches of one data set (pc3d.data.PointDataModule), unless data.class_path names another class, such as
pc3d.data.AlignedStream for shards on a web server or in a bucket.

A configuration of supervised pre-training (its model has a backbone, as in swin3d_structured3d) is passed on to pc3d
segment train."""


def build_parser(*, other_data: bool = False) -> Any:
    """The parser of the verb; ``--help`` prints it.

    Args:
        other_data: ``data`` names its class, as :class:`pc3d.data.AlignedStream`, instead of being the fields of
            :class:`pc3d.data.PointDataModule`.
    """
    from pc3d.data import AlignedStream, PointDataModule
    from pc3d.methods import Method

    parser = _training.training_parser("pretrain", "pretrain", _DESCRIPTION)
    parser.add_subclass_arguments(Method, "model", required=True, help="Pre-training method.")
    if other_data:
        parser.add_subclass_arguments((AlignedStream, PointDataModule), "data", required=True)
    else:
        parser.add_class_arguments(PointDataModule, "data")
    _training.add_trainer(parser)
    parser.link_arguments("seed", "model.init_args.seed")
    parser.link_arguments("seed", "data.init_args.seed" if other_data else "data.seed")
    return parser


def _parser_for(arguments: Sequence[str]) -> Any:
    """The parser for arguments from ``with_config``, whose configuration or options may name another class of data."""
    data = _training.config_of(arguments).get("data")
    named = isinstance(data, str) or (isinstance(data, dict) and "class_path" in data)
    options = ("--data", "--data.class_path")
    return build_parser(other_data=named or any(word.partition("=")[0] in options for word in arguments))


def shipped_configs() -> list[str]:
    """Names of the configurations that ship with pc3d."""
    return _training.shipped_configs("pretrain")


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    arguments = _training.with_config(argv, "pretrain")
    model = _training.config_of(arguments).get("model")
    if isinstance(model, dict) and "backbone" in model:
        from pc3d.cli import segment

        return segment.main(["train", *arguments])
    trainer, folder = train(arguments)
    if trainer.is_global_zero:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        told = {"run": str(folder.path), "encoder": str(folder.encoder), "metrics": metrics}
        _output.result(told, f"encoder written to {folder.encoder}")
    return None


def train(argv: Sequence[str]) -> Any:
    """Pre-train as the options say; the trainer and the run folder."""
    arguments = _training.with_config(argv, "pretrain")
    return _training.train(_parser_for(arguments), arguments)


def resolve(argv: Sequence[str]) -> str:
    """The whole configuration of a run with these arguments, as its folder would keep it."""
    arguments = _training.with_config(argv, "pretrain")
    parser = _parser_for(arguments)
    return _training.dump(parser, parser.parse_args(arguments))


def load_method(folder: Any) -> Any:
    """The trained method of a run, decoders included, from its configuration and last checkpoint.

    Args:
        folder: a :class:`pc3d.methods.RunFolder` with both.
    """
    import torch

    arguments = ["--config", str(folder.config), "--output", str(folder.path)]
    parser = _parser_for(arguments)
    options = parser.parse_args(arguments)
    method = instantiate(parser, options).model
    method.load_state_dict(torch.load(folder.checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    return method
