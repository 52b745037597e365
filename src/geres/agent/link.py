"""The agent's end of the Unix socket to its supervisor, which it starts where none answers."""

from __future__ import annotations

import array
import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from geres.agent import frames
from geres.agent.frames import Unpacker, pack

log = logging.getLogger("geres.agent.link")

_LONGEST_SOCKET_PATH = 100  #: the system's limit is 108 with the end
_START_SECONDS = 20.0
_RECEIVE_BYTES = 1 << 18


def socket_path(folder: Path) -> str:
    """Where the supervisor of this folder listens: in it, or in the runtime folder where that is too long."""
    path = str(folder / "supervisor.sock")
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        return path
    import hashlib  # hardly any home is so deep

    runtime = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    private = Path(runtime) / f"geres-{os.getuid()}"
    private.mkdir(mode=0o700, exist_ok=True)
    if private.stat().st_uid != os.getuid() or private.stat().st_mode & 0o077:
        raise PermissionError(f"{private} is not a folder of this account alone")
    return str(private / f"{name}.sock")


def start_supervisor(folder: Path, log_path: Path) -> subprocess.Popen[bytes]:
    """Start the supervisor of `folder`, in a session of its own.  It leaves where another works there."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    file = str(Path(frames.__file__).with_name("supervisor.py"))
    words = [sys.executable, "-I", "-S", file, "geres", "supervisor", str(folder), socket_path(folder)]
    with log_path.open("ab") as log_file:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            start_new_session=True,
            cwd="/",
        )


def connect(path: str) -> socket.socket | None:
    """A blocking connection to the supervisor; None where none answers."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        return None
    return connection


def ask(path: str, *order: Any, seconds: float = 5.0) -> tuple[Any, list[int]] | None:
    """Give the supervisor one order on a connection of its own; blocking.

    Returns its answer and the descriptors that came with it, which are the caller's to close; None where
    there is no supervisor or no answer.
    """
    connection = connect(path)
    if connection is None:
        return None
    with connection:
        connection.settimeout(seconds)
        unpacker = Unpacker()
        fds: list[int] = []
        try:
            connection.sendall(pack([order]))
            while True:
                data, ancillary, _, _ = connection.recvmsg(_RECEIVE_BYTES, socket.CMSG_SPACE(4 * 4))
                for level, kind, rights in ancillary:
                    if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                        received = array.array("i")
                        received.frombytes(rights[: len(rights) - len(rights) % received.itemsize])
                        fds += received
                if values := unpacker.feed(data):
                    return values[0], fds
                if not data:
                    return None
        except OSError:
            for fd in fds:
                os.close(fd)
            return None


class Link:
    """The connection: orders go out in the order given, frames come in to `receive`, its end to `lost`."""

    def __init__(
        self, folder: Path, log_path: Path, receive: Callable[[Any], None], lost: Callable[[], None]
    ) -> None:
        self._folder = folder
        self._log_path = log_path
        self._receive = receive
        self._lost = lost
        self._socket: socket.socket | None = None
        self._unpacker = Unpacker()
        self._unsent = bytearray()
        self._orders: list[Any] = []
        self._process: subprocess.Popen[bytes] | None = None
        self.path = socket_path(folder)

    async def open(self) -> None:
        """Connect, starting a supervisor where none answers.  Raises TimeoutError where none will."""
        until = time.monotonic() + _START_SECONDS
        pause = 0.002
        while (connection := connect(self.path)) is None:
            if self._process is None or self._process.poll() is not None:
                self._process = start_supervisor(self._folder, self._log_path)
            if time.monotonic() > until:
                raise TimeoutError(f"the supervisor does not start; its log is {self._log_path}")
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.2)
        connection.setblocking(False)
        self._socket = connection
        self._unpacker = Unpacker()
        self._unsent.clear()
        self._orders.clear()
        asyncio.get_running_loop().add_reader(connection, self._readable)
        self.send(("hello", os.getpid()))

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def send(self, *orders: tuple[Any, ...]) -> None:
        """Give orders.  All that are given in one turn of the event loop travel together."""
        if not self._orders:
            asyncio.get_running_loop().call_soon(self._flush)
        self._orders += orders

    def close(self) -> None:
        """Leave the supervisor to itself."""
        self._flush()
        if self._socket is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._socket)
            loop.remove_writer(self._socket)
            self._socket.close()
            self._socket = None

    def reap(self) -> None:
        """Take note of the end of a supervisor that was started here, so that it is no zombie."""
        if self._process is not None and self._process.poll() is not None:
            self._process = None

    def _flush(self) -> None:
        if self._socket is None or not self._orders:
            self._orders.clear()
            return
        data = pack(self._orders)
        self._orders.clear()
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the reader hears of it
        if sent < len(data):
            self._unsent += data[sent:]
            asyncio.get_running_loop().add_writer(self._socket, self._writable)

    def _writable(self) -> None:
        assert self._socket is not None
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            return
        del self._unsent[:sent]
        if not self._unsent:
            asyncio.get_running_loop().remove_writer(self._socket)

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            self._lost()
            return
        for frame in self._unpacker.feed(data):
            self._receive(frame)
