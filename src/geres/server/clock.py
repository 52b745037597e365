"""The server's clock: its monotonic clock plus an offset to the wall, or to the database's clock.

Times never go back, and a wall clock that is set does not make leases end: the offset is moved on purpose,
and whoever moves it first lets all leases go on.
"""

from __future__ import annotations

import time

#: A difference that is a jump, not a drift.
JUMP_US = 2_000_000


def wall_us() -> int:
    return time.time_ns() // 1000


class Clock:
    """Call it for the time in microseconds since 1970 UTC."""

    def __init__(self, now_us: int) -> None:
        self._offset = now_us - self._monotonic()
        self._last = 0

    def __call__(self) -> int:
        self._last = max(self._last, self._monotonic() + self._offset)
        return self._last

    def behind_us(self, now_us: int) -> int:
        """How much this clock lags behind one that shows `now_us`; negative where it is ahead."""
        return now_us - (self._monotonic() + self._offset)

    def follow(self, now_us: int) -> None:
        """Take over another clock's time; where that is earlier this one stands until it has come."""
        self._offset += self.behind_us(now_us)

    @staticmethod
    def _monotonic() -> int:
        return time.monotonic_ns() // 1000
