"""Reading tasks: lists, history, reasons, values, and what an id means."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Response, get
from litestar.params import FromPath

from geres.api import explain
from geres.api.bodies import read_query
from geres.api.request import Request, answer, answer_struct
from geres.api.waiting import job_id_of, no_task_id
from geres.errors import Invalid
from geres.model.ids import parse_task
from geres.model.jobs import Found
from geres.model.tasks import TaskPage, Why
from geres.store import task_list, tasks
from geres.store.task_list import TaskQuery


@get("/v1/tasks")
async def list_tasks(request: Request) -> Response[TaskPage]:
    """Tasks that match, a page at a time, newest first.

    Query: `job`, `state` (states parted by commas; also `pending` and `final`), `user`, `name`, `node`,
    `pool`, `filter` (an expression), `grep` (part of the command or name), `since`, `until`, `dead`, `sort`
    (a field or -field), `limit` (at most 10,000), `cursor` (of the page before), `count` (fill `matched`),
    `fields` (only these of each task, parted by commas: long lists come several times faster).
    """
    return await _page(request, read_query(TaskQuery, request.scope["query_string"]))


@get("/v1/history")
async def list_history(request: Request) -> Response[TaskPage]:
    """Tasks that have ended, the latest first; takes the query of /v1/tasks."""
    query = read_query(TaskQuery, request.scope["query_string"])
    return await _page(
        request,
        msgspec.structs.replace(query, state=query.state or "final", sort=query.sort or "-ended_at"),
    )


async def _page(request: Request, query: TaskQuery) -> Response[TaskPage]:
    job_id = None
    if query.job is not None:
        job_id = await job_id_of(request.context, request.caller, query.job)
    page = await request.context.db.read(task_list.list_tasks, request.caller, query, job_id=job_id)
    return answer_struct(page)


@get("/v1/tasks/{task_id:str}/why")
async def why_task(request: Request, task_id: FromPath[str]) -> Why:
    """Why a task is in its state, in words."""
    key = parse_task(task_id)
    if key is None:
        raise no_task_id(task_id)
    return await explain.task(request.context, request.caller, key)


@get("/v1/tasks/{task_id:str}/result")
async def get_value(request: Request, task_id: FromPath[str]) -> Response[Any]:
    """The value that a task returned, as JSON; 404 until there is one."""
    key = parse_task(task_id)
    if key is None:
        raise no_task_id(task_id)
    return answer(await request.context.db.read(tasks.value, request.caller, key))


@get("/v1/find")
async def find(request: Request) -> Found:
    """What an id as typed means.  Query: `id`, like 12, 12.7, 12.3-9,11, a job's name or a task's own id."""
    query = read_query(FindQuery, request.scope["query_string"])
    if not query.id:
        raise Invalid("id: is empty", field="id")
    return await request.context.db.read(tasks.find, request.caller, query.id)


class FindQuery(msgspec.Struct, forbid_unknown_fields=True):
    id: str
