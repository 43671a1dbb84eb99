"""Judge which raw names of shapes say something, into the file that the data sets take as ``text_filter``.

    python data_tools/filter_texts.py ROOT SPLIT.json OUT.json
    python data_tools/filter_texts.py ROOT SPLIT.json OUT.json --similarity 0.15
    python data_tools/filter_texts.py ROOT SPLIT.json OUT.json --url http://localhost:8000/v1 --model NAME

ROOT and SPLIT.json are OpenShape's released files. By default the package's rules judge; with ``--url`` and ``--model``
a language model behind any endpoint that speaks OpenAI's protocol (the key is read from OPENAI_API_KEY, if it is set),
asked in lists of 256 as OpenShape asked GPT-4. With ``--similarity`` a name passes whose feature has at least that
cosine with the mean of the shape's unit picture features; which cosines are right depends on the towers, so the tool
prints how they are spread. A shape without pictures keeps its name.

Only shapes of Objaverse are judged, as in the paper, whose names are the uploaders'; ``--all`` judges those of all
sets. An interrupted run goes on when called again with the same OUT.json, which has the layout of
``gpt4_filtering.json``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]

from pc3d.data import BadFileError, MissingDataError, OpenShapeFiles, Targets
from pc3d.data.chat import ChatEndpoint
from pc3d.data.text_quality import Judge, LanguageModelJudge, by_rules, filter_texts, text_picture_cosines


def raw_texts(dataset: OpenShapeFiles, everything: bool) -> dict[str, str]:
    """The first raw text of each shape that has one, by id."""
    found = {}
    for row in tqdm(range(len(dataset)), desc="names", unit="shape", disable=None):
        if not everything and dataset.records[row].get("dataset", "Objaverse") != "Objaverse":
            continue
        targets = dataset.load(row).meta["targets"]
        raw = [text for text, kind in zip(targets.texts, targets.text_kinds, strict=True) if kind == "raw"]
        if raw:
            found[dataset.ids[row]] = raw[0]
    return found


class SimilarityJudge:
    """Whether the name of a shape goes with its pictures, by id."""

    def __init__(self, dataset: OpenShapeFiles, threshold: float) -> None:
        self.dataset, self.threshold = dataset, threshold
        self.rows = {name: row for row, name in enumerate(dataset.ids)}
        self.cosines: list[float] = []
        self.without_picture = 0

    def __call__(self, names: Sequence[str]) -> list[bool]:
        return [self.judge(self.dataset.load(self.rows[name]).meta["targets"]) for name in names]

    def judge(self, targets: Targets) -> bool:
        if len(targets.image_features) == 0:
            self.without_picture += 1
            return True
        name = targets.text_features[[targets.text_kinds.index("raw")]]
        self.cosines.append(float(text_picture_cosines(name, targets.image_features)))
        return self.cosines[-1] >= self.threshold

    def told(self) -> str:
        """How the cosines of this run are spread."""
        if not self.cosines:
            return f"no cosines in this run; {self.without_picture} shapes without a picture keep their names"
        spread = ", ".join(f"{q:.0%}: {np.quantile(self.cosines, q):.3f}" for q in (0.01, 0.1, 0.3, 0.5, 0.9))
        return f"cosines of {len(self.cosines)} names: {spread}; {self.without_picture} without a picture keep theirs"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="where the paths of the list start")
    parser.add_argument("split", type=Path, help="the list, a JSON file")
    parser.add_argument("out", type=Path, help="the JSON file to write")
    parser.add_argument("--url", help="of an endpoint, such as http://localhost:8000/v1; rules judge when left out")
    parser.add_argument("--model", help="as the endpoint names it")
    parser.add_argument("--similarity", type=float, metavar="COSINE", help="judge by the shapes' pictures")
    parser.add_argument("--list_size", type=int, default=256, help="names per question (default: 256)")
    parser.add_argument("--all", action="store_true", help="judge the names of all sets, not of Objaverse alone")
    given = parser.parse_args(arguments)
    if (given.url is None) != (given.model is None):
        parser.error("--url and --model go together")
    if given.url is not None and given.similarity is not None:
        parser.error("give --similarity or --url, not both: one OUT.json has one judge")
    try:
        dataset = OpenShapeFiles(given.root, given.split)
        texts = raw_texts(dataset, given.all)
        judge: Judge = by_rules
        if given.similarity is not None:
            judge = SimilarityJudge(dataset, given.similarity)
        if given.url is not None:
            judge = LanguageModelJudge(ChatEndpoint(given.url, given.model), given.list_size)
        by_id = isinstance(judge, SimilarityJudge)
        with tqdm(total=len(texts), desc="judged", unit="name", disable=None) as bar:
            verdicts = filter_texts(
                texts, judge, given.out, by_id=by_id, progress=lambda done: bar.update(done - bar.n) or None
            )
    except (BadFileError, MissingDataError, OSError, ValueError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)  # 128 + SIGINT, as pc3d ends
    lost = sum(not keep for keep in verdicts.values())
    print(f"{given.out}: {len(verdicts)} names, {lost} of them say nothing")
    if isinstance(judge, SimilarityJudge):
        print(judge.told())


if __name__ == "__main__":
    main()
