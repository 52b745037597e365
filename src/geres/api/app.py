"""The application: one table of routes, errors turned into answers once, the OpenAPI document."""

from __future__ import annotations

import logging
from typing import Any, cast

from litestar import Litestar, Response, get
from litestar import Request as AnyRequest
from litestar.datastructures import State
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from msgspec import Struct

from geres.api import (
    acting,
    fleet,
    inside,
    jobs,
    joining,
    nodes,
    outputs,
    pools,
    quotas,
    system,
    tasks,
    tenants,
    webhooks,
)
from geres.api.agents import serve_agent
from geres.api.asgi import App, Receive, Scope, Send
from geres.api.attach import route as attach_route
from geres.api.bodies import encode, error_body
from geres.api.context import Context
from geres.api.front import ClientGone, Front, Hot, WebSocketRoute
from geres.api.openapi import HotRoute, complete
from geres.api.peers import PATH as PEER_PATH
from geres.api.peers import Streams
from geres.api.request import Request, answer
from geres.api.streams import PATH as STREAM_PATH
from geres.api.streams import Rendezvous, accept
from geres.api.submitting import SubmitQuery, submit_bulk, submit_task
from geres.api.waiting import ResultsQuery, TaskWaitQuery, get_results, get_task
from geres.errors import GeresError, Invalid, NotFound, NotUnderstood
from geres.model.callers import Caller
from geres.model.jobs import JobAction, JobPatch, JobSpec
from geres.model.joining import CreateJoinToken
from geres.model.tasks import (
    BulkAnswer,
    CancelTasks,
    EditTasks,
    Results,
    SelectTasks,
    SubmitBulk,
    SubmitTask,
    Submitted,
    TaskDetail,
)
from geres.store.jobs import JobDetailQuery, JobQuery
from geres.store.task_list import TaskQuery

log = logging.getLogger("geres.api")

_KEY_HEADER = ("Idempotency-Key",)
#: What front.py answers; the document says the same of them.
HOT = [
    HotRoute("post", "/v1/tasks", submit_task, SubmitQuery, SubmitTask, {201: Submitted}, _KEY_HEADER),
    HotRoute("post", "/v1/tasks:bulk", submit_bulk, None, SubmitBulk, {201: BulkAnswer}, _KEY_HEADER),
    HotRoute("get", "/v1/tasks/{task_id}", get_task, TaskWaitQuery, None, {200: TaskDetail}),
    HotRoute("get", "/v1/jobs/{job_ref}/results", get_results, ResultsQuery, None, {200: Results}),
]
_EXACT: dict[tuple[str, str], Hot] = {
    ("POST", "/v1/tasks"): submit_task,
    ("POST", "/v1/tasks:bulk"): submit_bulk,
}
_BY_KEY: dict[tuple[str, str, str], Hot] = {
    ("GET", "/v1/tasks/", ""): get_task,
    ("GET", "/v1/jobs/", "/results"): get_results,
}
ROUTES: list[Any] = [
    *system.ROUTES,
    *inside.ROUTES,
    fleet.list_servers,
    fleet.read_blob,
    *jobs.ROUTES,
    *nodes.ROUTES,
    *pools.ROUTES,
    *tenants.ROUTES,
    *quotas.ROUTES,
    *webhooks.ROUTES,
    *joining.ROUTES,
    tasks.list_tasks,
    tasks.list_history,
    tasks.why_task,
    tasks.get_value,
    tasks.find,
    outputs.get_logs,
    outputs.put_output,
    acting.cancel_tasks,
    acting.hold_tasks,
    acting.release_tasks,
    acting.edit_tasks,
    acting.rerun_tasks,
]
#: Queries by method and path; the routes read them themselves, so that unknown parameters are refused.
_QUERIES: dict[tuple[str, str], type[Struct]] = {
    ("get", "/v1/tasks"): TaskQuery,
    ("get", "/v1/history"): TaskQuery,
    ("get", "/v1/jobs"): JobQuery,
    ("get", "/v1/jobs/{job_ref}"): JobDetailQuery,
    ("get", "/v1/find"): tasks.FindQuery,
    ("get", "/v1/nodes/{name}/logs"): nodes.NodeLogsQuery,
    **tenants.QUERIES,
    **quotas.QUERIES,
    ("get", "/v1/tasks/{task_id}/logs"): outputs.LogsQuery,
    **{(route.method, route.path): route.query for route in HOT if route.query is not None},
}
_BODIES: list[type[Struct]] = [
    CreateJoinToken,
    *nodes.BODIES,
    *pools.BODIES,
    JobSpec,
    JobPatch,
    JobAction,
    CancelTasks,
    EditTasks,
    SelectTasks,
    SubmitBulk,
    SubmitTask,
    *tenants.BODIES,
    *quotas.BODIES,
    *webhooks.BODIES,
]


def create_app(context: Context) -> App:
    """The ASGI application on this context."""
    streams = Streams(Rendezvous())
    inner = Litestar(
        [*ROUTES, _openapi],
        request_class=Request,
        state=State({"context": context, "streams": streams, "document": None}),
        exception_handlers={
            GeresError: _refuse,
            ClientGone: _leave,
            HTTPException: _refuse_http,
            Exception: _fail,
        },
        openapi_config=OpenAPIConfig(
            title="geres",
            version=context.version,
            use_handler_docstrings=True,
            path="/openapi",
            render_plugins=[JsonRenderPlugin(path="/plain")],
        ),
        logging_config=None,
        middleware=[],
        request_max_body_size=None,  # Front bounds bodies, and the blobs count what streams to them
    )
    sockets = _Sockets(streams)
    return Front(context, cast("App", inner), exact=_EXACT, by_key=_BY_KEY, sockets=sockets.get)


class _Sockets:
    """WebSocket routes by path."""

    def __init__(self, streams: Streams) -> None:
        self._streams, self._attach = streams, attach_route(streams)

    def get(self, path: str) -> WebSocketRoute | None:
        if path == "/v1/agents":
            return _agents
        if path.startswith(STREAM_PATH):
            return self._streams.serve_agent
        if path.startswith(PEER_PATH):
            return self._peer
        if path.startswith("/v1/tasks/") and path.endswith("/attach"):
            return self._attach
        return None

    async def _peer(
        self, context: Context, caller: Caller, scope: Scope, receive: Receive, send: Send
    ) -> None:
        await self._streams.serve_peer(context, scope, receive, send)


async def _agents(context: Context, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
    if await accept(receive, send):
        await serve_agent(context.dispatcher, caller, receive, send)


@get("/openapi.json", include_in_schema=False)
async def _openapi(request: Request) -> Response[Any]:
    state = request.app.state
    if state.document is None:
        document = complete(request.app.openapi_schema.to_schema(), _QUERIES, HOT, _BODIES)
        state.document = encode(document)
    return answer(state.document)


def _refuse(request: AnyRequest[Any, Any, Any], error: GeresError) -> Response[Any]:
    """A deliberate error as its status and JSON."""
    request.scope["state"]["refused"] = error
    headers = {"retry-after": "1"} if error.http_status == 503 else None
    return answer(error_body(error), error.http_status, headers)


def _refuse_http(request: AnyRequest[Any, Any, Any], error: HTTPException) -> Response[Any]:
    """The framework's own refusals, in our form."""
    path = request.scope["path"]
    if error.status_code == 404:
        refusal: GeresError = NotFound(f"there is nothing at {path}; /openapi.json lists what is")
    elif error.status_code == 405:
        refusal = Invalid(f"{request.method} does not go with {path}; /openapi.json lists what does")
    elif isinstance(error, ValidationException):  # all else that is read is text, or read by us
        refusal = NotUnderstood("the request has no body; send a JSON object")
    elif error.status_code < 500:
        refusal = Invalid(error.detail)
    else:
        return _fail(request, error)
    return answer(error_body(refusal), error.status_code)


def _leave(request: AnyRequest[Any, Any, Any], error: ClientGone) -> Response[Any]:
    """The caller went away while it was sending: no fault of ours, and nobody reads the answer."""
    return Response(None, status_code=400)


def _fail(request: AnyRequest[Any, Any, Any], error: Exception) -> Response[Any]:
    """A fault of ours: the traceback goes to the log, the caller is told where it is."""
    path = request.scope["path"]
    log.error("request failed", exc_info=error, extra={"event": "request_failed", "path": path})
    refusal = GeresError("geres itself failed; the server's log has the traceback")
    refusal.code = "internal"
    return answer(error_body(refusal), 500)
