"""Finds out who asks, from the bearer token, and how often they may.

A token that was good is remembered for a few seconds, so that the hot routes ask no store: a revoked one is
refused by the server that revoked it at once, by the others after REMEMBER_SECONDS.
"""

from __future__ import annotations

import pwd
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import anyio
import anyio.to_thread
from msgspec.structs import replace

from geres.api.limits import Bucket, Buckets
from geres.errors import NotFound, RateLimited, StoreUnavailable, Unauthenticated
from geres.model import task_tokens
from geres.model.callers import Caller, UserRole
from geres.model.identity import Identity, IdentityProvider
from geres.store import below, tokens
from geres.store.database import Database

#: What another server revoked or disabled is refused here after so long.
REMEMBER_SECONDS = 5.0
_REMEMBER_TASK_SECONDS = 1.0  #: after the end of its attempt
_MOST_REMEMBERED = 10_000
_LONGEST_TOKEN = 8 << 10
_ACCOUNT_SECONDS = 10.0
#: Failures of one address that are answered at once, and how many more each second.
_FREE_FAILURES = 100
_FAILURES_A_SECOND = 5.0
#: Failures beyond that are answered so much later; while this many wait, no token is looked up that comes
#: from such an address and was not good before.
_SLOWED_SECONDS = 1.0
_MOST_SLOWED = 256
#: Of one address without a token: at once, and how many more each second.
_FREE_OPEN = 5000
_OPEN_A_SECOND = 500.0
#: An allowance saves up so many seconds.
_BURST_SECONDS = 2.0


class _Oidc(Protocol):
    """See oidc.py."""

    async def identify(self, token: str) -> Identity: ...


class _Known:
    __slots__ = ("bucket", "caller", "until")

    def __init__(self, caller: Caller, until: float, bucket: Bucket) -> None:
        self.caller, self.until, self.bucket = caller, until, bucket


class Auth:
    """Looks tokens up by their hash, and remembers whose they are for some seconds."""

    def __init__(
        self,
        db: Database,
        clock: Callable[[], int],
        *,
        requests_per_second: float,
        used: dict[int, int],
        task_key: bytes,
        private: bool = False,
        provider: IdentityProvider | None = None,
    ) -> None:
        """`used` is told when which token (by id) was used last.  A rate of 0 sets no limit."""
        self._db, self._clock, self._used, self._task_key = db, clock, used, task_key
        self._private, self._provider = private, provider
        self._oidc: _Oidc | None = None
        self._known: OrderedDict[tuple[bytes, str, bytes], _Known] = OrderedDict()
        rate = requests_per_second or 1e9
        self._rates = Buckets(rate, rate * _BURST_SECONDS)
        self._failures = Buckets(_FAILURES_A_SECOND, _FREE_FAILURES)
        self._open = Buckets(_OPEN_A_SECOND, _FREE_OPEN)
        self._slowed, self._round = 0, 0

    async def caller(
        self, headers: dict[bytes, bytes], address: str, uid: int | None = None, *, anew: bool = False
    ) -> Caller:
        """Who sent these headers from this address; `uid` is their account where they are on a Unix socket.

        With `anew` nothing that is remembered counts.  Raises Unauthenticated, RateLimited, or NotFound for
        another tenant than the caller's (admins may name one that is there).
        """
        if uid is not None:
            address = f"uid:{uid}"
        token = self._token_of(headers.get(b"authorization", b""), address, uid)
        tenant = headers.get(b"geres-tenant", b"")
        known, now = self._known.get((token, address, tenant)), time.monotonic()
        if known is None or anew or known.until <= now:
            known = await self._look_up(token, address, tenant, uid)
        if seconds := known.bucket.take(now):
            raise _too_often(seconds)
        return known.caller

    def check_open(self, address: str) -> None:
        """Raise RateLimited where an address asks without a token too often."""
        if seconds := self._open.take(address):
            raise _too_often(seconds)

    def forget(self) -> None:
        """Look everybody up again: a token was revoked, or a user changed."""
        for known in self._known.values():
            known.until = 0.0
        self._round += 1

    def _token_of(self, authorization: bytes, address: str, uid: int | None) -> bytes:
        """The token, however it is written; empty for an account of this machine that sends none."""
        kind, _, token = authorization.partition(b" ")
        if authorization and kind.lower() == b"bearer" and (token := token.strip()):
            return token
        if authorization or uid is None:
            self.check_open(address)
            raise Unauthenticated("a token is needed: send `Authorization: Bearer TOKEN`")
        return b""

    async def _look_up(self, token: bytes, address: str, tenant: bytes, uid: int | None) -> _Known:
        key = (token, address, tenant)
        if self._slowed >= _MOST_SLOWED and key not in self._known and self._failures.is_empty(address):
            raise _too_often(_SLOWED_SECONDS)
        round = self._round
        try:
            if uid is not None and not token:
                caller = await self._of_account(uid)
            else:
                caller = await self._identify(token.decode("latin-1"))
        except Unauthenticated:
            self._known.pop(key, None)
            if token:
                await self._slow_down(address)
            raise
        private = self._private and caller.role in ("user", "viewer")
        caller = replace(caller, address=address, private=private)
        if tenant:
            caller = await self._in_tenant(caller, tenant.decode("latin-1"))
        bucket = self._rates.of(token or address)
        seconds = _REMEMBER_TASK_SECONDS if caller.task else REMEMBER_SECONDS
        known = _Known(caller, time.monotonic() + seconds, bucket)
        if round == self._round:  # else something changed while we looked
            self._known[key] = known
        if len(self._known) > _MOST_REMEMBERED:
            self._known.popitem(last=False)
        if caller.token_id:
            self._used[caller.token_id] = self._clock()
        return known

    async def _identify(self, token: str) -> Caller:
        if len(token) > _LONGEST_TOKEN:
            raise Unauthenticated("the token is too long to be one")
        if token.startswith(task_tokens.WORD):
            claim = task_tokens.check(self._task_key, token)
            if claim is None:
                raise Unauthenticated("the token of a task was made elsewhere, or is cut or spoilt")
            return await self._db.glance(below.find_caller, claim)
        if self._provider is not None and token.count(".") == 2:
            return await self._of_provider(self._provider, token)
        return await self._db.glance(tokens.find_caller, tokens.token_hash(token), now_us=self._clock())

    async def _of_provider(self, provider: IdentityProvider, token: str) -> Caller:
        if self._oidc is None:
            from geres.api.oidc import Oidc  # takes 0.2 s to import, and most servers have no provider

            self._oidc = Oidc(provider)
        identity = await self._oidc.identify(token)
        return await self._db.glance(tokens.find_identity, identity, default_role=provider.default_role)

    async def _of_account(self, uid: int) -> Caller:
        """The user with the name of an account of this machine; one that is new here becomes a user."""
        try:
            with anyio.fail_after(_ACCOUNT_SECONDS):
                name = await anyio.to_thread.run_sync(_name_of, uid, abandon_on_cancel=True)
        except TimeoutError:
            raise StoreUnavailable(f"this machine does not say in time who account {uid} is") from None
        if name is None:
            raise Unauthenticated(f"the account {uid} has no name on this machine, so it cannot be a user")
        role: UserRole = "admin" if uid == 0 else "user"
        return await self._db.run(tokens.find_account, name, role=role, now_us=self._clock())

    async def _slow_down(self, address: str) -> None:
        """Answer an address that fails again and again later: trying tokens out must not be cheap."""
        if not self._failures.take(address):
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


def _name_of(uid: int) -> str | None:
    """May hang, where accounts lie on a network."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _too_often(seconds: float) -> RateLimited:
    wait = max(0.05, round(seconds, 3))
    return RateLimited(f"too many requests: ask again in {wait:g} s", retry_after_seconds=wait)
