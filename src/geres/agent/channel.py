"""The agent's connection to a server: opened again and again, for as long as the agent lives."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from geres import config, trust, unix_socket
from geres.agent import lease
from geres.agent.access import REMEDY, Access
from geres.agent.machine import heartbeat, hello
from geres.agent.node import Node
from geres.config import AgentConfig
from geres.model.wire import Frame, Welcome, decode, encode

log = logging.getLogger("geres.agent.channel")

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_LONGEST_REFUSED_SECONDS = 30.0  #: where the server, or its certificate, is not for us
_QUIET_SECONDS = 60.0  #: the same reason is logged so often
_OPEN_SECONDS = 15.0
_OPEN_LEARNT_SECONDS = 3.0  #: where nobody said that we reach the address
_WELCOME_SECONDS = 30.0
_SILENT_LEASES = 2.0  #: without an answer to a heartbeat for so many leases, the connection counts as dead
_DOUBTFUL_LEASES = 0.6  #: and for so many, if a server says meanwhile that it is ready
_READY_SECONDS = 2.0


class Refused(Exception):
    """The server said why it does not go on with this connection."""


def open_websocket(access: Access, path: str, ping_seconds: float | None) -> connect:
    """A WebSocket to a server, to be entered.  No proxy stands between us and a server of this machine."""
    loopback = config.is_loopback(urlsplit(access.url).hostname or "")
    uri, place = unix_socket.websocket(access.url, path)
    options = {"proxy": None if loopback else True, **place}
    return connect(
        uri,
        additional_headers=access.headers,
        compression=None,
        max_size=None,
        open_timeout=_OPEN_SECONDS if access.is_given else _OPEN_LEARNT_SECONDS,
        ping_interval=ping_seconds,
        ping_timeout=ping_seconds,
        user_agent_header=None,
        **options,
        **trust.websocket_tls(access.url, access.fingerprint),
    )


class Channel:
    def __init__(
        self,
        node: Node,
        config: AgentConfig,
        folder: Path,
        access: Access,
        notice: str = "",
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._node = node
        self._config = config
        self._folder = folder
        self._access = access
        self._jitter = jitter
        self._bell = asyncio.Event()
        self._again = asyncio.Event()
        self._notice = notice  #: for the node's history, once
        self.leaving = False
        self.is_connected = False
        self._answered_at = 0.0
        self._lease_until = 0.0
        self._beats: dict[int, float] = {}  # number to when it was sent, of those not acknowledged
        node.wake = self._bell.set

    async def run(self) -> None:
        """Connect, serve, connect again, until cancelled."""
        pause, told, told_at, failures = _FIRST_PAUSE_SECONDS, "", 0.0, 0
        while True:
            began, longest = time.monotonic(), _LONGEST_PAUSE_SECONDS
            try:
                await self._serve()
                why = "the server closed it"
            except (OSError, ConnectionClosed, InvalidHandshake, TimeoutError, Refused) as error:
                why = _reason(error, self._access)
                if not self.is_connected and _is_refusal(error, self._access):
                    longest = _LONGEST_REFUSED_SECONDS
            except InvalidURI as error:
                why, url = str(error), self._access.url
                if self._access.is_given:
                    raise SystemExit(f"geres agent: {url!r} is no address of a server: {why}") from None
            if self._again.is_set():
                self.is_connected = False
                continue
            failures = 1 if self.is_connected else failures + 1
            self.is_connected = False
            if time.monotonic() - began > _LONGEST_PAUSE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            if why != told or began - told_at > _QUIET_SECONDS:
                log.warning("no connection to %s (%s), next try in %.1f s", self._access.url, why, pause)
                told, told_at = why, began
            self._access.turn()
            await anyio.sleep(pause * self._jitter(0.5, 1.5))
            if failures >= self._access.count:  # each address has been tried; only then longer pauses
                pause = min(pause * 2, longest)

    def renew(self, config: AgentConfig, notice: str) -> None:
        """Connect again, with these settings and a sentence for the node's history."""
        self._config, self._notice = config, notice
        self._again.set()

    def leave(self) -> None:
        """Tell the server that this node takes nothing more."""
        self.leaving = True
        self._bell.set()

    async def _serve(self) -> None:
        node = self._node
        await node.supervisor_answers()
        async with open_websocket(self._access, "/v1/agents", 20.0) as socket:
            attempts, running = node.keys()
            greeting = hello(
                self._config, self._folder, attempts, running, node.gpu_ids(), node.orders.on_disconnect
            )
            greeting.notice, self._notice = self._notice, ""
            greeting.start = node.start
            self._again.clear()
            sent = lease.clock()
            await socket.send(encode(Frame(hello=greeting)))
            with anyio.fail_after(_WELCOME_SECONDS):
                first = _read(await socket.recv())
            if first.welcome is None:
                raise Refused(first.error or "its first frame is no welcome")
            log.info("connected to %s, epoch %d", self._access.url, first.welcome.epoch)
            node.connected()
            self._beats.clear()
            self._hold_lease(sent, first.welcome)
            self._answered_at = time.monotonic()
            self.is_connected = True
            node.begin(first.welcome.start_task)
            if first.servers:
                self._access.learn(first.servers)
            node.obey(first)
            self._bell.set()
            await self._talk(socket, first.welcome)

    async def _talk(self, socket: ClientConnection, welcome: Welcome) -> None:
        refusal: list[str] = []
        async with anyio.create_task_group() as group:

            async def listen() -> None:
                try:
                    async for data in socket:
                        frame = _read(data)
                        if frame.heartbeat_ack:
                            self._answered_at = time.monotonic()
                            self._heard(frame.heard, welcome)
                        if frame.servers:
                            self._access.learn(frame.servers)
                        self._node.obey(frame)
                        if frame.assign and lease.clock() >= self._lease_until:
                            self._node.beat_bell.set()  # what must not run twice waits for it
                        if frame.error is not None:
                            refusal.append(frame.error)
                            break
                except (ConnectionClosed, Refused) as error:  # a group would hide it from `run`
                    refusal.append(str(error) or type(error).__name__)
                group.cancel_scope.cancel()

            async def begin_again() -> None:
                await self._again.wait()
                group.cancel_scope.cancel()

            group.start_soon(begin_again)
            group.start_soon(self._write, socket)
            group.start_soon(self._beat, socket, welcome)
            group.start_soon(listen)
        if refusal:
            raise Refused(refusal[0])

    def _hold_lease(self, sent: float, welcome: Welcome) -> None:
        self._lease_until = lease.until(sent, welcome.lease_seconds)
        self._node.link.send(("lease", self._lease_until))

    def _heard(self, number: int, welcome: Welcome) -> None:
        """A heartbeat renewed the lease: the one of that number, of an earlier server perhaps the oldest."""
        number = number or min(self._beats, default=0)
        if number in self._beats:
            self._hold_lease(self._beats[number], welcome)
        self._beats = {later: sent for later, sent in self._beats.items() if later > number}

    async def _write(self, socket: ClientConnection) -> None:
        """Send what there is to tell, one frame for all that has gathered."""
        said_leave = False
        while True:
            await self._bell.wait()
            self._bell.clear()
            try:
                while (frame := self._node.next_frame(time.monotonic())) is not None:
                    await socket.send(encode(frame))
                if self.leaving and not said_leave:
                    said_leave = True
                    await socket.send(encode(Frame(drain=True)))
            except ConnectionClosed:
                return  # the reader hears of it too

    async def _beat(self, socket: ClientConnection, welcome: Welcome) -> None:
        node = self._node
        node.answered_at = time.monotonic()
        for number in count(1):
            if node.answers and time.monotonic() - node.answered_at > welcome.lease_seconds:
                log.warning(
                    "the supervisor does not answer; without it this node can do nothing, and is lost"
                )
            else:
                beat = heartbeat(
                    self._folder, node.unreported(), node.draining, number=number, full=node.is_full
                )
                self._beats[number] = lease.clock()
                try:
                    await socket.send(encode(Frame(heartbeat=beat)))
                except ConnectionClosed:
                    return
            node.link.send(("ping",))
            node.repeat(time.monotonic())
            node.beat_bell.clear()
            with anyio.move_on_after(welcome.heartbeat_seconds):
                await node.beat_bell.wait()
            silent = (time.monotonic() - self._answered_at) / welcome.lease_seconds
            if silent > _SILENT_LEASES or (silent > _DOUBTFUL_LEASES and await self._is_ready()):
                log.warning("the server has not answered for %.1f s", time.monotonic() - self._answered_at)
                # no handshake: a frozen server would not answer, and the lease does not wait
                socket.transport.abort()
                return

    async def _is_ready(self) -> bool:
        """True where the next server is there, and the store behind it: then it is ours that is not."""
        return await anyio.to_thread.run_sync(self._access.is_next_ready, _READY_SECONDS)


def _is_refusal(error: BaseException, access: Access) -> bool:
    """True for what another try in a moment does not cure: somebody has to do something."""
    if isinstance(error, InvalidStatus):
        return error.response.status_code in (401, 403)
    return isinstance(error, Refused) or (isinstance(error, ssl.SSLError) and access.is_given)


def _reason(error: Exception, access: Access) -> str:
    """Why there is no connection, in the server's words where it has some, and what cures it."""
    if isinstance(error, InvalidStatus):
        try:
            why = str(msgspec.json.decode(error.response.body or b"")["error"]["message"])
        except (msgspec.DecodeError, KeyError, TypeError):
            why = str(error)
        if error.response.status_code == 401 and access.credential is not None:
            why += f"; if this node is to come back, remove {access.credential} and {REMEDY}"
        return why
    return str(trust.refusal(error, access.url, remedy=REMEDY) or error) or type(error).__name__


def _read(data: str | bytes) -> Frame:
    try:
        return decode(data if isinstance(data, bytes) else data.encode())
    except msgspec.MsgspecError as error:
        raise Refused(f"a frame cannot be read: {error}") from None
