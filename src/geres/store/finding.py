"""Finding the job that an id or a name means, and making the one that is always there."""

from __future__ import annotations

import msgspec

from geres.errors import NotFound
from geres.model.callers import Caller
from geres.model.ids import is_name, parse_job
from geres.model.jobs import DEFAULT_JOB, JobSpec
from geres.store.below import sees_job
from geres.store.database import Tx
from geres.store.sharing import set_cap

_encode = msgspec.json.Encoder().encode


def find_job(tx: Tx, caller: Caller, ref: str | None, *, now_us: int) -> int:
    """The id of the job that `ref` (an id, a name, or None for the caller's `default`) means.

    Raises NotFound.
    """
    if ref is None or ref == DEFAULT_JOB:
        return _default_job(tx, caller, now_us=now_us)
    job_id = parse_job(ref)
    if job_id is None:
        job_id = tx.value("find_job_by_name", tenant_id=caller.tenant_id, subject=caller.subject, name=ref)
    if job_id is None or not sees_job(tx, caller, int(job_id)):
        raise no_such_job(ref)
    return int(job_id)


def no_such_job(ref: str) -> NotFound:
    make = "" if not is_name(ref) else f", or make it with `geres job create {ref}`"
    return NotFound(f"there is no job {ref!r}; see `geres jobs`{make}", id=ref)


def _default_job(tx: Tx, caller: Caller, *, now_us: int) -> int:
    who = {"tenant_id": caller.tenant_id, "subject": caller.subject}
    found = tx.value("living_job_of_name", **who, name=DEFAULT_JOB)
    if found is None:
        found = insert_job(tx, caller, JobSpec(name=DEFAULT_JOB), DEFAULT_JOB, None, now_us=now_us)
    if found is None:  # another server made it at the same moment
        found = tx.value("living_job_of_name", **who, name=DEFAULT_JOB)
    return int(found)


def insert_job(
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
        parent_task_id=caller.task or None if name != DEFAULT_JOB else None,
        now_us=now_us,
    )
    if job_id is not None and spec.max_parallel is not None:
        set_cap(tx, caller.tenant_id, "job", str(job_id), spec.max_parallel)
    return None if job_id is None else int(job_id)
