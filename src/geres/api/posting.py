"""Posts messages to webhooks.  Loading it loads an HTTP client: only where something is posted.

A name is looked up here, what may not be reached is refused, and the address that was checked is the one
connected to.  Redirects are not followed, and of an answer only the status counts: nobody is to read through
a webhook what only the server can reach.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable
from typing import Any

import anyio
import anyio.to_thread
import httpcore

from geres.model.webhooks import WebhookTested, is_forbidden, signature

_CONNECT_SECONDS = 5.0
_WHOLE_SECONDS = 10.0
_READ_SECONDS = 1.0  #: for what follows the status, which counts for nothing
_MOST_ANSWER_BYTES = 64 << 10
_MOST_ADDRESSES = 3  #: of one host that are tried
_MOST_CONNECTIONS = 64
_KEPT_SECONDS = 1.0  #: shorter than receivers keep idle connections open: none closes one that we take


class _Refused(Exception):
    """Nothing is sent there; the text says why."""


class _Checked(httpcore.AsyncNetworkBackend):
    """Connects only to where webhooks may go."""

    def __init__(self) -> None:
        self._plain = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = (await _look_up(host, port))[:_MOST_ADDRESSES]
        for address in addresses[:-1]:
            try:
                return await self._plain.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._plain.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)


async def _look_up(host: str, port: int) -> list[str]:
    """The addresses of a host, one at least.  Raises _Refused where one of them may not be reached."""
    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _Refused(f"{host} cannot be looked up: {getattr(error, 'strerror', None) or error}") from None
    addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
    for address in addresses:
        if is_forbidden(address):
            raise _Refused(f"{host} is at {address}, where no webhook may go")
    return addresses


class Poster:
    """One for each server; its connections are kept for a moment and shared."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._pool: httpcore.AsyncConnectionPool | None = None

    async def post(self, url: str, secret: str, delivery_id: str, body: bytes) -> WebhookTested:
        """Send one message, signed.  What goes wrong is in the answer; nothing is raised."""
        began, status, error = time.monotonic(), None, None
        at_seconds = int(time.time())  # the receiver compares it with its own clock
        try:
            headers = [
                ("Content-Type", "application/json"),
                ("User-Agent", f"geres/{self._version}"),
                ("webhook-id", delivery_id),
                ("webhook-timestamp", str(at_seconds)),
                ("webhook-signature", signature(secret, delivery_id, at_seconds, body)),
            ]
            with anyio.fail_after(_WHOLE_SECONDS):
                status = await self._exchange(url, headers, body)
        except TimeoutError:
            error = f"no answer within {_WHOLE_SECONDS:.0f} s"
        except Exception as problem:  # whatever a receiver does, it is its webhook that fails, and no loop
            error = _words(problem)
        if status is not None and not 200 <= status < 300:
            error = f"it answered {status}" + ("; redirects are not followed" if status < 400 else "")
        return WebhookTested(
            good=error is None, status=status, seconds=round(time.monotonic() - began, 6), error=error
        )

    async def _exchange(self, url: str, headers: list[tuple[str, str]], body: bytes) -> int:
        """The status of the answer.  What follows it is read, so that the connection can be used again."""
        timeout = {"connect": _CONNECT_SECONDS, "pool": _WHOLE_SECONDS}
        pool = await self._open()
        async with pool.stream(
            "POST", url, headers=[*headers], content=body, extensions={"timeout": timeout}
        ) as response:
            with anyio.move_on_after(_READ_SECONDS):
                size = 0
                async for piece in response.aiter_stream():
                    size += len(piece)
                    if size > _MOST_ANSWER_BYTES:
                        break
            return int(response.status)

    async def _open(self) -> httpcore.AsyncConnectionPool:
        """TLS is checked with the machine's authorities; proxies of the environment are not used."""
        if self._pool is None:
            context = await anyio.to_thread.run_sync(ssl.create_default_context)
            self._pool = self._pool or httpcore.AsyncConnectionPool(
                ssl_context=context,
                max_connections=_MOST_CONNECTIONS,
                keepalive_expiry=_KEPT_SECONDS,
                network_backend=_Checked(),
            )
        return self._pool

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.aclose()


def _words(error: BaseException) -> str:
    """The innermost cause that says something."""
    text, cause = type(error).__name__, error
    while True:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not good: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed: {cause.reason}"
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
        text = str(cause) or text
        inner = cause.__cause__ or cause.__context__  # the pool raises `from None` what has a cause
        if inner is None or isinstance(cause, _Refused):
            return text
        cause = inner
