"""What the dispatcher knows of one connected node: its room, and the attempts that it has.

All attempts of a lane ask for the same, so room is counted by lane: a task sent ahead takes no room and
starts in the room of one of its lane that ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from geres.model.demand import Demand
from geres.model.wire import AttemptKey, Frame, StartReport, attempts_checksum
from geres.scheduling.rooms import Room
from geres.store.pools import Start, after_report


@dataclass(slots=True)
class LaneHere:
    """The attempts of one lane on one node."""

    demand: Demand
    in_room: int = 0
    ahead: int = 0


@dataclass(slots=True)
class Held:
    lane_id: int
    since: float = field(default_factory=lambda: time.monotonic())  #: when the node was told
    started: bool = False
    gpu_ids: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Desk:
    """One connection of one node."""

    node_id: int
    name: str
    pool_id: int
    epoch: int
    room: Room
    send: Callable[[Frame], None]  #: puts a frame into the connection's bounded queue
    close: Callable[[str], None]  #: ends the connection, with a sentence for the agent
    account: str = ""
    tenant_id: int = 0
    held: dict[AttemptKey, Held] = field(default_factory=dict)
    lanes: dict[int, LaneHere] = field(default_factory=dict)
    specs: set[int] = field(default_factory=set)  #: sent over this connection
    free_gpus: list[int] = field(default_factory=list)
    busy_at: float = 0.0  #: monotonic time of the last assignment or acknowledgement
    mismatches: int = 0
    heartbeat_at: float = 0.0
    heartbeat: bool = False  #: one has come since the last renewal
    heard: int = 0  #: its number
    signalled: set[tuple[int, int, int]] = field(
        default_factory=set
    )  #: signals sent: task, attempt, asked at
    shown: str = ""  #: the state that the store has of the node
    disk_percent: float = 0.0  #: how full the disk of its task folders is
    draining: bool = False
    full: bool = False  #: its disk has no room for another task
    gone: bool = False
    leaving: bool = False
    start: Start = field(default_factory=Start)  #: whether its start task lets it take tasks
    start_to_store: StartReport | None = None

    def open_or_close(self) -> None:
        """Let it take new tasks, or say why not."""
        is_away = self.draining or self.leaving
        self.room.in_service = self.start.state is None
        self.room.accepting = self.room.in_service and not (is_away or self.full)
        self.room.why_closed = self.start.reason or ""
        if self.full and self.room.in_service and not is_away:
            self.room.why_closed = "has no room on its disk"

    def start_is_over(self, report: StartReport) -> bool:
        """The node says how its start task ended, in the next hello again.  False where that is no news."""
        order = self.start.order
        if order is None or report.digest != order.digest or report.state not in ("done", "failed"):
            return False
        start = after_report(order, report)
        if start == self.start:
            return False
        self.start, self.start_to_store = start, report
        self.open_or_close()
        return True

    def add(
        self,
        key: AttemptKey,
        lane_id: int,
        demand: Demand,
        *,
        ahead: bool,
        gpu_ids: list[int] | None = None,
    ) -> Held:
        """Count an attempt.  Returns its entry, with the gpus that it got, or has already (`gpu_ids`)."""
        lane = self.lanes.get(lane_id)
        if lane is None:
            lane = self.lanes[lane_id] = LaneHere(demand)
        held = self.held[key] = Held(lane_id)
        if ahead:
            lane.ahead += 1
        else:
            lane.in_room += 1
            self.room.take(demand)
        if gpu_ids is not None:
            held.gpu_ids = gpu_ids
        elif demand.gpus:
            held.gpu_ids = self.free_gpus[: demand.gpus]
            del self.free_gpus[: demand.gpus]
        return held

    def remove(self, key: AttemptKey) -> bool:
        """Stop counting an attempt.  True where it freed room; False where one that was ahead took it."""
        held = self.held.pop(key, None)
        if held is None:
            return False
        if self.signalled:
            self.signalled = {signal for signal in self.signalled if signal[:2] != key}
        self.free_gpus += held.gpu_ids
        lane = self.lanes[held.lane_id]
        if lane.ahead:
            lane.ahead -= 1
            return False
        lane.in_room -= 1
        self.room.give(lane.demand)
        if not lane.in_room:
            del self.lanes[held.lane_id]
        return True

    def signal_once(self, task: int, attempt: int, asked_at: int) -> bool:
        """True the first time: a signal, unlike a cancel, must not be repeated until it is answered."""
        key = (task, attempt, asked_at)
        if key in self.signalled:
            return False
        self.signalled.add(key)
        return True

    def not_started(self, before: float) -> list[AttemptKey]:
        """The attempts that it was told of before this moment of the monotonic clock, and has not started."""
        return [key for key, held in self.held.items() if not held.started and held.since < before]

    def checksum(self) -> int:
        return attempts_checksum(list(self.held))


def by_fullness(desks: Iterable[Desk]) -> list[Desk]:
    return sorted(desks, key=lambda desk: (desk.room.cpus_milli, desk.node_id))
