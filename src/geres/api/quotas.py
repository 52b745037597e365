"""Quotas: what a tenant and its users may have at once, and what they have."""

from __future__ import annotations

from typing import Any

from litestar import get, put
from litestar.params import JSONBody
from msgspec import Struct

from geres.api.bodies import read_query
from geres.api.request import Request
from geres.model.quotas import Quota, QuotaQuery, SetQuota
from geres.store import quotas


@get("/v1/quotas")
async def list_quotas(request: Request) -> list[Quota]:
    """The quota of the tenant, that of each user (`*`), and users with what they use.

    For a user, the own one.  Query: `user` (only of this one).
    """
    query = read_query(QuotaQuery, request.scope["query_string"])
    return await request.context.db.read(quotas.list_quotas, request.caller, query.user)


@put("/v1/quotas")
async def set_quota(request: Request, data: JSONBody[SetQuota]) -> list[Quota]:
    """Set limits, or with null take them away.  What is there already stays; then nothing more comes.

    Errors: 422 invalid, 403 denied, 404 not_found for a user who is not there, where users are made by hand.
    """
    context = request.context
    found = await context.db.run(
        quotas.set_quota, request.caller, data, now_us=context.clock(), users_come=context.users_come
    )
    context.dispatcher.ring()
    return found


ROUTES: list[Any] = [list_quotas, set_quota]
QUERIES: dict[tuple[str, str], type[Struct]] = {("get", "/v1/quotas"): QuotaQuery}
BODIES: list[type[Struct]] = [SetQuota]
