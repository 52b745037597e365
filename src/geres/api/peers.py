"""Between servers: the streams of a task whose node is connected to another one.

A server that is asked for such a stream opens a WebSocket to the one that holds the node, WS
/v1/peers/streams/{task}/{attempt}, which serves its own nodes only: no loop can come about.  An agent that a
balancer leads to another server than the one that waits for its stream is passed on by WS
/v1/peers/agents/{stream_id}.  Requests are signed with the secret that the other server keeps in the store,
where only servers read it.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

from geres import trust
from geres.api.asgi import Receive, Scope, Send
from geres.api.context import Context
from geres.api.streams import PATH as AGENT_PATH
from geres.api.streams import Frame, Rendezvous, Socket, accept, as_frame
from geres.errors import Invalid, NotFound, StoreUnavailable, Unauthenticated
from geres.model.callers import Caller
from geres.store import servers
from geres.store.servers import Peer

log = logging.getLogger("geres.peers")

PATH = "/v1/peers/"
_STREAMS = f"{PATH}streams/"
_AGENTS = f"{PATH}agents/"
BLOBS_PATH = f"{PATH}blobs"
HEADER = "x-geres-signature"
SIZE_HEADER = "geres-size"
_OPEN_SECONDS = 5.0
_CLOSE_SECONDS = 1.0
_VALID_US = 60_000_000  #: of a signature; servers go by the clock of the store
_MOST_FRAME_BYTES = 16 << 20
_FRAMES_AHEAD = 4  #: that wait here for a slow reader
_pack = msgspec.msgpack.Encoder().encode


def sign(secret: str, target: str, at_us: int) -> str:
    """The signature of a request for this path and query."""
    text = f"{at_us}\n{target}".encode()
    return f"{at_us}.{hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()}"


def check_signature(secret: str, target: str, signature: str, now_us: int) -> None:
    """Raise Unauthenticated for a signature that no server of this store has made, or not now."""
    at, _, _ = signature.partition(".")
    if not (secret and at.isascii() and at.isdigit() and len(at) < 20):
        raise Unauthenticated("only servers of this cluster may ask this")
    if not hmac.compare_digest(sign(secret, target, int(at)).encode(), signature.encode()):
        raise Unauthenticated("the signature is not one of a server of this cluster")
    if abs(now_us - int(at)) > _VALID_US:
        raise Unauthenticated("the signature is too old, or the servers' clocks differ")


class PeerSocket:
    """A stream at another server, as if its node were connected here."""

    def __init__(self, wire: ClientConnection, server_id: int) -> None:
        self._wire = wire
        self.server_id: int | None = server_id
        self.closed = False

    async def read(self) -> Frame | None:
        while not self.closed:
            try:
                data = await self._wire.recv(decode=False)
            except (ConnectionClosed, OSError):
                self.closed = True
                return None
            if (frame := as_frame(data)) is not None:
                return frame
        return None

    async def write(self, frame: Frame) -> bool:
        if self.closed:
            return False
        try:
            await self._wire.send(_pack(frame))
        except (ConnectionClosed, OSError):
            self.closed = True
        return not self.closed


class Streams:
    """Streams of attempts, wherever their nodes are connected."""

    def __init__(self, meet: Rendezvous) -> None:
        self.meet = meet

    @asynccontextmanager
    async def open(
        self, context: Context, task: int, attempt: int, query: str, *, with_stdin: bool
    ) -> AsyncIterator[Socket | PeerSocket | None]:
        """The stream of this attempt; None where its node is connected nowhere, or nobody answers."""
        async with AsyncExitStack() as stack:
            here = self.meet.open(context, task, attempt, query, with_stdin=with_stdin)
            found: Socket | PeerSocket | None = await stack.enter_async_context(here)
            if found is None and (peer := await _holder(context, task, attempt)) is not None:
                target = f"{_STREAMS}{task}/{attempt}?{query}&stdin={int(with_stdin)}"
                found = await stack.enter_async_context(_opened(peer, target, context.clock))
            yield found

    async def serve_agent(
        self, context: Context, caller: Caller, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """The agent's side, WS /v1/agents/streams/{stream_id}, here or at the server that waits for it."""
        stream_id = scope["path"].removeprefix(AGENT_PATH)
        server_id = stream_id.partition("-")[0]
        if server_id == str(context.server_id):
            await self.meet.join(stream_id, receive, send)
            return
        for peer in await context.db.read(servers.living, now_us=context.clock()):
            if str(peer.id) == server_id:
                async with _opened(peer, f"{_AGENTS}{stream_id}?", context.clock) as other:
                    if other is not None and await accept(receive, send):
                        await _between(Socket(receive, send), other)
                        return
        raise NotFound("nobody waits for this stream any more")

    async def serve_peer(self, context: Context, scope: Scope, receive: Receive, send: Send) -> None:
        """What another server asks: a stream of a node here; or it brings the agent that one waits for."""
        check(context, scope)
        if scope["path"].startswith(_AGENTS):
            await self.meet.join(scope["path"].removeprefix(_AGENTS), receive, send)
            return
        task, attempt, query, with_stdin = _asked(scope)
        async with self.meet.open(context, task, attempt, query, with_stdin=with_stdin) as agent:
            if agent is None:
                raise NotFound("no node that is connected here has this attempt")
            if not await accept(receive, send):
                return
            await _between(Socket(receive, send), agent)


async def _between(near: Socket, far: Socket | PeerSocket) -> None:
    """Pass frames on, both ways, until either side ends."""
    async with anyio.create_task_group() as group:
        group.start_soon(_pass_on, near, far, group.cancel_scope)
        await _pass_on(far, near, group.cancel_scope)
    await near.close()


async def _pass_on(
    source: Socket | PeerSocket, target: Socket | PeerSocket, scope: anyio.CancelScope
) -> None:
    while (frame := await source.read()) is not None:
        if not await target.write(frame):
            break
    scope.cancel()


def check(context: Context, scope: Scope) -> None:
    """Raise Unauthenticated where no server of this store asks."""
    target = f"{scope['path']}?{scope['query_string'].decode('latin-1')}"
    signature = dict(scope["headers"]).get(HEADER.encode(), b"").decode("latin-1")
    check_signature(context.server_secret, target, signature, context.clock())


def _asked(scope: Scope) -> tuple[int, int, str, bool]:
    """(task, attempt, query for the agent, with stdin).  Raises Invalid."""
    query = scope["query_string"].decode("latin-1")
    task, _, attempt = scope["path"].removeprefix(_STREAMS).partition("/")
    if not (task.isdigit() and attempt.isdigit()):
        raise Invalid("the path is /v1/peers/streams/TASK/ATTEMPT")
    rest, _, stdin = query.rpartition("&stdin=")
    return int(task), int(attempt), rest, stdin == "1"


async def _holder(context: Context, task: int, attempt: int) -> Peer | None:
    """The other server that holds the node of this attempt."""
    if context.db.dialect == "sqlite":
        return None
    peer = await context.db.read(servers.holder, task, attempt, now_us=context.clock())
    return None if peer is None or peer.id == context.server_id else peer


@asynccontextmanager
async def _opened(peer: Peer, target: str, clock: Callable[[], int]) -> AsyncIterator[PeerSocket | None]:
    url = "ws" + peer.url.removeprefix("http") + target
    try:
        wire = await connect(
            url,
            additional_headers={HEADER: sign(peer.secret, target, clock())},
            compression=None,
            max_size=_MOST_FRAME_BYTES,
            max_queue=_FRAMES_AHEAD,
            open_timeout=_OPEN_SECONDS,
            close_timeout=_CLOSE_SECONDS,
            ping_interval=None,  # a side that is held back by a slow reader answers no ping
            proxy=None,
            **trust.websocket_tls(url, peer.fingerprint),
        )
    except (OSError, InvalidHandshake, InvalidURI, TimeoutError, StoreUnavailable) as error:
        log.info("no stream from server %d at %s: %s", peer.id, peer.url, error)
        yield None
        return
    try:
        yield PeerSocket(wire, peer.id)
    finally:
        with anyio.CancelScope(shield=True):
            await wire.close()
