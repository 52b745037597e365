"""Tenants, users, tokens and the audit log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from litestar import Response, get, patch, post
from litestar.params import FromPath, JSONBody
from msgspec import Struct

from geres.api.bodies import read_query
from geres.api.request import Request
from geres.api.submitting import check_key
from geres.model.tenants import (
    AuditPage,
    AuditQuery,
    CreateTenant,
    CreateToken,
    CreateUser,
    EditUser,
    MadeToken,
    RotateToken,
    Tenant,
    Token,
    TokenQuery,
    User,
)
from geres.store import audit, idempotency, tenants, tokens
from geres.store.database import Tx


@get("/v1/tenants")
async def list_tenants(request: Request) -> list[Tenant]:
    """All tenants for an admin, else the caller's own; by name."""
    return await request.context.db.read(tenants.list_tenants, request.caller)


@post("/v1/tenants", status_code=201)
async def create_tenant(request: Request, data: JSONBody[CreateTenant]) -> Tenant:
    """Make a tenant, with a pool `default`.  Errors: 409 name_taken."""
    context = request.context
    return await context.db.run(tenants.create_tenant, request.caller, data.name, now_us=context.clock())


@get("/v1/tenants/{name:str}")
async def get_tenant(request: Request, name: FromPath[str]) -> Tenant:
    """One tenant."""
    return await request.context.db.read(tenants.get_tenant, request.caller, name)


@post("/v1/tenants/{name:str}/disable", status_code=200)
async def disable_tenant(request: Request, name: FromPath[str]) -> Tenant:
    """Refuse its tokens.  What runs goes on; nothing is removed.  Errors: 409 for the caller's own."""
    return await _set_disabled(request, name, True)


@post("/v1/tenants/{name:str}/enable", status_code=200)
async def enable_tenant(request: Request, name: FromPath[str]) -> Tenant:
    """Take its tokens again."""
    return await _set_disabled(request, name, False)


async def _set_disabled(request: Request, name: str, disabled: bool) -> Tenant:
    context = request.context
    tenant = await context.db.run(
        tenants.disable_tenant, request.caller, name, disabled, now_us=context.clock()
    )
    context.forget_callers()
    return tenant


@get("/v1/users")
async def list_users(request: Request) -> list[User]:
    """The users of the tenant, by name."""
    context = request.context
    return await context.db.read(tenants.list_users, request.caller, now_us=context.clock())


@post("/v1/users", status_code=201)
async def create_user(request: Request, data: JSONBody[CreateUser]) -> User:
    """Make a user; `POST /v1/tokens` makes the user's tokens.  Errors: 409 name_taken, 403 denied."""
    context = request.context
    return await context.db.run(tenants.create_user, request.caller, data, now_us=context.clock())


@patch("/v1/users/{name:str}")
async def edit_user(request: Request, name: FromPath[str], data: JSONBody[EditUser]) -> User:
    """Give a user another role, disable or enable one.  It holds for the tokens that there are, too."""
    context = request.context
    user = await context.db.run(tenants.edit_user, request.caller, name, data, now_us=context.clock())
    context.forget_callers()
    return user


@get("/v1/tokens")
async def list_tokens(request: Request) -> list[Token]:
    """The caller's tokens, for an operator those of the tenant; without their secrets.

    Query: `user`, `all` (true: those that are no good any more too).
    """
    query = read_query(TokenQuery, request.scope["query_string"])
    context = request.context
    return await context.db.read(tokens.list_tokens, request.caller, query, now_us=context.clock())


@post("/v1/tokens", status_code=201)
async def create_token(request: Request, data: JSONBody[CreateToken]) -> Response[MadeToken]:
    """Make a token.  Its secret is in this answer and nowhere else.

    Asking again makes another, but under the same Idempotency-Key: 409 conflict with the `id` of the one that
    was made, whose secret is not kept.
    """
    now_us = request.context.clock()
    return await _make(request, lambda tx: tokens.create(tx, request.caller, data, now_us=now_us))


@post("/v1/tokens/{token:str}/rotate", status_code=201)
async def rotate_token(
    request: Request, token: FromPath[str], data: JSONBody[RotateToken]
) -> Response[MadeToken]:
    """Make a token in place of this one, which is good for `overlap_seconds` more; again as for new ones."""
    now_us = request.context.clock()
    made = await _make(request, lambda tx: tokens.rotate(tx, request.caller, token, data, now_us=now_us))
    request.context.forget_callers()
    return made


@post("/v1/tokens/{token:str}/revoke", status_code=200)
async def revoke_token(request: Request, token: FromPath[str]) -> Token:
    """Refuse a token (by id, by its first characters or by name) from now on; again is harmless."""
    context = request.context
    revoked = await context.db.run(tokens.revoke, request.caller, token, now_us=context.clock())
    context.forget_callers()
    return revoked


async def _make(request: Request, make: Callable[[Tx], MadeToken]) -> Response[MadeToken]:
    key, body = check_key(request.idempotency_key or ""), await request.body()
    made = await request.context.db.run(
        idempotency.secret_once,
        request.caller,
        key,
        request.url.path.encode() + body,
        now_us=request.context.clock(),
        make=make,
    )
    return Response(made, status_code=201, headers={"cache-control": "no-store"})


@get("/v1/audit")
async def list_audit(request: Request) -> AuditPage:
    """What was done and refused, newest first.

    Query: `user`, `action` (like `job.cancel`; `job.` for all of jobs), `result`, `since`, `until`, `limit`,
    `cursor`.
    """
    query = read_query(AuditQuery, request.scope["query_string"])
    return await request.context.db.read(audit.list_audit, request.caller, query)


ROUTES: list[Any] = [
    list_tenants,
    create_tenant,
    get_tenant,
    disable_tenant,
    enable_tenant,
    list_users,
    create_user,
    edit_user,
    list_tokens,
    create_token,
    rotate_token,
    revoke_token,
    list_audit,
]
#: Queries and bodies, for the document.
QUERIES: dict[tuple[str, str], type[Struct]] = {
    ("get", "/v1/tokens"): TokenQuery,
    ("get", "/v1/audit"): AuditQuery,
}
BODIES: list[type[Struct]] = [CreateTenant, CreateUser, EditUser, CreateToken, RotateToken]
