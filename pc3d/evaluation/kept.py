"""Store on disk what was computed before an interruption, so that the same work can resume."""

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

from pc3d._files import open_npz, replace_atomically
from pc3d._version import __version__
from pc3d.evaluation.shape_index import weights_digest

SECONDS = 30.0
"""Of work that a process which is killed loses at most, and the array in work; Ctrl-C loses that array alone."""
_PATTERN = "kept-*.npz"


class Kept:
    """A cache on disk that lets interrupted work resume; arrays are found by the content they are computed from.

    Use it as a context manager. If the work succeeds, the folder is removed. If it is interrupted, or fails after half
    a minute, the folder keeps what was computed, and :meth:`of` returns it the next time. Nothing stale can be
    returned: the key of an array is a SHA-256 over everything that it depends on.

    Args:
        folder: where arrays are stored; created with the first array.

    Attributes:
        given_back: number of arrays that did not have to be computed again.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._earlier = {key: path for path in sorted(self.folder.glob(_PATTERN)) for key in _keys_in(path)}
        self._new: dict[str, NDArray[Any]] = {}
        self._last, self._saved, self._failed = time.monotonic(), False, False
        self.given_back = 0

    def of(self, content: Sequence[str | Tensor], compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return what ``compute`` returns, or returned before the interruption for the same content.

        Args:
            content: all that the array depends on: texts and tensors.
            compute: computes the array.
        """
        key = content_key(content)
        found = self._read(key)
        if found is not None:
            self.given_back += 1
            return found
        self._new[key] = found = compute()
        if time.monotonic() - self._last >= SECONDS:
            self.save()
        return found

    def _read(self, key: str) -> NDArray[Any] | None:
        """An array from before the interruption; None where there is none that can be read."""
        if key not in self._earlier:
            return None
        path = self._earlier.pop(key)
        try:
            with open_npz(path) as file:
                found: NDArray[Any] = file[key]
        except (ValueError, OSError) as error:
            warnings.warn(f"{error}; what cannot be read of it is computed anew", stacklevel=3)
            return None
        self._earlier[key] = path  # for when the same content is asked for again
        return found

    def save(self) -> None:
        """Write new arrays. A folder that cannot be written gives a warning, not an error."""
        if self._new and not self._failed:
            # A name of its own: the same work may be interrupted twice, or done twice at once.
            path = self.folder / f"kept-{uuid.uuid4().hex}.npz"
            try:
                with replace_atomically(path) as file:
                    np.savez(file, **cast(Any, self._new))
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


def _keys_in(path: Path) -> list[str]:
    """The keys of a kept file; of one that cannot be read none, with a warning."""
    try:
        with open_npz(path) as file:
            return list(file.files)
    except (ValueError, OSError) as error:
        warnings.warn(f"{error}; what it kept is computed anew", stacklevel=4)
        return []


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
    """Class, configuration and weights of a network, of anything else all that it is made of; and what runs it.

    That is pc3d and PyTorch in their versions: of others the same weights may give other numbers.
    """
    kind = f"pc3d {__version__} torch {torch.__version__} {type(model).__qualname__}"
    if not isinstance(model, torch.nn.Module):
        return f"{kind} {hashlib.sha256(pickle.dumps(model)).hexdigest()}"
    chosen = [(type(part).__qualname__, getattr(part, "config", None)) for part in model.modules()]
    return f"{kind} {getattr(model, 'pooling', '')} {json.dumps(chosen, default=str)} {weights_digest(model)}"
