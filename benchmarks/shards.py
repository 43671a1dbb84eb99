"""Training from WebDataset shards against training from single files: shapes per second.

    python benchmarks/shards.py --output OUT [--shapes 200] [--repeats 5]

Writes the embedded objects in the layout of OpenShape's release (a pickled ``.npy`` file per shape: 10,000 points,
twelve pictures, five texts, features of 1280 numbers) and as shards of them, and reads both as ``openshape`` does, with
its augmentation, in batches of 20 by one process without workers:

- files: ``OpenShapeFiles``;
- shards, any order: ``AlignedShards``, which looks up where in a tar file each shape lies;
- shards, in their order: ``AlignedStream``, which reads whole tar files with WebDataset and shuffles in a buffer.

First the loader alone, then a step of training for every batch (forward, loss, backward, AdamW) of the small encoder of
``openshape_household`` on 1,024 of the points. All take turns; what is told is the median of the repeats, after one
that is not counted. Everything lies in the page cache of the system: this measures reading and unpacking, not a disk.
Writes ``shards.md``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from pc3d.cli._training import with_config
from pc3d.cli.pretrain import build_parser
from pc3d.data import (
    AlignedShards,
    AlignedStream,
    Household,
    OpenShapeFiles,
    PointBatch,
    PointDataset,
    PointLoader,
    RandomSubsample,
)
from pc3d.data.aligned_files import write_index, write_shard
from pc3d.data.transforms import Compose, Transform
from pc3d.methods import OpenShape, StepDecay
from pc3d.models import OpenShapePointBERT

POINTS, WIDTH, BATCH, PER_SHARD = 10_000, 1280, 20, 50
Loader = Callable[[], Iterable[PointBatch]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the data and shards.md")
    parser.add_argument("--shapes", type=int, default=200, help="a multiple of 20 (default: 200)")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    if given.shapes < BATCH or given.shapes % BATCH:
        parser.error(f"--shapes must be a multiple of {BATCH}, got {given.shapes}")
    torch.set_num_threads(1)
    files, shards, urls = write_data(given.output / f"data-{given.shapes}", given.shapes)
    transforms = recipe_transforms()
    steps = given.shapes // BATCH
    training = Training()
    loaders: dict[str, dict[str, Loader]] = {}
    for task, extra in (("loader alone", []), ("with training", [RandomSubsample(1024)])):
        augment: list[Transform] = [*transforms, *extra]
        loaders[task] = {
            "files": in_any_order(files, augment),
            "shards, any order": in_any_order(shards, augment),
            "shards, in their order": in_their_order(urls, steps, augment),
        }
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for repeat in range(given.repeats + 1):
        for task, ways in loaders.items():
            for way, batches in ways.items():
                seconds = timed(batches, training.step if task == "with training" else None, given.shapes)
                if repeat:
                    found.setdefault((task, way), []).append(seconds)
    text = table(found, given.shapes, given.output / f"data-{given.shapes}")
    (given.output / "shards.md").write_text(text, encoding="utf-8")
    print(text)


def write_data(folder: Path, count: int) -> tuple[PointDataset, PointDataset, list[str]]:
    """The same shapes as files and as shards; written once."""
    root, packed = folder / "files", folder / "shards"
    if not (packed / "train-index.npz").exists():
        (root / "split").mkdir(parents=True, exist_ok=True)
        packed.mkdir(exist_ok=True)
        records = [write_shape(root, number) for number in range(count)]
        (root / "split" / "train_all.json").write_text(json.dumps(records))
        whole = OpenShapeFiles(root)
        paths = [packed / f"train-{number:06}.tar" for number in range(-(-count // PER_SHARD))]
        for number, path in enumerate(paths):
            rows = range(PER_SHARD * number, min(PER_SHARD * (number + 1), count))
            write_shard(path, [whole.load(row) for row in rows])
        write_index(packed / "train-index.npz", paths)
    urls = [str(path) for path in sorted(packed.glob("*.tar"))]
    return OpenShapeFiles(root), AlignedShards(packed), urls


def write_shape(root: Path, number: int) -> dict[str, str]:
    household = Household("train")
    cloud, draw = household[number % len(household)], np.random.default_rng(number)
    assert cloud.rgb is not None
    rows = draw.integers(0, len(cloud), POINTS)

    def feature() -> dict[str, Any]:
        return {kind: draw.normal(size=(1, WIDTH)).astype(np.float32) for kind in ("original", "prompt_avg")}

    content = {
        "dataset": "Objaverse",
        "group": "000-000",
        "id": f"shape{number}",
        "xyz": cloud.xyz.numpy()[rows],
        "rgb": cloud.rgb.numpy()[rows],
        "image_feat": draw.normal(size=(12, WIDTH)).astype(np.float32),
        "thumbnail_feat": draw.normal(size=(1, WIDTH)).astype(np.float32),
        "text": [cloud.text],
        "text_feat": [feature()],
        "blip_caption": "a caption",
        "blip_caption_feat": feature(),
        "msft_caption": "another",
        "msft_caption_feat": feature(),
        "retrieval_text": ["from the web", "from elsewhere"],
        "retrieval_text_feat": [feature(), feature()],
    }
    path = root / f"shape{number}.npy"
    np.save(path, np.array(content, dtype=object), allow_pickle=True)
    return {"dataset": "Objaverse", "group": "000-000", "id": f"shape{number}", "data_path": path.name}


def recipe_transforms() -> list[Transform]:
    """The augmentation of the recipe of paper size."""
    arguments = with_config(["--config", "openshape", "--output", "unused"], "pretrain")
    config = yaml.safe_load(Path(arguments[1]).read_text(encoding="utf-8"))
    parser = build_parser()
    options = ["--output", "unused", "--model", "pc3d.methods.OpenShape"]
    options.append(f"--data.train_transforms={json.dumps(config['data']['train_transforms'])}")
    data = parser.instantiate(parser.parse_args(options)).data
    assert isinstance(data.train_transform, Compose)
    return data.train_transform.transforms


def in_any_order(dataset: PointDataset, augment: list[Transform]) -> Loader:
    loader = PointLoader(dataset, BATCH, transform=Compose(augment))
    return lambda: loader


def in_their_order(urls: list[str], steps: int, augment: list[Transform]) -> Loader:
    stream = AlignedStream(urls, 10**9, train_transforms=augment, batch_size=BATCH, buffer_size=PER_SHARD)
    endless = iter(stream.train_dataloader())  # as in a long epoch: the buffer is filled once, in the uncounted pass
    return lambda: itertools.islice(endless, steps)


class Training:
    """The small encoder and its optimiser, outside of Lightning."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        encoder = OpenShapePointBERT(128, 128, 2, 2, 256, 64, 32, 0.4, 32)
        self.method = OpenShape(encoder, text_dim=WIDTH, image_dim=WIDTH, optimisation=StepDecay(1e-3))
        self.method.log = lambda *_, **__: None  # type: ignore[method-assign]
        self.optimizer = torch.optim.AdamW(self.method.parameters(), lr=1e-3)

    def step(self, batch: PointBatch) -> None:
        self.optimizer.zero_grad()
        sides = self.method.sides(batch)
        found = self.method.losses(self.method.embed(batch), sides, None)
        torch.stack([one.loss for one in found.values()]).sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def timed(batches: Loader, step: Callable[[PointBatch], None] | None, count: int) -> tuple[float, float]:
    """Seconds on the clock and of the processor for one pass."""
    clock, processor, seen = time.perf_counter(), time.process_time(), 0
    for batch in batches():
        seen += len(batch)
        if step is not None:
            step(batch)
    assert seen == count
    return time.perf_counter() - clock, time.process_time() - processor


def table(found: dict[tuple[str, str], list[tuple[float, float]]], count: int, folder: Path) -> str:
    sizes = {
        name: sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file()) / count / 1e3
        for name in ("files", "shards")
    }
    lines = [
        "# Shapes per second, from files and from shards",
        "",
        f"{count} shapes of {POINTS:,} points in the layout of OpenShape's release ({sizes['files']:.0f} kB a shape) "
        f"and as shards ({sizes['shards']:.0f} kB), median of {len(next(iter(found.values())))} passes that take "
        f"turns; one process without workers, 1 thread, {platform.machine()}, torch {torch.__version__}. "
        "Wall time depends on what else the machine does, processor time hardly.",
        "",
        "| | from | shapes a second of the processor | on the clock | lowest and highest, processor |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for (task, way), seconds in found.items():
        clock, processor = ([count / value for value in column] for column in zip(*seconds, strict=True))
        middle = f"{statistics.median(processor):.0f} | {statistics.median(clock):.0f}"
        lines.append(f"| {task} | {way} | {middle} | {min(processor):.0f} to {max(processor):.0f} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
