"""The supervisor: the parent of every task process.  It does nothing else, and survives the agent.

Run as a file with `python -I -S`, it imports little, so that it stays small and starts fast.  One agent at a
time gives orders over a Unix socket; frames and their fields are listed in `Supervisor._obey` and `_report`.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # run as a file: the package is not on the path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import array
import fcntl
import gc
import select
import signal
import socket
import time

from geres.agent.attempts import LOST, WAITING, Key, Spec
from geres.agent.capture import Captures
from geres.agent.cgroups import MemoryGroups
from geres.agent.family import kill_leftovers
from geres.agent.folders import Folders
from geres.agent.frames import Unpacker, pack
from geres.agent.inputs import Inputs
from geres.agent.journal import Journal, read
from geres.agent.process import now_us
from geres.agent.running import Running
from geres.agent.starting import Starter

_END_DELAY_SECONDS = 0.025  #: ends gather this long while work is waiting here anyway
_START_DELAY_SECONDS = 0.012  #: a start is not worth a word if the end follows at once
_JOURNAL_DELAY_SECONDS = 0.02
_MOST_GATHERED = 256
_TICK_SECONDS = 1.0
_SHORT_TICK_SECONDS = 0.2  #: while something was sent ahead
_ALONE_SECONDS = 10.0  #: without an agent and without work it leaves
_RECEIVE_BYTES = 1 << 18
_LEFTOVER_SECONDS = 5.0


class Supervisor:
    def __init__(self, folder: str, socket_path: str) -> None:
        self._folder = folder
        self._socket_path = socket_path
        self._boot_id = boot_id()
        self._specs: dict[int, Spec] = {}
        self._agent: socket.socket | None = None
        self._agent_unpacker = Unpacker()
        self._callers: dict[int, tuple[socket.socket, Unpacker]] = {}
        self._unsent = b""
        self._gathered_since = 0.0
        self._unwritten_since = 0.0
        self._alone_since = time.monotonic()
        self._leaving = False
        self._next_look = 0.0
        folders, journal = self._recover(folder)
        self._running = Running(Starter(folders, Captures(folder + "/tasks"), MemoryGroups()), journal)
        self._running.ended = self._recovered
        self._running.compact_journal()
        self._listen()
        self._inputs = Inputs(
            self._poll, self._running.attempts.get, lambda key, given: self._send(("stdin", key, given))
        )
        self._running.close_input = self._inputs.close

    def _recover(self, folder: str) -> tuple[Folders, Journal]:
        """Take up what an earlier supervisor left: its ends are reported, its processes killed."""
        path = folder + "/journal"
        known = read(path)
        folders = Folders(folder + "/tasks")
        same_boot = known.boot_id == self._boot_id
        if same_boot:
            kill_leftovers(folders.tag, known.started, _LEFTOVER_SECONDS)
        reason, message = (
            ("supervisor_lost", "the supervisor of this node died while the task ran")
            if same_boot
            else ("node_rebooted", "the node was rebooted while the task ran")
        )
        ended = dict(known.ended)
        for (task, attempt), start in known.started.items():
            started_us = start[1] if start is not None else None
            what = ("failed", reason, message, started_us, now_us())
            ended[task, attempt] = (task, attempt, LOST, 0, *what, None, None, None, None, None)
        self._recovered = ended
        folders.clear()
        return folders, Journal(path, self._boot_id)

    def _listen(self) -> None:
        self._wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # A stop of the whole group must not end us, who are the last to go.  Handlers, because what is
        # ignored would be ignored by our tasks too.
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, frame: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        try:
            os.unlink(self._socket_path)
        except FileNotFoundError:
            pass
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listener.bind(self._socket_path)
        os.chmod(self._socket_path, 0o600)
        self._listener.listen(16)
        self._socket_inode = os.stat(self._socket_path).st_ino
        self._poll = select.epoll()
        self._poll.register(self._wake_read, select.EPOLLIN)
        self._poll.register(self._listener, select.EPOLLIN)

    # -- the loop

    def run(self) -> None:
        """Work until told to leave, or left alone with nothing to do."""
        running = self._running
        next_tick = 0.0
        clock = time.monotonic
        while not self._leaving:
            events = self._poll.poll(self._pause(clock(), next_tick))
            now = clock()
            died = False
            for fd, what in events:
                if fd == self._wake_read:
                    died = True
                    os.read(fd, 4096)
                else:
                    self._serve(fd, what, now)
            if died:
                running.reap(now)
            if running.lanes.ready:
                running.start_some(now)
            running.fire_timers(now)
            if running.lease.has_ended:
                running.stop_alone(now)
            if now >= next_tick:
                self._tick(now)
                next_tick = now + (_SHORT_TICK_SECONDS if running.lanes.waits_ahead else _TICK_SECONDS)
            self._write_down(now)
            self._report(clock())
        self._close()

    def _pause(self, now: float, next_tick: float) -> float:
        """How long the loop may sleep, in seconds."""
        running = self._running
        if running.lanes.ready:
            return 0.0
        until = next_tick
        for timer in (running.next_timer(), running.lease.ends_at(now)):
            if timer is not None and timer < until:
                until = timer
        if self._gathered_since:
            until = min(until, self._gathered_since + self._delay())
        if self._unwritten_since:
            until = min(until, self._unwritten_since + _JOURNAL_DELAY_SECONDS)
        return max(until - now, 0.0)

    def _write_down(self, now: float) -> None:
        """Bring the journal to the file: ends at once, the rest with them, or soon."""
        journal = self._running.journal
        if not journal.is_pending:
            self._unwritten_since = 0.0
        elif not self._unwritten_since:
            self._unwritten_since = now
        if journal.is_pressing or (
            self._unwritten_since and now - self._unwritten_since >= _JOURNAL_DELAY_SECONDS
        ):
            journal.flush()
            if journal.broken:  # no end is told before it is written, while there is any room for it
                self._running.compact_journal()
            self._unwritten_since = 0.0

    def _delay(self) -> float:
        return _END_DELAY_SECONDS if self._running.new_ended else _START_DELAY_SECONDS

    def _tick(self, now: float) -> None:
        running = self._running
        running.reap(now)
        running.tick(now)
        if now >= self._next_look:
            self._next_look = now + _TICK_SECONDS
            self._look_at_disk(now)
            running.journal.hold_reserve()
        if running.journal.is_long:
            running.compact_journal()
        if self._agent is None:
            self._consider_leaving(now)
        gc.collect(0)

    def _look_at_disk(self, now: float) -> None:
        """Tell the agent what may be over a limit on disk; measuring folders is its work."""
        if large := self._running.outgrown(now):
            self._send(("large", large))
        if allowed := self._running.allowances(now):
            self._send(("disk", allowed))

    def _consider_leaving(self, now: float) -> None:
        running = self._running
        try:
            is_ours = os.stat(self._socket_path).st_ino == self._socket_inode
        except OSError:
            is_ours = False
        if not is_ours:  # the home was removed under us
            running.kill_silently(list(running.attempts))
            self._leaving = not running.has_running
        elif not running.attempts and now - self._alone_since > _ALONE_SECONDS:
            self._leaving = True

    def _close(self) -> None:
        self._running.journal.flush()
        self._running.starter.groups.close()
        if os.path.exists(self._socket_path) and os.stat(self._socket_path).st_ino == self._socket_inode:
            os.unlink(self._socket_path)

    # -- sockets

    def _serve(self, fd: int, what: int, now: float) -> None:
        if self._agent is not None and fd == self._agent.fileno():
            if what & select.EPOLLOUT:
                self._push()
            if what & ~select.EPOLLOUT:
                self._hear(now)
        elif fd == self._listener.fileno():
            self._accept()
        elif fd in self._callers:
            self._hear_caller(fd, now)
        else:
            self._inputs.serve(fd)

    def _accept(self) -> None:
        try:
            caller, _ = self._listener.accept()
        except OSError:
            return
        caller.setblocking(False)
        self._callers[caller.fileno()] = (caller, Unpacker())
        self._poll.register(caller, select.EPOLLIN)

    def _hear_caller(self, fd: int, now: float) -> None:
        """A new connection: its first order says whether it is the agent, or only wants one thing."""
        caller, unpacker = self._callers[fd]
        data = _receive(caller)
        try:
            frames = unpacker.feed(data) if data else []
        except (ValueError, EOFError, TypeError):
            data = b""
        if data == b"":
            self._drop_caller(fd)
        if not data or not frames:
            return
        orders = frames[0]
        if orders[0][0] == "hello":
            del self._callers[fd]
            self._adopt(caller, unpacker)
            for frame in frames:
                self._obey(frame, now)
            return
        for order in orders:
            if order[0] == "borrow":
                self._lend(caller, (order[1], order[2]))
            elif order[0] == "status":
                caller.send(pack(self._status()))
            elif order[0] == "stop":
                self._stop_all(order[1], now)
        self._drop_caller(fd)

    def _drop_caller(self, fd: int) -> None:
        caller, _ = self._callers.pop(fd)
        self._poll.unregister(fd)
        caller.close()

    def _adopt(self, agent: socket.socket, unpacker: Unpacker) -> None:
        self._lose_agent(time.monotonic())
        self._agent = agent
        self._agent_unpacker = unpacker
        self._specs = {}

    def _lose_agent(self, now: float) -> None:
        if self._agent is None:
            return
        self._poll.unregister(self._agent)
        self._agent.close()
        self._agent = None
        self._unsent = b""
        self._alone_since = now

    def _hear(self, now: float) -> None:
        assert self._agent is not None
        data = _receive(self._agent)
        if data is None:
            return
        try:
            frames = self._agent_unpacker.feed(data) if data else []
        except (ValueError, EOFError, TypeError):
            data = b""
        if not data:
            self._lose_agent(now)
            return
        for frame in frames:
            self._obey(frame, now)

    def _obey(self, orders: list, now: float) -> None:  # type: ignore[type-arg]
        """Carry out one frame of orders, first to last."""
        running = self._running
        for order in orders:
            what = order[0]
            if what == "start":  # [(task, attempt, spec key, lane, ahead, argv or None, extra or None), ...]
                specs = self._specs
                for start in order[1]:
                    running.add(start, specs.get(start[2]), now)
            elif what == "ack":  # [key, ...]
                running.acknowledge(order[1])
            elif what == "spec":  # key, fields
                self._specs[order[1]] = Spec(order[2])
            elif what == "drop":  # [spec key, ...]
                for key in order[1]:
                    self._specs.pop(key, None)
            elif what == "recall":  # [key, ...]
                running.recall(order[1])
            elif what == "recall_all":
                running.recall_all()
            elif what == "end":  # key, outcome, reason, message, grace or None
                running.stop(order[1], order[2:5], order[5], now)
            elif what == "signal":  # key, number
                running.signal(order[1], order[2])
            elif what == "kill":  # [key, ...]
                running.kill_silently(order[1])
            elif what == "stdin":  # key, bytes
                self._inputs.take(order[1], order[2], False)
            elif what == "eof":  # key
                self._inputs.take(order[1], b"", True)
            elif what == "hello":
                self._send(("list", *self._status().values()))
            elif what == "lease":  # until when, by the clock of `Lease`
                running.lanes.ready.extend(running.lease.renew(order[1]))
            elif what == "ping":
                self._send(("pong",))
            elif what == "leave":
                self._leaving = not running.attempts
            elif what == "stop":  # seconds of grace
                self._stop_all(order[1], now)

    def _status(self) -> dict:  # type: ignore[type-arg]
        """What there is: to be read by name, or in this order after "list"."""
        running = self._running
        attempts = list(running.attempts.values())
        return {
            "pid": os.getpid(),
            "boot_id": self._boot_id,
            "waiting": [a.key for a in attempts if a.state is WAITING],
            "running": [
                (*a.key, a.pid, a.started_us, a.stdin_written) for a in attempts if a.state is not WAITING
            ],
            "ended": list(running.ended.values()),
            "gpu_ids": [(*a.key, a.gpu_ids) for a in attempts if a.gpu_ids],
            "answers": True,  # to a ping
        }

    def _stop_all(self, grace: float, now: float) -> None:
        """Give back what waits and end what runs."""
        running = self._running
        running.recall_all()
        for key in list(running.attempts):
            running.stop(key, ("failed", "node_stopped", "geres was stopped on this node"), grace, now)

    # -- reports

    def _report(self, now: float) -> None:
        """Send what has gathered: at once where somebody may wait for it, else in company."""
        running = self._running
        if not (running.new_ended or running.new_started):
            return
        if not self._gathered_since:
            self._gathered_since = now
        due = now - self._gathered_since >= self._delay() or len(running.new_ended) >= _MOST_GATHERED
        if not (running.is_urgent or due):
            return
        self._gathered_since = 0.0
        running.is_urgent = False
        ended, started = running.new_ended, running.new_started
        running.new_ended, running.new_started = [], {}
        # [(task, attempt, started_us), ...], [end, ...]: a start is left out where its end is here too
        self._send(("report", [(*key, at_us) for key, at_us in started.items()], ended))

    def _send(self, frame: tuple) -> None:  # type: ignore[type-arg]
        if self._agent is None:
            return
        data = pack(frame)
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._agent.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lose_agent(time.monotonic())
            return
        if sent < len(data):
            self._unsent = data[sent:]
            self._poll.modify(self._agent, select.EPOLLIN | select.EPOLLOUT)

    def _push(self) -> None:
        assert self._agent is not None
        try:
            sent = self._agent.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            self._lose_agent(time.monotonic())
            return
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._poll.modify(self._agent, select.EPOLLIN)

    def _lend(self, caller: socket.socket, key: Key) -> None:
        """Answer (state or None, stdin taken, streams, folder, limit, begins, named, all open) and files.

        `streams` says which files: "oe", "o" or "e"; `begins` where in each the attempt's output begins.
        `named` is as in an end, of what the launcher has opened; `all open` False: it is still at it.
        """
        attempt = self._running.attempts.get(key)
        files: list[int] = []
        answer: tuple = (None, 0, "", None, 0, [], [], True)  # type: ignore[type-arg]
        if attempt is not None:
            streams, begins = "", []
            if attempt.state is not WAITING:
                attempt.watched = True
                for name, file in (("o", attempt.out), ("e", attempt.err)):
                    if file is not None and (name == "o" or attempt.err is not attempt.out):
                        files.append(file.fd)
                        streams += name
                        begins.append(file.begin)
            folder = attempt.slot.path if attempt.slot is not None else None
            limit = attempt.spec.output_limit_bytes
            taken = attempt.stdin_written + len(attempt.stdin_pending)
            named = self._running.named_files(attempt)
            answer = (attempt.state, taken, streams, folder, limit, begins, *named)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
        try:
            caller.sendmsg([pack(answer)], rights)
        except OSError:
            pass


def _receive(connection: socket.socket) -> bytes | None:
    """What has come; empty for the end, None for nothing yet."""
    try:
        return connection.recv(_RECEIVE_BYTES)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return "unknown"


def _become_subreaper() -> None:
    """Orphans of our tasks become our children."""
    try:
        import ctypes  # 0.6 MB, and only here

        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass  # not Linux


def main(arguments: list[str]) -> int:
    """`geres supervisor FOLDER SOCKET`: run in FOLDER until there is nothing left to do."""
    folder, socket_path = arguments[-2:]
    os.umask(0o077)
    lock = os.open(folder + "/supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0  # another one works here already
    os.chdir("/")
    os.umask(0o022)
    _become_subreaper()
    gc.disable()  # the tick collects
    Supervisor(folder, socket_path).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
