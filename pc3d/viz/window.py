"""The window of ``pc3d view``: Open3D draws what :class:`pc3d.viz.window_state.WindowState` says."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc3d.viz.camera import AZIMUTH, ELEVATION, FIELD_OF_VIEW, Viewpoint, fit, of_view_matrix
from pc3d.viz.display import check_display, import_open3d
from pc3d.viz.headless import BACKGROUND
from pc3d.viz.pictures import legend, write_picture
from pc3d.viz.view import Ask, View
from pc3d.viz.window_state import KEYS, Change, WindowState, free_name, wrapped

_FRAME = 1 / 24
_STILL_AFTER = 0.4
_WIDTH, _HEIGHT = 1280, 800  # of the window, in pixels
_COLUMN = 17  # of the text beside the scene, in units of the letters' height
_BAR = 6  # of the strip that a colour bar is in, at least, likewise
_INK = (0.25, 0.25, 0.25)
_SIGNS = {"+": "EQUALS", "-": "MINUS", ".": "PERIOD", ",": "COMMA"}


def open_window(
    view: View,
    mode: str,
    *,
    azimuth: float = AZIMUTH,
    elevation: float = ELEVATION,
    max_points: int = 2_000_000,
    ask: Ask | None = None,
) -> None:
    """Open a window on a view and come back when it is closed.

    Args:
        view: what to show.
        mode: whose colours come first.
        azimuth: of the camera, see :class:`pc3d.viz.camera.Viewpoint`.
        elevation: likewise.
        max_points: level of detail, see :meth:`View.thin`; keys change it.
        ask: the layers of a typed text, see :class:`WindowState`; the window has no field for texts when None.

    Raises:
        NoDisplayError: there is no display; the message says what works without.
        ImportError: Open3D, or a system library that it needs, is missing.
        ValueError: a mode that no cloud has.
    """
    size = point_size_for(min(view.num_points, max_points), _WIDTH, _HEIGHT)
    state = WindowState(view, mode, max_points, point_size=size, ask=ask)
    check_display()
    window = Window(state, azimuth, elevation, _WIDTH, _HEIGHT)
    window.run()


def point_size_for(num_points: int, width: int, height: int) -> float:
    """Diameter in pixels of discs about as wide as points are apart, if they cover a third of a window."""
    apart = (0.33 * width * height / max(num_points, 1)) ** 0.5
    return float(min(max(1.2 * apart, 2.0), 8.0))


class Window:
    """An Open3D window that shows a state.

    Args:
        state: changed by keys and clicks.
        azimuth: of the first camera.
        elevation: likewise.
        width: in pixels.
        height: likewise.
    """

    def __init__(self, state: WindowState, azimuth: float, elevation: float, width: int, height: int) -> None:
        self.open3d: Any = import_open3d()
        self.gui, self.rendering = self.open3d.visualization.gui, self.open3d.visualization.rendering
        self.state, self.directions = state, (azimuth, elevation)
        self.moved, self.last_frame, self.is_open, self.coarse = 0.0, 0.0, True, False
        self.target = np.zeros(3)
        self.drawn: dict[str, View] = {}
        self.uploaded: dict[str, Any] = {}
        self.app = self.gui.Application.instance
        self.app.initialize()
        self.window = self.app.create_window(state.view.title or "pc3d view", width, height)
        self._add_widgets()
        state.here, state.fitted = self.viewpoint, self._fit
        self.keys = {getattr(self.gui.KeyName, _SIGNS.get(key, key.upper())): key for key in KEYS}
        self.window.set_on_key(self._on_key)
        self.window.set_on_tick_event(self._on_tick)
        self.window.set_on_close(self._on_close)
        self.apply(Change.CLOUDS | Change.CAMERA | Change.TEXT)

    def _add_widgets(self) -> None:
        self.scene = self.gui.SceneWidget()
        self.scene.scene = self.rendering.Open3DScene(self.window.renderer)
        self.scene.scene.set_background([1.0, 1.0, 1.0, 1.0])
        self.scene.set_on_mouse(self._on_mouse)
        self.scene.set_view_controls(self.gui.SceneWidget.Controls.ROTATE_CAMERA_SPHERE)  # up stays up
        # Colours as they are: no tone mapping.
        self.scene.scene.view.set_post_processing(False)
        self.text = self.gui.Label("")
        self.legend = self.gui.ImageWidget()
        self.widest: tuple[Any, int] = (None, 0)
        self.names: list[Any] = []
        self.field = self.gui.TextEdit()
        self.field.placeholder_text = "like a text: type one, Enter"
        self.typed = ""
        self.field.set_on_value_changed(self._on_text)
        self.field.visible = self.state.ask is not None
        for widget in (self.scene, self.field, self.text, self.legend):
            self.window.add_child(widget)
        self.window.set_on_layout(self._on_layout)

    def run(self) -> None:
        """Show the window until it is closed."""
        while self.is_open and self.app.run_one_tick():
            pass

    def apply(self, change: Change) -> None:
        """Draw anew what changed."""
        if Change.CLOUDS in change or Change.COLORS in change:
            self._upload(new_points=Change.CLOUDS in change)
        if Change.POINT_SIZE in change:
            material = self._material()
            for name in self._names():
                self.scene.scene.modify_geometry_material(name, material)
        if Change.CAMERA in change:
            self.look(self._fit(self.state.shown))
        if Change.CLOUDS in change:
            self._write_names()
        if change & (Change.TEXT | Change.COLORS | Change.CLOUDS):
            self._write_text()
        if Change.SCREENSHOT in change:
            self.scene.scene.scene.render_to_image(self._save_screenshot)
        self.window.post_redraw()
        if Change.CLOSE in change:
            self.window.close()

    def press(self, key: str) -> None:
        """Do what a key does."""
        self.apply(self.state.press(key))

    def type(self, text: str) -> None:
        """Colour by a typed text."""
        self.apply(self.state.type(text))

    def viewpoint(self) -> Viewpoint:
        """Where the camera is now; its roll, if any, is left out."""
        matrix = np.asarray(self.scene.scene.camera.get_view_matrix(), np.float64)
        return of_view_matrix(matrix, self.target)

    def look(self, viewpoint: Viewpoint) -> None:
        """Put the camera somewhere."""
        box = self.scene.scene.bounding_box
        self.target = np.array(viewpoint.target)
        self.scene.setup_camera(viewpoint.field_of_view, box, self.target.astype(np.float32))
        up = viewpoint.axes[1]
        self.scene.look_at(*(place.astype(np.float32) for place in (self.target, viewpoint.eye, up)))
        self.scene.force_redraw()

    def _fit(self, view: View) -> Viewpoint:
        frame = self.scene.frame
        aspect = frame.width / frame.height if frame.height > 0 and frame.width > 0 else 1.6
        azimuth, elevation = self.directions
        # Open3D's field of view is that of the height.
        return fit(view, azimuth=azimuth, elevation=elevation, aspect=max(aspect, 1.0), field_of_view=FIELD_OF_VIEW)

    def _names(self) -> list[str]:
        return ["fine", "coarse"] if self.state.has_coarse else ["fine"]

    def _upload(self, *, new_points: bool) -> None:
        """Points, or colours alone, to the renderer: all that are drawn, and the fewer for a moving camera."""
        scene, core = self.scene.scene, self.open3d.core
        for name in self._names():
            if new_points or name not in self.drawn:
                self.drawn[name] = self.state.detail(moving=name == "coarse")
            cloud = self.open3d.t.geometry.PointCloud(
                core.Tensor(np.concatenate([one.placed for one in self.drawn[name].clouds]))
            )
            cloud.point.colors = core.Tensor(self._colors(self.drawn[name]))
            self.uploaded[name] = cloud  # the renderer reads an update's memory later, on a thread of its own
            if not new_points and scene.has_geometry(name):
                scene.scene.update_geometry(name, cloud, self.rendering.Scene.UPDATE_COLORS_FLAG)
                continue
            if scene.has_geometry(name):
                scene.remove_geometry(name)
            scene.add_geometry(name, cloud, self._material())
        if not self.state.has_coarse and scene.has_geometry("coarse"):
            scene.remove_geometry("coarse")
        self._show(coarse=False)

    def _colors(self, drawn: View) -> NDArray[np.float32]:
        """Colours in the mode that is shown now, of points that were chosen before."""
        found = []
        for whole, part in zip(self.state.shown.clouds, drawn.clouds, strict=True):
            colors = whole.colors(self.state.mode)
            found.append(colors if part.rows is None else colors[part.rows])
        level: NDArray[np.float32] = np.concatenate(found).astype(np.float32) / np.float32(255)
        return level

    def _material(self) -> Any:
        material = self.rendering.MaterialRecord()
        material.shader, material.point_size = "defaultUnlit", self.state.point_size * self.window.scaling
        return material

    def _show(self, *, coarse: bool) -> None:
        self.coarse = coarse and self.scene.scene.has_geometry("coarse")
        self.scene.scene.show_geometry("fine", not self.coarse)
        if self.scene.scene.has_geometry("coarse"):
            self.scene.scene.show_geometry("coarse", self.coarse)

    def _write_text(self) -> None:
        self.text.text = wrapped(self.state.text())
        self.window.set_needs_layout()

    def _write_names(self) -> None:
        """The names of several clouds, above each."""
        for name in self.names:
            self.scene.remove_3d_label(name)
        clouds = [cloud for cloud in self.state.shown.clouds if len(cloud)]
        self.names = []
        for cloud in clouds if len(clouds) > 1 else []:
            low, high = cloud.box
            place = np.array([*(low + high)[:2] / 2, high[2] + 0.12 * (high - low).max()], np.float32)
            label = self.scene.add_3d_label(place, cloud.name)
            label.color = self.gui.Color(*_INK)
            self.names.append(label)

    def _on_layout(self, context: Any) -> None:
        """Words in a column at the left, what colours mean in one at the right, the scene between: none hides it."""
        rect, em, is_first = self.window.content_rect, self.window.theme.font_size, self.scene.frame.width == 0
        column, margin = min(_COLUMN * em, rect.width // 2), em // 2
        strip, right = self._legend(max(rect.height, 1)), rect.get_right()
        if strip:
            right = max(right - strip, rect.x + column + 1)
            self.legend.frame = self.gui.Rect(right, rect.y, strip, rect.height)
        self.scene.frame = self.gui.Rect(rect.x + column, rect.y, right - rect.x - column, rect.height)
        top, width = rect.y + margin, column - 2 * margin
        if self.field.visible:
            height = self.field.calc_preferred_size(context, self.gui.Widget.Constraints()).height
            self.field.frame = self.gui.Rect(rect.x + margin, top, width, height)
            top += height + margin
        self.text.frame = self.gui.Rect(rect.x + margin, top, width, max(rect.get_bottom() - top, 1))
        if is_first:  # until now the shape of the scene's part of the window was not known
            self.look(self._fit(self.state.shown))

    def _legend(self, height: int) -> int:
        """Draw what the colours mean, in a strip as wide as all modes need, so that the scene stays where it is."""
        shown = self.state.shown
        picture = legend(shown, self.state.mode, height)
        key = (shown.modes, len(shown.clouds), height)
        if key != self.widest[0]:
            widest = max(legend(shown, mode, height).shape[1] for mode in shown.modes)
            self.widest = (key, max(widest, _BAR * self.window.theme.font_size) if widest else 0)
        strip = int(max(self.widest[1], picture.shape[1]))
        self.legend.visible = strip > 0
        if strip:
            white = ((0, 0), (0, strip - picture.shape[1]), (0, 0))
            picture = np.pad(picture, white, constant_values=BACKGROUND)
            self.legend.update_image(self.open3d.geometry.Image(np.ascontiguousarray(picture)))
        return strip

    def _on_key(self, event: Any) -> bool:
        key = self.keys.get(event.key)
        if key is None or event.type != self.gui.KeyEvent.Type.DOWN:
            return False
        if not event.is_repeat:  # of a key that is held down
            self.press(key)
        return True

    def _on_mouse(self, event: Any) -> Any:
        results, kinds = self.gui.Widget.EventCallbackResult, self.gui.MouseEvent.Type
        control = event.is_modifier_down(self.gui.KeyModifier.CTRL)
        if event.type == kinds.BUTTON_DOWN and control:
            self.click(event.x - self.scene.frame.x, event.y - self.scene.frame.y)
            return results.CONSUMED
        if event.type in (kinds.DRAG, kinds.WHEEL):
            self.moved = time.monotonic()
            self.state.playing = []
            if not self.coarse:
                self._show(coarse=True)
        return results.IGNORED  # the camera follows the mouse as Open3D has it

    def click(self, column: float, row: float) -> None:
        """Choose the point under a place of the picture, if there is one."""
        camera, frame = self.scene.scene.camera, self.scene.frame
        clip = np.asarray(camera.get_projection_matrix(), np.float64) @ np.asarray(camera.get_view_matrix(), np.float64)
        found = self.state.pick(column, row, frame.width, frame.height, clip)
        if found is not None:
            self.apply(self.state.choose(*found))

    def _on_text(self, text: str) -> None:
        self.typed = text  # for the next tick: this one is drawing, and would not draw again

    def _on_tick(self) -> bool:
        now = time.monotonic()
        if self.typed:
            text, self.typed = self.typed, ""
            self.type(text)
            return True
        if self.coarse and now - self.moved > _STILL_AFTER:
            self._show(coarse=False)
            return True
        if not self.state.playing or now - self.last_frame < _FRAME:
            return False
        self.last_frame = now
        viewpoint = self.state.tick()
        if viewpoint is not None:
            self.look(viewpoint)
        return True

    def _on_close(self) -> bool:
        self.is_open = False
        return True

    def _save_screenshot(self, picture: Any) -> None:
        file = free_name(self.state.folder, "view", ".png")
        write_picture(np.asarray(picture), file)
        self.state.message = f"written: {file}"
        self.apply(Change.TEXT)
