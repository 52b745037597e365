"""Creating jobs and tasks.  What the tasks of a job share is stored once; a row holds what differs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import UNSET

from geres.errors import GeresError, Invalid, JobFinished, KeyReused, NameTaken, NotFound
from geres.model import demand as demands
from geres.model.callers import Caller
from geres.model.ids import (
    MOST_NUMBER,
    is_name,
    number_of,
    parse_job,
    parse_numbers,
    parse_task,
    show_task,
    task_key,
)
from geres.model.inherit import inherit, task_of
from geres.model.jobs import DEFAULT_JOB, JobSpec
from geres.model.specs import check_job, check_row, check_spec, merge_row
from geres.model.states import TaskState
from geres.model.tasks import BulkAnswer, BulkError, TaskRow, TaskSpec
from geres.model.units import parse_time
from geres.store.database import Tx

PIECE = 10_000  #: tasks of an array that one transaction unfolds
_AT_ONCE = 1_000  #: an array up to this size has its rows when it is accepted

_COLUMNS = (
    "id",
    "job_id",
    "tenant_id",
    "submitted_by",
    "lane_id",
    "spec_id",
    "argv",
    "own_id",
    "name",
    "state",
    "reason",
    "state_since",
    "priority",
    "seq",
    "not_before_at",
    "waits_on",
    "created_at",
    "ended_at",
)
_encode = msgspec.json.Encoder().encode
_NO_NAME = TaskSpec()


@dataclass
class _Parents:
    """What new tasks wait for."""

    tasks: list[int] = field(default_factory=list)
    jobs: list[int] = field(default_factory=list)
    open: int = 0
    failed: str | None = None  #: the id of one that did not succeed


@dataclass
class _Shared:
    """Ids of what tasks with one specification share."""

    spec_id: int
    lane_id: int
    priority: int
    state: TaskState
    not_before_at: int | None


def once(
    tx: Tx,
    caller: Caller,
    key: str | None,
    body: bytes,
    *,
    now_us: int,
    do: Callable[[Tx], bytes],
) -> bytes:
    """Do it, unless the same caller has done it under the same Idempotency-Key: then give that answer again.

    `body` is the request, `do` returns the answer as JSON.  Raises KeyReused for another body under the key.
    """
    if key is None:
        return do(tx)
    who = {"tenant_id": caller.tenant_id, "subject": caller.subject, "key": key}
    digest = demands.digest(body)
    if not tx.run("start_idempotency", **who, body_hash=digest, now_us=now_us):
        row = tx.one("find_idempotency", **who)
        if row is None or row["body_hash"] != digest:
            raise KeyReused(
                f"the Idempotency-Key {key!r} was used for another request; make a new one", key=key
            )
        return str(row["answer"]).encode()
    answer = do(tx)
    tx.run("end_idempotency", **who, answer=answer.decode())
    return answer


def ensure_tenant(tx: Tx, name: str, *, now_us: int) -> int:
    """The tenant's id; it is made, with its pool `default`, where it does not exist."""
    found = tx.value("find_tenant", name=name)
    tenant_id = int(found or tx.value("create_tenant", name=name, now_us=now_us))
    if not found:
        pool_of(tx, tenant_id, "default", now_us=now_us)
    return tenant_id


def pool_of(tx: Tx, tenant_id: int, name: str, *, now_us: int) -> int:
    """The pool's id.  `default` always exists; another one must have been made by a node or an operator."""
    found = tx.value("find_pool", tenant_id=tenant_id, name=name)
    return int(found or tx.value("create_pool", tenant_id=tenant_id, name=name, now_us=now_us))


def find_job(tx: Tx, caller: Caller, ref: str | None, *, now_us: int) -> int:
    """The id of the job that `ref` (an id, a name, or None for the caller's `default`) means.

    Raises NotFound.
    """
    if ref is None or ref == DEFAULT_JOB:
        return _default_job(tx, caller, now_us=now_us)
    job_id = parse_job(ref)
    if job_id is None:
        job_id = tx.value("find_job_by_name", tenant_id=caller.tenant_id, subject=caller.subject, name=ref)
    if job_id is None:
        raise no_such_job(ref)
    return int(job_id)


def no_such_job(ref: str) -> NotFound:
    return NotFound(
        f"there is no job {ref!r}; see `geres jobs`, or make it with `geres job create {ref}`", id=ref
    )


def _default_job(tx: Tx, caller: Caller, *, now_us: int) -> int:
    who = {"tenant_id": caller.tenant_id, "subject": caller.subject}
    found = tx.value("living_job_of_name", **who, name=DEFAULT_JOB)
    if found is None:
        found = _insert_job(tx, caller, JobSpec(name=DEFAULT_JOB), DEFAULT_JOB, None, now_us=now_us)
    if found is None:  # another server made it at the same moment
        found = tx.value("living_job_of_name", **who, name=DEFAULT_JOB)
    return int(found)


def _insert_job(
    tx: Tx,
    caller: Caller,
    spec: JobSpec,
    name: str | None,
    array_range: str | None,
    *,
    now_us: int,
    total: int = 0,
) -> int | None:
    plain = msgspec.structs.replace(spec, array=None)
    limit = spec.time_limit_seconds
    job_id = tx.value(
        "create_job",
        tenant_id=caller.tenant_id,
        subject=caller.subject,
        name=name,
        named=int(spec.name is not None),
        priority=spec.priority,
        max_parallel=spec.max_parallel,
        on_all_complete="terminate" if spec.array else spec.on_all_complete,
        on_lost=spec.on_lost,
        time_limit_us=None if limit is None else int(limit * 1e6),
        meta=_encode(spec.meta).decode(),
        spec=_encode(plain).decode(),
        array_range=array_range,
        array_total=total,
        parent_job_id=None,
        now_us=now_us,
    )
    if job_id is not None and spec.max_parallel is not None:
        set_cap(tx, caller.tenant_id, "job", str(job_id), spec.max_parallel)
    return None if job_id is None else int(job_id)


def set_cap(tx: Tx, tenant_id: int, scope: str, key: str, most: int | None) -> None:
    """Never let more than `most` tasks of this scope and key be on nodes at once; None takes the cap away."""
    if most is None:
        tx.run("drop_cap", tenant_id=tenant_id, scope=scope, key=key)
    else:
        tx.run("set_cap", tenant_id=tenant_id, scope=scope, key=key, most=most)


def create_job(tx: Tx, caller: Caller, spec: JobSpec, *, now_us: int) -> int:
    """Create a job, with the tasks of its array, and return its id.

    A large array is stored as its job and unfolded later (`unfold`), durable from now on.  Raises Invalid,
    or NameTaken where the caller has a living job of that name.
    """
    check_job(spec)
    if spec.name == DEFAULT_JOB:
        raise NameTaken(
            "the job `default` exists for everyone, always; choose another name", name=DEFAULT_JOB
        )
    if spec.array is None or spec.task is None:
        job_id = _insert_job(tx, caller, spec, spec.name, None, now_us=now_us)
        if job_id is None:
            raise _name_taken(spec.name)
        return job_id
    items, numbers = spec.array.items, []
    if spec.array.range is not None:
        numbers = parse_numbers(spec.array.range, "array.range")
    total = len(items) if items is not None else sum(len(part) for part in numbers)
    ranges = None if items is not None else json.dumps([[r.start, r[-1], r.step] for r in numbers])
    job_id = _insert_job(
        tx, caller, spec, spec.name or _array_name(spec.task), ranges, now_us=now_us, total=total
    )
    if job_id is None:
        raise _name_taken(spec.name)
    shared = _share(tx, caller, job_id, spec.task, spec.priority, None, keep_command=True, now_us=now_us)
    tx.run("set_array", spec_id=shared.spec_id, lane_id=shared.lane_id, job_id=job_id)
    for start in range(0, len(items or ()), PIECE):
        piece = _encode((items or [])[start : start + PIECE]).decode()
        tx.run("add_array_piece", job_id=job_id, first=start + 1, items=piece)
    if total <= _AT_ONCE:
        unfold(tx, job_id, now_us=now_us)
    return job_id


def _array_name(spec: TaskSpec) -> str:
    words = spec.command or (spec.shell or "array").split() or ["array"]
    name = words[0].rsplit("/", 1)[-1].replace(".", "-")[:60]
    return name if is_name(name) else "array"


def _name_taken(name: str | None) -> NameTaken:
    return NameTaken(
        f"you have a job {name!r} that has not ended; choose another name or use that one", name=name
    )


def create_tasks(
    tx: Tx,
    caller: Caller,
    job_ref: str | None,
    defaults: TaskSpec,
    rows: Sequence[TaskRow],
    *,
    after: Sequence[str] = (),
    atomic: bool = True,
    now_us: int,
) -> BulkAnswer:
    """Store tasks, in the order given.  The accepted ones get numbers without a gap.

    With `atomic`, one bad row raises Invalid and stores nothing; without, the bad ones are listed by their
    position.  Raises NotFound for an unknown job, JobFinished for one that takes no more.
    """
    check_spec(defaults, needs_command=False, field="defaults.")
    good, errors = _check_rows(rows, defaults, atomic)
    job_id = find_job(tx, caller, job_ref, now_us=now_us)
    parents = _lock_parents(tx, caller, after)
    taken = tx.one("take_numbers", job_id=job_id, n=len(good))
    if taken is None or _wrong_tenant(tx, caller, job_id):
        raise _takes_no_more(tx, caller, job_id, job_ref)
    if int(taken["before"]) + len(good) > MOST_NUMBER:
        raise Invalid(f"job: {job_id} has no numbers left for more tasks; make another job", field="job")
    if job_task := task_of(taken["spec"]):
        defaults = inherit(defaults, job_task)
    base = task_key(job_id, int(taken["before"]) + 1)
    writer = _Rows(tx, caller, job_id, defaults, int(taken["priority"]), parents, now_us)
    inserted = writer.build(base, [rows[i] for i in good] if errors else rows)
    tx.insert("task", _COLUMNS, inserted)
    writer.finish(base, len(good))
    return BulkAnswer(str(job_id), number_of(base), len(good), errors)


def _wrong_tenant(tx: Tx, caller: Caller, job_id: int) -> bool:
    return tx.one("lock_job", job_id=job_id, tenant_id=caller.tenant_id) is None


def _takes_no_more(tx: Tx, caller: Caller, job_id: int, ref: str | None) -> GeresError:
    row = tx.one("lock_job", job_id=job_id, tenant_id=caller.tenant_id)
    if row is None:
        return NotFound(f"there is no job {ref or job_id!r}; see `geres jobs`", id=str(ref or job_id))
    return JobFinished(
        f"job {job_id} is {row['state']} and takes no more tasks; make a new one with `geres job create`",
        id=str(job_id),
        state=row["state"],
    )


def _check_rows(
    rows: Sequence[TaskRow], defaults: TaskSpec, atomic: bool
) -> tuple[list[int], list[BulkError]]:
    """The positions of the good rows, and what is wrong with the others."""
    good: list[int] = []
    errors: list[BulkError] = []
    for index, row in enumerate(rows):
        try:
            check_row(row, defaults)
        except Invalid as error:
            if atomic:
                where = f"tasks[{index}]." if len(rows) > 1 else ""
                raise Invalid(where + str(error), **(error.facts | {"index": index})) from None
            errors.append(BulkError(index, error.code, str(error)))
        else:
            good.append(index)
    return good, errors


class _Rows:
    """Builds the rows of one submit, looking up each shared specification once."""

    def __init__(
        self,
        tx: Tx,
        caller: Caller,
        job_id: int,
        defaults: TaskSpec,
        priority: int,
        parents: _Parents,
        now_us: int,
    ) -> None:
        self._tx, self._caller, self._job_id, self._defaults = tx, caller, job_id, defaults
        self._priority, self._parents, self._now_us = priority, parents, now_us
        self._known: dict[bytes, _Shared] = {}
        self._own_ids: set[str] = set()

    def build(self, base: int, rows: Sequence[TaskRow]) -> list[tuple[Any, ...]]:
        plain = self._shared(self._defaults)
        key, plain_argv = base, _argv_text(self._defaults)
        plain_name, plain_id = self._defaults.name, self._defaults.id
        built = []
        argv: str | None
        for row in rows:
            command = row.command
            if command is not UNSET and row == TaskRow(command=command):
                shared, argv, name, own_id = plain, _encode(command).decode(), plain_name, plain_id
            elif row == _EMPTY_ROW:
                shared, argv, name, own_id = plain, plain_argv, plain_name, plain_id
            else:
                spec = merge_row(self._defaults, row)
                shared, argv, name, own_id = self._shared(spec), _argv_text(spec), spec.name, spec.id
            if own_id is not None:
                self._claim(own_id)
            built.append(self._row(key, shared, argv, name, own_id))
            key += 1
        return built

    def _row(
        self, key: int, shared: _Shared, argv: str | None, name: str | None, own_id: str | None
    ) -> tuple[Any, ...]:
        now = self._now_us
        return (
            key,
            self._job_id,
            self._caller.tenant_id,
            self._caller.subject,
            shared.lane_id,
            shared.spec_id,
            argv,
            own_id,
            name,
            shared.state.value,  # a plain str: sqlite3 looks for an adapter for every other type
            None,
            now,
            shared.priority,
            now,
            shared.not_before_at,
            self._parents.open,
            now,
            None,
        )

    def _shared(self, spec: TaskSpec) -> _Shared:
        key = _encode(_shared_part(spec)) + _encode([spec.priority, spec.hold, spec.not_before])
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = _share(
                self._tx, self._caller, self._job_id, spec, self._priority, self._parents, now_us=self._now_us
            )
        return found

    def _claim(self, own_id: str) -> None:
        taken = self._tx.value("living_task_of_own_id", job_id=self._job_id, own_id=own_id)
        if taken is not None or own_id in self._own_ids:
            first = show_task(taken) if taken is not None else "this request"
            raise NameTaken(
                f"the id {own_id!r} is taken by {first}, which has not ended;"
                " wait for it, or use --if-exists attach",
                id=own_id,
                task=first,
            )
        self._own_ids.add(own_id)

    def finish(self, base: int, count: int) -> None:
        """Write what the new tasks wait for."""
        parents = self._parents
        if not (parents.tasks or parents.jobs):
            return
        keys = range(base, base + count)
        rows: list[tuple[Any, ...]] = [
            (key, task_id, None, "success") for key in keys for task_id in parents.tasks
        ]
        rows += [(key, None, job_id, "success") for key in keys for job_id in parents.jobs]
        self._tx.insert("dependency", ("child_id", "parent_task_id", "parent_job_id", "how"), rows)


_EMPTY_ROW = TaskRow()


def _argv_text(spec: TaskSpec) -> str | None:
    """What a task runs, as JSON: a list for an argv, a string for a shell line."""
    if spec.command is not None:
        return _encode(spec.command).decode()
    return None if spec.shell is None else _encode(spec.shell).decode()


def _shared_part(spec: TaskSpec, keep_command: bool = False) -> TaskSpec:
    """The specification without what stands in the task's own row."""
    return msgspec.structs.replace(
        spec,
        command=spec.command if keep_command else None,
        shell=spec.shell if keep_command else None,
        name=None,
        id=spec.id if keep_command else None,
        if_exists="fail",
        hold=False,
        not_before=None,
        priority=None,
    )


def _share(
    tx: Tx,
    caller: Caller,
    job_id: int,
    spec: TaskSpec,
    job_priority: int,
    parents: _Parents | None,
    *,
    keep_command: bool = False,
    now_us: int,
) -> _Shared:
    """Find or make the specification, the class and the lane of tasks like `spec`."""
    priority = job_priority if spec.priority is None else spec.priority
    not_before = None if spec.not_before is None else parse_time(spec.not_before, "not_before")
    state = _first_state(spec, not_before, parents, now_us)
    pool_id = pool_of(tx, caller.tenant_id, spec.pool, now_us=now_us)
    cap = demands.label_cap(spec)
    if cap:
        set_cap(tx, caller.tenant_id, "label", cap[0], cap[1])
    lane_id = lane_of(tx, caller.tenant_id, caller.subject, job_id, pool_id, demands.demand_of(spec))
    if state is TaskState.QUEUED:
        tx.run("activate_lane", lane_id=lane_id, priority=priority)
    return _Shared(
        spec_id_of(tx, job_id, _shared_part(spec, keep_command)), lane_id, priority, state, not_before
    )


def _first_state(spec: TaskSpec, not_before: int | None, parents: _Parents | None, now_us: int) -> TaskState:
    if spec.hold:
        return TaskState.HELD
    if (parents and parents.open) or (not_before is not None and not_before > now_us):
        return TaskState.BLOCKED
    return TaskState.QUEUED


def spec_id_of(tx: Tx, job_id: int, spec: TaskSpec) -> int:
    """The id of this specification in this job; it is stored where it is new."""
    digest = demands.digest(spec)
    found = tx.value("find_spec", job_id=job_id, hash=digest)
    if found is None:
        body, meta = _encode(spec).decode(), _encode(spec.meta).decode()
        found = tx.value("create_spec", job_id=job_id, hash=digest, body=body, meta=meta)
    return int(found)


def lane_of(tx: Tx, tenant_id: int, subject: str, job_id: int, pool_id: int, demand: demands.Demand) -> int:
    """The id of the lane of tasks that ask for this; it is made where it is new."""
    digest = demands.digest(demand)
    class_id = tx.value("find_class", hash=digest)
    if class_id is None:
        class_id = tx.value("create_class", hash=digest, label=demand.label, body=demands.to_text(demand))
    key = {"job_id": job_id, "subject": subject, "pool_id": pool_id, "class_id": class_id}
    found = tx.value("find_lane", **key)
    return int(found or tx.value("create_lane", tenant_id=tenant_id, **key))


def _lock_parents(tx: Tx, caller: Caller, after: Sequence[str]) -> _Parents:
    """Lock what the new tasks wait for, so that none of it ends unseen.  Raises NotFound, Invalid."""
    parents = _Parents()
    if not after:
        return parents
    task_ids = sorted({key for ref in after if (key := parse_task(ref)) is not None})
    job_refs = [ref for ref in after if parse_task(ref) is None]
    _lock_parent_tasks(tx, caller, task_ids, parents)
    _lock_parent_jobs(tx, caller, job_refs, parents)
    if parents.failed:
        raise Invalid(
            f"after: {parents.failed} has ended without success, so this would never start; rerun it first",
            field="after",
            id=parents.failed,
        )
    return parents


def _lock_parent_tasks(tx: Tx, caller: Caller, task_ids: list[int], parents: _Parents) -> None:
    rows = tx.rows("lock_parent_tasks", task_ids=task_ids) if task_ids else []
    known = {row[0]: row[2] for row in rows if row[1] == caller.tenant_id}
    for key in task_ids:
        if key not in known:
            raise NotFound(f"after: there is no task {show_task(key)}", id=show_task(key))
        state = TaskState(known[key])
        if not state.final:
            parents.tasks.append(key)
            parents.open += 1
        elif state in (TaskState.FAILED, TaskState.CANCELLED):
            parents.failed = show_task(key)
    if parents.tasks:
        tx.run("mark_parent_tasks", task_ids=parents.tasks)


def _lock_parent_jobs(tx: Tx, caller: Caller, refs: list[str], parents: _Parents) -> None:
    ids = sorted({find_job(tx, caller, ref, now_us=0) for ref in refs})
    for row in tx.all("lock_parent_jobs", job_ids=ids) if ids else []:
        if row["tenant_id"] != caller.tenant_id:
            raise NotFound(f"after: there is no job {row['id']}", id=str(row["id"]))
        ended = row["succeeded"] + row["failed"] + row["cancelled"] + row["skipped"]
        if row["task_count"] + row["not_yet"] > ended:
            parents.jobs.append(row["id"])
            parents.open += 1
        elif row["failed"] + row["cancelled"]:
            parents.failed = str(row["id"])
    if parents.jobs:
        tx.run("mark_parent_jobs", job_ids=parents.jobs)


def unfold(tx: Tx, job_id: int, *, now_us: int) -> int:
    """Make the next rows of an array, at most PIECE.  Returns how many; 0 when it is whole."""
    row = tx.one("lock_array", job_id=job_id)
    if row is None:
        return 0
    spec = msgspec.json.decode(row["spec"], type=JobSpec).task or _NO_NAME
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
        tx.run("activate_lane", lane_id=row["lane_id"], priority=priority)
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
