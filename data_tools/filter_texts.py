"""Judge which raw names of shapes say something, into the file that the data sets take as ``text_filter``.

    python data_tools/filter_texts.py ROOT SPLIT.json OUT.json
    python data_tools/filter_texts.py ROOT SPLIT.json OUT.json --url http://localhost:8000/v1 --model NAME

ROOT and SPLIT.json are OpenShape's released files. By default the package's rules judge; with ``--url`` and ``--model``
a language model behind any endpoint that speaks OpenAI's protocol (the key is read from OPENAI_API_KEY, if it is set),
asked in lists of 256 as OpenShape asked GPT-4. Only shapes of Objaverse are judged, as in the paper, whose names are
the uploaders'; ``--all`` judges those of all sets. An interrupted run goes on when called again with the same OUT.json,
which has the layout of ``gpt4_filtering.json``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]

from pc3d.data import BadFileError, MissingDataError, OpenShapeFiles
from pc3d.data.chat import ChatEndpoint
from pc3d.data.text_quality import Judge, LanguageModelJudge, by_rules, filter_texts


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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="where the paths of the list start")
    parser.add_argument("split", type=Path, help="the list, a JSON file")
    parser.add_argument("out", type=Path, help="the JSON file to write")
    parser.add_argument("--url", help="of an endpoint, such as http://localhost:8000/v1; rules judge when left out")
    parser.add_argument("--model", help="as the endpoint names it")
    parser.add_argument("--list-size", type=int, default=256, help="names per question (default: 256)")
    parser.add_argument("--all", action="store_true", help="judge the names of all sets, not of Objaverse alone")
    given = parser.parse_args(arguments)
    if (given.url is None) != (given.model is None):
        parser.error("--url and --model go together")
    try:
        texts = raw_texts(OpenShapeFiles(given.root, given.split), given.all)
        judge: Judge = by_rules
        if given.url is not None:
            judge = LanguageModelJudge(ChatEndpoint(given.url, given.model), given.list_size)
        with tqdm(total=len(texts), desc="judged", unit="name", disable=None) as bar:
            verdicts = filter_texts(texts, judge, given.out, progress=lambda done: bar.update(done - bar.n) or None)
    except (BadFileError, MissingDataError, OSError, ValueError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from here")
    lost = sum(not keep for keep in verdicts.values())
    print(f"{given.out}: {len(verdicts)} names, {lost} of them say nothing")


if __name__ == "__main__":
    main()
