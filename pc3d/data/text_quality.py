"""Filter uninformative names of shapes: by rules, by similarity with pictures, or by a language model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from pc3d._files import replace_text
from pc3d.data.chat import ChatEndpoint
from pc3d.data.dataset import BadFileError

Judge = Callable[[Sequence[str]], Sequence[bool]]
"""Of each text, or of the text of each id, whether it says something about an object."""

# Words that names of uploaded models consist of where nobody named them.
_WORDS = (
    "untitled unnamed noname model models mesh object obj objects scene test testing tests demo sample samples "
    "example file files export exported import imported download upload uploaded final finished version ver rev copy "
    "new old temp tmp draft wip work project projects assignment homework exercise practice tutorial lesson week day "
    "part parts piece group default blend blender maya sketchfab fbx stl gltf glb ply dae usdz max zip unity unreal "
    "sculpt sculpting sculptjanuary render lowpoly low poly highpoly high scan scanned photogrammetry the and for with "
    "from this that mine asset assets stuff thing things something random name "
    "img dsc dscn image capture screenshot"
)
_GENERIC = frozenset(_WORDS.split())
_WORD = re.compile(r"[^\W\d_]+")
_VOWEL = re.compile(r"[aeiouyàáâãäåæèéêëìíîïòóôõöøùúûüœ]", re.IGNORECASE)


def why_silent(text: str) -> str | None:
    """The rule by which a text is uninformative about an object; None if it may be informative.

    A text passes if one word could name something. In Latin script, such a word has three or more letters with a vowel,
    is not followed by a digit, and is not typical of unnamed models. In other scripts, any word passes. The rules err
    on the side of keeping texts; a language model (:class:`LanguageModelJudge`) knows more.
    """
    if not text.strip():
        return "empty"
    # CamelCase and snake_case are several words.
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    words = [(match.group(), spaced[match.end() : match.end() + 1]) for match in _WORD.finditer(spaced)]
    if not words:
        return "no letters"
    named = [word for word, after in words if not (word.isascii() and after.isdigit())]
    meaningful = [word for word in named if not word.isascii() or (len(word) > 2 and _VOWEL.search(word))]
    if not meaningful:
        return "letters and digits that are no words"
    return None if any(word.lower() not in _GENERIC for word in meaningful) else "generic words alone"


def by_rules(texts: Sequence[str]) -> list[bool]:
    """Judge each text by rules: True if :func:`why_silent` finds nothing against it."""
    return [why_silent(text) is None for text in texts]


def text_picture_cosines(text_features: Tensor, image_features: Tensor) -> Tensor:
    """Similarity of each text of a shape to its pictures; the right threshold depends on the towers.

    Args:
        text_features: ``(T, D)``, in one space with the pictures.
        image_features: ``(V, D)``, V at least 1.

    Returns:
        ``(T,)`` cosines with the mean of the unit picture features.

    Raises:
        ValueError: shapes that do not fit, or no picture.
    """
    if text_features.ndim != 2 or image_features.ndim != 2 or text_features.shape[1] != image_features.shape[1]:
        raise ValueError(
            f"text_features and image_features must be (T, D) and (V, D) in one space, got "
            f"{tuple(text_features.shape)} and {tuple(image_features.shape)}"
        )
    if len(image_features) == 0:
        raise ValueError("image_features must have a row: without a picture there is nothing to compare texts with")
    mean = F.normalize(image_features.float(), dim=1).mean(0)
    return F.cosine_similarity(text_features.float(), mean[None], dim=1)


class LanguageModelJudge:
    """Ask a language model, in numbered lists, which texts are informative, as OpenShape asked GPT-4 (section 3.2).

    Args:
        endpoint: where to ask.
        batch_size: texts per question; published 256.
        attempts: how often to ask again for entries that the answer left out.

    Raises:
        ValueError: a number below 1.
    """

    _TASK = (
        "Below is a numbered list of names of 3D models. For each, answer Y if it has a clear noun or noun phrase that "
        "could describe an object, and N if it is mainly irrelevant or uninformative: time stamps, model numbers, "
        "generic or random file names, unintelligible strings. Answer with one line per entry and nothing else, each "
        "the number, a colon and Y or N, as in\n1: Y\n2: N\n\n"
    )
    _ANSWER = re.compile(r"^\W{0,4}(\d+)\W{1,5}([YN])\b", re.MULTILINE | re.IGNORECASE)

    def __init__(self, endpoint: ChatEndpoint, batch_size: int = 256, attempts: int = 3) -> None:
        if batch_size < 1 or attempts < 1:
            raise ValueError(f"batch_size and attempts must be at least 1, got {batch_size} and {attempts}")
        self.endpoint, self.batch_size, self.attempts = endpoint, batch_size, attempts

    def __call__(self, texts: Sequence[str]) -> list[bool]:
        """Of each text, whether it says something.

        Raises:
            ValueError: the model did not answer for all of them.
            OSError: the endpoint cannot be reached, or refuses.
        """
        found: dict[int, bool] = {}
        for _ in range(self.attempts):
            for start in range(0, len(texts), self.batch_size):
                open_ = [i for i in range(start, min(start + self.batch_size, len(texts))) if i not in found]
                if open_:
                    found |= self._ask(texts, open_)
        missing = [texts[i] for i in range(len(texts)) if i not in found]
        if missing:
            raise ValueError(
                f"{self.endpoint.model} gave no Y or N for {len(missing)} of {len(texts)} texts in {self.attempts} "
                f"attempts, the first is {missing[0]!r}: try a smaller batch_size, or another model"
            )
        return [found[i] for i in range(len(texts))]

    def _ask(self, texts: Sequence[str], rows: Sequence[int]) -> dict[int, bool]:
        # A name with line breaks would look like several entries.
        entries = (f"{number}: {' '.join(texts[row].split())}" for number, row in enumerate(rows, start=1))
        answer = self.endpoint.ask(self._TASK + "\n".join(entries))
        said = {int(number): word.upper() == "Y" for number, word in self._ANSWER.findall(answer)}
        return {row: said[number] for number, row in enumerate(rows, start=1) if number in said}


def filter_texts(
    texts: Mapping[str, str],
    judge: Judge,
    path: Path | str,
    *,
    by_id: bool = False,
    batch_size: int = 2560,
    progress: Callable[[int], None] | None = None,
) -> dict[str, bool]:
    """Judge the raw texts of shapes and store the verdicts, in the layout of OpenShape's ``gpt4_filtering.json``.

    The file is replaced after each batch. Texts that are already in it are not judged again.

    Args:
        texts: by id.
        judge: :func:`by_rules`, a :class:`LanguageModelJudge`, or any other.
        path: the JSON file, which the data sets take as ``text_filter``.
        by_id: pass ids to the judge instead of texts, for a judge that looks at the pictures of the shapes.
        batch_size: texts between two writings.
        progress: called with the number of texts done.

    Returns:
        By id, whether the text is informative.

    Raises:
        BadFileError: the file is there, and is none of these, or was made of other texts.
    """
    path = Path(path)
    entries = _read_entries(path) if path.exists() else {}
    changed = [name for name, entry in entries.items() if texts.get(name, entry["name"]) != entry["name"]]
    if changed:
        raise BadFileError(path, f"has another text for {changed[0]!r}, and {len(changed) - 1} more: use another file")
    waiting = [name for name in texts if name not in entries]
    for start in range(0, len(waiting), batch_size):
        names = waiting[start : start + batch_size]
        verdicts = judge(names if by_id else [texts[name] for name in names])
        for name, keep in zip(names, verdicts, strict=True):
            entries[name] = {"flag": "Y" if keep else "N", "name": texts[name]}
        replace_text(path, json.dumps(entries, indent=0, ensure_ascii=False) + "\n")
        if progress is not None:
            progress(len(texts) - len(waiting) + start + len(names))
    return {name: entries[name]["flag"] == "Y" for name in texts}


def _read_entries(path: Path) -> dict[str, dict[str, str]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): {"flag": str(entry["flag"]), "name": str(entry["name"])} for name, entry in entries.items()}
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise BadFileError(path, f'is not a JSON object of id: {{"flag": ..., "name": ...}} ({error!r})') from error
