"""``pc3d index``: an index of shapes, to be searched by text, picture or shape."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pc3d.cli import _alignment, _output
from pc3d.cli._alignment import UpAxis
from pc3d.cli._inputs import Variant, extract
from pc3d.cli._parser import OK, USAGE, nearest, run_verb

_CHUNK = 5000
_USAGE = """usage: pc3d index build [options]

An index of shapes on disk: embed them once, find them by text, picture or shape with pc3d search.

actions:
  build  embed shapes and add those that are new to an index, which is made if need be"""


def build(
    encoder: str,
    out: str,
    data: str = "household",
    variant: Variant | None = None,
    split: str = "test",
    num_points: int | None = 10000,
    up: UpAxis | None = None,
    batch_size: int = 16,
) -> None:
    """Embed shapes and add those that are new to an index of shapes.

    Shapes are told apart by their ids, or where there are none by the paths of their files: building again after files
    were added embeds these alone, and an interrupted build goes on where it was.

    Args:
        encoder: Folder or Hub id of an encoder aligned with texts and pictures.
        out: Folder of the index; one that is there must be of the same encoder.
        data: 'household' (embedded), a folder with a data set or with files of points or meshes, or one such file.
        variant: Variant of ScanObjectNN or of ModelNet's text files.
        split: Split of the data set; not used for plain files.
        num_points: Points per shape, at most, a random subset; null takes all.
        up: Axis that points up in the data; by default y in GLB files, else z.
        batch_size: Shapes per forward pass.
    """
    from dataclasses import replace

    from pc3d.data import PointCloud, PointDataset, Selection
    from pc3d.evaluation import ShapeIndex
    from pc3d.evaluation.shape_index import weights_digest

    class Recorded(PointDataset):
        """A set that keeps what is to be stored with each shape, as it is read in order."""

        def __init__(self, dataset: Selection) -> None:
            self.dataset, self.labels, self.classes = dataset, dataset.labels, dataset.classes
            self.records: list[dict[str, object]] = []

        def load(self, index: int) -> PointCloud:
            cloud = self.dataset.load(index)
            labelled = cloud.label is not None and 0 <= cloud.label < len(self.classes)
            known = {"path": cloud.meta.get("path"), "text": cloud.text}
            known["class"] = self.classes[cloud.label or 0] if labelled else None
            place = {"source": number, "row": int(self.dataset.indices[index])}  # where pc3d search draws it from
            self.records.append({name: value for name, value in known.items() if value} | place)
            return cloud

    aligned = _alignment.open_aligned(encoder)
    made_by = {"encoder": encoder, "digest": weights_digest(aligned), "num_points": num_points}
    index = ShapeIndex(out, dim=aligned.joint_dim, made_by=made_by)
    sources = index.made_by.setdefault("sources", [])
    origin = {"data": data, "split": split, "variant": variant, "up": up}
    if origin not in sources:
        sources.append(origin)
    number = sources.index(origin)
    source = _alignment.shapes(data, split, num_points, variant, up)
    names = _alignment.names_of(source.dataset)
    new = [row for row, name in enumerate(names) if name not in index]
    options = {"batch_size": batch_size, "pooling": "none", "num_points": num_points}
    for start in range(0, len(new), _CHUNK):
        rows = new[start : start + _CHUNK]
        part = Recorded(Selection(source.dataset, rows))
        features = extract(aligned.view("joint"), encoder, replace(source, dataset=part), data, split, **options)
        index.add([names[row] for row in rows], features.values, part.records)
        index.save()
    size = index.bytes_for(1_000_000, index.dim) / 1e9
    told = {"index": out, "shapes": len(index), "new": len(new), "dimensions": index.dim, "gigabytes_per_million": size}
    _output.result(
        told,
        f"{out}: {len(index)} shapes, {len(new)} of them new, {index.dim} dimensions; "
        f"a million such shapes take about {size:.1f} GB of memory",
    )


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return OK if argv else USAGE
    if argv[0] != "build":
        print(f"error: unknown action {argv[0]!r}{nearest(argv[0], ['build'])}\n\n{_USAGE}", file=sys.stderr)
        return USAGE
    return run_verb("index build", build, argv[1:])
