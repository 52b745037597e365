"""Jobs: create, read, edit, and act on one as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from litestar import Response, get, patch, post
from litestar.params import FromPath, JSONBody

from geres.api import acting, explain
from geres.api.bodies import encode, read_query
from geres.api.request import Request, answer, answer_struct
from geres.api.submitting import check_key, fit_warnings
from geres.api.waiting import job_id_of
from geres.model import demand as demands
from geres.model.callers import Caller
from geres.model.jobs import Job, JobAction, JobDetail, JobPage, JobPatch, JobSpec
from geres.model.tasks import Why
from geres.store import audit, idempotency, jobs, submit
from geres.store.database import Tx
from geres.store.jobs import JobDetailQuery, JobQuery

T = TypeVar("T")


@post("/v1/jobs", status_code=201)
async def create_job(request: Request, data: JSONBody[JobSpec]) -> Response[Job]:
    """Create a job; with `array`, with its tasks: a large one gets its rows little by little.

    Errors: 409 name_taken, key_reused, 422 invalid.
    """
    context = request.context
    warnings: list[str] = []
    if data.array is not None and data.task is not None:
        warnings = fit_warnings(context, request.caller, data.task.pool, demands.demand_of(data.task))
    content = await context.db.run(
        _create_once,
        request.caller,
        data,
        await request.body(),
        key=check_key(request.idempotency_key or ""),
        warnings=warnings,
        now_us=context.clock(),
    )
    context.unfolder.ring()
    context.dispatcher.ring()
    return answer(content, 201)


def _create_once(
    tx: Tx, caller: Caller, spec: JobSpec, raw: bytes, *, key: str | None, warnings: list[str], now_us: int
) -> bytes:
    def do(tx: Tx) -> bytes:
        job = jobs.get_short(tx, submit.create_job(tx, caller, spec, now_us=now_us))
        audit.write(tx, caller, "job.create", job.id, now_us=now_us)
        job.warnings = warnings
        return encode(job)

    return idempotency.once(tx, caller, key, raw, now_us=now_us, do=do)


@get("/v1/jobs")
async def list_jobs(request: Request) -> JobPage:
    """Jobs that match, newest first.

    Query: `state` (parted by commas; also `open`), `user`, `name`, `limit`, `cursor`, `count`.
    """
    query = read_query(JobQuery, request.scope["query_string"])
    return await request.context.db.read(jobs.list_jobs, request.caller, query)


@get("/v1/jobs/{job_ref:str}")
async def get_job(request: Request, job_ref: FromPath[str]) -> Response[JobDetail]:
    """One job in full, by its id or name.  The ETag is its version, which edits change.

    Query: `usage` (true: sum up what its attempts used).
    """
    query = read_query(JobDetailQuery, request.scope["query_string"])
    job = await request.context.db.read(jobs.get, request.caller, job_ref, usage=query.usage)
    return answer_struct(job, headers={"etag": f'"{job.version}"'})


@patch("/v1/jobs/{job_ref:str}")
async def patch_job(request: Request, job_ref: FromPath[str], data: JSONBody[JobPatch]) -> Response[Job]:
    """Edit a job.  Errors: 412 changed where If-Match names another version, 409 job_finished."""
    context, caller = request.context, request.caller
    job_id = await job_id_of(context, caller, job_ref)
    job, before = await _noted(request, "job.edit", jobs.patch, job_id, data, version=request.if_match)
    if before is not None:
        while await context.db.run(jobs.follow_priority, job_id, before=before, priority=job.priority):
            pass
    context.dispatcher.forget_job(job_id)
    context.dispatcher.ring()
    return answer_struct(job, headers={"etag": f'"{job.version}"'})


@post("/v1/jobs/{job_ref:str}/close", status_code=200)
async def close_job(request: Request, job_ref: FromPath[str], data: JSONBody[JobAction]) -> Job:
    """Take no more tasks; completed when what it has has ended."""
    context, caller = request.context, request.caller
    job_id = await job_id_of(context, caller, job_ref)
    job = await _noted(request, "job.close", jobs.close, job_id, reason=data.reason, now_us=context.clock())
    acting.job_changed(context, job_id)
    return job


@post("/v1/jobs/{job_ref:str}/cancel", status_code=200)
async def cancel_job(request: Request, job_ref: FromPath[str], data: JSONBody[JobAction]) -> Job:
    """Cancel a job: what waits ends now, what runs is asked to end.  Cancelled when all of it has ended.

    Of a very large job the answer comes before its last task was cancelled.
    """
    context, caller = request.context, request.caller
    job_id = await job_id_of(context, caller, job_ref)
    await acting.cancel_job(request, job_id, data.reason)
    return await context.db.read(jobs.get_short, job_id)


@post("/v1/jobs/{job_ref:str}/disable", status_code=200)
async def disable_job(request: Request, job_ref: FromPath[str], data: JSONBody[JobAction]) -> Job:
    """Start nothing more.  `running` says what becomes of what runs: wait, requeue or terminate."""
    context, caller = request.context, request.caller
    job_id = await job_id_of(context, caller, job_ref)
    now_us = context.clock()
    stop = {"wait": None, "requeue": "requeue", "terminate": "cancel"}[data.running]
    job = await _noted(
        request, "job.disable", jobs.disable, job_id, reason=data.reason, now_us=now_us, stop=stop
    )
    if stop is not None:
        await acting.in_pieces(context, jobs.stop_piece, job_id)
    acting.job_changed(context, job_id)
    return job


@post("/v1/jobs/{job_ref:str}/enable", status_code=200)
async def enable_job(request: Request, job_ref: FromPath[str], data: JSONBody[JobAction]) -> Job:
    """Start tasks again."""
    context, caller = request.context, request.caller
    job_id = await job_id_of(context, caller, job_ref)
    job = await _noted(request, "job.enable", jobs.enable, job_id, now_us=context.clock())
    acting.job_changed(context, job_id)
    return job


@get("/v1/jobs/{job_ref:str}/why")
async def why_job(request: Request, job_ref: FromPath[str]) -> Why:
    """Why a job is in its state: its tasks in groups."""
    job_id = await job_id_of(request.context, request.caller, job_ref)
    return await explain.job(request.context, request.caller, job_id)


async def _noted(
    request: Request, action: str, change: Callable[..., T], job_id: int, *args: Any, **how: Any
) -> T:
    """Change a job, with an entry in the audit log."""
    note = audit.Note(action, str(job_id), request.context.clock())
    return await request.context.db.run(audit.noted, note, change, request.caller, job_id, *args, **how)


ROUTES: list[Any] = [
    create_job,
    list_jobs,
    get_job,
    patch_job,
    close_job,
    cancel_job,
    disable_job,
    enable_job,
    why_job,
]
