"""Room by lanes: attempts of one lane ask for the same, so one sent ahead starts in the room of another."""

from __future__ import annotations

from collections import deque

from geres.agent.attempts import WAITING, Attempt


class Lanes:
    """Which attempts have room, and which wait for it.  `ready` are those to start, in order."""

    def __init__(self) -> None:
        self.ready: deque[Attempt] = deque()
        self._ahead: dict[int, deque[Attempt]] = {}  # some may have been given back
        self._in_room: dict[int, int] = {}

    @property
    def waits_ahead(self) -> bool:
        return bool(self._ahead)

    def add(self, attempt: Attempt) -> None:
        """It gets room at once, unless it was sent ahead and its lane has all its rooms taken."""
        if not attempt.ahead or self._in_room.get(attempt.lane, 0) < attempt.ahead:
            self._give_room(attempt)
        else:
            self._ahead.setdefault(attempt.lane, deque()).append(attempt)

    def leave(self, attempt: Attempt) -> bool:
        """Give its room to the next of its lane that was sent ahead.  False where none was passed on."""
        if not attempt.has_room:
            return False
        attempt.has_room = False
        lane = attempt.lane
        self._in_room[lane] -= 1
        queue = self._ahead.get(lane)
        while queue:
            following = queue.popleft()
            if not queue:
                del self._ahead[lane]
            if following.state is WAITING:
                self._give_room(following)
                return True
        if not self._in_room[lane]:
            del self._in_room[lane]
        return False

    def take_ready(self, most: int) -> list[Attempt]:
        batch: list[Attempt] = []
        while self.ready and len(batch) < most:
            attempt = self.ready.popleft()
            if attempt.state is WAITING:
                batch.append(attempt)
        return batch

    def late(self, before: float) -> list[Attempt]:
        """Those that have waited for room since `before`.  Places of what waits no more are forgotten."""
        found = []
        for lane, queue in list(self._ahead.items()):
            waiting = deque(attempt for attempt in queue if attempt.state is WAITING)
            found += [attempt for attempt in waiting if attempt.arrived < before]
            if waiting:
                self._ahead[lane] = waiting
            else:
                del self._ahead[lane]
        return found

    def _give_room(self, attempt: Attempt) -> None:
        attempt.has_room = True
        self._in_room[attempt.lane] = self._in_room.get(attempt.lane, 0) + 1
        self.ready.append(attempt)
