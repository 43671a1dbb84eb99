"""Pickles of arrays, read without running what they name."""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pc3d.data.dataset import BadFileError

OBJECTS_REMEDY = "save whole numbers of type object, as pandas has them, as label.astype(numpy.int64)"


class _Array(np.ndarray):
    """An array that a pickle can only fill with what its type says.

    NumPy trusts a pickle: made over a buffer, filled by a type with other flags than its own or from too short a list,
    an array of objects takes bytes of the file for addresses of them, and the process crashes, or worse.
    """

    def __new__(cls, *_: object) -> _Array:
        raise pickle.UnpicklingError("it asks for an array over a buffer")

    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, order, values = state
        dtype = _sound(dtype)
        if dtype.hasobject and not (isinstance(values, list) and len(values) == math.prod(shape)):
            raise pickle.UnpicklingError(f"it has an array of {shape} objects that does not list as many")
        super().__setstate__((version, shape, dtype, order, values))


def _sound(dtype: Any) -> np.dtype[Any]:
    """The type of this name, whatever a pickle has made of it."""
    name: str = dtype.str
    return np.dtype(name)


def _numeric(dtype: Any) -> np.dtype[Any]:
    """The same of a single value: older NumPy gives back whatever a pickle called the object."""
    sound = _sound(dtype)
    if sound.hasobject:
        raise pickle.UnpicklingError("it has a NumPy scalar that is an object")
    return sound


def _no_array_yet(*_: object) -> NDArray[Any]:
    array: NDArray[Any] = np.ndarray.__new__(_Array, (0,), np.int8)
    return array


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays inside lists, tuples, dictionaries, strings and numbers, and refuses all else.

    A pickle runs whatever it names; these names only rebuild arrays.
    """

    _ALLOWED = frozenset({("numpy", "dtype"), ("_codecs", "encode"), ("builtins", "bytes"), ("__builtin__", "bytes")})
    _CORE = frozenset(
        f"{core}.{module}" for core in ("numpy.core", "numpy._core") for module in ("multiarray", "numeric")
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._ALLOWED:
            return super().find_class(module, name)
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        if module in self._CORE:
            match module.rpartition(".")[2], name:
                case "multiarray", "_reconstruct":
                    return _no_array_yet
                case "multiarray", "scalar":
                    scalar = super().find_class(module, name)
                    return lambda dtype, *value: scalar(_numeric(dtype), *value)
                case "numeric", "_frombuffer":
                    from_buffer = super().find_class(module, name)
                    return lambda buffer, dtype, *layout: from_buffer(buffer, _sound(dtype), *layout)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not part of a NumPy array")


def load_array_pickle(path: Path | str) -> Any:
    """Read a pickle that may hold NumPy arrays and plain Python values, and nothing else.

    Raises:
        FileNotFoundError: there is no such file.
        BadFileError: the file is truncated, or asks for anything but arrays and plain values.
    """
    path = Path(path)
    return _unpickle(path, io.BytesIO(path.read_bytes()))


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array that a ``.npy`` file begins with.

    Raises:
        ValueError: it does not begin like one.
        EOFError: likewise.
    """
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    return shape, dtype


def unreadable(path: Path, kind: str, error: Exception) -> BadFileError:
    """The error where NumPy does not read a file of a data set.

    Args:
        path: the file.
        kind: how its name ends.
        error: what NumPy says.
    """
    if "Object arrays" in str(error):
        return BadFileError(
            path,
            f"holds Python objects (a pickle), which are not read: {OBJECTS_REMEDY}, and texts as text.astype(str)",
        )
    return BadFileError(path, f"not a readable {kind} file ({error}); truncated or still being copied?")


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
        _, dtype = read_npy_header(file)
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
