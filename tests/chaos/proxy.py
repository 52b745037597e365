"""A TCP proxy between agents and servers that delays, holds, cuts and half-closes; it doubles nothing."""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import threading
import time
from collections.abc import Callable

_PIECE = 65536
_MOST_WAITING = 1 << 20  #: bytes that wait for one side; then the other is not read


class _Way:
    """One direction of a connection."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source, self.target = source, target
        self.waiting: list[tuple[float, bytes]] = []  # when to send, and what; empty bytes: its end
        self.size = 0
        self.over = False


class Proxy(threading.Thread):
    """Listens at `port`; each new connection goes to one of `targets()`, drawn by chance."""

    def __init__(self, targets: Callable[[], list[int]], dice: random.Random) -> None:
        super().__init__(daemon=True, name="proxy")
        self._targets, self._dice = targets, dice
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._ways: dict[socket.socket, _Way] = {}
        self._lock = threading.Lock()
        self._stopping = False
        self.delay_seconds = 0.0  #: of what comes in from now on
        self.held = False  #: nothing goes on, nothing is refused

    def run(self) -> None:
        self._listener.setblocking(False)
        while not self._stopping:
            with self._lock:
                self._step()
            time.sleep(0.001 if self._ways else 0.02)

    def stop(self) -> None:
        self._stopping = True
        self.join(10)
        self.cut()
        self._listener.close()
        self._selector.close()

    def cut(self) -> None:
        """End all connections at once: what is under way is lost."""
        with self._lock:
            for source in list(self._ways):
                self._drop(source)

    def half_close(self) -> None:
        """One direction of each connection ends; the other goes on, as far as its ends know."""
        with self._lock:
            for source in list(self._ways):
                way = self._ways.get(source)
                if way is not None and not way.over and self._dice.random() < 0.5:
                    way.over = True
                    with contextlib.suppress(OSError):
                        way.target.shutdown(socket.SHUT_WR)

    def _step(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._accept(self._listener.accept()[0])
        if self.held:
            return
        now = time.monotonic()
        for source, way in list(self._ways.items()):
            if source in self._ways:
                self._read(way, now)
            if source in self._ways:
                self._write(way, now)

    def _accept(self, caller: socket.socket) -> None:
        targets = self._targets()
        try:
            server = socket.create_connection(("127.0.0.1", self._dice.choice(targets)), timeout=2)
        except (OSError, IndexError):
            caller.close()
            return
        for one in (caller, server):
            one.setblocking(False)
        self._ways[caller], self._ways[server] = _Way(caller, server), _Way(server, caller)

    def _read(self, way: _Way, now: float) -> None:
        if way.over or way.size > _MOST_WAITING:
            return
        try:
            data = way.source.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            self._drop(way.source)
            return
        way.over = not data
        way.size += len(data)
        way.waiting.append((now + self.delay_seconds, data))

    def _write(self, way: _Way, now: float) -> None:
        while way.waiting and way.waiting[0][0] <= now:
            due, data = way.waiting[0]
            try:
                sent = way.target.send(data) if data else 0
                if not data:
                    way.target.shutdown(socket.SHUT_WR)
            except BlockingIOError:
                return
            except OSError:
                self._drop(way.source)
                return
            way.size -= sent
            if sent < len(data):
                way.waiting[0] = (due, data[sent:])
                return
            way.waiting.pop(0)
        other = self._ways.get(way.target)
        if way.over and not way.waiting and other is not None and other.over and not other.waiting:
            self._drop(way.source)

    def _drop(self, source: socket.socket) -> None:
        way = self._ways.pop(source, None)
        if way is None:
            return
        self._ways.pop(way.target, None)
        for one in (way.source, way.target):
            one.close()
