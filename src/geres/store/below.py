"""What a task reaches with its token: itself, the tasks below it, and the jobs that it and they made.

Below a task is what it submitted, what that submitted, and so on.
"""

from __future__ import annotations

from collections.abc import Collection

from geres.errors import Denied, NotFound, Unauthenticated
from geres.model.callers import Caller
from geres.model.ids import show_task
from geres.model.task_tokens import Claim
from geres.store.database import Tx

#: Conditions of lists: tasks `t` and jobs `j` within reach of the task `:root`.
_BELOW = (
    "WITH RECURSIVE below (id) AS (SELECT CAST(:root AS BIGINT) UNION"
    " SELECT c.id FROM task c JOIN below b ON c.parent_task_id = b.id) SELECT id FROM below"
)
TASKS_BELOW = f"t.id IN ({_BELOW})"
JOBS_BELOW = (
    f"j.id IN (SELECT c.job_id FROM task c WHERE c.id IN ({_BELOW}) AND c.id <> :root"
    f" UNION SELECT c.id FROM job c WHERE c.parent_task_id IN ({_BELOW}))"
)


def find_caller(tx: Tx, claim: Claim) -> Caller:
    """The caller that a task's token stands for.  Raises Unauthenticated where that attempt is over."""
    row = tx.one("task_of_token", task_id=claim.task, tenant_id=claim.tenant_id)
    task = show_task(claim.task)
    if row is None or row["attempt"] != claim.attempt or row["node_id"] is None:
        raise Unauthenticated(f"attempt {claim.attempt} of task {task} is over, and so is its token")
    if row["role"] == "viewer":  # else tasks that submit tasks would go on for ever
        raise Unauthenticated(f"{row['submitted_by']} may only look by now, and a task's token does more")
    if row["disabled"]:
        raise Unauthenticated(f"{row['submitted_by']} or the tenant was disabled: ask your administrator")
    return Caller(claim.tenant_id, row["tenant"], row["submitted_by"], "task", task=claim.task)


def reached(tx: Tx, caller: Caller, keys: Collection[int]) -> Collection[int]:
    """Those of the tasks that the caller reaches: all, but for a task and a user who sees only their own."""
    if caller.private and not caller.task and keys:
        own = tx.rows("tasks_of_subject", task_ids=sorted(keys), subject=caller.subject)
        return {row[0] for row in own}
    if not caller.task or not keys:
        return keys
    return {row[0] for row in tx.rows("tasks_reached", root=caller.task, task_ids=sorted(keys))}


def sees_job(tx: Tx, caller: Caller, job_id: int) -> bool:
    """Whether the caller may see the job: a task those that it or a task below made, or put tasks into."""
    if caller.private and not caller.task:
        return bool(tx.value("job_of_subject", job_id=job_id, subject=caller.subject))
    if not caller.task:
        return True
    return bool(tx.value("job_seen_by_task", root=caller.task, job_id=job_id))


def owns_job(tx: Tx, caller: Caller, job_id: int) -> bool:
    """Whether a task may change the job: those that it or a task below made."""
    return bool(tx.value("job_made_by_task", root=caller.task, job_id=job_id))


def check_may_fill(tx: Tx, caller: Caller, job_id: int, is_default: bool) -> None:
    """Raise NotFound or Denied where the caller may not submit to this job.

    A user may to their own, for what waits in a job counts against its owner's quota and holds up its end; a
    task may to `default` and to jobs that it made.
    """
    if is_default or caller.role in ("admin", "operator") or (caller.task and owns_job(tx, caller, job_id)):
        return
    owner = tx.value("owner_of_job", job_id=job_id, tenant_id=caller.tenant_id)
    if owner is None or not sees_job(tx, caller, job_id):
        raise NotFound(f"there is no job {job_id}; see `geres jobs`", id=str(job_id))
    if caller.task:
        raise Denied("a task may submit to the job `default` and to jobs that it made", id=str(job_id))
    if owner != caller.subject:
        raise Denied(
            f"job {job_id} is {owner}'s: submit to one of your own, or ask an operator", id=str(job_id)
        )
