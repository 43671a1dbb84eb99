"""Convert OpenShape's released training files into WebDataset shards with an index, as pc3d reads them at any size.

    python data_tools/convert_openshape.py ROOT SPLIT.json OUT [--name train] [--plain_texts] [--shard_size 1000]
        [--teacher open_clip:ViT-bigG-14/laion2b_s39b_b160k]

ROOT is where the paths of the list start (leading folders that are not there, such as the released ``/mnt/data``, are
left out); the list has records ``{dataset, group, id, data_path}``, or for evaluation ``{uid, group, category,
data_path}``. OUT gets ``NAME-000000.tar``, ... with one ``DATASET/ID.npz`` a shape,
``NAME-index.npz`` and ``NAME-conversion.json``, to be read with ``pc3d.data.AlignedShards(OUT, NAME)``.

Of each shape the points (float32, turned to z up), colours (uint8), texts and the features of texts and pictures
(float16) are kept; of names and captions the features averaged over prompt templates, or with ``--plain_texts`` those
of the text alone. 876 thousand shapes of 10,000 points take about 170 GB. Shards name the pair of towers that made the
features, and training for other towers refuses them: say ``--teacher`` where they are not the release's.

An interrupted run goes on where it stopped when called again with the same options. A damaged file stops the run by
name; ``--on_error report`` leaves it out and lists it at the end and in ``NAME-conversion.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from pc3d.data import BadFileError, MissingDataError, OpenShapeFiles, PointCloud
from pc3d.data.aligned_files import RELEASED_TOWER, key_part, write_index, write_shard
from pc3d.data.shard_files import shard_members


def clouds(dataset: OpenShapeFiles, rows: range, refuse: bool, skipped: list[str]) -> Iterator[PointCloud]:
    """The shapes of some rows, those that cannot be read listed."""
    for row in rows:
        try:
            yield dataset.load(row)
        except (BadFileError, MissingDataError) as error:
            if refuse:
                raise
            skipped.append(f"{dataset.records[row]['data_path']}: {str(error).splitlines()[0]}")


def convert_shard(dataset: OpenShapeFiles, rows: range, path: Path, refuse: bool) -> list[str]:
    """Write one shard, whole or not at all; returns what was left out."""
    torch.set_num_threads(1)
    skipped: list[str] = []
    partial = path.with_name(f"{path.name}.partial")
    write_shard(partial, clouds(dataset, rows, refuse, skipped))
    path.with_suffix(".skipped").write_text("".join(f"{line}\n" for line in skipped), encoding="utf-8")
    os.replace(partial, path)
    return skipped


def keep_options(path: Path, options: dict[str, Any]) -> None:
    """Write what the shards depend on, or refuse to mix them with others."""
    text = json.dumps(options, indent=1) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        sys.exit(f"{path} says that the shards there were made with other options: choose another folder or name")
    path.write_text(text, encoding="utf-8")


def run(given: argparse.Namespace) -> None:
    dataset = OpenShapeFiles(given.root, given.split, prompted=not given.plain_texts, tower=given.teacher)
    given.out.mkdir(parents=True, exist_ok=True)
    names = ("root", "split", "plain_texts", "shard_size", "on_error", "teacher")
    options = {name: str(getattr(given, name)) for name in names}
    record = given.out / f"{given.name}-conversion.json"
    keep_options(record, {**options, "shapes": len(dataset)})
    starts = range(0, len(dataset), given.shard_size)
    plan = {
        given.out / f"{given.name}-{number:06}.tar": range(start, min(start + given.shard_size, len(dataset)))
        for number, start in enumerate(starts)
    }
    missing = {path: rows for path, rows in plan.items() if not path.exists()}
    done = len(dataset) - sum(map(len, missing.values()))
    try:
        with tqdm(total=len(dataset), initial=done, desc=given.name, unit="shape", disable=None) as bar:
            for path in written(dataset, missing, given):
                bar.update(len(missing[path]))
    except BadFileError:
        if not any(path.exists() for path in plan):
            record.unlink()  # nothing was made with these options: others may be tried
        raise
    finish(dataset, list(plan), given)


def written(dataset: OpenShapeFiles, shards: dict[Path, range], given: argparse.Namespace) -> Iterator[Path]:
    """Write shards, several at a time."""
    refuse = given.on_error == "refuse"
    if given.workers == 1:
        for path, rows in shards.items():
            convert_shard(dataset, rows, path, refuse)
            yield path
        return
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        try:
            jobs = {path: pool.submit(convert_shard, dataset, rows, path, refuse) for path, rows in shards.items()}
            for path, job in jobs.items():
                job.result()
                yield path
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def finish(dataset: OpenShapeFiles, shards: list[Path], given: argparse.Namespace) -> None:
    """Write the index, and say what was left out."""
    labels = dict(zip(map(key_part, dataset.ids), dataset.labels.tolist(), strict=True))
    write_index(given.out / f"{given.name}-index.npz", shards, labels, dataset.classes)
    skipped = [line for path in shards for line in path.with_suffix(".skipped").read_text("utf-8").splitlines()]
    kept = sum(len(shard_members(path)) for path in shards)
    print(f"{given.out / given.name}-index.npz: {kept} shapes in {len(shards)} shards, {len(skipped)} left out")
    for line in skipped:
        print(f"  left out {line}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="where the paths of the list start")
    parser.add_argument("split", type=Path, help="the list, a JSON file")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--name", default="train", help="of the split in OUT (default: train)")
    parser.add_argument("--plain_texts", action="store_true", help="features of texts alone, without templates")
    parser.add_argument(
        "--teacher",
        default=RELEASED_TOWER,
        metavar="LIBRARY:MODEL",
        help=f"pair of towers that made the features, '' if not known (default: {RELEASED_TOWER}, the release's)",
    )
    parser.add_argument("--shard_size", type=int, default=1000, help="shapes per shard (default: 1000)")
    parser.add_argument("--on_error", choices=["refuse", "report"], default="refuse", help="what to do with bad files")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores)")
    given = parser.parse_args(arguments)
    for name in ("shard_size", "workers"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(given, name)}")
    try:
        run(given)
    except (BadFileError, MissingDataError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)  # 128 + SIGINT, as pc3d ends


if __name__ == "__main__":
    main()
