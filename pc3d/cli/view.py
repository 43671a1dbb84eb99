"""``pc3d view``: show points, data, and what encoders and runs make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pc3d._files import check_writable
from pc3d.cli import _output
from pc3d.cli._devices import open_device
from pc3d.cli._inputs import UpAxis
from pc3d.cli._parser import check_used, run_verb
from pc3d.cli._view_inputs import open_all
from pc3d.cli._view_layers import Request, ask_of, build, choose_modes, cut_top, default_encoder, missing_modes

if TYPE_CHECKING:
    from pc3d.viz import View
    from pc3d.viz.camera import Viewpoint
    from pc3d.viz.headless import Picture

_STILLS, _GIF = (".png", ".jpg", ".jpeg", ".webp"), ".gif"
_MAX_POINTS = 2_000_000
_ROOF = 0.15


def look(
    what: list[str] | None = None,
    data: str | None = None,
    root: str | None = None,
    split: str = "test",
    item: list[int] | None = None,
    mode: list[str] | None = None,
    encoder: str | None = None,
    text: list[str] | None = None,
    text_tower: str | None = None,
    point: list[int] | None = None,
    attention: list[int] | None = None,
    output: str | None = None,
    html: str | None = None,
    web: bool = False,
    host: str = "127.0.0.1",
    port: int = 8080,
    view: list[float] | None = None,
    size: list[int] | None = None,
    columns: int | None = None,
    point_size: float | None = None,
    top: float | None = None,
    frames: int = 36,
    camera_path: str | None = None,
    max_points: int | None = None,
    num_points: int = 50_000,
    up: UpAxis | None = None,
    drop_invalid: bool = False,
    device: str = "cpu",
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Show point clouds: colours, normals, labels, predictions and their errors, features of an encoder.

    By default, a window opens (Open3D). --output writes a picture, without a display or a GPU. --html writes a page
    that opens in any browser without a server. --web runs a server, and a browser shows the clouds.

    Args:
        what: Files of points or meshes of any kind that pc3d reads; items of data sets as in household:test:12,
            rooms:test:0-2 or FOLDER:train:3; a run folder of pc3d pretrain, segment, parts or classify (its test items,
            or the other things named). household and rooms are the embedded sets; a file or folder of such a name is
            ./household. --what itself may be left out.
        data: A data set as other verbs take it: household, rooms, scannet, s3dis, structured3d, or a folder.
        root: Folder of a data set of scenes.
        split: Split of the data set.
        item: Items of the data set, of a folder or of the run's data; by default the first.
        mode: What to colour by: rgb, height, normal, label, instance, prediction, error, mask, features, similarity,
            text, attention. By default the first available mode and all that were computed. The labels of files of
            points are read only if label is named.
        encoder: Folder or Hub id of an encoder, or an official .pth file of Point-MAE's family or POS-BERT, for
            features, similarity, text and attention; for a run, its own by default.
        text: Texts to colour by, with an encoder aligned with texts (OpenShape) or distilled from an image tower that
            shares a space with texts (DenseDistillation).
        text_tower: Text tower, or for a distilled encoder its teacher, if the encoder does not name its own.
        point: Row of the first cloud, or number of a cloud and row, that all points are compared with.
        attention: Attention heads to colour by, for a PointViT with class token or a ViT3D; with --mode attention, all
            heads by default.
        output: Picture to write (PNG, JPEG, WEBP, or a rotating GIF), instead of the window.
        html: Page to write (.html, at most 10 MB), instead of the window.
        web: Serve the clouds to browsers until Ctrl-C, instead of the window.
        host: Address that --web listens on; 0.0.0.0 lets other machines in.
        port: Port of --web; the next free one, if it is busy.
        view: Azimuth and elevation of the camera in degrees; by default -55 22, for sets of scenes -55 50.
        size: Width and height of a panel of the picture in pixels.
        columns: Panels in a row.
        point_size: Diameter of points in pixels; by default large enough to close surfaces.
        top: Share of the height to leave out at the top, to see into rooms; by default 0.15 for sets of scenes, where
            the ceiling hides the rest, and 0 otherwise.
        frames: Number of frames of a GIF.
        camera_path: Camera path that the window has recorded, for a GIF; by default the camera turns around once.
        max_points: Most points drawn at once; larger views show a random part. By default 2,000,000; 300,000 in a page,
            and at first 1,000,000 from a server.
        num_points: Points to sample from a mesh.
        up: Axis that points up in files; by default y in GLB files, else z.
        drop_invalid: Leave out points that are not finite numbers.
        device: Where to compute features and predictions.
        seed: Seed of masks and of what is drawn at random.
        overwrite: Replace an earlier picture or page.
    """
    from pc3d.cli._view_runs import items_of_run
    from pc3d.viz.display import check_display

    _check_one_target(output=output, html=html, web=web)
    chosen = {"host": host, "port": port, "size": size, "columns": columns, "point_size": point_size, "view": view}
    more = {"frames": frames, "camera_path": camera_path, "text_tower": text_tower}
    check_used(look, {**chosen, **more}, _needs(output, html, web=web, text=bool(text)))
    target = None if output is None else _check_output(Path(output), overwrite, (*_STILLS, _GIF), "output")
    page = None if html is None else _check_output(Path(html), overwrite, (".html",), "html")
    if target is None and page is None and not web:
        check_display()  # before minutes of work for a window that cannot open
    width, height = (int(side) for side in _two("size", size, (640.0, 480.0)))
    _check_numbers(view, width=width, height=height, columns=columns, point_size=point_size, max_points=max_points)
    opened = open_all(
        what or [],
        data=data,
        root=root,
        split=split,
        item=item,
        num_points=num_points,
        up=up,
        drop_invalid=drop_invalid,
        labels="label" in (mode or ()),
    )
    shown, run = opened.shown, opened.run
    heads = None if attention is None and "attention" in (mode or ()) else attention or ()
    open_device(device)
    request = Request(encoder, text or (), text_tower, heads, point, device, seed)
    if run is not None and not shown:
        shown, notes = items_of_run(run, item)
        request.notes += notes
    rooms = all(one.unit == "m" for one in shown)
    azimuth, elevation = _two("view", view, (-55.0, 50.0) if rooms else (-55.0, 22.0))
    if top is None and rooms:
        request.notes.append(f"the upper {100 * _ROOF:.0f} % are left out, to see into rooms (--top 0 shows all)")
    top = top if top is not None else _ROOF if rooms else 0.0
    request.encoder = default_encoder(request, run, mode)
    built = cut_top(build(shown, run, request, azimuth), top)
    modes = choose_modes(built, mode)
    _tell(built, modes, request)
    clouds = {cloud.name: len(cloud) for cloud in built.clouds}
    if page is not None:
        from pc3d.viz.html import MAX_POINTS, write_html

        write_html(built, page, mode=modes[0], max_points=max_points or MAX_POINTS)
        said = f"written: {page} ({page.stat().st_size / 1e6:.1f} MB)"
        _output.result({"file": str(page), "modes": list(built.modes), "clouds": clouds}, said)
        return
    ask = ask_of(built, request)
    if web:
        from pc3d.viz import web as server

        most = max_points or server.MAX_POINTS
        server.serve(built, host, port, mode=modes[0], max_points=most, ask=ask, say=_output.say, ready=_tell_address)
        return
    max_points = max_points or _MAX_POINTS
    if target is None:
        from pc3d.viz.window import open_window

        open_window(built, modes[0], azimuth=azimuth, elevation=elevation, max_points=max_points, ask=ask)
        return
    from pc3d.viz.camera import fit, fit_around

    # Below several clouds stand their names.
    margin = 0.04 if len(built.clouds) == 1 else 0.12
    look_from = fit_around if target.suffix.lower() == _GIF else fit
    if built.num_points > max_points:
        _output.say(f"note: {max_points:,} of {built.num_points:,} points are drawn, at random (--max_points)")
    camera = look_from(built, azimuth=azimuth, elevation=elevation, aspect=width / height, margin=margin)
    draw = _Drawing(built, modes, width, height, columns, point_size, max_points)
    if target.suffix.lower() == _GIF:
        draw.turning(target, camera, frames, camera_path)
    else:
        draw.still(target, camera)
    _output.result({"file": str(target), "modes": list(modes), "clouds": clouds}, f"written: {target}")


def _needs(output: str | None, html: str | None, *, web: bool, text: bool) -> dict[str, str | None]:
    """What an option is for that is not for all that is shown; None where it is for this."""
    picture, gif = output is not None, output is not None and Path(output).suffix.lower() == _GIF
    return {
        **dict.fromkeys(("host", "port"), None if web else "--web"),
        **dict.fromkeys(("size", "columns", "point_size"), None if picture else "pictures (--output)"),
        "view": "pictures and the window" if web or html is not None else None,
        **dict.fromkeys(("frames", "camera_path"), None if gif else "a GIF (--output NAME.gif)"),
        "text_tower": None if text or not (picture or html is not None) else "--text, or texts typed on a screen",
    }


def _check_one_target(**targets: object) -> None:
    given = [f"--{name}" for name, value in targets.items() if value]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other: give one of them")


def _check_output(path: Path, overwrite: bool, endings: Sequence[str], option: str) -> Path:
    if path.suffix.lower() not in endings:
        raise ValueError(f"{option}: must end in {' or '.join(endings)}, got {path}")
    check_writable(path.parent, option)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{option}: {path} exists: add --overwrite to replace it, or choose another")
    return path


def _check_numbers(view: Sequence[float] | None, **counts: float | None) -> None:
    """Refuse, before any work, what no picture can be drawn with."""
    for name, value in counts.items():
        if value is not None and not value > 0:
            option = f"size: the {name}" if name in ("width", "height") else f"{name}:"
            raise ValueError(f"{option} must be positive, got {value}")
    if view is not None and len(view) == 2 and not -90 <= view[1] <= 90:
        raise ValueError(f"view: the elevation, its second number, must be in [-90, 90] degrees, got {view[1]}")


def _two(option: str, values: Sequence[float] | None, default: tuple[float, float]) -> tuple[float, float]:
    if values is None:
        return default
    if len(values) != 2:
        raise ValueError(f"{option}: takes two numbers, got {len(values)}")
    return values[0], values[1]


def _tell_address(url: str) -> None:
    """Where the page is, which is all that a server has to tell, so also with ``--quiet``."""
    _output.result({"url": url}, f"serving on {url} (Ctrl-C ends it)")


def _tell(view: View, modes: Sequence[str], request: Request) -> None:
    """What is there to see, what is shown of it, and what is not there."""
    for cloud in view.clouds:
        _output.say(f"{cloud.name}: {len(cloud):,} points")
    for note in dict.fromkeys(request.notes):
        _output.say(f"note: {note}")
    others = [mode for mode in view.modes if mode not in modes]
    _output.say(f"shown: {', '.join(modes)}" + (f"; also there: {', '.join(others)}" if others else ""))
    for mode in modes:
        lacking = [cloud.name for cloud in view.clouds if mode not in cloud.layers]
        if lacking:
            _output.say(f"grey, since without {mode}: {', '.join(dict.fromkeys(lacking))}")
    absent = missing_modes(view)
    if absent:
        _output.say(f"not there: {', '.join(absent)} (--mode NAME says what each needs)")


@dataclass(frozen=True)
class _Drawing:
    """How pictures are drawn."""

    view: View
    modes: Sequence[str]
    width: int
    height: int
    columns: int | None
    point_size: float | None
    max_points: int

    def panels(self, camera: Viewpoint) -> Picture:
        from pc3d.viz.pictures import panels

        options = {"columns": self.columns, "point_size": self.point_size, "max_points": self.max_points}
        return panels(self.view, self.modes, camera, self.width, self.height, **options)  # type: ignore[arg-type]

    def still(self, path: Path, camera: Viewpoint) -> None:
        from pc3d.viz.pictures import write_picture

        write_picture(self.panels(camera), path)

    def turning(self, path: Path, camera: Viewpoint, frames: int, camera_path: str | None) -> None:
        from pc3d._progress import track
        from pc3d.viz.camera import along, load_path, turntable
        from pc3d.viz.pictures import write_gif

        cameras = turntable(camera, frames) if camera_path is None else along(load_path(camera_path), frames)
        write_gif([self.panels(one) for one in track(cameras, "draw", "frames")], path)


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    return run_verb("view", look, argv, words=["what"])
