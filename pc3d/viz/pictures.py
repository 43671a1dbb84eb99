"""Pictures and animations of views as files: one panel for each mode, with its legend or colour bar."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pc3d._extras import require
from pc3d.viz.camera import Viewpoint
from pc3d.viz.colors import gradient
from pc3d.viz.headless import BACKGROUND, Picture, check_mode, render
from pc3d.viz.view import View

_INK, _PALE = (30, 30, 30), (110, 110, 110)
_LINE, _MARGIN, _SWATCH, _BAR = 18, 8, 12, 16
_TEXT = 12


def panels(
    view: View,
    modes: Sequence[str],
    camera: Viewpoint,
    width: int = 640,
    height: int = 480,
    *,
    columns: int | None = None,
    point_size: float | None = None,
    max_points: int = 2_000_000,
) -> Picture:
    """A picture of a view in one or several modes, each with its name and what its colours mean.

    Args:
        view: what to show.
        modes: names of layers.
        camera: where from, :func:`pc3d.viz.camera.fit`.
        width: of a panel in pixels, without its legend.
        height: of a panel in pixels, without its title.
        columns: panels in a row; about as many as rows when None.
        point_size: see :func:`pc3d.viz.headless.render`.
        max_points: likewise.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        ValueError: no modes, or one that no cloud has.
    """
    if not modes:
        raise ValueError(f"modes is empty: choose among {', '.join(view.modes)}")
    for mode in modes:
        check_mode(view, mode)
    thin = view.thin(max(max_points, len(view.clouds)))
    shown = [_panel(thin, mode, camera, width, height, point_size) for mode in modes]
    columns = columns or math.ceil(math.sqrt(len(shown)))
    # Panels of one column are of one width, however wide the legend of each is.
    widths = [max(panel.shape[1] for panel in shown[start::columns]) for start in range(min(columns, len(shown)))]
    rows = []
    for start in range(0, len(shown), columns):
        row = [_padded(panel, widths[number]) for number, panel in enumerate(shown[start : start + columns])]
        rows.append(_padded(np.concatenate(row, axis=1), sum(widths)))
    picture = np.concatenate(rows)
    return _titled(picture, view.title) if view.title else picture


def write_picture(picture: Picture, path: str | os.PathLike[str]) -> None:
    """Write a picture; the ending of the path says in which format (``.png``, ``.jpg``, ``.webp``)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # PNG would take six times as long for a hundredth less.
    smallest = path.suffix.lower() in (".jpg", ".jpeg")
    _pillow("Image").fromarray(picture).save(path, optimize=smallest, quality=88)


def write_gif(frames: Sequence[Picture], path: str | os.PathLike[str], *, frames_per_second: float = 12.0) -> None:
    """Write pictures of one size as a GIF that loops.

    Raises:
        ValueError: no frames, or a rate that is not positive.
    """
    if not frames or not frames_per_second > 0:
        raise ValueError(f"a GIF needs frames and a positive rate, got {len(frames)} and {frames_per_second}")
    image = _pillow("Image")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # One palette for all frames, from the first: with one each, colours flicker.
    first = image.fromarray(frames[0]).quantize(128, dither=image.Dither.NONE)
    rest = [image.fromarray(frame).quantize(palette=first, dither=image.Dither.NONE) for frame in frames[1:]]
    duration = round(1000 / frames_per_second)
    first.save(path, save_all=True, append_images=rest, duration=duration, loop=0, optimize=True)


def _panel(view: View, mode: str, camera: Viewpoint, width: int, height: int, point_size: float | None) -> Picture:
    """The clouds in a mode, under the name of the mode and beside its legend, the clouds' names below them."""
    drawn = render(view, mode, camera, width, height, point_size=point_size, max_points=view.num_points)
    drawn = _named(drawn, view, camera) if len(view.clouds) > 1 else drawn
    return _titled(np.concatenate([drawn, legend(view, mode, len(drawn))], axis=1), mode)


def _named(picture: Picture, view: View, camera: Viewpoint) -> Picture:
    """The names of the clouds, each below its lowest pixel, for which room is made, cut where the next one stands."""
    height, width = picture.shape[:2]
    canvas, draw = _canvas(np.concatenate([picture, _blank(_LINE + _MARGIN, width)]))
    places = []
    for cloud in view.clouds:
        pixel, depth = camera.project(cloud.placed[:: max(1, len(cloud) // 20_000)], width, height)
        pixel = pixel[(depth > 0) & (pixel >= 0).all(1) & (pixel < (width, height)).all(1)]
        if len(pixel):
            middle = float(pixel[:, 0].min() + pixel[:, 0].max()) / 2
            # A point is a disc, which reaches below its middle.
            places.append((middle, float(pixel[:, 1].max()) + _LINE + _MARGIN / 2, cloud.name))
    for middle, bottom, name in places:
        beside = [abs(x - middle) for x, y, _ in places if abs(y - bottom) < 2 * _LINE and x != middle]
        shown = _cut(name, min([*beside, width]) - _MARGIN)
        draw.text((middle, bottom), shown, fill=_PALE, font=_font(), anchor="ms")
    return np.asarray(canvas)


def _cut(text: str, width: float) -> str:
    """A text that is no wider than so many pixels; dots stand for the rest."""
    if _width(text) <= width:
        return text
    kept = next((end for end in range(len(text), 0, -1) if _width(text[:end] + "…") <= width), 0)
    return text[:kept] + "…"


def legend(view: View, mode: str, height: int) -> Picture:
    """What the colours of a mode mean, ``(height, W, 3)``: classes, or a bar; W is 0 where there is nothing to say.

    Args:
        view: what is shown.
        mode: name of a layer.
        height: in pixels; classes that do not fit below each other stand in several columns.
    """
    entries, scale = view.legend(mode), view.scale(mode)
    if entries:
        lines = max(1, (height - _MARGIN) // _LINE)
        columns = [entries[start : start + lines] for start in range(0, len(entries), lines)]
        sizes = [_SWATCH + 2 * _MARGIN + max(_width(name) for name, _ in column) for column in columns]
        canvas, draw = _canvas(_blank(height, sum(sizes)))
        for number, column in enumerate(columns):
            left = sum(sizes[:number])
            for line, (name, color) in enumerate(column):
                top = _MARGIN + line * _LINE
                draw.rectangle((left, top, left + _SWATCH, top + _SWATCH), fill=color)
                draw.text((left + _SWATCH + 6, top + _SWATCH / 2), name, fill=_INK, font=_font(), anchor="lm")
        return np.asarray(canvas)
    if scale is None:
        return _blank(height, 0)
    length = min(height - 4 * _LINE, 220)
    if length < 20:
        return _blank(height, 0)
    labels = [f"{value:.3g}" for value in (scale.maximum, scale.minimum)]
    canvas, draw = _canvas(_blank(height, _BAR + 2 * _MARGIN + max(map(_width, [*labels, scale.unit]))))
    top = (height - length) // 2
    bar = gradient(scale.colormap, length)[::-1, None].repeat(_BAR, axis=1)
    canvas.paste(_pillow("Image").fromarray(np.ascontiguousarray(bar)), (0, top))
    for label, y in zip(labels, (top, top + length), strict=True):
        draw.text((_BAR + 5, y), label, fill=_INK, font=_font(), anchor="lm")
    draw.text((0, top - _LINE), scale.unit, fill=_PALE, font=_font(), anchor="lm")
    return np.asarray(canvas)


def _titled(picture: Picture, title: str) -> Picture:
    """The picture under a line of text."""
    canvas, draw = _canvas(_blank(_LINE + 6, picture.shape[1]))
    draw.text((_MARGIN, 4), title, fill=_INK, font=_font(), anchor="la")
    return np.concatenate([np.asarray(canvas), picture])


def _padded(picture: Picture, width: int) -> Picture:
    if picture.shape[1] == width:
        return picture
    return np.concatenate([picture, _blank(len(picture), width - picture.shape[1])], axis=1)


def _blank(height: int, width: int) -> Picture:
    return np.full((height, width, 3), BACKGROUND, np.uint8)


def _canvas(picture: Picture) -> tuple[Any, Any]:
    image = _pillow("Image").fromarray(picture)
    return image, _pillow("ImageDraw").Draw(image)


def _width(text: str) -> int:
    return math.ceil(_font().getlength(text)) if text else 0


def _font() -> Any:
    """DejaVu Sans, which comes with matplotlib and knows the letters of most languages."""
    folder = Path(require("matplotlib", extra="viz", purpose="pictures").get_data_path())
    return _pillow("ImageFont").truetype(str(folder / "fonts" / "ttf" / "DejaVuSans.ttf"), _TEXT)


def _pillow(module: str) -> Any:
    return require(f"PIL.{module}", extra="viz", purpose="pictures")
