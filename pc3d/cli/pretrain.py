"""``pc3d pretrain``: train an encoder without labels, as a configuration says."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pc3d.cli._parser import nearest, parser_class

_CONFIGS = Path(__file__).parent.parent / "configs" / "pretrain"
_DESCRIPTION = """Pre-train an encoder without labels.

Everything is one configuration: a YAML file (--config, a path or the name of one that ships with pc3d), any field of
which an option overrides, as in --trainer.max_epochs 10 or --model.mask_ratio 0.7. The run folder (--output) receives
the resolved configuration, last.ckpt, metrics.csv, TensorBoard files, and in the end encoder/, which load_encoder
reads. A run that was interrupted goes on with: pc3d pretrain --output FOLDER --resume"""


def build_parser() -> Any:
    """The parser of the verb; ``--help`` prints it."""
    import pytorch_lightning as pl

    from pc3d.data import PointDataModule
    from pc3d.methods import Method

    parser = parser_class()(prog="pc3d pretrain", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "--config",
        action="config",
        help=f"YAML file, or one of: {', '.join(shipped_configs())}; later options override it.",
    )
    parser.add_argument("--output", type=str, required=True, help="Run folder.")
    parser.add_argument("--resume", action="store_true", help="Go on from last.ckpt of the run folder.")
    parser.add_argument("--overwrite", action="store_true", help="Remove an earlier run from the run folder.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of weights, batches, masks and drop path.")
    parser.add_argument(
        "--every_n_steps", type=int | None, default=None, help="Write last.ckpt also within epochs, this often."
    )
    parser.add_argument(
        "--keep_epochs", type=list[int], default=[], help="Finished epochs whose checkpoint is kept as epoch_N.ckpt."
    )
    parser.add_subclass_arguments(Method, "model", required=True, help="Pre-training method.")
    parser.add_class_arguments(PointDataModule, "data")
    # The run folder decides where things go; see pc3d.methods.pretrain.
    own = {"default_root_dir", "logger", "enable_checkpointing"}
    parser.add_class_arguments(pl.Trainer, "trainer", instantiate=False, skip=own)
    parser.link_arguments("seed", "model.init_args.seed")
    parser.link_arguments("seed", "data.seed")
    return parser


def shipped_configs() -> list[str]:
    """Names of the configurations that ship with pc3d."""
    return sorted(path.stem for path in _CONFIGS.glob("*.yaml"))


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    import pytorch_lightning as pl

    from pc3d.methods import RunFolder, is_first_process, pretrain

    parser = build_parser()
    options = parser.parse_args(_with_config(list(argv)))
    folder = RunFolder(options.output)
    resolved = _dump(parser, options)
    if options.resume and folder.config.exists():
        _check_unchanged(resolved, folder.config)
    if is_first_process():
        folder.check(resume=options.resume, overwrite=options.overwrite)
    # Weights are drawn from PyTorch's default generator, so the seed comes before the model.
    pl.seed_everything(options.seed, workers=True, verbose=False)
    objects = _instantiate(parser, options)
    trainer = pretrain(
        objects.model,
        objects.data,
        options.output,
        resume=options.resume,
        overwrite=options.overwrite,
        every_n_steps=options.every_n_steps,
        keep_epochs=options.keep_epochs,
        config=resolved,
        **objects.trainer.as_dict(),
    )
    if trainer.is_global_zero:
        print(f"encoder written to {folder.encoder}")
    return None


def _instantiate(parser: Any, options: Any) -> Any:
    try:
        return parser.instantiate(options)
    except ValueError as error:
        # The parser wraps what a constructor says. That data is missing, and where to get it, is better said alone.
        if isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None
        raise


def _with_config(argv: list[str]) -> list[str]:
    """The arguments, with names of shipped configurations turned into paths and a resumed run's own put in front."""
    look = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    look.add_argument("--config")
    look.add_argument("--output")
    look.add_argument("--resume", action="store_true")
    known, _ = look.parse_known_args(argv)
    if known.config is None:
        stored = Path(known.output or "", "config.yaml")
        return ["--config", str(stored), *argv] if known.resume and known.output and stored.is_file() else argv
    if Path(known.config).is_file():
        return argv
    if known.config not in shipped_configs():
        names = ", ".join(shipped_configs())
        raise FileNotFoundError(
            f"--config: there is no file {known.config}, and no configuration of that name ships with pc3d"
            f"{nearest(known.config, shipped_configs()) or f' (there are: {names})'}"
        )
    path = str(_CONFIGS / f"{known.config}.yaml")
    swap = {known.config: path, f"--config={known.config}": f"--config={path}"}
    return [swap.get(argument, argument) for argument in argv]


def _dump(parser: Any, options: Any) -> str:
    """What the run folder keeps: everything that makes up the run, not where it goes or how it was started."""
    kept = options.clone()
    for name in ("config", "output", "resume", "overwrite"):
        kept.pop(name, None)
    text: str = parser.dump(kept, skip_link_targets=True, skip_unset=True, skip_validation=True)
    return text


def resolve(argv: Sequence[str]) -> str:
    """The whole configuration of a run with these arguments, as its folder would keep it."""
    parser = build_parser()
    return _dump(parser, parser.parse_args(_with_config(list(argv))))


def changed_sections(resolved: str, stored: Path) -> list[str]:
    """Which of model, data and seed differ from a stored configuration, and so would make it another run.

    Trainer options (devices, epochs, ...) may change, and so may how batches are prepared: no result depends on it.
    """
    import yaml

    now, before = yaml.safe_load(resolved), yaml.safe_load(stored.read_text(encoding="utf-8"))
    return [name for name in ("model", "data", "seed") if _what_matters(now, name) != _what_matters(before, name)]


def _what_matters(config: Any, name: str) -> Any:
    section = config.get(name) if isinstance(config, dict) else None
    if name != "data" or not isinstance(section, dict):
        return section
    return {key: value for key, value in section.items() if key not in ("num_workers", "pin_memory")}


def _check_unchanged(resolved: str, stored: Path) -> None:
    """Refuses to resume what would be another run."""
    changed = changed_sections(resolved, stored)
    if changed:
        raise ValueError(
            f"cannot resume with another {' and '.join(changed)} than {stored} has: leave out --config and the "
            "options that change it, or start a new run in another folder"
        )
