"""The supervisor's word for an end, in the words of the server."""

from __future__ import annotations

import os
import signal
from typing import Any

from geres.agent.attempts import EXITED, GIVEN_BACK, LOST, SIGNALLED, UNSTARTED
from geres.model.tasks import Usage
from geres.model.wire import Ended

HEAD_BYTES = 1 << 20  #: kept of the beginning where a stream is over its limit


def ended_of(end: tuple[Any, ...]) -> Ended:
    """The report of an end; outputs that are not whole in it are yet to be uploaded."""
    task, attempt, kind, code, outcome, reason, message, started_us, ended_us, usage, out, err, folder = end[
        :13
    ]
    report = Ended(
        task, attempt, outcome or "failed", reason, message, started_us=started_us, ended_us=ended_us
    )
    if kind == EXITED:
        report.exit_code = code
        if outcome is None:
            report.outcome = "failed" if code else "succeeded"
            report.reason = "exit" if code else None
    elif kind == SIGNALLED:
        report.signal = code
        if outcome is None:
            report.reason, report.message = "signal", f"ended by {_signal_name(code)}"
    elif kind == UNSTARTED:
        report.exit_code = code or None
    elif kind == GIVEN_BACK:
        report.outcome = "given_back"
    elif kind == LOST:
        pass
    if usage is not None:
        report.usage = _usage(usage, max(ended_us - started_us, 0) / 1e6)
    if out is not None:
        report.stdout_bytes, report.stdout = out[0], out[1]
    if err is not None:
        report.stderr_bytes, report.stderr = err[0], err[1]
    report.folder = folder
    return report


def _usage(usage: tuple[Any, ...], wall_seconds: float) -> Usage:
    return Usage(
        wall_seconds=wall_seconds,
        user_seconds=usage[0],
        system_seconds=usage[1],
        max_rss_bytes=usage[2],
        minor_faults=usage[3],
        major_faults=usage[4],
        blocks_in=usage[5],
        blocks_out=usage[6],
        voluntary_switches=usage[7],
        involuntary_switches=usage[8],
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def large_files(end: tuple[Any, ...]) -> dict[str, str]:
    """Stream to path, for the outputs that did not fit into the end."""
    found = {}
    for stream, seen in (("stdout", end[10]), ("stderr", end[11])):
        if seen is not None and seen[2] is not None:
            found[stream] = seen[2]
    return found


def named_files(end: tuple[Any, ...]) -> list[tuple[str, bytes, int, int | None]]:
    """(stream, path, begin, owner) of the files that the launcher opened, which are yet to be looked at."""
    return list(end[14]) if len(end) > 14 else []


class Unreadable(Exception):
    """An output file that is gone, shorter than it was, or not ours to read: another try does not help."""


class Kept:
    """What is kept of one output file: all up to `limit`, else its beginning, a line and its end.

    Raises Unreadable.
    """

    def __init__(self, path: str, limit: int) -> None:
        self._path = path
        try:
            self.size = os.stat(path).st_size
        except OSError as error:
            raise Unreadable(error.strerror) from None
        head = min(HEAD_BYTES, limit // 2)
        if self.size <= limit:
            self._parts = [(0, self.size)]
            self._marker = b""
        else:
            tail = limit - head
            left_out = self.size - head - tail
            self._parts = [(0, head), (self.size - tail, tail)]
            self._marker = b"\n[geres: %d bytes left out here]\n" % left_out

    @property
    def length(self) -> int:
        return sum(length for _, length in self._parts) + len(self._marker)

    def pieces(self, size: int = 1 << 16) -> Any:
        """Its bytes, in pieces.  Raises Unreadable."""
        try:
            with open(self._path, "rb") as file:
                for number, (start, length) in enumerate(self._parts):
                    if number:
                        yield self._marker
                    file.seek(start)
                    while length > 0:
                        piece = file.read(min(size, length))
                        if not piece:
                            raise Unreadable("it is shorter than it was")
                        length -= len(piece)
                        yield piece
        except OSError as error:
            raise Unreadable(error.strerror) from None
