"""Where a client's request and the agent's second WebSocket meet.

A client wants a task's output or gives it input; the agent is asked to connect to a path with a number that
nobody can guess.  Nothing is buffered here: a frame is read from one side when the other has taken the last.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec

from geres.api.asgi import Receive, Send
from geres.api.context import Context
from geres.errors import NotFound

PATH = "/v1/agents/streams/"
_CONNECT_SECONDS = 10.0
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode

Frame = list[Any]


class Socket:
    """An accepted WebSocket of MessagePack arrays."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.server_id: int | None = None  #: the other server that it comes through
        self.closed = False

    async def read(self) -> Frame | None:
        """The next frame; None when the other side is gone.  Frames that make no sense are passed over."""
        while not self.closed:
            message = await self._receive()
            if message["type"] != "websocket.receive":
                self.closed = True
                return None
            if (frame := as_frame(message.get("bytes") or b"")) is not None:
                return frame
        return None

    async def write(self, frame: Frame) -> bool:
        """Send a frame, when there is room for it.  False where the other side is gone."""
        if self.closed:
            return False
        try:
            await self._send({"type": "websocket.send", "bytes": _pack(frame)})
        except (OSError, RuntimeError):  # what uvicorn raises for a client that hung up
            self.closed = True
        return not self.closed

    async def close(self, code: int = 1000) -> None:
        if not self.closed:
            self.closed = True
            try:
                await self._send({"type": "websocket.close", "code": code})
            except (OSError, RuntimeError):
                pass


def as_frame(data: bytes) -> Frame | None:
    """A frame as it came; None for what makes no sense."""
    try:
        frame = _unpack(data)
    except msgspec.MsgspecError:
        return None
    return frame if isinstance(frame, list) and frame and isinstance(frame[0], str) else None


class Rendezvous:
    """Streams that were asked for and wait for their agent."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Meeting] = {}

    @asynccontextmanager
    async def open(
        self, context: Context, task: int, attempt: int, query: str, *, with_stdin: bool
    ) -> AsyncIterator[Socket | None]:
        """The agent's socket for this attempt; None where no node here has it, or does not answer."""
        stream_id = f"{context.server_id}-{secrets.token_urlsafe(18)}"
        meeting = self._waiting[stream_id] = _Meeting()
        try:
            path = f"{PATH}{stream_id}?{query}"
            if await context.dispatcher.open_stream(task, attempt, path, with_stdin):
                with anyio.move_on_after(_CONNECT_SECONDS):
                    await meeting.arrived.wait()
            self._waiting.pop(stream_id, None)
            yield meeting.socket
        finally:
            self._waiting.pop(stream_id, None)
            meeting.over.set()

    async def join(self, stream_id: str, receive: Receive, send: Send) -> None:
        """The agent's side of a stream that was asked for here: held until the client is done."""
        meeting = self._waiting.pop(stream_id, None)
        if meeting is None:
            raise NotFound("nobody waits for this stream any more")
        if not await accept(receive, send):
            return
        meeting.socket = Socket(receive, send)
        meeting.arrived.set()
        await meeting.over.wait()
        await meeting.socket.close()


class _Meeting:
    def __init__(self) -> None:
        self.arrived, self.over = anyio.Event(), anyio.Event()
        self.socket: Socket | None = None


async def accept(receive: Receive, send: Send) -> bool:
    """Accept a handshake.  False where the other side has gone already."""
    message = await receive()
    if message["type"] != "websocket.connect":
        return False
    try:
        await send({"type": "websocket.accept"})
    except (OSError, RuntimeError):
        return False
    return True
