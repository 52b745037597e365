"""The only concurrency helpers: a doorbell and the one shape of every background loop."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable

import anyio

from geres.errors import StoreUnavailable

log = logging.getLogger("geres.loop")
_LONGEST_PAUSE_SECONDS = 2.0


class Doorbell:
    """Anyone on the event loop may ring; one loop waits.  Rings while it is busy are remembered, as one."""

    def __init__(self) -> None:
        self._rung = anyio.Event()

    def ring(self) -> None:
        self._rung.set()

    async def wait(self, seconds: float) -> bool:
        """Wait for a ring, at most `seconds`.  True where it rang."""
        with anyio.move_on_after(seconds):
            await self._rung.wait()
        rang = self._rung.is_set()
        if rang:
            self._rung = anyio.Event()
        return rang


async def run_loop(name: str, step: Callable[[], Awaitable[bool]], *, every: float, bell: Doorbell) -> None:
    """Call `step` until cancelled: again at once while it returns True (more to do), otherwise when the
    bell rings or `every` seconds have passed.

    A store outage is waited out.  Any other error ends the loop, and so the process: a restart from a
    known state beats limping on.
    """
    pause = 0.1
    while True:
        try:
            more = await step()
        except StoreUnavailable as error:
            log.warning("%s: store unavailable, next try in %.1f s: %s", name, pause, error)
            await anyio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            continue
        pause = 0.1
        if not more:
            await bell.wait(every)
