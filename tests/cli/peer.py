"""A small HTTP peer for tests of the transport: it answers what a test says, and remembers what came."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Seen:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int  #: which connection it came on, counted from 1

    def json(self) -> Any:
        return json.loads(self.body)


#: A status with a JSON value or bytes; "drop" closes the connection without an answer.
Answer = tuple[int, Any] | str


@dataclass
class Peer:
    """`answer` is called for each request; by default all is well and empty."""

    answer: Callable[[Seen], Answer] = lambda seen: (200, {})
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    _open: set[socket.socket] = field(default_factory=set)

    def __enter__(self) -> Peer:
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                peer.connections += 1
                peer._open.add(self.connection)
                self.number = peer.connections

            def finish(self) -> None:
                super().finish()
                peer._open.discard(self.connection)

            def log_message(self, *args: object) -> None:
                pass

            def _any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                seen = Seen(self.command, self.path, dict(self.headers), body, self.number)
                peer.seen.append(seen)
                answer = peer.answer(seen)
                if isinstance(answer, str):
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                status, value = answer
                content = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PATCH = _any

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"


def refusal(code: str, message: str, **facts: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "facts": facts}}
