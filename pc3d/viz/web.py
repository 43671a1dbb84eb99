"""A view in a browser, served from this machine: viser draws, this module answers."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc3d._extras import require
from pc3d.viz.view import Ask, View, similarity_layers
from pc3d.viz.web_panel import add_text_field, check_address, key_html, nearest_to_ray, png_on_white, selection_html

SIMILARITY = "similarity to point"
MAX_POINTS = 1_000_000
_LEVELS = (20_000, 100_000, 300_000, 1_000_000, 3_000_000)
_CHOSEN = (255, 0, 205)


def serve(
    view: View,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    mode: str | None = None,
    max_points: int = MAX_POINTS,
    ask: Ask | None = None,
    say: Callable[[str], object] = print,
    ready: Callable[[str], object] | None = None,
) -> None:
    """Serve a view until Ctrl-C, which ends the server and returns.

    Args:
        view: what to show.
        host: address to listen on; the default is reached from this machine alone, ``"0.0.0.0"`` from everywhere.
        port: the next free one is taken, and said, where this is busy.
        mode: name of the layer that is shown first; the first one when None.
        max_points: that are sent at first; the page can ask for more and fewer.
        ask: see :class:`WebView`.
        say: takes what there is to tell.
        ready: takes the address once it is served; ``say`` does, in a sentence, when None.

    Raises:
        ValueError: no points, no such mode, a port that is none, or an address that is not one of this machine.
    """
    web = WebView(view, host, port, mode=mode, max_points=max_points, ask=ask)
    try:
        if web.port != port:
            say(f"port {port} of {host} is busy: using {web.port}")
        if ready is None:
            say(f"serving on {web.url} (Ctrl-C ends it)")
        else:
            ready(web.url)
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        say("stopped")
    finally:
        web.stop()


class WebView:
    """A running server of a view; all browsers that are connected see, and change, the same.

    Args:
        view: what to show.
        host: see :func:`serve`.
        port: see :func:`serve`; 0 for any free one.
        mode: see :func:`serve`.
        max_points: that are sent at first.
        ask: the layers of a typed text, one for each cloud of ``view``; the page has no field for texts when None.

    Attributes:
        port: that the server listens on.
        mode: name of the layer shown.
        chosen: cloud and row, in the whole view, of the selected point; None for none.

    Raises:
        ValueError: the view has no points or no such mode, or the server cannot listen there.
    """

    def __init__(
        self,
        view: View,
        host: str = "127.0.0.1",
        port: int = 8080,
        *,
        mode: str | None = None,
        max_points: int = MAX_POINTS,
        ask: Ask | None = None,
    ) -> None:
        viser = require("viser", extra="viz", purpose="the web page of pc3d view")
        if not view.num_points:
            raise ValueError("view has no points: there is nothing to show")
        check_address(host, port)
        # Rows are counted in the view that was given, even if that is itself a part of another.
        self.view = replace(view, clouds=[replace(cloud, rows=None) for cloud in view.clouds])
        self._origins = [cloud.rows for cloud in view.clouds]
        self.chosen: tuple[int, int] | None = None
        self._towards = np.zeros(3)  # from the selected point to the eye
        self.modes = [*view.modes] or ["plain"]
        if any(cloud.embedding is not None for cloud in view.clouds):
            self.modes.append(SIMILARITY)
        if mode is not None and mode not in self.modes:
            raise ValueError(f"mode must be one of {', '.join(self.modes)}, got {mode!r}")
        self.mode = mode or self.modes[0]
        self._lock = threading.RLock()
        self._host = host
        self._handles: dict[int, Any] = {}
        self._set_detail(max_points)
        with contextlib.redirect_stdout(io.StringIO()):  # its own words on where it listens
            self._server = viser.ViserServer(host=host, port=port, label=view.title or "pc3d view", verbose=False)
        self.port = int(self._server.get_port())
        self._build_scene()
        self._build_panel(max_points)
        if ask is not None:
            add_text_field(self._server.gui, lambda text: self.type(text, ask))
        self._draw()

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        host = "127.0.0.1" if self._host in ("", "0.0.0.0", "::") else self._host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def stop(self) -> None:
        """End the server."""
        self._server.stop()

    # ---- what is shown ----------------------------------------------------------------------------------------------

    def _set_detail(self, max_points: int) -> None:
        self._most = max_points
        self._thin = self.view.thin(max(max_points, len(self.view.clouds)))
        clouds = [cloud for cloud in self._thin.clouds if len(cloud)]
        boxes = [cloud.box for cloud in clouds]
        self._low = np.min([low for low, _ in boxes], axis=0)
        self._high = np.max([high for _, high in boxes], axis=0)
        sizes = [
            float(np.linalg.norm(high - low)) / len(c) ** 0.5 for c, (low, high) in zip(clouds, boxes, strict=True)
        ]
        self._spacing = max(float(np.median(sizes)), 1e-6)
        self._compare()

    def _compare(self) -> None:
        """The layer of similarities to the selected point, at this level of detail."""
        if self.chosen is None:
            return
        embedding = self.view.clouds[self.chosen[0]].embedding
        if embedding is not None:
            others = [cloud.embedding for cloud in self._thin.clouds]
            layers = similarity_layers(others, embedding[self.chosen[1]], SIMILARITY)
            self._thin = self._thin.with_layers(layers)

    def show(self, mode: str) -> None:
        """Colour by a layer, or by the similarity to the selected point.

        Raises:
            ValueError: there is no such mode.
        """
        if mode not in self.modes:
            raise ValueError(f"mode must be one of {', '.join(self.modes)}, got {mode!r}")
        with self._lock:
            self.mode = mode
            self._draw()

    def select(self, cloud: int, row: int) -> None:
        """Select a point by its cloud and its row in the whole view."""
        with self._lock:
            self.chosen = (cloud, row)
            self._compare()
            self._draw()

    def type(self, text: str, ask: Ask) -> None:
        """Colour by how like a typed text all points are."""
        with self._lock:
            self.view, self.mode = self.view.answering(ask, text)
            if self.mode not in self.modes:
                self.modes.append(self.mode)
                self._mode.options = self.modes
            self._set_detail(self._most)
            self._mode.value = self.mode
            self._draw()

    def deselect(self) -> None:
        """Select nothing."""
        with self._lock:
            self.chosen = None
            self._draw()

    def click(self, origin: Sequence[float], direction: Sequence[float]) -> None:
        """Select the point that a line of sight meets, or nothing."""
        start, towards = np.asarray(origin, dtype=np.float64), np.asarray(direction, dtype=np.float64)
        best: tuple[float, int, int] | None = None
        for number, cloud in enumerate(self._thin.clouds):
            shown = self._shown(number)
            row = nearest_to_ray(cloud.placed[shown], start, towards, self._point_size / 2) if len(shown) else None
            if row is not None:
                row = int(shown[row])
                distance = float(np.linalg.norm(cloud.placed[row] - start))
                if best is None or distance < best[0]:
                    best = (distance, number, row if cloud.rows is None else int(cloud.rows[row]))
        if best is None:
            self.deselect()
        else:
            self._towards = -towards / np.linalg.norm(towards)
            self.select(*best[1:])

    def _shown(self, number: int) -> NDArray[np.intp]:
        """Rows of a cloud that are not cut away."""
        cut = float(self._top.value)
        if cut >= 1:
            return np.arange(len(self._thin.clouds[number]))
        return np.flatnonzero(
            self._thin.clouds[number].placed[:, 2] <= self._low[2] + cut * (self._high - self._low)[2]
        )

    # ---- scene and panel --------------------------------------------------------------------------------------------

    def _build_scene(self) -> None:
        server, middle = self._server, (self._low + self._high) / 2
        server.scene.set_up_direction("+z")
        reach = max(float(np.linalg.norm(self._high - self._low)), 1e-3)
        server.initial_camera.position = tuple(middle + reach * np.array([0.42, -0.6, 0.42]))
        server.initial_camera.look_at = tuple(middle)
        for number, cloud in enumerate(self.view.clouds):
            if len(cloud):
                low, high = cloud.box
                place = (float(low[0] + high[0]) / 2, float(low[1] + high[1]) / 2, float(high[2]))
                server.scene.add_label(f"/names/{number}", cloud.name, position=place)

        @server.scene.on_click()  # type: ignore[untyped-decorator]
        def _(event: Any) -> None:
            self.click(event.ray_origin, event.ray_direction)

    def _build_panel(self, max_points: int) -> None:
        gui = self._server.gui
        gui.configure_theme(show_share_button=False, control_width="medium")
        self._mode = gui.add_dropdown("Colour by", self.modes, initial_value=self.mode)
        self._key = gui.add_html("")
        self._words = gui.add_html("")
        self._size = gui.add_slider("Point size", 0.25, 4.0, 0.05, 1.0)
        self._top = gui.add_slider("Cut away above", 0.02, 1.0, 0.01, 1.0)
        total = self.view.num_points
        levels = sorted({min(level, total) for level in (*_LEVELS, max_points)} | ({total} if total <= 3e6 else set()))
        texts = {f"{level:,} points": level for level in levels}
        detail = gui.add_dropdown("Detail", list(texts), initial_value=f"{min(max_points, total):,} points")
        picture = gui.add_button("Save picture")

        @self._mode.on_update  # type: ignore[untyped-decorator]
        def _(event: Any) -> None:
            self.show(self._mode.value)

        @self._size.on_update  # type: ignore[untyped-decorator]
        def _(event: Any) -> None:
            with self._lock:
                for handle in self._handles.values():
                    handle.point_size = self._point_size

        @self._top.on_update  # type: ignore[untyped-decorator]
        def _(event: Any) -> None:
            with self._lock:
                self._draw()

        @detail.on_update  # type: ignore[untyped-decorator]
        def _(event: Any) -> None:
            with self._lock:
                self._set_detail(texts[detail.value])
                self._draw()

        @picture.on_click  # type: ignore[untyped-decorator]
        def _(event: Any) -> None:
            event.client.send_file_download("view.png", self._picture(event.client), save_immediately=True)

    @property
    def _point_size(self) -> float:
        return float(self._size.value) * self._spacing

    def _draw(self) -> None:
        scene = self._server.scene
        with self._server.atomic():
            for number, cloud in enumerate(self._thin.clouds):
                rows = self._shown(number)
                points, colors = cloud.placed[rows], cloud.colors(self.mode)[rows]
                handle = self._handles.get(number)
                if handle is not None and handle.points.shape == points.shape and (handle.points == points).all():
                    handle.colors = colors  # the places, which are more, need not be sent again
                    continue
                self._handles[number] = scene.add_point_cloud(
                    f"/clouds/{number}",
                    points,
                    colors,
                    point_size=self._point_size,
                    point_shape="circle",
                    point_shading="flat",
                    precision="float32",
                )
            self._mark()
            self._key.content = key_html(self._thin, self.mode)
            self._words.content = self._selection()

    def _mark(self) -> None:
        if self.chosen is None:
            self._server.scene.remove_by_name("/chosen")
            return
        number, row = self.chosen
        # One large point, in front of its neighbours: a sphere would bring lights and shadows, which software draws in
        # seconds.
        self._server.scene.add_point_cloud(
            "/chosen",
            (self.view.clouds[number].placed[row] + 3 * self._spacing * self._towards)[None].astype(np.float32),
            _CHOSEN,
            point_size=6 * self._spacing,
            point_shape="circle",
            precision="float32",
        )

    def _selection(self) -> str:
        if self.chosen is None:
            return selection_html(None, 0)
        number, row = self.chosen
        origin = self._origins[number]
        return selection_html(self.view.clouds[number], row, None if origin is None else int(origin[row]))

    def _picture(self, client: Any) -> bytes:
        """What a client sees, as PNG on white."""
        seen = client.get_render(
            client.camera.image_height, client.camera.image_width, transport_format="png", timeout=60
        )
        return png_on_white(np.asarray(seen))
