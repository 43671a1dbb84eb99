"""How well features of pictures land on points: a real stereo pair, and rooms with posed colour and depth frames.

    pip install scikit-image  # for its stereo pair, Middlebury's motorcycle
    python benchmarks/lifting.py --rooms DATA/rooms --samples DATA/samples --output runs/lifting

Stereo: points are the left photograph's pixels at their measured depth. Points that the right camera does not see are
found by discs and by hidden point removal, and judged by whether the photographs agree there. Features of each
photograph are lifted onto the points that it sees, and a point's feature from the left is looked for among those from
the right.

Rooms: colours lifted from the frames are compared with the points' own, and a linear classifier of points is fitted on
lifted features of training rooms and judged on test rooms, against the same on plain colours.

``--samples`` writes posed frames as ScanNet's ``.sens`` files, lifts them by the commands of a user, compares the
colours with the points' own and draws ``sens_frames.png`` (``sens_frames.py``). Writes ``lifting.md``.
"""

from __future__ import annotations

import argparse
import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sens_frames import sens_rows
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import normalize

from pc3d.data import PointCloud, Rooms
from pc3d.image import (
    Camera,
    ImageTower,
    LiftedFeatures,
    Preprocessing,
    View,
    depth_edges,
    efficientnet_lite0,
    hidden_point_removal,
    lift,
    lift_frames,
    sample_map,
    visible_by_depth,
    visible_by_discs,
    xfeat,
)

# Of the picture at this size, from Middlebury 2014: focal length and principal point in pixels, baseline in metres.
FOCAL, CENTER, SHIFT, BASELINE = 994.978, (311.193, 254.877), 31.086, 0.193001
SHORT_SIDE = 288  # the rooms' frames are 192 x 144


class Colors(ImageTower):
    """Every pixel's feature is its own colour."""

    def __init__(self) -> None:
        super().__init__("colors", Preprocessing(8, (0, 0, 0), (1, 1, 1)), width=None, dense_width=3, stride=1)
        self.empty = torch.nn.Parameter(torch.zeros(0))

    def _dense(self, pixels: Tensor) -> Tensor:
        return pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for lifting.md")
    parser.add_argument("--rooms", type=Path, help="folder with the large form of the rooms, which has frames")
    parser.add_argument("--samples", type=Path, help="folder of frames of others, see benchmarks/README.md")
    parser.add_argument("--train_rooms", type=int, default=6, help="training rooms that the classifier is fitted on")
    parser.add_argument("--test_rooms", type=int, default=4, help="test rooms that it is judged on")
    options = parser.parse_args()
    lines = ["| measured | value |", "| --- | ---: |"]
    lines += stereo()
    if options.rooms is not None:
        lines += rooms(options.rooms, options.train_rooms, options.test_rooms)
    if options.samples is not None:
        lines += sens_rows(options.samples, options.output, Colors(), SHORT_SIDE)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "lifting.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def stereo() -> list[str]:
    """Rows of the stereo pair; none where scikit-image is not installed."""
    found = find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        print("no stereo pair: pip install scikit-image")
        return []
    folder = Path(found.submodule_search_locations[0]) / "data"
    files = (folder / f"motorcycle_{side}.png" for side in ("left", "right"))
    left, right = (np.asarray(Image.open(file).convert("RGB")) for file in files)
    with np.load(io.BytesIO((folder / "motorcycle_disp.npz").read_bytes())) as archive:
        disparity = archive["arr_0"].astype(np.float64)
    known = np.isfinite(disparity)
    depth = torch.from_numpy(np.where(known, BASELINE * FOCAL / (np.where(known, disparity, 0) + SHIFT), 0.0))
    height, width = depth.shape
    first, second = camera(0.0, 0.0, width, height), camera(SHIFT, BASELINE, width, height)
    pixel = first.pixel_centers()[depth.flatten() > 0]
    chosen = torch.randperm(len(pixel), generator=torch.Generator().manual_seed(0))[:20_000]
    pixel = pixel[chosen]
    xyz = first.back_project(pixel, depth.flatten()[depth.flatten() > 0][chosen])
    place, z = second.project(xyz)
    inside = second.inside(place, z)
    colors = [torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1) for picture in (left, right)]
    shown = [sample_map(picture, uv, width, height) for picture, uv in zip(colors, (pixel, place), strict=True)]
    difference = (shown[0] - shown[1]).abs().mean(dim=1)
    seen = {
        "discs": inside & visible_by_discs(second.resized(width // 2, height // 2), xyz),
        "hidden point removal": inside & hidden_point_removal(xyz, second.center),
    }
    rows = [f"| stereo: colour difference of 255, all points in the right picture | {difference[inside].mean():.1f} |"]
    for name, visible in seen.items():
        share = float(visible.sum() / inside.sum())
        rows.append(f"| points seen by {name} ({share:.0%}) | {difference[visible].mean():.1f} |")
        rows.append(f"| points hidden by {name} | {difference[inside & ~visible].mean():.1f} |")
    edge = depth_edges(depth, 0.1)[pixel[:, 1].long(), pixel[:, 0].long()]
    views = (
        (first, left, visible_by_depth(first, xyz, depth) & ~edge),
        (second, right, seen["discs"]),
    )
    for tower in (xfeat(), efficientnet_lite0(), Colors()):
        lifted = [lift(xyz, [View(cam, tower.encode_dense(picture), sees)]) for cam, picture, sees in views]
        both = torch.nonzero(lifted[0].mask & lifted[1].mask).flatten()[:4000]
        query, others = (normalize(each.features[both], dim=1) for each in lifted)
        error = (place[both[(query[:2000] @ others.T).argmax(1)]] - place[both[:2000]]).norm(dim=1)
        share = float((error < 16).float().mean())
        rows.append(f"| stereo: right within 16 pixels among 4,000 points, {tower.name} | {share:.1%} |")
    return rows


def camera(shift: float, x: float, width: int, height: int) -> Camera:
    """A camera of the pair; the right one is ``BASELINE`` further right, its principal point ``SHIFT`` pixels."""
    intrinsic = torch.tensor([[FOCAL, 0, CENTER[0] + shift + 0.5], [0, FOCAL, CENTER[1] + 0.5], [0, 0, 1]])
    pose = torch.eye(4)
    pose[0, 3] = x
    return Camera(intrinsic, pose, width, height)


def rooms(root: Path, num_train: int, num_test: int) -> list[str]:
    """Rows of the rooms."""
    train, test, tower, colors = Rooms("train", root), Rooms("test", root), efficientnet_lite0(), Colors()
    kept, loose, random = [], [], []
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {"train": [], "test": []}
    for name, dataset, count in (("train", train, num_train), ("test", test, num_test)):
        for index in range(count):
            cloud, frames = dataset[index], dataset.frames(index)
            parts[name].append(described(cloud, lift_frames(cloud, frames, tower, short_side=SHORT_SIDE)))
            print(f"{cloud.meta['id']}: lifted", flush=True)
            if name == "test":
                kept.append(color_error(cloud, lift_frames(cloud, frames, colors)))
                everything = lift_frames(cloud, frames, colors, tolerance=1e9, edge=None, max_degrees=180)
                loose.append(color_error(cloud, everything))
                assert cloud.rgb is not None
                random.append(float((cloud.rgb - cloud.rgb.roll(len(cloud) // 2, 0)).abs().mean()))
    rows = [
        f"| rooms: error of lifted colours of 1 | {np.mean(kept):.3f} |",
        f"| without visibility | {np.mean(loose):.3f} |",
        f"| of colours of other points | {np.mean(random):.3f} |",
    ]
    label = {name: torch.cat([part[2] for part in parts[name]]).numpy() for name in parts}
    for kind, title in ((0, "lifted EfficientNet-Lite0"), (1, "the points' own colours")):
        values = {name: torch.cat([part[kind] for part in parts[name]]).numpy() for name in parts}
        guess = LogisticRegression(max_iter=500, C=10).fit(values["train"], label["train"]).predict(values["test"])
        correct = guess == label["test"]
        classes = [correct[label["test"] == c].mean() for c in np.unique(label["test"])]
        rows.append(f"| rooms: linear classification of points, {title}: accuracy | {correct.mean():.1%} |")
        rows.append(f"| mean over {len(classes)} classes | {np.mean(classes):.1%} |")
    return rows


def described(cloud: PointCloud, lifted: LiftedFeatures, count: int = 4000) -> tuple[Tensor, Tensor, Tensor]:
    """Features, colours and classes of some points that were seen."""
    features, mask = lifted.features, lifted.mask
    assert cloud.segment is not None
    assert cloud.rgb is not None
    seen = torch.nonzero(mask & (cloud.segment >= 0)).flatten()
    seen = seen[torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))[:count]]
    return normalize(features[seen], dim=1), cloud.rgb[seen], cloud.segment[seen]


def color_error(cloud: PointCloud, lifted: LiftedFeatures) -> float:
    features, mask = lifted.features, lifted.mask
    assert cloud.rgb is not None
    return float((features - cloud.rgb)[mask].abs().mean())


if __name__ == "__main__":
    main()
