"""Parts of the view server besides viser: texts of the panel, the point of a click, pictures, addresses."""

from __future__ import annotations

import html
import io
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc3d._extras import require
from pc3d.viz.colors import gradient
from pc3d.viz.view import View, ViewCloud

FloatArray = NDArray[np.floating]
_STYLE = "padding:0 1em;font-size:0.85em;overflow-wrap:anywhere"
# How far beside the line of sight a click may be, as a share of the distance: a few pixels of a usual window.
_REACH = 0.006


def nearest_to_ray(points: FloatArray, origin: FloatArray, direction: FloatArray, radius: float = 0.0) -> int | None:
    """The row of the point that a line of sight meets: of those close to it, the one in front; None for none.

    Args:
        points: ``(N, 3)``.
        origin: ``(3,)`` where the line begins.
        direction: ``(3,)`` of any length.
        radius: of the points as they are drawn.
    """
    unit = direction / np.linalg.norm(direction)
    relative = points - origin
    along = relative @ unit
    beside = np.linalg.norm(relative - along[:, None] * unit, axis=1)
    near = radius + _REACH * along
    close = np.flatnonzero((along > 0) & (beside <= near))
    if not len(close):
        return None
    # Of a surface several points are close: of those about as near as the nearest, the one nearest to the line.
    first = along[close].min()
    front = close[along[close] <= first + 4 * (radius + _REACH * first)]
    return int(front[beside[front].argmin()])


def key_html(view: View, mode: str) -> str:
    """Legend and colour bar of a mode, all texts escaped; empty where it has none."""
    lines = []
    for text, color in view.legend(mode):
        swatch = f'<span style="color:rgb{tuple(color)}">&#9632;</span>'
        lines.append(f"<div>{swatch} {html.escape(text)}</div>")
    scale = view.scale(mode)
    if scale is not None:
        stops = ", ".join(f"rgb{tuple(color)}" for color in gradient(scale.colormap, 16).tolist())
        lines.append(f'<div style="height:10px;background:linear-gradient(to right, {stops})"></div>')
        ends = (f"{value:.3g} {html.escape(scale.unit)}" for value in (scale.minimum, scale.maximum))
        spans = "".join(f"<span>{end}</span>" for end in ends)
        lines.append(f'<div style="display:flex;justify-content:space-between">{spans}</div>')
    return f'<div style="{_STYLE};max-height:16em;overflow:auto">{"".join(lines)}</div>' if lines else ""


def selection_html(cloud: ViewCloud | None, row: int, origin: int | None = None) -> str:
    """What all layers say of a point, all texts escaped.

    Args:
        cloud: that the point is of; None for no point.
        row: of the point.
        origin: number to call it by; the row when None.
    """
    if cloud is None:
        return f'<div style="{_STYLE}">Click a point to select it.</div>'
    place = ", ".join(f"{value:.3f}" for value in cloud.xyz[row].tolist())
    lines = [f"at {place}", *(layer.text(row) for layer in cloud.layers.values())]
    head = f"<b>{html.escape(cloud.name)}, point {row if origin is None else origin}</b>"
    return f'<div style="{_STYLE}">{head}{"".join(f"<div>{html.escape(line)}</div>" for line in lines)}</div>'


def add_text_field(gui: Any, compare: Callable[[str], None]) -> None:
    """A field for a text and a button that compares all points with it; what hinders it is told to who pressed."""
    field = gui.add_text("Like a text", "", hint="Words that all points are compared with")
    button = gui.add_button("Compare")

    @button.on_click  # type: ignore[untyped-decorator]
    def _(event: Any) -> None:
        if not field.value.strip():
            return
        button.disabled = True
        try:
            compare(field.value)
        except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
            event.client.add_notification("No colours for this text", str(error), color="red")
        finally:
            button.disabled = False


def png_on_white(seen: NDArray[np.uint8]) -> bytes:
    """A picture ``(H, W, 3)`` or, with transparency, ``(H, W, 4)`` as PNG without."""
    pillow = require("PIL.Image", extra="viz", purpose="pictures of the web page")
    layer = pillow.fromarray(seen)
    image = pillow.new("RGB", layer.size, "white")
    image.paste(layer, mask=layer.getchannel("A") if layer.mode == "RGBA" else None)
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def check_address(host: str, port: int) -> None:
    """Refuses what the server would try in vain.

    Raises:
        ValueError: a port that is none, or an address that is not one of this machine.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be between 0 and 65535, got {port}")
    try:
        family, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(address)
    except OSError as error:
        raise ValueError(
            f"host: cannot listen on {host!r} ({error}): give an address of this machine, 127.0.0.1 or 0.0.0.0"
        ) from error
