"""What this node's agent and supervisor have logged, as one text for an operator elsewhere."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

#: Of each file at most its last part.
MOST_BYTES = 16 << 20
NAMES = ("agent.log.1", "agent.log", "supervisor.log", "start-task.log.1", "start-task.log")
_PIECE_BYTES = 64 << 10
_AT = re.compile(rb'\{"at":"([0-9T:.-]{19,26})Z"')
_PLAIN_AT = re.compile(rb"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)")


def archive(folder: Path, since_us: int) -> Iterator[bytes]:
    """The logs in `folder` from a time on, each below a line with its name.  Blocking.

    A line without a time, as of a traceback, goes with the one before it; a file without any is taken whole
    if it was written to since.
    """
    for name in NAMES:
        try:
            with (folder / name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                written = os.fstat(file.fileno()).st_mtime_ns // 1000
                yield f"==> {name}, {size} bytes, written to at {_shown(written)} <==\n".encode()
                if size > MOST_BYTES:
                    file.seek(size - MOST_BYTES)
                    file.readline()
                    yield f"[geres: only the last {MOST_BYTES >> 20} MiB of it]\n".encode()
                yield from _lines(file, since_us, written >= since_us)
        except FileNotFoundError:
            continue
        except OSError as error:
            yield f"==> {name} cannot be read: {error.strerror} <==\n".encode()


def _lines(file: object, since_us: int, wanted: bool) -> Iterator[bytes]:
    gathered = bytearray()
    for line in file:  # type: ignore[attr-defined]
        at = _time_of(line)
        if at is not None:
            wanted = at >= since_us
        if wanted:
            gathered += line
        if len(gathered) >= _PIECE_BYTES:
            yield bytes(gathered)
            gathered.clear()
    yield bytes(gathered)


def _time_of(line: bytes) -> int | None:
    """When a line was logged, in microseconds since 1970; None for one that does not say."""
    try:
        if found := _AT.match(line):
            return int(datetime.fromisoformat(found[1].decode()).replace(tzinfo=UTC).timestamp() * 1e6)
        if found := _PLAIN_AT.match(line):
            return int(time.mktime(time.strptime(found[1].decode(), "%Y-%m-%d %H:%M:%S")) * 1e6)
    except (ValueError, OverflowError):
        return None
    return None


def _shown(at_us: int) -> str:
    return f"{datetime.fromtimestamp(at_us / 1e6, UTC):%Y-%m-%dT%H:%M:%SZ}"
