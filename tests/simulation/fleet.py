"""The machines, servers and people of one schedule, and what each can do; when is drawn by simulation.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from geres.agent.attempts import Attempt
from geres.errors import GeresError, StoreUnavailable
from geres.model.callers import Caller
from geres.model.ids import show_task
from geres.model.jobs import JobSpec
from geres.model.tasks import Retry, TaskRow, TaskSpec
from geres.model.wire import Frame, Heartbeat, Hello, attempts_checksum, decode
from geres.store import jobs, sharing, submit, task_actions, task_edits
from geres.store.database import Database, Tx
from tests.simulation.hosts import Host, SupervisorCrash
from tests.simulation.network import Connection
from tests.simulation.servers import LEASE_US, Server
from tests.simulation.strands import Fault
from tests.simulation.times import SECOND, Time
from tests.simulation.truth import Plan, Truth, Wrong

_KINDS = ("store", "server", "agent", "supervisor", "host", "cut", "delay", "people", "long", "faults")
_CALM = dict.fromkeys(("store", "server", "agent", "supervisor", "host", "cut", "delay", "faults"), 0.0)
#: Every other schedule dwells on one kind of fault, so that no other one covers up what it does.
_FOCUS: list[dict[str, float]] = [
    {},
    _CALM | {"delay": 8.0},
    {},
    _CALM | {"cut": 8.0, "long": 4.0},
    {},
    _CALM | {"faults": 1.0},
]
#: Loops that mostly find nothing to do.
_QUIET = ("lose", "renew", "cancel_over_time", "end_done_jobs", "free_children_of_jobs", "bury")
_CLOSE_LOOK = 12  #: commits between close looks


class Fleet:
    """Everything that there is, driven by one seed."""

    def __init__(self, db: Database, seed: int, folder: Path, *, jumps: bool | None = None) -> None:
        """With `jumps` the store's clock is set now and then; else in one schedule of four."""
        self._jumps = seed % 4 == 3 if jumps is None else jumps
        self._db, self._seed, self._folder = db, seed, folder
        self._dice = Random(seed)
        self._time = Time()
        self._truth = Truth(self._time)
        self.trace: list[str] = []
        self._store_is_up = True
        self._store_ahead_us = 0
        self._peace = False
        #: Each schedule has its own mixture: what is rare in all of them together is frequent in some.
        focus = _FOCUS[seed % len(_FOCUS)]
        self._style = {kind: self._dice.choice([0.0, 0.0, 1.0, 4.0]) for kind in _KINDS} | focus
        self._faulty = 0.0 if self._style["faults"] == 0 else self._dice.choice([0.2, 0.6])
        self._commits = 0
        self._rerunning = False
        self._servers: list[Server | None] = [None] * (2 if focus else self._dice.choice([1, 2, 2]))
        self._lives = 0
        self._hosts: list[Host] = []
        self._links: dict[str, Connection] = {}
        self._connection_count = 0
        self._tasks: list[int] = []
        self._jobs: list[int] = []

    def _begin(self) -> None:
        _empty(self._db)
        self._tenant_id = self._db.call(sharing.ensure_tenant, "default", now_us=self._time.now_us)
        self._ann = Caller(self._tenant_id, "default", "ann", "admin")
        for number in range(self._dice.randint(2, 4)):
            name = f"n{number}"
            self._hosts.append(Host(name, self._time, self._dice, self._folder / name, self._start_process))
        for number in range(len(self._servers)):
            self._start_server(number)
        self._submit()

    def _say(self, text: str) -> None:
        self.trace.append(f"{self._time.now_us / SECOND - 1e6:8.2f}  {text}")

    # servers and the store

    def _fault(self, function: str) -> Fault:
        """Turns fail more often than the rest: there is most to lose."""
        if not self._store_is_up:
            return "before"
        often = self._faulty if function == "turn" else self._faulty / 8
        if self._peace or self._dice.random() >= often:
            return "none"
        fault: Fault = self._dice.choice(["before", "within", "after", "after"])
        self._say(f"  the store fails {fault} what follows")
        return fault

    def _start_server(self, number: int) -> None:
        if not self._store_is_up:
            return
        self._lives += 1
        name = f"s{number + 1}.{self._lives}"
        self._say(f"server {name} starts")
        self._servers[number] = Server(
            name,
            self._db,
            self._tenant_id,
            time=self._time,
            store_us=self._store_us,
            fault=self._fault,
            wrote=lambda what: self._wrote(what, self._servers[number]),
        )

    def _go_on(self, server: Server, name: str) -> None:
        """Mostly a whole step of the loops that hardly ever matter, else up to its next call of the store."""
        whole = name not in ("turn", "renew", "lose") and self._dice.random() < 0.8
        while not server.go_on(name) and whole:
            pass

    def _crash_server(self, number: int) -> None:
        server = self._servers[number]
        assert server is not None
        server.crash(self._dice)
        self._servers[number] = None

    def _store_us(self) -> int:
        return self._time.now_us + self._store_ahead_us

    def _jump(self) -> None:
        """By some time, or back to what it was."""
        if self._store_ahead_us and self._dice.random() < 0.4:
            self._store_ahead_us = 0
        else:
            self._store_ahead_us += self._dice.choice([-1, 1]) * self._dice.choice([3, 60, 3600]) * SECOND
        self._say(f"the store's clock is {self._store_ahead_us // SECOND} s ahead")

    def _end_store(self) -> None:
        self._store_is_up = False

    def _start_store(self) -> None:
        self._store_is_up = True

    def _wrote(self, what: str, server: Server | None = None) -> None:
        """After each commit: is the store still true?"""
        if not what.startswith(_QUIET):
            self._say(f"  stored: {what}")
        if server is not None and what.startswith(("renew", "hello")):
            self._db.call(self._note_leases, server.store.asked_us)
        self._truth.look(self._db, rerun=self._rerunning)
        self._truth.leases(self._db)
        self._commits += 1
        if self._commits % _CLOSE_LOOK == 0:
            self._truth.look_closely(self._db)

    def _note_leases(self, tx: Tx, asked_us: int) -> None:
        """A lease that was just renewed goes on for its time, from when its server began to write it."""
        for node, heartbeat_at in tx.raw("SELECT id, heartbeat_at FROM node"):
            if self._truth.beats.get(node) != heartbeat_at:
                self._truth.beats[node] = heartbeat_at
                self._truth.leases_us[node] = asked_us + LEASE_US

    # connections

    def _deliver_up(self, server: Server, connection: Connection) -> None:
        data = connection.up.popleft()
        self._say(f"{connection.agent.name} → {server.name}: {_words(data)}")
        server.hear(connection, data)

    def _deliver_down(self, host: Host, connection: Connection) -> None:
        data = connection.down.popleft()
        self._say(f"{connection.server.name} → {host.name}: {_words(data)}")
        assert host.agent is not None
        node = host.agent.node
        frame = None if data is None else decode(data)
        if frame is None or (frame.error is not None and not connection.welcomed):
            self._hang_up(host)
            return
        if not connection.welcomed:
            assert frame.welcome is not None
            connection.welcomed = True
            connection.answered_at_us = self._time.now_us
            node.connected()
        if frame.heartbeat_ack:
            connection.answered_at_us = self._time.now_us
        node.obey(frame)
        if frame.error is not None:
            self._hang_up(host)

    def _hang_up(self, host: Host) -> None:
        connection = self._links.pop(host.name, None)
        if connection is not None:
            connection.leave()

    def _connect(self, host: Host) -> None:
        assert host.agent is not None
        server = self._dice.choice([server for server in self._servers if server is not None])
        self._connection_count += 1
        connection = Connection(self._connection_count, host, server)
        self._links[host.name] = connection
        server.connections.append(connection)
        node = host.agent.node
        attempts, running = node.keys()
        hello = Hello(
            1,
            "0",
            host.name,
            host.boot_id,
            host.name,
            host.name,
            "x86_64",
            "linux",
            1,
            "ann",
            host.cpus,
            1 << 34,
        )
        hello.gpus, hello.attempts, hello.running, hello.gpu_ids = (
            host.gpus,
            attempts,
            running,
            node.gpu_ids(),
        )
        connection.say(Frame(hello=hello))
        self._say(
            f"{host.name} connects to {server.name} with {[f'{show_task(t)}/{a}' for t, a in attempts]}"
        )

    def _talk(self, host: Host, connection: Connection) -> None:
        assert host.agent is not None
        if not self._peace:
            host.agent.node.repeat(self._time.monotonic())
        frame = host.agent.node.next_frame(self._time.monotonic())
        if frame is not None:
            host.agent.gave_back.update(
                (end.task, end.attempt) for end in frame.ended if end.outcome == "given_back"
            )
            connection.say(frame)

    def _beat(self, host: Host, connection: Connection) -> None:
        assert host.agent is not None
        node = host.agent.node
        keys = node.unreported()
        connection.say(Frame(heartbeat=Heartbeat(len(keys), attempts_checksum(keys))))
        node.repeat(self._time.monotonic())
        connection.heartbeat_at_us = self._time.now_us + LEASE_US // 3
        if self._time.now_us - connection.answered_at_us > 2 * LEASE_US:
            self._say(f"{host.name} gives up its connection")
            self._hang_up(host)

    def _cut(self, host: Host) -> None:
        connection = self._links[host.name]
        now, dice = self._time.now_us, self._dice
        late = [now + dice.choice([0, 0, 1, LEASE_US, 3 * LEASE_US]) for _ in range(2)]
        connection.cut(dice, *late)
        host.alone_until_us = now + dice.choice([0, 0, LEASE_US, 3 * LEASE_US])

    def _hold_up(self, connection: Connection) -> None:
        until = self._time.now_us + self._dice.choice([SECOND, LEASE_US, 2 * LEASE_US, 3 * LEASE_US])
        if self._dice.random() < 0.5:
            connection.up_held_us = until
        else:
            connection.down_held_us = until

    # machines

    def _start_process(self, host: Host, attempt: Attempt) -> tuple[int, int]:
        if host.agent is not None and attempt.key in host.agent.gave_back:
            told = f"{show_task(attempt.key[0])}/{attempt.key[1]}"
            raise Wrong(f"{host.name} starts {told}, which it gave back")
        self._truth.begin(host, attempt)
        plan = self._truth.plans[attempt.key[0]]
        plan.runs += 1
        failed = plan.fails < 0 or plan.runs <= plan.fails
        self._say(f"{host.name}: {show_task(attempt.key[0])}/{attempt.key[1]} starts")
        return self._time.now_us + int(plan.seconds * SECOND), 3 if failed else 0

    def _obey(self, host: Host) -> None:
        assert host.supervisor is not None
        host.supervisor.obey(host.orders.popleft())

    def _supervise(self, host: Host) -> None:
        assert host.supervisor is not None
        try:
            host.supervisor.work()
        except SupervisorCrash:
            self._say(f"{host.name}: the supervisor dies while it starts tasks")
            host.crash_supervisor()
        self._truth.processes |= {process.key: process for process in host.processes.values()}

    def _reap(self, host: Host) -> None:
        assert host.supervisor is not None
        for process in host.unreaped():
            host.supervisor.running.take_end(process)

    def _hear_supervisor(self, host: Host) -> None:
        agent = host.agent
        assert agent is not None
        frame = agent.heard.popleft()
        if frame is None:
            agent.linked = False
        else:
            agent.node.hear(frame)

    def _crash_agent(self, host: Host) -> None:
        host.crash_agent()
        self._hang_up(host)

    def _crash_host(self, host: Host) -> None:
        """No word of it: the server learns by the lease, or much later."""
        host.crash()
        if (connection := self._links.pop(host.name, None)) is not None:
            connection.cut(self._dice, self._time.now_us + self._dice.choice([0, 3 * LEASE_US]), 0)
            connection.leave()

    def _kill(self, pid: int, group: bool = False) -> None:
        for host in self._hosts:
            host.kill(pid)

    def _kill_leftovers(self, folder: str) -> None:
        next(host for host in self._hosts if str(host.folder) == folder).kill_leftovers()

    # people

    def _submit(self) -> None:
        if len(self._tasks) >= 36 or not self._store_is_up:
            return
        dice = self._dice
        spec = TaskSpec(
            command=["true"],
            cpus=dice.choice([0.5, 1.0, 1.0, 1.0, 2.0]),
            gpus=dice.choice([0, 0, 0, 0, 1]),
            retry=Retry(
                most=dice.choice([0, 1, 3, 5]),
                delay_seconds=dice.choice([0.0, 0.0, 0.0, 2.0]),
                most_delay_seconds=4.0,
            ),
            on_lost=dice.choice(["retry", "retry", "retry", "fail"]),
            priority=dice.choice([0, 0, 0, 5]),
            hold=dice.random() < 0.05,
            exclusive=False,
        )
        parents = dice.sample(self._tasks, min(len(self._tasks), dice.choice([0, 0, 0, 1, 2])))
        job = None
        if dice.random() < 0.3:
            job = str(
                self._call(submit.create_job, self._ann, JobSpec(max_parallel=dice.choice([None, 1, 2])))
            )
            self._jobs.append(int(job))
        n = dice.choice([1, 3, 8])
        answer = self._call(
            submit.create_tasks, self._ann, job, spec, [TaskRow()] * n, after=[show_task(p) for p in parents]
        )
        if answer is None:
            return
        first = (int(answer.job_id) << 32) + answer.first_number
        plan = (
            spec.cpus,
            spec.gpus,
            dice.choice([0.0, 0.0, 0.05, 1.0, 8.0 + 20.0 * self._style["long"]]),
            dice.choice([0, 0, 1, 3, -1]),
        )
        for key in range(first, first + n):
            self._tasks.append(key)
            self._truth.plans[key] = Plan(*plan, tuple(parents))
        self._say(f"ann submits {n} tasks from {show_task(first)} after {[show_task(p) for p in parents]}")
        self._tell("queued")

    def _act(self) -> None:
        if not self._tasks or not self._store_is_up:
            return
        dice = self._dice
        keys = dice.sample(self._tasks, min(len(self._tasks), dice.choice([1, 1, 3])))
        what: str = dice.choice(["cancel", "cancel by force", "hold", "release", "rerun", "rerun", "job"])
        self._say(f"ann: {what} {[show_task(key) for key in keys]}")
        if what == "job":
            self._act_on_job()
            return
        do: dict[str, Callable[..., Any]] = {
            "cancel": task_actions.cancel,
            "cancel by force": task_actions.cancel,
            "hold": task_actions.hold,
            "release": task_actions.release,
            "rerun": task_edits.rerun,
        }
        how = {"force": True} if what == "cancel by force" else {}
        self._rerunning = what == "rerun"
        if self._rerunning:
            self._truth.asked_again.update(keys)
        self._call(do[what], self._ann, keys, **how)
        self._rerunning = False
        self._tell(what)

    def _act_on_job(self) -> None:
        if self._jobs:
            job = self._dice.choice(self._jobs)
            act = self._dice.choice([jobs.start_cancel, jobs.disable, jobs.enable, jobs.close])
            self._say(f"ann: {act.__name__} job {job}")
            self._call(act, self._ann, job, **({} if act is jobs.enable else {"reason": None}))

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A request to the API; a refusal is an answer too."""
        try:
            result = self._db.call(function, *args, now_us=self._store_us(), **kwargs)
        except StoreUnavailable:
            raise
        except GeresError:
            return None
        self._wrote(function.__name__)
        return result

    def _tell(self, what: str) -> None:
        """The server that was asked rings; the others learn of it when they look."""
        up = [server for server in self._servers if server is not None]
        if up and self._dice.random() < 0.7:
            server = self._dice.choice(up)
            server.dispatcher.ring()
            server.dispatcher.asked(list(server.dispatcher.desks))


def _words(data: bytes | None) -> str:
    """A frame for people."""
    if data is None:
        return "the end"
    frame = decode(data)
    parts = []
    for name in ("assign", "ended", "ask", "ack", "kill", "started"):
        if items := getattr(frame, name):
            keys = [(one[0], one[1]) if isinstance(one, tuple) else (one.task, one.attempt) for one in items]
            told = ", ".join(f"{show_task(task)}/{attempt}" for task, attempt in keys)
            parts.append(f"{name} {told}")
    parts += [name for name in ("hello", "welcome", "heartbeat", "heartbeat_ack") if getattr(frame, name)]
    if frame.error:
        parts.append(f"error: {frame.error}")
    return "; ".join(parts) or "nothing"


def _empty(db: Database) -> None:
    """Leave nothing of the schedule before, and begin all numbers again."""

    def clear(tx: Tx) -> None:
        if tx.dialect == "postgres":
            rows = tx.raw(
                "SELECT tablename FROM pg_tables"
                " WHERE schemaname = 'public' AND tablename <> 'schema_version'"
            )
            tx.raw_run(
                "TRUNCATE " + ", ".join(f'"{row[0]}"' for row in rows) + " RESTART IDENTITY CASCADE", ()
            )
            return
        tables = [
            row[0]
            for row in tx.raw(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            )
            if row[0] != "schema_version"
        ]
        tx.raw_run("PRAGMA defer_foreign_keys = ON", ())
        for table in tables:
            tx.raw_run(f'DELETE FROM "{table}"', ())
        tx.raw_run("DELETE FROM sqlite_sequence", ())

    db.call(clear)
