"""Frames of others in ScanNet's ``.sens`` files, lifted by the commands that a user of ScanNet types.

No scan of ScanNet may be passed on, so frames that may are written as ``.sens`` files here, by a writer that shares no
code with the reader of :mod:`pc3d.data`: the frames as ScanNet's exporter left them in ``scannet_layout`` (a room of
real furniture models, seen by a simulated depth camera), five frames of the living room of the augmented ICL-NUIM data
(CC BY 3.0: Handa et al., 2014; Choi et al., 2015; rendered, with the noise of a depth camera), and one frame of a
Kinect (TUM RGB-D, CC BY 4.0: Sturm et al., 2012). ``lifting.py --samples`` calls this.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from pc3d.data import LiftedSet, PointCloud, ScanNet, SensFile, open_frames
from pc3d.data.frames import decode_picture
from pc3d.image import FeatureStore, ImageTower, LiftedFeatures, lift_frames
from pc3d.viz import feature_colors, render_scene

Array = NDArray[np.floating]
TOOLS = Path(__file__).resolve().parent.parent / "data_tools"
OFFICE, LIVING_ROOM = "scene9000_00", "icl_nuim"
TITLES = {OFFICE: "office, simulated depth camera", LIVING_ROOM: "living room (ICL-NUIM), points of one frame"}
SEEN_FROM = -60.0  # degrees, where render_scene stands
UNSEEN = 0.78  # grey of points that no picture shows
TURNED = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # ICL-NUIM's y is up
COLORS = 128  # of the picture


@dataclass(frozen=True)
class Shot:
    """One frame as it goes into a file: the colour picture's own bytes, depth ``(H, W)``, and the pose ``(4, 4)``."""

    color: bytes
    depth: NDArray[np.uint16]
    pose: Array


def write_sens(path: Path, shots: Sequence[Shot], intrinsic: Array, depth_shift: float = 1000.0) -> SensFile:
    """A ``.sens`` file of version 4 as ScanNet describes it, field by field; colour and depth of one camera."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {b"\xff\xd8": 2, b"\x89P": 1}  # by the first bytes of a JPEG and of a PNG
    height, width = decode_picture(shots[0].color).shape[:2]
    rows, columns = shots[0].depth.shape
    with path.open("wb") as file:
        name = b"StructureSensor"
        file.write(struct.pack("<I", 4) + struct.pack("<Q", len(name)) + name)
        for matrix in (intrinsic, np.eye(4), intrinsic, np.eye(4)):
            file.write(_square(matrix))
        file.write(struct.pack("<i", kinds[shots[0].color[:2]]) + struct.pack("<i", 1))
        file.write(struct.pack("<IIII", width, height, columns, rows))
        file.write(struct.pack("<f", depth_shift) + struct.pack("<Q", len(shots)))
        for number, shot in enumerate(shots):
            packed = zlib.compress(shot.depth.astype("<u2").tobytes())
            file.write(_square(shot.pose) + struct.pack("<QQ", number, number))
            file.write(struct.pack("<QQ", len(shot.color), len(packed)) + shot.color + packed)
        file.write(struct.pack("<Q", 0))  # readings of inertia
    read = SensFile(path)
    for number, shot in enumerate(shots):
        frame = read[number]
        same = {
            "color": np.array_equal(frame.color, decode_picture(shot.color)),
            "depth": np.array_equal(np.round(frame.depth.astype(np.float64) * depth_shift), shot.depth),
            "pose": np.array_equal(frame.pose, shot.pose.astype(np.float32)),
        }
        if not all(same.values()):
            wrong = ", ".join(field for field, equal in same.items() if not equal)
            raise ValueError(f"{path}: frame {number} was read otherwise than it was written: {wrong}")
    return read


def _square(matrix: Array) -> bytes:
    """Sixteen numbers, row by row."""
    whole = np.eye(4, dtype="<f4")
    whole[: len(matrix), : len(matrix)] = matrix
    return whole.tobytes()


def office(samples: Path, scans: Path, prepared: Path) -> int:
    """The scan in ScanNet's layout: prepared by the tool, its exported frames packed again."""
    layout, labels = samples / "scannet_layout", samples / "benchmark_metadata" / "scannet"
    _tool("prepare_scenes.py", "scannet", layout, prepared, "--other_split", "train", "--workers", "1", "--labels",
          labels / "scannetv2-labels.combined.tsv")  # fmt: skip
    frames = layout / "frames" / OFFICE
    shots = [
        Shot(
            (frames / "color" / f"{number}.jpg").read_bytes(),
            np.asarray(Image.open(frames / "depth" / f"{number}.png")).astype(np.uint16),
            np.loadtxt(frames / "pose" / f"{number}.txt"),
        )
        for number in range(len(list((frames / "pose").glob("*.txt"))))
    ]
    intrinsic = np.loadtxt(frames / "intrinsic" / "intrinsic_color.txt")
    return len(write_sens(scans / OFFICE / f"{OFFICE}.sens", shots, intrinsic))


def living_room(samples: Path, scans: Path, prepared: Path) -> int:
    """The first frame as a scan with the colours of its own pixels, the others as the frames to lift from."""
    root = samples / "real" / "rgbd_icl_nuim"
    lines = (root / "trajectory.log").read_text().split("\n")
    shots = []
    for number, path in enumerate(sorted((root / "depth").glob("*.png"))):
        pose = np.array([[float(word) for word in line.split()] for line in lines[5 * number + 1 : 5 * number + 5]])
        depth = np.asarray(Image.open(path)).astype(np.uint16)
        shots.append(Shot((root / "color" / f"{path.stem}.jpg").read_bytes(), depth, TURNED @ pose))
    camera = json.loads((root / "camera_primesense.json").read_text())
    intrinsic = np.array(camera["intrinsic_matrix"]).reshape(3, 3).T  # by columns there
    first = write_sens(scans / LIVING_ROOM / "first.sens", shots[:1], intrinsic)[0]
    folder = prepared / "train" / LIVING_ROOM
    folder.mkdir(parents=True)
    chosen = np.arange(0, int((first.depth > 0).sum()), 4)
    np.save(folder / "coord.npy", first.points()[chosen].astype(np.float32))
    np.save(folder / "color.npy", first.color[first.depth > 0][chosen])
    return len(write_sens(scans / LIVING_ROOM / f"{LIVING_ROOM}.sens", shots[1:], intrinsic))


def kinect(samples: Path, scans: Path) -> int:
    """One frame of a real sensor, with PNG colours and 5,000 to the metre: written and read, there is no second one."""
    root = samples / "real" / "rgbd_tum"
    depth = np.asarray(Image.open(root / "TUM_depth.png")).astype(np.uint16)
    intrinsic = np.array([[525.0, 0, 319.5], [0, 525.0, 239.5], [0, 0, 1]])
    shot = Shot((root / "TUM_color.png").read_bytes(), depth, np.eye(4))
    return len(write_sens(scans / "tum" / "tum.sens", [shot], intrinsic, depth_shift=5000.0))


def sens_rows(samples: Path, output: Path, colors: ImageTower, short_side: int) -> list[str]:
    """Rows of ``lifting.md``; writes ``sens_frames.png`` and, on the way, everything into ``output/sens``."""
    scans, prepared, features = (output / "sens" / name for name in ("scans", "prepared", "features"))
    if scans.exists():
        raise SystemExit(f"{output / 'sens'} is there already: choose another --output, or remove it")
    counts = [office(samples, scans, prepared), living_room(samples, scans, prepared), kinect(samples, scans)]
    rows = [f"| `.sens`: frames written and read, all pixels, depths and poses the same | {sum(counts) + 1} |"]
    _tool("lift_features.py", features, "--data", "scannet", "--root", prepared, "--frames", scans, "--short_side",
          str(short_side))  # fmt: skip
    plain = ScanNet(prepared, "train")
    joined, store = LiftedSet(plain, FeatureStore(features)), FeatureStore(features)
    pictures = []
    for name in (OFFICE, LIVING_ROOM):
        index = plain.ids.index(name)
        cloud, dense = plain[index], joined[index]
        lifted = lift_frames(cloud, open_frames(scans / name), colors)
        if not np.array_equal((store[name]["num_views"] > 0).numpy(), lifted.mask.numpy()):
            raise ValueError(f"{name}: the command and lift_frames see different points")
        if cloud.rgb is None:
            raise ValueError(f"{name}: the prepared scan has no colours")
        error = (lifted.features - cloud.rgb)[lifted.mask].abs().flatten().numpy()
        title = "the office" if name == OFFICE else "ICL-NUIM"
        rows.append(f"| `.sens`, {title}: points seen, of {len(cloud):,} | {lifted.mask.float().mean():.1%} |")
        rows.append(f"| error of lifted colours of 1, median | {np.median(error):.3f} |")
        rows.append(f"| mean | {error.mean():.3f} |")
        other = (cloud.rgb - cloud.rgb.roll(len(cloud) // 2, 0)).abs().flatten().numpy()
        rows.append(f"| of colours of other points, median | {np.median(other):.3f} |")
        camera = open_frames(scans / name)[0].pose[:3, 3] if name == LIVING_ROOM else None
        pictures.append((TITLES[name], views(cloud, lifted, dense, camera)))
    path = output / "sens_frames.png"
    draw(pictures).savefig(path)
    Image.open(path).convert("RGB").quantize(COLORS).save(path, optimize=True)
    return rows


def _tool(script: str, *options: object) -> None:
    command = [sys.executable, str(TOOLS / script), *map(str, options)]
    print("$ python", f"data_tools/{script}", *command[2:], flush=True)
    subprocess.run(command, check=True)


def views(cloud: PointCloud, lifted: LiftedFeatures, dense: PointCloud, camera: Array | None) -> list[Array]:
    """Pictures of the points' own colours, of those lifted, and of the lifted dense features' principal components.

    What one camera saw has no back: it is turned until that camera looks from where the picture is drawn from.
    """
    if cloud.rgb is None or dense.feature is None:
        raise ValueError("scans are drawn with their colours and lifted features, and one of them has none")
    seen, xyz = lifted.mask.numpy(), cloud.xyz.numpy()
    if camera is not None:
        x, y, _ = camera - xyz.mean(0)
        turn = np.deg2rad(SEEN_FROM) - np.arctan2(y, x)
        xyz = xyz @ np.array([[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    shown = [cloud.rgb.numpy().astype(np.float64), *(np.full((len(xyz), 3), UNSEEN) for _ in range(2))]
    shown[1][seen] = lifted.features[lifted.mask].numpy()
    shown[2][seen] = feature_colors([dense.feature.numpy()[seen]])[0] / 255
    return [render_scene(xyz, colors, width=420) for colors in shown]


def draw(rows: Sequence[tuple[str, list[Array]]]) -> Figure:
    """Scans below one another: as they are, with lifted colours, with lifted features."""
    figure = Figure(figsize=(10.5, 2.9 * len(rows)), dpi=100)
    FigureCanvasAgg(figure)
    titles = ("its own colours", "colours lifted from the .sens frames", "dense features lifted, as colours")
    for line, (scene, pictures) in zip(figure.subplots(len(rows), 3, squeeze=False), rows, strict=True):
        for axes, picture, title in zip(line, pictures, (f"{scene}: {titles[0]}", *titles[1:]), strict=True):
            axes.imshow(picture, interpolation="antialiased")
            axes.set_title(title, fontsize=8)
            axes.axis("off")
    figure.subplots_adjust(left=0.005, right=0.995, top=0.94, bottom=0.005, wspace=0.02, hspace=0.12)
    return figure
