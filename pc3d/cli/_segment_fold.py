"""``pc3d segment fold``: the results of several folds as one, as S3DIS 6-fold is scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pc3d._files import check_writable
from pc3d.cli import _output
from pc3d.cli._judging import check_rows_folder
from pc3d.cli._parser import verb_parser, words_first

if TYPE_CHECKING:
    from pc3d.evaluation import ConfusionMatrix, Row

_DESCRIPTION = """Add up the results of several folds.

Confusion matrices are summed before anything is divided, as S3DIS 6-fold is scored: the mIoU printed is not the mean of
the folds' mIoU. For the six areas, train one run for each and evaluate it on the area that it has not seen: pc3d
segment eval runs/area_1 --data s3dis --root FOLDER --test_area 1 --voting s3dis

With --results, the folds together become a row of pc3d results, if each was evaluated with --results as well."""
_HOW = ("voting", "use_fragments", "max_points", "context")


@dataclass(frozen=True)
class _Fold:
    """What a file that ``pc3d segment eval`` wrote says."""

    path: Path
    content: dict[str, Any]
    matrix: ConfusionMatrix

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.content["per_class"])


def build_parser() -> Any:
    """The parser of the verb."""
    parser = verb_parser("segment fold", _DESCRIPTION)
    parser.add_argument(
        "folds",
        type=str,
        nargs="+",
        help="A file that pc3d segment eval wrote, for each fold; or a run folder whose eval/ has one such file.",
    )
    parser.add_argument("--output", type=str, help="Folder for folds.json and folds.png; without it, print only.")
    parser.add_argument("--overwrite", action="store_true", help="Replace earlier results.")
    parser.add_argument("--results", type=str, help="Folder for a row of pc3d results.")
    parser.add_argument("--method", type=str, help="Name in the table of results; that of the folds by default.")
    return parser


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    from pc3d._files import replace_text
    from pc3d.cli._segment_eval import draw_confusion
    from pc3d.cli._segment_row import row_of_folds
    from pc3d.evaluation import sum_folds, write_rows

    parser = build_parser()
    options = parser.parse_args(words_first(parser, argv))
    check_rows_folder(options.results, options.method)
    targets = [Path(options.output) / f"folds.{ending}" for ending in ("json", "png")] if options.output else []
    if options.output:
        check_writable(Path(options.output), "output")
    taken = [str(target) for target in targets if target.exists()]
    if taken and not options.overwrite:
        raise FileExistsError(f"{taken[0]} exists: add --overwrite to replace it, or give another --output")
    folds = [_read(_result_file(Path(result))) for result in options.folds]
    _check_alike(folds)
    matrix = sum_folds(fold.matrix for fold in folds)
    scores = matrix.scores(folds[0].classes)
    listed = [{name: fold.content[name] for name in ("run", "data", "num_scenes", "miou")} for fold in folds]
    head = {"folds": listed, "num_scenes": sum(fold.content["num_scenes"] for fold in folds), "scenes": matrix.scenes}
    result = {**head, **{name: folds[0].content[name] for name in _HOW}, **scores.to_dict()}
    if options.results is not None:
        paths = [fold.path for fold in folds]
        write_rows([row_of_folds([_row(fold) for fold in folds], paths, scores, options.method)], options.results)
    written = ""
    if targets:
        replace_text(targets[0], json.dumps(result, indent=2) + "\n")
        title = f"{len(folds)} folds: mIoU {100 * scores.miou:.1f} %"
        written = f"\n\nwritten: {targets[0]}{draw_confusion(scores, targets[1], title)}"
    lines = [
        f"{fold.path}: {fold.content['num_scenes']} scenes, mIoU {100 * fold.content['miou']:.2f} %" for fold in folds
    ]
    text = "\n".join(lines)
    _output.result(result, f"{text}\n\n{scores}{written}")
    return None


def _result_file(path: Path) -> Path:
    """The file itself, or the one in ``eval/`` of a run folder."""
    if path.is_file():
        return path
    found = sorted((path / "eval").glob("*.json"))
    if not found:
        raise FileNotFoundError(
            f"{path} is neither a result of pc3d segment eval nor a run folder with one in eval/: "
            f"write it with pc3d segment eval {path}"
        )
    if len(found) > 1:
        raise ValueError(f"{path} has several results, {', '.join(map(str, found))}: name the one that counts")
    return found[0]


def _read(path: Path) -> _Fold:
    import torch

    from pc3d.evaluation import ConfusionMatrix

    again = "write it again with pc3d segment eval"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): {again}") from error
    needed = ("run", "data", "num_scenes", "scenes", *_HOW, "miou", "per_class", "confusion")
    missing = [name for name in needed if not isinstance(content, dict) or name not in content]
    if missing:
        raise ValueError(f"{path} has no {missing[0]!r}, so it is not a result of one evaluation: {again}")
    rows, num_classes = content["confusion"], len(content["per_class"])
    if (
        not num_classes
        or [len(row) for row in rows] != [num_classes + 1] * num_classes
        or not all(type(count) is int and 0 <= count < 1 << 63 for row in rows for count in row)
    ):
        raise ValueError(f"{path}: confusion must be {num_classes} rows of {num_classes + 1} counts: {again}")
    matrix = ConfusionMatrix(num_classes)
    matrix.counts, matrix.scenes = torch.tensor(rows, dtype=torch.int64), tuple(content["scenes"])
    return _Fold(path, content, matrix)


def _row(fold: _Fold) -> Row:
    from pc3d.evaluation.rows import row_from

    if "row" not in fold.content:
        raise ValueError(
            f"results: {fold.path} does not tell what its run was trained on, which a row does: judge it again with "
            "pc3d segment eval --results, or leave --results out"
        )
    return row_from(fold.content["row"], fold.path)


def _check_alike(folds: Sequence[_Fold]) -> None:
    """Refuses folds of other classes, judged in another way, or with a scene in common."""
    if len(folds) < 2:
        raise ValueError(f"folds: give at least two folds to add up, got {folds[0].path} alone")
    first = folds[0]
    seen: dict[str, Path] = {}
    for fold in folds:
        if fold.classes != first.classes:
            raise ValueError(f"{fold.path} and {first.path} have other classes: add up folds of one data set")
        for name in _HOW:
            ours, theirs = fold.content[name], first.content[name]
            if ours != theirs:
                raise ValueError(
                    f"{fold.path} was judged with {name} {ours}, {first.path} with {theirs}: "
                    "judge all folds in the same way"
                )
        for scene in fold.matrix.scenes:
            if scene in seen:
                raise ValueError(
                    f"scene {scene!r} is in {seen[scene]} and in {fold.path}: its points would count twice; give "
                    "each fold once, judged on the part that it held out"
                )
            seen[scene] = fold.path
