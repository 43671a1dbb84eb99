"""``pc3d demo``: pre-train a small Point-CMAE on the embedded objects and score it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pc3d._files import check_writable
from pc3d.cli import _output, pretrain
from pc3d.cli._parser import run_verb

_CONFIG = "point_cmae_household"


def demo(output: str = "runs/demo", seed: int = 0, overwrite: bool = False) -> None:
    """Pre-train a small Point-CMAE on the embedded objects, probe it, and draw what it reconstructs.

    Earlier results in the folder are used: a finished run is not trained again, and an interrupted one continues. To
    run only the training: pc3d pretrain --config point_cmae_household --output FOLDER

    Args:
        output: Folder for the run, the table (demo.json, demo.csv) and the picture (demo.png).
        seed: Seed of the training and the probes.
        overwrite: Train again from the start, and replace what an earlier demo wrote.
    """
    from pc3d import demo as parts
    from pc3d._extras import MissingExtraError
    from pc3d.methods import RunFolder

    folder = RunFolder(output)
    _train(folder, seed, overwrite)
    if not parts.is_current(folder.path, seed=seed):
        parts.remove_results(folder.path)
        _output.say("probing ...")
        parts.evaluate(folder.path, seed=seed)
    drawing = folder.path / "demo.png"
    try:
        if not drawing.exists():
            parts.picture(pretrain.load_method(folder), drawing, seed=seed)
        picture = str(drawing)
    except MissingExtraError as missing:
        picture = f"not drawn, {missing}; then call pc3d demo again"
    files = f"table:   {folder.path / 'demo.json'}, {folder.path / 'demo.csv'}\npicture: {picture}"
    results = json.loads((folder.path / "demo.json").read_text(encoding="utf-8"))
    _output.result(results, f"\n{parts.table(folder.path)}\n\nencoder: {folder.encoder}\n{files}")


def _train(folder: Any, seed: int, overwrite: bool) -> None:
    """Train, resume, or leave a finished run alone; what an earlier encoder scored is removed before training."""
    from pc3d.demo import remove_results

    options = ["--config", _CONFIG, "--output", str(folder.path), "--seed", str(seed)]
    if not overwrite and (folder.is_finished() or folder.checkpoint.exists()):
        _check_is_demo(folder, options)
    if folder.is_finished() and not overwrite:
        _output.say(f"using the trained encoder in {folder.encoder} (--overwrite trains again)")
        return
    if folder.checkpoint.exists() and not overwrite:
        _output.say(f"going on with the interrupted run in {folder.path} (--overwrite starts again)")
        options.append("--resume")
    elif folder.is_started():
        options.append("--overwrite")  # nothing was checkpointed, or it is to be replaced
    check_writable(folder.path, "output")
    remove_results(folder.path)
    try:
        pretrain.train(options)
    except KeyboardInterrupt:
        same = "the same command without --overwrite" if overwrite else "the same command"
        raise KeyboardInterrupt(f"{folder.path} keeps what is done: {same} goes on") from None


def _check_is_demo(folder: Any, options: list[str]) -> None:
    """Refuse a run that is there but is not the one that the demonstration would train."""
    remedy = "choose another --output, or pass --overwrite to train in its place"
    if not folder.config.exists():
        raise FileExistsError(f"{folder.path} holds a run without {folder.config.name}, not one of pc3d demo: {remedy}")
    changed = pretrain.changed_sections(pretrain.resolve(options), folder.config)
    if changed:
        raise FileExistsError(
            f"{folder.path} holds another run than pc3d demo {' '.join(options[-2:])} trains "
            f"({' and '.join(changed)} differ from {folder.config}): {remedy}"
        )


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    return run_verb("demo", demo, argv)
