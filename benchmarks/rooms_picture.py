"""Test rooms, their labels, and what a trained model says of them, in one picture.

    python benchmarks/rooms_picture.py --run runs/rooms_table/unet/seed0/pretrained-100 --output rooms.png --data ROOMS

Shows the rooms of ``--rooms`` in the order given, without their ceilings.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pc3d.data import Rooms
from pc3d.tasks import load_segmenter, segment_scene
from pc3d.viz import class_colors, label_colors, render_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder of pc3d segment train")
    parser.add_argument("--data", type=Path, help="folder of the large form; the rooms inside the package if left out")
    parser.add_argument("--rooms", type=int, nargs="+", default=[0, 1], help="numbers of test rooms")
    parser.add_argument("--width", type=int, default=420, help="of one view in pixels")
    parser.add_argument("--output", type=Path, required=True, help="PNG file")
    options = parser.parse_args()
    data, segmenter = Rooms("test", options.data), load_segmenter(options.run)
    rows = []
    seen: set[int] = set()
    for index in options.rooms:
        room = data[index]
        assert room.rgb is not None
        assert room.segment is not None
        predicted = segment_scene(segmenter, room, use_fragments=False).label
        right = float((predicted == room.segment)[room.segment >= 0].float().mean())
        classes = [label_colors(labels.numpy(), len(data.classes)) for labels in (room.segment, predicted)]
        views = [render_scene(room.xyz.numpy(), colors, width=options.width) for colors in (room.rgb.numpy(), *classes)]
        rows.append((views, right))
        seen |= set(predicted.tolist()) | set(room.segment[room.segment >= 0].tolist())
    draw(rows, sorted(seen), data.classes).savefig(options.output)


def draw(rows: list[tuple[list[object], float]], seen: list[int], classes: tuple[str, ...]) -> Figure:
    """Rooms below one another: the scan, its labels, the prediction; classes that occur in the legend."""
    figure = Figure(figsize=(10.5, 2.6 * len(rows) + 0.3), dpi=100)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), 3, squeeze=False)
    for line, (views, right) in zip(grid, rows, strict=True):
        titles = ("scan", "label", f"prediction, {100 * right:.0f} % of the points right")
        for axes, view, title in zip(line, views, titles, strict=True):
            axes.imshow(view, interpolation="antialiased")
            axes.set_title(title, fontsize=9)
            axes.axis("off")
    palette = class_colors(len(classes))
    handles = [Patch(color=palette[k], label=classes[k]) for k in seen]
    figure.legend(handles=handles, loc="center right", fontsize=8, frameon=False)
    figure.subplots_adjust(left=0.005, right=0.87, top=0.95, bottom=0.005, wspace=0.02, hspace=0.12)
    return figure


if __name__ == "__main__":
    main()
