"""Submitting tasks: the hot routes POST /v1/tasks and POST /v1/tasks:bulk."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from geres.api.bodies import encode, read_body, read_query, wrong_field
from geres.api.context import Context
from geres.api.front import Call
from geres.errors import Invalid
from geres.model import demand as demands
from geres.model.callers import Caller
from geres.model.demand import Demand
from geres.model.ids import task_key
from geres.model.jobs import DEFAULT_JOB
from geres.model.specs import MOST_BULK_TASKS, check_spec
from geres.model.tasks import (
    BulkAnswer,
    BulkError,
    DryRun,
    KnownSpec,
    SubmitBulk,
    SubmitTask,
    Submitted,
    TaskRow,
    TaskSpec,
)
from geres.store import audit, below, dry_run, finding, idempotency, show, submit
from geres.store.database import Tx
from geres.store.parents import lock_parents

_NO_ROW: list[TaskRow] = [TaskRow()]
_WARN_SECONDS = 1.0
_MOST_KEY = 200


class SubmitQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """Query of POST /v1/tasks."""

    dry_run: bool = (
        False  #: store nothing; answer with the resolved specification and a guess where it would run
    )


class _RawBulk(Struct, kw_only=True, forbid_unknown_fields=True):
    """SubmitBulk with its rows not yet looked at."""

    tasks: list[msgspec.Raw]
    defaults: msgspec.Raw = msgspec.Raw(b"{}")
    job: str | None = None
    atomic: bool = True
    after: list[str] = []


_row_decoder = msgspec.json.Decoder(TaskRow)


async def submit_task(call: Call) -> tuple[int, bytes]:
    """Submit one task.

    With the same Idempotency-Key the first answer comes again.  Errors: 403 denied (another's job),
    404 not_found (job, after), 409 job_finished, name_taken, key_reused, 422 invalid.
    """
    query = read_query(SubmitQuery, call.query)
    body = read_body(SubmitTask, call.body)
    check_spec(body.task, field="task.")
    if query.dry_run:
        job, spec = await call.context.db.read(dry_run.resolve, call.caller, body.job, body.task)
        return 200, encode(_dry_run(call.context, call.caller, job, spec))
    demand = demands.demand_of(body.task)
    warnings = fit_warnings(call.context, call.caller, body.task.pool, demand)
    answer = await call.context.db.run(
        _submit_once,
        call.caller,
        body,
        call.body,
        key=idempotency_key(call),
        warnings=warnings,
        now_us=call.context.clock(),
    )
    call.context.dispatcher.ring()
    return 201, answer


def _submit_once(
    tx: Tx, caller: Caller, body: SubmitTask, raw: bytes, *, key: str | None, warnings: list[str], now_us: int
) -> bytes:
    def do(tx: Tx) -> bytes:
        task_id, attached = _submit(tx, caller, body, now_us)
        task = show.tasks_by_id(tx, [task_id])[task_id]
        if not attached:
            audit.write(tx, caller, "task.submit", task.id, now_us=now_us)
        return encode(Submitted(task=task, attached=attached, warnings=warnings))

    return idempotency.once(tx, caller, key, raw, now_us=now_us, do=do)


def _submit(tx: Tx, caller: Caller, body: SubmitTask, now_us: int) -> tuple[int, bool]:
    """(key, whether it was there before)."""
    if body.task.id is not None and body.task.if_exists == "attach":
        job_id = finding.find_job(tx, caller, body.job, now_us=now_us)
        below.check_may_fill(tx, caller, job_id, body.job in (None, DEFAULT_JOB))
        # Locked, what is waited for first, so that of two requests at once the second finds the first one's.
        lock_parents(tx, caller, body.after, job_id, refuse=False)
        tx.one("lock_job", job_id=job_id, tenant_id=caller.tenant_id)
        found = tx.value("living_task_of_own_id", job_id=job_id, own_id=body.task.id)
        if found is not None and found in below.reached(tx, caller, [found]):
            return int(found), True
    made = submit.create_tasks(tx, caller, body.job, body.task, _NO_ROW, after=body.after, now_us=now_us)
    return task_key(int(made.job_id), made.first_number), False


async def submit_bulk(call: Call) -> tuple[int, bytes]:
    """Submit up to 100,000 tasks of one job.  The accepted ones get numbers in input order, without a gap.

    With `atomic` (the default) one bad task refuses all; without, the good ones are stored and the bad ones
    listed by their position.  Errors as for one task.
    """
    body, errors, places = _read_bulk(call.body)
    if len(body.tasks) + len(errors) > MOST_BULK_TASKS:
        raise Invalid(
            f"tasks: a request takes at most {MOST_BULK_TASKS:,} tasks; send them in pieces", field="tasks"
        )
    answer = await call.context.db.run(
        _bulk_once,
        call.caller,
        body,
        call.body,
        errors,
        places,
        key=idempotency_key(call),
        now_us=call.context.clock(),
    )
    call.context.dispatcher.ring()
    return 201, answer


def _bulk_once(
    tx: Tx,
    caller: Caller,
    body: SubmitBulk,
    raw: bytes,
    errors: list[BulkError],
    places: list[int] | None,
    *,
    key: str | None,
    now_us: int,
) -> bytes:
    def do(tx: Tx) -> bytes:
        made = submit.create_tasks(
            tx,
            caller,
            body.job,
            body.defaults,
            body.tasks,
            after=body.after,
            atomic=body.atomic,
            now_us=now_us,
        )
        if made.count:
            last = made.first_number + made.count - 1
            target = f"{made.job_id}.{made.first_number}-{last}"
            audit.write(tx, caller, "task.submit", target, now_us=now_us)
        return encode(_with_errors(made, errors, places))

    return idempotency.once(tx, caller, key, raw, now_us=now_us, do=do)


def _with_errors(made: BulkAnswer, errors: list[BulkError], places: list[int] | None) -> BulkAnswer:
    """The answer with positions in the request, where rows that could not be read were left out before."""
    if places is None:
        return made
    found = [BulkError(places[error.index], error.code, error.message) for error in made.errors]
    return msgspec.structs.replace(made, errors=sorted(errors + found, key=lambda error: error.index))


def _read_bulk(body: bytes) -> tuple[SubmitBulk, list[BulkError], list[int] | None]:
    """The request; the rows that cannot be read; and the positions of the others, where some cannot."""
    try:
        return read_body(SubmitBulk, body), [], None
    except Invalid as error:
        if not str(error.facts.get("field", "")).startswith("tasks["):
            raise
    raw = read_body(_RawBulk, body)
    rows, errors, places = _read_rows(raw.tasks)
    if raw.atomic:
        first = errors[0]
        raise Invalid(first.message, field=first.message.partition(":")[0], index=first.index)
    defaults = read_body(TaskSpec, bytes(raw.defaults))
    bulk = SubmitBulk(tasks=rows, defaults=defaults, job=raw.job, atomic=False, after=raw.after)
    return bulk, errors, places


def _read_rows(raws: Sequence[msgspec.Raw]) -> tuple[list[TaskRow], list[BulkError], list[int]]:
    rows, errors, places = [], [], []
    for index, raw in enumerate(raws):
        try:
            rows.append(_row_decoder.decode(raw))
            places.append(index)
        except msgspec.ValidationError as error:
            refusal = wrong_field(error, before=f"tasks[{index}]")
            errors.append(BulkError(index, refusal.code, str(refusal)))
    return rows, errors, places


def idempotency_key(call: Call) -> str | None:
    """The header of that name.  Raises Invalid."""
    return check_key(call.headers.get(b"idempotency-key", b"").decode("latin-1"))


def check_key(key: str) -> str | None:
    if len(key) > _MOST_KEY or not key.isprintable():
        raise Invalid(
            f"Idempotency-Key: use at most {_MOST_KEY} printable characters", field="Idempotency-Key"
        )
    return key or None


_warned: dict[tuple[int, int, str, Demand], tuple[float, list[str]]] = {}


def fit_warnings(context: Context, caller: Caller, pool: str, demand: Demand) -> list[str]:
    """What to tell a submitter at once: no node could ever run this, none is there, a disk is nearly full.

    Remembered for a second, so that many submits do not look at many nodes each.
    """
    key, now = (id(context), caller.tenant_id, pool, demand), time.monotonic()
    found = _warned.get(key)
    if found and found[0] > now:
        return found[1]
    nodes, placement = context.dispatcher.explain(caller.tenant_id, pool, demand)
    if placement is not None or any(node.ever for node in nodes):
        warnings = []
    elif nodes:
        warnings = [f"no node can ever run this: {nodes[0].node} {_third_person(nodes[0].reason)}"]
    else:
        warnings = [f"no node of pool {pool} is connected; the task waits for one"]
    warnings += _disk_warnings(context, caller, pool)
    if len(_warned) > 1000:
        _warned.clear()
    _warned[key] = (now + _WARN_SECONDS, warnings)
    return warnings


def _disk_warnings(context: Context, caller: Caller, pool: str) -> list[str]:
    full = context.dispatcher.full_disks(caller.tenant_id, pool, context.disk_warn_percent)
    if not full:
        return []
    node, percent = full[0]
    more = f" (and those of {len(full) - 1} more nodes)" if len(full) > 1 else ""
    return [f"the disk of node {node} is {percent:.0f} % full{more}: tasks may fail to write their output"]


def _third_person(reason: str) -> str:
    """Reasons are worded for the task (`needs 9T ...`) or for the node (`is used ...`)."""
    return (
        f"refuses: the task {reason}"
        if reason.startswith(("needs", "is not in", "does not match"))
        else reason
    )


def _dry_run(context: Context, caller: Caller, job: str, spec: TaskSpec) -> DryRun:
    demand = demands.demand_of(spec)
    nodes, placement = context.dispatcher.explain(caller.tenant_id, spec.pool, demand)
    if placement is None:
        reasons = "; ".join(f"{node.node}: {node.reason}" for node in nodes[:5])
        placement = f"would wait: {reasons}" if nodes else "would wait: no node is connected"
    known = KnownSpec(**msgspec.structs.asdict(spec))
    warnings = fit_warnings(context, caller, spec.pool, demand)
    return DryRun(job=job, spec=known, placement=placement, warnings=warnings)
