"""Places tasks on nodes.  Pure and deterministic: the same picture gives the same plan."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import msgspec

from geres.model.demand import Demand
from geres.scheduling.rooms import Room, never, sees_by_path, why_not

Placing = Literal["pack", "spread"]


class Want(NamedTuple):
    """A task that wants to start."""

    key: int
    demand: Demand


def plan(wants: Iterable[Want], rooms: Sequence[Room], placing: Placing = "pack") -> list[tuple[int, int]]:
    """(key, node id) of the wants that start now.  The rooms given are changed to what is left.

    Wants come in the order in which they should start (see order.py).  `pack` takes the fullest node that
    fits, `spread` the emptiest; ties go to the lowest node id.  A task that fits nowhere is left out and does
    not hold up smaller ones behind it; what keeps large ones from starving is the reservation of a node
    (see `reserve`).

    Nodes in the same situation are one shape, so that the work for one want does not grow with the fleet.
    """
    shapes = _Shapes(rooms, placing)
    placed = []
    for want in wants:
        room = shapes.best(want.demand)
        if room is not None:
            room.take(want.demand)
            shapes.moved(room)
            placed.append((want.key, room.node_id))
    return placed


class _Shapes:
    """Rooms grouped by what they are and what is free; for each demand a heap of the groups that fit.

    Neither its name nor its machine makes a node a shape of its own: every node has another.  Wants that ask
    for names look at every node; those that ask for a directory look at the groups that share it, and at the
    nodes of their machine.
    """

    def __init__(self, rooms: Sequence[Room], placing: Placing) -> None:
        self._sign = 1 if placing == "pack" else -1
        self._groups: dict[tuple[object, ...], list[tuple[int, Room]]] = {}
        self._heaps: dict[Demand, list[tuple[int, int, int, tuple[object, ...]]]] = {}
        self._order = 0
        self._of_host: dict[str, list[Room]] = defaultdict(list)
        for room in rooms:
            self._groups.setdefault(self._shape(room), []).append((room.node_id, room))
            self._of_host[room.facts.host_id].append(room)
        for group in self._groups.values():
            heapq.heapify(group)

    @staticmethod
    def _shape(room: Room) -> tuple[object, ...]:
        facts = room.facts
        return (
            (facts.pool, facts.arch, facts.os, *facts[6:]),
            room.cpus_milli,
            room.memory_bytes,
            room.gpus,
            tuple(sorted(room.counts.items())),
            room.tasks,
            room.exclusive,
            room.accepting,
            room.reserved_for,
            room.outside_cpus_milli,
            room.outside_memory_bytes,
        )

    def best(self, demand: Demand) -> Room | None:
        """The room for it, taken out of its group; put it back with `moved`."""
        if _names_matter(demand):
            rooms = [room for group in self._groups.values() for _, room in group]
            return self._take(self._first(demand, rooms))
        heap = self._heaps.get(demand)
        if heap is None:
            heap = self._heaps[demand] = []
            for shape, group in self._groups.items():
                self._offer(heap, demand, shape, group)
        found = self._top(heap)
        here = self._of_host.get(demand.host) if demand.host is not None else None
        if here:
            found = self._first(demand, [*here, *([found] if found else [])])
        return self._take(found)

    def _top(self, heap: list[tuple[int, int, int, tuple[object, ...]]]) -> Room | None:
        """The best room of the groups in a heap, whose entries may be of rooms that have gone since."""
        while heap:
            free, node_id, order, shape = heap[0]
            group = self._groups.get(shape)
            if not group:
                heapq.heappop(heap)
            elif group[0][0] != node_id:
                heapq.heapreplace(heap, (free, group[0][0], order, shape))
            else:
                return group[0][1]
        return None

    def _first(self, demand: Demand, rooms: Iterable[Room]) -> Room | None:
        fitting = [room for room in rooms if why_not(demand, room) is None]
        return min(fitting, key=lambda room: (self._sign * room.cpus_milli, room.node_id), default=None)

    def _take(self, room: Room | None) -> Room | None:
        if room is None:
            return None
        group = self._groups[self._shape(room)]
        if group[0][1] is room:
            heapq.heappop(group)
        else:
            del group[next(i for i, (_, other) in enumerate(group) if other is room)]
            heapq.heapify(group)
        return room

    def _offer(
        self,
        heap: list[tuple[int, int, int, tuple[object, ...]]],
        demand: Demand,
        shape: tuple[object, ...],
        group: list[tuple[int, Room]],
    ) -> None:
        if not group:
            return
        room, asks = group[0][1], demand
        if demand.host is not None:
            if not sees_by_path(demand, room.facts):
                return
            asks = msgspec.structs.replace(demand, host=None)
        if why_not(asks, room) is None:
            self._order += 1
            heapq.heappush(heap, (self._sign * room.cpus_milli, room.node_id, self._order, shape))

    def moved(self, room: Room) -> None:
        """Put a room back after it was changed."""
        shape = self._shape(room)
        group = self._groups.setdefault(shape, [])
        heapq.heappush(group, (room.node_id, room))
        for demand, heap in self._heaps.items():
            self._offer(heap, demand, shape, group)


def _names_matter(demand: Demand) -> bool:
    match = demand.match or ""
    return bool(demand.nodelist) or "name" in match or "host" in match


def reserve(demand: Demand, rooms: Sequence[Room]) -> int | None:
    """The node to empty for a task that has waited too long: of those that could run it when empty, the one
    with the fewest tasks, then the most free cpus, then the lowest id.  None where no node could."""
    able = [
        room
        for room in rooms
        if room.accepting and room.reserved_for is None and never(demand, room.facts) is None
    ]
    if not able:
        return None
    return min(able, key=lambda room: (room.tasks, -room.cpus_milli, room.node_id)).node_id
