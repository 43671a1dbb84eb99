"""Real scans of others through ``pc3d segment predict``: what was scanned and what a model calls it, in one picture.

    python benchmarks/scene_samples.py --run RUN --data SAMPLES --output docs/images/scene_samples.png

SAMPLES, whose layout ``benchmarks/README.md`` tells, holds scans that may be shown with credit: two of the Point Cloud
Library (BSD), and five frames of the living room of the augmented ICL-NUIM data (CC BY 3.0: Handa et al., 2014; Choi et
al., 2015), a rendered room with the noise of a depth camera. They have no labels: nothing is scored. All that is done
to them is to turn z up, which the last two do not have, and to join the frames.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from pc3d.cli.main import main as pc3d
from pc3d.data import PointCloud, read_scene
from pc3d.viz import class_colors, height_colors, label_colors, render_scene

Array = NDArray[np.floating]
TITLES = {
    "laser_room": "laser scan of a room, no colours (PCL)",
    "stereo_table": "stereo scan of a table with a mug (PCL)",
    "rgbd_room": "five depth frames of a living room (ICL-NUIM)",
}
COLORS = 128
FOCAL, CENTRE, DEPTH_UNIT = 525.0, (319.5, 239.5), 0.001  # of the frames' camera, in pixels and metres
# The table's upright in the camera's axes: the normal of the plane that holds most of the scan's points.
TABLE_UP = (0.0063, -0.8459, -0.5334)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder of pc3d segment train")
    parser.add_argument("--data", type=Path, required=True, help="folder of the scans, see benchmarks/README.md")
    parser.add_argument("--width", type=int, default=420, help="of one view in pixels")
    parser.add_argument("--output", type=Path, required=True, help="PNG file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scenes = [write(options.data, Path(folder)) for write in (laser_room, stereo_table, rgbd_room)]
        found = Path(folder) / "labelled"
        if (code := pc3d(["segment", "predict", str(options.run), *map(str, scenes), "--output", str(found)])) != 0:
            raise SystemExit(code)
        draw(scenes, found, options.width).savefig(options.output)
    Image.open(options.output).convert("RGB").quantize(COLORS).save(options.output, optimize=True)


def laser_room(data: Path, folder: Path) -> Path:
    """The laser scan, whose z is up."""
    return _keep(folder / "laser_room.npz", read_scene(data / "real" / "pcd" / "room_scan1.pcd", drop_invalid=True))


def stereo_table(data: Path, folder: Path) -> Path:
    """The stereo scan, turned so that the table is level."""
    up = np.array(TABLE_UP) / np.linalg.norm(TABLE_UP)
    across = np.cross(up, np.cross([1.0, 0.0, 0.0], up))  # the camera's x, made level
    axes = np.stack([across / np.linalg.norm(across), np.cross(up, across / np.linalg.norm(across)), up])
    return _keep(
        folder / "stereo_table.npz",
        read_scene(data / "real" / "pcd" / "table_scene_mug_stereo_textured.pcd", drop_invalid=True),
        axes,
    )


def rgbd_room(data: Path, folder: Path) -> Path:
    """The frames with known poses in one cloud; y is up in theirs."""
    frames = data / "real" / "rgbd_icl_nuim"
    lines = (frames / "trajectory.log").read_text().split("\n")
    xyz, rgb = [], []
    for number, path in enumerate(sorted((frames / "depth").glob("*.png"))):
        pose = np.array([[float(word) for word in line.split()] for line in lines[5 * number + 1 : 5 * number + 5]])
        depth = np.asarray(Image.open(path), dtype=np.float64) * DEPTH_UNIT
        row, column = np.nonzero(depth)
        ahead = depth[row, column]
        seen = np.stack([(column - CENTRE[0]) * ahead, (row - CENTRE[1]) * ahead, FOCAL * ahead], axis=1) / FOCAL
        xyz.append(seen @ pose[:3, :3].T + pose[:3, 3])
        rgb.append(np.asarray(Image.open(frames / "color" / f"{path.stem}.jpg"))[row, column])
    turned = np.concatenate(xyz) @ np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]).T
    np.savez(folder / "rgbd_room.npz", xyz=turned.astype(np.float32), rgb=np.concatenate(rgb))
    return folder / "rgbd_room.npz"


def _keep(path: Path, cloud: PointCloud, axes: Array | None = None) -> Path:
    xyz = cloud.xyz.numpy() if axes is None else cloud.xyz.numpy() @ axes.T.astype(np.float32)
    np.savez(path, xyz=xyz, **({} if cloud.rgb is None else {"rgb": cloud.rgb.numpy()}))
    return path


def draw(scenes: list[Path], found: Path, width: int) -> Figure:
    """Scans beside one another, above the classes that they were given; the legend has those of a percent or more."""
    figure = Figure(figsize=(10.5, 5.2), dpi=100)
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(scenes), squeeze=False)
    seen: set[int] = set()
    for (above, below), path in zip(grid.T, scenes, strict=True):
        cloud = read_scene(path)
        with np.load(found / path.name) as stored:
            label, classes = stored["label"], [str(name) for name in stored["classes"]]
        counts = np.bincount(label, minlength=len(classes))
        seen |= set(np.flatnonzero(counts >= 0.01 * len(label)).tolist())
        xyz = cloud.xyz.numpy()
        colors = height_colors(xyz) if cloud.rgb is None else cloud.rgb.numpy()
        for axes, shown in ((above, colors), (below, label_colors(label, len(classes)))):
            axes.imshow(render_scene(xyz, shown, width=width), interpolation="antialiased")
            axes.axis("off")
            axes.set_anchor("N")
        above.set_title(TITLES[path.stem], fontsize=8)
    palette = class_colors(len(classes))
    handles = [Patch(color=palette[k], label=classes[k]) for k in sorted(seen)]
    figure.legend(handles=handles, loc="center right", fontsize=8, frameon=False)
    figure.subplots_adjust(left=0.005, right=0.87, top=0.95, bottom=0.005, wspace=0.02, hspace=0.03)
    return figure


if __name__ == "__main__":
    main()
