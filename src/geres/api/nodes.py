"""Nodes: list and show them; drain, take back, remove and reboot them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
from litestar import MediaType, get, post
from litestar.params import FromPath, JSONBody
from litestar.response import Stream
from msgspec import Struct

from geres.api.bodies import read_query
from geres.api.context import Context
from geres.api.peers import Streams
from geres.api.request import Request
from geres.errors import Conflict, Invalid
from geres.model.nodes import Node, NodeDetail, NodesActed, NodesLeave, NodesNamed
from geres.store import agent_actions, node_actions, node_list
from geres.store.node_actions import NodesDone

_LONGEST_SECONDS = 100 * 366 * 86400.0
_MOST_BYTES = 64 << 20
_SILENT_SECONDS = 30.0


@get("/v1/nodes")
async def list_nodes(request: Request) -> list[Node]:
    """All nodes, by name; those that were removed are left out."""
    return await request.context.db.read(node_list.list_nodes, request.caller)


@get("/v1/nodes/{name:str}")
async def get_node(request: Request, name: FromPath[str]) -> NodeDetail:
    """One node with its history and the tasks on it."""
    return await request.context.db.read(node_list.get, request.caller, name)


class NodeLogsQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """Query of GET /v1/nodes/{name}/logs."""

    since: float = 86400.0  #: seconds before now


@get("/v1/nodes/{name:str}/logs", media_type=MediaType.TEXT)
async def get_node_logs(request: Request, name: FromPath[str]) -> Stream:
    """What the node's agent and supervisor have logged in the last `since` seconds, as text.

    Errors: 404 for an unknown node, 409 where it is not connected, or its agent is too old.
    """
    context = request.context
    query = read_query(NodeLogsQuery, request.scope["query_string"])
    if not 0 <= query.since <= _LONGEST_SECONDS:
        raise Invalid("since: is not between 0 seconds and 100 years", field="since")
    node = await context.db.read(node_list.get, request.caller, name)
    since_us = max(0, context.clock() - int(query.since * 1e6))
    parts = _logs_of(context, request.app.state.streams, int(node.id), since_us)
    first = await anext(parts, None)
    if first is None:
        raise Conflict(
            f"the node {name} is not connected, or its agent is too old to send its logs: "
            f"see `geres node show {name}`"
        )
    return Stream(_with_first(first, parts), media_type="text/plain; charset=utf-8")


async def _logs_of(context: Context, streams: Streams, node_id: int, since_us: int) -> AsyncIterator[bytes]:
    async with streams.open(context, 0, node_id, f"since={since_us}", with_stdin=False) as agent:
        if agent is None:
            return
        sent = 0
        while sent < _MOST_BYTES:
            frame = None
            with anyio.move_on_after(_SILENT_SECONDS):
                frame = await agent.read()
            match frame:
                case ["o", bytes() as piece]:
                    sent += len(piece)
                    yield piece
                case _:
                    return


async def _with_first(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


@post("/v1/nodes:drain", status_code=200)
async def drain_nodes(request: Request, data: JSONBody[NodesNamed]) -> NodesActed:
    """Let nodes take no new tasks; what runs there goes on.  One bad name does not stop the others."""
    return await _act(request, node_actions.drain, data)


@post("/v1/nodes:undrain", status_code=200)
async def undrain_nodes(request: Request, data: JSONBody[NodesNamed]) -> NodesActed:
    """Let nodes take tasks again, also those that were removed."""
    return await _act(request, node_actions.undrain, data)


@post("/v1/nodes:remove", status_code=200)
async def remove_nodes(request: Request, data: JSONBody[NodesLeave]) -> NodesActed:
    """Drain nodes, and take them out of the cluster once no task is on them.

    `running` says what becomes of tasks that are there: `wait` lets them end, `requeue` stops them and queues
    them again, which is no retry, `terminate` cancels them.
    """
    return await _act(request, node_actions.leave, data, how="remove", running=data.running)


@post("/v1/nodes:reboot", status_code=200)
async def reboot_nodes(request: Request, data: JSONBody[NodesLeave]) -> NodesActed:
    """Drain nodes, run the hook `reboot` once no task is on them, and take them back when they have started
    again.  409 where there is no such hook (server.hooks)."""
    if "reboot" not in request.context.hooks:
        raise Conflict(
            'no command reboots nodes here: set `reboot` in server.hooks, like reboot = "ssh-reboot"'
        )
    return await _act(request, node_actions.leave, data, how="reboot", running=data.running)


@post("/v1/nodes:reload", status_code=200)
async def reload_agents(request: Request, data: JSONBody[NodesNamed]) -> NodesActed:
    """Have the agents of nodes read their settings again; tasks go on.

    What came of it stands in the node's history.  409 for a node that is not connected.
    """
    return await _act(request, agent_actions.ask, data, what="reload")


@post("/v1/nodes:restart", status_code=200)
async def restart_agents(request: Request, data: JSONBody[NodesNamed]) -> NodesActed:
    """Have the agents of nodes begin anew, as after an upgrade; tasks stay with the supervisor."""
    return await _act(request, agent_actions.ask, data, what="restart")


async def _act(request: Request, act: Any, data: NodesNamed, **how: Any) -> NodesActed:
    context = request.context
    done: NodesDone = await context.db.run(
        act,
        request.caller,
        data.names,
        why=data.reason,
        dry_run=data.dry_run,
        now_us=context.clock(),
        **how,
    )
    if done.node_ids:
        context.dispatcher.asked(done.node_ids)
        context.dispatcher.ring()
        context.attendant.ring()
    return NodesActed(done.items)


ROUTES: list[Any] = [
    list_nodes,
    get_node,
    get_node_logs,
    drain_nodes,
    undrain_nodes,
    remove_nodes,
    reboot_nodes,
    reload_agents,
    restart_agents,
]
BODIES = [NodesNamed, NodesLeave]
