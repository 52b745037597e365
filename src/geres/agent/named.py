"""Output files that the user named and only the launcher has opened: their disk may hang, so may we."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

from geres.agent.ends import Unreadable
from geres.model.ids import show_task
from geres.model.tasks import INLINE_OUTPUT_BYTES
from geres.model.wire import Ended

log = logging.getLogger("geres.agent.named")

T = TypeVar("T")
#: (stream "o" or "e", path, where the attempt's output begins or -1 for no file, its uid or None: ours)
Named = tuple[str, bytes, int, int | None]
STREAMS = {"o": "stdout", "e": "stderr"}
_PATIENCE_SECONDS = 5.0
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_LOOK = os.O_PATH | os.O_CLOEXEC if hasattr(os, "O_PATH") else _READ  #: without opening it, where that can be
_MOST_HANGING = 16  #: threads that may wait for such disks


class SlowDisks:
    """Does what may hang in threads, each with a time limit; one that hangs is left to itself.

    The threads are our own: those of a pool would be waited for when the agent ends.
    """

    def __init__(self) -> None:
        self._busy = 0

    async def do(self, work: Callable[..., T], *arguments: Any) -> T:
        """Raises TimeoutError, and what `work` raises."""
        if self._busy >= _MOST_HANGING:
            raise TimeoutError
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def finish(result: T | None, error: BaseException | None) -> None:
            self._busy -= 1
            if answer.done():
                return  # nobody waits any more
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(cast(T, result))

        def run() -> None:
            result, failure = None, None
            try:
                result = work(*arguments)
            except Exception as error:
                failure = error
            try:
                loop.call_soon_threadsafe(finish, result, failure)
            except RuntimeError:
                pass  # the agent has ended meanwhile

        self._busy += 1
        threading.Thread(target=run, name="slow disk", daemon=True).start()
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await answer

    async def look(self, report: Ended, named: list[Named]) -> None:
        """Note in the report how much is in the files, and the last of it; what cannot be read is said."""
        for stream, path, begin, owner in named:
            name = STREAMS[stream]
            try:
                size, tail = await self.do(_last_part, path, owner, begin)
            except (Unreadable, OSError, TimeoutError) as error:
                why = "its disk does not answer" if isinstance(error, TimeoutError) else str(error)
                if report.message is None:
                    report.message = f"its {name} is in {os.fsdecode(path)} and cannot be shown: {why}"
                log.warning("the %s of %s is not read: %s", name, show_task(report.task), why)
                continue
            setattr(report, name, tail)
            setattr(report, f"{name}_bytes", size)


def open_named(path: bytes, owner: int | None) -> int:
    """A descriptor to read a file that a task wrote.  May hang.  Raises Unreadable, OSError.

    A task of another account could put a link to a file of ours there, or to a device, which some programs
    set off by opening it: we look at it first, and open only what is a file of its own.
    """
    seen = os.open(path, _LOOK)
    try:
        found = os.fstat(seen)
        if not (stat.S_ISREG(found.st_mode) and owner in (None, found.st_uid)):
            raise Unreadable("it is no file of the task's account")
        return os.open(f"/proc/self/fd/{seen}", _READ) if _LOOK is not _READ else os.dup(seen)
    finally:
        os.close(seen)


def _last_part(path: bytes, owner: int | None, begin: int) -> tuple[int, bytes]:
    """(bytes written from `begin` on, the last of them).  Nothing for what is no file: it went elsewhere."""
    if begin < 0:
        return 0, b""
    fd = open_named(path, owner)
    try:
        size = max(os.fstat(fd).st_size - begin, 0)
        start = max(size - INLINE_OUTPUT_BYTES, 0)
        return size, os.pread(fd, size - start, begin + start)
    finally:
        os.close(fd)
