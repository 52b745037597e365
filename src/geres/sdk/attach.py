"""A task's live output and input over a WebSocket, attached again where the connection breaks."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from geres import trust, unix_socket
from geres.errors import GeresError, Unreachable, from_wire
from geres.sdk.http import Transport

#: A frame as it comes: ("o" | "e", bytes), ("s", state), ("end", facts); ("lost", None) when it breaks.
Frame = tuple[str, Any]

_LONGEST_PAUSE_SECONDS = 2.0
_OPEN_SECONDS = 10
#: What was sent of stdin is kept so far back, to send it again after a break.
_KEPT_BYTES = 16 << 20
_BEFORE_A_START = ("blocked", "queued", "held")
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode


class Attachment:
    """One task's streams.  `frames` is for one thread, `write` and the like for another."""

    def __init__(
        self,
        transport: Transport,
        task_id: str,
        *,
        stdin: bool = False,
        from_now: bool = False,
        patience_seconds: float | None = None,
    ) -> None:
        """`from_now` leaves out what was written before.  `patience_seconds`: how long a break may last."""
        self._transport = transport
        self._task_id = task_id
        self._stdin = stdin
        self._from = "now" if from_now else "begin"
        self._patience = patience_seconds
        self._seen = {"o": 0, "e": 0}
        self._sent = 0
        self._kept = bytearray()
        self._eof = False
        self._socket: ClientConnection | None = None
        self._url = ""  #: of the server that was tried last
        self._stack = contextlib.ExitStack()  #: closes the socket
        self._ready = False  #: open, and what a break lost was sent again: the next bytes may go
        self._may_write = threading.Condition()
        self._ended = False

    def frames(self, idle_seconds: float | None = None) -> Iterator[Frame | None]:
        """Every frame until ("end", facts), which is the last; None where nothing came for `idle_seconds`.

        Raises the error that the server names where the task is unknown, Unreachable after patience.
        """
        pause, broken_at = 0.05, None
        try:
            while True:
                try:
                    self._open()
                    for frame in self._read(idle_seconds):
                        if frame is not None:
                            pause, broken_at = 0.05, None
                        yield frame
                    if self._ended:
                        return
                except (OSError, ConnectionClosed, InvalidHandshake, Unreachable) as error:
                    cause: Exception = error
                else:
                    cause = Unreachable("the node's connection broke")
                self._drop()
                broken_at = broken_at or time.monotonic()
                if self._patience is not None and time.monotonic() - broken_at > self._patience:
                    raise Unreachable(
                        f"the connection for task {self._task_id} broke and does not come back: {cause}"
                    ) from cause
                yield ("lost", None)
                time.sleep(pause)
                self._transport.elsewhere(self._url)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        finally:
            self.close()

    def write(self, data: bytes) -> bool:
        """Send stdin, at most 64 KiB; waits while the connection is down.  False once the task has ended."""
        with self._may_write:
            if not self._wait_open():
                return False
            self._kept += data
            self._sent += len(data)
            del self._kept[:-_KEPT_BYTES]
            self._send(["i", data])
        return True

    def write_eof(self) -> None:
        """Say that no more stdin comes."""
        with self._may_write:
            self._eof = True
            if self._wait_open():
                self._send(["eof"])

    def send_signal(self, name: str) -> None:
        """Send a signal, like `INT`, to the task's processes."""
        with self._may_write:
            if self._wait_open():
                self._send(["sig", name])

    def close(self) -> None:
        self._ended = True
        self._drop()
        with self._may_write:
            self._may_write.notify_all()

    def _open(self) -> None:
        address = self._transport.address
        self._url = address.url
        query = f"stdin={int(self._stdin)}&from={self._from}&out={self._seen['o']}&err={self._seen['e']}"
        if self._sent or self._eof:
            query += f"&in={self._sent}"
        path = f"/v1/tasks/{self._task_id}/attach?{query}"
        url, place = unix_socket.websocket(address.url, path)
        stack = contextlib.ExitStack()
        try:
            opened = unix_socket.connect(place["path"], _OPEN_SECONDS) if place else None
            opening = connect(
                url,
                sock=opened,
                additional_headers=self._transport.credentials(),
                compression=None,
                max_size=None,
                open_timeout=_OPEN_SECONDS,
                close_timeout=1,
                ping_timeout=None,  # a server that holds us back (the task does not read) answers no ping
                proxy=None,
                **trust.websocket_tls(url, address.fingerprint),
            )
            socket = stack.enter_context(opening)
        except InvalidStatus as refused:
            raise _refusal(refused) from None
        except OSError as error:
            raise trust.refusal(error, address.url, address.origin) or error from None
        with self._may_write:
            self._socket, self._stack = socket, stack
            self._ready = not (self._sent or self._eof)
            self._may_write.notify_all()

    def _read(self, idle_seconds: float | None) -> Iterator[Frame | None]:
        socket = self._socket
        assert socket is not None
        while True:
            try:
                kind, *rest = _unpack(socket.recv(timeout=idle_seconds, decode=False))
            except TimeoutError:
                yield None
                continue
            value: Any = rest[0] if rest else None
            if kind in self._seen:
                self._seen[kind] += len(value)
            elif kind == "in":
                if not self._ready:
                    self._resend(value)
                continue
            elif kind == "lost":
                return
            elif kind == "s" and value in _BEFORE_A_START:
                self._seen = dict.fromkeys(self._seen, 0)  # the next attempt writes from the beginning
            elif kind == "end":
                self._ended = True
            yield (kind, value)
            if self._ended:
                return

    def _resend(self, arrived: int) -> None:
        """Send what the task has not got of what we sent before the break."""
        with self._may_write:
            missing = self._sent - arrived
            if missing > len(self._kept):
                raise GeresError(
                    f"{missing} bytes of stdin were lost with the connection, more than is kept", lost=missing
                )
            for start in range(len(self._kept) - missing, len(self._kept), 1 << 16):
                self._send(["i", bytes(self._kept[start : start + (1 << 16)])])
            if self._eof:
                self._send(["eof"])
            self._ready = True
            self._may_write.notify_all()

    def _wait_open(self) -> bool:
        self._may_write.wait_for(lambda: self._ready or self._ended)
        return not self._ended

    def _send(self, frame: list[Any]) -> None:
        """Called with the lock.  What is lost on the way is sent again after the next `in`."""
        with contextlib.suppress(ConnectionClosed, OSError):
            if self._socket is not None:
                self._socket.send(_pack(frame))

    def _drop(self) -> None:
        self._socket, self._ready = None, False
        with contextlib.suppress(Exception):
            self._stack.close()


def _refusal(refused: InvalidStatus) -> GeresError:
    try:
        error = msgspec.json.decode(refused.response.body or b"")["error"]
        return from_wire(error["code"], error["message"], error.get("facts") or {})
    except (msgspec.DecodeError, KeyError, TypeError):
        return Unreachable(f"the server answered {refused.response.status_code} to an attach")
