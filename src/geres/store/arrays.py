"""Arrays: stored as their job, unfolded into rows in pieces, durable from the start."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from geres.model.ids import task_key
from geres.model.jobs import KnownJobSpec
from geres.model.states import TaskState
from geres.model.tasks import TaskSpec
from geres.model.units import parse_time
from geres.store.database import Tx
from geres.store.sharing import activate

PIECE = 10_000  #: tasks that one transaction unfolds
_NO_SPEC = TaskSpec()


def unfold(tx: Tx, job_id: int, *, now_us: int) -> int:
    """Make the next rows of an array, at most PIECE.  Returns how many; 0 when it is whole."""
    row = tx.one("lock_array", job_id=job_id)
    if row is None:
        return 0
    spec = msgspec.json.decode(row["spec"], type=KnownJobSpec).task or _NO_SPEC
    state = TaskState.HELD if spec.hold else TaskState.QUEUED
    not_before = None if spec.not_before is None else parse_time(spec.not_before)
    if state is TaskState.QUEUED and not_before is not None and not_before > now_us:
        state = TaskState.BLOCKED
    priority = row["priority"] if spec.priority is None else spec.priority
    common = {
        "base": task_key(job_id, 0),
        "job_id": job_id,
        "tenant_id": row["tenant_id"],
        "subject": row["submitted_by"],
        "lane_id": row["lane_id"],
        "spec_id": row["spec_id"],
        "state": state,
        "priority": priority,
        "seq": now_us,
        "now_us": now_us,
    }
    made, last = (
        _unfold_items(tx, row, common) if row["array_range"] is None else _unfold_range(tx, row, common)
    )
    tx.run("array_unfolded", job_id=job_id, n=made, last=last)
    if not_before is not None and state is TaskState.BLOCKED:
        tx.run("set_not_before", job_id=job_id, not_before_at=not_before)
    if state is TaskState.QUEUED:
        activate(tx, row["lane_id"], priority)
    return made


def _unfold_items(tx: Tx, row: dict[str, Any], common: dict[str, Any]) -> tuple[int, int]:
    """(how many, the last number)."""
    first = row["array_done"] + 1
    piece = tx.one("array_piece_at", job_id=row["id"], first=first)
    if piece is None:
        raise ValueError(f"job {row['id']}: the piece of its array from {first} on is missing")
    made = tx.run("unfold_items", **common, first=first, items=piece["items"])
    tx.run("drop_array_piece", job_id=row["id"], first=first)
    return made, first + made - 1


def _unfold_range(tx: Tx, row: dict[str, Any], common: dict[str, Any]) -> tuple[int, int]:
    """(how many, the last number)."""
    skip, left, made, last = row["array_done"], PIECE, 0, 0
    for first, end, step in json.loads(row["array_range"]):
        numbers = range(first, end + 1, step)
        piece = numbers[skip : skip + left]
        skip = max(0, skip - len(numbers))
        if piece:
            made += tx.run("unfold_range", **common, first=piece[0], last=piece[-1], step=step)
            last = max(last, piece[-1])
            left -= len(piece)
        if not left:
            break
    return made, last


def arrays_to_unfold(tx: Tx, *, limit: int = 100) -> list[int]:
    """Ids of jobs whose arrays are not whole."""
    return [row[0] for row in tx.rows("jobs_to_unfold", limit=limit)]
