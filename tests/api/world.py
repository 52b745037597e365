"""A server under test, spoken to over HTTP alone, and an agent that says what a test lets it say."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import anyio
import msgspec
from anyio.from_thread import start_blocking_portal
from websockets.sync.client import ClientConnection, connect

from geres.config import ServerConfig
from geres.model.ids import parse_task, show_task
from geres.model.wire import Ask, Assign, Ended, Frame, Hello, Stream, decode, encode
from geres.server.main import serve

_pack, _unpack = msgspec.msgpack.encode, msgspec.msgpack.decode


class Api:
    """A server with a home of its own; use it as a context manager."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.home = home
        self.settings = ServerConfig(port=0, **settings)
        self.url = ""

    def __enter__(self) -> Api:
        self._portal_manager = start_blocking_portal("asyncio", {"use_uvloop": True})
        self._portal = self._portal_manager.__enter__()
        self._stop = self._portal.call(_event)
        started = threading.Event()

        def ready(url: str) -> None:
            self.url = url
            started.set()

        self._run = self._portal.start_task_soon(self._serve, ready)
        self._run.add_done_callback(lambda _: started.set())
        assert started.wait(20)
        if not self.url:
            self._portal_manager.__exit__(None, None, None)
            self._run.result()
        return self

    async def _serve(self, ready: Any) -> None:
        await serve(self.settings, self.home, stop=self._stop, ready=ready)

    def __exit__(self, *error: object) -> None:
        try:
            self.stop()
        finally:
            self._portal_manager.__exit__(None, None, None)

    def stop(self) -> None:
        """Stop in order, and wait for it.  Raises what the server raised."""
        self._portal.call(self._stop.set)
        self._run.result(timeout=20)

    @property
    def token(self) -> str:
        return (self.home / "token").read_text().strip()

    @property
    def agent_token(self) -> str:
        return (self.home / "agent.token").read_text().strip()

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        token: str | None = "",
        timeout: float = 20,
        **query: Any,
    ) -> Answer:
        """One request on a connection of its own.  `token` None sends none, "" the admin's."""
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token or self.token}"
        content = body if isinstance(body, bytes | None) else msgspec.json.encode(body)
        target = path + ("?" + urlencode(query) if query else "")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, target, content, sent)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(), dict(answer.getheaders()))
        finally:
            connection.close()

    def get(self, path: str, **query: Any) -> Any:
        """The JSON of a GET that must go well."""
        return self.call("GET", path, **query).good

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        return self.call("POST", path, {} if body is None else body, **query).good

    def submit(self, *argv: str, **task: Any) -> str:
        """The id of a new task."""
        answer = self.post("/v1/tasks", {"task": {"command": list(argv or ("true",)), **task}})
        return str(answer["task"]["id"])

    def wait(self, task: str, state: str, seconds: float = 10) -> Any:
        """The task, once it is in this state.  Asks again and again: for states that ring no bell."""
        until = time.monotonic() + seconds
        while True:
            found = self.get(f"/v1/tasks/{task}")
            if found["state"] == state:
                return found
            assert time.monotonic() < until, f"{task} is {found['state']}, not {state}"
            threading.Event().wait(0.01)

    def socket(self, path: str, *, token: str = "") -> Socket:
        """A WebSocket, accepted."""
        return Socket(f"ws://127.0.0.1:{self.port}{path}", token or self.token)


class Socket:
    """A WebSocket of bytes."""

    def __init__(self, url: str, token: str, *, headers: dict[str, str] | None = None) -> None:
        self._closing = contextlib.ExitStack()
        headers = {"Authorization": f"Bearer {token}", **(headers or {})}
        opening = connect(
            url, additional_headers=headers, compression=None, max_size=None, close_timeout=2, proxy=None
        )
        self._wire: ClientConnection = self._closing.enter_context(opening)

    def send(self, data: bytes) -> None:
        self._wire.send(data)

    def read(self, seconds: float = 10) -> bytes:
        return self._wire.recv(timeout=seconds, decode=False)

    def close(self) -> None:
        self._closing.close()


class Answer:
    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.status, self.body, self.headers = status, body, {k.lower(): v for k, v in headers.items()}

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def good(self) -> Any:
        assert self.status < 300, (self.status, self.body)
        return self.json

    @property
    def error(self) -> Any:
        """The refusal; there must be one."""
        assert self.status >= 400, (self.status, self.body[:500])
        return self.json["error"]


async def _event() -> anyio.Event:
    return anyio.Event()


class Agent:
    """One node: it runs nothing, and reports what a test tells it to."""

    def __init__(self, api: Api, name: str = "n1", **facts: Any) -> None:
        self._api, self.name = api, name
        self._socket = api.socket("/v1/agents", token=api.agent_token)
        fields: dict[str, Any] = {"cpus": 4.0, "memory_bytes": 8 << 30} | facts
        hello = Hello(1, "0", name, "boot", "host-1", "host", "x86_64", "linux", 1, "ann", **fields)
        self.send(Frame(hello=hello))
        self.assigned: list[Assign] = []
        self.asked: list[Ask] = []
        self.streams: list[Stream] = []
        self.acked: list[tuple[int, int]] = []
        self.refused: str | None = None
        first = self._read(10)
        assert first.welcome is not None, first.error
        self.welcome = first.welcome

    def send(self, frame: Frame) -> None:
        self._socket.send(encode(frame))

    def _read(self, seconds: float) -> Frame:
        frame = decode(self._socket.read(seconds))
        self.assigned += frame.assign
        self.asked += frame.ask
        self.streams += frame.streams
        self.acked += [tuple(key) for key in frame.ack]
        self.refused = frame.error or self.refused
        return frame

    def until(self, seen: Any, seconds: float = 10) -> None:
        """Read frames until `seen()` is true."""
        until = time.monotonic() + seconds
        while not seen():
            self._read(max(0.0, until - time.monotonic()))

    def take(self, count: int = 1) -> list[str]:
        """Ids of the next tasks that are assigned, in order of their ids."""
        self.until(lambda: len(self.assigned) >= count)
        return sorted(show_task(one.task) for one in self.assigned)

    def attempt(self, task: str) -> int:
        """The attempt of the task that was assigned here last."""
        return [one.attempt for one in self.assigned if one.task == parse_task(task)][-1]

    def start(self, *ids: str) -> None:
        now = time.time_ns() // 1000
        self.send(Frame(started=[(parse_task(one) or 0, self.attempt(one), now) for one in ids]))

    def end(self, *ids: str, outcome: str = "succeeded", **facts: Any) -> None:
        """Report ends, and wait until they are acknowledged."""
        now = time.time_ns() // 1000
        if outcome == "succeeded":
            facts = {"exit_code": 0} | facts
        keys = [(parse_task(one) or 0, self.attempt(one)) for one in ids]
        self.send(Frame(ended=[Ended(*key, outcome, started_us=now, ended_us=now, **facts) for key in keys]))
        self.until(lambda: set(keys) <= set(self.acked))

    def stream(self) -> AgentStream:
        """Connect to the next stream that the server asks for."""
        self.until(lambda: self.streams)
        asked = self.streams.pop(0)
        return AgentStream(self._api.socket(asked.path, token=self._api.agent_token), asked)

    def close(self) -> None:
        self._socket.close()


class AgentStream:
    """The agent's side of an attach."""

    def __init__(self, socket: Socket, asked: Stream) -> None:
        self.asked = asked
        self._socket = socket

    def write(self, *frame: Any) -> None:
        self._socket.send(_pack(list(frame)))

    def read(self, seconds: float = 10) -> list[Any]:
        found: list[Any] = _unpack(self._socket.read(seconds))
        return found

    def close(self) -> None:
        self._socket.close()


class Client:
    """The client's side of an attach."""

    def __init__(self, api: Api, task: str, query: str = "") -> None:
        self._socket = api.socket(f"/v1/tasks/{task}/attach{query}")

    def read(self, seconds: float = 10) -> list[Any]:
        found: list[Any] = _unpack(self._socket.read(seconds))
        return found

    def until(self, kind: str) -> list[list[Any]]:
        """All frames up to the first of this kind, which is the last."""
        frames = []
        while True:
            frames.append(self.read())
            if frames[-1][0] == kind:
                return frames

    def write(self, *frame: Any) -> None:
        self._socket.send(_pack(list(frame)))

    def close(self) -> None:
        self._socket.close()
