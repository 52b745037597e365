"""Nodes: list and show them; drain, take back, remove and reboot them."""

from __future__ import annotations

from typing import Any

from litestar import get, post
from litestar.params import FromPath, JSONBody

from geres.api.request import Request
from geres.errors import Conflict
from geres.model.nodes import Node, NodeDetail, NodesActed, NodesLeave, NodesNamed
from geres.store import node_actions, node_list
from geres.store.node_actions import NodesDone


@get("/v1/nodes")
async def list_nodes(request: Request) -> list[Node]:
    """All nodes, by name; those that were removed are left out."""
    return await request.context.db.read(node_list.list_nodes, request.caller)


@get("/v1/nodes/{name:str}")
async def get_node(request: Request, name: FromPath[str]) -> NodeDetail:
    """One node with its history and the tasks on it."""
    return await request.context.db.read(node_list.get, request.caller, name)


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


ROUTES: list[Any] = [list_nodes, get_node, drain_nodes, undrain_nodes, remove_nodes, reboot_nodes]
BODIES = [NodesNamed, NodesLeave]
