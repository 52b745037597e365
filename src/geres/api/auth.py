"""Finds out who asks, from the bearer token, and what each role may do."""

from __future__ import annotations

import time
from collections.abc import Callable

from geres.errors import Denied, Unauthenticated
from geres.model.callers import Caller
from geres.store import tokens
from geres.store.database import Database

#: A revoked token is refused after this long at the latest.
_REMEMBER_SECONDS = 10.0
_MOST_REMEMBERED = 10_000
_READERS = frozenset({"admin", "operator", "user", "viewer"})
_WRITERS = frozenset({"admin", "operator", "user"})


class Auth:
    """Looks tokens up by their hash, and remembers whose they are for some seconds."""

    def __init__(self, db: Database, clock: Callable[[], int]) -> None:
        self._db, self._clock = db, clock
        self._known: dict[bytes, tuple[Caller, float]] = {}

    def remembered(self, authorization: bytes | None) -> Caller | None:
        """The caller of an Authorization header that was seen a moment ago, without a look at the store."""
        found = self._known.get(authorization or b"")
        return found[0] if found and found[1] > time.monotonic() else None

    async def caller(self, authorization: bytes | None) -> Caller:
        """The caller of an Authorization header.  Raises Unauthenticated."""
        if caller := self.remembered(authorization):
            return caller
        kind, _, token = (authorization or b"").decode("latin-1").partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise Unauthenticated("a token is needed: send `Authorization: Bearer TOKEN`")
        digest = tokens.token_hash(token.strip())
        caller = await self._db.glance(tokens.find_caller, digest, now_us=self._clock())
        if caller is None:
            raise Unauthenticated("the token is not known here; log in again with `geres login`")
        if len(self._known) >= _MOST_REMEMBERED:
            self._known.clear()
        self._known[authorization or b""] = (caller, time.monotonic() + _REMEMBER_SECONDS)
        return caller


def check_may(caller: Caller, method: str, path: str) -> None:
    """Raise Denied unless the caller's role may make this request."""
    if path.startswith("/v1/agents"):
        if caller.role not in ("node", "admin"):
            raise Denied("only a node's token may do this", role=caller.role)
        return
    if method in ("GET", "HEAD", "WEBSOCKET"):
        if caller.role not in _READERS:
            raise Denied(f"a token of role {caller.role} may not read this", role=caller.role)
    elif caller.role not in _WRITERS:
        raise Denied(f"a token of role {caller.role} may not change anything", role=caller.role)
