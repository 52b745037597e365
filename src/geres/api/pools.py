"""Pools: list, show and edit them."""

from __future__ import annotations

from typing import Any

from litestar import Response, get, patch
from litestar.params import FromPath, JSONBody
from msgspec import UNSET

from geres.api.request import Request, answer_struct
from geres.errors import Denied
from geres.model.pools import Pool, PoolPatch
from geres.store import pools


@get("/v1/pools")
async def list_pools(request: Request) -> list[Pool]:
    """All pools of the tenant, by name."""
    return await request.context.db.read(pools.list_pools, request.caller)


@get("/v1/pools/{name:str}")
async def get_pool(request: Request, name: FromPath[str]) -> Response[Pool]:
    """One pool.  The ETag is its version, which edits change."""
    pool = await request.context.db.read(pools.get, request.caller, name)
    return answer_struct(pool, headers={"etag": f'"{pool.version}"'})


@patch("/v1/pools/{name:str}")
async def patch_pool(request: Request, name: FromPath[str], data: JSONBody[PoolPatch]) -> Response[Pool]:
    """Edit a pool, and with `create` make it where it is not there.

    A node is told of its start task when it connects, so at its agent's next start at the latest.
    Errors: 412 changed where If-Match names another version, 404 for a pool that is not there.
    """
    context = request.context
    if context.private and request.caller.role != "admin" and data.start_task is not UNSET:
        raise Denied("a start task runs as root here: only root sets the one of a machine that users share")
    pool = await context.db.run(
        pools.patch, request.caller, name, data, version=request.if_match, now_us=context.clock()
    )
    return answer_struct(pool, headers={"etag": f'"{pool.version}"'})


ROUTES: list[Any] = [list_pools, get_pool, patch_pool]
BODIES = [PoolPatch]
