"""What a submit would store: the specification with what its job adds.  Nothing is written."""

from __future__ import annotations

import msgspec

from geres.errors import JobFinished
from geres.model.callers import Caller
from geres.model.inherit import inherit, task_of
from geres.model.jobs import DEFAULT_JOB
from geres.model.states import JobState
from geres.model.tasks import TaskSpec
from geres.store import below, finding
from geres.store.database import Tx


def resolve(tx: Tx, caller: Caller, job_ref: str | None, spec: TaskSpec) -> tuple[str, TaskSpec]:
    """The job, as `default` or its id, and the whole specification.

    Raises NotFound for an unknown job, Denied for another's, JobFinished for one that takes no more.
    """
    if job_ref is None or job_ref == DEFAULT_JOB:
        return DEFAULT_JOB, spec
    job_id = finding.find_job(tx, caller, job_ref, now_us=0)
    below.check_may_fill(tx, caller, job_id, False)
    row = tx.one("show_job_to_submit", job_id=job_id, tenant_id=caller.tenant_id)
    if row is None:
        raise finding.no_such_job(job_ref)
    if row["state"] not in (JobState.ACTIVE, JobState.DISABLED):
        raise JobFinished(
            f"job {job_id} is {row['state']} and takes no more tasks", id=str(job_id), state=row["state"]
        )
    if job_task := task_of(row["spec"]):
        spec = inherit(spec, job_task)
    if spec.priority is None:
        spec = msgspec.structs.replace(spec, priority=row["priority"])
    return str(job_id), spec
