"""The demonstration's table over several seeds and data sets: what training brings over what needs none.

    python benchmarks/demo_table.py --output runs/demo_table
    python benchmarks/demo_table.py --output runs/demo_table --data household DATA/components --seeds 0 1 2

For each data set and seed, the methods of ``METHODS`` are pre-trained on the training split by their recipes for two
cores, around the encoder of the demonstration (Point-MAE has no class token), and compared with the untrained encoder,
plain and with settled batch norm, and with two handcrafted descriptors. The linear probe and its selection of C are
those of ``pc3d demo``. What is taught by pictures needs the image tower of ``openshape_household``.

A run that is interrupted goes on where it stopped, and what is in ``results.csv`` (a row per probe) is not computed
again: copy ``benchmarks/results/demo_table.csv`` there to add a method to the rows that ship. Writes ``table.md``, too.
"""

from __future__ import annotations

import argparse
import csv
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml
from records import keep_options, mean_and_deviation, write_csv

from pc3d import demo
from pc3d.cli import pretrain
from pc3d.data import Household, ObjectSet
from pc3d.methods import RunFolder
from pc3d.models import load_encoder

PICTURES = "taught by preview pictures"
CONFIGS = Path(pretrain.__file__).parent.parent / "configs" / "pretrain"
METHODS = {
    "Point-MAE": "point_cmae_household",
    "Point-CMAE": "point_cmae_household",
    "PCP-MAE": "pcp_mae_household",
    "SimCLR": "simclr_household",
    PICTURES: "openshape_household",
}
"""Name in the table to recipe."""
EPOCHS = {"SimCLR": 20, PICTURES: 20}
"""In place of the recipes' 40: so both take 5 CPU minutes or less."""
UNTRAINED = (demo.PCA, demo.DESCRIPTOR, demo.UNTRAINED, demo.SETTLED)
SCORES = ("overall_accuracy", "mean_class_accuracy")
FIELDS = ("data", "seed", "encoder", *SCORES, "num_test", "C", "train_hash", "test_hash", "torch")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for runs, results.csv and table.md")
    parser.add_argument("--data", nargs="+", default=["household"], help="'household' or folders of object shards")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of weights, training and probe")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="default: all")
    parser.add_argument("--epochs", type=int, help="epochs of every method, in place of its own")
    options = parser.parse_args(arguments)
    keep_options(options.output, {"epochs": options.epochs})
    for data in options.data:
        for seed in options.seeds:
            for name in (*UNTRAINED, *options.methods):
                work(name, data, seed, options)
    write_table(options.output)
    print((options.output / "table.md").read_text(encoding="utf-8"))


def work(name: str, data: str, seed: int, options: argparse.Namespace) -> None:
    """Train, if there is something to train, and probe; leave what is finished."""
    kept = rows(options.output)
    if any((row["data"], int(row["seed"]), row["encoder"]) == (Path(data).name, seed, name) for row in kept):
        print(f"{Path(data).name}, seed {seed}, {name}: done already")
        return
    if name == PICTURES and data != "household":
        print(f"{Path(data).name}: not {name}, only the objects of household are known to have pictures")
        return
    folder = options.output / Path(data).name / f"seed{seed}" / name
    if name in METHODS:
        train(name, data, seed, folder, options.epochs)
    row = probe(name, data, seed, folder)
    check_same_data(row, kept, options.output)
    write_csv(options.output / "results.csv", FIELDS, [*kept, row])
    write_table(options.output)


def train(method: str, data: str, seed: int, output: Path, epochs: int | None) -> None:
    """Pre-train by the method's recipe; go on with what was interrupted, leave what is finished."""
    run = RunFolder(output)
    if run.is_finished():
        return
    if run.checkpoint.exists():
        pretrain.main(["--output", str(output), "--resume"])
        return
    recipe = configuration(method)
    if data != "household":
        recipe["data"]["train"] = {"class_path": "pc3d.data.ObjectSet", "init_args": {"root": data, "split": "train"}}
    if epochs is not None:
        recipe["trainer"]["max_epochs"] = epochs
    output.parent.mkdir(parents=True, exist_ok=True)
    config = output.parent / f"{method}.yaml"
    config.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    pretrain.main(["--config", str(config), "--output", str(output), "--seed", str(seed), "--overwrite"])


def configuration(method: str) -> dict[str, Any]:
    """The recipe of a method; that of Point-MAE is made of Point-CMAE's."""
    recipe: dict[str, Any] = yaml.safe_load((CONFIGS / f"{METHODS[method]}.yaml").read_text(encoding="utf-8"))
    recipe["trainer"]["max_epochs"] = EPOCHS.get(method, recipe["trainer"]["max_epochs"])
    if method == PICTURES:
        teach_by_pictures(recipe)
    if method == "Point-MAE":
        recipe["model"]["class_path"] = "pc3d.methods.PointMAE"
        recipe["model"]["init_args"]["encoder"]["init_args"]["num_cls_tokens"] = 0
    return recipe


def teach_by_pictures(recipe: dict[str, Any]) -> None:
    """Change the recipe of OpenShape: no names, no colours, the demonstration's encoder, and its upright objects."""
    recipe["model"]["init_args"] |= {"encoder": configuration("SimCLR")["model"]["init_args"]["encoder"]}
    recipe["model"]["init_args"]["text_weight"] = 0.0
    dataset = recipe["data"]["train"]["init_args"]["dataset"]
    pictured = {**dataset, "init_args": {**dataset["init_args"], "pictures": True}}
    tower = recipe["model"]["init_args"]["image_space"]
    live = {"class_path": "pc3d.image.LivePictures", "init_args": {"dataset": pictured, "tower": tower}}
    recipe["data"]["train"]["init_args"] = {"dataset": dataset, "images": live}
    kept = ("ChooseTargets", "RandomSubsample", "IsotropicScaleShift", "TurnSlightly")
    recipe["data"]["train_transforms"] = [
        one for one in recipe["data"]["train_transforms"] if one["class_path"].rpartition(".")[2] in kept
    ]


def probe(name: str, data: str, seed: int, run: Path) -> dict[str, Any]:
    """The row of an encoder that needs no training, or of the one that a run has trained."""
    encoder: Any = load_encoder(run) if name in METHODS else untrained(data, seed)[name]
    source, num_points = Path(data).name, int(architecture()["num_points"])
    splits = (objects(data, "train"), objects(data, "test"))
    found = demo.compare({name: encoder}, *splits, num_points=num_points, data=source, seed=seed)[name]
    result = found.to_dict()
    scores = {key: result["scores"][key] for key in SCORES}
    protocol = {key: result[key] for key in ("num_test", "train_hash", "test_hash")}
    versions = {"C": result["parameter"][1], "torch": result["versions"]["torch"]}
    return {"data": source, "seed": seed, "encoder": name, **scores, **protocol, **versions}


@lru_cache(maxsize=1)  # one row follows the other
def untrained(data: str, seed: int) -> dict[str, Any]:
    """What needs no training, of all four rows that a data set has for a seed."""
    num_points = int(architecture()["num_points"])
    return dict(demo.baselines(architecture(), objects(data, "train"), num_points=num_points, seed=seed))


def architecture() -> dict[str, Any]:
    """Arguments of the demonstration's encoder."""
    found: dict[str, Any] = configuration("Point-CMAE")["model"]["init_args"]["encoder"]["init_args"]
    return found


def objects(data: str, split: Literal["train", "test"]) -> ObjectSet:
    """A split of a data set."""
    return Household(split) if data == "household" else ObjectSet(data, split)


def check_same_data(row: dict[str, Any], kept: list[dict[str, Any]], output: Path) -> None:
    """End if rows of before under the same name are of other objects."""
    for before in kept:
        if before["data"] == row["data"] and any(before[key] != row[key] for key in ("train_hash", "test_hash")):
            raise SystemExit(
                f"{output / 'results.csv'} holds rows of other objects under the name {row['data']!r}: choose another "
                "--output, or give the folder of before"
            )


def rows(output: Path) -> list[dict[str, Any]]:
    """A row per probe of everything that is finished, as text."""
    path = output / "results.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_table(output: Path) -> None:
    """``table.md`` from all finished probes."""
    found = rows(output)
    lines = []
    for data in sorted({row["data"] for row in found}):
        mine = [row for row in found if row["data"] == data]
        lines += [
            f"**{data}**, {mine[0]['num_test']} test objects, linear SVM on frozen features, "
            "mean ± sample standard deviation over seeds",
            "",
            "| encoder | seeds | overall accuracy (%) | mean class accuracy (%) |",
            "| --- | --- | --- | --- |",
        ]
        for name in (*UNTRAINED, *METHODS):
            of_name = [row for row in mine if row["encoder"] == name]
            if of_name:
                seeds = ", ".join(sorted({row["seed"] for row in of_name}, key=int))
                values = [mean_and_deviation([100 * float(row[key]) for row in of_name]) for key in SCORES]
                lines.append(f"| {name} | {seeds} | {values[0]} | {values[1]} |")
        lines.append("")
    (output / "table.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
