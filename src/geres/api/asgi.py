"""The few words of ASGI that we use, and the two ways to answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_JSON = (b"content-type", b"application/json")


#: What sending raises when the other side has hung up.
GONE = (OSError, RuntimeError)
_MOST_REASON_BYTES = 120


def closing(code: int, why: str) -> Message:
    """The message that closes a WebSocket; the protocol has little room for the reason."""
    reason = why.encode()[:_MOST_REASON_BYTES].decode("utf-8", "ignore")
    return {"type": "websocket.close", "code": code, "reason": reason}


async def respond(
    send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """Send one JSON answer."""
    length = (b"content-length", b"%d" % len(body))
    await send(
        {"type": "http.response.start", "status": status, "headers": [_JSON, length, *(headers or ())]}
    )
    await send({"type": "http.response.body", "body": body, "more_body": False})
