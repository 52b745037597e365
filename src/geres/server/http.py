"""uvicorn as we run it: TLS, time-outs for connections that say nothing, no signal handlers of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import Iterator
from typing import Any

import anyio
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: A handshake, and the head of a request, take no longer; who is slower is cut off.
HANDSHAKE_SECONDS = 15.0
HEAD_SECONDS = 20.0


class Connection(HttpToolsProtocol):
    """One connection.  The head of each request has to come within HEAD_SECONDS of its first byte, the first
    one of the opening; bodies and answers may take as long as they move."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if (uid := _account_of(transport)) is not None:
            self.app_state = {**self.app_state, "uid": uid}  # of each request's scope["state"]
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        if self._deadline is None:
            self._expect_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_came()
        super().on_headers_complete()

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _head_came(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        self.transport.abort()


def _account_of(transport: asyncio.Transport) -> int | None:
    """The account of the process on the other side of a Unix socket, as the kernel says."""
    found = transport.get_extra_info("socket")
    if found is None or found.family != socket.AF_UNIX or not hasattr(socket, "SO_PEERCRED"):
        return None
    with socket.socket(fileno=os.dup(found.fileno())) as ours:
        _, uid, _ = struct.unpack("iII", ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


class Http(uvicorn.Server):
    """Serves on listening sockets, with TLS where there is a context."""

    def __init__(self, settings: uvicorn.Config, tls: ssl.SSLContext | None) -> None:
        super().__init__(settings)
        self._tls = tls
        self.accepting, self.over = anyio.Event(), anyio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are handled once, for the whole server."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        loop = asyncio.get_running_loop()
        patience: dict[str, Any] = {}
        if self._tls is not None:
            patience = {"ssl": self._tls, "ssl_handshake_timeout": HANDSHAKE_SECONDS}
        for listener in sockets or []:
            if listener.family == socket.AF_UNIX:
                made = await loop.create_unix_server(
                    self._connection, sock=listener, backlog=self.config.backlog
                )
            else:
                made = await loop.create_server(
                    self._connection, sock=listener, backlog=self.config.backlog, **patience
                )
            self.servers.append(made)
        self.accepting.set()

    def _connection(self) -> asyncio.Protocol:
        return Connection(self.config, self.server_state, self.lifespan.state)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().serve(sockets)
        finally:
            self.over.set()
