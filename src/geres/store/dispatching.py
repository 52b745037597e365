"""What a dispatcher reads and writes beside its turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from geres.model.ids import show_task
from geres.model.states import Reason, TaskState
from geres.model.wire import Ended
from geres.store.database import Tx, batch
from geres.store.ends import End, record
from geres.store.turn import MOST_LANES, Gathered, Planner, Turned, turn

PIECE = 5000  #: of what is asked of nodes, read at once


class JobFacts(NamedTuple):
    name: str
    meta: dict[str, str]
    is_array: bool


def specs(tx: Tx, spec_ids: Sequence[int]) -> dict[int, str]:
    """Specifications as JSON, by id."""
    return dict(tx.rows("specs_by_id", spec_ids=list(spec_ids)))


def assigned_on(tx: Tx, node_ids: Sequence[int]) -> list[tuple[int, int, int]]:
    """(node, task, attempt) of what is assigned to these nodes and has not been reported started."""
    rows = tx.rows("assigned_on", node_ids=list(node_ids)) if node_ids else []
    return [(row[0], row[1], row[2]) for row in rows]


def job_facts(tx: Tx, job_ids: Sequence[int]) -> dict[int, JobFacts]:
    """What the agents are told of jobs, by id."""
    return {
        row[0]: JobFacts(row[1] or "", msgspec.json.decode(row[2], type=dict[str, str]), row[3] > 0)
        for row in tx.rows("job_facts", job_ids=list(job_ids))
    }


def asked_on(
    tx: Tx, node_ids: Sequence[int], after: int = 0
) -> list[tuple[int, int, int, str, str | None, int]]:
    """(node, task, attempt, asked, message, asked at) of what people asked of tasks on these nodes.

    At most PIECE, by task; `after` is the last task of the piece before.
    """
    if not node_ids:
        return []
    rows = tx.rows("asked_on", node_ids=list(node_ids), after=after, limit=PIECE)
    return [(r[0], r[1], r[2], r[3], r[4], r[5]) for r in rows]


def kills_on(
    tx: Tx, node_ids: Sequence[int], after: tuple[int, int, int] = (0, 0, 0)
) -> list[tuple[int, int, int]]:
    """(node, task, attempt) of what the store has ended by force, and these nodes have not yet.

    At most PIECE; `after` is the last of the piece before.
    """
    if not node_ids:
        return []
    place = dict(zip(("node_id", "task_id", "attempt"), after, strict=True))
    rows = tx.rows("kills_on", node_ids=list(node_ids), limit=PIECE, **place)
    return [(row[0], row[1], row[2]) for row in rows]


def look_at(tx: Tx, node_ids: Sequence[int]) -> dict[int, tuple[int, bool]]:
    """The epochs of these nodes, and whether they are to take no new tasks."""
    return {row[0]: (row[1], bool(row[2])) for row in tx.rows("look_at_nodes", node_ids=list(node_ids))}


def show_busy(tx: Tx, nodes: Sequence[tuple[int, int, str]], *, now_us: int) -> list[int]:
    """Write the states of (node, epoch, state), where they changed, with their history."""
    if not nodes:
        return []
    tx.rows("lock_nodes_to_change", node_ids=sorted(node for node, _, _ in nodes))
    changed = tx.rows("show_busy", batch=batch(nodes), now_us=now_us)
    if changed:
        events = [(node_id, now_us, state) for node_id, state in changed]
        tx.insert("node_event", ("node_id", "at", "state"), events)
    return [row[0] for row in changed]


class FarNode(NamedTuple):
    node_id: int
    epoch: int
    tenant_id: int
    draining: int
    out_of_service: str | None  #: why its start task keeps it so


def far_nodes(tx: Tx, server_id: int) -> list[FarNode]:
    """The nodes that are connected to other servers than this one."""
    return [FarNode(*row) for row in tx.rows("far_nodes", server_id=server_id)]


def infos(tx: Tx, node_ids: Sequence[int]) -> list[tuple[int, int, str]]:
    """(node, epoch, its Hello as JSON)."""
    return [(row[0], row[1], row[2]) for row in tx.rows("hellos_of_nodes", node_ids=list(node_ids))]


def classes_on_far_nodes(tx: Tx, server_id: int) -> dict[int, list[tuple[str, int]]]:
    """By node of another server: (demand as JSON, how many such tasks it has)."""
    found: dict[int, list[tuple[str, int]]] = {}
    for node_id, body, count in tx.rows("classes_on_far_nodes", server_id=server_id):
        found.setdefault(node_id, []).append((body, int(count)))
    return found


def set_aside(tx: Tx, node_id: int, report: Ended, *, error: str, now_us: int) -> Turned:
    """Put a report that a turn cannot digest into the quarantine, and fail its task with `internal`."""
    plain = Ended(
        report.task,
        report.attempt,
        "failed",
        Reason.INTERNAL,
        "its report could not be stored; see `geres doctor`",
        ended_us=now_us,
    )
    tx.run(
        "quarantine",
        now_us=now_us,
        kind="ended",
        key=f"{report.task}/{report.attempt}",
        body=msgspec.json.encode(report).decode(),
        error=error[:2000],
    )
    done = Turned()
    rows = {row[0]: row[1] for row in tx.rows("epoch_of_node", node_id=node_id)}
    if rows:
        done = turn(tx, Gathered(rows, ended=[(node_id, plain)]), _NOTHING, now_us=now_us)
    return done


def active_lanes(tx: Tx, pool_ids: Sequence[int]) -> list[tuple[int, int]]:
    """(pool, lane) of the lanes that may have queued tasks, in the order in which a turn looks at them."""
    found: list[tuple[int, int]] = []
    for pool_id in pool_ids:
        rows = tx.rows("active_lanes", pool_id=pool_id, left_out=[], limit=MOST_LANES)
        found += [(pool_id, row[0]) for row in rows]
    return found


def set_task_aside(tx: Tx, lane_id: int, *, error: str, now_us: int) -> Turned | None:
    """Put the first queued task of a lane into the quarantine, and fail it with `internal`; None without."""
    rows = tx.rows("queued_tasks_of_lane", lane_id=lane_id, limit=1)
    if not rows:
        return None
    [row] = tx.all("lock_children", task_ids=[rows[0][0]])
    end = End(
        row["id"],
        0,
        row["round"],
        TaskState.FAILED,
        Reason.INTERNAL,
        "it could not be dispatched; see `geres doctor`",
        ended_at=now_us,
        is_parent=bool(row["is_parent"]),
    )
    tx.run(
        "quarantine",
        now_us=now_us,
        kind="task",
        key=show_task(row["id"]),
        body=msgspec.json.encode(rows[0]).decode(),
        error=error[:2000],
    )
    ended = record(tx, [end], now_us=now_us)
    return Turned(task_ids=ended.task_ids, jobs=ended.jobs, more=True)


class _Nothing:
    """Plans nothing: for a turn that only takes reports."""

    def hopeless(self, pool_id: int) -> frozenset[int]:
        return frozenset()

    def caps_of(self, lanes: object) -> list[tuple[str, str, list[int]]]:
        return []

    def choose(self, lanes: object, caps: object) -> list[tuple[int, int]]:
        return []

    def place(self, candidates: object) -> list[object]:
        return []


_NOTHING: Planner = _Nothing()  # type: ignore[assignment]  # it never makes a placement
