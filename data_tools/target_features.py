"""Compute the text and picture features that shapes are aligned with, once, for a set of objects with names and icons.

    python data_tools/target_features.py OUT [--data household] [--split train] \
        [--text_tower offline:minilm] [--image_tower offline:efficientnet-lite0] [--templates ulip]

OUT gets ``texts/`` and ``images/`` (``pc3d.image.FeatureStore``), to be joined with the set by
``pc3d.data.AlignedSet``, as the configuration openshape_household does. DATA is ``household`` or a folder in pc3d's
object format; without pictures (``SPLIT-icons.npz``) it gets ``texts/`` alone. An interrupted run goes on when called
again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]

from pc3d.data import Household, ObjectSet
from pc3d.image import (
    PHOTO,
    ULIP_TEMPLATES,
    PictureFeatures,
    TextFeatures,
    load_image_tower,
    load_text_tower,
    precompute,
)

TEMPLATES = {"ulip": ULIP_TEMPLATES, "photo": PHOTO, "none": ("{}",)}


def texts(objects: ObjectSet) -> Iterator[tuple[str, str]]:
    """Id and name of each object that has one."""
    for cloud in map(objects.load, range(len(objects))):
        if cloud.text:
            yield str(cloud.meta["id"]), cloud.text


def pictures(objects: ObjectSet) -> Iterator[tuple[str, np.ndarray]]:
    """Id and picture of each object."""
    for cloud in map(objects.load, range(len(objects))):
        assert cloud.image is not None
        yield str(cloud.meta["id"]), cloud.image.numpy()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--data", default="household", help="'household' or a folder (default: household)")
    parser.add_argument("--split", default="train", help="of the set (default: train)")
    parser.add_argument("--text_tower", default="offline:minilm", help="LIBRARY:MODEL (default: offline:minilm)")
    parser.add_argument(
        "--image_tower", default="offline:efficientnet-lite0", help="default: offline:efficientnet-lite0"
    )
    parser.add_argument(
        "--templates", choices=TEMPLATES, default="ulip", help="that names are put into (default: ulip)"
    )
    given = parser.parse_args(arguments)
    household = given.data == "household"
    shown = household or (Path(given.data) / f"{given.split}-icons.npz").is_file()
    try:
        options: dict[str, Any] = {"num_points": 1, "pictures": shown}  # clouds do not matter here
        objects = Household(given.split, **options) if household else ObjectSet(given.data, given.split, **options)
        work: list[tuple[str, Iterator[tuple[str, Any]], Any]] = [
            ("texts", texts(objects), TextFeatures(load_text_tower(given.text_tower), TEMPLATES[given.templates]))
        ]
        if shown:
            work.append(("images", pictures(objects), PictureFeatures(load_image_tower(given.image_tower))))
        else:
            print(
                f"{given.data} has no {given.split}-icons.npz: features of the names alone; train on them with "
                "--model.image_weight 0 --data.train.images null"
            )
        with tqdm(total=len(work) * len(objects), unit="item", disable=None) as bar:
            for name, items, extractor in work:
                store = precompute(items, extractor, given.out / name, progress=lambda *_: bar.update())
                print(f"{given.out / name}: features of {len(store)} objects")
    except (OSError, ValueError) as error:  # no such data, no weights, features that another tower computed
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)  # 128 + SIGINT, as pc3d ends


if __name__ == "__main__":
    main()
