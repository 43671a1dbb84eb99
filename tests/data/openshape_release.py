"""A small folder of OpenShape's released layout, made of real objects; features are numbers with a known meaning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from pc3d.data import Household

DIM = 6


def vector(*numbers: float) -> np.ndarray:
    return np.array([*numbers, *[0.5] * (DIM - len(numbers))], np.float32)


def shape(index: int, dataset: str, **changes: Any) -> dict[str, Any]:
    """A shape whose text features start with (index, number of the text, 1 if prompted), pictures with (index, 99+)."""
    cloud = Household("test", num_points=60)[index]
    assert cloud.rgb is not None
    x, y, z = cloud.xyz.numpy().astype(np.float64).T
    texts = [cloud.text or "", "a second name"][: 1 if dataset == "Objaverse" else 2]

    def text_feature(number: int) -> dict[str, np.ndarray]:
        return {"original": vector(index, number, 0)[None], "prompt_avg": vector(index, number, 1)[None]}

    content = {
        "dataset": dataset,
        "group": "000-000",
        "id": f"uid.{index}",
        "xyz": np.stack([x, z, -y], axis=1),  # y up
        "rgb": cloud.rgb.numpy(),
        "image_feat": np.stack([vector(index, 100 + view) for view in range(3)])[:, None].astype(np.float16),
        "thumbnail_feat": vector(index, 99)[None],
        "text": texts,
        "text_feat": [text_feature(number) for number in range(len(texts))],
        "blip_caption": "a caption",
        "blip_caption_feat": text_feature(10),
        "msft_caption": "",
        "msft_caption_feat": text_feature(11),
        "retrieval_text": ["on the web", "somewhere"],
        "retrieval_text_feat": [{"original": vector(index, 20, 0)}, {"original": vector(index, 21, 0)}],
    }
    return {**content, **changes}


def write_release(root: Path, shapes: list[dict[str, Any]], name: str = "train_all.json", **record: str) -> Path:
    """Write shapes and the list of them."""
    records = []
    for content in shapes:
        path = root / content["dataset"] / content["group"] / f"{content['id']}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.array(content, dtype=object), allow_pickle=True)
        keys = ("dataset", "group", "id")
        records.append({key: content[key] for key in keys} | {"data_path": str(path.relative_to(root))} | record)
    (root / "split").mkdir(exist_ok=True)
    (root / "split" / name).write_text(json.dumps(records))
    return root


def release(root: Path) -> Path:
    """Five shapes: Objaverse with everything, without captions, without any text, and two of other sets."""
    none: dict[str, Any] = {"blip_caption": "", "retrieval_text": [], "retrieval_text_feat": []}
    return write_release(
        root,
        [
            shape(0, "Objaverse"),
            shape(1, "Objaverse", **none),
            shape(2, "Objaverse", text=[], text_feat=[], **none),
            shape(3, "ABO"),
            shape(4, "3D-FUTURE", msft_caption="by azure"),
        ],
    )
