"""The window of ``pc3d view`` without its drawing: keys and clicks to what is shown."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Flag, auto
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pc3d.viz.camera import Viewpoint, along, save_path, turntable
from pc3d.viz.view import Ask, View

FloatArray = NDArray[np.floating]
COARSE = 300_000
"""Points that are drawn while the camera moves."""
_STEP = 48
_REACH = 12.0
_LETTERS = 34


class Change(Flag):
    """What must be drawn anew."""

    NOTHING = 0
    CLOUDS = auto()
    COLORS = auto()
    POINT_SIZE = auto()
    CAMERA = auto()
    TEXT = auto()
    SCREENSHOT = auto()
    CLOSE = auto()


@dataclass
class WindowState:
    """What a window shows, and how keys and clicks change it.

    Attributes:
        view: everything.
        mode: name of the layer in whose colours it is shown.
        only: number of the one cloud that is shown; None for all.
        most: points that are drawn at once, at most.
        point_size: diameter in pixels.
        help: whether the keys are listed.
        path: the viewpoints recorded so far.
        playing: cameras of a playing path that are still to come.
        message: the last thing that happened.
        folder: where screenshots and camera paths go.
        here: the camera as it stands now; asked when a viewpoint is recorded.
        fitted: the viewpoint from which a view fills the window.
        ask: the layers of a typed text, one for each cloud of ``view``; None where nothing understands texts.
    """

    view: View
    mode: str
    most: int = 2_000_000
    only: int | None = None
    point_size: float = 3.0
    help: bool = True
    path: list[Viewpoint] = field(default_factory=list)
    playing: list[Viewpoint] = field(default_factory=list)
    message: str = ""
    folder: Path = field(default_factory=Path)
    here: Callable[[], Viewpoint] | None = None
    fitted: Callable[[View], Viewpoint] | None = None
    ask: Ask | None = None

    def __post_init__(self) -> None:
        if self.mode not in self.view.modes:
            raise ValueError(f"mode must be one of {', '.join(self.view.modes)}, got {self.mode!r}")

    @property
    def shown(self) -> View:
        """The clouds that are shown, all their points."""
        clouds = self.view.clouds
        return self.view if self.only is None else dataclasses.replace(self.view, clouds=[clouds[self.only]])

    def detail(self, moving: bool = False) -> View:
        """The points that are drawn: few while the camera moves, and then as many as allowed.

        The ``rows`` of its clouds are those of the clouds of :attr:`shown`.
        """
        whole = [dataclasses.replace(cloud, rows=None) for cloud in self.shown.clouds]
        most = min(self.most, COARSE) if moving else self.most
        return dataclasses.replace(self.view, clouds=whole).thin(max(most, len(whole)))

    @property
    def has_coarse(self) -> bool:
        """Whether fewer points are drawn while the camera moves."""
        return min(self.most, self.shown.num_points) > COARSE

    def press(self, key: str) -> Change:
        """Do what a key says; an unknown one does nothing.

        Args:
            key: a small letter or sign, or ``"left"``, ``"right"``, ``"escape"``.

        Returns:
            What changed.
        """
        known = KEYS.get(key)
        if known is None:
            return Change.NOTHING
        self.message = ""
        return known.act(self) | Change.TEXT

    def choose(self, cloud: int, row: int) -> Change:
        """Select a point: tell what its layers say, and colour all points by their similarity to it."""
        said = [layer.text(row) for layer in self.view.clouds[cloud].layers.values() if layer.name != "similarity"]
        self.message = f"{self.view.clouds[cloud].name}, point {row}: " + "; ".join(said)
        if self.view.clouds[cloud].embedding is None:
            return Change.TEXT
        self.view = self.view.similar_to(cloud, row)
        self.mode = "similarity"
        return Change.COLORS | Change.TEXT

    def type(self, text: str) -> Change:
        """Colour all points by how like a typed text they are; what hinders it is the message."""
        if self.ask is None or not text.strip():
            return Change.NOTHING
        try:
            self.view, self.mode = self.view.answering(self.ask, text)
        except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
            self.message = str(error)
            return Change.TEXT
        self.message = ""
        return Change.COLORS | Change.TEXT

    def pick(self, column: float, row: float, width: int, height: int, clip: FloatArray) -> tuple[int, int] | None:
        """The nearest point under a place of the window.

        Args:
            column: of the place, in pixels from the left.
            row: from the top.
            width: of the window.
            height: likewise.
            clip: ``(4, 4)``, world to clip coordinates (projection times view matrix, as OpenGL has them).

        Returns:
            Number of the cloud and row of the point; None where there is none within a few pixels.
        """
        best: tuple[float, int, int] | None = None
        numbers = range(len(self.view.clouds)) if self.only is None else [self.only]
        for number in numbers:
            placed = self.view.clouds[number].placed
            local = np.concatenate([placed, np.ones((len(placed), 1), np.float32)], axis=1) @ clip.T.astype(np.float32)
            front = local[:, 3] > 0
            depth = np.where(front, local[:, 3], 1)
            away = np.hypot(
                (local[:, 0] / depth + 1) * width / 2 - column, (1 - local[:, 1] / depth) * height / 2 - row
            )
            near = np.flatnonzero(front & (away <= _REACH))
            if len(near):
                # Of two on one another the nearer one; of neighbours on a surface the one that was meant.
                cost = depth[near] * (1 + 0.1 * away[near] / _REACH)
                found = (float(cost.min()), number, int(near[cost.argmin()]))
                best = found if best is None else min(best, found)
        return None if best is None else best[1:]

    def tick(self) -> Viewpoint | None:
        """The next camera of a playing path; None where none plays."""
        return self.playing.pop(0) if self.playing else None

    def text(self) -> str:
        """What is written in the window."""
        clouds = self.shown.clouds
        what = clouds[0].name if len(clouds) == 1 else f"{len(clouds)} clouds"
        drawn, total = min(self.most, self.shown.num_points), self.shown.num_points
        lines = [
            f"{what}: {total:,} points" + (f", {drawn:,} drawn" if drawn < total else ""),
            f"coloured by {self.mode}",
        ]
        if self.path:
            lines.append(f"camera path of {len(self.path)} viewpoints")
        if self.message:
            lines.append(self.message)
        if self.help:
            lines += ["", "drag to turn, scroll to come nearer", "Ctrl + click: compare with a point"]
            lines += [f"{name}: {key.about}" for key, name in _shown_keys()]
        else:
            lines.append("H: keys")
        return "\n".join(lines)

    def _mode(self, step: int) -> Change:
        modes = self.view.modes
        self.mode = modes[(modes.index(self.mode) + step) % len(modes)]
        return Change.COLORS

    def _cloud(self, step: int) -> Change:
        count = len(self.view.clouds)
        if count == 1:
            return Change.NOTHING
        # After the last cloud come all of them.
        place = ((count if self.only is None else self.only) + step) % (count + 1)
        self.only = None if place == count else place
        return Change.CLOUDS | Change.CAMERA

    def _size(self, factor: float) -> Change:
        self.point_size = float(np.clip(self.point_size * factor, 1.0, 20.0))
        return Change.POINT_SIZE

    def _detail(self, factor: float) -> Change:
        before = min(self.most, self.shown.num_points)
        self.most = int(np.clip(before * factor, 10_000, self.shown.num_points if factor > 1 else before))
        return Change.CLOUDS

    def _record(self) -> Change:
        assert self.here is not None
        self.path.append(self.here())
        self.message = f"viewpoint {len(self.path)} recorded"
        return Change.NOTHING

    def _play(self) -> Change:
        if self.playing:
            self.playing = []
            return Change.NOTHING
        assert self.here is not None
        several = len(self.path) > 1
        self.playing = along(self.path, _STEP * (len(self.path) - 1)) if several else turntable(self.here(), 4 * _STEP)
        return Change.NOTHING

    def _write(self) -> Change:
        if not self.path:
            self.message = "no camera path: R records a viewpoint of one"
            return Change.NOTHING
        file = free_name(self.folder, "camera_path", ".json")
        save_path(self.path, file)
        self.message = f"camera path written to {file}: pc3d view ... --camera_path {file} --output path.gif"
        return Change.NOTHING

    def _forget(self) -> Change:
        self.path, self.playing = [], []
        return Change.NOTHING

    def _toggle_help(self) -> Change:
        self.help = not self.help
        return Change.NOTHING


@dataclass(frozen=True)
class Key:
    """What a key does, and in words."""

    about: str
    act: Callable[[WindowState], Change]


KEYS: dict[str, Key] = {
    "m": Key("next colours", lambda state: state._mode(1)),
    "n": Key("colours before", lambda state: state._mode(-1)),
    "right": Key("next cloud, or all", lambda state: state._cloud(1)),
    "left": Key("cloud before, or all", lambda state: state._cloud(-1)),
    "f": Key("fit the camera", lambda state: Change.CAMERA),
    "+": Key("larger points", lambda state: state._size(1.25)),
    "-": Key("smaller points", lambda state: state._size(0.8)),
    ".": Key("more points at once", lambda state: state._detail(2.0)),
    ",": Key("fewer points at once", lambda state: state._detail(0.5)),
    "r": Key("record a viewpoint of a camera path", lambda state: state._record()),
    "p": Key("play the path, or turn around once; stop", lambda state: state._play()),
    "w": Key("write the path to a file", lambda state: state._write()),
    "x": Key("forget the path", lambda state: state._forget()),
    "s": Key("screenshot", lambda state: Change.SCREENSHOT),
    "h": Key("list the keys, or not", lambda state: state._toggle_help()),
    "escape": Key("close", lambda state: Change.CLOSE),
}


_SIGNS = {"+": "Plus", "-": "Minus", ".": "Full stop", ",": "Comma"}


def _shown_keys() -> list[tuple[Key, str]]:
    return [(key, _SIGNS.get(name, name.capitalize())) for name, key in KEYS.items()]


def wrapped(text: str) -> str:
    """The text in lines that the column beside the scene has room for; what goes on is set in."""
    lines = [textwrap.wrap(line, _LETTERS, subsequent_indent="    ") or [""] for line in text.split("\n")]
    return "\n".join(part for line in lines for part in line)


def free_name(folder: Path, stem: str, suffix: str) -> Path:
    """The first of ``stem_001``, ``stem_002``, ... that is no file yet."""
    number = 1
    while (file := folder / f"{stem}_{number:03d}{suffix}").exists():
        number += 1
    return file
