"""Prepare scans for pc3d: a folder per scene with coord.npy, color.npy, ... (Pointcept's layout).

    python data_tools/prepare_scenes.py scannet ROOT OUT --labels scannetv2-labels.combined.tsv [--workers 4]
    python data_tools/prepare_scenes.py s3dis ROOT OUT [--align] [--normals estimated]
    python data_tools/prepare_scenes.py structured3d ROOT OUT [--depth z|range] [--axes world|mirrored]
    python data_tools/prepare_scenes.py files ROOT OUT [--classes LIST [--label_column NAME]] [--test_share 0.2]

ROOT is where the download lies: for scannet any folder above the scans' own (``scans/sceneSSSS_TT``), for s3dis the
one with ``Area_1`` to ``Area_6`` or one above it, for structured3d the one with the zip archives, which stay packed.
OUT is then read with ``pc3d.data.ScanNet(OUT)``, ``S3DIS(OUT)`` or ``Structured3D(OUT)``, and checked with
``sha256sum --check manifest.sha256``.

files takes your own scans (PLY, PCD, LAS, LAZ, E57, XYZ, CSV, PTS, NPY, NPZ, BIN) for ``pc3d.data.SceneFolder(OUT)``.
Sub-folders of ROOT are splits, such as train and test; without any, all files are train, or a share of them test. With
--classes (or ROOT/classes.txt), the classes of the points are read, too: LIST has a name on each line, of the numbers
0, 1, ... in the files; or a number and a name, such as "6 building", and points with other numbers have no class. Scans
without colours become grey, and normals are estimated where there are none, so that every recipe can train on them.

An interrupted run goes on where it stopped when called again with the same options: scenes that are in the manifest
and whole are kept. A scene in OUT that this tool has not written is never overwritten; the run stops and names it, as
it does where files of your own were changed, removed or moved to another split since. Bad files stop the run by name
too; ``--on_error report`` leaves their scenes out and lists them at the end. Whatever had to be repaired or guessed is
printed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from pc3d.data import S3DIS, BadFileError, MissingDataError, ScanNet, SceneFolder, Structured3D
from pc3d.data.files import read_lines, visible_files
from pc3d.data.points import SCENE_SUFFIXES, files_read
from pc3d.data.raw_s3dis import read_s3dis_room
from pc3d.data.raw_scannet import read_scannet_categories, read_scannet_scan
from pc3d.data.raw_structured3d import find_structured3d_rooms, read_structured3d_room
from pc3d.data.scan_files import read_class_codes, read_scan
from pc3d.data.scene_labels import S3DIS_CLASSES, STRUCTURED3D_CLASSES, scannet_split
from pc3d.data.scenes import CLASSES_FILE, find_below
from pc3d.data.sweeps import classes_beside


class Reader(Protocol):
    def __call__(self) -> tuple[dict[str, Any], list[str]]: ...


@dataclass(frozen=True)
class Job:
    """One scene: its folder below OUT, what reads it, and the files that are read if they are the user's own."""

    name: str
    read: Reader
    sources: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Done:
    """What came of a job: checksums by file name (None: it was there), notes, or the reason why it was left out.

    ``made_of`` has the :func:`versions` of the files that were read.
    """

    name: str
    digests: dict[str, str] | None
    notes: list[str]
    failure: str | None = None
    made_of: dict[str, list[int]] | None = None


def passing_place(out: Path, name: str) -> Path:
    """Where a scene is written before it is whole: beside the splits, so that nobody reads half of one."""
    return out / "partial" / name


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def versions(files: tuple[Path, ...]) -> dict[str, list[int]]:
    """What tells a file from another in its place: size in bytes, and time of the last change in nanoseconds."""
    return {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


def work(job: Job, out: Path, known: dict[str, str], on_error: str) -> Done:
    """Write one scene under a passing name, unless it is there whole."""
    torch.set_num_threads(1)
    folder = out / job.name
    if folder.exists():
        found = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}
        if not known or found != known:
            raise SystemExit(f"{folder} exists and is not what this tool wrote: move it away or choose another folder")
        return Done(job.name, None, [])
    made_of = versions(job.sources)  # before they are read: a change meanwhile must be noticed
    try:
        arrays, notes = job.read()
    except BadFileError as error:
        if on_error == "refuse":
            raise
        return Done(job.name, None, [], str(error))
    passing = passing_place(out, job.name)
    if passing.exists():
        shutil.rmtree(passing)  # what an interrupted run left
    passing.mkdir(parents=True)
    for name, values in arrays.items():
        np.save(passing / f"{name}.npy", values)
    digests = {path.name: sha256(path) for path in sorted(passing.iterdir())}
    return Done(job.name, digests, notes, made_of=made_of)


def whole_lines(path: Path) -> list[str]:
    """The lines of a list to which lines are only ever added, without one within which a run was stopped."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return whole.splitlines()


class Output:
    """The output folder with its manifest, and a list of the user's own files that scenes were made of."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.folder, self.manifest, self.sources = folder, folder / "manifest.sha256", folder / "sources.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self.record, text = folder / "preparation.json", json.dumps(options, indent=1) + "\n"
        if self.record.exists() and self.record.read_text(encoding="utf-8") != text:
            sys.exit(f"{self.record} exists with other options: move it away or choose another folder")
        self.record.write_text(text, encoding="utf-8")
        self.digests: dict[str, dict[str, str]] = {}
        self.made_of: dict[str, dict[str, list[int]]] = {}
        for line in whole_lines(self.sources):
            self.made_of.update(json.loads(line))
        for line in whole_lines(self.manifest):
            digest, _, name = line.partition("  ")
            scene, _, file = name.rpartition("/")
            self.digests.setdefault(scene, {})[file] = digest

    def finish(self, done: Done) -> None:
        """Give a scene its name, after the lists have learnt about it: a stop in between loses nothing."""
        if done.digests is None:
            return
        if done.made_of:
            with self.sources.open("a", encoding="utf-8") as file:
                file.write(json.dumps({done.name: done.made_of}) + "\n")
        if self.digests.get(done.name) != done.digests:
            with self.manifest.open("a", encoding="utf-8") as file:
                file.write("".join(f"{value}  {done.name}/{name}\n" for name, value in done.digests.items()))
        self.digests[done.name] = done.digests
        (self.folder / done.name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(passing_place(self.folder, done.name), self.folder / done.name)


def results(jobs: list[Job], output: Output, on_error: str, workers: int) -> Iterator[Done]:
    """What comes of the jobs, in the order in which they finish."""
    tasks = (partial(work, job, output.folder, output.digests.get(job.name, {}), on_error) for job in jobs)
    if workers == 1:
        for task in tasks:
            yield task()
        return
    # Forking a process that has run torch threads can hang; a fresh interpreter costs seconds, once.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            # A few ahead of the workers, so that twenty thousand rooms do not queue up.
            running: set[Future[Done]] = {pool.submit(task) for task in islice(tasks, 2 * workers)}
            while running:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
                running |= {pool.submit(task) for task in islice(tasks, len(finished))}
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def scannet_jobs(given: argparse.Namespace) -> list[Job]:
    if given.labels is None or not given.labels.is_file():
        sys.exit(f"--labels must name scannetv2-labels.combined.tsv, which comes with the download; got {given.labels}")
    categories = read_scannet_categories(given.labels)
    folders = [path.parent for path in find_below(given.root, "*_vh_clean_2.ply")]
    jobs = []
    for folder in folders:
        try:
            split = scannet_split(folder.name)
        except ValueError:
            if given.other_split is None:
                sys.exit(f"{folder} is not an official scan: --other_split says into which split such scans go")
            split = given.other_split
        read = partial(read_scannet_scan, folder, categories, labels_required=split != "test")
        jobs.append(Job(f"{split}/{folder.name}", read))
    return jobs or missing(
        "ScanNet scans", given.root / "scans" / "SCENE" / "SCENE_vh_clean_2.ply", given.root, ScanNet
    )


def s3dis_jobs(given: argparse.Namespace) -> list[Job]:
    rooms = [path.parent for path in find_below(given.root, "Area_[1-6]/*/Annotations", levels=(0, 1, 2))]
    read = partial(read_s3dis_room, align=given.align, normals=given.normals)
    jobs = [Job(f"{room.parent.name}/{room.name}", partial(read, room)) for room in rooms]
    return jobs or missing("S3DIS rooms", given.root / "Area_1" / "ROOM" / "Annotations", given.root, S3DIS)


def structured3d_jobs(given: argparse.Namespace) -> list[Job]:
    archives = find_below(given.root, "*.zip", levels=(0,))
    rooms = find_structured3d_rooms(tqdm(archives, desc="listing archives", disable=None))
    read = partial(read_structured3d_room, depth=given.depth, axes=given.axes)
    # room 485142 of the archive becomes room_485142, as Pointcept names it
    jobs = [Job(f"{room.split}/{room.scene}/room_{room.room}", partial(read, room)) for room in rooms]
    return jobs or missing("Structured3D archives", given.root / "*.zip", given.root, Structured3D)


def file_jobs(given: argparse.Namespace) -> list[Job]:
    read = partial(
        read_scan,
        codes=None if given.classes is None else read_class_codes(given.classes),
        labels=given.label_column,
        scale=given.scale,
        y_up=given.up == "y",
        cell=given.cell,
        drop_invalid=given.drop_invalid,
    )
    out = given.out.resolve()
    if out == given.root:
        sys.exit(f"OUT is ROOT, {out}: choose another folder, so that results do not lie among the scans")
    lists = (given.classes, given.root / CLASSES_FILE)
    # OUT may lie within ROOT: what an earlier run wrote there is no scan.
    found = [path for path in visible_files(given.root) if path not in lists and not path.is_relative_to(out)]
    scans = [path for path in found if path.suffix.lower() in SCENE_SUFFIXES]
    # The classes of sweeps lie in files of their own.
    read_too = (".label",) if given.classes is not None and any(path.suffix.lower() == ".bin" for path in scans) else ()
    others = [str(p.relative_to(given.root)) for p in found if p.suffix.lower() not in (*SCENE_SUFFIXES, *read_too)]
    if others:
        print(f"not read: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}")
    splits = {path: path.relative_to(given.root).parts[:-1] for path in scans}
    flat = [path for path in scans if not splits[path]]
    if flat and len(flat) < len(scans):
        sys.exit(f"{flat[0]} lies beside the folders of the splits: move it into one of them")
    if given.test_share and len(flat) < len(scans):
        sys.exit(f"--test_share {given.test_share} is for files without splits, {given.root} has folders: leave it out")
    order = np.random.default_rng(0).permutation(len(flat))
    test = {flat[i] for i in order[: round(given.test_share * len(flat))]}
    jobs = []
    for path in scans:
        split, *within = splits[path] or ("test" if path in test else "train",)
        if split == passing_place(out, "").name:
            sys.exit(f"{path}: unfinished scenes lie in OUT/{split}, and no split may have its name: rename the folder")
        classes = classes_beside(path) if given.classes is not None and path.suffix.lower() == ".bin" else None
        sources = (*files_read(path), *(() if classes is None else (classes,)))
        jobs.append(Job(f"{split}/{'-'.join([*within, path.stem])}", partial(read, path), sources))
    return jobs or missing("scans", given.root / "train" / "SCAN.ply", given.root, SceneFolder)


def check_unchanged(jobs: list[Job], output: Output, root: Path) -> None:
    """Refuse to go on where scenes of an earlier run are of files that were changed, removed or moved to another split.

    Kept, they would be stale, or, where a new file makes others trade splits, in both train and test.
    """
    names = {job.name for job in jobs}
    for name in output.digests:
        if name not in names and (output.folder / name).exists():
            sys.exit(
                f"{output.folder / name} is of no file that {root} has for this split now: choose another folder, or "
                f"delete {output.folder} to prepare all anew"
            )
    for job in jobs:
        changed = changed_file(job, output)
        if changed is not None:
            sys.exit(
                f"{changed} is not what {output.folder / job.name} was made of, by its size and the time of its "
                f"last change: choose another folder, or delete {output.folder} to prepare all anew"
            )


def changed_file(job: Job, output: Output) -> str | None:
    """A file that is not what the scene was made of; None if there is none, or no scene yet."""
    made = output.folder / job.name / "coord.npy"
    if not made.is_file():
        return None
    before, now = output.made_of.get(job.name), versions(job.sources)
    if before is None:  # Earlier versions kept no list: what is newer than the scene was changed.
        return next((path for path, (_, time) in now.items() if time > made.stat().st_mtime_ns), None)
    return next((path for path in {**now, **before} if before.get(path) != now.get(path)), None)


def missing(name: str, looked_for: Path, root: Path, dataset: Any) -> list[Job]:
    raise MissingDataError.of(name, [looked_for], root, dataset.source, dataset.terms)


OPTIONS = {
    "scannet": ("labels", "other_split"),
    "s3dis": ("align", "normals"),
    "structured3d": ("depth", "axes"),
    "files": ("classes", "label_column", "scale", "up", "cell", "drop_invalid", "test_share"),
}
"""What only one kind takes."""
CLASSES = {"s3dis": S3DIS_CLASSES, "structured3d": STRUCTURED3D_CLASSES}
"""Of ``segment.npy``; ScanNet has two files of classes, of other names."""
KINDS = {"scannet": scannet_jobs, "s3dis": s3dis_jobs, "structured3d": structured3d_jobs, "files": file_jobs}


def run(given: argparse.Namespace) -> None:
    """List every scene first, so that what is missing is said before any work is done."""
    jobs = KINDS[given.kind](given)
    names = [job.name for job in jobs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        sys.exit(f"{given.root} holds {twice} more than once: name the folder of one copy")
    options: dict[str, Any] = {"kind": given.kind, "root": str(given.root)}
    if given.kind == "scannet":
        options.update(labels=sha256(given.labels), other_split=given.other_split)
    if given.kind == "s3dis":
        options.update(align=given.align, **({} if given.normals == "none" else {"normals": given.normals}))
    if given.kind == "structured3d":
        options.update(depth=given.depth, axes=given.axes)
    if given.kind == "files":
        kept = ("label_column", "scale", "up", "cell", "drop_invalid", "test_share")
        options.update({name: getattr(given, name) for name in kept})
        options.update(classes=None if given.classes is None else sha256(given.classes))
    output = Output(given.out, options)
    if given.kind == "files":
        check_unchanged(jobs, output, given.root)
    listed = given.out / CLASSES_FILE
    # So that the folder can be read as one of any scenes, too; the user may have named them by then.
    classes = CLASSES.get(given.kind, ()) if not listed.exists() else ()
    if given.kind == "files" and given.classes is not None:
        classes = read_class_codes(given.classes).names
    if classes:
        listed.write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    failures = []
    try:
        with tqdm(total=len(jobs), desc=given.kind, unit="scene", disable=None) as bar:
            for done in results(jobs, output, given.on_error, given.workers):
                output.finish(done)
                for note in done.notes:
                    tqdm.write(note)
                if done.failure is not None:
                    failures.append(done.failure)
                bar.update()
    except BadFileError:
        if not output.digests:
            output.record.unlink()  # nothing was made with these options: others may be tried
        raise
    shutil.rmtree(given.out / "partial", ignore_errors=True)  # empty folders by now
    print(f"{given.out}: {len(jobs) - len(failures)} scenes, {len(failures)} left out")
    for failure in failures:
        print(f"  left out {failure}")
    if given.kind == "s3dis" and given.normals == "none":
        print("  without normals, which the download does not have: models on it read xyz_rgb (or --normals estimated)")
    if given.kind == "files" and given.classes is not None:
        print(class_shares(given.out))


def class_shares(out: Path) -> str:
    """How many of the labelled training points each class has, and weights that let rare ones count, in words."""
    names = read_lines(out / CLASSES_FILE)
    counts = np.zeros(len(names), np.int64)
    for path in sorted(out.glob("train/*/segment.npy")):
        segment = np.load(path)
        counts += np.bincount(segment[segment >= 0], minlength=len(names))
    shares = counts / max(1, counts.sum())
    listed = ", ".join(f"{name} {100 * share:.1f} %" for name, share in zip(names, shares, strict=True))
    weights = ", ".join(f"{(share + 0.01) ** -0.5:.1f}" for share in shares)
    return f"classes of train: {listed}\nweights for rare classes: --model.class_weights '[{weights}]'"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("root", type=Path, help="where the download lies")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--labels", type=Path, help="scannet: scannetv2-labels.combined.tsv")
    parser.add_argument("--other_split", help="scannet: split of scans that are not official ones (default: refuse)")
    parser.add_argument("--align", action="store_true", help="s3dis, unaligned version: turn walls along the axes")
    parser.add_argument(
        "--normals",
        choices=["none", "estimated"],
        default="none",
        help="s3dis: the download has no normals; estimated from the 16 nearest points of each, or none (default)",
    )
    parser.add_argument(
        "--depth", choices=["z", "range"], default="z", help="structured3d: what perspective depth means (default: z)"
    )
    parser.add_argument(
        "--axes", choices=["world", "mirrored"], default="world", help="structured3d: mirrored as in Pointcept"
    )
    parser.add_argument(
        "--classes", type=Path, help=f"files: list of the classes (default: {CLASSES_FILE} of ROOT; none: no labels)"
    )
    parser.add_argument("--label_column", help="files: column with the classes (default: label, classification, ...)")
    parser.add_argument("--scale", type=float, default=1.0, help="files: metres of one unit; 0.001 for mm (default: 1)")
    parser.add_argument("--up", choices=["y", "z"], default="z", help="files: axis that points up (default: z)")
    parser.add_argument(
        "--cell", type=float, help="files: keep one point in each cube of this edge in m (default: all)"
    )
    parser.add_argument("--drop_invalid", action="store_true", help="files: leave out points that are not finite")
    parser.add_argument("--test_share", type=float, default=0.0, help="files without splits: share of them for test")
    parser.add_argument("--on_error", choices=["refuse", "report"], default="refuse", help="what to do with bad files")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes (default: all cores); 1 works in this one"
    )
    given = parser.parse_args(arguments)
    if given.workers < 1:
        parser.error(f"--workers must be at least 1, got {given.workers}")
    for kind, name in ((kind, name) for kind, names in OPTIONS.items() for name in names):
        if kind != given.kind and getattr(given, name) != parser.get_default(name):
            parser.error(f"--{name} is for {kind}, and {given.kind} has no use for it: leave it out")
    if not 0 <= given.test_share < 1:
        parser.error(f"--test_share must be at least 0 and below 1, got {given.test_share}")
    if not given.scale > 0 or (given.cell is not None and not given.cell > 0):
        parser.error(f"--scale and --cell must be positive, got {given.scale} and {given.cell}")
    given.root = given.root.resolve()
    if given.classes is None and (given.root / CLASSES_FILE).is_file():
        given.classes = given.root / CLASSES_FILE
    elif given.classes is not None:
        given.classes = given.classes.resolve()
    elif given.kind == "files" and given.label_column is not None:
        parser.error(f"--label_column needs --classes or {given.root / CLASSES_FILE}: without names, no class is read")
    try:
        run(given)
    except (BadFileError, FileNotFoundError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)  # 128 + SIGINT, as pc3d ends


if __name__ == "__main__":
    main()
