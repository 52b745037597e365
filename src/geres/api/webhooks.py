"""Webhooks: addresses that are told when tasks and jobs end."""

from __future__ import annotations

from typing import Any

from litestar import Response, delete, get, post
from litestar.params import FromPath, JSONBody
from msgspec import Struct

from geres.api.bodies import encode
from geres.api.request import Request
from geres.api.submitting import check_key
from geres.model.units import rfc3339
from geres.model.webhooks import CreateWebhook, MadeWebhook, TestMessage, Webhook, WebhookTested
from geres.store import idempotency, webhooks


@get("/v1/webhooks")
async def list_webhooks(request: Request) -> list[Webhook]:
    """The webhooks of the tenant, without their secrets, in the order in which they were made."""
    return await request.context.db.read(webhooks.list_webhooks, request.caller)


@get("/v1/webhooks/{webhook_id:str}")
async def get_webhook(request: Request, webhook_id: FromPath[str]) -> Webhook:
    """One webhook: what it is told, what waits, and how the last tries went."""
    return await request.context.db.read(webhooks.get, request.caller, webhook_id)


@post("/v1/webhooks", status_code=201)
async def create_webhook(request: Request, data: JSONBody[CreateWebhook]) -> Response[MadeWebhook]:
    """Tell an address of ends from now on.  The secret that signs the messages is in this answer and nowhere
    else.

    Asking again makes another, but under the same Idempotency-Key: 409 conflict with the `id` of the one that
    was made, whose secret is not told again.
    """
    context, key = request.context, check_key(request.idempotency_key or "")
    made = await context.db.run(
        idempotency.secret_once,
        request.caller,
        key,
        request.url.path.encode() + await request.body(),
        now_us=context.clock(),
        make=lambda tx: webhooks.create(tx, request.caller, data, now_us=context.clock()),
    )
    return Response(made, status_code=201, headers={"cache-control": "no-store"})


@post("/v1/webhooks/{webhook_id:str}/test", status_code=200)
async def test_webhook(request: Request, webhook_id: FromPath[str]) -> WebhookTested:
    """Send a message `webhook.test` now; tell how it was taken: the answer's status, nothing of its body."""
    context, now_us = request.context, request.context.clock()
    webhook, secret = await context.db.run(webhooks.to_test, request.caller, webhook_id, now_us=now_us)
    message = TestMessage(id=f"{now_us:x}-test", at=rfc3339(now_us) or "", tenant=webhook.tenant)
    poster = await context.poster()
    return await poster.post(webhook.url, secret, message.id, encode(message))


@delete("/v1/webhooks/{webhook_id:str}", status_code=200)
async def remove_webhook(request: Request, webhook_id: FromPath[str]) -> Webhook:
    """Send nothing more to it; what waits is dropped.  Returns it as it was."""
    context = request.context
    return await context.db.run(webhooks.remove, request.caller, webhook_id, now_us=context.clock())


ROUTES: list[Any] = [list_webhooks, get_webhook, create_webhook, test_webhook, remove_webhook]
BODIES: list[type[Struct]] = [CreateWebhook]
