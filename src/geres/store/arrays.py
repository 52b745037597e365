"""Arrays: stored as their job, unfolded into rows in pieces, durable from the start."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from geres.model.callers import Caller
from geres.model.ids import task_key
from geres.model.jobs import KnownJobSpec
from geres.model.states import TaskState
from geres.model.tasks import TaskSpec
from geres.model.units import parse_time
from geres.store.database import Tx, batch
from geres.store.ends import free, record, skip
from geres.store.parents import Parents, lock_parents
from geres.store.sharing import activate

PIECE = 10_000  #: tasks that one transaction unfolds
_NO_SPEC = TaskSpec()


def unfold(tx: Tx, job_id: int, *, now_us: int) -> int:
    """Make the next rows of an array, at most PIECE.  Returns how many; 0 when it is whole.

    Where it waits for others its tasks are blocked, or skipped where one of them has failed.
    """
    parents = _parents(tx, job_id)
    row = tx.one("lock_array", job_id=job_id)
    if row is None:
        return 0
    spec = msgspec.json.decode(row["spec"], type=KnownJobSpec).task or _NO_SPEC
    state = TaskState.HELD if spec.hold else TaskState.QUEUED
    not_before = None if spec.not_before is None else parse_time(spec.not_before)
    later = not_before is not None and not_before > now_us
    if state is TaskState.QUEUED and (later or parents.open or parents.failed):
        state = TaskState.BLOCKED
    priority = row["priority"] if spec.priority is None else spec.priority
    common = {
        "base": task_key(job_id, 0),
        "job_id": job_id,
        "tenant_id": row["tenant_id"],
        "parent_task_id": row["parent_task_id"],
        "subject": row["submitted_by"],
        "lane_id": row["lane_id"],
        "spec_id": row["spec_id"],
        "name": spec.name,
        "state": state,
        "priority": priority,
        "seq": now_us,
        "now_us": now_us,
        "waits_on": parents.open,
    }
    unfolded = _unfold_items if row["array_range"] is None else _unfold_range
    made, first, last = unfolded(tx, row, common)
    tx.run("array_unfolded", job_id=job_id, n=made, last=last)
    if not_before is not None and later:
        tx.run("set_not_before", job_id=job_id, not_before_at=not_before)
    if parents.open or parents.failed:
        _depend(tx, task_key(job_id, first), task_key(job_id, last), parents, now_us)
    elif state is TaskState.QUEUED:
        activate(tx, row["lane_id"], priority)
    return made


def _parents(tx: Tx, job_id: int) -> Parents:
    """What the tasks of an array wait for, locked before the job is."""
    row = tx.one("spec_of_array", job_id=job_id)
    after = msgspec.json.decode(row["spec"], type=KnownJobSpec).after if row else []
    if row is None or not after:
        return Parents()
    caller = Caller(row["tenant_id"], "", row["submitted_by"], "user")
    return lock_parents(tx, caller, after, job_id, refuse=False)


def _depend(tx: Tx, first: int, last: int, parents: Parents, now_us: int) -> None:
    """Let the new tasks from `first` to `last` wait for their parents; where one has failed, skip them."""
    rows = [(key, None, 0) for key in parents.tasks] + [(None, key, 0) for key in parents.jobs]
    rows += [(key, None, 1) for key in parents.failed_tasks] + [(None, key, 1) for key in parents.failed_jobs]
    made = [key for (key,) in tx.rows("depend_tasks", parents=batch(rows), first=first, last=last)]
    if parents.failed:
        skipped, _ = free(tx, made, made, now_us=now_us)
        why = f"{parents.failed} has ended without success"
        record(tx, [skip(row, why, now_us) for row in skipped], now_us=now_us)


def _unfold_items(tx: Tx, row: dict[str, Any], common: dict[str, Any]) -> tuple[int, int, int]:
    """(how many, the first number, the last one)."""
    first = row["array_done"] + 1
    piece = tx.one("array_piece_at", job_id=row["id"], first=first)
    if piece is None:
        raise ValueError(f"job {row['id']}: the piece of its array from {first} on is missing")
    made = tx.run("unfold_items", **common, first=first, items=piece["items"])
    tx.run("drop_array_piece", job_id=row["id"], first=first)
    return made, first, first + made - 1


def _unfold_range(tx: Tx, row: dict[str, Any], common: dict[str, Any]) -> tuple[int, int, int]:
    """(how many, the first number, the last one)."""
    skipped, left, made = row["array_done"], PIECE, 0
    ends: list[int] = []
    for first, end, step in json.loads(row["array_range"]):
        numbers = range(first, end + 1, step)
        piece = numbers[skipped : skipped + left]
        skipped = max(0, skipped - len(numbers))
        if piece:
            made += tx.run("unfold_range", **common, first=piece[0], last=piece[-1], step=step)
            ends += piece[0], piece[-1]
            left -= len(piece)
        if not left:
            break
    return made, min(ends, default=0), max(ends, default=0)


def arrays_to_unfold(tx: Tx, *, limit: int = 100) -> list[int]:
    """Ids of jobs whose arrays are not whole."""
    return [row[0] for row in tx.rows("jobs_to_unfold", limit=limit)]
