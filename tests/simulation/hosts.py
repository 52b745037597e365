"""Machines: processes that exist only as facts, the real supervisor and agent minds over them.

What is real: Supervisor._obey, _report, _status, _recover, Running, Lanes, Journal (on disk), Node.  What is
not: sockets, processes, folders, outputs, and the words in which an assignment becomes an argv.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from geres.agent import supervisor as supervisors
from geres.agent.attempts import ENDING, EXITED, RUNNING, SIGNALLED, Attempt, Key
from geres.agent.node import Node
from geres.agent.running import Running
from geres.model.tasks import TaskSpec
from geres.model.wire import Assign, Spec
from tests.simulation.times import Time

_NO_USAGE = (0.0, 0.0, None, 0, 0, 0, 0, 0, 0)
#: No kernel gives such numbers, so that nothing real is ever hit.
_FIRST_PID = 1 << 30


@dataclass
class Process:
    """A fact: this attempt has a process on a machine."""

    key: Key
    pid: int
    gpus: list[int]
    until_us: int  #: it goes on until then
    code: int  #: its exit status, or minus the signal, where nobody ends it
    alive: bool = True
    frozen: bool = False
    ended: int | None = None  #: exit status, or minus the signal


class SupervisorCrash(Exception):
    """Between the start of one process and the next."""


class _Nothing:
    """Stands for folders and memory groups: there are none."""

    tag = b"simulated"

    def __init__(self, *_: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


class _Starter(_Nothing):
    def __init__(self, host: Host) -> None:
        self.host = host
        self.groups = self.folders = self.captures = _Nothing()

    def start(self, attempt: Attempt, now: float) -> None:
        nothing: Any = _Nothing()
        attempt.slot = nothing
        self.host.start(attempt)
        attempt.started = now
        attempt.state = RUNNING


class _Running(Running):
    """The real one, but for the system calls."""

    starter: Any

    def signal(self, key: Key, number: int) -> bool:
        attempt = self.attempts.get(key)
        if attempt is None or attempt.state is not RUNNING:
            return False
        self.starter.host.signal(attempt.pid, number)
        return True

    def _settle(self, attempt: Attempt, alone: bool) -> tuple[None, None, None]:
        return None, None, None  # it has written nothing

    def take_end(self, process: Process) -> None:
        """What `reap` does once the process is gone."""
        attempt = self.leaders.pop(process.pid, None)
        if attempt is None:
            return
        attempt.state = ENDING
        attempt.ended_us = self.starter.host.time.now_us
        assert process.ended is not None
        if process.ended < 0:
            self._finish(attempt, SIGNALLED, -process.ended, _NO_USAGE)
        else:
            self._finish(attempt, EXITED, process.ended, _NO_USAGE)


class _Supervisor(supervisors.Supervisor):
    """The real mind, without its loop and its sockets."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._folder = str(host.folder)
        self._boot_id = host.boot_id
        self._specs = {}
        self._agent = None
        self._gathered_since = self._unwritten_since = 0.0
        self._leaving = False
        _, journal = self._recover(self._folder)
        self._running: Any = _Running(_Starter(host), journal)
        self._running.ended = self._recovered
        self._running.compact_journal()
        self._inputs: Any = _Nothing()

    def _send(self, frame: tuple) -> None:  # type: ignore[type-arg]
        if self._host.agent is not None and self._host.agent.linked:
            self._host.agent.heard.append(frame)

    @property
    def running(self) -> Any:
        return self._running

    def close(self) -> None:
        for fd in (self._running.journal._fd, self._running._children._fd):
            if fd >= 0:
                os.close(fd)

    def meet_agent(self) -> None:
        """What `_adopt` does: specifications are the connection's."""
        self._specs = {}

    def obey(self, orders: list[Any]) -> None:
        self._obey(orders, self._host.time.monotonic())

    def work(self) -> None:
        """One round of its loop, but for what comes in."""
        now = self._host.time.monotonic()
        self._running.start_some(now)
        self._running.fire_timers(now)
        self._running._give_back_late(now)
        self._write_down(now)
        self._report(now)
        if self._running.journal.is_long:
            self._running.compact_journal()

    @property
    def is_busy(self) -> bool:
        running = self._running
        return bool(
            running.lanes.ready or running.new_ended or running.new_started or running.journal.is_pending
        )


class _Orders:
    """Assignments in the words of the supervisor.  A specification is sent once a connection."""

    def __init__(self, send: Callable[..., None]) -> None:
        self._send = send
        self._specs: dict[int, TaskSpec] = {}
        self._told: set[int] = set()

    def forget_server(self) -> None:
        self._specs.clear()

    def forget_supervisor(self) -> None:
        self._told.clear()

    def learn(self, spec: Spec) -> None:
        self._specs[spec.spec_id] = spec.spec

    def spec_of(self, assign: Assign) -> TaskSpec | None:
        return self._specs.get(assign.spec_id)

    def start(self, assign: Assign) -> tuple[Any, ...]:
        spec = self._specs[assign.spec_id]
        if assign.spec_id not in self._told:
            self._told.add(assign.spec_id)
            fields = {"argv": [b"true"], "env": {}, "grace_seconds": 2.0}
            self._send(("spec", assign.spec_id, fields))
        extra = {"gpu_ids": list(assign.gpu_ids)} if assign.gpu_ids else None
        words = [word.encode() for word in assign.argv or spec.command or []]
        return (assign.task, assign.attempt, assign.spec_id, assign.lane, assign.ahead, words, extra)

    def drop(self) -> None:
        pass


class _Link:
    """The Unix socket: what is sent arrives in order, or not at all once one side is gone."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def send(self, *orders: tuple[Any, ...]) -> None:
        if self._host.agent is None or not self._host.agent.linked:
            return
        self._host.orders.extend([order] for order in orders)


class _Agent:
    """One life of an agent: the real Node, and what has come for it from the supervisor."""

    def __init__(self, host: Host) -> None:
        link: Any = _Link(host)
        self.heard: deque[Any] = deque()
        orders: Any = _Orders(link.send)
        nothing: Any = _Nothing()
        self.node = Node(orders, nothing, nothing)
        self.node.link = link
        self.linked = False
        self.gave_back: set[Key] = set()  #: attempts of which it has said that they never start


class Host:
    """A machine.  `begin` is asked for (end in us, exit status) of each process before it runs."""

    def __init__(
        self,
        name: str,
        time: Time,
        dice: Random,
        folder: Path,
        begin: Callable[[Host, Attempt], tuple[int, int]],
    ) -> None:
        self.name, self.time, self.folder = name, time, folder
        self.cpus, self.gpus = dice.choice([1.0, 2.0, 3.0]), dice.choice([0, 2])
        self._dice, self._begin = dice, begin
        self.processes: dict[int, Process] = {}
        self.orders: deque[list[Any]] = deque()  #: to the supervisor, under way
        self.boots = 1
        self.is_up = True
        self.alone_until_us = 0  #: no connection can be made before
        self.supervisor: _Supervisor | None = None
        self.agent: _Agent | None = None
        self.crash_in = -1  #: processes started until the supervisor dies in the middle
        self._pids = itertools.count(_FIRST_PID)
        folder.mkdir(exist_ok=True)
        (folder / "journal").unlink(missing_ok=True)

    @property
    def boot_id(self) -> str:
        return f"{self.name} {self.boots}"

    @property
    def alive(self) -> list[Process]:
        return [process for process in self.processes.values() if process.alive]

    def unreaped(self) -> list[Process]:
        """Processes that are over and that the supervisor has not waited for."""
        if self.supervisor is None:
            return []
        leaders = self.supervisor.running.leaders
        return [p for pid in leaders if not (p := self.processes[pid]).alive]

    # what happens to processes

    def start(self, attempt: Attempt) -> None:
        if self.crash_in == 0:
            self.crash_in = -1
            raise SupervisorCrash
        self.crash_in -= self.crash_in > 0
        until_us, code = self._begin(self, attempt)
        attempt.pid = next(self._pids)
        attempt.started_us = self.time.now_us
        self.processes[attempt.pid] = Process(attempt.key, attempt.pid, attempt.gpu_ids, until_us, code)

    def end(self, process: Process, ended: int) -> None:
        process.alive, process.ended = False, ended

    def signal(self, pid: int, number: int) -> None:
        process = self.processes.get(pid)
        if process is None or not process.alive:
            return
        if number == signal.SIGSTOP:
            process.frozen = True
        elif number == signal.SIGCONT:
            process.frozen = False
        elif number == signal.SIGTERM and self._dice.random() < 0.8:  # the others ignore it
            process.until_us, process.code = self.time.now_us, -signal.SIGTERM

    def kill(self, pid: int) -> None:
        if (process := self.processes.get(pid)) is not None and process.alive:
            self.end(process, -signal.SIGKILL)

    # lives and deaths

    def start_supervisor(self) -> None:
        self.supervisor = _Supervisor(self)

    def kill_leftovers(self) -> None:
        for process in self.alive:
            self.end(process, -signal.SIGKILL)

    def crash_supervisor(self) -> None:
        """Its processes live on; the agent hears of it."""
        self.close()
        self.orders.clear()
        if self.agent is not None and self.agent.linked:
            self.agent.heard.append(None)

    def start_agent(self) -> None:
        self.agent = _Agent(self)

    def crash_agent(self) -> None:
        """What it had sent to the supervisor, or some of it, still arrives there."""
        if self.agent is None:
            return
        self.agent = None
        for _ in range(self._dice.randint(0, len(self.orders))):
            self.orders.pop()

    def link(self) -> None:
        """The agent connects to its supervisor, which begins with all that it has."""
        assert self.agent is not None
        self.orders.clear()
        if self.supervisor is None:
            self.start_supervisor()
        else:
            self.supervisor.meet_agent()
        self.agent.heard.clear()
        self.agent.linked = True
        self.agent.node.linked()
        self.orders.append([("hello", 1)])

    def crash(self) -> None:
        """Power is gone: processes too, and whatever the disk had not got of the journal."""
        self.is_up = False
        self.agent = None
        self.close()
        self.orders.clear()
        self.kill_leftovers()
        journal = self.folder / "journal"
        if journal.exists() and self._dice.random() < 0.5:
            size = self._dice.randint(0, journal.stat().st_size)
            with journal.open("rb+") as file:
                file.truncate(size)

    def close(self) -> None:
        """End the supervisor; nothing of it stays open."""
        if self.supervisor is not None:
            self.supervisor.close()
        self.supervisor = None

    def boot(self) -> None:
        self.is_up = True
        self.boots += 1
