"""Join tokens, and the agents that come with one."""

from __future__ import annotations

import logging
import secrets
from typing import Any

from litestar import get, post
from litestar.params import FromPath, JSONBody

from geres.api.limits import Buckets
from geres.api.request import Request
from geres.api.submitting import check_key
from geres.errors import Conflict, RateLimited
from geres.model.joining import TOKEN_PREFIX, CreateJoinToken, Invitation, Join, Joined, JoinToken, Renew
from geres.store import idempotency, joining
from geres.store.database import Tx

log = logging.getLogger("geres.joining")

#: Of one address, without a token that would say who asks: so many each second, and so many at once.
_asking = Buckets(20.0, 200.0)


@get("/v1/join-tokens")
async def list_join_tokens(request: Request) -> list[JoinToken]:
    """The join tokens of the tenant, the newest first; those that are no good any more too."""
    context = request.context
    return await context.db.read(joining.list_tokens, request.caller, now_us=context.clock())


@post("/v1/join-tokens", status_code=201)
async def create_join_token(request: Request, data: JSONBody[CreateJoinToken]) -> JoinToken:
    """Let machines join as nodes of the caller's tenant.

    `join` in the answer is what `geres agent --join` takes; it is told this once.  Asking again under
    the same Idempotency-Key: 409 conflict with the `id` of the one that was made.
    """
    context, token = request.context, TOKEN_PREFIX + secrets.token_urlsafe(24)
    key, body, now_us = check_key(request.idempotency_key or ""), await request.body(), context.clock()

    def make(tx: Tx) -> JoinToken:
        return joining.create(tx, request.caller, data, token, now_us=now_us)

    made = await context.db.run(
        idempotency.secret_once, request.caller, key, b"join-token" + body, now_us=now_us, make=make
    )
    made.join = str(Invitation(context.url, token, context.fingerprint))
    return made


@post("/v1/join-tokens/{token:str}/revoke", status_code=200)
async def revoke_join_token(request: Request, token: FromPath[str]) -> JoinToken:
    """Let nobody join with it any more; nodes that have joined stay."""
    context = request.context
    return await context.db.run(joining.revoke, request.caller, token, now_us=context.clock())


@post("/v1/agents/join", status_code=200, include_in_schema=False)
async def join(request: Request, data: JSONBody[Join]) -> Joined:
    """Make this machine a node.  Asking again with the same credential is harmless.

    Errors: 401 for a join token that is not good, 409 name_taken.
    """
    context = request.context
    address = request.client.host if request.client else ""
    if seconds := _asking.take(address):
        raise RateLimited(f"too many machines join from {address}", retry_after_seconds=seconds)
    try:
        joined = await context.db.run(joining.join, data, address=address, now_us=context.clock())
    except Conflict as error:  # other refusals are logged where all are
        log.warning(
            "%s at %s may not join: %s", data.node[:80], address, error, extra={"event": "join_refused"}
        )
        raise
    log.info("%s at %s has joined", joined.node, address, extra={"event": "joined"})
    return joined


@post("/v1/agents/credential", status_code=200, include_in_schema=False)
async def renew_credential(request: Request, data: JSONBody[Renew]) -> Joined:
    """Put another credential in the place of the one of this request, which is no good from then on."""
    context, caller = request.context, request.caller
    await context.db.run(joining.renew, caller, data.credential, now_us=context.clock())
    context.forget_callers()
    return Joined(node=caller.node, tenant=caller.tenant, pool=caller.pool or None)


ROUTES: list[Any] = [list_join_tokens, create_join_token, revoke_join_token, join, renew_credential]
