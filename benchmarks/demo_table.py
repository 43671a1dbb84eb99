"""The demonstration's table over several seeds and data sets: what training brings over what needs none.

    python benchmarks/demo_table.py --output runs/demo_table
    python benchmarks/demo_table.py --output runs/demo_table --data household DATA/components --seeds 0 1 2

For each data set and seed, Point-MAE and Point-CMAE are pre-trained on the training split by the recipe of the
demonstration (same encoder, epochs and batches; Point-MAE has one branch and no class token, so an epoch of it is
cheaper), and compared with the untrained encoder, plain and with settled batch norm, and with two handcrafted
descriptors. The linear probe and its selection of C are those of ``pc3d demo``. A run that is interrupted goes on where
it stopped; what is finished is not computed again. Writes ``results.csv`` (a row per probe) and ``table.md``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from records import mean_and_deviation, write_csv

from pc3d import demo
from pc3d.cli import pretrain
from pc3d.data import Household, ObjectSet
from pc3d.methods import RunFolder
from pc3d.models import load_encoder

CONFIG = Path(pretrain.__file__).parent.parent / "configs" / "pretrain" / "point_cmae_household.yaml"
METHODS = {"Point-MAE": "pc3d.methods.PointMAE", "Point-CMAE": "pc3d.methods.PointCMAE"}
ORDER = (demo.PCA, demo.DESCRIPTOR, demo.UNTRAINED, demo.SETTLED, *METHODS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for runs, results.csv and table.md")
    parser.add_argument("--data", nargs="+", default=["household"], help="'household' or folders of object shards")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of weights, training and probe")
    parser.add_argument("--epochs", type=int, help="epochs in place of the recipe's")
    options = parser.parse_args()
    for data in options.data:
        for seed in options.seeds:
            folder = options.output / Path(data).name / f"seed{seed}"
            if (folder / "demo.json").exists():
                print(f"{folder}: done already")
                continue
            for method in METHODS:
                train(method, data, seed, folder / method, options.epochs)
            probe(data, seed, folder)
            write_table(options.output)
    write_table(options.output)
    print((options.output / "table.md").read_text(encoding="utf-8"))


def train(method: str, data: str, seed: int, output: Path, epochs: int | None) -> None:
    """Pre-train by the demonstration's recipe; go on with what was interrupted, leave what is finished."""
    run = RunFolder(output)
    if run.is_finished():
        return
    if run.checkpoint.exists():
        pretrain.main(["--output", str(output), "--resume"])
        return
    recipe: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    recipe["model"]["class_path"] = METHODS[method]
    if method == "Point-MAE":
        recipe["model"]["init_args"]["encoder"]["init_args"]["num_cls_tokens"] = 0
        for name in ("contrast", "contrast_weight"):
            recipe["model"]["init_args"].pop(name, None)
    if data != "household":
        recipe["data"]["train"] = {"class_path": "pc3d.data.ObjectSet", "init_args": {"root": data, "split": "train"}}
    if epochs is not None:
        recipe["trainer"]["max_epochs"] = epochs
    output.parent.mkdir(parents=True, exist_ok=True)
    config = output.parent / f"{method}.yaml"
    config.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    pretrain.main(["--config", str(config), "--output", str(output), "--seed", str(seed), "--overwrite"])


def probe(data: str, seed: int, folder: Path) -> None:
    """Probe both trained encoders and what needs no training; writes ``demo.json`` and ``demo.csv``."""
    trained: dict[str, Any] = {method: load_encoder(folder / method) for method in METHODS}
    architecture = trained["Point-CMAE"].config
    num_points = int(architecture["num_points"])
    train_set, test_set = (
        (Household("train"), Household("test"))
        if data == "household"
        else (ObjectSet(data, "train"), ObjectSet(data, "test"))
    )
    encoders = {**demo.baselines(architecture, train_set, num_points=num_points, seed=seed), **trained}
    name = Path(data).name
    results = demo.compare(encoders, train_set, test_set, num_points=num_points, data=name, seed=seed)
    demo.write_results(results, folder)


def rows(output: Path) -> Iterator[dict[str, Any]]:
    """A row per probe of everything that is finished."""
    for path in sorted(output.glob("*/seed*/demo.json")):
        for name, result in json.loads(path.read_text(encoding="utf-8")).items():
            yield {
                "data": path.parent.parent.name,
                "seed": int(path.parent.name.removeprefix("seed")),
                "encoder": name,
                "overall_accuracy": result["scores"]["overall_accuracy"],
                "mean_class_accuracy": result["scores"]["mean_class_accuracy"],
                "num_test": result["num_test"],
                "C": result["parameter"][1],
                "train_hash": result["train_hash"],
                "test_hash": result["test_hash"],
                "torch": result["versions"]["torch"],
            }


def write_table(output: Path) -> None:
    """``results.csv`` and ``table.md`` from all finished probes."""
    found = list(rows(output))
    if not found:
        return
    write_csv(output / "results.csv", list(found[0]), found)
    lines = []
    for data in dict.fromkeys(row["data"] for row in found):
        mine = [row for row in found if row["data"] == data]
        seeds = sorted({row["seed"] for row in mine})
        lines += [
            f"**{data}**, {mine[0]['num_test']} test objects, linear SVM on frozen features, "
            f"mean ± sample standard deviation over seeds {', '.join(map(str, seeds))}",
            "",
            "| encoder | overall accuracy (%) | mean class accuracy (%) |",
            "| --- | --- | --- |",
        ]
        for name in ORDER:
            of_name = [row for row in mine if row["encoder"] == name]
            values = [
                mean_and_deviation([100 * row[key] for row in of_name])
                for key in ("overall_accuracy", "mean_class_accuracy")
            ]
            lines.append(f"| {name} | {values[0]} | {values[1]} |")
        lines.append("")
    (output / "table.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
