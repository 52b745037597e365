"""Blobs in a folder: one file for each key, there as a whole or not at all.

A key is made of words joined by slashes, like `outputs/12/7.1.stdout`.  All functions block; async code calls
them in a thread.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import anyio.to_thread

from geres.errors import Invalid, NotFound, StoreFull
from geres.model import ids

_KEY = re.compile(r"[a-z0-9][a-z0-9._-]*(?:/[a-z0-9][a-z0-9._-]*)*")
_OUTPUT = re.compile(r"outputs/([0-9]{1,9})/[0-9]+/([0-9]{1,9})\.([0-9]{1,9})\.(?:stdout|stderr)")
_PIECE_BYTES = 1 << 20
#: Files of one folder, so that none holds millions.
_TASKS_IN_FOLDER = 1000
_UNFINISHED = ".part"
_IDLE_SECONDS = 3600.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def output_key(task: int, attempt: int, stream: str) -> str:
    """Where the whole output of an attempt lies: always the same key, so an upload may be repeated."""
    number = ids.number_of(task)
    return f"outputs/{ids.job_of(task)}/{number // _TASKS_IN_FOLDER}/{number}.{attempt}.{stream}"


def parse_output_key(key: str) -> tuple[int, int] | None:
    """(task, attempt) whose output lies under the key; None for another key."""
    found = _OUTPUT.fullmatch(key)
    if found is None:
        return None
    job, number, attempt = (int(part) for part in found.groups())
    return ids.task_key(job, number), attempt


def is_unfinished(key: str) -> bool:
    """True for what an upload left that was cut off."""
    return key.endswith(_UNFINISHED)


class FolderBlobs:
    """A folder of blobs.  Keys come from our own code alone; a strange one is refused all the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """The file of a key.  Raises Invalid where a key could lead out of the folder."""
        if not _KEY.fullmatch(key) or ".." in key:
            raise Invalid(f"blob: {key!r} is no key of a blob", field="blob")
        return self.folder / key

    def size(self, key: str) -> int:
        """Bytes of a blob.  Raises NotFound."""
        try:
            return self.path(key).stat().st_size
        except FileNotFoundError:
            raise NotFound(f"blob {key} is not there any more", blob=key) from None

    def read(self, key: str, offset: int = 0, most: int = _PIECE_BYTES) -> bytes:
        """At most `most` bytes from `offset`; empty behind the end.  Raises NotFound."""
        try:
            with self.path(key).open("rb") as file:
                return os.pread(file.fileno(), most, offset)
        except FileNotFoundError:
            raise NotFound(f"blob {key} is not there any more", blob=key) from None

    def pieces(self, key: str, offset: int = 0) -> Iterator[bytes]:
        """The blob from `offset`, in pieces of a MiB.  Raises NotFound."""
        while piece := self.read(key, offset):
            yield piece
            offset += len(piece)

    def remove(self, key: str) -> None:
        """Remove a blob; twice is harmless."""
        self.path(key).unlink(missing_ok=True)

    def outputs(self) -> Iterator[tuple[str, float]]:
        """(key, time of its last write in seconds since 1970) of all that lies under `outputs`, unfinished
        uploads included, a folder at a time.  A folder that has been empty for an hour is removed."""
        for job in _inside(self.folder / "outputs"):
            for part in _inside(job):
                empty = True
                for path in _inside(part):
                    empty = False
                    try:
                        yield path.relative_to(self.folder).as_posix(), path.stat().st_mtime
                    except FileNotFoundError:
                        continue
                if empty:
                    _remove_idle(part)
            _remove_idle(job)

    def remove_under(self, prefix: str) -> None:
        """Remove all blobs whose key begins with `prefix/`; none is harmless."""
        shutil.rmtree(self.path(prefix), ignore_errors=True)

    async def write(self, key: str, pieces: AsyncIterator[bytes], most_bytes: int) -> int:
        """Store what comes; the blob appears, synced, when all of it is there.  Returns its size.

        Raises Invalid, with nothing stored, where more than `most_bytes` come, StoreFull for a full disk.
        """
        target = self.path(key)
        part = target.with_name(f"{target.name}.{secrets.token_hex(4)}{_UNFINISHED}")
        await anyio.to_thread.run_sync(lambda: target.parent.mkdir(parents=True, exist_ok=True))
        size = 0
        try:
            async with await anyio.open_file(part, "xb") as file:
                async for piece in pieces:
                    size += len(piece)
                    if size > most_bytes:
                        raise Invalid(f"body: is longer than {most_bytes} bytes", field="body")
                    await file.write(piece)
                await file.flush()
                await anyio.to_thread.run_sync(os.fsync, file.wrapped.fileno())
            await anyio.to_thread.run_sync(os.replace, part, target)
        except BaseException as error:
            part.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in _FULL:
                raise StoreFull(f"{error.strerror}: make room for {self.folder}") from error
            raise
        return size


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove_idle(folder: Path) -> None:
    """Remove a folder that is empty and was not changed lately; an upload may be about to write to it."""
    try:
        if time.time() - folder.stat().st_mtime > _IDLE_SECONDS:
            folder.rmdir()
    except OSError:
        pass  # not empty, or gone
