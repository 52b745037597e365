"""The agent's outside world for tests: a server that speaks model/wire.py, and real agent processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import uvicorn

from geres.agent.accounts import own_account
from geres.agent.link import ask, socket_path
from geres.model.tasks import TaskSpec
from geres.model.wire import (
    Ask,
    Assign,
    AttemptKey,
    Ended,
    Frame,
    Hello,
    Spec,
    StartOrder,
    StartReport,
    Stream,
    Welcome,
    decode,
    encode,
)

TOKEN = "agent-token"
LANE = 1
_PATIENCE_SECONDS = 30.0


class Peer:
    """One connection of an agent, as the server sees it."""

    def __init__(self, hello: Hello, send: Callable[[dict[str, Any]], Any]) -> None:
        self.hello = hello
        self._send = send
        self.open = True

    async def send(self, frame: Frame) -> None:
        await self._send({"type": "websocket.send", "bytes": encode(frame)})

    async def close(self) -> None:
        self.open = False
        with contextlib.suppress(RuntimeError, OSError):  # it hung up first
            await self._send({"type": "websocket.close", "code": 1000})


class Server:
    """Takes agents in, notes all that they say, acknowledges ends where `acknowledges` is set."""

    def __init__(self) -> None:
        self.url = ""
        self.acknowledges = True
        self.refuses_uploads = False
        self.hangs_uploads = False
        self.heartbeat_seconds = 0.5
        self.answers_heartbeats = True
        self.lets_in = True
        self.peers: list[Peer] = []
        self.ended: dict[AttemptKey, Ended] = {}
        self.end_count: dict[AttemptKey, int] = {}
        self.started: dict[AttemptKey, int] = {}
        self.asked: list[tuple[int, int, str]] = []
        self.heartbeats: list[Any] = []
        self.blobs: dict[str, bytes] = {}
        self.streams: dict[str, asyncio.Queue[Any]] = {}
        self.stream_sends: dict[str, Callable[[Any], Any]] = {}
        self.drained = False
        self.start_task: StartOrder | None = None  #: that agents are told of
        self.starts: list[StartReport] = []
        self._changed = asyncio.Event()
        self._spec_id = 0

    # what tests do

    @property
    def lease_seconds(self) -> float:
        return self.heartbeat_seconds * 6

    @property
    def peer(self) -> Peer:
        return self.peers[-1]

    async def until(self, condition: Callable[[], Any], seconds: float = _PATIENCE_SECONDS) -> Any:
        """Wait until the condition holds, looking after all that is heard."""
        async with asyncio.timeout(seconds):
            while not (found := condition()):
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await self._changed.wait()
        return found

    async def connected(self, count: int = 1) -> Peer:
        await self.until(lambda: len(self.peers) >= count)
        return self.peer

    async def end_of(self, number: int, attempt: int = 1, seconds: float = _PATIENCE_SECONDS) -> Ended:
        key = (1 << 32 | number, attempt)
        await self.until(lambda: key in self.ended, seconds)
        return self.ended[key]

    async def start_of(self, number: int, attempt: int = 1) -> None:
        key = (1 << 32 | number, attempt)
        await self.until(lambda: key in self.started or key in self.ended)

    def spec(self, *command: str, **fields: Any) -> Spec:
        self._spec_id += 1
        given = TaskSpec(command=list(command) or None, **fields)
        return Spec(self._spec_id, given, {})

    async def assign(
        self, spec: Spec, *numbers: int, attempt: int = 1, ahead: int = 0, lane: int = LANE, **fields: Any
    ) -> None:
        """Send the specification and one assignment for each task number of job 1."""
        assigns = [
            Assign(1 << 32 | number, attempt, spec.spec_id, lane, "default", ahead=ahead, **fields)
            for number in numbers
        ]
        await self.peer.send(Frame(specs=[spec], assign=assigns))

    async def run(self, number: int, *command: str, **fields: Any) -> Ended:
        """Run one command as task `number` of job 1, to its end."""
        await self.assign(self.spec(*command, **fields), number)
        return await self.end_of(number)

    async def ask(self, number: int, action: str, **fields: Any) -> None:
        await self.peer.send(Frame(ask=[Ask(1 << 32 | number, 1, action, **fields)]))

    async def stream(self, number: int, query: str = "from=begin", with_stdin: bool = False) -> str:
        """Open a stream.  Returns its name, for `streams` and `say`."""
        name = f"s{len(self.streams) + 1}"
        self.streams[name] = asyncio.Queue()
        path = f"/v1/agents/streams/{name}?{query}"
        await self.peer.send(Frame(streams=[Stream(1 << 32 | number, 1, path, with_stdin)]))
        return name

    async def say(self, name: str, *frame: Any) -> None:
        await self.until(lambda: name in self.stream_sends)
        data = msgspec.msgpack.encode(list(frame))
        await self.stream_sends[name]({"type": "websocket.send", "bytes": data})

    async def heard(self, name: str, seconds: float = _PATIENCE_SECONDS) -> list[Any]:
        async with asyncio.timeout(seconds):
            found: list[Any] = await self.streams[name].get()
        return found

    # what agents see

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        headers = dict(scope["headers"])
        assert headers[b"authorization"] == f"Bearer {TOKEN}".encode()
        if scope["type"] == "http":
            await self._take_upload(scope["path"], receive, send)
        elif scope["path"] == "/v1/agents":
            await self._take_agent(receive, send)
        else:
            await self._take_stream(scope["path"].rpartition("/")[2], receive, send)

    async def _take_upload(self, path: str, receive: Any, send: Any) -> None:
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        await self.until(lambda: not self.hangs_uploads, 120)
        status = 503 if self.refuses_uploads else 200
        if not self.refuses_uploads:
            self.blobs[path] = bytes(body)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": msgspec.json.encode({"blob": path})})
        self._changed.set()

    async def _take_agent(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        first = decode((await receive())["bytes"])
        assert first.hello is not None
        await self.until(lambda: self.lets_in)
        peer = Peer(first.hello, send)
        epoch = len(self.peers) + 1
        facts = (epoch, 1, self.lease_seconds, self.heartbeat_seconds, "0")
        await peer.send(Frame(welcome=Welcome(*facts, self.start_task)))
        self.peers.append(peer)
        self._changed.set()
        while (message := await receive())["type"] == "websocket.receive":
            await self._take_frame(peer, decode(message["bytes"]))
            self._changed.set()
        peer.open = False
        self._changed.set()

    async def _take_frame(self, peer: Peer, frame: Frame) -> None:
        for task, attempt, at in frame.started:
            self.started[task, attempt] = at
        self.asked += frame.asked
        for ended in frame.ended:
            key = (ended.task, ended.attempt)
            self.ended[key] = ended
            self.end_count[key] = self.end_count.get(key, 0) + 1
        if frame.ended and self.acknowledges:
            await peer.send(Frame(ack=[(ended.task, ended.attempt) for ended in frame.ended]))
        if frame.heartbeat is not None:
            self.heartbeats.append(frame.heartbeat)
            if self.answers_heartbeats:
                await peer.send(Frame(heartbeat_ack=True, heard=frame.heartbeat.number))
        self.drained = self.drained or frame.drain
        self.starts += [frame.start] if frame.start is not None else []

    async def _take_stream(self, name: str, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        self.stream_sends[name] = send
        self._changed.set()
        while (message := await receive())["type"] == "websocket.receive":
            await self.streams[name].put(msgspec.msgpack.decode(message["bytes"]))
        await self.streams[name].put(None)


@contextlib.asynccontextmanager
async def serving(port: int = 0) -> AsyncIterator[Server]:
    """A server on a port of loopback."""
    app = Server()
    config = uvicorn.Config(
        app,
        "127.0.0.1",
        port,
        log_level="error",
        lifespan="off",
        ws="websockets-sansio",
        ws_max_size=1 << 30,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    listener = socket.create_server(("127.0.0.1", port))
    app.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    running = asyncio.create_task(server.serve([listener]))
    try:
        yield app
    finally:
        for peer in app.peers:
            if peer.open:
                await peer.close()
        server.should_exit = True
        await running
        listener.close()


class Agent:
    """A real agent process with its home."""

    def __init__(self, home: Path, url: str, *flags: str, **environment: str) -> None:
        self.home = home
        home.mkdir(exist_ok=True)
        (home / "agent.token").write_text(TOKEN)
        self._words = [sys.executable, "-m", "geres.agent", "--home", str(home), "--url", url, *flags]
        # Submitters are no accounts of this machine here, but for the tests of accounts.
        trusting = {"GERES_AGENT__ACCOUNTS": f"*={own_account().name}"}
        self._environment = {**os.environ, "GERES_AGENT__NAME": "n1", **trusting, **environment}
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with (self.home / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment, cwd="/"
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        return (self.home / "agent.log").read_text()

    @property
    def supervisor_log(self) -> str:
        path = self.home / "logs" / "supervisor.log"
        return path.read_text() if path.exists() else ""

    def supervisor(self) -> dict[str, Any]:
        """What the supervisor has; empty where there is none."""
        answer = ask(socket_path(self.home / "agent"), "status")
        return {} if answer is None else answer[0]

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self, seconds: float = 20.0) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def end(self) -> None:
        """Stop the agent, the tasks and the supervisor, however they are."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        pid = self.supervisor().get("pid")
        if pid is None:
            return
        supervisor = psutil.Process(pid)
        for task in supervisor.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                task.kill()
        supervisor.kill()
        until(lambda: not supervisor.is_running() or supervisor.status() == psutil.STATUS_ZOMBIE)


def until(condition: Callable[[], Any], seconds: float = _PATIENCE_SECONDS) -> Any:
    """Wait for what happens in other processes."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
    return found


def processes_with(word: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter(["cmdline"]):
        if word in (process.info["cmdline"] or []):
            yield process
