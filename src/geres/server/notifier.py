"""Tells the other servers of one PostgreSQL what happened, and hears it from them: NOTIFY and LISTEN.

Each on a connection of its own, never inside a turn: NOTIFY serialises commits.  One NOTIFY goes for all that
has gathered, at once and then at most every 20 ms.  A lost connection is made again; what was said meanwhile
is lost, and so everything is looked at once.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import psycopg

from geres.server.hints import Hint, Hints, read

log = logging.getLogger("geres.notifier")

_CHANNEL = "geres"
_PAUSE_SECONDS = 0.02
_SEND_SECONDS = 10.0
_LOOK_SECONDS = 30.0  #: without a word, the connection is tried
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_OPTIONS: dict[str, Any] = {
    "autocommit": True,
    "application_name": "geres notifier",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}


class Notifier:
    """One for each server; `hear` gets what others say, and None where anything may have happened."""

    def __init__(self, url: str, hints: Hints, hear: Callable[[Hint | None], None]) -> None:
        self._url, self._hints, self._hear = url, hints, hear

    async def run(self) -> None:
        """Send and listen until cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._again_and_again, "sender", self._send)
            group.start_soon(self._again_and_again, "listener", self._listen)

    async def _again_and_again(self, name: str, work: Callable[[psycopg.AsyncConnection[Any]], Any]) -> None:
        pause, told = _FIRST_PAUSE_SECONDS, False
        while True:
            try:
                async with _connected(self._url) as connection:
                    if told:
                        log.info("%s: connected again", name)
                    pause, told = _FIRST_PAUSE_SECONDS, False
                    await work(connection)
            except (psycopg.Error, OSError, TimeoutError) as error:
                if not told:
                    log.warning("%s: no connection, it is tried again: %s", name, str(error).strip())
                told = True
            await anyio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _send(self, connection: psycopg.AsyncConnection[Any]) -> None:
        while True:
            payload = self._hints.take()
            if payload is None:
                if not await self._hints.bell.wait(_LOOK_SECONDS):
                    await _within(connection.execute("SELECT 1"))
                continue
            await _within(connection.execute("SELECT pg_notify(%s, %s)", (_CHANNEL, payload.decode())))
            await anyio.sleep(_PAUSE_SECONDS)

    async def _listen(self, connection: psycopg.AsyncConnection[Any]) -> None:
        await _within(connection.execute(f"LISTEN {_CHANNEL}"))
        self._hear(None)  # whatever was said before, we have not heard it
        wire = connection.pgconn
        while True:
            with anyio.move_on_after(_LOOK_SECONDS) as silence:
                await anyio.wait_readable(wire.socket)
            if silence.cancelled_caught:
                await _within(connection.execute("SELECT 1"))
            else:
                wire.consume_input()
            while (notice := wire.notifies()) is not None:
                hint = read(notice.extra.decode())
                if hint is None or hint.origin != self._hints.server_id:
                    self._hear(hint)


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    connection = await psycopg.AsyncConnection.connect(url, **_OPTIONS)
    try:
        yield connection
    finally:
        connection.pgconn.finish()  # at once: a good-bye could wait for a server that is gone


async def _within(statement: Any) -> None:
    with anyio.fail_after(_SEND_SECONDS):
        await statement
