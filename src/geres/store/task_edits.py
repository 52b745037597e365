"""Edit tasks that wait, and run tasks again that have ended.

A task's requests stand in its specification and its lane, which tasks share: an edit gives the task another
specification and another lane, and leaves the others as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from geres.errors import Conflict, GeresError, Invalid, NameTaken
from geres.model import demand as demands
from geres.model.callers import Caller
from geres.model.expressions import node_matcher
from geres.model.ids import job_of, number_of, show_task, task_key
from geres.model.specs import check_priority, check_spec
from geres.model.states import JobState, TaskState
from geres.model.tasks import Acted, EditTasks, Retry, TaskSpec
from geres.model.units import parse_time
from geres.store import show
from geres.store.database import Row, Tx, batch
from geres.store.ends import CHILDREN_AT_ONCE, counts_as_success
from geres.store.sharing import lane_of, pool_of, spec_id_of
from geres.store.task_actions import Done, in_order, lock, refuse


class Changes(Struct, kw_only=True, forbid_unknown_fields=True):
    """What to change; what is left out stays."""

    priority: int | UnsetType = UNSET
    cpus: float | UnsetType = UNSET
    memory_bytes: int | UnsetType = UNSET
    gpus: int | UnsetType = UNSET
    resources: dict[str, int] | UnsetType = UNSET
    exclusive: bool | UnsetType = UNSET
    nodelist: list[str] | UnsetType = UNSET
    match: str | UnsetType = UNSET  #: empty: any node
    pool: str | UnsetType = UNSET
    time_limit_seconds: float | UnsetType = UNSET  #: 0: none
    retries: int | UnsetType = UNSET
    not_before: str | UnsetType = UNSET  #: empty: at once


#: Those that are fields of a specification under the same name.
_SAME_NAME = tuple(
    name for name in Changes.__struct_fields__ if name not in ("priority", "retries", "not_before")
)


def changes_of(edit: EditTasks) -> Changes:
    """The changes that a request asks for.  Raises Invalid where there is none."""
    given = {name: value for name in Changes.__struct_fields__ if (value := getattr(edit, name)) is not None}
    if not given:
        raise Invalid(f"nothing to change; known are {', '.join(Changes.__struct_fields__)}")
    return check_changes(Changes(**given))


def check_changes(changes: Changes) -> Changes:
    """The changes, if they could be right for some task.  Raises Invalid naming the field."""
    check_spec(_apply(changes, TaskSpec()), needs_command=False)
    if changes.priority is not UNSET:
        check_priority(changes.priority, "priority")
    if changes.match is not UNSET and changes.match:
        node_matcher(changes.match)
    if changes.not_before is not UNSET and changes.not_before:
        parse_time(changes.not_before, "not_before")
    return changes


def _apply(changes: Changes, spec: TaskSpec) -> TaskSpec:
    given: dict[str, Any] = {
        name: value for name in _SAME_NAME if (value := getattr(changes, name)) is not UNSET
    }
    if given.get("match") == "":
        given["match"] = None
    if given.get("time_limit_seconds") == 0:
        given["time_limit_seconds"] = None
    if changes.retries is not UNSET:
        retry = spec.retry
        given["retry"] = Retry(changes.retries, retry.delay_seconds, retry.most_delay_seconds)
    return msgspec.structs.replace(spec, **given)


def edit(tx: Tx, caller: Caller, keys: Sequence[int], changes: Changes, *, now_us: int) -> Done:
    """Change what waiting tasks ask for; one that a node already has is refused."""
    done = Done()
    rows = []
    for row in lock(tx, caller, keys, done, hint="; `geres rerun {id} NAME=VALUE` runs it again, changed"):
        if TaskState(row["state"]).waiting:
            rows.append(row)
        else:
            text = f"task {show_task(row['id'])} is {row['state']}: only a task that waits can be edited"
            refuse(done, row["id"], Conflict(text))
    _write(tx, rows, changes, done, now_us)
    done.queued = True
    return in_order(done, keys)


def _write(tx: Tx, rows: list[Row], changes: Changes, done: Done, now_us: int) -> None:
    """Give each task the specification, the lane and the times that the changes lead to."""
    known: dict[tuple[int, int, str], tuple[int, int]] = {}
    not_before = None
    if changes.not_before is not UNSET and changes.not_before:
        not_before = parse_time(changes.not_before, "not_before")
    edited = []
    for row in rows:
        key = (row["spec_id"], row["lane_id"], row["submitted_by"])
        try:
            if key not in known:
                known[key] = _respecify(tx, row, changes, now_us)
        except GeresError as error:
            refuse(done, row["id"], error)
            continue
        tx.run(
            "edit_task",
            task_id=row["id"],
            spec_id=known[key][0],
            lane_id=known[key][1],
            priority=row["priority"] if changes.priority is UNSET else changes.priority,
            not_before_at=row["not_before_at"] if changes.not_before is UNSET else not_before,
        )
        edited.append(row["id"])
    if not edited:
        return
    if changes.not_before is not UNSET:
        tx.run("block_until_time", task_ids=edited, now_us=now_us)
        tx.run("queue_at_once", task_ids=edited, now_us=now_us)
    tx.run("wake_lanes_of_tasks", task_ids=edited)
    states = tx.rows("states_of_tasks", task_ids=edited)
    done.items += [Acted(id=show_task(key), state=TaskState(state)) for key, state in states]
    done.task_ids += edited


def _respecify(tx: Tx, row: Row, changes: Changes, now_us: int) -> tuple[int, int]:
    """(specification, lane) of a task like this one after the changes."""
    shared = tx.one("spec_and_lane", spec_id=row["spec_id"], lane_id=row["lane_id"])
    assert shared is not None
    old = show.spec_from_text(shared["body"])
    spec = _apply(changes, old)
    check_spec(spec, needs_command=False)
    spec_id = row["spec_id"] if spec == old else spec_id_of(tx, row["job_id"], spec)
    pool_id = shared["pool_id"]
    if spec.pool != old.pool:
        pool_id = pool_of(tx, row["tenant_id"], spec.pool, now_us=now_us)
    demand = demands.demand_of(spec)
    if pool_id == shared["pool_id"] and demand == demands.demand_of(old):
        return spec_id, row["lane_id"]
    lane = lane_of(tx, row["tenant_id"], row["submitted_by"], row["job_id"], pool_id, demand)
    return spec_id, lane


def rerun(
    tx: Tx, caller: Caller, keys: Sequence[int], changes: Changes | None = None, *, now_us: int
) -> Done:
    """Queue tasks again that have ended: the same task, its next attempt, fresh retry counts.

    Those with parents that have not ended wait for them.  Their jobs are open again, and tasks that were
    skipped for them wait again; where those are very many, `revive` sees to them.  Earlier results stay.
    """
    done = Done()
    rows = []
    own_ids: set[tuple[int, str]] = set()
    tx.rows("lock_parents_of", task_ids=sorted(set(keys)))  # so that none of them ends unseen
    for row in lock(tx, caller, keys, done, ended=True):
        try:
            _check_own_id(tx, row, own_ids)
            rows.append(row)
        except GeresError as error:
            refuse(done, row["id"], error)
    if not rows:
        return in_order(done, keys)
    ids = [row["id"] for row in rows]
    blocked = _with_free_ids(tx, _skipped_for(tx, ids), own_ids)
    _reopen_jobs(tx, rows + blocked, now_us)
    tx.run("rerun_tasks", task_ids=ids, now_us=now_us)
    _block_again(tx, [row["id"] for row in blocked], now_us)
    tx.run("wait_for_open_parents", task_ids=ids)
    tx.run("count_parents", task_ids=ids)
    tx.run("block_with_parents", task_ids=ids)
    if changes is not None:
        quiet = Done()
        _write(tx, tx.all("lock_tasks", task_ids=ids), changes, quiet, now_us)
    tx.run("wake_lanes_of_tasks", task_ids=ids)
    states = tx.rows("states_of_tasks", task_ids=ids)
    done.items += [Acted(id=show_task(key), state=TaskState(state)) for key, state in states]
    done.task_ids += ids + [row["id"] for row in blocked]
    done.queued = True
    return in_order(done, keys)


def _check_own_id(tx: Tx, row: Row, claimed: set[tuple[int, str]]) -> None:
    """Claim the task's own id.  Raises NameTaken where an open task has it, or one that comes back too."""
    if row["own_id"] is None:
        return
    taken = tx.value("living_task_of_own_id", job_id=row["job_id"], own_id=row["own_id"])
    if taken is not None:
        raise NameTaken(f"its id {row['own_id']!r} is taken by {show_task(taken)}, which has not ended")
    if (row["job_id"], row["own_id"]) in claimed:
        raise NameTaken(
            f"its id {row['own_id']!r} is that of another task that is run again; take one of them"
        )
    claimed.add((row["job_id"], row["own_id"]))


def _with_free_ids(tx: Tx, rows: list[Row], claimed: set[tuple[int, str]]) -> list[Row]:
    """Those whose own ids are free; the others stay skipped."""
    free = []
    for row in rows:
        try:
            _check_own_id(tx, row, claimed)
        except NameTaken:
            continue
        free.append(row)
    return free


def _skipped_for(tx: Tx, keys: list[int]) -> list[Row]:
    """Tasks that were skipped because these did not succeed, and those skipped because of them in turn.

    One that was skipped for another parent too, which still stands, stays skipped.
    """
    again: dict[int, Row] = {}
    news, left = keys, CHILDREN_AT_ONCE
    while news:
        tasks, jobs, left = _of_few_children(tx, news, left)
        children = tx.all("skipped_children", task_ids=tasks) if tasks else []
        children += tx.all("skipped_children_of_jobs", job_ids=jobs) if jobs else []
        rows = {row["id"]: row for row in children if row["id"] not in again and row["id"] not in keys}
        doomed = _still_doomed(tx, rows, {*keys, *again}) if rows else set()
        news = [key for key in rows if key not in doomed]
        again |= {key: rows[key] for key in news}
    return [again[key] for key in sorted(again)]


def _still_doomed(tx: Tx, children: Collection[int], coming_back: set[int]) -> set[int]:
    """Of these children, those with a parent that ended without success and does not come back.

    They may be parents of each other: one that does not come back keeps its own from it.
    """
    bad = tx.rows("bad_parents_of", task_ids=list(children))
    doomed = set[int]()
    while True:
        back = coming_back.union(children) - doomed
        more = {child for child, parent in bad if parent not in back} - doomed
        if not more:
            return doomed
        doomed |= more


def _of_few_children(tx: Tx, keys: list[int], left: int) -> tuple[list[int], list[int], int]:
    """Of these tasks and their jobs, those with children, `left` in all; and how many may be looked at yet.

    The others are noted.
    """
    jobs = sorted({job_of(key) for key in keys})
    counts = [(key, int(n)) for key, n in tx.rows("count_children", task_ids=sorted(keys))]
    counts += [(task_key(job_id, 0), int(n)) for job_id, n in tx.rows("count_children_of_jobs", job_ids=jobs)]
    few, many = [], []
    for key, count in sorted(counts, key=lambda found: found[1]):
        if count <= left:
            few.append(key)
            left -= count
        else:
            many.append(key)
    if many:
        tx.run("revive_later", batch=batch([key] for key in sorted(many)))
    return [key for key in few if number_of(key)], [job_of(key) for key in few if not number_of(key)], left


def revive(tx: Tx, *, now_us: int) -> tuple[Done, bool]:
    """Let a piece of the tasks wait again that were skipped for one that runs again, or has run again by now.

    Returns what was done, and whether there are more.
    """
    for parent, after in tx.rows("parents_to_revive", limit=1):
        if not _may_revive(tx, parent):
            tx.run("forget_reviving", parent_key=parent)
            return Done(), True
        if number_of(parent):
            rows = tx.all("some_skipped_children", task_id=parent, after=after, limit=CHILDREN_AT_ONCE)
        else:
            rows = tx.all(
                "some_skipped_children_of_job", job_id=job_of(parent), after=after, limit=CHILDREN_AT_ONCE
            )
        if len(rows) < CHILDREN_AT_ONCE:
            tx.run("forget_reviving", parent_key=parent)
        else:
            tx.run("revived_up_to", parent_key=parent, after=rows[-1]["id"])
        stay = _still_doomed(tx, [row["id"] for row in rows], {parent}) if rows else set()
        claimed: set[tuple[int, str]] = set()
        again = _with_free_ids(tx, [row for row in rows if row["id"] not in stay], claimed)
        again += _with_free_ids(tx, _skipped_for(tx, [row["id"] for row in again]), claimed) if again else []
        again = list({row["id"]: row for row in again}.values())
        _reopen_jobs(tx, again, now_us)
        ids = [row["id"] for row in again]
        _block_again(tx, ids, now_us)
        if ids:
            tx.run("queue_at_once", task_ids=ids, now_us=now_us)
            tx.run("wake_lanes_of_tasks", task_ids=ids)
        return Done(task_ids=ids, jobs={job_of(key) for key in ids}, queued=bool(ids)), True
    return Done(), False


def _may_revive(tx: Tx, parent: int) -> bool:
    """False where the task, or the job, has failed once more meanwhile, or is gone."""
    if not number_of(parent):
        whole = tx.value("lock_ended_job", job_id=job_of(parent)) is not None
        return not (whole and tx.value("outcome_of_job", job_id=job_of(parent)))
    rows = tx.rows("lock_parent_tasks", task_ids=[parent])
    return bool(rows) and (not TaskState(rows[0][2]).final or counts_as_success(rows[0][2], rows[0][3]))


def _block_again(tx: Tx, children: list[int], now_us: int) -> None:
    """Let these tasks, which were skipped, wait again for what has not ended."""
    if children:
        tx.rows("lock_parents_of", task_ids=children)  # so that none of them ends unseen
        tx.run("block_again", task_ids=children, now_us=now_us)
        tx.run("undo_dependencies", task_ids=children)
        tx.run("count_parents", task_ids=children)


def _reopen_jobs(tx: Tx, rows: list[Row], now_us: int) -> None:
    """Take the tasks out of their jobs' counts of ends, and open the jobs that had ended."""
    by_job: dict[int, dict[str, int]] = {}
    for row in rows:
        counts = by_job.setdefault(
            row["job_id"], dict.fromkeys(("succeeded", "failed", "cancelled", "skipped"), 0)
        )
        counts[row["state"]] += 1
    for job_id in sorted(by_job):
        job = tx.one("uncount_ends", job_id=job_id, **by_job[job_id])
        if job is None or not JobState(job["state"]).final:
            continue
        name_taken = job["name"] is not None and tx.value(
            "living_job_of_name",
            tenant_id=job["tenant_id"],
            subject=job["submitted_by"],
            name=job["name"],
        )
        tx.run("reopen_job", job_id=job_id, named=0 if name_taken else job["named"], now_us=now_us)
