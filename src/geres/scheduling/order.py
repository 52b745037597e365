"""The order in which tasks of different lanes start: priority, then least use of the submitter, then age."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar


class Waiting(Protocol):
    """A task in its lane."""

    @property
    def priority(self) -> int: ...

    @property
    def seq(self) -> int: ...


W = TypeVar("W", bound=Waiting)


class Queue(NamedTuple, Generic[W]):
    """The candidates of one lane, in the lane's own order."""

    lane_id: int
    submitter: str
    cost: float  #: cpu-seconds that one of them is expected to use
    tasks: Sequence[W]


def interleave(queues: Sequence[Queue[W]], use: Mapping[str, float]) -> Iterator[tuple[int, W]]:
    """(lane id, task) of all candidates, in the order in which they should start.

    `use` is what each submitter has used, weighted, in cpu-seconds; what is handed out here counts at once,
    so that equal submitters take turns.  An empty `use` with costs of 0 gives first in, first out.
    """
    spent = dict(use)
    heap = []
    for queue in queues:
        if queue.tasks:
            first = queue.tasks[0]
            heap.append(
                (-first.priority, spent.get(queue.submitter, 0.0), first.seq, queue.lane_id, 0, queue)
            )
    heapq.heapify(heap)
    while heap:
        priority, seen, seq, lane_id, index, queue = heapq.heappop(heap)
        now = spent.get(queue.submitter, 0.0)
        if now > seen and heap:  # the submitter was served through another lane meanwhile
            heapq.heappush(heap, (priority, now, seq, lane_id, index, queue))
            continue
        yield lane_id, queue.tasks[index]
        spent[queue.submitter] = now + queue.cost
        if index + 1 < len(queue.tasks):
            task = queue.tasks[index + 1]
            heapq.heappush(heap, (-task.priority, now + queue.cost, task.seq, lane_id, index + 1, queue))


def decayed(use: float, seconds: float, half_life_seconds: float) -> float:
    """What a use counts for after some time."""
    return float(use * 0.5 ** (seconds / half_life_seconds))
