"""The agents' channel: one WebSocket for each node, frames of model/wire.py both ways."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import anyio
import msgspec

from geres.aio import Doorbell
from geres.api.asgi import GONE, Receive, Send, closing
from geres.errors import GeresError
from geres.model.ids import is_name, is_node_name
from geres.model.wire import PROTOCOL, Frame, Hello, decode, encode

log = logging.getLogger("geres.agents")

_HELLO_SECONDS = 20.0
_MOST_WAITING = 10_000  #: frames that wait for one slow agent; beyond it the connection ends


class Desk(Protocol):
    gone: bool
    leaving: bool


class Dispatcher(Protocol):
    async def connect(
        self, hello: Hello, send: Callable[[Frame], None], close: Callable[[str], None]
    ) -> Desk: ...

    def receive(self, desk: Desk, frame: Frame) -> None: ...

    def disconnect(self, desk: Desk, why: str) -> None: ...

    def leave(self, desk: Desk) -> None: ...


class _Outbox:
    """Frames that wait to be sent; small ones that wait together are still sent one by one, in order."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.bell = Doorbell()
        self.closing: str | None = None

    def send(self, frame: Frame) -> None:
        if len(self.frames) >= _MOST_WAITING:
            self.close("the agent does not read what is sent to it")
            return
        self.frames.append(frame)
        self.bell.ring()

    def close(self, why: str) -> None:
        if self.closing is None:
            self.closing = why
        self.bell.ring()


async def serve_agent(dispatcher: Dispatcher, receive: Receive, send: Send) -> None:
    """Serve one accepted connection until either side ends it."""
    outbox = _Outbox()
    hello = await _hello(receive)
    if isinstance(hello, str):
        await _refuse(send, hello)
        return
    try:
        desk = await dispatcher.connect(hello, outbox.send, outbox.close)
    except GeresError as error:
        await _refuse(send, str(error))
        return
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_write, outbox, send, group.cancel_scope)
            await _read(dispatcher, desk, receive)
            group.cancel_scope.cancel()
    finally:
        dispatcher.disconnect(desk, "the connection has ended")
        if desk.leaving:
            dispatcher.leave(desk)


async def _hello(receive: Receive) -> Hello | str:
    """The first frame, or what is wrong with it."""
    with anyio.move_on_after(_HELLO_SECONDS):
        message = await receive()
        data = message.get("bytes")
        if message["type"] != "websocket.receive" or not data:
            return "the first frame must be a hello"
        try:
            hello = decode(data).hello
        except msgspec.MsgspecError as error:
            return f"the first frame cannot be read: {error}"
        if hello is None:
            return "the first frame must be a hello"
        if hello.protocol != PROTOCOL:
            return (
                f"the agent speaks protocol {hello.protocol} (geres {hello.version}), the server {PROTOCOL}:"
                " install the same geres on both"
            )
        return _problem(hello) or hello
    return "no hello came in time"


def _problem(hello: Hello) -> str | None:
    """What no server can work with, in words; None where all is well."""
    for field, value, most in (
        ("cpus", hello.cpus, 1_000_000),
        ("memory_bytes", hello.memory_bytes, 1 << 62),
        ("gpus", hello.gpus, 10_000),
        ("slots", hello.slots, 1 << 31),
        *((f"resources.{name}", count, 1 << 53) for name, count in hello.resources.items()),
    ):
        if not 0 <= value <= most:
            return f"{field}: {value} is not between 0 and {most}"
    if not is_node_name(hello.node):
        return f"node: {hello.node[:80]!r} cannot name a node"
    for field, name in (("pool", hello.pool), *(("resources", name) for name in hello.resources)):
        if not is_name(name):
            return f"{field}: {name[:80]!r} cannot be a name"
    texts = (hello.version, hello.boot_id, hello.host_id, hello.host, hello.arch, hello.os, hello.account)
    if any("\0" in text for text in (*texts, *hello.labels, *hello.labels.values(), *hello.shared_paths)):
        return "a text holds a NUL character"
    if any(not (0 < task < 1 << 63 and 0 <= number < 1 << 31) for task, number in hello.attempts):
        return "attempts: one has a number that no attempt has"
    return None


async def _refuse(send: Send, why: str) -> None:
    log.warning("an agent was refused: %s", why)
    try:
        await send({"type": "websocket.send", "bytes": encode(Frame(error=why))})
        await send(closing(1008, why))
    except GONE:
        pass


async def _read(dispatcher: Dispatcher, desk: Desk, receive: Receive) -> None:
    while not desk.gone:
        message = await receive()
        if message["type"] != "websocket.receive":
            return
        try:
            frame = decode(message.get("bytes") or b"")
        except msgspec.MsgspecError as error:
            dispatcher.disconnect(desk, f"a frame cannot be read: {error}")
            return
        dispatcher.receive(desk, frame)


async def _write(outbox: _Outbox, send: Send, scope: anyio.CancelScope) -> None:
    try:
        while outbox.closing is None:
            frames, outbox.frames = outbox.frames, []
            for frame in frames:
                await send({"type": "websocket.send", "bytes": encode(frame)})
            if not outbox.frames and outbox.closing is None:
                await outbox.bell.wait(3600)
        for frame in [*outbox.frames, Frame(error=outbox.closing)]:
            await send({"type": "websocket.send", "bytes": encode(frame)})
        await send(closing(1000, outbox.closing))
    except GONE:
        pass
    scope.cancel()
