"""Places tasks on nodes.  Pure and deterministic: the same picture gives the same plan."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from geres.model.demand import Demand
from geres.scheduling.rooms import Room, never, why_not

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
    """Rooms grouped by what they are and what is free; for each demand a heap of the groups that fit."""

    def __init__(self, rooms: Sequence[Room], placing: Placing) -> None:
        self._sign = 1 if placing == "pack" else -1
        self._groups: dict[tuple[object, ...], list[tuple[int, Room]]] = {}
        self._heaps: dict[Demand, list[tuple[int, int, int, tuple[object, ...]]]] = {}
        self._order = 0
        for room in rooms:
            self._groups.setdefault(self._shape(room), []).append((room.node_id, room))
        for group in self._groups.values():
            heapq.heapify(group)

    @staticmethod
    def _shape(room: Room) -> tuple[object, ...]:
        return (
            room.facts[1:],
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
            return self._by_name(demand)
        heap = self._heaps.get(demand)
        if heap is None:
            heap = self._heaps[demand] = []
            for shape, group in self._groups.items():
                self._offer(heap, demand, shape, group)
        while heap:
            ready = self._groups.get(heap[0][3])
            if ready:
                return heapq.heappop(ready)[1]
            heapq.heappop(heap)
        return None

    def _offer(
        self,
        heap: list[tuple[int, int, int, tuple[object, ...]]],
        demand: Demand,
        shape: tuple[object, ...],
        group: list[tuple[int, Room]],
    ) -> None:
        if group and why_not(demand, group[0][1]) is None:
            self._order += 1
            room = group[0][1]
            heapq.heappush(heap, (self._sign * room.cpus_milli, group[0][0], self._order, shape))

    def _by_name(self, demand: Demand) -> Room | None:
        """Where the names of nodes decide, each is looked at."""
        fitting = [
            (self._sign * room.cpus_milli, node_id, shape)
            for shape, group in self._groups.items()
            for node_id, room in group
            if why_not(demand, room) is None
        ]
        if not fitting:
            return None
        _, node_id, shape = min(fitting, key=lambda found: found[:2])
        group = self._groups[shape]
        index = next(i for i, (other, _) in enumerate(group) if other == node_id)
        room = group.pop(index)[1]
        heapq.heapify(group)
        return room

    def moved(self, room: Room) -> None:
        """Put a room back after it was changed."""
        shape = self._shape(room)
        group = self._groups.setdefault(shape, [])
        heapq.heappush(group, (room.node_id, room))
        for demand, heap in self._heaps.items():
            self._offer(heap, demand, shape, group)


def _names_matter(demand: Demand) -> bool:
    return bool(demand.nodelist) or (demand.match is not None and "name" in demand.match)


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
