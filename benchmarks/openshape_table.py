"""What aligning shapes with words and pictures gives on objects that training has not seen.

    python benchmarks/openshape_table.py --output runs/openshape_table

Trains the recipe ``openshape_household`` and its ablations with every seed: names alone, pictures alone, batches of
look-alikes, several positives. Judges each on the embedded test objects: recall of the object by its name and by its
preview picture (objects of one name answer it together), and classification by class names alone, whose texts are made
as ``pc3d zeroshot`` makes them. Beside them: chance, the encoder with fresh weights, and what the 2D towers do without
a 3D encoder, on the preview pictures, on pictures drawn of the clouds (``openshape12``, every third view), and on depth
maps of them.

A run that is interrupted goes on where it stopped, and what is finished is not computed again; several processes may
share the work by ``--seeds`` and ``--only``. With ``--validate``, for tuning, a fifth of the training objects is judged
on instead, and not trained on. Another budget needs another ``--output``. Writes ``results.csv`` (a row per score of a
seed) and ``table.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from records import keep_options, mean_and_deviation, replace, write_csv, write_json
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from pc3d.cli import _alignment
from pc3d.cli._training import with_config
from pc3d.cli.pretrain import build_parser
from pc3d.data import AlignedSet, ChooseTargets, Compose, Household, PointCloud, PointDataset
from pc3d.data.dataset import split_train_validation
from pc3d.evaluation import cross_modal_recall, extract_features, rank_classes
from pc3d.image import (
    FeatureStore,
    PictureFeatures,
    TextFeatures,
    clip2point_maps,
    extent,
    fit,
    load_image_tower,
    load_text_tower,
    pointclip_maps,
    precompute,
    render_points,
    view_set,
)
from pc3d.methods import OpenShape, RunFolder, pretrain
from pc3d.models import AlignedShapeEncoder, load_encoder

RECIPE = "openshape_household"
TEXT, IMAGE, BRIDGE = "offline:minilm", "offline:efficientnet-lite0", "offline:conse"
POINTS = 1024
VIEWS, PICTURE_SIZE = "openshape12", 224
RANKS = (1, 5, 10)
FIELDS = (*(f"{kind}@{k}" for kind in ("text", "picture") for k in RANKS), "top@1", "top@5")


@dataclass(frozen=True)
class Variant:
    """An ablation of the recipe.

    Attributes:
        title: in the table.
        options: of ``pc3d pretrain``, beside those of the recipe.
        pool: texts and pictures that an object has: 1 for its name and its preview alone, None for all.
        texts: of the pool, taken at a time.
        pictures: likewise.
        mined: batches are made of look-alikes in the second half of the training.
        images: which features of pictures are the targets.
    """

    title: str
    options: tuple[str, ...] = ()
    pool: int | None = 1
    texts: int = 1
    pictures: int = 1
    mined: bool = False
    images: str = "images"


MINING = ("--model.mining.group_size=5", "--model.mining.refresh_epochs=5")
SHARED = ("--model.encoder.init_args.embed_dim=384", "--model.text_dim=384", "--model.image_dim=384")
VARIANTS = {
    "both": Variant("trained: names and pictures (the recipe)"),
    "text": Variant("trained: names alone", ("--model.image_weight=0",)),
    "image": Variant("trained: pictures alone", ("--model.text_weight=0",)),
    "mining": Variant("trained: both, look-alikes mined", MINING, mined=True),
    "pool": Variant("trained: both, of several texts and pictures one at a time", pool=None),
    "multi": Variant("trained: both, several positives at once", pool=None, texts=2, pictures=3),
    "multi_mining": Variant("trained: several positives, look-alikes mined", MINING, None, 2, 3, True),
    "bridge_image": Variant(
        "trained: pictures alone, in the bridge's one space", ("--model.text_weight=0", *SHARED), images="bridge"
    ),
}


def main() -> None:
    given = parse()
    torch.set_num_threads(1)
    keep_options(given.output, {"epochs": given.epochs, "validate": given.validate})
    train_set, test_set = (Household(split, pictures=True) for split in ("train", "test"))
    train: PointDataset = train_set
    test: PointDataset = test_set
    store_features(given.output, train_set)
    if given.validate:
        train, test = split_train_validation(train_set, 0.2, 0)
    else:
        store_features(given.output, test_set)
    gallery = Gallery(test, given.output / "features" / ("train" if given.validate else "test"))
    references(given.output, gallery, train)
    for seed in given.seeds:
        for name in given.only:
            work(Experiment(name, seed, given, train), gallery)
            write_table(given.output)
    write_table(given.output)
    print((given.output / "table.md").read_text(encoding="utf-8"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for features, runs, results.csv, table.md")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of weights and batches")
    parser.add_argument("--epochs", type=int, default=40, help="of every training (default: 40, the recipe's)")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="ablations")
    parser.add_argument("--validate", action="store_true", help="judge on a fifth of the training objects instead")
    given = parser.parse_args()
    if given.epochs < 2:
        parser.error(f"--epochs must be at least 2, got {given.epochs}")
    return given


# ---- what shapes are compared with -------------------------------------------------------------------------------


def texts_of(cloud: PointCloud) -> list[str]:
    """The name, and if there are keywords the name with them."""
    name, tags = cloud.text or "", cloud.meta.get("tags") or []
    return [name, ", ".join([name, *tags])] if tags else [name]


def pictures_of(cloud: PointCloud) -> list[NDArray[np.uint8]]:
    """The preview picture, then drawings of the cloud."""
    assert cloud.image is not None
    center, factor = fit(cloud.xyz, *extent(VIEWS))
    drawn = render_points(cloud.replace(xyz=(cloud.xyz - center) * factor), view_set(VIEWS, PICTURE_SIZE)[::3])
    return [cloud.image.numpy(), *(one.on() for one in drawn)]


def store_features(output: Path, objects: Household) -> None:
    """Features of all texts and pictures of a split, in ``features/SPLIT/{texts,images,bridge}``."""
    folder = output / "features" / objects.split
    if (folder / "done").exists():
        return
    clouds = [objects.load(i) for i in range(len(objects))]
    ids = [str(cloud.meta["id"]) for cloud in clouds]
    text = TextFeatures(load_text_tower(TEXT), ("{}",))
    precompute(zip(ids, map(texts_of, clouds), strict=True), text, folder / "texts")
    pictures = list(map(pictures_of, tqdm(clouds, desc=f"{objects.split}: draw", disable=None)))
    for name, tower in (("images", IMAGE), ("bridge", BRIDGE)):
        with tqdm(total=len(ids), desc=f"{objects.split}: {name}", disable=None) as bar:
            items = zip(ids, pictures, strict=True)
            precompute(items, PictureFeatures(load_image_tower(tower)), folder / name, progress=lambda *_: bar.update())
    (folder / "done").touch()


@dataclass(frozen=True)
class Gallery:
    """The objects to be found, and what asks for them."""

    objects: PointDataset
    features: Path

    @cached_property
    def clouds(self) -> list[PointCloud]:
        return [self.objects.load(i) for i in range(len(self.objects))]

    @cached_property
    def names(self) -> list[str]:
        return list(dict.fromkeys(cloud.text or "" for cloud in self.clouds))

    @cached_property
    def relevant(self) -> dict[str, NDArray[np.bool_]]:
        """Which objects answer each name, and each picture."""
        by_name = np.array([[cloud.text == name for cloud in self.clouds] for name in self.names])
        return {"text": by_name, "picture": np.eye(len(self.clouds), dtype=bool)}

    @cached_property
    def name_vectors(self) -> Tensor:
        return _alignment.class_vectors(load_text_tower(TEXT), [[name] for name in self.names], ("{}",))

    @cached_property
    def class_vectors(self) -> Tensor:
        """As ``pc3d zeroshot`` makes them by default."""
        prompts = [[_alignment.spoken(name)] for name in self.objects.classes]
        return _alignment.class_vectors(load_text_tower(TEXT), prompts, _alignment.templates_of("ulip"))

    def pictures(self, kind: str) -> tuple[Tensor, Tensor]:
        """Unit features of the previews, and the mean of those of the drawings; ``kind`` is images or bridge."""
        store = FeatureStore(self.features / kind)
        rows = [normalize(store[str(cloud.meta["id"])]["image"], dim=1) for cloud in self.clouds]
        return torch.stack([row[0] for row in rows]), normalize(torch.stack([row[1:].mean(0) for row in rows]), dim=1)

    def recall(self, kind: str, queries: Tensor, shapes: Tensor) -> dict[str, float]:
        found = cross_modal_recall(
            (normalize(queries, dim=1) @ normalize(shapes, dim=1).T).numpy(), self.relevant[kind]
        )
        return {f"{kind}@{k}": value for k, value in found.recall.items()}

    def chance(self) -> dict[str, float]:
        scores = {f"top@{k}": k / len(self.objects.classes) for k in (1, 5)}
        for kind, relevant in self.relevant.items():
            found = cross_modal_recall(np.zeros(relevant.shape), relevant).chance
            scores |= {f"{kind}@{k}": value for k, value in found.items()}
        return scores

    def zero_shot(self, shapes: Tensor, texts: Tensor) -> dict[str, float]:
        labelled = self.objects.labels >= 0
        order, _ = rank_classes(shapes[labelled].numpy(), texts.numpy())
        hit = order == self.objects.labels[labelled].numpy()[:, None]
        return {f"top@{k}": float(hit[:, :k].any(1).mean()) for k in (1, 5)}


# ---- rows without training ---------------------------------------------------------------------------------------

REFERENCES = {
    "chance": "chance",
    "fresh": "the encoder and its heads, fresh weights",
    "tower": "image tower alone, drawings of the clouds",
    "tower_knn": "image tower, previews: 5 nearest labelled training previews",
    "bridge_drawn": "bridge, drawings of the clouds",
    "bridge": "bridge, previews",
    "depth_pointclip": "bridge, depth maps of the clouds as in PointCLIP",
    "depth_clip2point": "bridge, depth maps of the clouds as in CLIP2Point",
}


def references(output: Path, gallery: Gallery, train: PointDataset) -> None:
    """What needs no 3D encoder. A preview is not asked for among previews: it would find itself."""
    preview, drawn = gallery.pictures("images")
    bridged, bridged_drawn = gallery.pictures("bridge")
    names, classes = gallery.name_vectors, gallery.class_vectors
    rows = {
        "chance": gallery.chance(),
        "tower": gallery.recall("picture", preview, drawn),
        "tower_knn": nearest_previews(output, train, preview, gallery.objects.labels),
        "bridge_drawn": gallery.recall("text", names, bridged_drawn)
        | gallery.recall("picture", bridged, bridged_drawn)
        | gallery.zero_shot(bridged_drawn, classes),
        "bridge": gallery.recall("text", names, bridged) | gallery.zero_shot(bridged, classes),
    }
    for name, scores in rows.items():
        write_json(output / name / "seed0" / "scores.json", scores)
    for name in ("depth_pointclip", "depth_clip2point"):
        path = output / name / "seed0" / "scores.json"
        if not path.exists():
            shapes = mapped(gallery, name)
            scores = gallery.recall("text", names, shapes) | gallery.recall("picture", bridged, shapes)
            write_json(path, scores | gallery.zero_shot(shapes, classes))


def mapped(gallery: Gallery, name: str) -> Tensor:
    """Unit means over views of what the bridge says of depth maps."""
    tower, rows = load_image_tower(BRIDGE), []
    for cloud in tqdm(gallery.clouds, desc=name, disable=None):
        sparse = name == "depth_pointclip"
        maps = pointclip_maps(cloud.xyz) if sparse else clip2point_maps(cloud.xyz, tower.preprocessing)
        rows.append(normalize(tower.global_features(maps), dim=1).mean(0))
    return normalize(torch.stack(rows), dim=1)


def nearest_previews(output: Path, train: PointDataset, previews: Tensor, labels: Tensor) -> dict[str, float]:
    """Classified by the labels of training pictures: not zero-shot, but what pictures can tell of the classes."""
    store = FeatureStore(output / "features" / "train" / "images")
    chosen = [i for i in range(len(train)) if train.labels[i] >= 0]
    known = torch.stack([store[str(train.load(i).meta["id"])]["image"][0] for i in chosen])
    judge = KNeighborsClassifier(5, metric="cosine", weights="distance").fit(
        known.numpy(), train.labels[chosen].numpy()
    )
    keep = labels >= 0
    return {"top@1": float((judge.predict(previews[keep].numpy()) == labels[keep].numpy()).mean())}


# ---- trained rows ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Experiment:
    """One variant with one seed."""

    name: str
    seed: int
    given: argparse.Namespace
    train: PointDataset
    variant: Variant = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "variant", VARIANTS[self.name])

    @property
    def folder(self) -> Path:
        path: Path = self.given.output / self.name / f"seed{self.seed}"
        return path

    def build(self) -> Any:
        """Method and data of the recipe with the changes of the variant."""
        features = self.given.output / "features" / "train"
        options = ["--config", RECIPE, "--output", str(self.folder), "--seed", str(self.seed), *self.variant.options]
        if self.variant.mined:
            options.append(f"--model.mining.start_epoch={self.given.epochs // 2}")
        options += [f"--data.train.init_args.{kind}.init_args.folder={features / kind}" for kind in ("texts", "images")]
        parser = build_parser()
        parsed = parser.parse_args(with_config(options, "pretrain"))
        pl.seed_everything(self.seed, workers=True, verbose=False)
        objects = parser.instantiate(parsed)
        pool = {
            name: {item: {key: rows[: self.variant.pool] for key, rows in store[item].items()} for item in store}
            for name, store in (
                ("texts", FeatureStore(features / "texts")),
                ("images", FeatureStore(features / self.variant.images)),
            )
        }
        objects.data.train = AlignedSet(self.train, pool["texts"], pool["images"])
        _, *augment = objects.data.train_transform.transforms
        choose = ChooseTargets(self.variant.texts, self.variant.pictures)
        objects.data.train_transform = Compose([choose, *augment])
        return objects


def work(experiment: Experiment, gallery: Gallery) -> None:
    """Train, or go on with what was interrupted, and judge; leave what is finished."""
    path = experiment.folder / "scores.json"
    if path.exists():
        return
    objects = experiment.build()
    if experiment.name == "both":
        fresh = experiment.given.output / "fresh" / f"seed{experiment.seed}" / "scores.json"
        write_json(fresh, judge(objects.model.encoder, gallery, objects.model))
    run, started = RunFolder(experiment.folder), time.process_time()
    resume = run.checkpoint.exists()
    if not run.is_finished():
        trainer: dict[str, Any] = {"max_epochs": experiment.given.epochs, "accelerator": "cpu"}
        trainer |= {"enable_model_summary": False, "enable_progress_bar": False, "log_every_n_steps": 8}
        pretrain(objects.model, objects.data, run.path, resume=resume, overwrite=not resume, **trainer)
    seconds = time.process_time() - started
    scores = judge(load_encoder(run.path, expect=AlignedShapeEncoder), gallery, objects.model)
    # How long the part before an interruption took is not known.
    write_json(path, scores if resume else scores | {"seconds": seconds})
    told = ", ".join(f"{name} {100 * value:.1f}" for name, value in scores.items())
    print(f"{experiment.name}, seed {experiment.seed}: {told} ({seconds:.0f} s)", flush=True)


@torch.no_grad()
def judge(model: AlignedShapeEncoder, gallery: Gallery, method: OpenShape) -> dict[str, float]:
    """Scores of the spaces that were trained; with one space for both, the one serves the other."""
    options: dict[str, Any] = {"num_points": POINTS, "sampling": "random", "normalize": "centroid", "pooling": "none"}
    embedding = torch.from_numpy(extract_features(model, gallery.objects, **options).values)
    scores: dict[str, float] = {}
    if method.weights["text"] or model.shared:
        in_text = model.in_text_space(embedding)
        scores |= gallery.recall("text", model.text_targets(gallery.name_vectors), in_text)
        scores |= gallery.zero_shot(in_text, model.text_targets(gallery.class_vectors))
    if method.weights["image"]:
        preview, _ = gallery.pictures("bridge" if model.shared else "images")
        scores |= gallery.recall("picture", model.image_targets(preview), model.in_image_space(embedding))
    return scores


# ---- files -------------------------------------------------------------------------------------------------------


def rows(output: Path) -> Iterator[dict[str, Any]]:
    """A row per seed of everything that is finished, in the order of the table."""
    for name in (*REFERENCES, *VARIANTS):
        for path in sorted((output / name).glob("seed*/scores.json")):
            seed = int(path.parent.name.removeprefix("seed"))
            yield {"row": name, "seed": seed, **json.loads(path.read_text(encoding="utf-8"))}


def write_table(output: Path) -> None:
    """``results.csv`` and ``table.md`` from everything that is finished."""
    found = list(rows(output))
    write_csv(output / "results.csv", ("row", "seed", *FIELDS, "seconds"), found)
    given = json.loads((output / "options.json").read_text(encoding="utf-8"))
    judged = "a fifth of the training objects, held out" if given["validate"] else "the embedded test objects"
    lines = [
        f"Judged on {judged}, {given['epochs']} epochs each; %, mean ± sample standard deviation over seeds where "
        "there are several; recall of the object by its name (text) or its preview picture; classes by their names "
        "alone (zero-shot); seconds of one core",
        "",
        f"| | seeds | {' | '.join(FIELDS)} | seconds |",
        f"| --- {'| ---: ' * (len(FIELDS) + 2)}|",
    ]
    titles = REFERENCES | {name: variant.title for name, variant in VARIANTS.items()}
    for name, title in titles.items():
        mine = [row for row in found if row["row"] == name]
        if mine:
            cells = [mean_and_deviation([100 * row[key] for row in mine if key in row]) for key in FIELDS]
            seconds = [row["seconds"] for row in mine if "seconds" in row]
            told = f"{statistics.mean(seconds):.0f}" if seconds else ""
            seeds = ", ".join(str(row["seed"]) for row in mine) if name in ("fresh", *VARIANTS) else ""
            lines.append(f"| {title} | {seeds} | {' | '.join(cells)} | {told} |")
    replace(output / "table.md", "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
