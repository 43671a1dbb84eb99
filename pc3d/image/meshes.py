"""Mesh files as one list of triangles with colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pc3d.data.dataset import BadFileError
from pc3d.data.file_fields import colours
from pc3d.data.mesh_files import load_meshes
from pc3d.data.pixels import eight_bits, texture_colours
from pc3d.image.views import fit

GREY = (0.7, 0.7, 0.7)
MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".off", ".ply", ".stl")
# Rows are the images of x, y and z: (x, y, z) with y up becomes (x, -z, y).
_Y_UP = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)


@dataclass(frozen=True)
class Mesh:
    """Triangles with colours.

    Attributes:
        vertices: ``(V, 3)`` float64.
        faces: ``(F, 3)`` int64.
        corner_color: ``(F, 3, 3)`` float32 colour in [0, 1] of each corner of each face; what a texture is multiplied
            with.
        corner_uv: ``(F, 3, 2)`` float32 texture coordinates, v upwards, or None.
        texture: ``(F,)`` int64 number of each face's texture, -1 for none.
        textures: pictures ``(h, w, 3)`` uint8.
    """

    vertices: Tensor
    faces: Tensor
    corner_color: Tensor
    corner_uv: Tensor | None = None
    texture: Tensor | None = None
    textures: tuple[NDArray[np.uint8], ...] = ()

    def __post_init__(self) -> None:
        if self.faces.ndim != 2 or self.faces.shape[1] != 3 or len(self.faces) == 0:
            raise ValueError(f"faces must have shape (F, 3) with one or more triangles, got {tuple(self.faces.shape)}")
        if self.vertices.ndim != 2 or self.vertices.shape[1] != 3 or not bool(self.vertices.isfinite().all()):
            raise ValueError(f"vertices must be finite, of shape (V, 3), got {tuple(self.vertices.shape)}")
        if int(self.faces.min()) < 0 or int(self.faces.max()) >= len(self.vertices):
            raise ValueError(f"faces must be in 0..{len(self.vertices) - 1}, got {int(self.faces.max())}")
        if tuple(self.corner_color.shape) != (len(self.faces), 3, 3):
            raise ValueError(
                f"corner_color must have shape ({len(self.faces)}, 3, 3), got {tuple(self.corner_color.shape)}"
            )

    def turned_up(self, up: Literal["y", "z"]) -> Mesh:
        """The mesh with z up, from a file whose up axis is ``up``."""
        if up not in ("y", "z"):
            raise ValueError(f"up must be 'y' or 'z', got {up!r}")
        return self if up == "z" else self._with(self.vertices @ _Y_UP)

    def scaled_to(self, kind: str, size: float) -> tuple[Mesh, Tensor, float]:
        """Centred on the middle of its bounding box and scaled.

        Args:
            kind: ``"edge"``: the longest edge of the box becomes ``size``; ``"radius"``: the farthest vertex is at
                ``size``.
            size: see above.

        Returns:
            The mesh, the ``(3,)`` centre and the factor: ``(xyz - centre) * factor`` does the same to points.
        """
        center, factor = fit(self.vertices[self.faces.unique()], kind, size)
        return self._with((self.vertices - center) * factor), center, factor

    def _with(self, vertices: Tensor) -> Mesh:
        return Mesh(vertices, self.faces, self.corner_color, self.corner_uv, self.texture, self.textures)

    def color_at(self, face: Tensor, weight: Tensor) -> Tensor:
        """Colours ``(M, 3)`` float32 at places given by face ``(M,)`` and barycentric weights ``(M, 3)``."""
        weight = weight.float()
        color = (self.corner_color[face] * weight[:, :, None]).sum(dim=1)
        if self.corner_uv is None or self.texture is None:
            return color
        uv = (self.corner_uv[face] * weight[:, :, None]).sum(dim=1)
        for number, picture in enumerate(self.textures):
            rows = torch.nonzero(self.texture[face] == number).flatten()
            color[rows] = color[rows] * torch.from_numpy(texture_colours(picture, uv[rows].numpy()))
        return color


def read_mesh(path: Path | str, *, up: Literal["y", "z"] | None = None) -> Mesh:
    """Read a mesh with its colours and textures through trimesh, z up afterwards.

    Args:
        path: GLB, GLTF, OBJ, PLY, OFF or STL.
        up: the file's up axis; by default y for GLB and GLTF, as in their standard, and z for the others.

    Raises:
        FileNotFoundError: there is no such file.
        BadFileError: it holds no triangles, or cannot be read.
        ImportError: trimesh is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file")
    try:
        parts = load_meshes(path)
    except (BadFileError, ImportError):
        raise
    except Exception as error:  # whatever the reader of the format comes up with
        raise BadFileError(path, f"cannot be read as a mesh ({type(error).__name__}: {error})") from error
    if not parts:
        raise BadFileError(path, "has no triangles: is it a cloud of points? render_points draws those")
    default: Literal["y", "z"] = "y" if path.suffix.lower() in (".glb", ".gltf") else "z"
    return from_trimesh(parts).turned_up(up or default)


def from_trimesh(parts: Sequence[Any]) -> Mesh:
    """Meshes of trimesh as one, each with the colours of its texture, its material, its vertices or its faces."""
    textures: list[NDArray[np.uint8]] = []
    vertices, faces, colors, uvs, numbers = [], [], [], [], []
    start = 0
    for part in parts:
        face = np.asarray(part.faces, dtype=np.int64)
        color, uv, picture = _colors(part, face)
        vertices.append(np.asarray(part.vertices, dtype=np.float64))
        faces.append(face + start)
        colors.append(color)
        uvs.append(np.zeros((len(face), 3, 2)) if uv is None else uv)
        numbers.append(np.full(len(face), -1 if picture is None else len(textures)))
        if picture is not None:
            textures.append(picture)
        start += len(part.vertices)
    return Mesh(
        torch.from_numpy(np.concatenate(vertices)),
        torch.from_numpy(np.concatenate(faces)),
        torch.from_numpy(np.concatenate(colors)).float(),
        torch.from_numpy(np.concatenate(uvs)).float(),
        torch.from_numpy(np.concatenate(numbers)).long(),
        tuple(textures),
    )


def _colors(part: Any, face: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[np.uint8] | None]:
    """Corner colours, texture coordinates and texture of a mesh of trimesh."""
    visual, shape = part.visual, (len(face), 3, 3)
    if visual.kind == "vertex":
        return np.asarray(visual.vertex_colors)[face][:, :, :3] / 255, None, None
    if visual.kind == "face":
        return np.broadcast_to(np.asarray(visual.face_colors)[:, None, :3] / 255, shape).copy(), None, None
    if visual.kind != "texture":
        return np.broadcast_to(np.asarray(GREY), shape).copy(), None, None
    material = visual.material
    tint = np.ones(shape)
    # In glTF the colours of texture, material and vertices are factors of one another.
    if getattr(material, "baseColorFactor", None) is not None:
        tint *= colours(np.asarray(material.baseColorFactor)[:3])
    if (of_vertices := visual.vertex_attributes.get("color")) is not None:
        tint *= colours(np.asarray(of_vertices))[face][:, :, :3]
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    if image is not None and visual.uv is not None:
        return tint, np.asarray(visual.uv, dtype=np.float64)[face], eight_bits(image, "a texture")[:, :, :3]
    if not hasattr(material, "baseColorFactor"):
        tint *= np.asarray(material.main_color)[:3] / 255
    return tint, None, None
