"""Until when this node may believe that its tasks are given to nobody else, as the supervisor keeps it."""

from __future__ import annotations

import time

from geres.agent.attempts import Attempt

#: The verdict of what is ended for it: (outcome, reason, message).
ALONE = (
    "failed",
    "node_lost",
    "its node had no contact with a server and stopped it, so that it never runs twice",
)
_MARGIN_SECONDS = 2.0  #: what is stopped is gone so long before the servers give it away
_MARGIN_PART = 0.2  #: of a lease that is short
PATIENCE_SECONDS = (
    2.0  #: what comes after the end of a lease waits so long for the next heartbeat to renew it
)


def clock() -> float:
    """Seconds that also pass while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def until(sent: float, lease_seconds: float) -> float:
    """The end of a lease that was renewed by what was sent at this time, with a margin for the killing.

    The server counts from when it stored the renewal, which is later.
    """
    return sent + lease_seconds - min(_MARGIN_SECONDS, _MARGIN_PART * lease_seconds)


class Lease:
    """Without one, as before the first connection, nothing ends."""

    def __init__(self) -> None:
        self._until: float | None = None
        self.waiting: list[Attempt] = []  #: for it to be renewed

    def renew(self, until: float) -> list[Attempt]:
        """Hold it until then.  Returns what has waited for that."""
        self._until = until
        waiting, self.waiting = self.waiting, []
        return waiting

    @property
    def has_ended(self) -> bool:
        return self._until is not None and clock() >= self._until

    def ends_at(self, now: float) -> float | None:
        """Its end by the monotonic clock that shows `now`; None where there is none, or it is over."""
        if self._until is None:
            return None
        left = self._until - clock()
        return now + left if left > 0 else None
