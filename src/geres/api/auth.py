"""Finds out who asks, from the bearer token, and how often they may.

A token that was good is remembered for a few seconds, so that the hot routes ask no store: a revoked one is
refused by the server that revoked it at once, by the others after REMEMBER_SECONDS.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable

import anyio
from msgspec.structs import replace

from geres.api.limits import Bucket, Buckets
from geres.errors import NotFound, RateLimited, Unauthenticated
from geres.model.callers import Caller
from geres.store import tokens
from geres.store.database import Database

log = logging.getLogger("geres.auth")

#: What another server revoked or disabled is refused here after so long.
REMEMBER_SECONDS = 5.0
_MOST_REMEMBERED = 10_000
_LONGEST_TOKEN = 8 << 10
#: Failures of one address that are answered at once, and how many more each second.
_FREE_FAILURES = 100
_FAILURES_A_SECOND = 5.0
#: Failures beyond that are answered so much later; while this many wait, nobody unknown is looked up.
_SLOWED_SECONDS = 1.0
_MOST_SLOWED = 256
#: An allowance saves up so many seconds.
_BURST_SECONDS = 2.0


class _Known:
    __slots__ = ("bucket", "caller", "until")

    def __init__(self, caller: Caller, until: float, bucket: Bucket) -> None:
        self.caller, self.until, self.bucket = caller, until, bucket


class Auth:
    """Looks tokens up by their hash, and remembers whose they are for some seconds."""

    def __init__(
        self, db: Database, clock: Callable[[], int], *, requests_per_second: float, used: dict[int, int]
    ) -> None:
        """`used` is told when which token (by id) was used last.  A rate of 0 sets no limit."""
        self._db, self._clock, self._used = db, clock, used
        self._known: OrderedDict[tuple[bytes, str, bytes], _Known] = OrderedDict()
        rate = requests_per_second or 1e9
        self._rates = Buckets(rate, rate * _BURST_SECONDS)
        self._failures = Buckets(_FAILURES_A_SECOND, _FREE_FAILURES)
        self._slowed = 0

    async def caller(self, headers: dict[bytes, bytes], address: str) -> Caller:
        """Who sent these headers from this address.

        Raises Unauthenticated, RateLimited, or NotFound for another tenant than the caller's (admins may name
        one that is there).
        """
        authorization = headers.get(b"authorization", b"")
        tenant = headers.get(b"geres-tenant", b"")
        known, now = self._known.get((authorization, address, tenant)), time.monotonic()
        if known is None or known.until <= now:
            known = await self._look_up(authorization, address, tenant)
        if seconds := known.bucket.take(now):
            raise _too_often(seconds)
        return known.caller

    def forget(self) -> None:
        """Look everybody up again: a token was revoked, or a user changed."""
        self._known.clear()

    async def _look_up(self, authorization: bytes, address: str, tenant: bytes) -> _Known:
        if self._slowed >= _MOST_SLOWED:
            raise _too_often(_SLOWED_SECONDS)
        try:
            caller = await self._identify(authorization)
        except Unauthenticated as error:
            if authorization:
                await self._slow_down(address, error)
            raise
        caller = replace(caller, address=address)
        if tenant:
            caller = await self._in_tenant(caller, tenant.decode("latin-1"))
        known = _Known(caller, time.monotonic() + REMEMBER_SECONDS, self._rates.of(authorization))
        self._known[authorization, address, tenant] = known
        if len(self._known) > _MOST_REMEMBERED:
            self._known.popitem(last=False)
        if caller.token_id:
            self._used[caller.token_id] = self._clock()
        return known

    async def _identify(self, authorization: bytes) -> Caller:
        kind, _, token = authorization.decode("latin-1").partition(" ")
        token = token.strip()
        if kind.lower() != "bearer" or not token:
            raise Unauthenticated("a token is needed: send `Authorization: Bearer TOKEN`")
        if len(token) > _LONGEST_TOKEN:
            raise Unauthenticated("the token is too long to be one")
        return await self._db.glance(tokens.find_caller, tokens.token_hash(token), now_us=self._clock())

    async def _slow_down(self, address: str, error: Unauthenticated) -> None:
        """Answer an address that fails again and again later: trying tokens out must not be cheap."""
        if not self._failures.take(address):
            log.warning("refused %s: %s", address or "a caller", error, extra={"event": "unauthenticated"})
            return
        self._slowed += 1
        try:
            await anyio.sleep(_SLOWED_SECONDS)
        finally:
            self._slowed -= 1

    async def _in_tenant(self, caller: Caller, name: str) -> Caller:
        """The caller in a tenant that they name: an admin in any, others in their own."""
        if name == caller.tenant:
            return caller
        found = None
        if caller.role == "admin":
            found = await self._db.glance(tokens.tenant_id_of, name)
        if found is None:
            raise NotFound(f"there is no tenant {name!r}", tenant=name)
        return replace(caller, tenant_id=found, tenant=name, home=caller.tenant)


def _too_often(seconds: float) -> RateLimited:
    wait = max(0.05, round(seconds, 3))
    return RateLimited(f"too many requests: ask again in {wait:g} s", retry_after_seconds=wait)
