"""Notes who was refused for want of rights, in the log and in the audit log, at a bounded rate."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec

from geres.api.limits import Bucket
from geres.errors import Denied, GeresError, StoreUnavailable, Unauthenticated
from geres.model.callers import Caller
from geres.store import audit
from geres.store.database import Database, Order, Tx

log = logging.getLogger("geres.auth")

#: Entries a second, and at once; what is beyond is counted in the next entry.
_RATE, _BURST = 1.0, 100.0


class Refusals:
    """One for each server: whoever tries doors by the thousand fills neither the log nor the store."""

    def __init__(self, db: Database, clock: Callable[[], int]) -> None:
        self._db, self._clock = db, clock
        self._bucket = Bucket(_RATE, _BURST, time.monotonic())
        self._left_out = 0

    async def note(
        self, error: GeresError, caller: Caller | None, address: str, method: str, path: str
    ) -> None:
        """Note a 401 or 403; other errors are none of its business."""
        if not isinstance(error, Unauthenticated | Denied):
            return
        if self._bucket.take(time.monotonic()):
            self._left_out += 1
            return
        left_out, self._left_out = self._left_out, 0
        who = caller or (error.whose if isinstance(error, Unauthenticated) else None)
        log.warning(
            "refused %s from %s: %s %s: %s",
            who.subject if who else "a caller",
            address or "this machine",
            method,
            path,
            error,
            extra={"event": "refused", "code": error.code, "left_out": left_out},
        )
        try:
            await self._db.run_as(Order.LOOP, self._write, who, address, error, f"{method} {path}", left_out)
        except StoreUnavailable as outage:
            log.warning("the refusal could not be stored: %s", outage)

    def _write(
        self, tx: Tx, who: Caller | None, address: str, error: GeresError, target: str, left_out: int
    ) -> None:
        caller = msgspec.structs.replace(who or audit.NOBODY, address=address)
        facts: dict[str, Any] = {"why": str(error)}
        if left_out:
            facts["left_out"] = left_out
        audit.write(tx, caller, "request", target, now_us=self._clock(), result=error.code, **facts)
