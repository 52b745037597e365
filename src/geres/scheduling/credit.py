"""How many short tasks are sent ahead of the room for them."""

from __future__ import annotations

AHEAD_SECONDS = 0.25  #: of work waiting at a node
MOST_AHEAD = 1024  #: tasks of a lane at a node


def credit(mean_seconds: float | None, running: int, ahead: int) -> int:
    """How many more tasks of a lane to send ahead to a node where `running` of them take room.

    `mean_seconds` is the lane's mean run time, None before the first end: then none is sent.  Long tasks get
    none either: for them the way to the node and back costs nothing that one would notice.
    """
    if mean_seconds is None or not running:
        return 0
    wanted = int(AHEAD_SECONDS / max(mean_seconds, 1e-4)) * running
    return max(0, min(wanted, MOST_AHEAD) - ahead)


def mean(old: float | None, seconds: float) -> float:
    """The running mean of a lane's run times: the newest counts for a tenth."""
    return seconds if old is None else old + 0.1 * (seconds - old)
