"""The outermost layer: says who asks, bounds bodies, answers the hottest routes itself, passes on the rest.

The routes in HOT are asked so often, or with bodies so large, that a framework's share of their time would
show.  They are plain functions of a Call; the OpenAPI document describes them all the same (see app.py).
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio

from geres.api import access
from geres.api.asgi import GONE, App, Message, Receive, Scope, Send, closing, respond
from geres.api.auth import Auth
from geres.api.bodies import error_body
from geres.api.context import Context
from geres.api.refusals import Refusals
from geres.errors import (
    Denied,
    GeresError,
    Invalid,
    NotFound,
    RateLimited,
    StoreUnavailable,
    Unauthenticated,
)
from geres.model.callers import Caller

log = logging.getLogger("geres.api")

_MOST_BODY_BYTES = 16 << 20
_MOST_BULK_BYTES = 256 << 20
MOST_OUTPUT_BYTES = 16 << 30
_MOST_OPEN_BYTES = 1 << 16  #: where no token is asked for
#: An open WebSocket whose token is no good any more ends within about so long.
_LOOK_AGAIN_SECONDS = 60.0
_PEERS = "/v1/peers/"  #: other servers sign what they ask
_OUTPUTS = "/v1/agents/outputs/"
_LARGE = frozenset({"/v1/tasks:bulk", "/v1/jobs"})
#: Changing these gives rights that last, or sends and runs what nobody looks at: nobody does so with a token
#: that was revoked a moment ago elsewhere.
_RIGHTS = tuple(f"/v1/{noun}" for noun in ("tokens", "users", "tenants", "join-tokens", "webhooks", "pools"))


@dataclass(slots=True)
class Call:
    """One request of a hot route.  `key` is the part of the path that varies."""

    context: Context
    caller: Caller
    key: str
    query: bytes
    body: bytes
    headers: dict[bytes, bytes]


#: A hot route answers with a status and JSON.
Hot = Callable[[Call], Awaitable[tuple[int, bytes]]]
WebSocketRoute = Callable[[Context, Caller, Scope, Receive, Send], Awaitable[None]]


#: Who asks where no token is asked for.
_NOBODY = Caller(0, "", "", "viewer")


class ClientGone(Exception):
    """The client hung up before its body was there."""


class Front:
    """The ASGI application."""

    def __init__(
        self,
        context: Context,
        inner: App,
        *,
        exact: dict[tuple[str, str], Hot],
        by_key: dict[tuple[str, str, str], Hot],
        sockets: Callable[[str], WebSocketRoute | None],
    ) -> None:
        """`exact` is by method and path, `by_key` by method and what stands before and after a key."""
        self._context, self._inner = context, inner
        self._auth = Auth(
            context.db,
            context.clock,
            requests_per_second=context.requests_per_second,
            used=context.used_tokens,
            task_key=context.task_key,
            provider=context.provider,
            private=context.private,
        )
        self._refusals = Refusals(context.db, context.clock)
        context.forget_callers = self._auth.forget
        self._exact, self._sockets = exact, sockets
        self._by_key = [(method, before, after, hot) for (method, before, after), hot in by_key.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._inner(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._answer(scope, receive, watched)
        except ClientGone:
            return
        except GeresError as error:
            if started:
                raise
            await self._note(error, scope)
            await respond(send, error.http_status, error_body(error), refusal_headers(error))
        except Exception:
            log.exception("request failed", extra={"event": "request_failed", "path": scope["path"]})
            if started:
                raise
            fault = GeresError("geres itself failed; the server's log has the traceback")
            fault.code = "internal"
            await respond(send, 500, error_body(fault))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        roles = access.roles_for(method, path)
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if roles is access.NOBODY:
            if not path.startswith(_PEERS):
                self._auth.check_open(_address(scope))
            await self._inner(scope, _bounded(receive, headers, _MOST_OPEN_BYTES), send)
            await self._note_refused(scope)
            return
        if "\0" in path:
            raise NotFound(f"there is nothing at {path!r}: a path holds no NUL character")
        if self._context.stopping and method != "GET":
            raise StoreUnavailable("this server is stopping; ask again in a moment")
        anew = method != "GET" and path.startswith(_RIGHTS)
        caller = scope["state"]["caller"] = await self._who(scope, headers, anew=anew)
        access.check(caller, roles, method, path)
        found = self._hot(method, path)
        if found is None:
            await self._inner(scope, _bounded(receive, headers, _most_bytes(path)), send)
            await self._note_refused(scope)
            return
        hot, key = found
        content = b""
        if method != "GET":
            content = await _whole_body(_bounded(receive, headers, _most_bytes(path)))
        status, answer = await hot(Call(self._context, caller, key, scope["query_string"], content, headers))
        await respond(send, status, answer)

    async def _note_refused(self, scope: Scope) -> None:
        """Note what a route itself has refused."""
        if (refused := scope["state"].get("refused")) is not None:
            await self._note(refused, scope)

    async def _note(self, error: GeresError, scope: Scope) -> None:
        method = scope.get("method", "WEBSOCKET")
        caller = scope.get("state", {}).get("caller")
        await self._refusals.note(error, caller, _address(scope), method, scope["path"])

    async def _who(self, scope: Scope, headers: dict[bytes, bytes], *, anew: bool = False) -> Caller:
        return await self._auth.caller(headers, _address(scope), scope["state"].get("uid"), anew=anew)

    def _hot(self, method: str, path: str) -> tuple[Hot, str] | None:
        if hot := self._exact.get((method, path)):
            return hot, ""
        for wanted, before, after, hot in self._by_key:
            if method == wanted and path.startswith(before) and path.endswith(after):
                key = path[len(before) : len(path) - len(after)]
                if key and "/" not in key:
                    return hot, key
        return None

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refusals come before the handshake is accepted, so the client sees the status and the reason."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        scope.setdefault("state", {})
        try:
            route = self._sockets(scope["path"])
            if route is None:
                raise Invalid(f"there is no WebSocket at {scope['path']}")
            roles = access.roles_for("WEBSOCKET", scope["path"])
            caller = _NOBODY
            if roles is not access.NOBODY:
                caller = scope["state"]["caller"] = await self._who(scope, headers)
                access.check(caller, roles, "WEBSOCKET", scope["path"])
                route = self._watched(route, headers)
            await route(self._context, caller, scope, receive, send)
        except GeresError as error:
            await self._note(error, scope)
            await refuse_socket(scope, receive, send, error)

    def _watched(self, route: WebSocketRoute, headers: dict[bytes, bytes]) -> WebSocketRoute:
        """The route, which ends when the token with which it began is good no more, or for something else."""

        async def watched(
            context: Context, caller: Caller, scope: Scope, receive: Receive, send: Send
        ) -> None:
            refused: list[GeresError] = []
            over: list[GeresError] = []
            async with anyio.create_task_group() as group:

                async def watch() -> None:
                    while not over:  # not all of those who connected at once look at once
                        await anyio.sleep(_LOOK_AGAIN_SECONDS * random.uniform(0.5, 1.5))
                        try:
                            now = await self._who(scope, headers)
                            if now.role != caller.role:
                                raise Denied("the role of your token is another one by now: connect again")
                        except (Unauthenticated, Denied) as error:
                            over.append(error)
                        except GeresError:
                            continue  # an outage is no reason
                    group.cancel_scope.cancel()

                group.start_soon(watch)
                try:
                    await route(context, caller, scope, receive, send)
                except GeresError as error:  # a group would hide it
                    refused.append(error)
                group.cancel_scope.cancel()
            if refused:
                raise refused[0]
            if over:
                await self._note(over[0], scope)
                with contextlib.suppress(*GONE):
                    await send(closing(1008, str(over[0])))

        return watched


def _address(scope: Scope) -> str:
    """The IP address of the other side; empty on a Unix socket."""
    client = scope.get("client")
    return client[0] if client else ""


def refusal_headers(error: GeresError) -> list[tuple[bytes, bytes]]:
    """What goes with a refusal: how to log in, when to ask again (in whole seconds, as HTTP has it)."""
    if error.http_status == 401:
        return [(b"www-authenticate", b"Bearer")]
    if isinstance(error, RateLimited):
        return [(b"retry-after", b"%d" % math.ceil(error.facts["retry_after_seconds"]))]
    return [(b"retry-after", b"1")] if isinstance(error, StoreUnavailable) else []


async def refuse_socket(scope: Scope, receive: Receive, send: Send, error: GeresError) -> None:
    """Answer a handshake with an HTTP error."""
    message = await receive()
    if message["type"] != "websocket.connect":
        return
    body = error_body(error)
    if "websocket.http.response" in scope.get("extensions", {}):
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "websocket.http.response.start", "status": error.http_status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": body, "more_body": False})
    else:
        await send(closing(4000 + error.http_status, str(error)))


def _most_bytes(path: str) -> int:
    if path.startswith(_OUTPUTS):
        return MOST_OUTPUT_BYTES
    return _MOST_BULK_BYTES if path in _LARGE else _MOST_BODY_BYTES


def _bounded(receive: Receive, headers: dict[bytes, bytes], most: int) -> Receive:
    """The same stream of messages, with the two ways in which a body does not come to its end.

    Raises Invalid where it is longer than `most` bytes, ClientGone where the client left in its middle.
    """
    too_long = Invalid(f"body: is longer than {most >> 20} MiB; send it in pieces", field="body")
    too_long.http_status = 413
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > most:
        raise too_long
    seen, whole = 0, declared == b"0" and b"transfer-encoding" not in headers

    async def bounded() -> Message:
        nonlocal seen, whole
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > most:
                raise too_long
            whole = not message.get("more_body", False)
        elif message["type"] == "http.disconnect" and not whole:
            raise ClientGone
        return message

    return bounded


async def _whole_body(receive: Receive) -> bytes:
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        if message["type"] == "http.request":
            pieces.append(message.get("body", b""))
            if not message.get("more_body", False):
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
