"""What tasks wrote: GET /v1/tasks/{id}/logs, and the agents' uploads of large outputs."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.to_thread
from litestar import Response, get, put
from litestar.params import FromPath
from litestar.response import Stream
from msgspec import Struct

from geres.api.bodies import read_query
from geres.api.context import Context
from geres.api.front import MOST_OUTPUT_BYTES
from geres.api.peers import Streams
from geres.api.request import Request, answer_struct
from geres.api.waiting import no_task_id
from geres.blobs.folder import output_key
from geres.errors import Invalid, NotFound, StaleAttempt, StoreUnavailable
from geres.model.callers import Caller
from geres.model.ids import parse_task, show_task
from geres.model.states import TaskState
from geres.store import tasks
from geres.store.tasks import Kept

_PIECE_BYTES = 64 << 10
_MOST_TAIL_BYTES = 64 << 20
_MOST_TAIL_LINES = 100_000
_MOST_ATTEMPT = (1 << 31) - 1
#: Only for an agent of an earlier version, which does not say where what there is so far ends.
_QUIET_SECONDS = 0.25
_MOST_SILENT_SECONDS = 30.0
_STREAMS = {"stdout": "o", "stderr": "e"}


class LogsQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """Query of GET /v1/tasks/{id}/logs."""

    stream: str = "stdout"  #: stdout or stderr
    attempt: int | None = None  #: the latest where left out
    offset: int = 0  #: bytes of what the task wrote to leave out
    tail: int | None = None  #: only so many of the last lines


@get("/v1/tasks/{task_id:str}/logs", media_type="application/octet-stream")
async def get_logs(request: Request, task_id: FromPath[str]) -> Stream:
    """What a task wrote to one stream, as bytes; of a running one what there is so far.

    Query: `stream` (stdout or stderr), `attempt`, `offset`, `tail` (lines).  Beyond the task's output limit
    the beginning and the end are kept, with a line between that says how much is missing.
    """
    query = read_query(LogsQuery, request.scope["query_string"])
    if query.stream not in _STREAMS:
        raise Invalid(f"stream: {query.stream!r} is neither stdout nor stderr", field="stream")
    if query.offset < 0 or (query.tail is not None and query.tail < 0):
        raise Invalid("offset and tail: are 0 or more", field="offset")
    if query.tail is not None and query.tail > _MOST_TAIL_LINES:
        raise Invalid(
            f"tail: is at most {_MOST_TAIL_LINES:,} lines; leave it out for all of them", field="tail"
        )
    if query.attempt is not None and not 0 <= query.attempt <= _MOST_ATTEMPT:
        raise Invalid(f"attempt: {query.attempt} is no number of an attempt", field="attempt")
    key = parse_task(task_id)
    if key is None:
        raise no_task_id(task_id)
    streams: Streams = request.app.state.streams
    parts = await _logs(request.context, streams, request.caller, key, query)
    return Stream(parts, media_type="application/octet-stream")


async def _logs(
    context: Context, streams: Streams, caller: Caller, key: int, query: LogsQuery
) -> AsyncIterator[bytes]:
    place = await context.db.read(tasks.place, caller, key)
    attempt = query.attempt
    if place.state.on_node and attempt in (None, place.attempt):
        attempt = place.attempt
        live = live_output(context, streams, key, place.attempt, query.stream, query.offset)
        first = await anext(live, None)
        if first is not None:
            return _tail_of_live(_with_first(first, live), query.tail)
        # Its node does not have it (any more): perhaps its end was stored meanwhile.
        now = await context.db.read(tasks.place, caller, key)
        if now.attempt == attempt and now.state in (TaskState.RUNNING, TaskState.SUSPENDED):
            raise StoreUnavailable(f"the node of {show_task(key)} does not answer now; ask again in a moment")
    kept = await context.db.read(tasks.kept_output, key, query.stream, attempt)
    if kept is None:
        if attempt in (None, place.attempt):
            return _nothing()
        raise NotFound(f"task {show_task(key)} has no attempt {attempt}", id=show_task(key))
    if kept.blob is not None:  # one that is gone must be said before the answer begins
        await anyio.to_thread.run_sync(context.blobs.size, kept.blob)
    if query.tail is None:
        return pieces(context, kept, offset=query.offset)
    return _tail_of_kept(context, kept, query.tail)


async def _with_first(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for part in rest:
        yield part


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


async def pieces(context: Context, kept: Kept, *, offset: int = 0) -> AsyncIterator[bytes]:
    """What is kept of a stream, from `offset` of what the task wrote, in pieces of at most 64 KiB.

    Where a part was left out, what comes begins early enough to hold all that was kept behind the offset.
    """
    size = len(kept.inline)
    if kept.blob is not None:
        size = await anyio.to_thread.run_sync(context.blobs.size, kept.blob)
    start = offset
    if offset and kept.written_bytes > size:
        start = max(0, size - max(0, kept.written_bytes - offset))
    while start < size:
        if kept.blob is None:
            piece = kept.inline[start : start + _PIECE_BYTES]
        else:
            piece = await anyio.to_thread.run_sync(context.blobs.read, kept.blob, start, _PIECE_BYTES)
        if not piece:
            return
        yield piece
        start += len(piece)


async def live_output(
    context: Context, streams: Streams, key: int, attempt: int, stream: str, offset: int
) -> AsyncIterator[bytes]:
    """What a running attempt has written up to now, from its node.

    The first part may be empty; no part at all means that the node does not have the attempt.
    """
    kind = _STREAMS[stream]
    query = f"from=begin&until=now&only={kind}&out={offset}&err={offset}"
    async with streams.open(context, key, attempt, query, with_stdin=False) as agent:
        promised = False
        while agent is not None:
            frame = None
            with anyio.move_on_after(_MOST_SILENT_SECONDS if promised else _QUIET_SECONDS):
                frame = await agent.read()
            if frame is None and promised:  # better a broken transfer than one that looks whole
                raise StoreUnavailable("the node went away while its output was read; ask again")
            if frame is None or frame[0] == "end":
                return
            if frame[0] == "present":  # it sends what there is, and then the end
                promised = True
                yield b""
            elif frame[0] == kind and isinstance(frame[-1], bytes):
                yield frame[-1]


async def _tail_of_live(parts: AsyncIterator[bytes], lines: int | None) -> AsyncIterator[bytes]:
    if lines is None:
        async for part in parts:
            yield part
        return
    kept = deque[bytes]()
    size = ends = 0
    async for part in parts:
        if kept and len(kept[-1]) < _PIECE_BYTES:
            kept[-1] += part
        else:
            kept.append(part)
        size, ends = size + len(part), ends + part.count(b"\n")
        while size - len(kept[0]) >= _MOST_TAIL_BYTES or ends - kept[0].count(b"\n") > lines:
            first = kept.popleft()
            size, ends = size - len(first), ends - first.count(b"\n")
    yield last_lines(b"".join(kept)[-_MOST_TAIL_BYTES:], lines)


async def _tail_of_kept(context: Context, kept: Kept, lines: int) -> AsyncIterator[bytes]:
    """The last lines, read from the end in growing pieces."""
    if kept.blob is None:
        yield last_lines(kept.inline, lines)
        return
    size = await anyio.to_thread.run_sync(context.blobs.size, kept.blob)
    most = _PIECE_BYTES
    while True:
        start = max(0, size - most)
        end = await anyio.to_thread.run_sync(context.blobs.read, kept.blob, start, most)
        if start == 0 or end.count(b"\n") > lines or most >= _MOST_TAIL_BYTES:
            yield last_lines(end, lines)
            return
        most *= 4


def last_lines(text: bytes, lines: int) -> bytes:
    """The last `lines` lines; one without an end counts."""
    if lines == 0:
        return b""
    at = len(text) - 1 if text.endswith(b"\n") else len(text)
    for _ in range(lines):
        at = text.rfind(b"\n", 0, at)
        if at < 0:
            return text
    return text[at + 1 :]


@put(
    "/v1/agents/outputs/{task:int}/{attempt:int}/{stream:str}",
    include_in_schema=False,
    status_code=200,
)
async def put_output(
    request: Request, task: FromPath[int], attempt: FromPath[int], stream: FromPath[str]
) -> Response[Any]:
    """The whole output of an attempt that is too large for its end report; again is harmless.

    Errors: 409 stale_attempt: the attempt is over, nobody wants its output.
    """
    if stream not in _STREAMS:
        raise Invalid(f"stream: {stream!r} is neither stdout nor stderr", field="stream")
    if not 0 < task < 1 << 63:
        raise no_task_id(str(task))
    place = await request.context.db.read(tasks.place, request.caller, task)
    if request.caller.node not in ("", place.node):
        raise tasks.no_task(task)
    if place.attempt != attempt or not place.state.on_node:
        raise StaleAttempt(f"attempt {attempt} of task {show_task(task)} is over", attempt=attempt)
    key = output_key(task, attempt, stream)
    await request.context.blobs.write(key, request.stream(), MOST_OUTPUT_BYTES)
    return answer_struct({"blob": key})
