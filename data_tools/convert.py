"""Convert a downloaded data set, or any folder of files, into the object format that pc3d reads quickly.

    python data_tools/convert.py KIND ROOT OUT [--split train test | --test_share 0.2] [--num_points 8192] [--workers 4]

KIND is ``modelnet-meshes``, ``modelnet-resampled``, ``shapenet55`` or ``folder`` (class sub-folders with PLY, PCD, XYZ,
CSV, PTS, LAS, LAZ, E57, OFF, OBJ, STL, GLB, GLTF, NPY or NPZ files). OUT gets ``SPLIT.json`` and ``SPLIT-NNN.npz``
shards, to be read with ``pc3d.data.ObjectSet(OUT, SPLIT)``, and ``manifest.sha256``, to be checked with ``sha256sum
--check``.

A folder without splits becomes two with --test_share: of each class, this share of the files is drawn for test. Where
several files are of one object, make the splits yourself, or test objects are trained on.

With --parts LIST, the files of a folder are clouds (or PLY meshes, whose vertices are taken) with a part for each
point, for ``pc3d parts train``: in a column called label, class, segment or alike, or --part_column NAME. LIST has the
name of a part on each line, of the numbers 0, 1, ... in the files; or a number and a name, and points with other
numbers have no part.

Colours and normals are kept if the first file of a split has them (with --test_share, of train): another file without
them is a bad one. If the first has none, those of others are left out; the end of the run and ``SPLIT.json`` tell which
files lack them. --fields chooses.

Meshes are sampled uniformly by area; of clouds with more points a random subset is kept. Points are written in random
order, so that a prefix is a fair subsample. The same input, options and seed give the same values.

An interrupted run goes on where it stopped when called again with the same options: shards that are in the manifest and
whole are kept. A file in OUT that this conversion would not have written is never overwritten; the run stops and names
it. Bad files stop the run by name too; ``--on_error report`` leaves them out and lists them, with the reason, in
``SPLIT.json`` and at the end.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from pc3d.data import (
    BadFileError,
    FileDataset,
    FolderDataset,
    ModelNetMeshes,
    ModelNetResampled,
    Normalize,
    PointCloud,
    ShapeNet55,
    SkippedFile,
    read_scene,
)
from pc3d.data.dataset import check_same_classes, validation_mask
from pc3d.data.files import OnError, has_splits
from pc3d.data.points import SCENE_SUFFIXES
from pc3d.data.scan_files import ClassCodes, read_class_codes

KINDS: dict[str, Callable[..., FileDataset]] = {
    "modelnet-meshes": ModelNetMeshes,
    "modelnet-resampled": ModelNetResampled,
    "shapenet55": ShapeNet55,
    "folder": FolderDataset,
}
# Those that sample meshes, and so decide themselves how many points a mesh gets.
SAMPLING = ("modelnet-meshes", "folder")
FIELDS = ("rgb", "normal")
NAMES = (
    "kind",
    "num_points",
    "seed",
    "normalize",
    "dtype",
    "shard_size",
    "on_error",
    "variant",
    "parts",
    "part_column",
)
UNKNOWN_PART = 255


@dataclass(frozen=True)
class Options:
    """What the values of a split depend on; kept in ``SPLIT-conversion.txt`` to refuse mixing two conversions."""

    kind: str
    num_points: int
    seed: int
    normalize: bool
    dtype: str
    shard_size: int
    on_error: OnError
    variant: str | None
    parts: ClassCodes | None
    part_column: str | None
    fields: tuple[str, ...]


class Folder(FolderDataset):
    """A folder whose files are not read before their shard is made, which reports them as well."""

    def verify(self) -> tuple[SkippedFile, ...]:
        return ()


class PartFolder(Folder):
    """A folder of clouds with a part for each point."""

    def __init__(self, root: Path, split: str | None, codes: ClassCodes, column: str | None, on_error: OnError) -> None:
        self.codes, self.column = codes, column
        suffixes = [suffix for suffix in SCENE_SUFFIXES if suffix not in (".txt", ".bin")]
        super().__init__(root, split, suffixes=suffixes, on_error=on_error)

    def read(self, path: Path) -> PointCloud:
        cloud = read_scene(path, labels=self.column or True)
        assert cloud.segment is not None  # asked for
        part, _ = self.codes.classes_of(cloud.segment.numpy(), path)
        return cloud.replace(segment=torch.from_numpy(part.astype(np.int64)))


def open_split(options: Options, root: Path, split: str | None) -> FileDataset:
    arguments: dict[str, Any] = {}
    if options.kind in SAMPLING:
        arguments = {"num_points": options.num_points, "seed": options.seed}
    elif options.kind == "modelnet-resampled":
        arguments = {"variant": options.variant or "modelnet40"}
    if options.parts is not None:
        return PartFolder(root, split, options.parts, options.part_column, options.on_error)
    if options.kind != "folder":
        return KINDS[options.kind](root, split, **arguments)
    return Folder(root, split, on_error=options.on_error, **arguments)


def open_splits(options: Options, root: Path, given: argparse.Namespace) -> dict[str, FileDataset]:
    """The splits that a folder has, or those that ``--test_share`` makes of its files, class by class."""
    if given.test_share is None:
        return {name: open_split(options, root, None if name == "all" else name) for name in given.split}
    if root.is_dir() and has_splits(root):
        sys.exit(f"--test_share {given.test_share} is for files without splits, {root} has some: leave it out")
    everything = open_split(options, root, None)
    try:
        in_test = validation_mask(everything.labels.numpy(), None, given.test_share, seed=0)
    except ValueError as error:
        sys.exit(f"--test_share {given.test_share}: {error}")
    splits = {}
    for name, mask in (("train", ~in_test), ("test", in_test)):
        splits[name] = copy.copy(everything)
        splits[name].paths = [path for path, chosen in zip(everything.paths, mask, strict=True) if chosen]
        splits[name].labels = everything.labels[torch.from_numpy(mask)]
    splits["test"].skipped = ()  # what is of neither split is listed once, in the first
    return splits


def first_fields(dataset: FileDataset) -> tuple[str, ...]:
    """What the first readable file has besides coordinates."""
    for index in range(len(dataset)):
        try:
            cloud = dataset.load(index)
        except BadFileError:
            continue  # refused or reported when its turn comes
        return tuple(name for name in FIELDS if getattr(cloud, name) is not None)
    return ()


def prepared(cloud: PointCloud, options: Options, number: int) -> PointCloud:
    """The points to store: a random subset in random order, normalised if so asked."""
    path = cloud.meta["path"]
    if len(cloud) < options.num_points:
        raise BadFileError(path, f"has {len(cloud)} points, --num_points asks for {options.num_points}")
    for name in options.fields:
        if getattr(cloud, name) is None:
            raise BadFileError(
                path,
                f"has no {name}, which the first file has; --fields chooses what is kept, and --on_error report leaves "
                "such files out",
            )
    generator = torch.Generator().manual_seed(options.seed * 2**32 + number)
    cloud = cloud.select(torch.randperm(len(cloud), generator=generator)[: options.num_points])
    cloud = cloud.replace(meta={**cloud.meta, "radius_m": 1.0})
    return Normalize(center="box")(cloud, generator) if options.normalize else cloud


def make_shard(dataset: FileDataset, options: Options, root: Path, start: int, stop: int) -> dict[str, Any]:
    """The arrays of items ``start`` to ``stop``, bad files listed under ``skipped_path`` and ``skipped_reason``.

    ``unkept`` has, for each item, what its file has and the shard has not, between blanks.
    """
    clouds: list[Any] = []
    ids, skipped = [], []
    others = [name for name in FIELDS if name not in options.fields]
    for index in range(start, stop):
        try:
            clouds.append(prepared(dataset.load(index), options, index))
            ids.append(dataset.paths[index].relative_to(root).with_suffix("").as_posix())
        except BadFileError as error:
            if options.on_error == "refuse":
                raise
            skipped.append((str(error.path), error.reason))
    shape = (len(clouds), options.num_points, 3)
    arrays: dict[str, Any] = {
        "points": np.array([cloud.xyz.numpy() for cloud in clouds], options.dtype).reshape(shape),
        "label": np.array([cloud.label for cloud in clouds], np.int16),
        "radius": np.array([cloud.meta["radius_m"] for cloud in clouds], np.float32),
        "id": np.array(ids, np.str_),
        "unkept": np.array([" ".join(n for n in others if getattr(c, n) is not None) for c in clouds], np.str_),
        "skipped_path": np.array([path for path, _ in skipped], np.str_),
        "skipped_reason": np.array([reason for _, reason in skipped], np.str_),
    }
    if "rgb" in options.fields:
        colours = [(cloud.rgb * 255).round().numpy() for cloud in clouds]
        arrays["rgb"] = np.array(colours, np.uint8).reshape(shape)
    if "normal" in options.fields:
        normals = [(cloud.normal * 127).round().numpy() for cloud in clouds]
        arrays["normals"] = np.array(normals, np.int8).reshape(shape)
    if options.parts is not None:
        parts = [np.where(cloud.segment < 0, UNKNOWN_PART, cloud.segment) for cloud in clouds]
        arrays["part"] = np.array(parts, np.uint8).reshape(shape[:2])
    return arrays


def write_shard(dataset: FileDataset, options: Options, root: Path, bounds: tuple[int, int], path: Path) -> str:
    """Write a shard under a passing name; returns its checksum."""
    torch.set_num_threads(1)
    arrays = make_shard(dataset, options, root, *bounds)
    with partial_name(path).open("wb") as file:
        np.savez_compressed(file, **arrays)
    return sha256(partial_name(path))


def partial_name(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Output:
    """The output folder with its manifest."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, folder / "manifest.sha256"
        folder.mkdir(parents=True, exist_ok=True)
        lines = self.manifest.read_text(encoding="utf-8").splitlines() if self.manifest.is_file() else []
        self.digests = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}

    def has(self, name: str) -> bool:
        """Whether this very file is there already.

        Raises:
            SystemExit: a file of that name is there, and it is another one.
        """
        path = self.folder / name
        if not path.exists():
            return False
        if self.digests.get(name) != sha256(path):
            sys.exit(f"{path} exists and is not what this conversion wrote: move it away or choose another folder")
        return True

    def write_text(self, name: str, text: str) -> None:
        """Write a small file, unless it is there with the same content.

        Raises:
            SystemExit: it is there with other content.
        """
        path = self.folder / name
        if path.exists() and path.read_text(encoding="utf-8") != text:
            sys.exit(
                f"{path} exists with other content (other options or files?): move it away or choose another folder"
            )
        self.renew_text(name, text)

    def renew_text(self, name: str, text: str) -> None:
        """Write a small file, also over what this conversion wrote there before.

        Raises:
            SystemExit: a file of that name is there, and it is another one.
        """
        self.has(name)
        path = self.folder / name
        partial_name(path).write_text(text, encoding="utf-8")
        self.finish(name, sha256(partial_name(path)))

    def finish(self, name: str, digest: str) -> None:
        """Give a file its name, after the manifest has learnt its checksum: a stop in between loses nothing."""
        self.digests[name] = digest
        self._write_manifest()
        os.replace(partial_name(self.folder / name), self.folder / name)

    def take_back(self, name: str) -> None:
        """Remove a file, and what the manifest says of it."""
        (self.folder / name).unlink()
        del self.digests[name]
        self._write_manifest()
        if not self.digests:
            self.manifest.unlink()

    def _write_manifest(self) -> None:
        text = "".join(f"{value}  {key}\n" for key, value in sorted(self.digests.items()))
        partial_name(self.manifest).write_text(text, encoding="utf-8")
        os.replace(partial_name(self.manifest), self.manifest)


def convert_split(
    options: Options, dataset: FileDataset, root: Path, name: str, output: Output, workers: int, fields_chosen: bool
) -> None:
    """Write the shards of one split that are not there yet, then its description."""
    size = options.shard_size
    plan = [(start, min(start + size, len(dataset))) for start in range(0, len(dataset), size)]
    shards = {f"{name}-{number:03}.npz": bounds for number, bounds in enumerate(plan)}
    missing = {shard: bounds for shard, bounds in shards.items() if not output.has(shard)}
    done = len(dataset) - sum(stop - start for start, stop in missing.values())
    with tqdm(total=len(dataset), initial=done, desc=name, unit="object", disable=None) as bar:
        for shard, digest in written(dataset, options, root, missing, output.folder, workers):
            output.finish(shard, digest)
            bar.update(missing[shard][1] - missing[shard][0])
    describe(options, dataset, name, list(shards), output, fields_chosen)


def written(
    dataset: FileDataset, options: Options, root: Path, shards: dict[str, tuple[int, int]], folder: Path, workers: int
) -> Iterator[tuple[str, str]]:
    """Write shards, several at a time, and give the name and checksum of each in order."""
    if workers == 1:
        for shard, bounds in shards.items():
            yield shard, write_shard(dataset, options, root, bounds, folder / shard)
        return
    # Forking a process that has run torch threads can hang; a fresh interpreter costs seconds, once.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            jobs = {
                shard: pool.submit(write_shard, dataset, options, root, bounds, folder / shard)
                for shard, bounds in shards.items()
            }
            for shard, job in jobs.items():
                yield shard, job.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def describe(
    options: Options, dataset: FileDataset, name: str, shards: list[str], output: Output, fields_chosen: bool
) -> None:
    """Write ``SPLIT.json`` from the shards and say what was left out, of fields unless they were chosen."""
    ids: list[str] = []
    unkept: list[tuple[str, str]] = []
    skipped = [{"path": str(file.path), "reason": file.reason} for file in dataset.skipped]
    kept = []
    counts = np.zeros(UNKNOWN_PART + 1, np.int64)
    for shard in shards:
        with np.load(output.folder / shard, allow_pickle=False) as arrays:
            ids += [str(item) for item in arrays["id"]]
            if "unkept" in arrays:  # a shard of an interrupted run may be older than this list
                unkept += zip(map(str, arrays["id"]), map(str, arrays["unkept"]), strict=True)
            if options.parts is not None:
                counts += np.bincount(arrays["part"].reshape(-1), minlength=UNKNOWN_PART + 1)
            if len(arrays["id"]) > 0:
                kept.append(shard)
            for path, reason in zip(arrays["skipped_path"], arrays["skipped_reason"], strict=True):
                skipped.append({"path": str(path), "reason": str(reason)})
    without = {} if fields_chosen else lacking(unkept)
    description = {
        "source": getattr(dataset, "source", "files"),
        "licence": getattr(dataset, "terms", "that of the files"),
        "split": name,
        "points_per_item": options.num_points,
        **({} if dataset.up == "z" else {"up": dataset.up}),
        "classes": list(dataset.classes),
        **({} if options.parts is None else {"parts": list(options.parts.names)}),
        "shards": kept,
        "items": [{"id": item} for item in ids],
        "skipped": skipped,
        **({"files_without": without} if without else {}),
    }
    # An earlier version may have said less of the same shards, such as nothing of the axis that points up.
    output.renew_text(f"{name}.json", json.dumps(description, indent=1) + "\n")
    print(f"{output.folder / name}.json: {len(ids)} objects in {len(kept)} shards, {len(skipped)} files left out")
    for file in skipped:
        print(f"  left out {file['path']}: {file['reason']}")
    for field, files in without.items():
        shown = ", ".join(files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
        print(
            f"  left out {field}: the first file has none, {len(unkept) - len(files)} of {len(unkept)} have some; "
            f"without: {shown or 'none'}. To keep it, convert the files that have it on their own"
        )
    if without and len(unkept) < len(ids):
        print(f"  not known of {len(ids) - len(unkept)} objects, whose shards an earlier version wrote")
    if options.parts is not None:
        named = [*zip(options.parts.names, counts, strict=False), ("no part", counts[UNKNOWN_PART])]
        print("  " + ", ".join(f"{name} {100 * count / max(1, counts.sum()):.1f} %" for name, count in named))


def lacking(unkept: list[tuple[str, str]]) -> dict[str, list[str]]:
    """For each field that some files have and the shards have not, the files without it, from what each has."""
    found = {name: [item for item, names in unkept if name not in names] for name in FIELDS}
    return {name: files for name, files in found.items() if len(files) < len(unkept)}


def run(given: argparse.Namespace) -> None:
    """Open every split first, so that what is missing is said before any work is done."""
    root = given.root.resolve()
    values = {name: getattr(given, name) for name in NAMES}
    probe = Options(**values, fields=())
    datasets = open_splits(probe, root, given)
    try:
        check_same_classes({name: dataset.classes for name, dataset in datasets.items()})
    except ValueError as error:
        sys.exit(str(error))
    output = Output(given.out)
    for name, dataset in datasets.items():
        # Splits that are drawn from one folder get the same fields, or a model of one could not be judged on the other.
        deciding = dataset if given.test_share is None else datasets["train"]
        fields = first_fields(deciding) if given.fields is None else tuple(given.fields)
        options = Options(**values, fields=fields)
        files = hashlib.sha256("\n".join(map(str, dataset.paths)).encode()).hexdigest()
        record = {**vars(options), "root": str(root), "sha256_of_file_list": files}
        for key in ("parts", "part_column"):
            if record[key] is None:
                del record[key]  # conversions without parts are continued that began when there was no such option
        if options.parts is not None:
            record["parts"] = vars(options.parts)
        kept = f"{name}-conversion.txt"
        output.write_text(kept, json.dumps(record, indent=1) + "\n")
        try:
            convert_split(options, dataset, root, name, output, given.workers, given.fields is not None)
        except BadFileError:
            for partial in given.out.glob(f"{name}-*.npz.partial"):  # of other processes
                partial.unlink()
            if not any(shard.startswith(f"{name}-") and shard.endswith(".npz") for shard in output.digests):
                output.take_back(kept)  # nothing was made with these options: others may be tried
            raise


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("root", type=Path, help="where the download was unpacked")
    parser.add_argument("out", type=Path, help="folder to write to")
    splits = parser.add_mutually_exclusive_group()
    splits.add_argument("--split", nargs="+", default=["train", "test"], help="'all' for a folder without splits")
    splits.add_argument("--test_share", type=float, help="of a folder without splits: share of each class for test")
    parser.add_argument("--num_points", type=int, default=8192, help="points per object (default: 8192)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling and order (default: 0)")
    parser.add_argument("--normalize", action="store_true", help="centre the box and scale into the unit sphere")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="float16 needs --normalize")
    parser.add_argument("--fields", nargs="*", choices=FIELDS, help="what to keep besides xyz (default: as first file)")
    parser.add_argument("--parts", type=Path, help="list of the parts of a folder's clouds (default: no parts)")
    parser.add_argument("--part_column", help="column with the parts (default: label, class, segment, ...)")
    parser.add_argument("--variant", choices=["modelnet40", "modelnet10"], help="lists of modelnet-resampled")
    parser.add_argument("--shard_size", type=int, default=500, help="objects per shard (default: 500)")
    parser.add_argument("--on_error", choices=["refuse", "report"], default="refuse", help="what to do with bad files")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes (default: all cores); 1 works in this one"
    )
    given = parser.parse_args(arguments)
    if given.dtype == "float16" and not given.normalize:
        parser.error("--dtype float16 resolves 0.0005 near 1 and far less beyond: add --normalize")
    for name in ("num_points", "shard_size", "workers"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(given, name)}")
    if given.test_share is not None and (given.kind != "folder" or not 0 < given.test_share < 1):
        parser.error(f"--test_share must be above 0 and below 1, and is for a folder; got {given.test_share}")
    if given.parts is not None and given.kind != "folder":
        parser.error(f"--parts is for clouds in a folder, and {given.kind} has none: leave it out")
    if given.variant is not None and given.kind != "modelnet-resampled":
        parser.error(f"--variant is for modelnet-resampled, and {given.kind} has no use for it: leave it out")
    if given.part_column is not None and given.parts is None:
        parser.error("--part_column needs --parts, the list of the parts")
    try:
        given.parts = None if given.parts is None else read_class_codes(given.parts)
        if given.parts is not None and len(given.parts.names) > UNKNOWN_PART:
            parser.error(f"--parts names {len(given.parts.names)} parts, and a shard holds at most {UNKNOWN_PART}")
        run(given)
    except (BadFileError, FileNotFoundError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)  # 128 + SIGINT, as pc3d ends


if __name__ == "__main__":
    main()
