"""``pc3d demo``: pre-train a small Point-CMAE on the embedded objects and score it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pc3d.cli import pretrain
from pc3d.cli._parser import run_verb

_CONFIG = "point_cmae_household"


def demo(output: str = "runs/demo", seed: int = 0, overwrite: bool = False) -> None:
    """Pre-train a small Point-CMAE on the embedded objects, probe it, and draw what it reconstructs.

    What is in the folder already is used: a finished run is not trained again, an interrupted one goes on.
    The same training without the rest: pc3d pretrain --config point_cmae_household --output FOLDER

    Args:
        output: Folder for the run, the table (demo.json, demo.csv) and the picture (demo.png).
        seed: Seed of the training and the probes.
        overwrite: Train again from the start, and replace what an earlier demo wrote.
    """
    from pc3d import demo as parts
    from pc3d.methods import RunFolder

    folder = RunFolder(output)
    outcome = [folder.path / name for name in ("demo.json", "demo.csv", "demo.png")]
    trained = _train(folder, seed, overwrite)
    if trained or overwrite or not all(path.exists() for path in outcome):
        print("probing ...", flush=True)
        parts.evaluate(folder.path, seed=seed)
        parts.picture(_method(folder), folder.path / "demo.png", seed=seed)
    print(f"\n{parts.table(folder.path)}\n")
    print(f"encoder: {folder.encoder}\ntable:   {outcome[0]}, {outcome[1]}\npicture: {outcome[2]}")


def _train(folder: Any, seed: int, overwrite: bool) -> bool:
    """Train, resume, or leave a finished run alone; whether anything was trained."""
    options = ["--config", _CONFIG, "--output", str(folder.path), "--seed", str(seed)]
    if folder.is_finished() and not overwrite:
        print(f"using the trained encoder in {folder.encoder} (--overwrite trains again)")
        return False
    if folder.checkpoint.exists() and not overwrite:
        print(f"going on with the interrupted run in {folder.path} (--overwrite starts again)")
        options.append("--resume")
    elif folder.is_started():
        options.append("--overwrite")  # nothing was checkpointed, or it is to be replaced
    pretrain.main(options)
    return True


def _method(folder: Any) -> Any:
    """The trained method, decoders included, from the run's configuration and checkpoint."""
    import torch

    parser = pretrain.build_parser()
    options = parser.parse_args(["--config", str(Path(folder.config)), "--output", str(folder.path)])
    method = parser.instantiate(options).model
    method.load_state_dict(torch.load(folder.checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    return method


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    return run_verb("demo", demo, argv)
