"""The supervisor's journal: what survives its own death, not the host's, so it is never synced.

A file of frames.  The first is (format, boot_id); each further one is (about to start, started, ended,
forgotten): a list of keys, of (task, attempt, pid, started_us), of ends, of keys.
"""

from __future__ import annotations

import errno
import os

from geres.agent.attempts import Key
from geres.agent.frames import Unpacker, pack

_FORMAT = 1
_SMALLEST_LIMIT_BYTES = 1 << 20
#: Kept free on the disk for ends: as much as those that nobody has acknowledged may hold.
_RESERVE_BYTES = 8 << 20
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Known:
    """What a journal says: attempts that may have started, with (pid, started_us) or None, and ends."""

    def __init__(self) -> None:
        self.boot_id = ""
        self.started: dict[Key, tuple[int, int] | None] = {}
        self.ended: dict[Key, tuple] = {}  # type: ignore[type-arg]

    def apply(self, record: tuple) -> None:  # type: ignore[type-arg]
        intents, started, ended, forgotten = record
        for task, attempt in intents:
            self.started[task, attempt] = None
        for task, attempt, pid, started_us in started:
            self.started[task, attempt] = (pid, started_us)
        for end in ended:
            key = (end[0], end[1])
            self.started.pop(key, None)
            self.ended[key] = end
        for task, attempt in forgotten:
            self.started.pop((task, attempt), None)
            self.ended.pop((task, attempt), None)


def read(path: str) -> Known:
    """What the journal at `path` says; a torn last record is left out.  Nothing where there is none."""
    known = Known()
    try:
        with open(path, "rb") as file:
            unpacker = Unpacker()
            first = True
            while data := file.read(1 << 20):
                for record in unpacker.feed(data):
                    if first:
                        known.boot_id = record[1]
                        first = False
                    else:
                        known.apply(record)
    except FileNotFoundError:
        pass
    except (ValueError, EOFError, TypeError, IndexError):
        pass  # torn by a crash: what came before it counts
    return known


class Journal:
    """Collects records and appends them in one write; to be rewritten when several times its content."""

    def __init__(self, path: str, boot_id: str) -> None:
        self._path = path
        self._boot_id = boot_id
        self._fd = -1
        self._size = 0
        self._limit = _SMALLEST_LIMIT_BYTES
        self.intents: list[Key] = []
        self.started: list[tuple[int, int, int, int]] = []
        self.ended: list[tuple] = []  # type: ignore[type-arg]
        self.forgotten: list[Key] = []
        self.broken = ""  #: why the last write failed; empty when it did not
        self._has_reserve = False

    def hold_reserve(self) -> None:
        """Keep room for ends on the disk, where there is plenty; to be called now and then."""
        if self._has_reserve or self.broken:
            return
        path = self._path + ".reserve"
        try:
            if not os.path.exists(path):
                place = os.statvfs(os.path.dirname(path))
                if place.f_bavail * place.f_frsize < 4 * _RESERVE_BYTES:
                    return
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(fd, 0, _RESERVE_BYTES)
                finally:
                    os.close(fd)
            self._has_reserve = True
        except OSError:
            pass  # another time

    @property
    def size(self) -> int:
        return self._size

    @property
    def is_pressing(self) -> bool:
        """True where ends wait to be written, which nobody may hear of before."""
        return bool(self.ended)

    @property
    def is_pending(self) -> bool:
        return bool(self.ended or self.started or self.intents or self.forgotten)

    @property
    def is_long(self) -> bool:
        """True where it should be rewritten: it has grown, or its last record may be torn."""
        return self._size > self._limit or bool(self.broken)

    def rewrite(self, intents: list, started: list, ended: list) -> None:  # type: ignore[type-arg]
        """Begin anew with only this content; what is collected and not written is part of it or over."""
        data = pack((_FORMAT, self._boot_id)) + pack((intents, started, ended, []))
        try:
            fd = self._replace(data)
        except OSError as error:  # a full disk: work goes on, and the next tick tries again
            self.broken = str(error)
            if error.errno not in NO_SPACE or not self._free_reserve():
                return
            try:
                fd = self._replace(data)
            except OSError:
                return
        self.broken = ""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._size = len(data)
        self._limit = max(_SMALLEST_LIMIT_BYTES, 4 * len(data))
        self._clear()

    def _replace(self, data: bytes) -> int:
        """Put a new file in place.  Returns its descriptor.  Raises OSError with the old one in place."""
        temporary = self._path + ".new"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, data)
            os.rename(temporary, self._path)
        except OSError:
            os.close(fd)
            os.unlink(temporary)
            raise
        return fd

    def _free_reserve(self) -> bool:
        self._has_reserve = False
        try:
            os.unlink(self._path + ".reserve")
        except OSError:
            return False
        return True

    def flush(self) -> None:
        """Append what has gathered.  A full disk is noted in `broken`; then only a rewrite helps."""
        if not self.is_pending:
            return
        if self.broken:
            self._clear()  # the rewrite holds all that counts
            return
        data = pack((self.intents, self.started, self.ended, self.forgotten))
        try:
            _write_all(self._fd, data)
        except OSError as error:
            self.broken = str(error)
            return
        self._size += len(data)
        self._clear()

    def _clear(self) -> None:
        self.intents = []
        self.started = []
        self.ended = []
        self.forgotten = []


def _write_all(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, data[written:])
