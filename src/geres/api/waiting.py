"""Reading with a wait: GET /v1/tasks/{id} and GET /v1/jobs/{id}/results, both hot."""

from __future__ import annotations

import time

import anyio
from msgspec import Struct

from geres.api.bodies import encode, read_query
from geres.api.context import Context
from geres.api.front import Call
from geres.errors import Invalid, NotFound
from geres.model.callers import Caller
from geres.model.ids import parse_job, parse_task
from geres.model.tasks import Results
from geres.store import jobs, results, tasks

_MOST_WAIT_SECONDS = 60.0
_POLL_SECONDS = 1.0
#: So few results are read at once, without the way to a thread.
_GLANCE = 100
#: Readers of a stream that comes fast gather for so long: fewer, larger answers.
_GATHER_SECONDS = 0.02


class TaskWaitQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """Query of GET /v1/tasks/{id}."""

    wait_seconds: float = 0.0  #: answer when the task has ended, or after so long; at most 60


class ResultsQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """Query of GET /v1/jobs/{id}/results."""

    after: int = 0  #: the finish number to go on after
    limit: int = 1000  #: at most 10,000
    wait_seconds: float = 0.0  #: wait so long for something to come; at most 60


async def get_task(call: Call) -> tuple[int, bytes]:
    """One task in full; with `wait_seconds`, once it has ended or the time is over.

    Errors: 404 not_found.
    """
    query = read_query(TaskWaitQuery, call.query)
    key = parse_task(call.key)
    if key is None:
        raise no_task_id(call.key)
    until = _until(query.wait_seconds)
    with call.context.waiters.task(key) as bell:
        if query.wait_seconds and not await _is_over(call, key):
            await bell.wait(min(query.wait_seconds, _POLL_SECONDS))
        while True:
            task = await call.context.db.glance(tasks.get, call.caller, key)
            left = until - time.monotonic()
            if task.state.final or left <= 0 or call.context.stopping:
                return 200, encode(task)
            await bell.wait(min(left, _POLL_SECONDS))


async def _is_over(call: Call, key: int) -> bool:
    """Whether waiting is: the first look is most often too early to read the whole task for it."""
    place = await call.context.db.glance(tasks.place, call.caller, key)
    return place.state.final or call.context.stopping


async def get_results(call: Call) -> tuple[int, bytes]:
    """A piece of a job's results stream, in the order of the finish numbers, without a gap.

    Answers at once when there is something after the cursor or the job has no open task, else when something
    comes or the time is over.  Errors: 404 not_found, 410 gone (the fact `oldest` is the oldest one kept).
    """
    query = read_query(ResultsQuery, call.query)
    until = _until(query.wait_seconds)
    job_id = await job_id_of(call.context, call.caller, call.key)
    with call.context.waiters.job(job_id) as bell:
        while True:
            found = await _read(call, job_id, query)
            left = until - time.monotonic()
            if found.items or not found.open or left <= 0 or call.context.stopping:
                return 200, encode(found)
            await bell.wait(min(left, _POLL_SECONDS))
            if call.context.waiters.is_streaming(job_id):
                await anyio.sleep(min(max(until - time.monotonic(), 0.0), _GATHER_SECONDS))


async def _read(call: Call, job_id: int, query: ResultsQuery) -> Results:
    db, few = call.context.db, min(query.limit, _GLANCE)
    found = await db.glance(results.after, call.caller, job_id, query.after, limit=few)
    if few < query.limit and len(found.items) == few:
        return await db.read(results.after, call.caller, job_id, query.after, limit=query.limit)
    return found


async def job_id_of(context: Context, caller: Caller, ref: str) -> int:
    """The id of the job that a number or name means.  Raises NotFound."""
    job_id = parse_job(ref)
    return await context.db.read(jobs.find, caller, ref) if job_id is None else job_id


def no_task_id(text: str) -> NotFound:
    return NotFound(f"{text!r} is no id of a task; write one like 12.7", id=text)


def _until(wait_seconds: float) -> float:
    if not 0 <= wait_seconds <= _MOST_WAIT_SECONDS:
        raise Invalid(
            f"wait_seconds: {wait_seconds:g} is not between 0 and {_MOST_WAIT_SECONDS:g}",
            field="wait_seconds",
        )
    return time.monotonic() + wait_seconds
