"""Recall of the embedded test objects by their names and by their preview pictures, with an aligned encoder.

    python benchmarks/openshape_recall.py RUN [--points 1024] [--templates none]

Objects of one name answer that name together. Prints recall@1, 5 and 10 with 95 % Wilson intervals, beside chance, and
the same for the encoder with fresh weights (its heads too), which is what the pipeline gives without training.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from pc3d.cli._alignment import class_vectors, open_aligned, open_image_tower, open_text_tower, templates_of
from pc3d.data import Household
from pc3d.evaluation import cross_modal_recall, extract_features
from pc3d.evaluation.result import percent, span
from pc3d.models import AlignedShapeEncoder
from pc3d.models.hub import ENCODERS


def similarities(model: AlignedShapeEncoder, objects: Household, given: argparse.Namespace) -> dict[str, np.ndarray]:
    """Cosines ``(Q, N)`` of all distinct names, and of all pictures, with all objects."""
    clouds = [objects.load(i) for i in range(len(objects))]
    names = list(dict.fromkeys(cloud.text or "" for cloud in clouds))
    text = class_vectors(open_text_tower(model, None), [[name] for name in names], templates_of(given.templates))
    pictures = [cloud.image.numpy() for cloud in clouds if cloud.image is not None]
    image = open_image_tower(model, None).encode(pictures)
    options = {"num_points": given.points, "sampling": "random", "normalize": "centroid", "batch_size": 16}
    joint = extract_features(model.view("joint"), objects, **options).values  # type: ignore[arg-type]
    with torch.no_grad():
        queries = {"text": model.joint_text(text), "picture": model.joint_image(image)}
    return {kind: vectors.numpy() @ joint.T for kind, vectors in queries.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder of the method OpenShape, such as of openshape_household")
    parser.add_argument("--points", type=int, default=1024, help="points per object (default: 1024)")
    parser.add_argument("--templates", default="none", help="that names are put into (default: none)")
    given = parser.parse_args()
    objects = Household("test", pictures=True)
    names = [objects.load(i).text or "" for i in range(len(objects))]
    distinct = list(dict.fromkeys(names))
    relevant = {
        "text": np.array([[name == query for name in names] for query in distinct]),
        "picture": np.eye(len(objects), dtype=bool),
    }
    trained = open_aligned(given.run)
    torch.manual_seed(0)
    fresh = ENCODERS["AlignedShapeEncoder"](**trained.config).eval()
    for title, model in (("trained", trained), ("fresh weights", fresh)):
        assert isinstance(model, AlignedShapeEncoder)
        for kind, similarity in similarities(model, objects, given).items():
            found = cross_modal_recall(similarity, relevant[kind])
            told = ", ".join(
                f"recall@{k} {percent(value)} ({span(found.interval[k])}; chance {percent(found.chance[k])})"
                for k, value in found.recall.items()
            )
            print(f"{title}, by {kind}: {told}; median rank {found.median_rank:g} of {found.num_shapes}")


if __name__ == "__main__":
    main()
