"""Pickles of arrays, read without running what they name."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

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
    return _unpickle(path, io.BytesIO(path.read_bytes()))


def load_object_array(path: Path | str) -> Any:
    """Read a ``.npy`` file of Python objects, which NumPy stores as a pickle, as :func:`load_array_pickle` would.

    Returns:
        The array; of a file with a single object, that object.

    Raises:
        FileNotFoundError: there is no such file.
        BadFileError: the file is truncated, or holds anything but arrays and plain values.
    """
    path = Path(path)
    file = io.BytesIO(path.read_bytes())
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = header(file)
    except (ValueError, EOFError) as error:
        raise BadFileError(path, f"is not a .npy file: {error}") from error
    if not dtype.hasobject:
        file.seek(0)
        return _plain_array(path, file)
    array = _unpickle(path, file)
    return array.item() if isinstance(array, np.ndarray) and array.shape == () else array


def _plain_array(path: Path, file: io.BytesIO) -> Any:
    try:
        return np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BadFileError(path, f"is not a readable .npy file: {error}") from error


def _unpickle(path: Path, file: io.BytesIO) -> Any:
    try:
        return _ArrayUnpickler(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise BadFileError(path, f"is not a pickle of NumPy arrays: {error}") from error
