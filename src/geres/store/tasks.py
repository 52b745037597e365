"""Tasks: one in full, what an id means, and where outputs and values lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from geres.errors import Invalid, NotFound
from geres.model.callers import Caller
from geres.model.demand import Demand
from geres.model.ids import job_of, parse_job, parse_numbers, parse_task, show_task, task_key
from geres.model.jobs import DEFAULT_JOB, Found
from geres.model.states import JobState, TaskState
from geres.model.tasks import Task, TaskDetail
from geres.store import show
from geres.store.below import reached, sees_job
from geres.store.database import Row, Tx

#: Tasks that one request may act on, or one id may mean.
MOST_AT_ONCE = 100_000
_LAST_NUMBER = (1 << 32) - 1


class Kept(NamedTuple):
    """What is kept of one output stream of an attempt."""

    attempt: int
    inline: bytes  #: all of it where there is no blob, else its last part
    blob: str | None
    written_bytes: int


class Place(NamedTuple):
    """Where a task is at this moment."""

    state: TaskState
    attempt: int
    node_id: int | None
    node: str | None
    server_id: int | None  #: the server that its node is connected to
    may_change: bool = False  #: whether the caller may act on it


def get(tx: Tx, caller: Caller, key: int) -> TaskDetail:
    """One task in full.  Raises NotFound."""
    rows = tx.all("show_tasks", task_ids=[key])
    if not rows or rows[0]["tenant_id"] != caller.tenant_id or key not in reached(tx, caller, [key]):
        raise no_task(key)
    return show.task_detail(tx, rows[0], tx.all("attempts_of_task", task_id=key))


def get_short(tx: Tx, caller: Caller, key: int) -> Task:
    """One task as lists show it.  Raises NotFound."""
    task = show.tasks_by_id(tx, [key]).get(key)
    if task is None or task.tenant != caller.tenant or key not in reached(tx, caller, [key]):
        raise no_task(key)
    return task


def place(tx: Tx, caller: Caller, key: int) -> Place:
    """Where the task is.  Raises NotFound."""
    row = tx.one("task_place", task_id=key, tenant_id=caller.tenant_id)
    if row is None or key not in reached(tx, caller, [key]):
        raise no_task(key)
    return Place(
        *(TaskState(row["state"]), row["attempt"], row["node_id"], row["node"], row["server_id"]),
        may_change=may_change(caller, row),
    )


def kept_output(tx: Tx, key: int, stream: str, attempt: int | None) -> Kept | None:
    """What is kept of `stdout` or `stderr` of an attempt (None: the latest that ended); None: nothing yet."""
    if attempt is None:
        row = tx.one("output_of_last_attempt", task_id=key)
    else:
        row = tx.one("output_of_attempt", task_id=key, attempt=attempt)
    if row is None:
        return None
    inline = bytes(row[stream] or b"")
    return Kept(row["attempt"], inline, row[f"{stream}_blob"], row[f"{stream}_bytes"])


def value(tx: Tx, caller: Caller, key: int) -> bytes:
    """The JSON value that the task returned.  Raises NotFound, also where there is none yet."""
    place(tx, caller, key)
    found = tx.value("value_of_task", task_id=key)
    if found is None:
        raise NotFound(f"task {show_task(key)} has no value, or has not ended", id=show_task(key))
    return bytes(found)


def find(tx: Tx, caller: Caller, ref: str) -> Found:
    """What an id as typed means.  Raises NotFound, or Invalid for one that cannot be read."""
    job_id = find_job_id(tx, caller, ref)
    if job_id is not None:
        return Found(kind="job", job_id=str(job_id))
    keys = _keys(tx, caller, ref)
    return Found(kind="task", job_id=str(job_of(keys[0])), task_ids=[show_task(key) for key in keys])


def find_job_id(tx: Tx, caller: Caller, ref: str) -> int | None:
    """The job that a number or a name means; None for another word.  Raises NotFound for a number of none."""
    job_id = parse_job(ref)
    if job_id is not None:
        found = tx.one("job_state", job_id=job_id, tenant_id=caller.tenant_id)
        if found is None or not sees_job(tx, caller, job_id):
            raise NotFound(f"there is no job {ref}; see `geres jobs`", id=ref)
        return job_id
    if ref == DEFAULT_JOB:
        found = tx.value(
            "living_job_of_name", tenant_id=caller.tenant_id, subject=caller.subject, name=DEFAULT_JOB
        )
    else:
        found = tx.value("find_job_by_name", tenant_id=caller.tenant_id, subject=caller.subject, name=ref)
    return None if found is None or not sees_job(tx, caller, int(found)) else int(found)


def job_that_ends(tx: Tx, caller: Caller, ref: str) -> int | None:
    """The job that an id or name means, if it has not ended and ends by itself with its tasks."""
    try:
        job_id = find_job_id(tx, caller, ref)
    except NotFound:
        return None
    row = None if job_id is None else tx.all("show_jobs", job_ids=[job_id])[0]
    if row is None or JobState(row["state"]).final:
        return None
    return job_id if row["on_all_complete"] == "terminate" or row["state"] == JobState.CLOSING else None


def keys_of(tx: Tx, caller: Caller, ref: str, *, only_open: bool = False) -> list[int]:
    """The tasks that an id means: of a job all, or with `only_open` those that have not ended.

    Raises NotFound, or Invalid for an id that cannot be read or means too many.
    """
    job_id = find_job_id(tx, caller, ref)
    if job_id is None:
        return _keys(tx, caller, ref)
    statement = "open_tasks_of_job" if only_open else "tasks_of_job"
    return _limited(ref, _of_job(tx, caller, statement, job_id, 0, _LAST_NUMBER))


def failed_keys_of(tx: Tx, caller: Caller, ref: str) -> list[int]:
    """Of the tasks that an id means, those that failed."""
    job_id = find_job_id(tx, caller, ref)
    if job_id is not None:
        return _limited(ref, _of_job(tx, caller, "failed_tasks_of_job", job_id, 0, _LAST_NUMBER))
    keys = _keys(tx, caller, ref)
    states = {row["id"]: row["state"] for row in tx.all("states_of_tasks", task_ids=keys)}
    return [key for key in keys if states.get(key) == TaskState.FAILED]


def _keys(tx: Tx, caller: Caller, ref: str) -> list[int]:
    """The existing tasks of `12.7`, `12.3-9,11` or an own id."""
    if "." not in ref:
        key = tx.value("task_by_own_id", own_id=ref, tenant_id=caller.tenant_id, subject=caller.subject)
        if key is None or key not in reached(tx, caller, [key]):
            raise NotFound(f"there is no job and no task {ref!r}; see `geres jobs` and `geres tasks`", id=ref)
        return [int(key)]
    one = parse_task(ref)
    if one is not None:
        return _limited(
            ref, _of_job(tx, caller, "tasks_of_job", job_of(one), one & _LAST_NUMBER, one & _LAST_NUMBER)
        )
    job_text, _, numbers = ref.partition(".")
    job_id = parse_job(job_text)
    if job_id is None:
        raise Invalid(f"id: {ref!r} is no id; write one like 12, 12.7 or 12.3-9,11", field="id")
    keys: list[int] = []
    for part in parse_numbers(numbers, "id"):
        found = _of_job(tx, caller, "tasks_of_job", job_id, part[0], part[-1])
        keys += found if part.step == 1 else [key for key in found if (key & _LAST_NUMBER) in part]
    return _limited(ref, list(dict.fromkeys(keys)))


def _of_job(tx: Tx, caller: Caller, statement: str, job_id: int, first: int, last: int) -> list[int]:
    rows = tx.rows(
        statement,
        first=task_key(job_id, first),
        last=task_key(job_id, last),
        tenant_id=caller.tenant_id,
        limit=MOST_AT_ONCE + 1,
    )
    keys = [row[0] for row in rows]
    within = reached(tx, caller, keys)
    return keys if within is keys else [key for key in keys if key in within]


def _limited(ref: str, keys: list[int]) -> list[int]:
    if len(keys) > MOST_AT_ONCE:
        raise Invalid(
            f"id: {ref} means more than {MOST_AT_ONCE:,} tasks; name a part of them, like 12.1-50000,"
            " or act on the job as a whole",
            field="id",
        )
    if not keys and "." in ref:
        raise NotFound(f"there is no task {ref}; see `geres tasks`", id=ref)
    return keys


def no_task(key: int) -> NotFound:
    return NotFound(f"there is no task {show_task(key)}; see `geres tasks`", id=show_task(key))


def may_change(caller: Caller, row: Row) -> bool:
    """Whether the caller may act on this task or job, among those that they see."""
    if row["tenant_id"] != caller.tenant_id:
        return False
    return caller.role in ("admin", "operator", "task") or (
        caller.role == "user" and row["submitted_by"] == caller.subject
    )


def pieces(keys: Sequence[int], size: int = 1000) -> list[list[int]]:
    """The keys in lists of at most `size`: what one transaction may touch."""
    return [list(keys[start : start + size]) for start in range(0, len(keys), size)]


def demands(tx: Tx, keys: Sequence[int]) -> list[tuple[str, Demand, list[int]]]:
    """(pool, what is asked for, the tasks) of tasks, grouped."""
    groups: dict[tuple[str, str], list[int]] = {}
    for key, pool, body in tx.rows("demands_of_tasks", task_ids=list(keys)):
        groups.setdefault((pool, body), []).append(key)
    return [(pool, show.demand(body), found) for (pool, body), found in groups.items()]
