"""What tasks share: the tenant's pools, lanes, specifications and caps, each found or made."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from geres.model import demand as demands
from geres.model.callers import Caller
from geres.model.states import TaskState
from geres.model.tasks import TaskSpec
from geres.model.units import parse_time
from geres.store.database import Tx

_encode = msgspec.json.Encoder().encode


@dataclass
class Shared:
    """Ids of what tasks with one specification share."""

    spec_id: int
    lane_id: int
    priority: int
    state: TaskState
    not_before_at: int | None


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


def set_cap(tx: Tx, tenant_id: int, scope: str, key: str, most: int | None) -> None:
    """Never let more than `most` tasks of this scope and key be on nodes at once; None takes the cap away."""
    if most is None:
        tx.run("drop_cap", tenant_id=tenant_id, scope=scope, key=key)
    else:
        tx.run("set_cap", tenant_id=tenant_id, scope=scope, key=key, most=most)


def share(
    tx: Tx,
    caller: Caller,
    job_id: int,
    spec: TaskSpec,
    job_priority: int,
    waits: bool,
    *,
    keep_command: bool = False,
    now_us: int,
) -> Shared:
    """Find or make the specification, the class and the lane of tasks like `spec`."""
    priority = job_priority if spec.priority is None else spec.priority
    not_before = None if spec.not_before is None else parse_time(spec.not_before, "not_before")
    state = _first_state(spec, not_before, waits, now_us)
    cap = demands.label_cap(spec)
    if cap and tx.value("most_of_cap", tenant_id=caller.tenant_id, scope="label", key=cap[0]) != cap[1]:
        set_cap(tx, caller.tenant_id, "label", cap[0], cap[1])
    asks, shared = demands.demand_of(spec), shared_part(spec, keep_command)
    found = tx.one(
        "find_shared",
        tenant_id=caller.tenant_id,
        subject=caller.subject,
        job_id=job_id,
        pool=spec.pool,
        class_hash=demands.digest(asks),
        spec_hash=demands.digest(shared),
    )
    spec_id, lane_id = (found["spec_id"], found["lane_id"]) if found else (None, None)
    if lane_id is None:
        pool_id = pool_of(tx, caller.tenant_id, spec.pool, now_us=now_us)
        lane_id = lane_of(tx, caller.tenant_id, caller.subject, job_id, pool_id, asks)
    if state is TaskState.QUEUED:
        activate(tx, lane_id, priority)
    if spec_id is None:
        spec_id = spec_id_of(tx, job_id, shared)
    return Shared(spec_id, lane_id, priority, state, not_before)


def activate(tx: Tx, lane_id: int, priority: int) -> None:
    """Set the hint that the lane has queued tasks, the first of this priority or a higher one."""
    active, highest = tx.rows("lock_lane", lane_id=lane_id)[0]
    if not active or highest < priority:
        tx.run("activate_lane", lane_id=lane_id, priority=priority)


def _first_state(spec: TaskSpec, not_before: int | None, waits: bool, now_us: int) -> TaskState:
    if spec.hold:
        return TaskState.HELD
    if waits or (not_before is not None and not_before > now_us):
        return TaskState.BLOCKED
    return TaskState.QUEUED


def shared_part(spec: TaskSpec, keep_command: bool = False) -> TaskSpec:
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


def spec_id_of(tx: Tx, job_id: int, spec: TaskSpec) -> int:
    """The id of this specification in this job; it is stored where it is new."""
    digest = demands.digest(spec)
    found = tx.value("find_spec", job_id=job_id, hash=digest)
    if found is None:
        body, meta = _encode(spec).decode(), _encode(spec.meta).decode()
        found = tx.value(
            "create_spec", job_id=job_id, hash=digest, body=body, meta=meta, on_disconnect=spec.on_disconnect
        )
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
