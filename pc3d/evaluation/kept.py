"""What was computed before an interruption: kept on the disk, so that the same work goes on where it was."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pc3d.evaluation.shape_index import weights_digest

SECONDS = 30.0
"""Of work that a process which is killed loses at most; Ctrl-C loses none."""
_PATTERN = "kept-*.npz"


class Kept:
    """Arrays by the content that they are computed from.

    A context: what ends well removes the folder; what is interrupted, or fails after half a minute, leaves in it what
    was computed, and :meth:`of` gives that back the next time. Nothing stale can be given back: the key of an array is
    a SHA-256 over everything that it depends on.

    Args:
        folder: where arrays are kept; made when the first ones are.

    Attributes:
        given_back: so many arrays were not computed anew.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        # Opened, and read when asked for.
        files = [np.load(path, allow_pickle=False) for path in sorted(self.folder.glob(_PATTERN))]
        self._earlier = {key: file for file in files for key in file.files}
        self._new: dict[str, NDArray[Any]] = {}
        self._last, self._saved, self._failed = time.monotonic(), False, False
        self.given_back = 0

    def of(self, content: Sequence[str | Tensor], compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """What ``compute`` gives, or gave before the interruption for the same content.

        Args:
            content: all that the array depends on: texts and tensors.
            compute: gives the array.
        """
        key = content_key(content)
        if key in self._earlier:
            self.given_back += 1
            found: NDArray[Any] = self._earlier[key][key]
            return found
        self._new[key] = found = compute()
        if time.monotonic() - self._last >= SECONDS:
            self.save()
        return found

    def save(self) -> None:
        """Write what is new. A folder that cannot be written costs a warning, not the work."""
        if self._new and not self._failed:
            # A name of its own: the same work may be interrupted twice, or done twice at once.
            path = self.folder / f"kept-{uuid.uuid4().hex}.npz"
            partial = path.with_suffix(".partial")
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with partial.open("wb") as file:
                    np.savez(file, **cast(Any, self._new))
                partial.replace(path)
            except OSError as error:
                self._failed = True
                warnings.warn(f"{self.folder}: {error}; what is interrupted from here on starts over", stacklevel=2)
        self._new = {}
        self._last, self._saved = time.monotonic(), True

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        interrupted = issubclass(kind, KeyboardInterrupt)
        if interrupted or self._saved:  # a mistake that shows at once leaves nothing behind
            self.save()
        if interrupted and any(self.folder.glob(_PATTERN)):
            raise KeyboardInterrupt(f"{self.folder} keeps what was computed: the same command goes on") from None


def content_key(content: Sequence[str | Tensor]) -> str:
    """SHA-256 over texts, and over type, shape and values of tensors."""
    digest = hashlib.sha256()
    for part in content:
        if isinstance(part, str):
            head, data = "text", part.encode()
        else:
            head = f"{part.dtype} {tuple(part.shape)}"
            data = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        digest.update(f"{head} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def identity_of(model: object) -> str:
    """Class, configuration and weights of a network; of anything else all that it is made of."""
    kind = type(model).__qualname__
    if not isinstance(model, torch.nn.Module):
        return f"{kind} {hashlib.sha256(pickle.dumps(model)).hexdigest()}"
    chosen = [(type(part).__qualname__, getattr(part, "config", None)) for part in model.modules()]
    return f"{kind} {getattr(model, 'pooling', '')} {json.dumps(chosen, default=str)} {weights_digest(model)}"
