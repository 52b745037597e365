"""Every way into a final state: one function that ends tasks, numbers their results and frees who waits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from geres.model.ids import job_of, show_task
from geres.model.states import JobState, Outcome, Reason, TaskState
from geres.model.tasks import Usage
from geres.store import outbox
from geres.store.database import Tx, batch

#: How a job's reason begins while its tasks are being cancelled; the reasons that people give never do.
CANCELLED = "job_cancelled"
_NO_USAGE = Usage()
CHILDREN_AT_ONCE = 1000  #: tasks that one transaction frees for one task or job that has ended
MOST_CHILDREN = 10_000  #: and for all that end in it
MOST_LEVELS = 100  #: of those that are skipped because others were


class End(NamedTuple):
    """One task that ends, or one attempt after which the task is tried again (`final` False)."""

    task_id: int
    attempt: int
    round: int
    state: str
    reason: str | None = None
    message: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    node_id: int | None = None
    assigned_at: int | None = None
    started_at: int | None = None
    ended_at: int = 0
    usage: Usage | None = None
    stdout: bytes | None = None
    stderr: bytes | None = None
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    stdout_blob: str | None = None
    stderr_blob: str | None = None
    value: bytes | None = None
    folder: str | None = None
    is_parent: bool = False
    final: bool = True


class Ended(NamedTuple):
    """What `record` did."""

    task_ids: list[int]  #: that are final now, children that were skipped included
    jobs: dict[int, int]  #: jobs with new results, and their last finish number
    ended_jobs: list[int]
    freed: int  #: children that may start now


NOTHING = Ended([], {}, [], 0)
_ATTEMPT = (
    "task_id",
    "attempt",
    "round",
    "job_id",
    "finish_no",
    "node_id",
    "state",
    "reason",
    "message",
    "exit_code",
    "signal",
    "assigned_at",
    "started_at",
    "ended_at",
    "wall_us",
    "user_us",
    "system_us",
    "max_rss_bytes",
    "minor_faults",
    "major_faults",
    "blocks_in",
    "blocks_out",
    "voluntary_switches",
    "involuntary_switches",
    "stdout",
    "stderr",
    "stdout_bytes",
    "stderr_bytes",
    "stdout_blob",
    "stderr_blob",
    "value",
    "folder",
)
_COUNTED = ("succeeded", "failed", "cancelled", "skipped")


def record(tx: Tx, ends: Sequence[End], *, now_us: int) -> Ended:
    """Write how tasks and attempts ended.  The caller has locked the tasks and they have not ended yet.

    Final ones get the next finish numbers of their jobs, in the order given; their dependents are freed, or
    skipped where they need success.  Job rows are locked last, but for the lanes of what was freed.
    """
    all_ends = list(ends)
    freed = _free_dependents(tx, all_ends, now_us=now_us)
    finals: dict[int, list[End]] = defaultdict(list)
    for end in all_ends:
        if end.final:
            finals[job_of(end.task_id)].append(end)
    jobs, ended_jobs, rows, told = {}, [], [], []
    for job_id in sorted(finals):
        last, ended, has_webhooks = _count_ends(tx, job_id, finals[job_id], now_us)
        jobs[job_id] = last
        if ended:
            ended_jobs.append(job_id)
        first = last - len(finals[job_id]) + 1
        if has_webhooks:
            told.append((job_id, first - 1, last, ended))
        rows += [_attempt_row(end, first + i) for i, end in enumerate(finals[job_id])]
    rows += [_attempt_row(end, None) for end in all_ends if not end.final]
    if rows:
        tx.insert("attempt", _ATTEMPT, rows)
    for job_id, before, last, ended in told:
        _tell(tx, job_id, before, last, ended, now_us)
    final_ids = [end.task_id for end in all_ends if end.final]
    if final_ids:
        tx.run("end_tasks", batch=batch(_task_row(e) for e in all_ends if e.final), now_us=now_us)
    wake_lanes(tx, freed)
    return Ended(final_ids, jobs, ended_jobs, len(freed))


def cancel_waiting(
    tx: Tx, job_id: int, task_ids: Sequence[int], *, reason: str, message: str, now_us: int
) -> list[int]:
    """Cancel those of the job's tasks that wait and for which nothing waits.  Returns which.

    As `record` does it, but in the database alone, which is ten times as fast for very many.
    """
    ids = [key for key, is_parent in tx.rows("lock_waiting", task_ids=sorted(task_ids)) if not is_parent]
    if not ids:
        return ids
    end = {"state": TaskState.CANCELLED, "reason": reason, "message": message, "now_us": now_us}
    last, ended, has_webhooks = _count(tx, job_id, {"cancelled": len(ids)}, now_us=now_us)
    tx.run("add_ends_without_attempt", task_ids=ids, before=last - len(ids), **end)
    if has_webhooks:
        _tell(tx, job_id, last - len(ids), last, ended, now_us)
    tx.run("end_waiting", task_ids=ids, **end)
    return ids


def wake_lanes(tx: Tx, task_ids: Iterable[int]) -> None:
    """Set the hint of the lanes in which these tasks are queued now.  After the locks on jobs, as a submit
    takes them."""
    if ids := sorted(task_ids):
        tx.run("wake_lanes_of_tasks", task_ids=ids)


def _tell(tx: Tx, job_id: int, before: int, last: int, ended: bool, now_us: int) -> None:
    """Queue messages for webhooks, once the attempts are there: the job's own comes after its tasks'."""
    outbox.tasks_ended(tx, job_id, before=before, last=last, now_us=now_us)
    if ended:
        outbox.job_ended(tx, job_id, now_us=now_us)


def _count_ends(tx: Tx, job_id: int, ends: list[End], now_us: int) -> tuple[int, bool, bool]:
    """As `_count`, of these tasks."""
    counts = Counter(end.state for end in ends)
    for_parents = sum(end.reason == Reason.PARENT_FAILED for end in ends)
    # A start that was reported together with its end is not written as such.
    started_at = now_us if any(end.started_at is not None for end in ends) else None
    return _count(tx, job_id, counts, now_us=now_us, started_at=started_at, for_parents=for_parents)


def _count(
    tx: Tx,
    job_id: int,
    counts: Mapping[str, int],
    *,
    now_us: int,
    started_at: int | None = None,
    for_parents: int = 0,
) -> tuple[int, bool, bool]:
    """(the job's last finish number, whether it ended, whether its tenant has webhooks) with so many more
    tasks in each final state.

    `for_parents` of them were skipped for a parent.
    """
    n = sum(counts.values())
    more = {state: counts.get(state, 0) for state in _COUNTED}
    row = tx.one("count_ends", job_id=job_id, n=n, started_at=started_at, **more)
    if row is None:
        raise ValueError(f"job {job_id} does not exist")
    last = int(row["before"]) + n
    done = row["open"] == 0 and (row["state"] == JobState.CLOSING or row["on_all_complete"] == "terminate")
    if done and (row["reason"] or "").startswith(CANCELLED):
        end_job(tx, job_id, row, reason=row["reason"], now_us=now_us, state=JobState.CANCELLED)
    elif done:
        end_job(tx, job_id, row, reason="all_complete", now_us=now_us, for_parents=for_parents)
    return last, done, bool(row["webhooks"])


def end_job(
    tx: Tx,
    job_id: int,
    counts: dict[str, Any],
    *,
    reason: str,
    now_us: int,
    state: JobState = JobState.COMPLETED,
    for_parents: int = 0,
) -> None:
    """Move a job with no open task to its final state, with the outcome that its counts give.

    `for_parents` tasks are counted already as skipped for a parent, which is a failure, and not written yet.
    """
    if counts["skipped"]:
        for_parents += int(tx.value("skipped_for_parents", job_id=job_id))
    bad = counts["failed"] + counts["cancelled"] + for_parents
    good = counts["succeeded"] + counts["skipped"] - for_parents
    outcome = Outcome.OK if not bad else Outcome.SOME_FAILED if good else Outcome.FAILED
    tx.run("end_job", job_id=job_id, state=state, reason=reason, outcome=outcome, now_us=now_us)


def _attempt_row(end: End, finish_no: int | None) -> tuple[Any, ...]:
    usage = end.usage or _NO_USAGE
    return (
        end.task_id,
        end.attempt,
        end.round,
        job_of(end.task_id),
        finish_no,
        end.node_id,
        end.state,
        end.reason,
        end.message,
        end.exit_code,
        end.signal,
        end.assigned_at,
        end.started_at,
        end.ended_at,
        int(usage.wall_seconds * 1e6),
        int(usage.user_seconds * 1e6),
        int(usage.system_seconds * 1e6),
        usage.max_rss_bytes,
        usage.minor_faults,
        usage.major_faults,
        usage.blocks_in,
        usage.blocks_out,
        usage.voluntary_switches,
        usage.involuntary_switches,
        end.stdout or None,
        end.stderr or None,
        end.stdout_bytes,
        end.stderr_bytes,
        end.stdout_blob,
        end.stderr_blob,
        end.value,
        end.folder,
    )


def _task_row(end: End) -> tuple[Any, ...]:
    return (
        end.task_id,
        end.state,
        end.reason,
        end.message,
        end.exit_code,
        end.signal,
        end.started_at,
        end.ended_at,
    )


def _free_dependents(tx: Tx, ends: list[End], *, now_us: int) -> list[int]:
    """Free the children of what ends; those skipped join `ends`.  Returns those that are queued now.

    Where very many wait for one task, or for all of these, or behind one another, they are left to
    `free_children_of_tasks`.
    """
    freed: list[int] = []
    ending = {end.task_id for end in ends if end.final}
    news, left = _of_few(tx, [end for end in ends if end.final and end.is_parent], MOST_CHILDREN)
    level = 0
    while news:
        level += 1
        failed = {end.task_id: end for end in news if not counts_as_success(end.state, end.reason)}
        found = tx.rows("done_dependencies_on_tasks", task_ids=[end.task_id for end in news])
        links = [link for link in found if link[0] not in ending]  # a child may end with its parent
        to_skip = {
            child: failed[parent] for child, parent, how in links if parent in failed and how == "success"
        }
        skipped, more = free(tx, [link[0] for link in links], to_skip.keys(), now_us=now_us)
        freed += more
        news = [
            skip(row, f"{show_task(to_skip[row['id']].task_id)} {to_skip[row['id']].state}", now_us)
            for row in skipped
        ]
        ends += news
        ending.update(end.task_id for end in news)
        parents = [end for end in news if end.is_parent]
        news, left = _of_few(tx, parents, left if level < MOST_LEVELS else 0)
    return freed


def _of_few(tx: Tx, ends: list[End], left: int) -> tuple[list[End], int]:
    """Those whose children are few, `left` in all; and how many more there may be.  The others are noted."""
    if not ends:
        return ends, left
    few, many = set(), []
    found = tx.rows("count_open_children", task_ids=[end.task_id for end in ends])
    for parent, children in sorted(found, key=lambda row: (row[1], row[0])):
        if children > min(left, CHILDREN_AT_ONCE):
            many.append(parent)
        else:
            few.add(parent)
            left -= children
    if many:
        tx.run("free_later", task_ids=sorted(many))
    return [end for end in ends if end.task_id in few], left


def free_children_of_tasks(tx: Tx, *, now_us: int) -> tuple[Ended, bool]:
    """Free, or skip, a piece of the tasks that wait for one that has ended; and whether there are more."""
    for (parent,) in tx.rows("parents_to_free", limit=1):
        rows = tx.rows("lock_parent_tasks", task_ids=[parent])
        if not rows or not TaskState(rows[0][2]).final:  # gone, or run again: its next end frees them
            tx.run("forget_freeing", task_id=parent)
            return NOTHING, True
        state, reason = rows[0][2], rows[0][3]
        children = [
            row[0] for row in tx.rows("some_children_of_task", task_id=parent, limit=CHILDREN_AT_ONCE)
        ]
        links = tx.rows("done_dependencies_of_children", task_id=parent, child_ids=children)
        bad = not counts_as_success(state, reason)
        done = _free_or_skip(tx, links, f"{show_task(parent)} {state}" if bad else None, now_us)
        if len(children) < CHILDREN_AT_ONCE:
            tx.run("forget_freeing", task_id=parent)
        return done, True
    return NOTHING, False


def _free_or_skip(tx: Tx, links: Iterable[tuple[Any, ...]], bad: str | None, now_us: int) -> Ended:
    """Free the children (id, how) of what has ended; with `bad` those that need its success are skipped."""
    links = list(links)
    to_skip = [child for child, how in links if bad is not None and how == "success"]
    skipped, freed = free(tx, [child for child, _ in links], to_skip, now_us=now_us)
    done = record(tx, [skip(row, bad or "", now_us) for row in skipped], now_us=now_us)
    wake_lanes(tx, freed)
    return done._replace(freed=done.freed + len(freed))


def counts_as_success(state: str, reason: str | None) -> bool:
    """Whether what waits for a task that ended like this may start."""
    return state == TaskState.SUCCEEDED or (state == TaskState.SKIPPED and reason == Reason.UP_TO_DATE)


def skip(row: dict[str, Any], why: str, now_us: int) -> End:
    """The end of a waiting task for a parent that failed."""
    return End(
        row["id"],
        0 if row["attempt"] == 0 else row["attempt"],
        row["round"],
        TaskState.SKIPPED,
        Reason.PARENT_FAILED,
        why,
        ended_at=now_us,
        is_parent=bool(row["is_parent"]),
    )


def free(
    tx: Tx, child_ids: Iterable[int], to_skip: Iterable[int], *, now_us: int
) -> tuple[list[dict[str, Any]], list[int]]:
    """Count one parent less for each child named; those in `to_skip` are returned, to be skipped.

    Returns (rows to skip, children that are queued now): the caller wakes their lanes.
    """
    less: dict[int, int] = defaultdict(int)
    for child in child_ids:
        less[child] += 1
    if not less:
        return [], []
    skipping = set(to_skip)
    rows = [
        row for row in tx.all("lock_children", task_ids=sorted(less)) if not TaskState(row["state"]).final
    ]
    freeing = [(row["id"], less[row["id"]]) for row in rows if row["id"] not in skipping]
    queued = []
    if freeing:
        changed = tx.rows("free_children", batch=batch(freeing), now_us=now_us)
        queued = [key for key, state in changed if state == TaskState.QUEUED]
    return [row for row in rows if row["id"] in skipping], queued


def free_children_of_jobs(tx: Tx, *, now_us: int, limit: int = 100) -> tuple[Ended, bool]:
    """Free, or skip, tasks that wait for jobs all of whose tasks have ended; and whether there are more."""
    done, left = NOTHING, CHILDREN_AT_ONCE
    for (job_id,) in tx.rows("jobs_with_done_children", limit=limit):
        if tx.value("lock_ended_job", job_id=job_id) is None:
            continue
        children = [row[0] for row in tx.rows("some_children_of_job", job_id=job_id, limit=left)]
        links = tx.rows("done_dependencies_on_job", job_id=job_id, child_ids=children)
        bad = tx.value("outcome_of_job", job_id=job_id)
        piece = _free_or_skip(tx, links, f"job {job_id} has tasks that failed" if bad else None, now_us)
        done = Ended(
            done.task_ids + piece.task_ids,
            done.jobs | piece.jobs,
            done.ended_jobs + piece.ended_jobs,
            done.freed + piece.freed,
        )
        left -= len(children)
        if left <= 0:
            return done, True
    return done, False
