"""The servers of the store."""

from __future__ import annotations

from litestar import get

from geres.api.request import Request
from geres.model.servers import Server
from geres.store import servers


@get("/v1/servers")
async def list_servers(request: Request) -> list[Server]:
    """The servers that are there, by id; `answers` is true for the one that was asked."""
    context = request.context
    return await context.db.read(servers.list_servers, context.server_id, now_us=context.clock())
