"""Doing a request once: the answer is kept under the caller's Idempotency-Key."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from geres.errors import Conflict, KeyReused
from geres.model import demand as demands
from geres.model.callers import Caller
from geres.model.joining import JoinToken
from geres.model.tenants import MadeToken
from geres.model.webhooks import MadeWebhook
from geres.store.database import Tx

Secret = TypeVar("Secret", MadeToken, JoinToken, MadeWebhook)


def once(
    tx: Tx,
    caller: Caller,
    key: str | None,
    body: bytes,
    *,
    now_us: int,
    do: Callable[[Tx], bytes],
) -> bytes:
    """Do it, unless the same caller has done it under the same Idempotency-Key: then give that answer again.

    `body` is the request, `do` returns the answer as JSON.  Raises KeyReused for another body under the key.
    """
    if key is None:
        return do(tx)
    who = {"tenant_id": caller.tenant_id, "subject": caller.subject, "key": key}
    digest = demands.digest(body)
    if not tx.run("start_idempotency", **who, body_hash=digest, now_us=now_us):
        row = tx.one("find_idempotency", **who)
        if row is None or row["body_hash"] != digest:
            raise KeyReused(
                f"the Idempotency-Key {key!r} was used for another request; make a new one", key=key
            )
        return str(row["answer"]).encode()
    answer = do(tx)
    tx.run("end_idempotency", **who, answer=answer.decode())
    return answer


def secret_once(
    tx: Tx, caller: Caller, key: str | None, body: bytes, *, now_us: int, make: Callable[[Tx], Secret]
) -> Secret:
    """Make a token or a webhook, unless the same caller has made it under the same key.

    An answer with a secret is not kept, so it cannot be given again.  Raises KeyReused, or Conflict with the
    id of what was made: a repeat leaves no second one that nobody knows of.
    """
    made: list[Secret] = []

    def do(tx: Tx) -> bytes:
        made.append(make(tx))
        return msgspec.json.encode(made[0].id)

    answer = once(tx, caller, key, body, now_us=now_us, do=do)
    if made:
        return made[0]
    made_id = msgspec.json.decode(answer, type=str)
    raise Conflict(
        f"this request has made {made_id} before, and its secret is told only once;"
        f" revoke or remove {made_id} and make another",
        id=made_id,
    )
