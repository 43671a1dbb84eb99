"""Tar files read to their end: one that was cut, or damaged, is told from one that is whole."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pc3d._extras import require
from pc3d.data.dataset import BadFileError

_REMEDY = "copy or make it anew, or leave it out"
_GOES_ON = "it goes on after its end: tar files are not joined by cat"
_BLOCK = 1 << 16


class WholeTarInfo(tarfile.TarInfo):
    """A header of a tar file, for ``tarfile.open(tarinfo=WholeTarInfo)``.

    ``tarfile`` takes a header that is not there, cut short or damaged for the end of the file. It is the end only where
    zeros say so; anything else is an error here.
    """

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> WholeTarInfo:
        """The next header.

        Raises:
            tarfile.ReadError: there is none, and no end either.
            tarfile.HeaderError: the end.
        """
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":
                raise
            raise tarfile.ReadError(f"{error} at byte {tar.offset}") from error


def read_shard(url: str) -> Iterator[dict[str, Any]]:
    """Samples of a shard, grouped by key as WebDataset does.

    Args:
        url: a path, or anything that WebDataset opens.

    Yields:
        Content by the suffix of its file, and ``__key__``.

    Raises:
        BadFileError: the shard cannot be opened, is empty, cut short or damaged, or the command that reads it failed.
    """
    webdataset = require("webdataset", extra="train", purpose="streams of shards")
    stream, found = None, False
    try:
        stream = webdataset.gopen(url)
        for sample in webdataset.tariterators.group_by_keys(_files(stream)):
            yield sample
            found = True
        stream.close()  # of a command, fails if it did
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise BadFileError(url, f"{_reason(error, stream)}: {_REMEDY}") from error
    finally:
        _leave(stream)
    if not found:
        raise BadFileError(url, f"is a tar file without shapes (KEY.npz): {_REMEDY}")


def _files(stream: Any) -> Iterator[dict[str, Any]]:
    """Names and contents, as WebDataset groups them."""
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=WholeTarInfo) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            if file is not None:
                yield {"fname": member.name, "data": file.read(), "__url__": ""}
            tar.members = []  # type: ignore[attr-defined]  # of no use here, and as many as there are files
        _read_out(tar.fileobj)


def _read_out(file: Any) -> None:
    """Read what comes after the end of a tar file: zeros."""
    # To the last byte: a command whose output nobody takes may fail of that.
    while rest := file.read(_BLOCK):
        if any(rest):
            raise tarfile.ReadError(_GOES_ON)
    # Of compressed files joined by cat ``tarfile`` unpacks the first; of gzip's, 8 bytes of checksum are left, too.
    packed = getattr(getattr(file, "cmp", None), "unused_data", b"")
    if any(packed[8:] if getattr(file, "comptype", "") == "gz" else packed):
        raise tarfile.ReadError(_GOES_ON)


def _reason(error: Exception, stream: Any) -> str:
    """What is wrong with a shard, from what reading it raised."""
    read_out = _is_read_out(stream)
    _leave(stream)  # and so learn how its command ended
    status = getattr(stream, "status", None)
    if read_out and status not in (None, 0):
        return f"was not read to its end, the command that reads it ended with exit code {status}"
    if isinstance(error, OSError):
        return f"cannot be read ({error})"
    return f"is no tar file, was cut short or is damaged ({error.args[0]})"


def _is_read_out(stream: Any) -> bool:
    """Whether a stream has no more to give, or failed: a command that is left before that may fail of it."""
    try:
        return stream is None or not stream.read(1)
    except (OSError, ValueError):  # of a command that failed; of a stream that is closed
        return True


def _leave(stream: Any) -> None:
    """Close a stream, whose command may fail of that."""
    with suppress(OSError):
        if stream is not None:
            stream.close()


def shard_members(path: Path) -> list[tuple[str, int, int]]:
    """Key, first byte and number of bytes of each shape of a shard.

    Raises:
        BadFileError: the file is not a whole tar file.
    """
    try:
        with tarfile.open(path, "r:", tarinfo=WholeTarInfo) as tar:
            found = [(m.name.removesuffix(".npz"), m.offset_data, m.size) for m in tar if m.name.endswith(".npz")]
            _read_out(tar.fileobj)
            return found
    except (tarfile.TarError, OSError) as error:
        raise BadFileError(path, f"is not a whole, uncompressed tar file ({error}): {_REMEDY}") from error
