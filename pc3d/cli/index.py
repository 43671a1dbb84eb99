"""``pc3d index``: an index of shapes, to be searched by text, picture or shape."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pc3d._files import check_writable
from pc3d.cli import _alignment, _output
from pc3d.cli._devices import open_device
from pc3d.cli._inputs import (
    ON_ERROR_REMEDY,
    OnError,
    Points,
    Source,
    UpAxis,
    Variant,
    as_left_out,
    left_out_lines,
    nothing_left,
)
from pc3d.cli._parser import OK, USAGE, nearest, run_verb

if TYPE_CHECKING:
    from pc3d.data import BadFileError, PointCloud
    from pc3d.evaluation import Encoder, ShapeIndex

_CHUNK = 5000  # embedded shapes between two times that the index is written
_USAGE = """usage: pc3d index build [options]

An index of shapes on disk: embed them once, find them by text, picture or shape with pc3d search.

actions:
  build  embed shapes and add those that are new to an index, which is made if need be"""


def build(
    encoder: str,
    output: str,
    data: str = "household",
    variant: Variant | None = None,
    split: str = "test",
    num_points: Points = "default",
    up: UpAxis | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    on_error: OnError = "refuse",
    drop_invalid: bool = False,
) -> None:
    """Embed shapes, and add new and changed ones to an index of shapes.

    Shapes are identified by the paths of their files, or by their ids if they have no file of their own. Building again
    embeds only new and changed shapes: another size or time of a file, other points in a set, another num_points or up.
    Shapes that no longer exist stay in the index. An interrupted build continues where it stopped.

    Args:
        encoder: Folder or Hub id of an encoder aligned with texts and pictures.
        output: Folder of the index; an existing index must be of the same encoder.
        data: 'household' (embedded), a folder with a data set or with files of points or meshes, or one such file.
        variant: Variant of ScanObjectNN or of ModelNet's text files.
        split: Split of the data set; not used for plain files.
        num_points: Most points per shape, a random subset; by default as many as the encoder was made for; null takes
            all.
        up: Axis that points up in the data; by default that of the data set, y in GLB files, else z.
        batch_size: Shapes per forward pass.
        device: Where the encoder computes, such as cpu or cuda.
        on_error: What to do with a file that cannot be used: 'refuse' stops and keeps what was embedded; 'report'
            leaves the file out and lists it with the reason.
        drop_invalid: Leave out points of files that are not finite numbers.
    """
    from pc3d._progress import progress_bar
    from pc3d.data import BadFileError
    from pc3d.evaluation import ShapeIndex
    from pc3d.evaluation.shape_index import weights_digest

    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    check_writable(Path(output), "output")
    place = open_device(device)
    aligned = _alignment.open_aligned(encoder)
    points = _alignment.points_for(aligned, num_points)
    made_by = {"encoder": _in_full(encoder), "digest": weights_digest(aligned), "num_points": points}
    index = ShapeIndex(output, dim=aligned.joint_dim, made_by=made_by)
    index.made_by["encoder"] = made_by["encoder"]  # of the same weights, where it is now
    source = _alignment.shapes(_in_full(data), split, variant, up, on_error, drop_invalid)
    # As _alignment.shapes takes it: where pc3d search draws shapes from. A file alone does not say what its set says.
    axis = up or ("y" if source.dataset.up == "y" else None)
    origin: dict[str, Any] = {
        "data": _in_full(data),
        "split": split,
        "variant": variant,
        "up": axis,
        "on_error": on_error,
    }
    origin |= {"drop_invalid": True} if drop_invalid else {}
    work = _Work(index, aligned.view("joint").to(place), source, origin, points)
    left_out = [as_left_out(file) for file in source.dataset.skipped]

    def embed() -> None:
        for error in work.embed():
            if on_error == "refuse":
                raise _refused(error, work) from error
            left_out.append(as_left_out(error))

    try:
        with progress_bar(len(source.dataset), "index", "shapes") as advance:
            for row in range(len(source.dataset)):
                try:
                    work.read(row)
                except BadFileError as error:
                    if on_error == "refuse":
                        embed()
                        raise _refused(error, work) from error
                    left_out.append(as_left_out(error))
                if len(work.pending) == batch_size:
                    embed()
                advance(1)
            embed()
    except KeyboardInterrupt:
        told = f"{output} keeps {len(index)} shapes: the same command goes on" if len(index) else ""
        raise KeyboardInterrupt(told) from None
    finally:
        work.save()
    if len(index) == 0:
        raise nothing_left(data, left_out)
    _tell(output, work, left_out)


def _in_full(place: str) -> str:
    """A path that means the same in every working folder; whatever is no path stays as it is."""
    path = Path(place)
    if place == "household" or not path.exists():
        return place
    # The name of a file stays as it is: a link's target may have another ending.
    return str(path.resolve() if path.is_dir() else path.parent.resolve() / path.name)


@dataclass
class _Work:
    """Shapes on their way into an index.

    Attributes:
        index: what they are added to.
        encoder: gives joint vectors.
        source: where they come from.
        origin: the same as plain data.
        points: per shape.
        pending: name, cloud and record of those that were read and are yet to be embedded.
        embedded: so many were embedded.
        new: so many of these were not in the index before.
        unsaved: so many were added since the index was written.
    """

    index: ShapeIndex
    encoder: Encoder
    source: Source
    origin: dict[str, Any]
    points: int | None
    pending: list[tuple[str, PointCloud, dict[str, Any]]] = field(default_factory=list)
    embedded: int = 0
    new: int = 0
    unsaved: int = 0

    def __post_init__(self) -> None:
        sources = self.index.made_by.setdefault("sources", [])
        if self.origin not in sources:
            sources.append(self.origin)
        self.number = sources.index(self.origin)

    def read(self, row: int) -> None:
        """Read a shape, unless it is in the index as it is now."""
        from pc3d.data.points import files_read

        dataset = self.source.dataset
        file, cloud = _alignment.file_of(dataset, row), None
        if file is None:
            cloud = dataset.load(row)
            name, state = str(cloud.meta["id"]), _hash_of(cloud)
        else:
            found = [path.stat() for path in files_read(file)]
            name, state = str(file), " ".join(f"{stat.st_size} {stat.st_mtime_ns}" for stat in found)
        state += f" {self.points} {self.origin['up']}"
        if (self.index.record(name) or {}).get("state") == state:
            return
        cloud = dataset.load(row) if cloud is None else cloud
        labelled = cloud.label is not None and 0 <= cloud.label < len(dataset.classes)
        known = {
            "path": None if file is None else name,
            "text": cloud.text,
            "class": dataset.classes[cloud.label or 0] if labelled else None,
        }
        place = {"source": self.number, "row": row, "state": state}
        self.pending.append((name, cloud, {key: value for key, value in known.items() if value} | place))

    def embed(self) -> list[BadFileError]:
        """Embed what is pending, and write the index now and then; gives the files that have too few points."""
        from pc3d.evaluation import extract_features

        if not self.pending:
            return []
        names, clouds, records = zip(*self.pending, strict=True)
        self.pending.clear()
        bad: dict[int, BadFileError] = {}
        try:
            features = extract_features(
                self.encoder,
                _held(clouds),
                batch_size=len(clouds),
                pooling="none",
                num_points=self.points,
                sampling=self.source.sampling,
                normalize=self.source.normalize,
                leave_out=bad.__setitem__,
            )
        except ValueError:
            if len(bad) < len(clouds):
                raise
            return list(bad.values())  # nothing is left to embed
        good = [row for row in range(len(clouds)) if row not in bad]
        new = self.index.add([names[row] for row in good], features.values, [records[row] for row in good], renew=True)
        self.new += new
        self.embedded += len(good)
        self.unsaved += len(good)
        if self.unsaved >= _CHUNK:
            self.save()
        return list(bad.values())

    def save(self) -> None:
        """Write the index, if anything was added."""
        if self.unsaved:
            self.index.save()
            self.unsaved = 0


def _hash_of(cloud: PointCloud) -> str:
    """First 16 hexadecimal digits of SHA-256 over the coordinates and colours."""
    digest = hashlib.sha256(cloud.xyz.contiguous().numpy().tobytes())
    if cloud.rgb is not None:
        digest.update(cloud.rgb.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _held(clouds: Sequence[PointCloud]) -> Any:
    """A data set of clouds in memory."""
    import torch

    from pc3d.data import PointDataset

    class Held(PointDataset):
        labels = torch.full((len(clouds),), -1, dtype=torch.int64)

        def load(self, index: int) -> PointCloud:
            return clouds[index]

    return Held()


def _refused(error: Any, work: _Work) -> Exception:
    from pc3d.data import BadFileError

    return BadFileError(
        error.path,
        f"{error.reason}; the index keeps the {work.embedded} shape(s) embedded before it. {ON_ERROR_REMEDY}",
    )


def _tell(output: str, work: _Work, left_out: Sequence[dict[str, str]]) -> None:
    index, renewed = work.index, work.embedded - work.new
    size = index.bytes_for(1_000_000, index.dim) / 1e9
    told = {
        "index": output,
        "shapes": len(index),
        "new": work.new,
        "renewed": renewed,
        "dimensions": index.dim,
        "gigabytes_per_million": size,
        "left_out": list(left_out),
    }
    changed = f", {renewed} renewed" if renewed else ""
    lines = [
        f"{output}: {len(index)} shapes, {work.new} of them new{changed}, {index.dim} dimensions; "
        f"a million such shapes take about {size:.1f} GB of memory",
        *left_out_lines(left_out),
    ]
    _output.result(told, "\n".join(lines))


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return OK if argv else USAGE
    if argv[0] != "build":
        print(f"error: unknown action {argv[0]!r}{nearest(argv[0], ['build'])}\n\n{_USAGE}", file=sys.stderr)
        return USAGE
    return run_verb("index build", build, argv[1:])
