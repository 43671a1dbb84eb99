"""What the verbs that train have in common: shipped configurations, run folders, and resuming the same run only."""

from __future__ import annotations

import argparse
import inspect
import shlex
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pc3d._configured import instantiate
from pc3d._files import check_writable, read_config
from pc3d.cli._inputs import as_left_out, left_out_lines
from pc3d.cli._parser import INTERRUPTED, nearest, verb_parser

_CONFIGS = Path(__file__).parent.parent / "configs"


def training_parser(verb: str, folder: str, description: str) -> Any:
    """A parser with the options of a run: configuration, folder, resuming, seed, checkpoints.

    Args:
        verb: as typed after ``pc3d``.
        folder: of the configurations that ship for it.
        description: printed by ``--help``.
    """
    parser = verb_parser(verb, description)
    # Of two hundred options, most are Lightning's.
    parser.usage = f"pc3d {verb} --config CONFIG --output OUTPUT [options]\n       pc3d {verb} --output OUTPUT --resume"
    parser.add_argument(
        "--config",
        action="config",
        help=f"YAML file, or one of: {', '.join(shipped_configs(folder))}; options override it, and so does a later "
        "--config.",
    )
    parser.add_argument("--output", type=str, required=True, help="Run folder.")
    parser.add_argument("--resume", action="store_true", help="Go on from last.ckpt of the run folder.")
    parser.add_argument("--overwrite", action="store_true", help="Remove an earlier run from the run folder.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of weights, batches and all random draws.")
    parser.add_argument(
        "--every_n_steps",
        type=int | None,
        default=None,
        help="Write last.ckpt also within epochs, every so many steps.",
    )
    parser.add_argument(
        "--keep_epochs", type=list[int], default=[], help="Finished epochs whose checkpoint is kept as epoch_N.ckpt."
    )
    return parser


def add_trainer(parser: Any) -> None:
    """The options of Lightning's trainer, without those that the run folder decides."""
    import pytorch_lightning as pl

    own = {"default_root_dir", "enable_checkpointing"}
    parser.add_class_arguments(pl.Trainer, "trainer", instantiate=False, skip=own)


def shipped_configs(folder: str) -> list[str]:
    """Names of the configurations that ship with pc3d in a folder."""
    return sorted(path.stem for path in (_CONFIGS / folder).glob("*.yaml"))


def train(parser: Any, argv: Sequence[str], check: Callable[[Any], None] = lambda objects: None) -> Any:
    """Train as the options say, and return the trainer and the run folder.

    Args:
        parser: made by :func:`training_parser`, with ``model``, ``data`` and ``trainer``.
        argv: from :func:`with_config`.
        check: refuses what was built before anything is written.
    """
    import pytorch_lightning as pl

    from pc3d.data import BadFileError
    from pc3d.methods import RunFolder, is_first_process, pretrain

    options = parser.parse_args(list(argv))
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"seed: must be at least 0 and below {2**32}, got {options.seed}")
    check_writable(Path(options.output), "output")
    folder = RunFolder(options.output)
    resolved = dump(parser, options)
    if options.resume and folder.config.exists():
        _check_unchanged(resolved, folder.config)
    if is_first_process(options.trainer.num_nodes):
        folder.check(resume=options.resume, overwrite=options.overwrite)
    # Weights are drawn from PyTorch's default generator, so the seed comes before the model.
    pl.seed_everything(options.seed, workers=True, verbose=False)
    objects = instantiate(parser, options)
    check(objects)
    if is_first_process(options.trainer.num_nodes):
        _tell_left_out(objects.data)
    try:
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
    except BadFileError as error:
        train_set = getattr(objects.data, "train", None)  # a stream has none
        if train_set is None or "on_error" not in inspect.signature(type(train_set)).parameters:
            raise
        said = str(error).rstrip()  # that of a worker ends its line
        raise BadFileError(f"{said}; --data.train.on_error report leaves such files out and lists them") from error
    except KeyboardInterrupt:
        if not is_first_process(options.trainer.num_nodes):  # of several that were interrupted, one says it
            raise SystemExit(INTERRUPTED) from None
        if folder.checkpoint.exists():
            raise KeyboardInterrupt(going_on(parser, options)) from None
        raise KeyboardInterrupt(
            f"nothing was finished yet, start again with --overwrite ({options.output} holds no checkpoint)"
        ) from None
    return trainer, folder


def _tell_left_out(data: Any) -> None:
    """Warn of the files that the data sets of a run leave out, also with ``--quiet``."""
    for part in ("train", "validation", "test"):
        files = getattr(getattr(data, part, None), "skipped", ())
        for line in left_out_lines([as_left_out(file) for file in files]):
            print(f"{part}: {line}", file=sys.stderr)


def going_on(parser: Any, options: Any) -> str:
    """The command that goes on with a run, with those options of its results that the run folder does not keep."""
    words = [*parser.prog.split(), "--output", str(options.output), "--resume"]
    for name in ("results", "method"):
        value = options.get(name)
        words += [] if value is None else [f"--{name}", str(value)]
    return f"go on with: {shlex.join(words)}"


def with_config(argv: Sequence[str], folder: str) -> list[str]:
    """The arguments, configurations in front as paths, also of those that ship; of a resumed run, its own.

    Raises:
        FileNotFoundError: no such configuration; or a run is to be resumed without one, and the folder holds none.
    """
    argv = list(argv)
    look = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    look.add_argument("--output")
    look.add_argument("--resume", action="store_true")
    known, _ = look.parse_known_args(argv)
    named = _configs_in(argv)
    if not named:
        if not (known.resume and known.output):
            return argv
        stored = Path(known.output, "config.yaml")
        if stored.is_file():
            read_config(stored)
            return ["--config", str(stored), *argv]
        if not {"-h", "--help"} & set(argv):
            from pc3d.methods import RunFolder

            # Otherwise the parser would miss the model that a configuration names.
            RunFolder(known.output).check(resume=True)
        return argv
    paths = {name: _path_of(name, folder) for name in named}
    for path in paths.values():
        read_config(path)  # what the parser says of a broken one does not name it
    joined = {f"--config={name}": f"--config={path}" for name, path in paths.items()}
    # Only the value of the option: a run folder may have the name of its configuration.
    return configs_first(
        [
            joined.get(argument, paths[argument] if before == "--config" else argument)
            for before, argument in zip(["", *argv], argv, strict=False)
        ]
    )


def configs_first(argv: Sequence[str]) -> list[str]:
    """The arguments, with every ``--config`` before all others, so that options override them wherever they stand."""
    configs: list[str] = []
    others: list[str] = []
    rest = iter(argv)
    for argument in rest:
        if argument == "--config":
            configs += [argument, *islice(rest, 1)]
        else:
            (configs if argument.startswith("--config=") else others).append(argument)
    return configs + others


def _configs_in(argv: Sequence[str]) -> list[str]:
    """What the options ``--config`` name, in order: later ones override earlier ones."""
    look = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    look.add_argument("--config", action="append", default=[])
    named: list[str] = look.parse_known_args(list(argv))[0].config
    return named


def _path_of(config: str, folder: str) -> str:
    """A file, or a shipped configuration by name, as a path.

    Raises:
        FileNotFoundError: neither.
    """
    if Path(config).is_file():
        return config
    names = shipped_configs(folder)
    if config not in names:
        hint = nearest(config, names) or f" (there are: {', '.join(names)})"
        raise FileNotFoundError(
            f"--config: there is no file {config}, and no configuration of that name ships with pc3d{hint}"
        )
    return str(_CONFIGS / folder / f"{config}.yaml")


def config_of(argv: Sequence[str]) -> dict[str, Any]:
    """What the configuration files say that arguments from :func:`with_config` name; empty where there is none."""
    found: dict[str, Any] = {}
    for path in _configs_in(argv):
        found = _overridden(found, read_config(path))
    return found


def _overridden(before: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Two configurations as one, the later one on top."""
    merged = dict(before)
    for key, value in later.items():
        old = merged.get(key)
        merged[key] = _overridden(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def dump(parser: Any, options: Any) -> str:
    """What the run folder keeps: everything that makes up the run, not where it goes or how it was started."""
    kept = options.clone()
    for name in ("config", "output", "resume", "overwrite", "seeds", "results", "method"):
        kept.pop(name, None)
    text: str = parser.dump(kept, skip_link_targets=True, skip_unset=True, skip_validation=True)
    return text


def changed_sections(resolved: str, stored: Path, *, any_batch_size: bool = False) -> list[str]:
    """Which of model, data and seed differ from a stored configuration, and so would make it another run.

    Trainer options (devices, epochs, ...) may change, and so may how batches are prepared: no result depends on it.

    Args:
        resolved: configuration of now.
        stored: file of that of before.
        any_batch_size: the batch size of each process may differ, too.
    """
    import yaml

    now, before = yaml.safe_load(resolved), read_config(stored)
    free = ("num_workers", "pin_memory", *(("batch_size",) if any_batch_size else ()))
    names = ("model", "data", "seed")
    return [name for name in names if _what_matters(now, name, free) != _what_matters(before, name, free)]


def _what_matters(config: Any, name: str, free: Sequence[str]) -> Any:
    section = config.get(name) if isinstance(config, dict) else None
    if name != "data" or not isinstance(section, dict):
        return section
    kept = {key: value for key, value in section.items() if key not in free}
    if isinstance(kept.get("init_args"), dict):  # of a class that the configuration names
        kept["init_args"] = {key: value for key, value in kept["init_args"].items() if key not in free}
    return kept


def _check_unchanged(resolved: str, stored: Path) -> None:
    """Refuses to resume what would be another run."""
    # More processes with fewer samples each make the same batches; the trainer knows how many there are.
    changed = changed_sections(resolved, stored, any_batch_size=True)
    if changed:
        raise ValueError(
            f"cannot resume with another {' and '.join(changed)} than {stored} has: leave out --config and the "
            "options that change it, or start a new run in another folder"
        )
