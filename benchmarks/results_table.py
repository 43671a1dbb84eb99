"""The table of results: every method that ships, pre-trained under one budget and judged by the same protocols.

    python benchmarks/results_table.py --output runs/results
    python benchmarks/results_table.py --output runs/results --data household DATA/components --seconds 60

Each method of ``METHODS`` is pre-trained on the training split by its recipe for two cores (``pc3d/configs/pretrain``)
for every seed, around one small encoder (``ENCODER``). The budget is the recipe's epochs, or ``--epochs`` for all, or
``--seconds``: then one epoch of each method is timed first, and it gets as many epochs as fit into so many CPU seconds,
its schedule included. Beside them stand what needs no training: PCA, a handcrafted descriptor, and the untrained
encoder, plain and with settled batch norm. Features are extracted once and judged by all frozen protocols;
``finetuning`` trains the whole encoder, and so does ``parts``, where the data have parts of points; it reads three
blocks, so it needs ``--depth 3`` or more.

What is finished is not computed again, an interrupted run goes on where it stopped, and several processes may share the
work by ``--seeds``, ``--methods`` or ``--data`` with one ``--output``; what results depend on is kept there in
``options.json``, and a call with other options needs another ``--output``. Rows of results are in
``DATA/seedN/METHOD/rows``; the tables are ``results.md``, ``results.csv``, ``rows.csv`` and ``results.png``, and
``--docs docs/results`` writes the first two there as well.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import comparisons
import torch
import yaml
from records import keep_options, replace, write_json

from pc3d import demo
from pc3d.cli import pretrain, results
from pc3d.cli._inputs import pooling_of
from pc3d.data import MODELNET_C, Household, ObjectSet
from pc3d.evaluation import (
    Encoder,
    Features,
    Row,
    extract_features,
    few_shot,
    knn_probe,
    linear_svm,
    mlp_probe,
    read_rows,
    retrieval,
    robustness,
    write_rows,
)
from pc3d.evaluation.cost import measured
from pc3d.evaluation.table import rows_to_csv, tabulate, to_csv, to_markdown
from pc3d.methods import RunFolder
from pc3d.models import load_encoder

CONFIGS = Path(pretrain.__file__).parents[1] / "configs"
NUM_POINTS = 1024
ENCODER = {
    "embed_dim": 128,
    "depth": 2,
    "num_heads": 4,
    "num_groups": 32,
    "group_size": 32,
    "tokenizer_dims": [16, 32, 64],
}
"""In place of the recipes', for all methods: so small that a minute or two of one core is many epochs. The depth is
``--depth``'s default."""


@dataclass(frozen=True)
class Method:
    """A row of the table: a shipped recipe of ``pc3d pretrain`` and what is changed in it.

    Attributes:
        name: in the table.
        recipe: name of the configuration.
        overrides: dotted path in the configuration to value; None removes the entry.
    """

    name: str
    recipe: str
    overrides: dict[str, Any] = field(default_factory=dict)

    def configuration(self, depth: int = ENCODER["depth"]) -> dict[str, Any]:
        """The recipe with the changes made."""
        config: dict[str, Any] = yaml.safe_load((CONFIGS / "pretrain" / f"{self.recipe}.yaml").read_text("utf-8"))
        for path, value in self.overrides.items():
            *sections, last = path.split(".")
            place = config
            for section in sections:
                place = place.setdefault(section, {})
            if value is None:
                place.pop(last, None)
            else:
                place[last] = value
        config["model"]["init_args"]["encoder"]["init_args"].update(ENCODER, depth=depth)
        return config


_CMAE = "point_cmae_household"
_POINT_MAE = {
    "model.class_path": "pc3d.methods.PointMAE",
    "model.init_args.encoder.init_args.num_cls_tokens": 0,
}


def _dcglr(objective: str) -> dict[str, Any]:
    """The recipe of DCGLR around the encoder of the others, on as many points of each object."""
    config = Method("", _CMAE, _POINT_MAE).configuration()
    return {
        "model.init_args.objective": objective,
        "model.init_args.encoder": config["model"]["init_args"]["encoder"],
        "data.train_transforms": config["data"]["train_transforms"],
        "trainer.max_epochs": config["trainer"]["max_epochs"],
    }


METHODS = (
    Method("Point-MAE", _CMAE, _POINT_MAE),
    Method("Point-CMAE, same token", _CMAE, {"model.init_args.contrast": "same_token"}),
    Method("Point-CMAE, all tokens", _CMAE, {"model.init_args.contrast": "all_tokens"}),
    Method("Point-CMAE without contrast", _CMAE, {"model.init_args.contrast_weight": 0.0}),
    Method("PCP-MAE", "pcp_mae_household"),
    Method("SimCLR", "simclr_household"),
    Method("MoCo v3", "moco_v3_household"),
    Method("VICReg", "vicreg_household"),
    Method("Barlow Twins", "barlow_twins_household"),
    Method("DCGLR, distillation", "dcglr_household", _dcglr("distill")),
    Method("DCGLR, contrast", "dcglr_household", _dcglr("contrast")),
    Method("DCGLR, both", "dcglr_household", _dcglr("both")),
)
UNTRAINED = (demo.PCA, demo.DESCRIPTOR, demo.UNTRAINED, demo.SETTLED)
ORDER = (*UNTRAINED, *(method.name for method in METHODS))


@dataclass(frozen=True)
class Judged:
    """What the protocols need to know of one method with one seed on one data set."""

    name: str
    encoder: Encoder
    train_set: ObjectSet
    test_set: ObjectSet
    data: str
    seed: int
    cost: dict[str, float]
    folder: Path
    options: argparse.Namespace

    @cached_property
    def features(self) -> tuple[Features, Features]:
        """Of both splits; once for all frozen protocols."""
        train, test = (
            extract_features(
                self.encoder,
                dataset,
                num_points=NUM_POINTS,
                pooling=pooling_of(self.encoder, None),
                data=self.data,
                split=split,
                name=self.name,
            )
            for dataset, split in ((self.train_set, "train"), (self.test_set, "test"))
        )
        return train, test

    def row(self, result: Any) -> Row:
        row: Row = result.to_row(self.name, self.cost)
        return row


def robust(judged: Judged) -> Row:
    """The mean over the corruptions of ModelNet-C and lower density."""
    return judged.row(
        robustness(
            judged.encoder,
            *judged.features,
            judged.test_set,
            corruptions=(*MODELNET_C, "density"),
            severities=judged.options.severities,
            seed=judged.seed,
        )
    )


def fine_tuned(judged: Judged) -> Row | None:
    """``pc3d classify train --mode full`` from the pre-trained weights, or from fresh ones of the seed."""
    if not trainable(judged):
        return None
    result = trained(judged, "classify", "household_small", judged.options.finetuning_epochs, num_cls_tokens=1)
    scores = {name: result["scores"][name] for name in ("overall_accuracy", "mean_class_accuracy")}
    return downstream_row(judged, "fine-tuning (full)", result, scores, judged.options.finetuning_epochs)


def parts_segmented(judged: Judged) -> Row | None:
    """``pc3d parts train`` from the pre-trained weights, or from fresh ones of the seed, where points have parts."""
    if not trainable(judged) or not judged.train_set.parts or judged.options.depth < 3:
        return None
    result = trained(judged, "parts", "objects_small", judged.options.parts_epochs, num_cls_tokens=0)
    scores = {name: result["scores"][name] for name in ("instance_miou", "class_miou")}
    return downstream_row(judged, "part segmentation", result, scores, judged.options.parts_epochs)


def trainable(judged: Judged) -> bool:
    """Not the handcrafted ones, nor batch norm that training settles anyway."""
    return isinstance(judged.encoder, torch.nn.Module) and judged.name != demo.SETTLED


def trained(judged: Judged, verb: str, recipe: str, epochs: int, num_cls_tokens: int) -> dict[str, Any]:
    """Train by the recipe of a verb around the encoder as it was built, or go on; the result on the test split."""
    run = RunFolder(judged.folder / verb)
    if not (run.path / "eval" / "test.json").exists():
        config = downstream_config(judged, CONFIGS / verb / f"{recipe}.yaml", epochs, num_cls_tokens)
        run.path.parent.mkdir(parents=True, exist_ok=True)
        path = run.path.parent / f"{verb}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        started = ["--resume"] if run.checkpoint.exists() else ["--config", str(path), "--overwrite"]
        command(verb, "train", *started, "--output", str(run.path), "--seed", str(judged.seed))
    result: dict[str, Any] = json.loads((run.path / "eval" / "test.json").read_text(encoding="utf-8"))
    return result


def downstream_config(judged: Judged, recipe: Path, epochs: int, num_cls_tokens: int) -> dict[str, Any]:
    encoder: Any = judged.encoder
    config: dict[str, Any] = yaml.safe_load(recipe.read_text("utf-8"))
    arguments = dict(encoder.config)
    if "num_cls_tokens" in arguments:
        arguments["num_cls_tokens"] = num_cls_tokens
    config["model"]["backbone"] = {"class_path": f"pc3d.models.{type(encoder).__name__}", "init_args": arguments}
    if judged.name != demo.UNTRAINED:
        config["model"]["encoder"] = str(judged.folder)
    if judged.data != "household":
        for split in ("train", "test"):
            config["data"][split]["class_path"] = "pc3d.data.ObjectSet"
            config["data"][split]["init_args"]["root"] = str(judged.train_set.root)
    config["trainer"]["max_epochs"] = epochs
    config["trainer"].update(enable_progress_bar=False, enable_model_summary=False)
    return config


def downstream_row(judged: Judged, protocol: str, result: dict[str, Any], scores: dict[str, float], epochs: int) -> Row:
    of_features = judged.row(knn_probe(*judged.features, protocol="fixed"))  # for the hash of the data
    return Row(
        method=judged.name,
        protocol=protocol,
        selection="validation",
        data=judged.data,
        data_hash=of_features.data_hash,
        seed=judged.seed,
        metrics=scores,
        num_train=result["num_train"],
        num_test=result["num_test"],
        config={"num_validation": result["num_validation"], "epochs": epochs},
        details={"selection": result["selection"]},
        versions=result["versions"],
        cost=judged.cost,
    )


PROTOCOLS: dict[str, Callable[[Judged], Row | None]] = {
    "svm": lambda judged: judged.row(linear_svm(*judged.features, protocol="tuned", seed=judged.seed)),
    "knn": lambda judged: judged.row(knn_probe(*judged.features, protocol="tuned", seed=judged.seed)),
    "mlp3": lambda judged: judged.row(mlp_probe(*judged.features, seed=judged.seed)),
    "fewshot": lambda judged: judged.row(few_shot(*judged.features, num_queries=None, seed=judged.seed)),
    "retrieval": lambda judged: judged.row(retrieval(*judged.features, center=True, seed=judged.seed)),
    "robustness": robust,
    "finetuning": fine_tuned,
    "parts": parts_segmented,
}


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    check_options(options)
    for data in options.data:
        for seed in options.seeds:
            for name in options.methods:
                run(name, data, seed, options)
            write_tables(options)
    write_tables(options)
    print((options.output / "results.md").read_text(encoding="utf-8"))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for runs, rows and tables")
    parser.add_argument("--data", nargs="+", default=["household"], help="'household' or folders of object shards")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of weights, training and judging")
    parser.add_argument("--methods", nargs="+", choices=ORDER, default=list(ORDER))
    parser.add_argument("--protocols", nargs="+", choices=list(PROTOCOLS), default=list(PROTOCOLS))
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--seconds", type=float, help="CPU seconds of each pre-training, in place of the recipe's epochs"
    )
    budget.add_argument("--epochs", type=int, help="epochs of each pre-training, not the recipe's")
    parser.add_argument("--finetuning_epochs", type=int, default=20)
    parser.add_argument("--depth", type=int, default=ENCODER["depth"], help="blocks of the encoder (default: 2)")
    parser.add_argument("--parts_epochs", type=int, default=10, help="of part segmentation")
    parser.add_argument("--severities", nargs="+", type=int, default=[1, 3, 5], help="levels of the corruptions")
    parser.add_argument("--quick", action="store_true", help="one epoch, one seed, two methods: does it all run?")
    parser.add_argument(
        "--docs", type=Path, help="also write results.md and .csv there, under this name, such as docs/results"
    )
    options = parser.parse_args(argv)
    if options.quick:
        options.seeds, options.epochs, options.seconds = [0], 1, None
        options.finetuning_epochs, options.parts_epochs = 1, 1
        options.severities = [3]
        options.methods = [demo.DESCRIPTOR, "Point-MAE"]
    for name in ("seconds", "epochs", "finetuning_epochs", "parts_epochs", "depth"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            parser.error(f"--{name} must be positive, got {value}")
    return options


RESULTS_DEPEND_ON = ("seconds", "epochs", "finetuning_epochs", "parts_epochs", "severities", "depth")


def check_options(options: argparse.Namespace) -> None:
    """Results in the output folder depend on these; data sets may join those there."""
    contents = {Path(data).name: checksum(data) for data in options.data}
    keep_options(options.output, {**{name: getattr(options, name) for name in RESULTS_DEPEND_ON}, "data": contents})


def checksum(data: str) -> str:
    """Of the files of a data set, wherever they lie."""
    digest = hashlib.sha256()
    for dataset in open_data(data):
        for path in sorted(dataset.root.glob(f"{dataset.split}*")):
            digest.update(f"{path.name} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def open_data(data: str) -> tuple[ObjectSet, ObjectSet]:
    if data == "household":
        return Household("train"), Household("test")
    return ObjectSet(data, "train"), ObjectSet(data, "test")


def where_from(data: str) -> str:
    """A sentence on a folder of data that does not come with pc3d, by what its own description says."""
    if data == "household":
        return ""
    said = json.loads(Path(data, "train.json").read_text(encoding="utf-8"))
    return (
        f"The folder `{Path(data).name}` does not come with pc3d: {said.get('source', 'it names no source')}; "
        f"{said.get('licence', 'no licence named')}.\n"
        "Its layout is that of `pc3d.data.ObjectSet`: [how such a folder is made](judge.md).\n"
    )


def run(name: str, data: str, seed: int, options: argparse.Namespace) -> None:
    """Pre-train one method with one seed, and judge it by every protocol that is missing."""
    folder = options.output / Path(data).name / f"seed{seed}" / slug(name)
    missing = [protocol for protocol in options.protocols if not (folder / "rows" / protocol).exists()]
    if not missing:
        print(f"{folder}: done already", flush=True)
        return
    train_set, test_set = open_data(data)
    method = next((method for method in METHODS if method.name == name), None)
    cost: dict[str, float] = {}
    encoder: Encoder
    if method is not None:
        cost = train(method, data, seed, folder, options)
        encoder = load_encoder(folder)  # type: ignore[assignment]
    else:
        config = METHODS[0].configuration(options.depth)["model"]["init_args"]["encoder"]["init_args"]
        with measured() as spent:
            encoder = demo.baselines(config, train_set, num_points=NUM_POINTS, seed=seed)[name]
        cost = {"pretraining_cpu_seconds": spent["cpu_seconds"]} if name in (demo.PCA, demo.SETTLED) else {}
    if isinstance(encoder, torch.nn.Module):
        cost["parameters"] = sum(parameter.numel() for parameter in encoder.parameters())
    judged = Judged(name, encoder, train_set, test_set, Path(data).name, seed, cost, folder, options)
    for protocol in missing:
        with measured() as spent:
            row = PROTOCOLS[protocol](judged)
        partial = folder / "rows" / f".{protocol}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if row is not None:
            # Of the first frozen protocol, the extraction of the features included.
            write_rows([dataclasses.replace(row, cost={**row.cost, "cpu_seconds": spent["cpu_seconds"]})], partial)
            first = next(iter(row.metrics.items()))
            print(f"{folder}: {row.protocol}, {first[0]} {100 * first[1]:.1f} %", flush=True)
        partial.rename(folder / "rows" / protocol)  # a protocol that does not apply leaves an empty folder


def train(method: Method, data: str, seed: int, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Pre-train in a process of its own, go on with what was interrupted, and say what it cost in all."""
    path = folder / "cost.json"
    cost: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if RunFolder(folder).is_finished() and cost:
        return cost
    config = method.configuration(options.depth)
    if data != "household":
        config["data"]["train"] = {"class_path": "pc3d.data.ObjectSet", "init_args": {"root": data, "split": "train"}}
    config["trainer"].update(enable_progress_bar=False, enable_model_summary=False)
    if options.epochs is not None:
        config["trainer"]["max_epochs"] = options.epochs
    if options.seconds is not None:
        per_epoch = seconds_per_epoch(method, config, data, options)
        config["trainer"]["max_epochs"] = max(1, round(options.seconds / per_epoch))
    spent, peak = pretrain_once(config, folder, seed)
    cost = {
        "pretraining_cpu_seconds": cost.get("pretraining_cpu_seconds", 0.0) + spent,
        "pretraining_peak_memory_bytes": max(cost.get("pretraining_peak_memory_bytes", 0.0), peak),
        "pretraining_epochs": config["trainer"]["max_epochs"],
    }
    write_json(path, cost)
    return cost


def seconds_per_epoch(method: Method, config: dict[str, Any], data: str, options: argparse.Namespace) -> float:
    """CPU seconds of an epoch: what three epochs take beyond one; measured once for all seeds."""
    path = options.output / Path(data).name / "timing" / f"{slug(method.name)}.json"
    if not path.exists():
        spent = []
        for epochs in (1, 3):
            short = {**config, "trainer": {**config["trainer"], "max_epochs": epochs}}
            spent.append(pretrain_once(short, path.with_suffix("") / f"epochs{epochs}", seed=0)[0])
        write_json(path, {"seconds": max((spent[1] - spent[0]) / 2, 1e-3)})
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])


def pretrain_once(config: dict[str, Any], folder: Path, seed: int) -> tuple[float, float]:
    """Run ``pc3d pretrain``, or go on with it; CPU seconds and peak memory in bytes, the start of Python included."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    run = RunFolder(folder)
    if run.checkpoint.exists() and not run.is_finished():
        return command("pretrain", "--resume", "--output", str(folder))
    return command("pretrain", "--config", str(path), "--output", str(folder), "--seed", str(seed), "--overwrite")


def command(*arguments: str) -> tuple[float, float]:
    """Run a verb of pc3d in a process of its own; its CPU seconds and peak memory in bytes."""
    with subprocess.Popen([sys.executable, "-m", "pc3d.cli.main", *arguments]) as process:
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except KeyboardInterrupt:
            process.terminate()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"pc3d {' '.join(arguments)} ended with exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024.0


def slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name.lower())


def write_tables(options: argparse.Namespace) -> None:
    """Tables and figure of everything that is finished, by whichever process."""
    rows = read_rows([options.output])
    table = tabulate(rows, order=ORDER)
    budgets = {"CPU second": options.seconds, "epoch": options.epochs}
    budget = "".join(f"{value:g} {unit}{'s' * (value != 1)}" for unit, value in budgets.items() if value is not None)
    names = sorted({row.data for row in rows})
    text = (
        f"# Results on {' and '.join(names)}\n\n"
        "One small encoder on small data sets, not a paper's numbers: pre-trained for "
        f"{budget or 'the epochs of each recipe'} by every method.\n"
        f"{''.join(map(where_from, options.data))}"
        "What is not said here is said by the script; single results are in the `rows.csv` that it writes:\n\n"
        f"```text\npython benchmarks/results_table.py {command_line(options, rows, names)}\n```\n\n"
        f"{to_markdown(table)}\n{comparisons.to_markdown(table, rows)}"
    )
    replace(options.output / "results.md", text)
    replace(options.output / "results.csv", to_csv(table))
    replace(options.output / "rows.csv", rows_to_csv(rows))
    results.draw(table, options.output / "results.png")
    if options.docs is not None:
        options.docs.parent.mkdir(parents=True, exist_ok=True)
        for ending in (".md", ".csv"):
            shutil.copyfile(options.output / f"results{ending}", options.docs.with_suffix(ending))


def command_line(options: argparse.Namespace, rows: Sequence[Row], names: Sequence[str]) -> str:
    """The options that make the same tables elsewhere; data sets by the names of their folders."""
    flags = ["--output FOLDER"]
    if list(names) != ["household"]:
        flags.append("--data " + " ".join(names))
    flags += [f"--{name} {value:g}" for name in ("seconds", "epochs") if (value := getattr(options, name)) is not None]
    flags.append("--severities " + " ".join(map(str, options.severities)))
    if any(row.protocol.startswith("fine-tuning") for row in rows):
        flags.append(f"--finetuning_epochs {options.finetuning_epochs}")
    if options.depth != ENCODER["depth"]:
        flags.append(f"--depth {options.depth}")
    if any(row.protocol.startswith("part segmentation") for row in rows):
        flags.append(f"--parts_epochs {options.parts_epochs}")
    if set(options.protocols) != set(PROTOCOLS):
        flags.append("--protocols " + " ".join(options.protocols))
    return " ".join(flags)


if __name__ == "__main__":
    main()
