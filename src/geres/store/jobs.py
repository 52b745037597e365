"""Jobs: one, many, and what is done to a job as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct

from geres.errors import Changed, Conflict, Denied, Invalid, JobFinished, NotFound
from geres.model.callers import Caller
from geres.model.ids import parse_job, task_key
from geres.model.jobs import DEFAULT_JOB, Counts, Job, JobDetail, JobPage, JobPatch, JobSpec, KnownJobSpec
from geres.model.nearest import did_you_mean
from geres.model.specs import check_job
from geres.model.states import JobState, Outcome, Reason
from geres.model.units import rfc3339
from geres.store import below, known, outbox, show
from geres.store.database import Row, Tx
from geres.store.ends import CANCELLED, cancel_waiting, end_job
from geres.store.job_counts import counts_of_jobs
from geres.store.sharing import set_cap
from geres.store.sql import statements
from geres.store.task_actions import Done, ask, cancel
from geres.store.tasks import find_job_id, may_change

#: Tasks that one transaction changes.
PIECE = 1000
CANCEL_PIECE = 5000
_LAST = (1 << 32) - 1
_ALL = Caller(0, "", "", "admin")


class Todo(NamedTuple):
    """What jobs wait for, see `todo`."""

    to_cancel: set[int]  #: jobs whose cancel has begun and still has tasks to end
    to_stop: list[int]  #: disabled ones with tasks on nodes that were not asked yet to end
    over_time: bool
    to_end: bool
    to_free: bool  #: tasks wait for tasks or jobs that have ended
    to_revive: bool  #: tasks were skipped for others that run again


class JobDetailQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """Query of GET /v1/jobs/{id}."""

    usage: bool = False  #: sum up what its attempts used


class JobQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """Query of GET /v1/jobs; newest first."""

    state: str | None = None  #: states, parted by commas; also `open`
    user: str | None = None
    name: str | None = None
    limit: int = 100
    cursor: str | None = None
    count: bool = False  #: fill `matched`


def find(tx: Tx, caller: Caller, ref: str) -> int:
    """The id of the job that a number or name means.  Raises NotFound."""
    job_id = find_job_id(tx, caller, ref)
    if job_id is None:
        raise NotFound(f"there is no job {ref!r}; see `geres jobs`", id=ref)
    return job_id


def get(tx: Tx, caller: Caller, ref: str, *, usage: bool = False) -> JobDetail:
    """One job in full; with `usage`, with what its attempts used.  Raises NotFound."""
    job_id = find(tx, caller, ref)
    row = tx.all("show_jobs", job_ids=[job_id])[0]
    counts = counts_of_jobs(tx, [job_id])[job_id]
    used = show.usage(tx.all("usage_of_job", **_range(job_id))[0]) if usage else None
    return msgspec.convert(
        {**msgspec.structs.asdict(_job(row, counts)), "spec": _spec(row), "usage": used},
        JobDetail,
        from_attributes=True,
    )


def get_short(tx: Tx, job_id: int) -> Job:
    row = tx.all("show_jobs", job_ids=[job_id])[0]
    return _job(row, counts_of_jobs(tx, [job_id])[job_id])


def list_jobs(tx: Tx, caller: Caller, query: JobQuery) -> JobPage:
    """One page of the jobs that match, newest first.

    Raises Invalid, or where nothing matches NotFound for a user who is not there.
    """
    if not 1 <= query.limit <= 10_000:
        raise Invalid(f"limit: {query.limit} is not between 1 and 10000", field="limit")
    where, parameters = "", {"tenant_id": caller.tenant_id}
    more: dict[str, object] = {}
    if caller.task:
        where, more["root"] = where + f" AND {below.JOBS_BELOW}", caller.task
    elif caller.private:
        where, more["viewer"] = where + " AND j.submitted_by = :viewer", caller.subject
    if query.state is not None:
        words = ", ".join(f"'{state}'" for state in _states(query.state))
        where += f" AND j.state IN ({words})"
    if query.user is not None:
        where, more["user"] = where + " AND j.submitted_by = :user", query.user
    if query.name is not None:
        where, more["name"] = where + " AND j.name = :name", query.name
    matched = None
    if query.count:
        text = statements("sqlite")["count_job_ids"].replace("/* where */", where)
        matched = int(tx.text(text, {**parameters, **more})[0]["n"])
    if query.cursor is not None:
        before = parse_job(query.cursor)
        if before is None:
            raise Invalid("cursor: is not one that this server gave", field="cursor")
        where, more["before"] = where + " AND j.id < :before", before
    text = statements("sqlite")["select_job_ids"].replace("/* where */", where)
    rows = tx.text(text, {**parameters, **more, "limit": query.limit + 1})
    if not rows and query.cursor is None:
        known.check_names(tx, caller, user=query.user)
    ids = [row["id"] for row in rows[: query.limit]]
    cursor = str(ids[-1]) if len(rows) > query.limit else None
    return JobPage(items=_many(tx, ids), next_cursor=cursor, matched=matched)


def _states(text: str) -> list[JobState]:
    states: list[JobState] = []
    for word in text.split(","):
        if word.strip() == "open":
            states += [state for state in JobState if not state.final]
            continue
        try:
            states.append(JobState(word.strip()))
        except ValueError:
            words = [*JobState, "open"]
            hint = did_you_mean(word, words) or f"; there are {', '.join(words)}"
            raise Invalid(f"state: {word!r} is no state of a job{hint}", field="state") from None
    return states


def _many(tx: Tx, ids: Sequence[int]) -> list[Job]:
    if not ids:
        return []
    counts = counts_of_jobs(tx, ids)
    rows = {row["id"]: row for row in tx.all("show_jobs", job_ids=list(ids))}
    return [_job(rows[job_id], counts[job_id]) for job_id in ids if job_id in rows]


def _job(row: Row, counts: Counts) -> Job:
    limit = row["time_limit_us"]
    return Job(
        id=str(row["id"]),
        name=row["name"],
        state=JobState(row["state"]),
        reason=row["reason"],
        outcome=Outcome(row["outcome"]) if row["outcome"] else None,
        state_since=rfc3339(row["state_since"]) or "",
        previous_state=JobState(row["previous_state"]) if row["previous_state"] else None,
        previous_since=rfc3339(row["previous_since"]),
        tenant=row["tenant"],
        submitted_by=row["submitted_by"],
        priority=row["priority"],
        max_parallel=row["max_parallel"],
        meta=msgspec.json.decode(row["meta"]),
        on_all_complete=row["on_all_complete"],
        time_limit_seconds=None if limit is None else limit / 1e6,
        created_at=rfc3339(row["created_at"]) or "",
        ended_at=rfc3339(row["ended_at"]),
        counts=counts,
        task_count=row["task_count"] + row["array_total"] - row["array_done"],
        finished=row["finish_seq"],
        is_array=row["array_total"] > 0,
        version=row["version"],
    )


def _spec(row: Row) -> JobSpec:
    """The job as it was asked for, with later edits; the items of an array are its tasks' items."""
    spec = msgspec.json.decode(row["spec"], type=KnownJobSpec)
    return msgspec.structs.replace(
        spec,
        name=row["name"],
        priority=row["priority"],
        max_parallel=row["max_parallel"],
        meta=msgspec.json.decode(row["meta"]),
        on_all_complete=row["on_all_complete"],
    )


def lock(tx: Tx, caller: Caller, job_id: int) -> Row:
    """Lock the job's row.  Raises NotFound, Denied."""
    row = tx.one("lock_job", job_id=job_id, tenant_id=caller.tenant_id)
    if row is None or not below.sees_job(tx, caller, job_id):
        raise NotFound(f"there is no job {job_id}; see `geres jobs`", id=str(job_id))
    if not may_change(caller, row) or (caller.task and not below.owns_job(tx, caller, job_id)):
        raise Denied(f"job {job_id} is {row['submitted_by']}'s")
    return row


def patch(
    tx: Tx, caller: Caller, job_id: int, changes: JobPatch, *, version: int | None
) -> tuple[Job, int | None]:
    """Edit a job.  Returns it, and its old priority where that changed: its waiting tasks are to follow.

    Raises Changed where `version` (of If-Match) is not the job's, JobFinished for one that has ended.
    """
    check_job(
        JobSpec(
            priority=changes.priority or 0, max_parallel=changes.max_parallel or None, meta=changes.meta or {}
        )
    )
    if changes.max_parallel is not None:  # before the job, as turns do
        set_cap(tx, caller.tenant_id, "job", str(job_id), changes.max_parallel or None)
    row = lock(tx, caller, job_id)
    if version is not None and version != row["version"]:
        raise Changed(
            f"job {job_id} has version {row['version']}, not {version}: read it again", version=row["version"]
        )
    if JobState(row["state"]).final:
        raise JobFinished(f"job {job_id} has ended: {row['state']}", id=str(job_id))
    most = row["max_parallel"] if changes.max_parallel is None else changes.max_parallel or None
    meta = row["meta"] if changes.meta is None else msgspec.json.encode(changes.meta).decode()
    tx.run(
        "edit_job",
        job_id=job_id,
        version=row["version"],
        priority=row["priority"] if changes.priority is None else changes.priority,
        max_parallel=most,
        meta=meta,
        on_all_complete=changes.on_all_complete or row["on_all_complete"],
    )
    moved = changes.priority is not None and changes.priority != row["priority"]
    return get_short(tx, job_id), row["priority"] if moved else None


def follow_priority(tx: Tx, job_id: int, *, before: int, priority: int) -> bool:
    """Give waiting tasks that had the job's old priority its new one, a piece a call.  True: more to do."""
    changed = tx.run(
        "reprioritize_tasks",
        first=task_key(job_id, 0),
        last=task_key(job_id, _LAST),
        before=before,
        priority=priority,
        limit=PIECE,
    )
    tx.run("raise_lanes_of_job", job_id=job_id, priority=priority)
    return changed == PIECE


def close(tx: Tx, caller: Caller, job_id: int, *, reason: str | None, now_us: int) -> Job:
    """Take no more tasks; completed when what it has has ended.  Again is harmless."""
    row = lock(tx, caller, job_id)
    _not_default(row, "closed")
    state = JobState(row["state"])
    if state is JobState.CANCELLED:
        raise JobFinished(f"job {job_id} was cancelled", id=str(job_id))
    if state in (JobState.ACTIVE, JobState.DISABLED):
        _move(tx, row, JobState.CLOSING, _told(reason), now_us)
        end_if_done(tx, job_id, now_us=now_us)
    return get_short(tx, job_id)


def start_cancel(tx: Tx, caller: Caller, job_id: int, *, reason: str | None, now_us: int) -> Job:
    """Begin to cancel a job: it takes and starts nothing more.  `cancel_piece` ends its tasks."""
    row = lock(tx, caller, job_id)
    _not_default(row, "cancelled")
    state = JobState(row["state"])
    if state is JobState.COMPLETED:
        raise JobFinished(f"job {job_id} has completed", id=str(job_id))
    if not state.final and not (row["reason"] or "").startswith(CANCELLED):
        _begin_cancel(tx, row, reason, now_us)
    return get_short(tx, job_id)


def _begin_cancel(tx: Tx, row: Row, reason: str | None, now_us: int) -> None:
    _move(tx, row, JobState.CLOSING, f"{CANCELLED}: {reason}" if reason else CANCELLED, now_us)
    tx.run("forget_unmade_tasks", job_id=row["id"])
    tx.run("drop_array_pieces", job_id=row["id"])


def cancel_piece(tx: Tx, job_id: int, *, now_us: int) -> tuple[Done, bool]:
    """End the next tasks of a job that is being cancelled, and the job when none is left.

    Returns what was done, and whether more can be done at once (what runs has been asked to end).
    """
    done = Done()
    row = tx.one("job_to_cancel", job_id=job_id)
    if row is None:
        return done, False
    keys = [key for (key,) in tx.rows("tasks_to_cancel", job_id=job_id, limit=CANCEL_PIECE)]
    if not keys:
        if end_if_done(tx, job_id, now_us=now_us):
            done.jobs.add(job_id)
        return done, False
    _, _, why = row["reason"].partition(": ")
    message = f"the job was cancelled: {why}" if why else "the job was cancelled"
    reason = Reason.JOB_CANCELLED
    ended = cancel_waiting(tx, job_id, keys, reason=reason, message=message, now_us=now_us)
    others = sorted(set(keys).difference(ended))
    if others:  # on nodes, or with children
        who = msgspec.structs.replace(_ALL, tenant_id=row["tenant_id"])
        done = cancel(tx, who, others, now_us=now_us, message=message, reason=reason)
    done.task_ids += ended
    done.jobs.add(job_id)
    return done, True


def disable(
    tx: Tx, caller: Caller, job_id: int, *, reason: str | None, now_us: int, stop: str | None = None
) -> Job:
    """Start nothing more.  `stop` says what is asked of what runs, now or in a moment: cancel or requeue;
    None lets it go on.  Again is harmless."""
    row = lock(tx, caller, job_id)
    state = JobState(row["state"])
    if state not in (JobState.ACTIVE, JobState.DISABLED):
        raise JobFinished(f"job {job_id} is {state}: it cannot be disabled", id=str(job_id))
    if state is JobState.ACTIVE:
        _move(tx, row, JobState.DISABLED, _told(reason), now_us)
    tx.run("stop_disabled", job_id=job_id, stop=stop)
    return get_short(tx, job_id)


def stop_piece(tx: Tx, job_id: int, *, now_us: int) -> tuple[Done, bool]:
    """Ask the next tasks of a disabled job that are on nodes to end, or to be queued again.

    Returns what was done, and whether there is more to do.
    """
    done = Done()
    stop = tx.value("stop_of_job", job_id=job_id)
    if stop is None:
        return done, False
    rows = tx.all("tasks_to_stop", job_id=job_id, limit=PIECE)
    ask(tx, rows, stop, done, message="its job was disabled", now_us=now_us)
    done.task_ids = [row["id"] for row in rows]
    return done, len(rows) == PIECE


def enable(tx: Tx, caller: Caller, job_id: int, *, now_us: int) -> Job:
    """Start tasks again.  Again is harmless."""
    row = lock(tx, caller, job_id)
    state = JobState(row["state"])
    if state not in (JobState.ACTIVE, JobState.DISABLED):
        raise JobFinished(f"job {job_id} is {state}: it cannot be enabled", id=str(job_id))
    if state is JobState.DISABLED:
        _move(tx, row, JobState.ACTIVE, None, now_us)
        tx.run("wake_lanes_of_job", job_id=job_id)
        end_if_done(tx, job_id, now_us=now_us)
    return get_short(tx, job_id)


def end_if_done(tx: Tx, job_id: int, *, now_us: int) -> bool:
    """End a job that wants to end and has no open task.  True where it ended."""
    row = tx.one("job_to_end", job_id=job_id)
    if row is None:
        return False
    cancelled = (row["reason"] or "").startswith(CANCELLED)
    end_job(
        tx,
        job_id,
        row,
        reason=row["reason"] if cancelled else "all_complete",
        now_us=now_us,
        state=JobState.CANCELLED if cancelled else JobState.COMPLETED,
    )
    if row["webhooks"]:
        outbox.job_ended(tx, job_id, now_us=now_us)
    return True


def todo(tx: Tx, *, now_us: int, limit: int = 100) -> Todo:
    """What the server's loop has to do for jobs; a read, so that an idle cluster costs little."""

    def ids(name: str, most: int = limit, **parameters: int) -> list[int]:
        return [row[0] for row in tx.rows(name, limit=most, **parameters)]

    return Todo(
        to_cancel=set(ids("jobs_being_cancelled")),
        to_stop=ids("jobs_to_stop"),
        over_time=bool(ids("jobs_over_time", 1, now_us=now_us)),
        to_end=bool(ids("jobs_to_end", 1)),
        to_free=bool(ids("jobs_with_done_children", 1) or ids("parents_to_free", 1)),
        to_revive=bool(ids("reviving", 1)),
    )


def end_done_jobs(tx: Tx, *, now_us: int, limit: int = 100) -> list[int]:
    """End the jobs that want to and have no open task.  Returns those that ended."""
    ids = [row[0] for row in tx.rows("jobs_to_end", limit=limit)]
    return [job_id for job_id in ids if end_if_done(tx, job_id, now_us=now_us)]


def cancel_over_time(tx: Tx, *, now_us: int, limit: int = 100) -> list[int]:
    """Begin to cancel the jobs that are over their time limit.  Returns them."""
    begun = []
    for job_id, tenant_id in tx.rows("jobs_over_time", now_us=now_us, limit=limit):
        row = tx.one("lock_job", job_id=job_id, tenant_id=tenant_id)
        if row is None or JobState(row["state"]).final:
            continue
        if not (row["reason"] or "").startswith(CANCELLED):  # another server may have begun
            _begin_cancel(tx, row, "over its time limit", now_us)
            begun.append(job_id)
    return begun


def _move(tx: Tx, row: Row, state: JobState, reason: str | None, now_us: int) -> None:
    tx.run("set_job_state", job_id=row["id"], before=row["state"], state=state, reason=reason, now_us=now_us)


def _told(reason: str | None) -> str | None:
    return f"requested: {reason}" if reason else None


def _not_default(row: Row, what: str) -> None:
    if row["name"] == DEFAULT_JOB and row["named"]:
        raise Conflict(
            f"the job `default` is always there and cannot be {what}; `geres cancel default` ends its tasks",
            id=str(row["id"]),
        )


def _range(job_id: int) -> dict[str, int]:
    return {"first": task_key(job_id, 0), "last": task_key(job_id, _LAST)}
