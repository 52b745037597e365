"""What new tasks wait for: tasks and jobs, locked so that none of them ends unseen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from geres.errors import Invalid, NotFound
from geres.model.callers import Caller
from geres.model.ids import MOST_NUMBER, job_of, parse_task, show_task, task_key
from geres.model.states import TaskState
from geres.store import tasks
from geres.store.below import reached
from geres.store.database import Tx, batch
from geres.store.ends import counts_as_success

_MOST_PARENTS = 10_000


@dataclass
class Parents:
    """What new tasks wait for."""

    tasks: list[int] = field(default_factory=list)
    jobs: list[int] = field(default_factory=list)
    open: int = 0
    failed_tasks: list[int] = field(default_factory=list)  #: that have ended, and not well
    failed_jobs: list[int] = field(default_factory=list)

    @property
    def failed(self) -> str | None:
        """The id of one that did not succeed."""
        if self.failed_tasks:
            return show_task(self.failed_tasks[0])
        return str(self.failed_jobs[0]) if self.failed_jobs else None


def parent_ids(tx: Tx, caller: Caller, after: Sequence[str]) -> list[str]:
    """The ids that these references mean now; a name may mean another job later.

    Raises NotFound, Invalid.
    """
    task_ids, job_ids = _meant(tx, caller, after)
    return [*map(show_task, task_ids), *map(str, job_ids)]


def _meant(tx: Tx, caller: Caller, after: Sequence[str]) -> tuple[list[int], list[int]]:
    """The tasks and the jobs that ids, ranges and names mean."""
    task_ids: set[int] = set()
    job_ids: set[int] = set()
    for ref in after:
        try:
            if (key := parse_task(ref)) is not None:
                task_ids.add(key)
            elif (job_id := tasks.find_job_id(tx, caller, ref)) is not None:
                job_ids.add(job_id)
            else:
                task_ids.update(_of_range(tx, caller, ref))
        except (NotFound, Invalid) as error:
            words = str(error).removeprefix("id: ")
            if "," in ref:
                words = f"{ref!r} is no id; give each on its own (--after {' --after '.join(ref.split(','))})"
            raise type(error)(f"after: {words}", **(error.facts | {"field": "after"})) from None
    if len(task_ids) > _MOST_PARENTS:
        raise Invalid(f"after: means more than {_MOST_PARENTS:,} tasks; wait for their job", field="after")
    return sorted(task_ids), sorted(job_ids)


def _of_range(tx: Tx, caller: Caller, ref: str) -> list[int]:
    """The tasks of `12.3-9` or of an id of one's own; a range of an array that still grows is refused."""
    keys = tasks.keys_of(tx, caller, ref)
    if not keys:
        raise NotFound(f"there is no task {ref}", id=ref)
    job = tx.all("show_jobs", job_ids=[job_of(keys[0])])[0]
    if "." in ref and job["array_total"] > job["array_done"]:
        raise Invalid(f"{ref} is of an array that is being made; wait for the job {job['id']}, or try again")
    return keys


def lock_parents(
    tx: Tx, caller: Caller, after: Sequence[str], job_id: int | None, *, refuse: bool = True
) -> Parents:
    """Lock what the new tasks of a job wait for, so that none ends unseen.

    Raises NotFound and Invalid, with `refuse` also where one has ended without success.
    """
    parents = Parents()
    if not after:
        return parents
    task_ids, job_ids = _meant(tx, caller, after)
    _lock_tasks(tx, caller, task_ids, parents)
    _lock_jobs(tx, caller, set(job_ids), parents, job_id)
    if refuse and job_id is not None:
        _check_circle(tx, job_id, parents)
    if parents.failed and refuse:
        raise Invalid(
            f"after: {parents.failed} has ended without success, so this would never start; rerun it first",
            field="after",
            id=parents.failed,
        )
    return parents


def _check_circle(tx: Tx, job_id: int, parents: Parents) -> None:
    """Raise Invalid where what the new tasks wait for waits in turn for the job that they join.

    Tasks of an array that have no row yet are not seen.
    """
    if not parents.open or not tx.value("job_is_parent", job_id=job_id):
        return
    first = [[key, key] for key in parents.tasks]
    first += [[task_key(one, 0), task_key(one, MOST_NUMBER)] for one in parents.jobs]
    if tx.value("waits_for_job", first=batch(first), wanted=task_key(job_id, 0)) is not None:
        waits = show_task(parents.tasks[0]) if not parents.jobs else str(parents.jobs[0])
        raise Invalid(
            f"after: {waits} waits in turn for job {job_id}, so neither would ever end;"
            " submit to another job, or wait for single tasks",
            field="after",
            id=waits,
        )


def _lock_tasks(tx: Tx, caller: Caller, task_ids: list[int], parents: Parents) -> None:
    rows = tx.rows("lock_parent_tasks", task_ids=task_ids) if task_ids else []
    within = reached(tx, caller, task_ids)
    known = {row[0]: (row[2], row[3]) for row in rows if row[1] == caller.tenant_id and row[0] in within}
    for key in task_ids:
        if key not in known:
            raise NotFound(f"after: there is no task {show_task(key)}", id=show_task(key))
        state, reason = TaskState(known[key][0]), known[key][1]
        if not state.final:
            parents.tasks.append(key)
            parents.open += 1
        elif not counts_as_success(state, reason):
            parents.failed_tasks.append(key)
    if parents.tasks:
        tx.run("mark_parent_tasks", task_ids=parents.tasks)


def _lock_jobs(tx: Tx, caller: Caller, ids: set[int], parents: Parents, job_id: int | None) -> None:
    if job_id in ids:
        raise Invalid(f"after: a task of job {job_id} cannot wait for the job itself", field="after")
    # With the job that the new tasks join, which is locked next: in one order for everybody.
    rows = tx.all("lock_parent_jobs", job_ids=sorted({*ids, job_id} - {None})) if ids else []
    if unknown := ids - {row["id"] for row in rows}:
        raise NotFound(f"after: there is no job {min(unknown)}; see `geres jobs`", id=str(min(unknown)))
    for row in rows:
        if row["id"] == job_id:
            continue
        if row["tenant_id"] != caller.tenant_id:
            raise NotFound(f"after: there is no job {row['id']}", id=str(row["id"]))
        ended = row["succeeded"] + row["failed"] + row["cancelled"] + row["skipped"]
        if row["task_count"] + row["not_yet"] > ended:
            parents.jobs.append(row["id"])
            parents.open += 1
        elif tx.value("outcome_of_job", job_id=row["id"]):
            parents.failed_jobs.append(row["id"])
    if parents.jobs:
        tx.run("mark_parent_jobs", job_ids=parents.jobs)
