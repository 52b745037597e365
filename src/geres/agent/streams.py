"""Live output and input: a second WebSocket for each attempt that a client follows."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import anyio.to_thread
import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from geres.agent.access import Access
from geres.agent.channel import open_websocket
from geres.agent.ends import Unreadable
from geres.agent.link import ask
from geres.agent.named import STREAMS, Named, open_named
from geres.agent.node import ENDED, Following, Node
from geres.agent.node_logs import archive
from geres.model.ids import show_task
from geres.model.wire import AttemptKey, Ended, Stream

log = logging.getLogger("geres.agent.streams")

_PIECE_BYTES = 64 << 10
_STDIN_WINDOW_BYTES = 256 << 10
_POLL_SECONDS = 0.25  #: the guarantee; the file watch is the hint
_FAST_POLL_SECONDS = 0.01  #: where there is no file watch
_IN_MODIFY = 0x2
_SMALLEST_HOLE_BYTES = 1 << 20
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode


class FileWatch:
    """Calls when a file is written to, through inotify.  `works` is False where the system has none."""

    def __init__(self) -> None:
        self._calls: dict[int, asyncio.Event] = {}
        self.works = False
        try:
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, AttributeError):
            return
        if self._fd >= 0:
            self.works = True
            asyncio.get_running_loop().add_reader(self._fd, self._readable)

    def add(self, fd: int, event: asyncio.Event) -> int:
        """Set `event` at every write to the file of `fd`.  Returns what `remove` takes."""
        if not self.works:
            return -1
        watch: int = self._libc.inotify_add_watch(self._fd, f"/proc/self/fd/{fd}".encode(), _IN_MODIFY)
        if watch >= 0:
            self._calls[watch] = event
        return watch

    def remove(self, watch: int) -> None:
        if self._calls.pop(watch, None) is not None:
            self._libc.inotify_rm_watch(self._fd, watch)

    def close(self) -> None:
        if self.works:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self.works = False

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        at = 0
        while at + 16 <= len(data):
            event = self._calls.get(int.from_bytes(data[at : at + 4], "little"))
            if event is not None:
                event.set()
            at += 16 + int.from_bytes(data[at + 12 : at + 16], "little")


class Streams:
    """All streams of this agent."""

    def __init__(self, node: Node, socket_path: str, access: Access, logs: Path = Path("logs")) -> None:
        """`logs` is the folder of the agent's and the supervisor's logs."""
        self._node, self._logs = node, logs
        self._socket_path = socket_path
        self._access = access
        self._group: anyio.abc.TaskGroup | None = None
        self._watch: FileWatch | None = None
        self._offsets: dict[tuple[AttemptKey, str], list[list[int]]] = {}

    async def run(self) -> None:
        """Serve the streams that are asked for, until cancelled."""
        self._watch = FileWatch()
        try:
            async with anyio.create_task_group() as self._group:
                await anyio.sleep_forever()
        finally:
            self._watch.close()

    def open(self, stream: Stream) -> None:
        """Begin a stream.  Where its attempt is not here, the other side is told so."""
        if self._group is not None:
            self._group.start_soon(self._serve if stream.task else self._send_logs, stream)

    async def _send_logs(self, stream: Stream) -> None:
        """Send what agent and supervisor have logged, which is asked for as the stream of task 0."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(stream.path).query).items()}
        since = query.get("since", "0")
        pieces = archive(self._logs, int(since) if since.isdigit() else 0)
        try:
            async with open_websocket(self._access, stream.path, None) as socket:
                while (piece := await anyio.to_thread.run_sync(next, pieces, None)) is not None:
                    await socket.send(_pack(["o", piece]))
                await socket.send(_pack(["end", {"logs": True}]))
        except (OSError, ConnectionClosed, InvalidHandshake, TimeoutError) as error:
            log.info("sending the logs has ended: %r", error)

    def reader_of(self, key: AttemptKey, stream: str) -> int | None:
        """How far the slowest live reader of the attempt's stdout ("o") or stderr ("e") has come."""
        places = self._offsets.get((key, stream))
        return min(place[0] for place in places) if places else None

    async def _serve(self, stream: Stream) -> None:
        key = (stream.task, stream.attempt)
        following = self._node.follow(key)
        try:
            async with open_websocket(self._access, stream.path, None) as socket:
                await _Session(self._node, self._socket_path, self._watch, self._offsets, stream).run(
                    socket, following
                )
        except* (OSError, ConnectionClosed, InvalidHandshake, TimeoutError) as errors:
            log.info("the stream of %s ended: %r", show_task(key[0]), errors.exceptions[0])
        finally:
            self._node.unfollow(key)


class _File:
    """One output file that is followed.  `slow`: its disk may hang, so that it is read in a thread."""

    def __init__(
        self, fd: int, begin: int, limit: int, seen: int, from_now: bool, *, slow: bool = False
    ) -> None:
        self._begin = begin
        self._limit = limit
        self.slow = slow
        try:  # a position of our own: theirs is shared with the task
            self.fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            self.fd = os.dup(fd)
        size = os.fstat(self.fd).st_size - begin
        #: how far it was read; a list, to be shared with those who free the middle of large files
        self.place = [max(size, seen) if from_now and not seen else seen]

    def written(self) -> int:
        """Bytes that the attempt has written to it so far."""
        return os.fstat(self.fd).st_size - self._begin

    def read(self, until: int | None = None) -> bytes:
        """What comes next, at most 64 KiB and not beyond `until`; empty for nothing yet."""
        at = self._begin + self.place[0]
        most = _PIECE_BYTES if until is None else min(_PIECE_BYTES, until - self.place[0])
        if most <= 0:
            return b""
        left_out = self._hole(at)
        if left_out:
            self.place[0] += left_out
            return b"\n[geres: %d bytes left out here]\n" % left_out
        try:
            data = os.pread(self.fd, most, at)
        except OSError:  # the user named a file that cannot be read
            return b""
        self.place[0] += len(data)
        return data

    def _hole(self, at: int) -> int:
        """How much of what comes next was freed because there is more output than is kept."""
        try:
            if os.fstat(self.fd).st_size <= self._limit:
                return 0
            left_out = os.lseek(self.fd, at, os.SEEK_DATA) - at
        except OSError:
            return 0
        return left_out if left_out >= _SMALLEST_HOLE_BYTES else 0

    def close(self) -> None:
        os.close(self.fd)


class _Session:
    """One stream: two tails, and input."""

    def __init__(
        self,
        node: Node,
        socket_path: str,
        watch: FileWatch | None,
        offsets: dict[tuple[AttemptKey, str], list[list[int]]],
        stream: Stream,
    ) -> None:
        self._node = node
        self._socket_path = socket_path
        self._watch = watch
        self._offsets = offsets
        self._key: AttemptKey = (stream.task, stream.attempt)
        query = {name: values[0] for name, values in parse_qs(urlsplit(stream.path).query).items()}
        self._from_now = query.get("from") == "now"
        self._only_present = query.get("until") == "now"
        self._wanted = query.get("only", "oe")
        self._seen = {"o": int(query.get("out", 0)), "e": int(query.get("err", 0))}
        self._with_stdin = stream.with_stdin

    async def run(self, socket: ClientConnection, following: Following) -> None:
        state, written, files = await self._borrow(following.bell)
        try:
            if self._only_present:
                await self._tell_present(socket, following, state, files)
            elif state is not None:
                if self._with_stdin:
                    await self._send(socket, ["in", max(written, 0)])
                async with anyio.create_task_group() as group:
                    group.start_soon(self._take_input, socket, group.cancel_scope, written)
                    await self._tail(socket, following.bell, files)
                    group.cancel_scope.cancel()
            await self._send(socket, ["end", _said_of(following.end)])
        finally:
            for file in files.values():
                file.close()

    async def _borrow(self, changed: asyncio.Event) -> tuple[str | None, int, dict[str, _File]]:
        """The attempt's output files, once it has started; state None where it is not here."""
        while True:
            changed.clear()
            if self._node.attempts.get(self._key) in (None, ENDED):
                return None, 0, {}
            answer = await anyio.to_thread.run_sync(ask, self._socket_path, "borrow", *self._key)
            if answer is None:
                return None, 0, {}
            (state, written, streams, _, limit, begins, *rest), fds = answer
            named, all_open = rest if rest else ([], True)
            if state != "waiting" and all_open:
                files = {
                    name: _File(fd, begin, limit, self._seen[name], self._from_now)
                    for name, fd, begin in zip(streams, fds, begins, strict=True)
                    if name in self._wanted
                }
                for fd in fds:
                    os.close(fd)
                return state, written, files | await self._open_named(named, limit)
            for fd in fds:
                os.close(fd)
            if self._only_present:
                return state, 0, {}
            with anyio.move_on_after(_POLL_SECONDS):
                await changed.wait()

    async def _open_named(self, named: list[Named], limit: int) -> dict[str, _File]:
        """The files that only the launcher has opened; what cannot be read is left out."""
        files = {}
        for name, path, begin, owner in named:
            if name not in self._wanted or begin < 0:
                continue
            try:
                files[name] = await self._node.disks.do(
                    _open_slow, path, owner, begin, limit, self._seen[name], self._from_now
                )
            except (Unreadable, OSError, TimeoutError) as error:
                log.info("the %s of %s is not read: %r", STREAMS[name], show_task(self._key[0]), error)
        return files

    async def _tell_present(
        self, socket: ClientConnection, following: Following, state: str | None, files: dict[str, _File]
    ) -> None:
        """Send exactly what the attempt has written up to this moment, after a frame that promises so.

        Without that frame the attempt is not here (any more): the server has its end, or will soon.
        """
        node, key = self._node, self._key
        while state is None and node.attempts.get(key) not in (None, ENDED):
            following.bell.clear()  # its process is gone, the report of it is under way
            with anyio.move_on_after(_POLL_SECONDS):
                await following.bell.wait()
        inline: dict[str, bytes] = {}
        if node.attempts.get(key) == ENDED:
            inline = self._of_ended(files)
        elif node.attempts.get(key) is None:
            return
        await self._send(socket, ["present"])
        for name, data in inline.items():
            if data:
                await self._send(socket, [name, data])
        for name, file in files.items():
            until = await self._node.disks.do(file.written) if file.slow else file.written()
            while data := await self._next(file, until):
                await self._send(socket, [name, data])

    def _of_ended(self, files: dict[str, _File]) -> dict[str, bytes]:
        """The output of an attempt whose end is not acknowledged: from its report, the rest as files."""
        report, paths, limit = self._node.output_of(self._key)
        inline = {}
        for name, stream in STREAMS.items():
            if name not in self._wanted or name in files:
                continue
            data, written = getattr(report, stream), getattr(report, f"{stream}_bytes")
            if stream in paths:
                try:
                    fd = os.open(paths[stream], os.O_RDONLY | os.O_CLOEXEC)
                except OSError:
                    continue
                files[name] = _File(fd, 0, limit, self._seen[name], False)
                os.close(fd)
            else:
                inline[name] = data[max(self._seen[name] - (written - len(data)), 0) :]
        return inline

    async def _next(self, file: _File, until: int | None = None) -> bytes:
        """What comes next in it; nothing where its disk hangs."""
        if not file.slow:
            return file.read(until)
        try:
            return await self._node.disks.do(file.read, until)
        except TimeoutError:
            return b""

    async def _tail(self, socket: ClientConnection, changed: asyncio.Event, files: dict[str, _File]) -> None:
        """Send what the files hold and what is written to them, until the attempt is over."""
        watch = self._watch
        for name, file in files.items():
            self._offsets.setdefault((self._key, name), []).append(file.place)
        watches = (
            [] if watch is None else [watch.add(file.fd, changed) for file in files.values() if not file.slow]
        )
        pause = _POLL_SECONDS if watch is not None and watch.works else _FAST_POLL_SECONDS
        try:
            while True:
                over = self._node.attempts.get(self._key) in (None, ENDED)
                changed.clear()
                for name, file in files.items():
                    while data := await self._next(file):
                        await self._send(socket, [name, data])
                if over:
                    return
                with anyio.move_on_after(pause):
                    await changed.wait()
        finally:
            for number in watches:
                if watch is not None:
                    watch.remove(number)
            for name, file in files.items():
                readers = self._offsets[self._key, name]
                readers[:] = [place for place in readers if place is not file.place]
                if not readers:
                    del self._offsets[self._key, name]

    async def _send(self, socket: ClientConnection, frame: list[Any]) -> None:
        await socket.send(_pack(frame))

    async def _take_input(self, socket: ClientConnection, scope: anyio.CancelScope, written: int) -> None:
        """Carry out what the client sends.  Input waits until the task has taken most of what came before."""
        sent = written
        async for data in socket:
            match _frame_of(data):
                case ["i", bytes() as piece] if self._with_stdin:
                    self._node.link.send(("stdin", self._key, piece))
                    sent += len(piece)
                    await self._until_given(sent - _STDIN_WINDOW_BYTES)
                case ["eof"] if self._with_stdin:
                    self._node.link.send(("eof", self._key))
                case ["sig", str() as name] if number := _signal_number(name):
                    self._node.link.send(("signal", self._key, number))
        scope.cancel()

    async def _until_given(self, offset: int) -> None:
        node, key = self._node, self._key
        while 0 <= node.stdin_given.get(key, 0) < offset and node.attempts.get(key) not in (None, ENDED):
            event = node.stdin_bell(key)
            with anyio.move_on_after(1.0):
                await event.wait()


def _open_slow(path: bytes, owner: int | None, begin: int, limit: int, seen: int, from_now: bool) -> _File:
    fd = open_named(path, owner)
    try:
        return _File(fd, begin, limit, seen, from_now, slow=True)
    finally:
        os.close(fd)


def _frame_of(data: bytes | str) -> Any:
    """What a client sent; None where it makes no sense: one client must not end the agent."""
    try:
        return _unpack(data) if isinstance(data, bytes) else None
    except msgspec.MsgspecError:
        return None


def _said_of(report: Ended | None) -> dict[str, Any]:
    if report is None:
        return {}
    return {
        "state": report.outcome,
        "reason": report.reason,
        "message": report.message,
        "exit_code": report.exit_code,
        "signal": report.signal,
    }


def _signal_number(name: Any) -> int:
    if isinstance(name, int):
        return name
    text = str(name).upper().removeprefix("SIG")
    return int(signal.Signals[f"SIG{text}"]) if f"SIG{text}" in signal.Signals.__members__ else 0
