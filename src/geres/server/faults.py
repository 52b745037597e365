"""What a turn cannot digest: the work is halved until the bad item is alone, and that one is set aside.

A report goes to the quarantine and its task fails with `internal`; so does a queued task that cannot be
placed.  The rest goes on.  What fails without any item is a fault of ours, and ends the server.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from geres.errors import StoreUnavailable
from geres.model.ids import show_task
from geres.model.wire import Ended
from geres.store import dispatching
from geres.store.database import Database
from geres.store.turn import Gathered, Turned

log = logging.getLogger("geres.faults")

#: Of one lane; were there more, the fault would be ours, and the lane is left alone.
_MOST_OF_LANE = 3
_MOST_IN_ALL = 30

Apply = Callable[[Gathered, Turned], Awaitable[None]]


class Faults:
    """Takes over when a turn has failed."""

    def __init__(
        self,
        db: Database,
        clock: Callable[[], int],
        take: Callable[[Gathered], Awaitable[Turned]],
        apply: Apply,
        leave_out: Callable[[int, int], None],
    ) -> None:
        """`take` takes a turn, `apply` does what follows from it, `leave_out` hides a lane (pool, lane)."""
        self._db, self._clock = db, clock
        self._take, self._apply, self._leave_out = take, apply, leave_out

    async def reports(self, work: Gathered) -> list[tuple[int, Ended]]:
        """Take the reports of this work.  Returns those that are still to be taken: the store was away."""
        parts = [work.ended] if work.ended else []
        while parts:
            part = parts.pop()
            alone = Gathered(work.epochs, ended=part)
            try:
                done = await self._take(alone)
            except StoreUnavailable:
                return part + [row for rest in reversed(parts) for row in rest]
            except Exception as error:
                if len(part) > 1:
                    parts += [part[len(part) // 2 :], part[: len(part) // 2]]
                    continue
                node_id, report = part[0]
                log.exception("report of task %s set aside", show_task(report.task))
                try:
                    done = await self.set_aside(node_id, report, error)
                except StoreUnavailable:
                    return part + [row for rest in reversed(parts) for row in rest]
            await self._apply(alone, done)
        return []

    async def set_aside(self, node_id: int, report: Ended, error: Exception) -> Turned:
        """Fail the task of a report, and keep the report for people to look at."""
        return await self._db.run(
            dispatching.set_aside, node_id, report, error=repr(error), now_us=self._clock()
        )

    async def queued(self, work: Gathered) -> None:
        """Dispatch for the pools lane by lane.  Raises what fails without any lane: no task is to blame."""
        await self._take(Gathered(work.epochs, work.pools, lanes=frozenset()))
        lanes = await self._db.read(dispatching.active_lanes, work.pools)
        parts, spent = [lanes] if lanes else [], 0
        of_lane: dict[int, int] = {}
        while parts:
            part = parts.pop()
            alone = Gathered(work.epochs, work.pools, lanes=frozenset(lane for _, lane in part))
            try:
                done = await self._take(alone)
            except StoreUnavailable:
                raise
            except Exception as error:
                if len(part) > 1:
                    parts += [part[: len(part) // 2], part[len(part) // 2 :]]
                    continue
                pool_id, lane_id = part[0]
                spent, of_lane[lane_id] = spent + 1, of_lane.get(lane_id, 0) + 1
                if spent > _MOST_IN_ALL:
                    raise
                found = None
                if of_lane[lane_id] <= _MOST_OF_LANE:
                    found = await self._db.run(
                        dispatching.set_task_aside, lane_id, error=repr(error), now_us=self._clock()
                    )
                if found is None:
                    log.exception("lane %d cannot be dispatched and is left out", lane_id)
                    self._leave_out(pool_id, lane_id)
                    continue
                log.exception("task %s cannot be dispatched and was set aside", show_task(found.task_ids[0]))
                done = found
                parts.append(part)
            await self._apply(alone, done)
