"""The server's clock: its monotonic clock plus an offset to the wall, or to the database's clock.

No lease ends by it: clocks are set, and each server notices it at another time.
"""

from __future__ import annotations

import time

#: A difference that is a jump, not a drift.
JUMP_US = 2_000_000


def wall_us() -> int:
    return time.time_ns() // 1000


class Clock:
    """Call it for the time in microseconds since 1970 UTC.

    It goes back only by a `jump`, and shows no time twice: what is written anew is seen to be new.
    """

    def __init__(self, now_us: int) -> None:
        self._offset = now_us - self._monotonic()
        self._last = 0

    def __call__(self) -> int:
        self._last = max(self._last + 1, self._monotonic() + self._offset)
        return self._last

    def behind_us(self, now_us: int, *, waited_us: int = 0) -> int:
        """How much this clock lags at least behind one that showed `now_us`; negative where it is ahead.

        That was at some moment of the last `waited_us`.
        """
        behind = now_us - (self._monotonic() + self._offset)
        return behind if behind > 0 else min(0, behind + waited_us)

    def follow(self, behind_us: int) -> None:
        """Go on by so much; where that is backwards all but stand until the time has come."""
        self._offset += behind_us

    def jump(self, behind_us: int) -> None:
        """Show another time at once."""
        self._offset += behind_us
        self._last = 0

    @staticmethod
    def _monotonic() -> int:
        return time.monotonic_ns() // 1000
