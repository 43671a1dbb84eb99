"""Lift the dense features of an image tower onto the points of scans, once, for methods that distil them.

    python data_tools/lift_features.py OUT --data rooms --root ROOMS [--split train]
    python data_tools/lift_features.py OUT --data scenes --root PREPARED --frames FRAMES --short_side 288 --two_sided
    python data_tools/lift_features.py OUT --data scannet --root PREPARED --frames SCANS --frame_step 20 \
        --image_tower open_clip:ViT-B-16/laion2b_s34b_b88k --short_side 448 --unit

OUT gets shards of half precision features (``pc3d.image.FeatureStore``) of the points that a picture shows, and the
number of pictures of every point; ``pc3d.data.LiftedSet`` joins them with the scenes, as the configurations
distill_rooms, distill_folder and distill_scannet do. Several splits may go into one folder, one after the other. The
rooms need their large form, which has pictures. "scenes" are scans of your own, which data_tools/prepare_scenes.py has
prepared.

The frames of a scan are FRAMES/SCAN/SCAN.sens, or the folder FRAMES/SCAN with what ScanNet's exporter writes:

    color/N.jpg, depth/N.png          16-bit depth, 1000 to the metre (or --depth_shift), 0 for none
    pose/N.txt                        4 x 4, camera to scene: x right, y down, z forward
    intrinsic/intrinsic_color.txt, intrinsic_depth.txt     3 x 3 or 4 x 4, pinhole, in pixels of these pictures

SCAN is the name of the scan's folder in PREPARED, and poses lead to its coordinates. A shard per scan: an interrupted
run goes on when called again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]

from pc3d.data import Rooms, ScanNet, SceneFolder, open_frames
from pc3d.image import Scan, ScanFeatures, load_image_tower, precompute


def scans(given: argparse.Namespace) -> tuple[int, Iterator[tuple[str, Scan]]]:
    """How many there are, and each one's id and content."""
    if given.data == "rooms":
        rooms = Rooms(given.split, given.root)
        return len(rooms), ((str(room["name"]), scan(rooms, i, given)) for i, room in enumerate(rooms.rooms))
    if given.frames is None:
        raise SystemExit("--frames: say where the frames of the scans are")
    scenes = (ScanNet if given.data == "scannet" else SceneFolder)(given.root, given.split)
    return len(scenes), ((name, scan(scenes, i, given)) for i, name in enumerate(scenes.ids))


def scan(scenes: Rooms | SceneFolder, index: int, given: argparse.Namespace) -> Scan:
    if isinstance(scenes, Rooms):
        return Scan(scenes.load(index), scenes.frames(index), given.frame_step)
    frames = open_frames(given.frames / scenes.ids[index], given.depth_shift, cropped=given.cropped)
    return Scan(scenes.load(index), frames, given.frame_step)


def lift(given: argparse.Namespace) -> None:
    """Lift what was asked for, and tell it."""
    tower = load_image_tower(given.image_tower, given.weights)
    extractor = ScanFeatures(
        tower, tolerance=given.tolerance, two_sided=given.two_sided, short_side=given.short_side, unit=given.unit
    )
    count, items = scans(given)
    with tqdm(total=count, unit="scan", disable=None) as bar:
        store = precompute(items, extractor, given.out, shard_size=1, progress=lambda *_: bar.update())
    print(f"{given.out}: features of {len(store)} scans, {tower.dense_width} numbers per point, by {tower.name}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write to")
    sets = ["rooms", "scannet", "scenes"]
    parser.add_argument("--data", choices=sets, default="rooms", help="set of scenes (default: rooms)")
    parser.add_argument("--root", type=Path, required=True, help="its folder")
    parser.add_argument("--frames", type=Path, help="scannet, scenes: folder with a folder of frames per scan")
    parser.add_argument("--split", default="train", help="of the set (default: train)")
    parser.add_argument(
        "--image_tower",
        default="offline:efficientnet-lite0",
        help="LIBRARY:MODEL of pc3d.image.load_image_tower (default: offline:efficientnet-lite0)",
    )
    parser.add_argument("--weights", help="of open_clip and timm, a local file")
    parser.add_argument("--short_side", type=int, help="of the pictures, scaled, in pixels (default: the tower's own)")
    parser.add_argument("--frame_step", type=int, default=1, help="lift every so manyth frame (default: 1)")
    parser.add_argument(
        "--depth_shift", type=float, default=1000.0, help="stored depth of one metre in frames' folders (default: 1000)"
    )
    parser.add_argument(
        "--cropped",
        action="store_true",
        help="pictures in frames' folders were cut out of larger ones, their intrinsics moved with them",
    )
    parser.add_argument("--tolerance", type=float, default=0.05, help="metres between point and depth (default: 0.05)")
    parser.add_argument(
        "--two_sided", action="store_true", help="normals may point to either side of the surface, as estimated ones do"
    )
    parser.add_argument("--unit", action="store_true", help="normalise each picture's feature before averaging")
    given = parser.parse_args(arguments)
    for name in ("frames", "depth_shift", "cropped"):
        if given.data == "rooms" and getattr(given, name) != parser.get_default(name):
            parser.error(f"--{name} is for frames in folders of their own, and rooms hold theirs: leave it out")
    try:
        lift(given)
    except (OSError, ValueError) as error:  # no such folder, a file or frame that cannot be used, no weights
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)  # 128 + SIGINT, as pc3d ends


if __name__ == "__main__":
    main()
