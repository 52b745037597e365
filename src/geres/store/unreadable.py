"""Records that cannot be read are set aside when a server starts: one of them stops nobody else's work."""

from __future__ import annotations

from collections.abc import Sequence

from geres.model.ids import show_task
from geres.model.states import Reason, TaskState
from geres.store.database import Tx
from geres.store.ends import End, record

#: What is looked at: how it is found, which waiting tasks need it, what takes its place.
_KINDS = (
    ("specification", "unreadable_specs", "tasks_waiting_on_spec", "replace_spec"),
    ("class", "unreadable_classes", "tasks_waiting_on_class", "replace_class"),
    ("job", "unreadable_jobs", None, "replace_job"),
    ("task", "unreadable_tasks", None, "replace_argv"),
)
_PIECE = 1000
_ERROR = "it is no JSON"


def set_aside(tx: Tx, *, now_us: int) -> list[str]:
    """Put unreadable records into the quarantine, and fail the waiting tasks that need them with `internal`.

    Returns a sentence for each.  What takes a record's place can be read and cannot be run: a task that was
    on a node and is tried again fails then.
    """
    told = []
    for kind, found, waiting, replace in _KINDS:
        for row in tx.all(found):
            tasks = [row["id"]] if kind == "task" else []
            if waiting is not None:
                tasks = [task_id for (task_id,) in tx.rows(waiting, id=row["id"])]
            key = show_task(row["id"]) if kind == "task" else f"{row['id']} {row['about']}".strip()
            tx.run("quarantine", now_us=now_us, kind=kind, key=key, body=row["body"], error=_ERROR)
            tx.run(replace, id=row["id"])
            _fail(tx, tasks, f"its {kind} could not be read; see `geres doctor`", now_us)
            told.append(
                f"the record of {kind} {key} cannot be read and was set aside; {len(tasks)} tasks failed"
            )
    return told


def _fail(tx: Tx, keys: Sequence[int], message: str, now_us: int) -> None:
    for start in range(0, len(keys), _PIECE):
        rows = tx.all("lock_tasks", task_ids=list(keys[start : start + _PIECE]))
        ends = [
            End(
                row["id"],
                0,
                row["round"],
                TaskState.FAILED,
                Reason.INTERNAL,
                message,
                ended_at=now_us,
                is_parent=bool(row["is_parent"]),
            )
            for row in rows
            if TaskState(row["state"]).waiting
        ]
        record(tx, ends, now_us=now_us)
