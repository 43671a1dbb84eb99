"""Pickles of arrays, read without running what they name."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from pc3d.data.dataset import BadFileError


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays inside lists, tuples, dictionaries, strings and numbers, and refuses all else.

    A pickle runs whatever it names; these names only rebuild arrays.
    """

    _ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
            ("builtins", "bytes"),
            ("__builtin__", "bytes"),
        }
        | {
            (f"{core}.{module}", name)
            for core in ("numpy.core", "numpy._core")
            for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not part of a NumPy array")
        return super().find_class(module, name)


def load_array_pickle(path: Path | str) -> Any:
    """Read a pickle that may hold NumPy arrays and plain Python values, and nothing else.

    Raises:
        FileNotFoundError: there is no such file.
        BadFileError: the file is truncated, or asks for anything but arrays and plain values.
    """
    path = Path(path)
    data = path.read_bytes()
    try:
        return _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise BadFileError(path, f"is not a pickle of NumPy arrays: {error}") from error
