"""Make the pictures of pc3d view in docs/images: python docs/make_view_pictures.py [--runs FOLDER] [--only NAME ...].

Each is what a pc3d view command writes. The small runs that some need are trained first, in about a quarter of an hour
of one core, unless the folder has them. The pictures of the window need Open3D and a display (Xvfb will do).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
TOOLS = Path(__file__).parent.parent / "data_tools"
OBJECTS = ["--size", "420", "230"]
ROOM = ["--top", "0.15", "--view", "-55", "50", "--size", "400", "300"]
RUNS = {
    "point_cmae": ["pretrain", "--config", "point_cmae_household", "--trainer.max_epochs", "10"],
    "dcglr": ["pretrain", "--config", "dcglr_household", "--trainer.max_epochs", "6"],
    "openshape": ["pretrain", "--config", "openshape_household", "--trainer.max_epochs", "8"],
    "segment": ["segment", "train", "--config", "rooms_small_unet", "--trainer.max_epochs", "40"],
    "masked_scene": ["pretrain", "--config", "masked_scene_rooms", "--trainer.max_epochs", "30"],
}
PICTURES = {
    "view_objects.png": ["household:test:0,1,7", "--mode", "rgb", "height", "normal", "--columns", "3", *OBJECTS],
    "view_room.jpg": [
        *("rooms:test:0", "--mode", "rgb", "height", "normal", "label", "instance"),
        *("--columns", "3", "--top", "0.15", "--view", "-55", "50", "--size", "330", "260"),
    ],
    "view_segmentation.jpg": ["segment", "--columns", "2", *ROOM],
    "view_reconstruction.png": ["point_cmae", "--item", "1", "7", "--size", "560", "420"],
    "view_masked_scene.jpg": [
        *("masked_scene", "--mode", "rgb", "mask", "--columns", "1"),
        *("--top", "0.15", "--view", "-55", "50", "--size", "860", "280"),
    ],
    "view_features.png": [
        *("household:test:7,107", "--encoder", "point_cmae", "--point", "0", "200"),
        *("--mode", "rgb", "features", "similarity", "--columns", "3", *OBJECTS),
    ],
    "view_attention.png": [
        *("dcglr", "--item", "1", "7", "--attention", "0", "1", "2", "3"),
        *("--mode", "attention", "--columns", "2", *OBJECTS),
    ],
    "view_text.png": [
        *("household:test:7,8", "--encoder", "openshape", "--text", "chair", "fan"),
        *("--mode", "rgb", "text", "--columns", "3", *OBJECTS),
    ],
    "view_turn.gif": ["household:test:7", "--size", "200", "220", "--frames", "24"],
}
# What the window shows: a run, an item of its data, the colours, and whether the top is left out.
WINDOWS = {
    "view_window.jpg": ("segment", 0, "prediction", 0.15),
    "view_window_mask.jpg": ("point_cmae", 1, "mask", 0.0),
}


def pc3d(*arguments: str | Path) -> None:
    """Run a command of pc3d."""
    print("pc3d", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "pc3d.cli.main", *map(str, arguments)], check=True)


def train(name: str, runs: Path) -> None:
    """A run, unless it is there."""
    if (runs / name / "encoder" / "config.json").is_file():
        return
    options: list[str | Path] = []
    if name == "openshape":
        features = runs / "household_features"
        if not features.is_dir():
            command = [sys.executable, str(TOOLS / "target_features.py"), str(features), "--templates", "none"]
            subprocess.run(command, check=True)
        for kind in ("texts", "images"):
            options += [f"--data.train.init_args.{kind}.init_args.folder", features / kind]
    pc3d(*RUNS[name], *options, "--output", runs / name, "--overwrite")


def window(path: Path, runs: Path) -> None:
    """What is on the screen when the window shows a run."""
    from PIL import ImageGrab

    from pc3d.cli._view_layers import Request, build, cut_top
    from pc3d.cli._view_runs import items_of_run
    from pc3d.viz.display import check_display
    from pc3d.viz.window import Window, point_size_for
    from pc3d.viz.window_state import WindowState

    check_display()
    name, item, mode, top = WINDOWS[path.name]
    width, height = 1080, 620
    run = runs / name
    view = cut_top(build(items_of_run(run, [item])[0], run, Request(), -55.0), top)
    size = point_size_for(view.num_points, width, height)
    elevation = 50.0 if top else 22.0
    shown = Window(WindowState(view, mode, point_size=size), -55.0, elevation, width, height)
    end = time.monotonic() + 15
    while time.monotonic() < end:
        shown.app.run_one_tick()
    place = shown.window.os_frame
    box = (place.x, place.y, place.x + place.width, place.y + place.height)
    ImageGrab.grab(box, xdisplay=os.environ.get("DISPLAY")).convert("RGB").save(path, quality=85, optimize=True)
    shown.window.close()
    while shown.app.run_one_tick():  # until there is no window: its threads would wait for that at the end
        pass


def main() -> None:
    """Make all pictures, or some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/view_pictures"), help="Where runs are kept.")
    parser.add_argument("--only", nargs="+", choices=[*PICTURES, *WINDOWS], help="Which pictures; all by default.")
    options = parser.parse_args()
    for name in options.only or [*PICTURES, *WINDOWS]:
        words = [WINDOWS[name][0]] if name in WINDOWS else PICTURES[name]
        for run in RUNS:
            if run in words:
                train(run, options.runs)
        if name in WINDOWS:
            window(IMAGES / name, options.runs)
        else:
            here = [str(options.runs / word) if word in RUNS else word for word in words]
            pc3d("view", *here, "--output", IMAGES / name, "--overwrite")


if __name__ == "__main__":
    main()
