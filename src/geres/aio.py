"""The only concurrency helpers: a doorbell and the one shape of every background loop."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

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


@dataclass
class Pulse:
    """What a loop has done so far; times are monotonic seconds."""

    every: float = 1.0
    rounds: int = 0
    began_at: float | None = None  #: of the round that goes on
    ended_at: float | None = None
    last_seconds: float = 0.0
    total_seconds: float = 0.0
    longest_seconds: float = 0.0
    error: str | None = None
    error_at: float = 0.0

    def begin(self) -> None:
        self.began_at = time.monotonic()

    def end(self, error: str | None = None) -> None:
        self.ended_at = time.monotonic()
        self.last_seconds = self.ended_at - (self.began_at or self.ended_at)
        self.began_at = None
        self.rounds += 1
        self.total_seconds += self.last_seconds
        self.longest_seconds = max(self.longest_seconds, self.last_seconds)
        if error is not None:
            self.error, self.error_at = error, self.ended_at

    def late_seconds(self) -> float:
        """How long it has not come round beyond its time, or has been busy with one round."""
        now = time.monotonic()
        if self.began_at is not None:
            return now - self.began_at
        return 0.0 if self.ended_at is None else max(0.0, now - self.ended_at - self.every)


async def run_loop(
    name: str,
    step: Callable[[], Awaitable[bool]],
    *,
    every: float,
    bell: Doorbell,
    pulse: Pulse | None = None,
) -> None:
    """Call `step` until cancelled: again at once while it returns True (more to do), otherwise when the
    bell rings or `every` seconds have passed.

    A store outage is waited out.  Any other error ends the loop, and so the process: a restart from a
    known state beats limping on.
    """
    pause, pulse = 0.1, pulse or Pulse()
    pulse.every = every
    while True:
        pulse.begin()
        try:
            more = await step()
        except StoreUnavailable as error:
            pulse.end(str(error))
            log.warning("%s: store unavailable, next try in %.1f s: %s", name, pause, error)
            await anyio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            continue
        pulse.end()
        pause = 0.1
        if not more:
            await bell.wait(every)
