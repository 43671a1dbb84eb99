"""``pc3d report``: one web page about a run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pc3d._files import check_writable
from pc3d.cli import _output
from pc3d.cli._devices import open_device
from pc3d.cli._inputs import OnError, left_out_lines
from pc3d.cli._parser import run_verb

if TYPE_CHECKING:
    from pc3d.evaluation import ProbeResult, Row
    from pc3d.viz.report import Section


def report(
    run: str,
    output: str | None = None,
    data: str = "run",
    split: str = "test",
    map: Literal["tsne", "pca", "none"] = "tsne",
    pictures: int = 6,
    probe: bool = False,
    results: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    device: str = "cpu",
    on_error: OnError = "refuse",
) -> None:
    """Write one web page about a run, which opens without a server or a network.

    It shows the configuration, the curves, the cost, scores and confusion matrices of eval/, rows of results, pictures
    of what the networks do, and a map of the embeddings with a picture of each object. Sections that do not apply to
    the run are left out, with the reason. If interrupted, the same command continues.

    Args:
        run: Run folder of pc3d pretrain, classify train, parts train or segment train; --run itself may be
            left out.
        output: The .html file; null takes report.html in the run folder.
        data: Objects for reconstructions, map and probes. 'run' takes the data set that the run was trained on;
            or 'household', or a folder, as pc3d probe does.
        split: Split of that data set; probes use train and test.
        map: How features are projected to the plane; 'none' leaves out the map.
        pictures: Objects or scenes (of these at most 3) in pictures; 0 for none.
        probe: Also evaluate the frozen encoder now, next to the same encoder untrained: linear SVM, with its confusion
            matrix, and nearest neighbours.
        results: Folder with rows of pc3d results; null takes those that lie in the run folder.
        seed: Seed of masks, map, folds and untrained weights.
        overwrite: Replace an earlier report.
        device: Where features and segmentations are computed, such as cpu or cuda.
        on_error: What to do with a file of an object that cannot be used: 'refuse' stops; 'report' leaves the file out
            and lists it.
    """
    from pc3d.cli import _report_map as features
    from pc3d.cli import _report_pictures as drawings
    from pc3d.cli import _report_results as judged
    from pc3d.cli import _report_run as stored
    from pc3d.cli._judging import kept_beside
    from pc3d.evaluation import Kept
    from pc3d.viz.report import write_report

    if pictures < 0:
        raise ValueError(f"pictures: must be at least 0, got {pictures}")
    open_device(device)
    opened = stored.open_run(run)
    unusable: dict[str, str] = {}
    path = opened.folder.path / "report.html" if output is None else Path(output)
    if path.suffix != ".html":
        raise ValueError(f"output: must end in .html, got {str(path)!r}")
    check_writable(path.parent, "output")
    if path.exists() and not overwrite:
        raise FileExistsError(f"output: {path} exists: add --overwrite to replace it, or give another --output")

    def objects() -> drawings.Objects:
        return drawings.objects_of(opened, data, split, on_error, unusable)

    def drawn(make: Callable[[], Section]) -> Callable[[], Section]:
        def section() -> Section:
            if not pictures:
                raise stored.NotApplicableError("not asked for (--pictures 0)")
            return make()

        return section

    @functools.cache
    def judged_now() -> tuple[list[Row], ProbeResult]:
        return features.probes(opened, objects(), seed, kept, device)

    def probes() -> Section:
        rows = _rows(opened.folder.path if results is None else Path(results), required=results is not None)
        note = ""
        if probe:
            rows += judged_now()[0]
            note = f"Judged now: linear SVM (C by cross-validation) and nearest neighbours, seed {seed}."
        return judged.probe_table(opened, rows, note)

    def segmentations() -> Section:
        return drawings.segmentations(opened, pictures, kept, device)

    with Kept(kept_beside(path, run, data, split, map, pictures, probe, seed, device, on_error)) as kept:
        sections = [
            _section("Configuration", lambda: stored.configuration(opened)),
            _section("Training curves", lambda: stored.curves(opened)),
            _section("Cost", lambda: stored.cost(opened)),
            _section("Results on held-out data", lambda: judged.results(opened)),
            _section("Confusion matrix", lambda: judged.confusion(opened, judged_now()[1] if probe else None)),
            _section("Frozen features", probes),
            _section("Reconstructions", drawn(lambda: drawings.reconstructions(opened, objects, pictures, seed))),
            _section("Segmentation of held-out data", drawn(segmentations)),
            _section(
                "Map of the embeddings", lambda: features.embedding_map(opened, objects(), map, seed, kept, device)
            ),
        ]
        write_report(path, opened.title, str(opened.folder.path.resolve()), sections)
    left_out = {section.title: section.note for section in sections if not section.parts}
    notes = [f"  left out: {title}: {note}" for title, note in left_out.items()]
    files = [{"path": path, "reason": reason} for path, reason in unusable.items()]
    text = "\n".join([f"{path}: {path.stat().st_size / 1e6:.1f} MB", *notes, *left_out_lines(files)])
    result = {"file": str(path), "bytes": path.stat().st_size, "left_out": left_out}
    _output.result(result if on_error == "refuse" else {**result, "left_out_files": files}, text)


def _section(title: str, make: Callable[[], Section]) -> Section:
    """A section, or why there is none: it does not apply, or what it is made of is not there."""
    from pc3d._extras import MissingExtraError
    from pc3d.cli._report_run import NotApplicableError
    from pc3d.viz.report import Section

    try:
        return make()
    except (NotApplicableError, FileNotFoundError, MissingExtraError) as reason:
        return Section(title, (), str(reason))


def _rows(folder: Path, *, required: bool) -> list[Row]:
    from pc3d.evaluation import read_rows
    from pc3d.evaluation.rows import SUFFIX

    # A run need not have been judged; a folder that was asked for must hold rows.
    return read_rows([folder]) if required or any(folder.rglob(f"*{SUFFIX}")) else []


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    return run_verb("report", report, argv, words=["run"])
