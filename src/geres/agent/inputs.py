"""Input of tasks: the supervisor holds the writing end of each pipe, and counts what went in."""

from __future__ import annotations

import os
import select
from collections.abc import Callable

from geres.agent.attempts import Attempt, Key

_PIPE_BYTES = 1 << 16


class Inputs:
    """`tell` is called with an attempt's key and the bytes that its pipe took so far, -1 for no more."""

    def __init__(
        self, poll: select.epoll, find: Callable[[Key], Attempt | None], tell: Callable[[Key, int], None]
    ) -> None:
        self._poll = poll
        self._find = find
        self._tell = tell
        self._full: dict[int, Key] = {}  # descriptors that take no more for now

    def take(self, key: Key, data: bytes, is_last: bool) -> None:
        attempt = self._find(key)
        if attempt is None or attempt.stdin_fd < 0:
            self._tell(key, -1)
            return
        attempt.stdin_pending += data
        attempt.stdin_closing = attempt.stdin_closing or is_last
        self._feed(key, attempt)

    def serve(self, fd: int) -> None:
        """A descriptor that was full takes data again, or is gone."""
        key = self._full.get(fd)
        attempt = self._find(key) if key is not None else None
        if key is None or attempt is None or attempt.stdin_fd != fd:
            self._forget(fd)
        else:
            self._feed(key, attempt)

    def close(self, attempt: Attempt) -> None:
        """The attempt is over, or reads no more."""
        if attempt.stdin_fd >= 0:
            self._forget(attempt.stdin_fd)
            os.close(attempt.stdin_fd)
            attempt.stdin_fd = -1

    def _feed(self, key: Key, attempt: Attempt) -> None:
        fd = attempt.stdin_fd
        before = attempt.stdin_written
        try:
            while attempt.stdin_pending:
                written = os.write(fd, attempt.stdin_pending[:_PIPE_BYTES])
                attempt.stdin_written += written
                attempt.stdin_pending = attempt.stdin_pending[written:]
        except BlockingIOError:
            pass
        except OSError:  # it reads no more
            attempt.stdin_closing = True
            attempt.stdin_pending = b""
        if attempt.stdin_pending:
            if fd not in self._full:
                self._full[fd] = key
                self._poll.register(fd, select.EPOLLOUT)
        elif attempt.stdin_closing:
            self.close(attempt)
            self._tell(key, -1)
            return
        else:
            self._forget(fd)
        if attempt.stdin_written != before:
            self._tell(key, attempt.stdin_written)

    def _forget(self, fd: int) -> None:
        if self._full.pop(fd, None) is not None:
            self._poll.unregister(fd)
