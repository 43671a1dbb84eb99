"""The browser pictures of the documentation: the page of a view, the served view, the report of a run.

    pc3d demo --output runs/demo
    python benchmarks/screenshots.py --segmenter runs/rooms_table/unet/seed0/pretrained-100 --demo runs/demo

``make pictures`` makes them with the small runs that the other pictures of pc3d view need, without these two. Needs
Chromium (apt-get install chromium) and playwright. ``--segmenter`` is a run of pc3d segment train on the rooms,
``--demo`` a run of pc3d demo or pretrain on the household objects. Every step is what a user does: pc3d view --html and
a click, pc3d view --web, pc3d report.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

FLAGS = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
FLAGS += ["--enable-unsafe-swiftshader", "--use-gl=angle", "--use-angle=swiftshader"]  # WebGL without a GPU
PC3D = [sys.executable, "-m", "pc3d.cli.main"]
COLORS = 256
SECTIONS = {
    "Training curves": "report_curves.png",
    "Reconstructions": "report_reconstructions.png",
    "Frozen features": "report_probe.png",
    "Confusion matrix": "report_confusion.png",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segmenter", type=Path, required=True, help="run folder of pc3d segment train on rooms")
    parser.add_argument("--demo", type=Path, required=True, help="run folder of pc3d demo")
    parser.add_argument("--output", type=Path, default=Path("docs/images"), help="folder for the pictures")
    parser.add_argument("--only", nargs="+", choices=PAGES, default=list(PAGES), help="which pages")
    parser.add_argument("--all_modes", action="store_true", help="also web_page_MODE.png for every mode, for a look")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("there is no Chromium: apt-get install chromium")
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=FLAGS)
        page = chromium.new_page(viewport={"width": 1120, "height": 640})
        page.set_default_timeout(120_000)
        for name in options.only:
            PAGES[name](page, Path(place), options)
        chromium.close()


def view_page(page: Any, place: Path, options: argparse.Namespace) -> None:
    """pc3d view --html: predictions, and the similarity to a point that was clicked."""
    file = place / "rooms.html"
    rooms = ["rooms:test:0", "rooms:test:1"]
    call = ["view", str(options.segmenter), *rooms, "--mode", "prediction", "error", "features", "--top", "0.2"]
    subprocess.run([*PC3D, *call, "--html", str(file)], check=True)
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-ready=yes]")
    keep(page, options.output / "web_page.png")
    page.mouse.click(270, 390)
    for button in page.locator("#modes button").all():
        mode = str(button.text_content())
        if options.all_modes or mode.startswith("similarity"):
            button.click()
            similar = mode.startswith("similarity")
            name = "web_similarity.png" if similar else f"web_page_{mode.replace(' ', '_')}.png"
            keep(page, options.output / name)


def served(page: Any, place: Path, options: argparse.Namespace) -> None:
    """pc3d view --web."""
    call = ["view", "rooms:test:1", "rooms:test:2", "--mode", "label", "--top", "0.2", "--web", "--port", "0"]
    server = subprocess.Popen([*PC3D, *call], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = next(line for line in server.stdout if line.startswith("serving on"))
        page.goto(line.split()[2])
        page.get_by_text("Click a point to select it.").wait_for()
        page.wait_for_timeout(8_000)  # the points arrive after the panel
        warning = page.locator(".mantine-Notification-closeButton")  # of drawing without a GPU
        if warning.count():
            warning.first.click()
        page.mouse.click(440, 380)
        page.wait_for_timeout(5_000)
        keep(page, options.output / "web_server.png")
    finally:
        server.terminate()
        server.wait()


def report(page: Any, place: Path, options: argparse.Namespace) -> None:
    """pc3d report: with the mouse on a point its map, and the sections that the documentation shows."""
    file = place / "report.html"
    subprocess.run([*PC3D, "report", str(options.demo), "--probe", "--output", str(file)], check=True)
    page.set_viewport_size({"width": 1240, "height": 900})
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-ready=yes]")
    for title, name in SECTIONS.items():
        section = page.locator("section").filter(has=page.get_by_role("heading", name=title, exact=True))
        section.scroll_into_view_if_needed()
        page.wait_for_timeout(1_500)  # plots are drawn when they come into view
        keep(section, options.output / name)
    points = page.locator(".plot.map path.point")
    points.nth(60).scroll_into_view_if_needed()
    points.nth(60).hover(force=True)
    page.locator(".card").wait_for(state="visible")
    keep(page, options.output / "report.png")


def keep(page: Any, path: Path) -> None:
    """The page, or a part of it, as a small PNG."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


PAGES = {"view": view_page, "server": served, "report": report}


if __name__ == "__main__":
    main()
