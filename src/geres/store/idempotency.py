"""Doing a request once: the answer is kept under the caller's Idempotency-Key."""

from __future__ import annotations

from collections.abc import Callable

from geres.errors import KeyReused
from geres.model import demand as demands
from geres.model.callers import Caller
from geres.store.database import Tx


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
