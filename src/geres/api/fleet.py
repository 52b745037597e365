"""The servers of the store, and what they read of each other."""

from __future__ import annotations

from typing import cast

import anyio.to_thread
from litestar import Response, get
from msgspec import Struct

from geres.api import peers
from geres.api.asgi import Scope
from geres.api.bodies import read_query
from geres.api.request import Request
from geres.blobs.folder import FolderBlobs
from geres.errors import Invalid
from geres.model.servers import Server
from geres.store import servers


@get("/v1/servers")
async def list_servers(request: Request) -> list[Server]:
    """The servers that are there, by id; `answers` is true for the one that was asked."""
    context = request.context
    return await context.db.read(
        servers.list_servers, request.caller, context.server_id, now_us=context.clock()
    )


class BlobQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """Query of GET /v1/peers/blobs."""

    key: str
    offset: int = 0
    most: int = 0


_MOST_BYTES = 1 << 20


@get(peers.BLOBS_PATH, include_in_schema=False, media_type="application/octet-stream")
async def read_blob(request: Request) -> Response[bytes]:
    """A piece of a blob that lies in this server's own folder, for another server."""
    peers.check(request.context, cast("Scope", request.scope))
    query = read_query(BlobQuery, request.scope["query_string"])
    if query.offset < 0 or not 0 <= query.most <= _MOST_BYTES:
        raise Invalid(f"most: {query.most} is not between 0 and {_MOST_BYTES}", field="most")
    own = FolderBlobs(request.context.blobs.folder)
    size = await anyio.to_thread.run_sync(own.size, query.key)
    piece = await anyio.to_thread.run_sync(own.read, query.key, query.offset, query.most)
    return Response(piece, media_type="application/octet-stream", headers={peers.SIZE_HEADER: str(size)})
