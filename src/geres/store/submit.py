"""Creating jobs and tasks.  What the tasks of a job share is stored once; a row holds what differs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from geres.errors import GeresError, Invalid, JobFinished, NameTaken, NotFound
from geres.model.callers import Caller
from geres.model.ids import MOST_NUMBER, is_name, number_of, parse_numbers, show_task, task_key
from geres.model.inherit import inherit, task_of
from geres.model.jobs import DEFAULT_JOB, JobSpec
from geres.model.specs import check_job, check_row, check_spec, merge_row
from geres.model.tasks import BulkAnswer, BulkError, TaskRow, TaskSpec
from geres.store import below, quotas
from geres.store.arrays import PIECE, unfold
from geres.store.database import Tx
from geres.store.finding import find_job, insert_job
from geres.store.parents import Parents, lock_parents, parent_ids
from geres.store.sharing import Shared, share, shared_part

_AT_ONCE = 1_000  #: an array up to this size has its rows when it is accepted

_OWN = ("id", "argv", "own_id", "name")  #: columns in which the tasks of one submit differ
_MANY = 10

_encode = msgspec.json.Encoder().encode


def create_job(tx: Tx, caller: Caller, spec: JobSpec, *, now_us: int) -> int:
    """Create a job, with the tasks of its array, and return its id.

    A large array is stored as its job and unfolded later (`unfold`), durable from now on.  Raises Invalid,
    NotFound for what it waits for, OverQuota, or NameTaken where the caller has a living job of that name.
    """
    check_job(spec)
    if spec.name == DEFAULT_JOB:
        raise NameTaken(
            "the job `default` exists for everyone, always; choose another name", name=DEFAULT_JOB
        )
    if spec.array is None or spec.task is None:
        job_id = insert_job(tx, caller, spec, spec.name, None, now_us=now_us)
        if job_id is None:
            raise _name_taken(spec.name)
        quotas.check_added(tx, caller, caller.subject, jobs=1)
        return job_id
    lock_parents(tx, caller, spec.after, None)
    after = parent_ids(tx, caller, spec.after)
    items, numbers = spec.array.items, []
    if spec.array.range is not None:
        numbers = parse_numbers(spec.array.range, "array.range")
    total = len(items) if items is not None else sum(len(part) for part in numbers)
    ranges = None if items is not None else json.dumps([[r.start, r[-1], r.step] for r in numbers])
    job_id = insert_job(
        tx,
        caller,
        msgspec.structs.replace(spec, after=after),
        spec.name or _array_name(spec.task),
        ranges,
        now_us=now_us,
        total=total,
    )
    if job_id is None:
        raise _name_taken(spec.name)
    quotas.check_added(tx, caller, caller.subject, tasks=total, jobs=1)
    shared = share(tx, caller, job_id, spec.task, spec.priority, False, keep_command=True, now_us=now_us)
    last = total if items is not None else max(part[-1] for part in numbers)
    tx.run("set_array", spec_id=shared.spec_id, lane_id=shared.lane_id, last=last, job_id=job_id)
    for start in range(0, len(items or ()), PIECE):
        piece = _encode((items or [])[start : start + PIECE]).decode()
        tx.run("add_array_piece", job_id=job_id, first=start + 1, items=piece)
    if total <= _AT_ONCE:
        unfold(tx, job_id, now_us=now_us)
    return job_id


def _array_name(spec: TaskSpec) -> str:
    if spec.name is not None and is_name(spec.name):
        return spec.name
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
    position.  Raises NotFound for an unknown job, JobFinished for one that takes no more, OverQuota.
    """
    check_spec(defaults, needs_command=False, field="defaults.")
    good, errors = _check_rows(rows, defaults, atomic)
    job_id = find_job(tx, caller, job_ref, now_us=now_us)
    below.check_may_fill(tx, caller, job_id, job_ref in (None, DEFAULT_JOB))
    parents = lock_parents(tx, caller, after, job_id)
    if not atomic:
        good = _with_free_ids(tx, caller, job_id, defaults, rows, good, errors)
    taken = tx.one("take_numbers", job_id=job_id, tenant_id=caller.tenant_id, n=len(good))
    if taken is None:
        raise _takes_no_more(tx, caller, job_id, job_ref)
    if taken["quotas"]:
        quotas.check_added(tx, caller, taken["submitted_by"], tasks=len(good))
    if int(taken["before"]) + len(good) > MOST_NUMBER:
        raise Invalid(f"job: {job_id} has no numbers left for more tasks; make another job", field="job")
    if job_task := task_of(taken["spec"]):
        defaults = inherit(defaults, job_task)
    base = task_key(job_id, int(taken["before"]) + 1)
    writer = _Rows(tx, caller, job_id, defaults, int(taken["priority"]), parents, now_us)
    writer.add(base, [rows[i] for i in good] if errors else rows)
    writer.finish(base, len(good))
    return BulkAnswer(str(job_id), number_of(base), len(good), errors)


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


def _with_free_ids(
    tx: Tx,
    caller: Caller,
    job_id: int,
    defaults: TaskSpec,
    rows: Sequence[TaskRow],
    good: list[int],
    errors: list[BulkError],
) -> list[int]:
    """The positions of rows whose own id is free, or that have none; the others join `errors`, in order."""
    wanted = [(index, defaults.id if rows[index].id is UNSET else rows[index].id) for index in good]
    if all(own_id is None for _, own_id in wanted):
        return good
    tx.one("lock_job", job_id=job_id, tenant_id=caller.tenant_id)  # nobody takes one meanwhile
    found, claimed = [], set[str]()
    for index, own_id in wanted:
        try:
            if isinstance(own_id, str):
                _claim(tx, job_id, own_id, claimed)
        except NameTaken as error:
            errors.append(BulkError(index, error.code, str(error)))
        else:
            found.append(index)
    errors.sort(key=lambda error: error.index)
    return found


def _claim(tx: Tx, job_id: int, own_id: str, claimed: set[str]) -> None:
    """Note that an id is in use from now on.  Raises NameTaken."""
    taken = tx.value("living_task_of_own_id", job_id=job_id, own_id=own_id)
    if taken is not None or own_id in claimed:
        first = show_task(taken) if taken is not None else "another task of this request"
        raise NameTaken(
            f"the id {own_id!r} is taken by {first}, which has not ended;"
            " wait for it, or use --if-exists attach",
            id=own_id,
            task=first,
        )
    claimed.add(own_id)


class _Like(NamedTuple):
    """Tasks that differ only in what stands in `rows`: key, what runs, own id, name."""

    shared: Shared
    rows: list[tuple[int, str | None, str | None, str | None]]


class _Rows:
    """Writes the rows of one submit, looking up each shared specification once."""

    def __init__(
        self,
        tx: Tx,
        caller: Caller,
        job_id: int,
        defaults: TaskSpec,
        priority: int,
        parents: Parents,
        now_us: int,
    ) -> None:
        self._tx, self._caller, self._job_id, self._defaults = tx, caller, job_id, defaults
        self._priority, self._parents, self._now_us = priority, parents, now_us
        self._known: dict[bytes, _Like] = {}
        self._own_ids: set[str] = set()

    def add(self, base: int, rows: Sequence[TaskRow]) -> None:
        """Store the rows under the keys from `base` on."""
        plain = self._like(self._defaults)
        key, plain_argv = base, _argv_text(self._defaults)
        plain_name, plain_id = self._defaults.name, self._defaults.id
        argv: str | None
        for row in rows:
            command = row.command
            if command is not UNSET and row == TaskRow(command=command):
                like, argv, name, own_id = plain, _encode(command).decode(), plain_name, plain_id
            elif row == _EMPTY_ROW:
                like, argv, name, own_id = plain, plain_argv, plain_name, plain_id
            else:
                spec = merge_row(self._defaults, row)
                like, argv, name, own_id = self._like(spec), _argv_text(spec), spec.name, spec.id
            if own_id is not None:
                _claim(self._tx, self._job_id, own_id, self._own_ids)
            like.rows.append((key, argv, own_id, name))
            key += 1
        for like in self._known.values():
            self._insert(like)

    def _insert(self, like: _Like) -> None:
        """One statement for many on SQLite, which takes a third of the time of binding every column again."""
        shared, now = like.shared, self._now_us
        same: dict[str, Any] = {
            "job_id": self._job_id,
            "tenant_id": self._caller.tenant_id,
            "submitted_by": self._caller.subject,
            "parent_task_id": self._caller.task or None,
            "lane_id": shared.lane_id,
            "spec_id": shared.spec_id,
            "state": shared.state.value,  # a plain str: sqlite3 looks for an adapter for every other type
            "state_since": now,
            "priority": shared.priority,
            "seq": now,
            "not_before_at": shared.not_before_at,
            "waits_on": self._parents.open,
            "created_at": now,
        }
        if self._tx.dialect == "sqlite" and len(like.rows) >= _MANY:
            self._tx.run("insert_like_tasks", rows=_encode(like.rows).decode(), **same)
        elif like.rows:
            values = tuple(same.values())
            self._tx.insert("task", (*_OWN, *same), ((*row, *values) for row in like.rows))

    def _like(self, spec: TaskSpec) -> _Like:
        key = _encode(shared_part(spec)) + _encode([spec.priority, spec.hold, spec.not_before])
        found = self._known.get(key)
        if found is None:
            shared = share(
                self._tx,
                self._caller,
                self._job_id,
                spec,
                self._priority,
                self._parents.open > 0,
                now_us=self._now_us,
            )
            found = self._known[key] = _Like(shared, [])
        return found

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
