"""Keeps the parts of a `geres up` running: starts them, again where they died, and stops them in order."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import IO, Any

import msgspec

from geres import config, unix_socket
from geres.cli.output import escape
from geres.errors import GeresError, Unreachable
from geres.sdk.client import Client
from geres.sdk.discover import AddressFile, UpFile, read_address

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 30.0
_HEALTHY_SECONDS = 60.0
_START_SECONDS = 60.0
_NODE_SECONDS = 10.0
_SERVER_STOP_SECONDS = 15.0
_AGENT_STOP_SECONDS = 15.0  #: beyond the time that it gives its tasks
_KILL_SECONDS = 10.0  #: an agent that hurries ends its tasks and tells the server, with a bound for each
_SUPERVISOR_GRACE_SECONDS = 5.0
_SUPERVISOR_STOP_SECONDS = 10.0
_LARGEST_LOG_BYTES = 64 << 20
_LOG_SECONDS = 60.0  #: between two looks at how large they are

Say = Callable[[str], None]


class Part:
    """One child process and how often it was started."""

    def __init__(
        self,
        name: str,
        words: list[str],
        home: Path,
        descriptors: tuple[int, ...] = (),
        env: Mapping[str, str] = {},
    ) -> None:
        """`descriptors` are open files that it inherits, `env` is added to its environment."""
        self.name = name
        self._descriptors = descriptors
        #: The process that this one replaces, until it has gone.
        self.leaving: subprocess.Popen[bytes] | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.log = home / "logs" / f"{name}.log"
        self.words = words
        self._env = {**os.environ, **env, "GERES_HOME": str(home)}
        self._started = 0.0
        self._log_start = 0
        self._pause = _FIRST_PAUSE_SECONDS
        self.due: float | None = None

    def start(self, *more: str) -> None:
        """Start it in a group of its own: Ctrl-C is ours, and we stop parts in order."""
        with _log_file(self.log) as log:
            self._log_start = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "geres", self.name, *self.words, *more],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                process_group=0,
                pass_fds=self._descriptors,
            )
        self._started = time.monotonic()
        self.due = None

    def replace(self) -> bool:
        """Start another one beside it, which tells it to stop when it can take over.  False: not now."""
        if self.process is None or self.process.poll() is not None or self.leaving is not None:
            return False
        before = self.process
        self.start("--replace", str(before.pid))
        self.leaving = before
        return True

    def handed_over(self) -> int | None:
        """The process that has gone since another one took its place.  Where that one died first, the
        old one is the part again."""
        if self.leaving is None:
            return None
        if self.process is not None and self.process.poll() is not None:
            self.process, self.leaving = self.leaving, None
            return None
        if self.leaving.poll() is None:
            return None
        gone, self.leaving = self.leaving.pid, None
        return gone

    def has_died(self) -> int | None:
        """Its exit status if it ended by itself; then it is due again after a pause."""
        if self.process is None or (status := self.process.poll()) is None:
            return None
        self.process = None
        if time.monotonic() - self._started > _HEALTHY_SECONDS:
            self._pause = _FIRST_PAUSE_SECONDS
        self.put_off()
        return status

    def put_off(self) -> None:
        """It is due after a pause, each longer than the one before."""
        self.due = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE_SECONDS)

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    @property
    def leaving_pid(self) -> int:
        return self.leaving.pid if self.leaving else 0

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def last_words(self) -> str:
        """The last line that it wrote since this start, as a reason for people."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read()[-65536:].decode("utf-8", "replace").strip().splitlines()
        return _plain_line(lines[-1]) if lines else "it said nothing"


class Keeper:
    """Runs the parts until it is told to stop."""

    def __init__(
        self,
        home: Path,
        listener: socket.socket,
        server: list[str],
        agent: list[str] | None,
        drain_seconds: float,
        say: Say,
        server_env: Mapping[str, str] = {},
    ) -> None:
        """`server` and `agent` are the words of their command lines; no agent for None.

        `server_env` is for the server alone, for what nobody else is to see.  `listener` is what the server
        listens on; it stays open while servers come and go.
        """
        self._home = home
        self._listener = listener
        held = listener.fileno()
        words = [*server, "--listen-fd", str(held)]
        self._server = Part("server", words, home, (held,), server_env)
        self._agent_words = agent
        self._parts = [self._server]
        self._drain_seconds = drain_seconds
        self._say = say
        self._stops = 0
        self._replace = False
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self, ready: Callable[[AddressFile], None]) -> None:
        """Start the parts, call `ready` once the server answers, and keep them until a signal comes.

        Raises Unreachable where the server does not start; then nothing is left running.
        """
        with self._signals():
            try:
                self._server.start()
                self._write()
                address = self._wait_for_server()
                if self._agent_words is not None and not self._stops:
                    agent = Part("agent", [*self._agent_words, "--url", address.url], self._home)
                    self._parts.append(agent)
                    agent.start()
                    self._write()
                    self._wait_for_node(agent)
                if not self._stops:
                    ready(address)
                self._keep()
            finally:
                self._stop()
                unix_socket.close(self._listener)
                for name in ("up.json", "address.json"):
                    (self._home / name).unlink(missing_ok=True)
        self._say("stopped")

    def _keep(self) -> None:
        while not self._stops:
            changed = self._replace_server()
            for part in self._parts:
                pid = part.pid
                if (status := part.has_died()) is not None:
                    self._say(f"the {part.name} (process {pid}) died: {_how(status)}; it is started again")
                if part.due is not None and time.monotonic() >= part.due:
                    changed = self._start_again(part) or changed
                bound_log(part.log)
            if changed:
                try:
                    self._write()
                except OSError as error:  # a full disk is no reason to end what runs
                    self._say(f"up.json cannot be written: {error.strerror or error}")
            dues = [part.due - time.monotonic() for part in self._parts if part.due is not None]
            self._sleep(max(0.0, min([_LOG_SECONDS, *dues])))

    def _start_again(self, part: Part) -> bool:
        try:
            part.start()
        except OSError as error:  # no process, no memory or no room: it may be there in a while
            part.put_off()
            self._say(f"the {part.name} cannot be started now: {error.strerror or error}")
            return False
        self._say(f"the {part.name} is started again as process {part.pid}")
        return True

    def _replace_server(self) -> bool:
        """Begin what `geres restart` asked for, and take note of its end.  True where processes changed."""
        server, changed = self._server, False
        if self._replace:
            self._replace = False
            try:
                changed = server.replace()
            except OSError as error:
                self._say(f"the server cannot be replaced now: {error.strerror or error}")
            if changed:
                self._say(f"the server is replaced: process {server.pid} beside process {server.leaving_pid}")
        was_leaving, newer = server.leaving, server.pid
        if (gone := server.handed_over()) is not None:
            self._say(f"the server (process {gone}) has gone, process {server.pid} has taken over")
            changed = True
        elif was_leaving is not None and server.leaving is None:
            words = server.last_words()
            self._say(f"server process {newer} could not take over, process {server.pid} stays: {words}")
            changed = True
        return changed

    def _wait_for_server(self) -> AddressFile:
        deadline = time.monotonic() + _START_SECONDS
        address = AddressFile(url="", host_id="")
        while not self._stops:
            with contextlib.suppress(GeresError):
                found = read_address(self._home)
                if found is not None and found.pid == self._server.pid:
                    return found
            if self._server.has_died() is not None:
                raise Unreachable(f"the server did not start: {self._server.last_words()}")
            if time.monotonic() > deadline:
                raise Unreachable(f"the server does not answer; {self._server.log} may say why")
            self._sleep(0.02)
        return address

    def _wait_for_node(self, agent: Part) -> None:
        """Until the agent is connected, so that the first task finds its node; not for ever."""
        deadline = time.monotonic() + _NODE_SECONDS
        with Client(home=self._home, patience=0) as client:
            while not self._stops and agent.process is not None and agent.process.poll() is None:
                with contextlib.suppress(GeresError):
                    if any(node.connected for node in client.nodes()):
                        return
                if time.monotonic() > deadline:
                    self._say(f"no node is connected yet; {agent.log} may say why")
                    return
                self._sleep(0.02)

    def _stop(self) -> None:
        """Agents first, so that ends still reach the store; the server last.  A second signal hurries."""
        if self._stops:
            self._say_running()
        if self._server.leaving is not None:  # in the middle of a change of servers
            self._server.leaving.kill()
            self._server.leaving.wait()
        for part in reversed(self._parts):
            seconds = _SERVER_STOP_SECONDS
            if part.name == "agent":
                seconds = self._drain_seconds + _AGENT_STOP_SECONDS
            part.signal(signal.SIGTERM)
            if not (self._gone(part, seconds) or self._gone(part, _KILL_SECONDS, hurried=True)):
                self._say(f"the {part.name} does not stop; it is killed")
                part.signal(signal.SIGKILL)
                assert part.process is not None
                part.process.wait()
        end_supervisor(self._home)

    def _gone(self, part: Part, seconds: float, *, hurried: bool = False) -> bool:
        """Wait until the part has ended; give up after `seconds`, or when another signal comes.

        A hurried one is told again and again: two signals that wait for it together are one to it.
        """
        deadline = time.monotonic() + seconds
        while part.process is not None and part.process.poll() is None:
            left = deadline - time.monotonic()
            if left <= 0 or (self._stops > 1 and not hurried):
                return False
            if hurried:
                part.signal(signal.SIGTERM)
            self._sleep(min(left, 0.5))
        return True

    def _say_running(self) -> None:
        running = running_tasks(self._home)
        self._say(
            f"stopping; {running}; they get {self._drain_seconds:g} s (once more: stop now)"
            if running
            else "stopping"
        )

    def _write(self) -> None:
        up = UpFile(
            pid=os.getpid(),
            host_id=config.host_id(),
            started_at=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            parts={part.name: part.pid for part in self._parts if part.pid},
        )
        temporary = self._home / "up.json.new"
        temporary.write_bytes(msgspec.json.encode(up))
        temporary.replace(self._home / "up.json")

    def _sleep(self, seconds: float | None) -> None:
        """Until a signal comes, a child's end among them, at most `seconds`."""
        select.select([self._wake_read], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, frame: FrameType | None) -> None:
            self._stops += 1

        def replace(number: int, frame: FrameType | None) -> None:
            self._replace = True

        before = {
            number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, replace)
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, frame: None)
        old = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(old)
            for number, handler in before.items():  # `down --now` tells us again, also in our last moment
                signal.signal(number, signal.SIG_IGN if handler is signal.SIG_DFL else handler)


def end_supervisor(home: Path) -> None:
    """End the tasks and the supervisor that a dead agent left behind; no harm where there is none."""
    if not (home / "agent").is_dir():
        return
    from geres.agent.link import ask, socket_path  # the agent's loops: only a way out needs them

    path = socket_path(home / "agent")
    deadline = time.monotonic() + _SUPERVISOR_STOP_SECONDS
    asked = False
    while (answer := ask(path, "status")) is not None:
        status: dict[str, Any] = answer[0]
        if not status["running"] or time.monotonic() > deadline:
            # It stays for an agent to come and hear of the ends; its journal tells the next one of them.
            os.kill(status["pid"], signal.SIGKILL)
            return
        if not asked:
            ask(path, "stop", _SUPERVISOR_GRACE_SECONDS, seconds=0.2)
            asked = True
        time.sleep(0.05)


def running_tasks(home: Path) -> str:
    """What runs on this home's cluster, in words; empty where nothing does or nobody answers."""
    try:
        with Client(home=home, patience=0.5) as client:
            page = next(client.task_pages(state="assigned,running,suspended", limit=5, count=True))
    except GeresError:
        return ""
    if not page.items:
        return ""
    named = ", ".join(
        escape(f"{one.id} {one.name or _program(one.command, one.shell)}") for one in page.items
    )
    total = page.matched or len(page.items)
    more = f" and {total - len(page.items)} more" if total > len(page.items) else ""
    return f"{total} running: {named}{more}"


def _how(status: int) -> str:
    if status >= 0:
        return f"exit {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _program(command: list[str] | None, shell: str | None) -> str:
    return (command[0].rpartition("/")[2] if command else shell or "")[:40]


def _log_file(path: Path) -> IO[bytes]:
    """The log, to append to."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    bound_log(path)
    log = path.open("ab")
    log.seek(0, os.SEEK_END)
    return log


def bound_log(path: Path) -> None:
    """Put aside what is in a log that has grown large: copied and cut, as its writer has it open."""
    aside = path.with_suffix(".log.1")
    try:
        if path.stat().st_size > _LARGEST_LOG_BYTES:
            shutil.copyfile(path, aside)
            os.truncate(path, 0)
    except FileNotFoundError:
        pass  # nothing was written yet
    except OSError:  # a full disk: a later look finds more room, or the log no larger
        aside.unlink(missing_ok=True)


def _plain_line(line: str) -> str:
    """The sentence in a line of a log."""
    with contextlib.suppress(msgspec.DecodeError):
        entry = msgspec.json.decode(line)
        if isinstance(entry, dict):
            return str(entry.get("text") or entry.get("event") or line)
    return line.removeprefix("geres: ")
