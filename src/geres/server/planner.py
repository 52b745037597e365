"""What a turn asks of the dispatcher: which lanes to read, and where their tasks start."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, cast

from geres.model import demand as demands
from geres.model.demand import Demand
from geres.scheduling import credit
from geres.scheduling.order import Queue, decayed, interleave
from geres.scheduling.plan import Want, plan, reserve
from geres.scheduling.rooms import Room, how_many, never, why_not
from geres.server.desk import Desk
from geres.store.turn import Candidate, Cap, Lane, Placement

_MOST_READ = 2000  #: tasks of a lane in one turn
_MOST_HEADS = 16  #: lanes that fit nowhere now, of which the first task is looked at
_MOST_LANES_KNOWN = 50_000
_HALF_LIFE_SECONDS = 600.0
_PLAIN_COST_SECONDS = 1.0  #: of a task whose run time is not known yet


class TurnPlanner:
    """Decides inside a turn.  Between turns the desks change; inside one nobody else touches them."""

    def __init__(
        self,
        desks: Mapping[int, Desk],
        means: Mapping[int, float],
        *,
        reserve_after_seconds: float,
        placing: str,
        fair: bool,
    ) -> None:
        self._desks, self._means = desks, means
        self._reserve_after_us = int(reserve_after_seconds * 1e6)
        self._placing = cast(Literal["pack", "spread"], placing)
        self._fair = fair
        self._use: dict[str, float] = {}
        self._use_at = time.monotonic()
        self._lanes: dict[int, Lane] = {}
        self._caps: Sequence[Cap] = ()
        self.now_us = 0
        self._pool_id = 0
        self._hopeless: dict[int, set[int]] = defaultdict(set)
        self._left_out: dict[int, set[int]] = defaultdict(set)
        self.demands: dict[int, Demand] = {}  #: by lane, of the last turns
        self.submitters: dict[int, str] = {}

    def hopeless(self, pool_id: int) -> set[int]:
        """Lanes of the pool that no connected node could ever serve.

        Were they looked at in every turn, some hundred of them would hide all lanes behind them.
        """
        return self._hopeless[pool_id] | self._left_out[pool_id]

    def leave_out(self, pool_id: int, lane_id: int) -> None:
        """Look at a lane no more, until this server starts again: turns fail by it."""
        self._left_out[pool_id].add(lane_id)

    def node_came(self, pool_id: int) -> None:
        """A node that could serve what none could before."""
        self._hopeless.pop(pool_id, None)

    def caps_of(self, lanes: Sequence[Lane]) -> list[tuple[str, str, list[int]]]:
        """The limits that lanes are under: of their jobs and of the labels of their tasks."""
        self._pool_id = lanes[0].pool_id
        if len(self.demands) > _MOST_LANES_KNOWN:
            self.demands, self.submitters = {}, {}
        self.demands |= {lane.id: _demand(lane.demand) for lane in lanes}
        self.submitters |= {lane.id: lane.submitted_by for lane in lanes}
        caps: dict[tuple[str, str], list[int]] = defaultdict(list)
        for lane in lanes:
            if lane.max_parallel is not None:
                caps["job", str(lane.job_id)].append(lane.id)
            if label := self.demands[lane.id].label:
                caps["label", label].append(lane.id)
        return [(scope, key, lane_ids) for (scope, key), lane_ids in sorted(caps.items())]

    def choose(self, lanes: Sequence[Lane], caps: Sequence[Cap]) -> list[tuple[int, int]]:
        """How many tasks to read of each lane: what could start now, and what may be sent ahead."""
        self._lanes = {lane.id: lane for lane in lanes}
        self._caps = caps
        pool_desks = self._pool()
        fitting: dict[Demand, dict[int, int]] = {}
        totals: dict[Demand, int] = {}
        chosen, heads = [], 0
        for lane in lanes:
            demand = self.demands[lane.id]
            if demand not in fitting:
                fitting[demand], totals[demand] = _fitting(demand, pool_desks)
            fits = fitting[demand]
            most = min(
                [
                    totals[demand],
                    _MOST_READ,
                    *(cap.most_of(lane.id, _MOST_READ) for cap in caps if lane.id in cap.lane_ids),
                ]
            )
            ahead = 0
            if most < _MOST_READ and not self._is_capped(lane.id):
                ahead = sum(self._credit(desk, lane.id, fits[desk.node_id]) for desk in pool_desks)
            if most + ahead > 0:
                chosen.append((lane.id, min(most + ahead, _MOST_READ)))
            elif all(never(demand, desk.room.facts) is not None for desk in pool_desks):
                self._give_up(lane.id)
            elif heads < _MOST_HEADS and not any(
                c.most_of(lane.id, 1) == 0 for c in caps if lane.id in c.lane_ids
            ):
                heads += 1
                chosen.append((lane.id, 1))
        return chosen

    def _give_up(self, lane_id: int) -> None:
        hopeless = self._hopeless[self._pool_id]
        if len(hopeless) < _MOST_LANES_KNOWN:
            hopeless.add(lane_id)

    def place(self, candidates: Sequence[Candidate]) -> list[Placement]:
        """Where they start: in free room by the plan; of the first lane that has to wait, some ahead."""
        rooms = {desk.node_id: desk.room.copy() for desk in self._pool()}
        ordered = self._ordered(candidates)
        allowed = self._within_caps(ordered)
        by_id = {candidate.id: candidate for candidate in allowed}
        reserved = self._reserved_first(allowed, rooms)
        wants = [Want(c.id, self.demands[c.lane_id]) for c in allowed if c.id not in reserved]
        placed = plan(wants, list(rooms.values()), self._placing)
        placements = [Placement(by_id[key], node_id) for key, node_id in placed]
        placements += [Placement(by_id[key], node_id) for key, node_id in reserved.items()]
        gone = {placement.candidate.id for placement in placements}
        waiting = [c for c in allowed if c.id not in gone]
        self._reserve(waiting, bool(placements))
        placements += self._ahead(waiting, rooms, placements)
        self._charge(placements)
        return placements

    def _pool(self) -> list[Desk]:
        """The connected nodes of the pool that this part of the turn is about, by node id."""
        desks = [desk for desk in list(self._desks.values()) if desk.pool_id == self._pool_id]
        return sorted(desks, key=lambda desk: desk.node_id)

    def _ordered(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        by_lane: dict[int, list[Candidate]] = defaultdict(list)
        for candidate in candidates:
            by_lane[candidate.lane_id].append(candidate)
        if len(by_lane) == 1:
            return list(candidates)
        use = self._decayed_use() if self._fair else {}
        queues = [
            Queue(lane_id, self.submitters[lane_id], self._cost(lane_id) if self._fair else 0.0, tasks)
            for lane_id, tasks in sorted(by_lane.items())
        ]
        return [task for _, task in interleave(queues, use)]

    def _within_caps(self, ordered: list[Candidate]) -> list[Candidate]:
        if not self._caps:
            return ordered
        left = [cap.left for cap in self._caps]
        allowed = []
        for candidate in ordered:
            lane_id = candidate.lane_id
            mine = [
                (i, cap.costs.get(lane_id, 1)) for i, cap in enumerate(self._caps) if lane_id in cap.lane_ids
            ]
            if all(left[i] >= cost for i, cost in mine):
                allowed.append(candidate)
                for i, cost in mine:
                    left[i] -= cost
        return allowed

    def _reserved_first(self, allowed: list[Candidate], rooms: dict[int, Room]) -> dict[int, int]:
        """Tasks that a node was emptied for, and that fit there by now."""
        found = {}
        waiting = {candidate.id: candidate for candidate in allowed}
        for node_id, room in rooms.items():
            if room.reserved_for is None:
                continue
            candidate = waiting.get(room.reserved_for)
            desk = self._desks.get(node_id)
            if desk is None:  # it has just gone
                continue
            if candidate is None:
                desk.room.reserved_for = room.reserved_for = None  # it started elsewhere, or was cancelled
                continue
            room.reserved_for = None
            if why_not(self.demands[candidate.lane_id], room) is None:
                room.take(self.demands[candidate.lane_id])
                desk.room.reserved_for = None
                found[candidate.id] = node_id
            else:
                room.reserved_for = candidate.id
        return found

    def _reserve(self, waiting: list[Candidate], others_started: bool) -> None:
        """Empty a node for the first task that has waited too long while others started."""
        held = {desk.room.reserved_for for desk in self._pool()}
        for candidate in waiting:
            demand = self.demands[candidate.lane_id]
            if candidate.seq + self._reserve_after_us > self.now_us or candidate.id in held:
                continue
            if not (others_started or demand.exclusive or demand.cpus_milli > 1000):
                continue
            node_id = reserve(demand, [desk.room for desk in self._pool()])
            if node_id is not None and node_id in self._desks:
                self._desks[node_id].room.reserved_for = candidate.id
            return

    def _ahead(
        self, waiting: list[Candidate], rooms: dict[int, Room], placements: list[Placement]
    ) -> list[Placement]:
        """Short tasks of the lane that comes first of those that wait, sent to nodes where it runs already.

        Only of that lane: room that is refilled ahead is never free for the others.
        """
        first = next((c for c in waiting if self._fits_ever(c)), None)
        if first is None or self._is_capped(first.lane_id):
            return []
        demand = self.demands[first.lane_id]
        if demand.exclusive or demand.gpus:
            return []
        started: dict[int, int] = defaultdict(int)
        for placement in placements:
            if placement.candidate.lane_id == first.lane_id:
                started[placement.node_id] += 1
        tasks = iter([c for c in waiting if c.lane_id == first.lane_id])
        sent: list[Placement] = []
        for desk in self._pool():
            for _ in range(self._credit(desk, first.lane_id, started[desk.node_id])):
                candidate = next(tasks, None)
                if candidate is None:
                    return sent
                sent.append(Placement(candidate, desk.node_id, ahead=True))
        return sent

    def _credit(self, desk: Desk, lane_id: int, starting: int = 0) -> int:
        lane = desk.lanes.get(lane_id)
        if not desk.room.accepting or desk.room.reserved_for is not None or (lane is None and not starting):
            return 0
        demand = self.demands[lane_id]
        if demand.exclusive or demand.gpus:
            return 0
        running = (lane.in_room if lane else 0) + starting
        return credit.credit(self._means.get(lane_id), running, lane.ahead if lane else 0)

    def _is_capped(self, lane_id: int) -> bool:
        return any(lane_id in cap.lane_ids for cap in self._caps)

    def _fits_ever(self, candidate: Candidate) -> bool:
        demand = self.demands[candidate.lane_id]
        return any(never(demand, desk.room.facts) is None for desk in self._pool())

    def _cost(self, lane_id: int) -> float:
        seconds = max(self._means.get(lane_id, _PLAIN_COST_SECONDS), 0.001)
        return max(self.demands[lane_id].cpus_milli, 1) / 1000 * seconds

    def _decayed_use(self) -> dict[str, float]:
        now = time.monotonic()
        passed, self._use_at = now - self._use_at, now
        self._use = {
            who: left
            for who, use in self._use.items()
            if not math.isclose(left := decayed(use, passed, _HALF_LIFE_SECONDS), 0.0, abs_tol=1e-6)
        }
        return self._use

    def _charge(self, placements: Sequence[Placement]) -> None:
        for placement in placements:
            lane_id = placement.candidate.lane_id
            who = self.submitters[lane_id]
            self._use[who] = self._use.get(who, 0.0) + self._cost(lane_id)


def _fitting(demand: Demand, desks: Sequence[Desk]) -> tuple[dict[int, int], int]:
    """How many such tasks could start now, by node, and in all: of the first nodes where those are enough."""
    fits, total = {}, 0
    for desk in desks:
        fits[desk.node_id] = many = how_many(demand, desk.room)
        total += many
        if total >= _MOST_READ:
            break
    return fits, total


def _demand(text: str) -> Demand:
    found = _DEMANDS.get(text)
    if found is None:
        if len(_DEMANDS) > 10_000:
            _DEMANDS.clear()
        found = _DEMANDS[text] = demands.from_text(text)
    return found


_DEMANDS: dict[str, Demand] = {}
