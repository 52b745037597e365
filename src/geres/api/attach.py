"""WS /v1/tasks/{id}/attach: a task's output as it comes, and input to it.

While the task waits the client hears of its states; once it runs, its node is asked for a stream that is
passed through frame by frame.  What ended before a stream could be opened comes from what is kept.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import anyio
from msgspec import Struct

from geres.api import outputs
from geres.api.asgi import Receive, Scope, Send
from geres.api.bodies import read_query
from geres.api.context import Context
from geres.api.front import WebSocketRoute
from geres.api.peers import PeerSocket, Streams
from geres.api.streams import Frame, Socket, accept
from geres.api.waiting import no_task_id
from geres.errors import Denied, GeresError, Invalid, StoreUnavailable
from geres.model.callers import Caller
from geres.model.ids import parse_task, show_task
from geres.model.states import TaskState
from geres.model.tasks import TaskDetail
from geres.store import audit, tasks
from geres.store.database import Tx

log = logging.getLogger("geres.attach")

_POLL_SECONDS = 1.0
_SILENT_SECONDS = 5.0  #: of a node, before its task is looked up again
_STREAMS = {"o": "stdout", "e": "stderr"}


class AttachQuery(Struct, kw_only=True, forbid_unknown_fields=True, rename={"from_": "from", "in_": "in"}):
    """Query of WS /v1/tasks/{id}/attach."""

    stdin: int = 0
    from_: str = "begin"  #: begin, or now: leave out what was written before
    out: int = 0  #: bytes of stdout that the client has already
    err: int = 0
    in_: int | None = None  #: bytes of stdin that the client has sent before


class _Attachment:
    """One client at one task."""

    def __init__(
        self,
        context: Context,
        streams: Streams,
        caller: Caller,
        key: int,
        query: AttachQuery,
        client: Socket,
        *,
        may_write: bool,
    ) -> None:
        self._context, self._streams, self._caller, self._key = context, streams, caller, key
        self._query, self._client, self._may_write = query, client, may_write
        self._noted_input = False
        self._seen = {"o": query.out, "e": query.err}
        self._state: str | None = None
        self._attempt: int | None = None
        self._agent: Socket | PeerSocket | None = None
        self._opened = anyio.Event()

    async def run(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._read_client, group.cancel_scope)
            await self._follow()
            group.cancel_scope.cancel()

    async def _read_client(self, scope: anyio.CancelScope) -> None:
        """Pass on what the client sends; one frame waits here while no stream is open."""
        while (frame := await self._client.read()) is not None:
            if not _is_input(frame) or not self._may_write:
                continue
            await self._note(frame)
            while True:
                agent = self._agent
                if agent is not None and await agent.write(frame):
                    break
                if agent is not None and agent is self._agent:  # broken, and not noticed yet by who reads it
                    self._agent, self._opened = None, anyio.Event()
                await self._opened.wait()
        scope.cancel()

    async def _note(self, frame: Frame) -> None:
        """The audit log has each signal, and once that there was input."""
        if frame[0] == "eof" or (frame[0] == "i" and self._noted_input):
            return
        self._noted_input = self._noted_input or frame[0] == "i"
        action, facts = ("task.input", {}) if frame[0] == "i" else ("task.signal", {"signal": frame[1][:20]})
        context = self._context
        await context.db.run(_audit, self._caller, action, show_task(self._key), context.clock(), facts)

    async def _follow(self) -> None:
        """Until the task has ended for good, or the client is gone."""
        with self._context.waiters.task(self._key) as bell:
            while not self._client.closed:
                task = await self._context.db.read(tasks.get, self._caller, self._key)
                await self._tell_state(task.state)
                if task.state.final:
                    await self._end(task)
                    return
                if self._context.stopping:
                    await self._lose()
                    return
                runs = task.state in (TaskState.RUNNING, TaskState.SUSPENDED)
                if runs and not await self._stream(task):
                    await self._lose()
                    return
                await bell.wait(_POLL_SECONDS)

    async def _stream(self, task: TaskDetail) -> bool:
        """Pass through what one attempt writes.  False where the connection broke under a running attempt."""
        if self._attempt is not None and task.attempt != self._attempt:
            self._seen = {"o": 0, "e": 0}
        self._attempt = task.attempt
        query = f"from={self._query.from_}&out={self._seen['o']}&err={self._seen['e']}"
        if self._query.in_ is not None:
            query += f"&in={self._query.in_}"
        with_stdin = bool(self._query.stdin)
        async with self._streams.open(
            self._context, self._key, task.attempt, query, with_stdin=with_stdin
        ) as agent:
            if agent is None:
                return True  # connected nowhere, or it has just ended: look at the store again
            self._agent = agent
            self._opened.set()
            try:
                return await self._pass_through(agent)
            finally:
                self._agent = None
                if self._opened.is_set():
                    self._opened = anyio.Event()

    async def _pass_through(self, agent: Socket | PeerSocket) -> bool:
        while True:
            frame: Frame | None = None
            with anyio.move_on_after(_SILENT_SECONDS) as silence:
                frame = await agent.read()
            if silence.cancelled_caught:
                if not await self._is_there():
                    return True  # its node vanished without a word, and the task was taken back
                if await self._has_moved(agent):
                    return False  # its node is connected to another server by now
                continue
            if frame is None:
                return not await self._is_there()
            kind = frame[0]
            if kind == "end":
                return True  # the store says how the task ended, or that it is tried again
            if kind in self._seen and len(frame) > 1:
                self._seen[kind] += len(frame[1])
            if not await self._client.write(frame):
                return True

    async def _is_there(self) -> bool:
        """True while the attempt that is passed through is on its node."""
        place = await self._context.db.read(tasks.place, self._caller, self._key)
        return place.attempt == self._attempt and place.state.on_node

    async def _has_moved(self, agent: Socket | PeerSocket) -> bool:
        """True where the node of the task is held by another server than the stream comes through."""
        place = await self._context.db.read(tasks.place, self._caller, self._key)
        through = agent.server_id if agent.server_id is not None else self._context.server_id
        return place.server_id is not None and place.server_id != through

    async def _tell_state(self, state: str) -> None:
        if state != self._state:
            self._state = state
            await self._client.write(["s", str(state)])

    async def _lose(self) -> None:
        await self._client.write(["lost"])
        await self._client.close(1012)

    async def _end(self, task: TaskDetail) -> None:
        """What the client has not seen of the last attempt, and how it ended."""
        if self._query.from_ != "now" or self._attempt is not None:
            last = task.attempts[-1].attempt if task.attempts else 0
            if self._attempt is not None and last != self._attempt:
                self._seen = {"o": 0, "e": 0}
            async for frame in self._kept(last):
                await self._client.write(frame)
        await self._client.write(
            [
                "end",
                {
                    "state": str(task.state),
                    "reason": task.reason,
                    "message": task.message,
                    "exit_code": task.exit_code,
                    "signal": task.signal,
                },
            ]
        )
        await self._client.close()

    async def _kept(self, attempt: int) -> AsyncIterator[Frame]:
        for kind, stream in _STREAMS.items():
            kept = await self._context.db.read(tasks.kept_output, self._key, stream, attempt)
            if kept is None:
                continue
            async for piece in outputs.pieces(self._context, kept, offset=self._seen[kind]):
                yield [kind, piece]


def _audit(tx: Tx, caller: Caller, action: str, target: str, now_us: int, facts: dict[str, str]) -> None:
    audit.write(tx, caller, action, target, now_us=now_us, **facts)


def _is_input(frame: Frame) -> bool:
    match frame:
        case ["i", bytes()] | ["eof"] | ["sig", str()]:
            return True
    return False


def _check(query: AttachQuery) -> None:
    """Raise Invalid for places that no stream has."""
    for field, place in (("out", query.out), ("err", query.err), ("in", query.in_ or 0)):
        if not 0 <= place < 1 << 62:
            raise Invalid(f"{field}: {place} is no place in a stream", field=field)
    if query.from_ not in ("begin", "now"):
        raise Invalid(f"from: {query.from_!r} is neither begin nor now", field="from")


def route(streams: Streams) -> WebSocketRoute:
    """The WebSocket route, with the way to the agents."""

    async def attach(context: Context, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        key_text = scope["path"].removeprefix("/v1/tasks/").removesuffix("/attach")
        query = read_query(AttachQuery, scope["query_string"])
        _check(query)
        key = parse_task(key_text)
        if key is None:
            raise no_task_id(key_text)
        place = await context.db.read(tasks.place, caller, key)
        if query.stdin and not place.may_change:
            raise Denied(f"you may see what {key_text} writes, but not write to it", id=key_text)
        if not await accept(receive, send):
            return
        client = Socket(receive, send)
        try:
            attachment = _Attachment(context, streams, caller, key, query, client, may_write=place.may_change)
            await attachment.run()
        except StoreUnavailable:
            await client.write(["lost"])
            await client.close(1013)
        except GeresError as error:
            log.warning("attach to %s: %s", key_text, error)
            await client.close(1011)

    return attach
