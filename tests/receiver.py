"""A receiver of webhooks on loopback: it keeps what it gets and answers what a test wants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

_PATIENCE_SECONDS = 60.0


class Got(NamedTuple):
    """One message as it came."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def message(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def delivery(self) -> str:
        return self.headers["webhook-id"]


class Receiver:
    """Use it as a context manager.  `answer` gets each message and gives the status, 204 at first."""

    def __init__(
        self, answer: Callable[[Got], int] = lambda got: 204, headers: Mapping[str, str] = {}
    ) -> None:
        self.answer, self.headers = answer, headers
        self.got: list[Got] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                got = Got({name.lower(): value for name, value in self.headers.items()}, body)
                receiver.got.append(got)
                status = receiver.answer(got)
                if not status:
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/ends"

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [one.message for one in list(self.got)]

    def wait_for(self, count: int) -> list[dict[str, Any]]:
        """All messages, once there are so many."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while len(self.got) < count:
            assert time.monotonic() < until, f"{len(self.got)} of {count} messages have come"
            time.sleep(0.02)
        return self.messages

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
