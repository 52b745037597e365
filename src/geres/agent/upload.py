"""Uploads what is kept of large outputs, before the end of their attempt is reported."""

from __future__ import annotations

import http.client
import json
import logging
import random
from collections.abc import Callable
from functools import partial
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from geres import trust, unix_socket
from geres.agent.access import Access
from geres.agent.ends import Kept, Unreadable
from geres.model.ids import show_task
from geres.model.tasks import INLINE_OUTPUT_BYTES
from geres.model.wire import Ended

log = logging.getLogger("geres.agent.upload")

_TIMEOUT_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 5.0


class Refused(Exception):
    """The server does not want this output: the attempt is over for it, or the request is wrong."""


class Uploader:
    def __init__(self, access: Access, jitter: Callable[[float, float], float] = random.uniform) -> None:
        self._access = access
        self._jitter = jitter
        self._limiter = anyio.CapacityLimiter(4)

    async def upload(self, report: Ended, files: dict[str, str], limit: int) -> None:
        """Bring the files to the server and note in the report where they are.  Tries until it is done.

        A file that cannot be read, or that the server refuses, leaves the last of the output in the report.
        """
        for stream, path in files.items():
            try:
                kept = await anyio.to_thread.run_sync(Kept, path, limit)
                if kept.length <= INLINE_OUTPUT_BYTES and kept.size <= limit:
                    setattr(report, stream, b"".join(kept.pieces()))
                    continue
                blob = await self._until_done(report, stream, kept)
            except (Unreadable, Refused) as error:
                if isinstance(error, Unreadable) and report.message is None:
                    report.message = f"only the last of its {stream} is kept: its file: {error}"
                log.warning("the %s of %s stays here: %s", stream, show_task(report.task), error)
                continue
            setattr(report, f"{stream}_blob", blob)

    async def _until_done(self, report: Ended, stream: str, kept: Kept) -> str:
        url = self._access.url
        base = "" if unix_socket.path_of(url) else urlsplit(url).path.rstrip("/")
        path = f"{base}/v1/agents/outputs/{report.task}/{report.attempt}/{stream}"
        pause = 0.1
        while True:
            try:
                return await anyio.to_thread.run_sync(
                    partial(self._put, path, kept), limiter=self._limiter, abandon_on_cancel=True
                )
            except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
                log.info("an output could not be uploaded, next try in %.1f s: %s", pause, error)
                await anyio.sleep(pause * self._jitter(0.8, 1.2))
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _put(self, path: str, kept: Kept) -> str:
        """Blocking.  Raises Refused, Unreadable, or another error where another try may help."""
        access, url = self._access, urlsplit(self._access.url)
        host, port = url.hostname or "", url.port
        connection: http.client.HTTPConnection
        if (place := unix_socket.path_of(access.url)) is not None:
            connection = unix_socket.HTTPConnection(place, _TIMEOUT_SECONDS)
        elif url.scheme == "https":
            context = trust.context(access.fingerprint)
            connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_SECONDS, context=context)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_SECONDS)
        try:
            headers = {
                **access.headers,
                "Content-Type": "application/octet-stream",
                "Content-Length": str(kept.length),
            }
            connection.request("PUT", path, body=kept.pieces(), headers=headers)
            answer = connection.getresponse()
            body = answer.read(1 << 20)
            if answer.status in (400, 403, 404, 409, 410, 411, 413, 422):
                raise Refused(f"HTTP {answer.status}: {body[:200].decode('utf-8', 'replace')}")
            if answer.status >= 300:
                raise OSError(f"HTTP {answer.status}: {body[:200].decode('utf-8', 'replace')}")
            return str(json.loads(body)["blob"])
        finally:
            connection.close()
