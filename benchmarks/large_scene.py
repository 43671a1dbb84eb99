"""One scene of a million points through trained models, from file to file: time, peak memory, and how good it is.

    python benchmarks/large_scene.py --runs runs/rooms_table/{unet,swin3d}/seed0/scratch-100 --output runs/large

Test rooms are set side by side, half a metre apart, again from the first where there are too few, until the scene has
the wanted number of points; it is written as a PLY file with colours and normals. Each run folder then labels it with
``pc3d segment predict`` in a process of its own, whose time includes starting Python, reading, the network, writing the
labels and the picture, and whose peak memory is what the kernel counted (resident, Linux). Labels are compared with the
true ones. Writes ``large_scene.md`` and ``large_scene.csv``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pc3d.data import PointCloud, Rooms, collate
from pc3d.evaluation import ConfusionMatrix
from pc3d.ops import voxelize

GAP = 0.5
"""Metres between rooms."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="run folders of pc3d segment train")
    parser.add_argument("--data", type=Path, help="folder of the large form; the rooms inside the package if left out")
    parser.add_argument("--points", type=int, default=1_000_000, help="at least so many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True, help="folder for the scene, the labels and the results")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rooms = Rooms("test", options.data)
    scene = side_by_side(rooms, options.points)
    path = options.output / "scene.ply"
    write_ply(path, scene)
    found = [measure(run, path, scene, rooms.classes, options) for run in options.runs]
    with (options.output / "large_scene.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    text = table(found, len(scene), options.threads)
    (options.output / "large_scene.md").write_text(text, encoding="utf-8")
    print(text)


def side_by_side(rooms: Rooms, num_points: int) -> PointCloud:
    """Whole rooms along x, at least ``num_points`` points."""
    placed: list[PointCloud] = []
    edge, count = 0.0, 0
    while count < num_points:
        room = rooms[len(placed) % len(rooms)]
        low, high = room.xyz.amin(0), room.xyz.amax(0)
        shift = torch.stack([edge - low[0], -low[1], -low[2]])
        placed.append(PointCloud(room.xyz + shift, rgb=room.rgb, normal=room.normal, segment=room.segment))
        edge += float(high[0] - low[0]) + GAP
        count += len(room)
    batch = collate(placed)
    return PointCloud(batch.xyz, rgb=batch.rgb, normal=batch.normal, segment=batch.segment)


def write_ply(path: Path, scene: PointCloud) -> None:
    """Binary, with normals and colours."""
    assert scene.rgb is not None
    assert scene.normal is not None
    names = ("x", "y", "z", "nx", "ny", "nz", "red", "green", "blue")
    rows = np.empty(len(scene), dtype=[(name, "<f4" if index < 6 else "u1") for index, name in enumerate(names)])
    columns = torch.cat([scene.xyz, scene.normal, (255 * scene.rgb).round()], dim=1).numpy()
    for index, name in enumerate(names):
        rows[name] = columns[:, index]
    properties = [f"property {'float' if index < 6 else 'uchar'} {name}" for index, name in enumerate(names)]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}", *properties, "end_header"]
    with path.open("wb") as file:
        file.write(("\n".join(header) + "\n").encode())
        rows.tofile(file)


def measure(
    run: Path, path: Path, scene: PointCloud, classes: tuple[str, ...], options: argparse.Namespace
) -> dict[str, Any]:
    """Label the scene as a user does; what that took, and the scores."""
    config = json.loads((run / "encoder" / "config.json").read_text(encoding="utf-8"))
    voxel_size = config["arguments"]["voxel_size"]
    labels = options.output / "-".join(run.parts[-3:])
    command = [
        sys.executable,
        "-m",
        "pc3d.cli.main",
        "segment",
        "predict",
        str(run),
        str(path),
        "--output",
        str(labels),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    started = time.perf_counter()
    child = os.posix_spawn(sys.executable, command, environment)
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    matrix = ConfusionMatrix(len(classes))
    assert scene.segment is not None
    with np.load(labels / f"{path.stem}.npz", allow_pickle=False) as written:
        matrix.update(torch.from_numpy(written["label"]).long(), scene.segment)
    scores = matrix.scores(classes)
    return {
        "run": "/".join(run.parts[-3:]),
        "model": config["class"],
        "points": len(scene),
        "voxel_size": voxel_size,
        "voxels": len(voxelize(scene.xyz, voxel_size).coords),
        "wall_seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mb": round(usage.ru_maxrss / 1024),
        "miou": round(scores.miou_present, 4),
        "allacc": round(scores.allacc, 4),
    }


def table(found: list[dict[str, Any]], num_points: int, threads: int) -> str:
    lines = [
        "# A large scene, from PLY file to labels",
        "",
        f"Test rooms side by side, {num_points:,} points; `pc3d segment predict` in a process of its own, one pass, "
        f"{threads} thread{'s' if threads > 1 else ''}; {platform.machine()}, torch {torch.__version__}. Wall time "
        "depends on what else the machine does, processor time hardly.",
        "",
        "| model | voxels | wall | processor | peak memory | mIoU | allAcc |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['model']} ({row['run']}) | {row['voxels']:,} of {100 * row['voxel_size']:g} cm "
        f"| {row['wall_seconds']:.0f} s | {row['cpu_seconds']:.0f} s | {row['peak_mb']:,} MB | {100 * row['miou']:.1f} "
        f"| {100 * row['allacc']:.1f} |"
        for row in found
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
