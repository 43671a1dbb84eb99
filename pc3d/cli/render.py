"""``pc3d render``: pictures of a mesh or a point cloud."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pc3d._files import check_writable
from pc3d.cli import _output
from pc3d.cli._parser import check_used, run_verb

if TYPE_CHECKING:
    from pc3d.image import Mesh, Rendering


def render(
    file: str,
    output: str,
    views: Literal["openshape12", "ulip30", "pointclip6", "clip2point10", "axis3"] = "openshape12",
    size: int = 512,
    up: Literal["y", "z"] | None = None,
    supersample: int = 2,
    drop_invalid: bool = False,
    overwrite: bool = False,
) -> None:
    """Render a mesh or a point cloud from a set of views; no display is needed.

    Each view gives NNN.png (colour and alpha) and NNN.npz with 'depth', 'normal', 'index' (the face, or the point,
    behind each pixel), 'intrinsic' and 'pose' (camera to object). The object is centred and scaled as the views ask.

    Args:
        file: Mesh (GLB, OBJ, PLY, OFF, STL), drawn with its textures, or a point cloud of any kind that pc3d reads;
            --file itself may be left out.
        output: Folder for the pictures.
        views: The cameras; named after the papers that use them.
        size: Side of the pictures in pixels.
        up: The file's up axis; null takes y for GLB and z for the others.
        supersample: Rays per pixel along each axis, for meshes.
        drop_invalid: Leave out points of a cloud that are not finite numbers.
        overwrite: Write into a folder that has files already.
    """
    folder, path = Path(output), Path(file)
    check_writable(folder, "output")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(f"output: {folder} has files already: choose another folder, or add --overwrite")
    if size < 1:
        raise ValueError(f"size: must be at least 1 pixel, got {size}")
    count = 0
    for count, rendering in enumerate(_renderings(path, views, size, up, supersample, drop_invalid), start=1):
        rendering.save(folder, f"{count - 1:03d}")
    _output.result({"folder": str(folder), "views": count}, f"{folder}: {count} views of {path.name}")


def _renderings(
    path: Path, views: str, size: int, up: Literal["y", "z"] | None, supersample: int, drop_invalid: bool
) -> Iterator[Rendering]:
    """One by one, so that each is on disk before the next is drawn."""
    import torch

    from pc3d._progress import track
    from pc3d.data import TurnUp, read_points
    from pc3d.image import MeshRenderer, extent, fit, render_points, view_set

    cameras = view_set(views, size)
    mesh = _mesh(path, up)
    needs = {
        "supersample": None if mesh is not None else f"meshes, and {path} holds points",
        "drop_invalid": None if mesh is None else f"points, and {path} is a mesh",
    }
    check_used(render, {"supersample": supersample, "drop_invalid": drop_invalid}, needs)
    if mesh is not None:
        renderer = MeshRenderer(mesh.scaled_to(*extent(views))[0])
        yield from (renderer.render(camera, supersample) for camera in track(cameras, "draw", "views"))
        return
    cloud = read_points(path, drop_invalid=drop_invalid)
    if up == "y":
        cloud = TurnUp("y", "z")(cloud, torch.Generator())
    center, factor = fit(cloud.xyz, *extent(views))
    cloud = cloud.replace(xyz=(cloud.xyz - center) * factor)
    for camera in track(cameras, "draw", "views"):
        yield from render_points(cloud, [camera])


def _mesh(path: Path, up: Literal["y", "z"] | None) -> Mesh | None:
    """The mesh in a file; None for files of points. A PLY file may be either."""
    from pc3d.data import BadFileError
    from pc3d.image import read_mesh
    from pc3d.image.meshes import MESH_SUFFIXES

    if path.suffix.lower() not in MESH_SUFFIXES:
        return None
    try:
        return read_mesh(path, up=up)
    except BadFileError:
        if path.suffix.lower() != ".ply":
            raise
        return None


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    return run_verb("render", render, argv, words=["file"])
