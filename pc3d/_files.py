"""Files that are whole or not there, and archives of arrays that may not be."""

from __future__ import annotations

import errno
import fcntl
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np
from numpy.lib.npyio import NpzFile

from pc3d._extras import require


@contextmanager
def replace_atomically(path: Path, *, overwrite: bool = True) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes the place of ``path`` only once it is complete and on the disk.

    A full disk, an unwritable folder or a killed process leaves whatever was at ``path`` untouched.

    Args:
        path: of the file; its folder is made if need be.
        overwrite: False leaves a file alone that is there, whoever wrote it in the meantime.

    Raises:
        FileExistsError: there is a file, and it may not be replaced.
        OSError: writing failed; the message names the file and says that the old one is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)  # unlike a rename, it fails where there is a file: whoever is first stays
            temporary.unlink()
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        cause = _failed_write(error)
        if cause is None:
            raise
        state = "the file from before is intact" if path.exists() else "nothing was written"
        told = OSError(cause.errno, f"cannot write {path} ({cause.strerror or cause}): {state}")
        told.is_told = True  # type: ignore[attr-defined]
        raise told from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def check_writable(folder: Path, argument: str) -> None:
    """Refuse a folder into which no file can be written, before work is done for what goes there; nothing is made.

    Args:
        folder: may not exist yet.
        argument: that names it, for the message.

    Raises:
        NotADirectoryError: it, or what it would lie in, is no folder.
        PermissionError: it, or what it would be made in, may not be written.
    """
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise NotADirectoryError(f"{argument}: {folder} cannot be made, {nearest} is not a folder: name another")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(f"{argument}: {folder} cannot be written, {nearest} may not be: name another folder")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Be the only process that works in a folder, by a lock on its file ``.lock``, which a killed process loses, too.

    Where the file system knows no locks, nothing is promised.

    Args:
        folder: exists.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the folder cannot be written.
    """
    try:
        file = open(folder / ".lock", "wb")  # noqa: SIM115  # closed below
    except OSError as error:
        raise OSError(error.errno, f"cannot write into {folder} ({error.strerror})") from error
    with file:
        try:
            # Of this process alone: neither its threads nor the processes that it forks share the lock or keep it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BlockingIOError(
                    error.errno,
                    f"another process is at work in {folder}: wait until it has ended, or choose another folder",
                ) from None
        yield


def replace_text(path: Path, text: str) -> None:
    """:func:`replace_atomically` with a text, in UTF-8."""
    with replace_atomically(path) as file:
        file.write(text.encode())


def _failed_write(error: BaseException) -> OSError | None:
    """The error of the system that broke writing off; None if something else did, or a file within was named for it."""
    # torch.save reports a failing write as RuntimeError while the OSError hangs in its chain. Ctrl-C may come while any
    # error is handled, and stays Ctrl-C.
    cause = error.__context__ if isinstance(error, Exception) and not isinstance(error, OSError) else error
    return cause if isinstance(cause, OSError) and not hasattr(cause, "is_told") else None


@contextmanager
def open_npz(path: Path) -> Iterator[NpzFile]:
    """Open an archive of arrays for reading; its arrays are read when they are asked for.

    Raises:
        OSError: the file cannot be opened or read.
        ValueError: it is no such archive, or a broken one, whatever NumPy, zipfile and zlib make of it; the message
            names it.
    """
    try:
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, NpzFile):
            raise ValueError("it holds one array that was written with numpy.save")
        with found:
            yield found
    # Of a damaged entry zipfile may think that it is encrypted or of another compression: RuntimeError.
    except (ValueError, EOFError, RuntimeError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a readable .npz file ({error})") from error


def read_config(path: Path | str) -> dict[str, Any]:
    """What a configuration file says.

    Raises:
        ValueError: it is not YAML, or says something else than options.
    """
    yaml = require("yaml", extra="train", purpose="configurations")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file in UTF-8: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} is not a configuration: it has to hold options, as in 'seed: 0', and holds {content!r:.60}"
        )
    return content
