"""``pc3d pretrain``: train an encoder without labels, as a configuration says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pc3d.cli import _output, _training
from pc3d.cli._training import changed_sections

__all__ = ["build_parser", "changed_sections", "load_method", "main", "resolve", "shipped_configs"]

_DESCRIPTION = """Pre-train an encoder without labels.

Everything is one configuration: a YAML file (--config, a path or the name of one that ships with pc3d), any field of
which an option overrides, as in --trainer.max_epochs 10 or --model.mask_ratio 0.7. The run folder (--output) receives
the resolved configuration, last.ckpt, metrics.csv, TensorBoard files, and in the end encoder/, which load_encoder
reads. A run that was interrupted goes on with: pc3d pretrain --output FOLDER --resume

A configuration of supervised pre-training (its model has a backbone, as swin3d_structured3d) is the task of pc3d
segment train, and is handed to it."""


def build_parser() -> Any:
    """The parser of the verb; ``--help`` prints it."""
    from pc3d.data import PointDataModule
    from pc3d.methods import Method

    parser = _training.training_parser("pretrain", "pretrain", _DESCRIPTION)
    parser.add_subclass_arguments(Method, "model", required=True, help="Pre-training method.")
    parser.add_class_arguments(PointDataModule, "data")
    _training.add_trainer(parser)
    parser.link_arguments("seed", "model.init_args.seed")
    parser.link_arguments("seed", "data.seed")
    return parser


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
    return _training.train(build_parser(), _training.with_config(argv, "pretrain"))


def resolve(argv: Sequence[str]) -> str:
    """The whole configuration of a run with these arguments, as its folder would keep it."""
    parser = build_parser()
    return _training.dump(parser, parser.parse_args(_training.with_config(argv, "pretrain")))


def load_method(folder: Any) -> Any:
    """The trained method of a run, decoders included, from its configuration and last checkpoint.

    Args:
        folder: a :class:`pc3d.methods.RunFolder` with both.
    """
    import torch

    parser = build_parser()
    options = parser.parse_args(["--config", str(folder.config), "--output", str(folder.path)])
    method = parser.instantiate(options).model
    method.load_state_dict(torch.load(folder.checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    return method
