"""What pre-training brings on scanned rooms: semantic segmentation with all labels and with few, and a linear probe.

    python benchmarks/rooms_table.py --output runs/rooms_table
    python benchmarks/rooms_table.py --output runs/rooms_table --data DATA/rooms --seeds 0 1 2 --models unet swin3d

For each seed and backbone (a sparse U-Net and a reduced Swin3D-S, on 10 cm voxels), the encoder is pre-trained on the
training rooms without labels: to reconstruct what is masked (:class:`pc3d.methods.MaskedScene`), and to find the same
in two views (:class:`pc3d.methods.SceneVICReg`), of which nothing or a part is masked. Then the backbone is trained to
segment, from scratch and from these encoders, with the labels of all training rooms, of 10 % of them (whole rooms,
drawn by the seed, at least two), and of 10 % of the points of each of them; budget and schedule are the same for all
starts. The linear probe reads the features of all levels of the encoder, untrained and pre-trained, without decoder.
With few labels the same is also done without decoder: a head reads the features of all levels
(:class:`pc3d.models.UpcastFeatures`), so that all but the head is pre-trained; a pre-trained encoder then learns at a
share of the rate (``ENCODER_RATE``), which was chosen on held-out training rooms. With 10 % of the points, and with all
of them, fine-tuning is also begun with the head of a linear probe of these points (``probe_first``), with the milder
colours of pre-training. Pre-training by two views has twice as many steps as that by masks, each of four views instead
of two. Everything is judged on all points of the test rooms, trained models as ``pc3d segment eval --use_fragments
false`` does; with ``--validate``, for tuning, on every fourth training room, which then is not trained on.

A run that is interrupted goes on where it stopped; what is finished is not computed again. Several processes may share
the work by ``--seeds`` and ``--models`` with one ``--output``. What results depend on is kept beside them in
``options.json``; a call with other data or options needs another ``--output``. Writes ``results.csv`` (a row per
score) and ``table.md``. The budget that is the default is a small one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from records import finished, keep_options, mean_and_deviation, replace, write_csv, write_json
from torch import nn

from pc3d.data import (
    CenterShift,
    ChromaticAutoContrast,
    ChromaticTranslation,
    Compose,
    GridSample,
    IsotropicScaleShift,
    LiftedSet,
    LimitedLabels,
    PointDataset,
    RandomColorDrop,
    RandomDropout,
    RandomFlip,
    RandomRotate,
    Rooms,
    SceneDataModule,
    Selection,
    SphereCrop,
    Transform,
    ViewPairs,
)
from pc3d.evaluation import SegmentationScores
from pc3d.evaluation.scene_probe import scene_linear_probe
from pc3d.image import FeatureStore
from pc3d.methods import MaskedScene, Method, Optimisation, RunFolder, SceneVICReg, pretrain
from pc3d.models import SparseUNet, Swin3D, UpcastFeatures, load_encoder
from pc3d.tasks import SegmentationOptimisation, SemanticSegmentation, evaluate_scenes, load_segmenter

VOXEL_SIZE = 0.1
MAX_POINTS = 5_000
"""Of a view, after sampling one point a voxel; a room has 4,000 to 23,000 voxels of 10 cm."""
SCENES_PER_STEP = 2
RADIUS = 2.0
"""Of one of two views of a room, in metres."""
MASK_RATIO = 0.4
"""Of two views that are masked, chosen on held-out training rooms; masked reconstruction has that of its class."""
STEPS_PER_EPOCH = 25
"""At least so many between two checkpoints; the data sets are repeated to that length."""


def sparse_unet() -> nn.Module:
    return SparseUNet((16, 32, 64, 128), (1, 1, 1, 1), VOXEL_SIZE, "xyz_rgb_normal")


def swin3d() -> nn.Module:
    return Swin3D(
        channels=(16, 48, 96),
        depths=(1, 2, 2),
        down_strides=(2, 2),
        voxel_size=VOXEL_SIZE,
        signals="xyz_rgb_normal",
        decoder_attention=False,
        drop_path=0.1,
    )


class Colors(NamedTuple):
    """How much the colours of views are varied: the largest offset, and the share of grey views."""

    translation: float
    drop: float


PRETRAINING = Colors(0.1, 0.1)
SEGMENTING = Colors(0.3, 0.4)
"""Strongly: with the labels of two rooms, the colour of their walls is what is learnt first. On held-out training rooms
this made 80 % of the points right instead of 64 %; with all labels it made no difference."""


@dataclass(frozen=True)
class Recipe:
    """How a backbone is built and trained."""

    name: str
    build: Callable[[], nn.Module]
    steps: dict[str, int]
    """With all labels and with few."""
    pretraining_steps: dict[str, int]
    """Of masked reconstruction, and of two views, masked or not."""
    learning_rate: float
    block_factor: float
    pretraining_rate: float


RECIPES = {
    "unet": Recipe(
        "sparse U-Net", sparse_unet, {"100": 800, "10": 300}, {"pretrained": 400, "views": 800}, 1e-2, 1.0, 3e-3
    ),
    "swin3d": Recipe(
        "Swin3D-S, reduced", swin3d, {"100": 400, "10": 150}, {"pretrained": 200, "views": 400}, 6e-3, 0.5, 2e-3
    ),
}
STARTS = {
    "scratch": "from scratch",
    "pretrained": "masked",
    "views": "two views",
    "masked_views": "masked two views",
}
RUNS = {"pretrained": "pretraining", "views": "pretraining-views", "masked_views": "pretraining-masked_views"}
"""Where an encoder was pre-trained."""
SHARES = {"100": 1.0, "10": 0.1}
ENCODER_ALONE = ("10-encoder", "points-encoder")
"""Few labels, and no decoder."""
PROBE_FIRST = ("points-probe", "100-probe")
"""No decoder, begun with the head of a linear probe."""
PROBE_STEPS = 150
PROBE_RATE = 1e-3
"""Of fine-tuning that begins with the head of a linear probe."""
ENCODER_RATE = {"scratch": 1.0, "pretrained": 0.3, "views": 0.1, "masked_views": 0.1}
"""Of the encoder beside its head, where there is no decoder; masked views have that of views."""
TASKS = {
    "100": "100 %",
    "100-probe": "100 %, no decoder, probe first",
    "10": "10 %",
    "10-encoder": "10 %, no decoder",
    "points-encoder": "10 % of points, no decoder",
    "points-probe": "10 % of points, no decoder, probe first",
}


@dataclass(frozen=True)
class Experiment:
    """One backbone with one seed."""

    model: str
    seed: int
    folder: Path
    train: PointDataset
    test: PointDataset
    options: argparse.Namespace

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.model]

    def steps(self, count: float) -> int:
        return max(1, round(self.options.steps * count))

    def new_backbone(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return self.recipe.build()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    # Voxels are where training had them: the grid starts at the lower side of the room, or floors fill two layers.
    train: PointDataset = Rooms("train", options.data, transform=CenterShift())
    test: PointDataset = Rooms("test", options.data, transform=CenterShift())
    keep_options(
        options.output,
        {
            "data": checksum((train, test)),
            "steps": options.steps,
            "pretraining": options.pretraining,
            "validate": options.validate,
        },
    )
    if options.validate:
        held_out = range(0, len(train), 4)
        test = Selection(train, held_out)
        train = Selection(train, [room for room in range(len(train)) if room not in held_out])
    for seed in options.seeds:
        for model in options.models:
            folder = options.output / model / f"seed{seed}"
            experiment = Experiment(model, seed, folder, train, test, options)
            for job in jobs(experiment, options.only, options.starts):
                job()
                write_table(options.output)
    write_table(options.output)
    print((options.output / "table.md").read_text(encoding="utf-8"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for runs, results.csv and table.md")
    parser.add_argument("--data", type=Path, help="folder of the large form; the rooms inside the package if left out")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of weights, data and few labels")
    parser.add_argument("--models", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--only", nargs="+", choices=["probe", *TASKS], default=["probe", *TASKS], help="what to do")
    parser.add_argument("--starts", nargs="+", choices=list(STARTS), default=list(STARTS), help="from where")
    parser.add_argument("--steps", type=float, default=1.0, help="of all trainings, times those of the recipes")
    parser.add_argument("--pretraining", type=float, default=1.0, help="its steps, times those of the recipes")
    parser.add_argument("--validate", action="store_true", help="judge on every fourth training room instead")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def checksum(data: tuple[PointDataset, ...]) -> str:
    """Of the stored rooms, wherever they lie."""
    digest = hashlib.sha256()
    for rooms in data:
        assert isinstance(rooms, Rooms)
        for room in rooms.paths:
            digest.update(f"{rooms.split} {room.name} ".encode() + hashlib.sha256(room.read_bytes()).digest())
    return digest.hexdigest()


def jobs(experiment: Experiment, only: list[str], starts: list[str]) -> Iterator[Callable[[], None]]:
    """What is to do, in an order that shows the probes first."""
    for start in starts:
        if start != "scratch":
            yield lambda start=start: pretrain_encoder(experiment, start)  # type: ignore[misc]
        if "probe" in only:
            yield lambda start=start: probe(experiment, start)  # type: ignore[misc]
    for task in sorted(set(only) & set(TASKS)):
        for start in starts:
            yield lambda task=task, start=start: segment(experiment, start, task, RUNS.get(start))  # type: ignore[misc]


def transforms(colors: Colors) -> list[Transform]:
    """Views whose voxel grid differs each time, up and down as well."""
    return [
        RandomDropout(0.5, probability=1.0),  # a voxel has eight points, and every one takes its time
        CenterShift(),
        RandomRotate("z", 180.0, probability=1.0),
        IsotropicScaleShift((0.9, 1.1), VOXEL_SIZE),
        RandomFlip(),
        ChromaticAutoContrast(probability=0.5),
        ChromaticTranslation(probability=1.0, ratio=colors.translation),
        RandomColorDrop(colors.drop, value=0.5),
        GridSample(VOXEL_SIZE),
        SphereCrop(MAX_POINTS),
    ]


def run(
    method: Any, rooms: PointDataset, folder: Path, steps: int, colors: Colors, features: FeatureStore | None = None
) -> None:
    """Train, or go on with what was interrupted; leave what is finished. ``features``: lifted ones of the rooms."""
    run_folder = RunFolder(folder)
    if run_folder.is_finished():
        return
    resume = run_folder.checkpoint.exists()
    # An epoch is every room equally often.
    length = len(rooms) * -(-SCENES_PER_STEP * min(STEPS_PER_EPOCH, steps) // len(rooms))
    repeated: PointDataset = Selection(rooms, [index % len(rooms) for index in range(length)])
    change: list[Transform] | None = transforms(colors)
    if features is not None:
        repeated, change = LiftedSet(repeated, features, transform=Compose(transforms(colors))), None
    pairs = None
    if isinstance(method, SceneVICReg):
        pairs, change = ViewPairs(transforms(colors), RADIUS), None
    data = SceneDataModule(
        train=repeated, train_transforms=change, train_collate=pairs, batch_size=SCENES_PER_STEP, seed=method.seed
    )
    options: dict[str, Any] = {"accelerator": "cpu", "enable_model_summary": False, "log_every_n_steps": 25}
    epochs = max(1, round(SCENES_PER_STEP * steps / length))
    pretrain(method, data, folder, resume=resume, overwrite=not resume, max_epochs=epochs, **options)


def pretrain_encoder(experiment: Experiment, start: str) -> None:
    """By masked reconstruction of the training rooms, or by two views of them, masked or not."""
    folder = experiment.folder / RUNS[start]
    if finished(folder / "time.json", "pre-training"):
        return
    started = time.process_time()
    optimisation = Optimisation(learning_rate=experiment.recipe.pretraining_rate, warmup_epochs=2)
    shared: dict[str, Any] = {"optimisation": optimisation, "seed": experiment.seed}
    if start == "pretrained":
        method: Method = MaskedScene(experiment.new_backbone(), head_dim=256, **shared)
    else:
        ratio = MASK_RATIO if start == "masked_views" else 0.0
        method = SceneVICReg(experiment.new_backbone(), mask_ratio=ratio, **shared)
    of_recipe = experiment.recipe.pretraining_steps["pretrained" if start == "pretrained" else "views"]
    steps = experiment.steps(experiment.options.pretraining * of_recipe)
    run(method, experiment.train, folder, steps, PRETRAINING)
    write_json(folder / "time.json", {"seconds": time.process_time() - started})


def probe(experiment: Experiment, start: str) -> None:
    """The linear probe of an encoder without decoder."""
    path = experiment.folder / f"probe-{start}.json"
    if finished(path, "probe"):
        return
    started = time.process_time()
    encoder = experiment.new_backbone() if start == "scratch" else load_encoder(experiment.folder / RUNS[start])
    scores = scene_linear_probe(UpcastFeatures(encoder), experiment.train, experiment.test, seed=experiment.seed)
    keep(path, scores, started, len(experiment.train))


def segment(experiment: Experiment, start: str, task: str, encoder: str | None = None, **head: Any) -> None:
    """Train to segment with the labels of a share of the rooms, and judge.

    Args:
        experiment: backbone, seed and data.
        start: where the backbone starts, for the name of the folder.
        task: one of ``TASKS``.
        encoder: run within the experiment's folder whose encoder it starts from; None starts from scratch.
        head: options of the head, for :class:`SemanticSegmentation`.
    """
    folder = experiment.folder / f"{start}-{task}"
    path = folder / "scores.json"
    if finished(path, "training"):
        return
    started = time.process_time()
    share = task.partition("-")[0]
    if share == "points":
        rooms: PointDataset = LimitedLabels(experiment.train, label_fraction=0.1, seed=experiment.seed)
    else:
        rooms = labelled(experiment.train, SHARES[share], experiment.seed)
    if task in PROBE_FIRST:
        head |= {"head": "linear", "probe_first": True}
    recipe, backbone = experiment.recipe, experiment.new_backbone()
    factor = ENCODER_RATE[start] if task in ENCODER_ALONE else 1.0
    module = SemanticSegmentation(
        UpcastFeatures(backbone) if task in (*ENCODER_ALONE, *PROBE_FIRST) else backbone,
        len(rooms.classes),
        rooms.classes,
        encoder=None if encoder is None else str(experiment.folder / encoder),
        # A probe is fitted without, and what is begun with one goes on so.
        class_weights=() if task in PROBE_FIRST else class_weights(rooms),
        optimisation=SegmentationOptimisation(
            learning_rate=PROBE_RATE if task in PROBE_FIRST else recipe.learning_rate,
            block_factor=recipe.block_factor,
            backbone_factor=factor,
        ),
        seed=experiment.seed,
        **head,
    )
    steps = PROBE_STEPS if task in PROBE_FIRST else recipe.steps["100" if share == "100" else "10"]
    run(module, rooms, folder, experiment.steps(steps), PRETRAINING if task in PROBE_FIRST else SEGMENTING)
    matrix = evaluate_scenes(load_segmenter(folder), experiment.test, use_fragments=False)
    keep(path, matrix.scores(rooms.classes), started, len(rooms))


def labelled(rooms: PointDataset, share: float, seed: int) -> PointDataset:
    """Some whole rooms, at least two; those of the same seed are the same for all models."""
    if share == 1.0:
        return rooms
    order = torch.randperm(len(rooms), generator=torch.Generator().manual_seed(seed))
    return Selection(rooms, order[: max(2, round(share * len(rooms)))].sort().values)


def class_weights(rooms: PointDataset) -> list[float]:
    """One over the root of each class's share of the labels, to which 1 % is added.

    Three quarters of the points are wall and floor; unweighted, a short training learns little else.
    """
    count = torch.zeros(len(rooms.classes))
    for index in range(len(rooms)):
        segment = rooms[index].segment
        assert segment is not None
        count += segment[segment >= 0].bincount(minlength=len(count))
    weights: list[float] = (count / count.sum() + 0.01).rsqrt().tolist()
    return weights


def keep(path: Path, scores: SegmentationScores, started: float, num_rooms: int) -> None:
    values = {
        "miou": scores.miou_present,
        "macc": scores.macc * len(scores.classes) / scores.num_present,
        "allacc": scores.allacc,
        "num_classes": scores.num_present,
        "rooms": num_rooms,
        "seconds": time.process_time() - started,
        "iou": {name: scores.iou[k] for k, name in enumerate(scores.classes) if scores.support[k]},
    }
    write_json(path, values)
    print(f"{path}: mIoU {100 * scores.miou_present:.1f}, allAcc {100 * scores.allacc:.1f}")


FIELDS = ("model", "seed", "task", "start", "rooms", "miou", "macc", "allacc", "seconds")


def rows(output: Path) -> Iterator[dict[str, Any]]:
    """A row per score of everything that is finished."""
    for path in sorted([*output.glob("*/seed*/probe-*.json"), *output.glob("*/seed*/*/scores.json")]):
        of_probe = path.stem.startswith("probe-")
        start, _, task = (path.stem.removeprefix("probe-") if of_probe else path.parent.name).partition("-")
        folder = path.parent if of_probe else path.parent.parent
        values = json.loads(path.read_text(encoding="utf-8"))
        row = {"model": folder.parent.name, "seed": int(folder.name.removeprefix("seed")), "start": start}
        yield row | {"task": "probe" if of_probe else TASKS[task]} | {k: values[k] for k in FIELDS if k in values}


def write_table(output: Path) -> None:
    """``results.csv`` and ``table.md`` from everything that is finished."""
    found = list(rows(output))
    if not found:
        return
    write_csv(output / "results.csv", FIELDS, found)
    seeds = sorted({row["seed"] for row in found})
    lines = [
        f"Scanned rooms, mean ± sample standard deviation over seeds {', '.join(map(str, seeds))}; all points of all "
        "test rooms, means over the classes that occur in them, in %",
        "",
        "| backbone | labels | start | mIoU | mAcc | allAcc | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model, recipe in RECIPES.items():
        for task in (*TASKS.values(), "probe"):
            for start in STARTS:
                mine = [row for row in found if (row["model"], row["task"], row["start"]) == (model, task, start)]
                if mine:
                    lines.append(line(recipe.name, task, start, mine))
    replace(output / "table.md", "\n".join([*lines, ""]))


def line(name: str, task: str, start: str, mine: list[dict[str, Any]]) -> str:
    what, comma, how = ("linear probe" if task == "probe" else task).partition(",")
    labels = f"{what} ({mine[0]['rooms']} rooms){comma}{how}"
    begun = "untrained" if (task, start) == ("probe", "scratch") else STARTS[start]
    values = [mean_and_deviation([100 * row[key] for row in mine]) for key in ("miou", "macc", "allacc")]
    seconds = statistics.mean(row["seconds"] for row in mine)
    return f"| {name} | {labels} | {begun} | {' | '.join(values)} | {seconds:.0f} |"


if __name__ == "__main__":
    main()
