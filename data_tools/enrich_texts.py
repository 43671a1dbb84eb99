"""Give shapes more texts: captions by a model that sees, and texts of similar pictures from a bank; into new shards.

    python data_tools/enrich_texts.py SHARDS OUT --url http://localhost:8000/v1 --model NAME --captioner vlm
    python data_tools/enrich_texts.py SHARDS OUT --bank bank.npz --bank_count 5
    python data_tools/enrich_texts.py household OUT --features data/household_features --url ... --model ...

SHARDS is a folder that convert_openshape.py or this tool wrote; or give ``household`` or a folder in pc3d's object
format with pictures, and the features that target_features.py wrote. OUT gets shards with the targets of before and the
new ones beside them, read with ``pc3d.data.AlignedShards(OUT, SPLIT)``.

Captions come from any endpoint that speaks OpenAI's protocol (the key is read from OPENAI_API_KEY, if it is set), which
is shown a picture of each shape: of ``--pictures FOLDER`` ID.png or ID.jpg, else the set's own, else one drawn of the
points. They are of the kind ``caption:CAPTIONER``, which ``ChooseTargets`` draws beside those that are there.

The bank, an ``.npz`` file with ``features`` (M, D) of pictures by the tower that made the shapes' picture features,
``texts`` (M) and ``image_tower``, that tower's name, gives the texts of the pictures nearest to a shape's (OpenShape
took LAION-5B and says not how many texts). New texts get features of the tower that made those of before, captions over
templates and texts of the bank alone, as in the paper.

An interrupted run goes on when called again with the same options: captions are kept every few shapes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from convert_openshape import keep_options
from numpy.typing import NDArray
from tqdm import tqdm  # type: ignore[import-untyped]

from pc3d.data import (
    AlignedSet,
    AlignedShards,
    BadFileError,
    Household,
    MissingDataError,
    ObjectSet,
    PointCloud,
    PointDataset,
)
from pc3d.data.aligned_files import write_index, write_shard
from pc3d.data.chat import ChatEndpoint, EndpointCaptioner
from pc3d.data.enrichment import NearestTexts, enriched
from pc3d.data.shard_files import shard_members
from pc3d.image import (
    PHOTO,
    ULIP_TEMPLATES,
    FeatureStore,
    TextTower,
    fit,
    load_text_tower,
    on_background,
    prompt_ensemble,
    read_picture,
    render_points,
    view_set,
)

TEMPLATES = {"ulip": ULIP_TEMPLATES, "photo": PHOTO, "none": ("{}",)}
OPTIONS = ("source", "split", "features", "text_tower", "templates", "model", "captioner", "pictures", "bank")
CAPTIONS_BETWEEN_WRITINGS = 20


def shapes(given: argparse.Namespace) -> PointDataset:
    """The shapes with the targets that they have."""
    if given.features is None:
        return AlignedShards(given.source, given.split)
    household = given.source == "household"
    objects: ObjectSet = (
        Household(given.split, pictures=True)
        if household
        else ObjectSet(given.source, given.split, num_points=None, pictures=True)
    )
    stores = [FeatureStore(given.features / name) for name in ("texts", "images")]
    return AlignedSet(objects, *stores)


def picture_of(cloud: PointCloud, folder: Path | None) -> NDArray[np.uint8]:
    """What a captioner is shown of a shape, ``(H, W, 3)``."""
    if folder is not None:
        found = [folder / f"{cloud.meta['id']}{suffix}" for suffix in (".png", ".jpg", ".jpeg")]
        path = next((path for path in found if path.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"--pictures: there is no {found[0]}, and no .jpg")
        return on_background(read_picture(path))
    if cloud.image is not None:
        return cloud.image.numpy()
    center, factor = fit(cloud.xyz, "edge", 0.8)
    placed = cloud.replace(xyz=(cloud.xyz - center) * factor)
    return render_points(placed, view_set("openshape12", 384)[:1])[0].on()


def ask_captions(dataset: PointDataset, given: argparse.Namespace) -> dict[str, str]:
    """A caption of each shape by id, from the file where they are already there."""
    if given.url is None:
        return {}
    path = given.out / f"{given.split}-captions.json"
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    captioner = EndpointCaptioner(ChatEndpoint(given.url, given.model))

    def keep() -> None:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(found, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, path)

    try:
        for row in tqdm(range(len(dataset)), desc="captions", unit="shape", disable=None):
            cloud = dataset.load(row)
            if str(cloud.meta["id"]) in found:
                continue
            found[str(cloud.meta["id"])] = captioner(picture_of(cloud, given.pictures))
            if len(found) % CAPTIONS_BETWEEN_WRITINGS == 0:
                keep()
    finally:
        keep()
    return found


def read_bank(path: Path, count: int, tower: str) -> NearestTexts:
    """The bank, refused where its pictures were seen by another tower than the shapes'."""
    with np.load(path, allow_pickle=False) as file:
        missing = sorted({"features", "texts", "image_tower"} - set(file.files))
        if missing:
            raise BadFileError(path, f"has no {', '.join(missing)}: a bank is features (M, D), texts (M), image_tower")
        name = str(file["image_tower"])
        if tower and name and name != tower:
            raise ValueError(f"--bank: {path} is of {name}, the shapes' picture features are of {tower}")
        return NearestTexts(torch.from_numpy(file["features"]), [str(text) for text in file["texts"]], count)


def text_tower(dataset: PointDataset, name: str | None) -> TextTower:
    """The tower of the texts that are there, or the one that is named where they name none."""
    there = next((t for t in (dataset.load(row).meta["targets"].text_tower for row in range(len(dataset))) if t), "")
    if name is None and not there:
        raise ValueError("--text_tower: the texts that are there do not say which tower made their features: name it")
    tower = load_text_tower(name or there)
    if there and tower.name != there:
        raise ValueError(f"--text_tower: the texts that are there are of {there}, {tower.name} has another space")
    return tower


def enricher(
    dataset: PointDataset, captions: dict[str, str], given: argparse.Namespace
) -> Callable[[PointCloud], PointCloud]:
    """What makes a shape with more texts of one."""
    tower, templates = text_tower(dataset, given.text_tower), TEMPLATES[given.templates]
    pictures = dataset.load(0).meta["targets"].image_tower
    bank = None if given.bank is None else read_bank(given.bank, given.bank_count, pictures)

    def enrich(cloud: PointCloud) -> PointCloud:
        caption = captions.get(str(cloud.meta["id"]), "")
        targets = enriched(
            cloud.meta["targets"],
            lambda texts: prompt_ensemble(tower, texts, templates),
            picture=np.zeros((1, 1, 3), np.uint8),  # what was seen is in the caption
            captioners={given.captioner: lambda _: caption},
            retrieve=bank,
            encode_retrieved=tower.encode,
        )
        return cloud.replace(meta={**cloud.meta, "targets": replace(targets, text_tower=tower.name)})

    return enrich


def write(dataset: PointDataset, enrich: Callable[[PointCloud], PointCloud], given: argparse.Namespace) -> int:
    """Write the shards that are not there, and the index; returns the number of shapes."""
    paths: list[Path] = []

    def clouds(start: int) -> Iterator[PointCloud]:
        for row in range(start, min(start + given.shard_size, len(dataset))):
            yield enrich(dataset.load(row))
            bar.update()

    with tqdm(total=len(dataset), desc=given.split, unit="shape", disable=None) as bar:
        for start in range(0, len(dataset), given.shard_size):
            path = given.out / f"{given.split}-{start // given.shard_size:06}.tar"
            paths.append(path)
            if path.exists():
                bar.update(min(given.shard_size, len(dataset) - start))
                continue
            partial = path.with_name(f"{path.name}.partial")
            write_shard(partial, clouds(start))
            os.replace(partial, path)
    ids = [key.rpartition("/")[2] for path in paths for key, _, _ in shard_members(path)]
    labels = dict(zip(ids, dataset.labels.tolist(), strict=True))
    write_index(given.out / f"{given.split}-index.npz", paths, labels, dataset.classes)
    return len(ids)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder of shards, 'household', or a folder of objects with pictures")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--split", default="train", help="of SOURCE and in OUT (default: train)")
    parser.add_argument("--features", type=Path, help="of objects, what target_features.py wrote")
    parser.add_argument("--text_tower", help="LIBRARY:MODEL (default: the one that made the texts' features)")
    parser.add_argument("--templates", choices=TEMPLATES, default="ulip", help="that captions are put into")
    parser.add_argument("--url", help="of an endpoint, such as http://localhost:8000/v1; no captions when left out")
    parser.add_argument("--model", help="as the endpoint names it")
    parser.add_argument("--captioner", default="vlm", help="what its captions are called (default: vlm)")
    parser.add_argument("--pictures", type=Path, help="folder with ID.png or ID.jpg")
    parser.add_argument("--bank", type=Path, help="an .npz file; no retrieved texts when left out")
    parser.add_argument("--bank_count", type=int, default=5, help="texts a shape (default: 5)")
    parser.add_argument("--shard_size", type=int, default=1000, help="shapes per shard (default: 1000)")
    given = parser.parse_args(arguments)
    if (given.url is None) != (given.model is None):
        parser.error("--url and --model go together")
    if given.url is None and given.bank is None:
        parser.error("give --url and --model, or --bank, or both: without, there is nothing to add")
    if given.shard_size < 1:
        parser.error(f"--shard_size must be at least 1, got {given.shard_size}")
    try:
        dataset = shapes(given)
        given.out.mkdir(parents=True, exist_ok=True)
        numbers: dict[str, Any] = {"bank_count": given.bank_count, "shard_size": given.shard_size}
        options = {**{name: str(getattr(given, name)) for name in OPTIONS}, **numbers, "shapes": len(dataset)}
        keep_options(given.out / f"{given.split}-enrichment.json", options)
        captions = ask_captions(dataset, given)
        count = write(dataset, enricher(dataset, captions, given), given)
    except (BadFileError, MissingDataError, OSError, ValueError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)  # 128 + SIGINT, as pc3d ends
    print(f"{given.out / given.split}-index.npz: {count} shapes with more texts")


if __name__ == "__main__":
    main()
