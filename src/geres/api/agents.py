"""The agents' channel: one WebSocket for each node, frames of model/wire.py both ways."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import anyio
import msgspec
from msgspec import Struct

from geres.aio import Doorbell
from geres.api.asgi import GONE, Message, Receive, Send, closing
from geres.errors import GeresError
from geres.model.callers import Caller
from geres.model.ids import is_name, may_name_node
from geres.model.wire import PROTOCOL, Frame, Hello, decode, encode

log = logging.getLogger("geres.agents")

_HELLO_SECONDS = 20.0
_MOST_WAITING = 10_000  #: frames that wait for one slow agent; beyond it the connection ends
_MOST_HELLO_BYTES = 4 << 20
_QUIET_SECONDS = 600.0  #: a refusal that comes again and again is logged so often
_MOST_REMEMBERED = 1000
#: What decoding raises; the last for one that is nested too deeply.
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _Greeting(Struct):
    """What every version says of itself."""

    protocol: int = 0
    version: str = "?"


class _First(Struct):
    hello: _Greeting | None = None


_first = msgspec.msgpack.Decoder(_First)


class Desk(Protocol):
    gone: bool
    leaving: bool


class Dispatcher(Protocol):
    async def connect(
        self,
        hello: Hello,
        send: Callable[[Frame], None],
        close: Callable[[str], None],
        tenant_id: int | None = None,
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


class _Refusals:
    """Agents try again for ever: what is the same as before is logged once in a while."""

    def __init__(self) -> None:
        self._logged: OrderedDict[tuple[str, str], float] = OrderedDict()

    def log(self, who: str, why: str) -> None:
        now, known = time.monotonic(), self._logged.get((who, why))
        if known is not None and now - known < _QUIET_SECONDS:
            return
        self._logged[who, why] = now
        self._logged.move_to_end((who, why))
        if len(self._logged) > _MOST_REMEMBERED:
            self._logged.popitem(last=False)
        log.warning("an agent at %s was refused: %s", who, why, extra={"event": "agent_refused"})


_refusals = _Refusals()


async def serve_agent(dispatcher: Dispatcher, caller: Caller, receive: Receive, send: Send) -> None:
    """Serve one accepted connection until either side ends it."""
    outbox = _Outbox()
    who = caller.node or caller.address or "this machine"
    hello = await _hello(receive)
    if not isinstance(hello, str):
        hello = _not_allowed(caller, hello) or hello
    if isinstance(hello, str):
        await _refuse(send, who, hello)
        return
    hello.address = "" if caller.address.startswith("uid:") else caller.address
    try:
        desk = await dispatcher.connect(hello, outbox.send, outbox.close, caller.tenant_id)
    except GeresError as error:
        await _refuse(send, who, str(error))
        return
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_write, outbox, send, group.cancel_scope)
            await _read(dispatcher, desk, who, receive)
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
        if message["type"] != "websocket.receive":
            return f"the connection ended before a hello{_how_it_ended(message)}"
        if not data:
            return "the first frame must be a hello, in MessagePack"
        if len(data) > _MOST_HELLO_BYTES:
            return f"the hello has {len(data)} bytes, more than {_MOST_HELLO_BYTES}"
        try:
            greeting = _first.decode(data).hello
            if greeting is not None and (foreign := _foreign(greeting)):
                return foreign
            hello = decode(data).hello
        except _UNREADABLE as error:
            return f"the first frame cannot be read: {error}"
        if hello is None:
            return "the first frame must be a hello"
        return _problem(hello) or hello
    return f"no hello came within {_HELLO_SECONDS:g} s"


def _foreign(greeting: _Greeting) -> str | None:
    """Why this version cannot talk to ours.  Neighbours can: each end passes over what it does not know."""
    if abs(greeting.protocol - PROTOCOL) <= 1:
        return None
    older, newer = ("agent", "server") if greeting.protocol < PROTOCOL else ("server", "agent")
    return (
        f"the agent speaks protocol {greeting.protocol} (geres {greeting.version[:40]}), the server"
        f" {PROTOCOL}: upgrade the {older} to the release of the {newer}"
    )


def _not_allowed(caller: Caller, hello: Hello) -> str | None:
    """Why this credential is not good for this node."""
    if caller.role == "node" and caller.node and hello.node != caller.node:
        return (
            f"node: the credential is good for the node {caller.node} alone, not for {hello.node}: leave"
            " --name out, or join again with a new join token"
        )
    if caller.pool and hello.pool != caller.pool:
        return (
            f"pool: {caller.node} joined for the pool {caller.pool}, not for {hello.pool}: leave --pool out"
        )
    return None


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
    if not may_name_node(hello.node):
        return f"node: {hello.node[:80]!r} cannot name a node"
    for field, host in (("host", hello.host), ("labels.ssh", hello.labels.get("ssh", ""))):
        if host.startswith("-"):
            return f"{field}: {host[:80]!r} is no address: it begins with a dash"
    for field, name in (("pool", hello.pool), *(("resources", name) for name in hello.resources)):
        if not is_name(name):
            return f"{field}: {name[:80]!r} cannot be a name"
    texts = (hello.version, hello.boot_id, hello.host_id, hello.host, hello.arch, hello.os, hello.account)
    if any("\0" in text for text in (*texts, *hello.labels, *hello.labels.values(), *hello.shared_paths)):
        return "a text holds a NUL character"
    if any(not (0 < task < 1 << 63 and 0 <= number < 1 << 31) for task, number in hello.attempts):
        return "attempts: one has a number that no attempt has"
    return None


def _how_it_ended(message: Message) -> str:
    """What a closing says: 1009 stands for a frame that was too large, 1002 and 1007 for nonsense."""
    code, reason = message.get("code"), message.get("reason")
    if code in (None, 1000, 1001, 1005, 1006, 1011, 1012):
        return ""
    return f" (code {code}{f': {reason}' if reason else ''})"


async def _refuse(send: Send, who: str, why: str) -> None:
    _refusals.log(who, why)
    try:
        await send({"type": "websocket.send", "bytes": encode(Frame(error=why))})
        await send(closing(1008, why))
    except GONE:
        pass


async def _read(dispatcher: Dispatcher, desk: Desk, who: str, receive: Receive) -> None:
    while not desk.gone:
        message = await receive()
        if message["type"] != "websocket.receive":
            if how := _how_it_ended(message):
                _refusals.log(who, f"its connection ended{how}")
            return
        try:
            frame = decode(message.get("bytes") or b"")
        except _UNREADABLE as error:
            _refusals.log(who, f"a frame cannot be read: {error}")
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
