"""One schedule: what happens next is drawn from a seed, so that each can be had again."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable

from geres.model.ids import show_task
from geres.model.states import FINAL
from geres.store import jobs, task_actions
from tests.simulation.fleet import Fleet
from tests.simulation.hosts import Host
from tests.simulation.servers import LEASE_SECONDS, Server
from tests.simulation.times import SECOND, simulated
from tests.simulation.truth import Wrong

_STEPS = 450  #: events before the fleet is left in peace
_ROUNDS = 400  #: rounds of peace in which all must end
_MISSED_ROUNDS = 136  #: in which a machine without power is lost: 34 s, 10 to see the clock and four leases
_MOST_LINES = int(os.environ.get("LINES", "150"))


#: How likely, what the trace says, what is done.
Event = tuple[float, str, Callable[[], object]]


class Failed(AssertionError):
    """A schedule that breaks a promise; its text is the trace, how to have it again, and what is wrong."""


class Simulation(Fleet):
    """One schedule: `run` raises Failed where a promise is broken."""

    # the whole

    def run(self) -> None:
        with simulated(self._time, self._kill, self._kill_leftovers):
            logging.disable(logging.NOTSET if os.environ.get("LOGS") else logging.CRITICAL)
            try:
                self._begin()
                for _ in range(_STEPS):
                    self._step()
                self._end_in_peace()
            except Exception as error:
                raise Failed(self._told(error)) from error
            finally:
                logging.disable(logging.NOTSET)
                for host in self._hosts:
                    host.close()

    def _told(self, error: Exception) -> str:
        lines = "\n".join(self.trace[-_MOST_LINES:])
        kind = "" if isinstance(error, Wrong) else "".join(traceback.format_exception(error)[-4:])
        store = self._db.dialect
        return (
            f"{lines}\n\nschedule {self._seed} on {store}, after {len(self.trace)} events: {kind}{error}\n"
            f"again: SEED={self._seed} STORE={store}{' JUMPS=1' * self._jumps} python -m tests.simulation"
        )

    # what happens

    def _step(self) -> None:
        self._time.now_us += self._dice.randint(0, 20_000)
        events = self._events()
        weights = [weight for weight, _, _ in events]
        _, text, happen = self._dice.choices(events, weights)[0]
        if text:
            self._say(text)
        happen()

    def _events(self) -> list[Event]:
        style = self._style
        events: list[Event] = [
            (2.0, "", lambda: self._pass(self._dice.choice([0.05, 0.3, 1.1]))),
            (0.25, "", lambda: self._pass(self._dice.choice([LEASE_SECONDS / 2, LEASE_SECONDS + 1, 11.0]))),
            (0.8, "", self._submit),
            (1.2 * style["people"], "", self._act),
        ]
        for number, server in enumerate(self._servers):
            events += self._server_events(number, server)
        for host in self._hosts:
            events += self._host_events(host)
        if self._store_is_up:
            events.append((0.05 * style["store"], "the store goes away", self._end_store))
        else:
            events.append((1.0, "the store is back", self._start_store))
        if self._jumps:
            events.append((0.15, "", self._jump))
        return events

    def _server_events(self, number: int, server: Server | None) -> list[Event]:
        if server is None:
            return [(1.0, "", lambda: self._start_server(number))]
        events: list[Event] = []
        for name in server.due():
            weight = 4.0 if server.is_midway(name) or name == "turn" else 1.0
            events.append((weight, f"{server.name}: {name}", lambda name=name: self._go_on(server, name)))
        for connection in server.connections:
            if connection.greeting is not None:
                events.append(
                    (
                        4.0,
                        f"{server.name}: hello of {connection.agent.name}",
                        lambda c=connection: server.greet_on(c),
                    )
                )
            elif connection.up and connection.up_held_us <= self._time.now_us:
                events.append((5.0, "", lambda c=connection: self._deliver_up(server, c)))
        events.append(
            (0.12 * self._style["server"], f"{server.name} is killed", lambda: self._crash_server(number))
        )
        return events

    def _host_events(self, host: Host) -> list[Event]:
        if not host.is_up:
            return [(0.5, f"{host.name} boots", host.boot)]
        events: list[Event] = [
            (0.03 * self._style["host"], f"{host.name} loses its power", lambda: self._crash_host(host))
        ]
        events += [
            (2.0, f"{host.name}: {show_task(p.key[0])}/{p.key[1]} ends", lambda p=p: host.end(p, p.code))
            for p in host.alive
            if p.until_us <= self._time.now_us and not p.frozen
        ]
        if host.supervisor is not None:
            if host.orders:
                events.append((4.0, "", lambda: self._obey(host)))
            if host.supervisor.is_busy:
                events.append((4.0, "", lambda: self._supervise(host)))
            if host.unreaped():
                events.append((4.0, "", lambda: self._reap(host)))
            events.append((0.3, "", lambda: self._supervise(host)))
            events.append(
                (
                    0.06 * self._style["supervisor"],
                    f"{host.name}: the supervisor is killed",
                    host.crash_supervisor,
                )
            )
            if host.crash_in < 0:
                events.append(
                    (
                        0.03 * self._style["supervisor"],
                        "",
                        lambda: setattr(host, "crash_in", self._dice.randint(0, 2)),
                    )
                )
        if host.agent is None:
            return [*events, (1.0, f"{host.name}: an agent starts", host.start_agent)]
        events += self._agent_events(host)
        events.append(
            (
                0.08 * self._style["agent"],
                f"{host.name}: the agent is killed",
                lambda: self._crash_agent(host),
            )
        )
        return events

    def _agent_events(self, host: Host) -> list[Event]:
        agent = host.agent
        assert agent is not None
        if not agent.linked:
            return [(3.0, f"{host.name}: the agent meets its supervisor", host.link)]
        events: list[Event] = []
        if agent.heard:
            events.append((4.0, "", lambda: self._hear_supervisor(host)))
        connection = self._links.get(host.name)
        if connection is None:
            if agent.node.listed.is_set() and any(self._servers) and host.alone_until_us <= self._time.now_us:
                events.append((2.0, "", lambda: self._connect(host)))
            return events
        if connection.down and connection.down_held_us <= self._time.now_us:
            events.append((5.0, "", lambda: self._deliver_down(host, connection)))
        if connection.welcomed:
            events.append((3.0, "", lambda: self._talk(host, connection)))
            if self._time.now_us >= connection.heartbeat_at_us:
                events.append((4.0, "", lambda: self._beat(host, connection)))
        events.append(
            (0.15 * self._style["cut"], f"the connection of {host.name} is cut", lambda: self._cut(host))
        )
        events.append(
            (0.1 * self._style["delay"], f"{host.name} is held up", lambda: self._hold_up(connection))
        )
        return events

    def _pass(self, seconds: float) -> None:
        self._say(f"{seconds:g} s pass")
        self._time.now_us += int(seconds * SECOND)

    # peace

    def _end_in_peace(self) -> None:
        """No more faults: everything that may end does so, and nothing is left."""
        self._say("peace")
        self._peace, self._store_is_up = True, True
        if self._jumps:
            self._miss_a_host()
        for plan in self._truth.plans.values():
            plan.seconds = min(plan.seconds, 0.1)
        for host in self._hosts:
            host.crash_in, host.alone_until_us = -1, 0
            for process in host.alive:
                process.until_us = self._time.now_us
            if not host.is_up:
                host.boot()
        for connection in self._links.values():
            connection.up_held_us = connection.down_held_us = 0
        for key in self._tasks:
            self._call(task_actions.release, self._ann, [key])
        for job in self._jobs:
            self._call(jobs.enable, self._ann, job)
        for _ in range(_ROUNDS):
            self._round()
            if self._is_over():
                break
        self._truth.look(self._db, rerun=False)
        self._truth.look_closely(self._db)
        self._nothing_is_left()

    def _miss_a_host(self) -> None:
        """A machine without power is noticed, also while the clock is set once more."""
        host = self._hosts[0]
        if host.is_up:
            self._say(f"{host.name} loses its power")
            self._crash_host(host)
        for other in self._hosts:
            other.crash_in = -1
        self._jump()
        for _ in range(_MISSED_ROUNDS):
            self._round()
        self._truth.gone(self._db, host.name)

    def _round(self) -> None:
        self._time.now_us += SECOND // 4
        for number, server in enumerate(self._servers):
            if server is None:
                self._start_server(number)
        for server in self._servers:
            assert server is not None
            self._serve(server)
        for host in self._hosts:
            if host.is_up:
                self._work(host)

    def _serve(self, server: Server) -> None:
        for connection in list(server.connections):
            while connection.greeting is not None or (connection.up and not connection.server_over):
                if connection.greeting is not None:
                    server.greet_on(connection)
                else:
                    self._deliver_up(server, connection)
        for name in server.due():
            while not server.go_on(name):
                pass

    def _work(self, host: Host) -> None:
        if host.agent is None:
            host.start_agent()
        agent = host.agent
        assert agent is not None
        while agent.linked and host.supervisor is None:
            self._hear_supervisor(host)
        if not agent.linked:
            host.link()
        for process in host.alive:
            process.frozen = False
            if process.until_us <= self._time.now_us:
                host.end(process, process.code)
        while host.orders:
            self._obey(host)
        self._supervise(host)
        self._reap(host)
        self._supervise(host)
        while agent.heard and agent.linked:
            self._hear_supervisor(host)
        connection = self._links.get(host.name)
        if connection is None:
            if agent.linked and agent.node.listed.is_set():
                self._connect(host)
            return
        while connection.down and self._links.get(host.name) is connection:
            self._deliver_down(host, connection)
        if connection.welcomed and self._links.get(host.name) is connection:
            if self._time.now_us >= connection.heartbeat_at_us:
                self._beat(host, connection)
            self._talk(host, connection)

    def _open(self) -> list[int]:
        """Tasks that could still end: not those that no machine of this fleet could ever run."""
        rows = self._db.call(lambda tx: tx.raw("SELECT id, state FROM task"))
        stuck = {
            key
            for key in self._tasks
            if not any(
                host.cpus >= self._truth.plans[key].cpus and host.gpus >= self._truth.plans[key].gpus
                for host in self._hosts
            )
        }
        for key in self._tasks:
            if stuck & set(self._truth.plans[key].parents):
                stuck.add(key)
        return [key for key, state in rows if state not in FINAL and key not in stuck]

    def _is_over(self) -> bool:
        if self._open():
            return False
        return not any(
            host.alive or host.orders or (host.agent is not None and host.agent.node.attempts)
            for host in self._hosts
        )

    def _nothing_is_left(self) -> None:
        left = self._open()
        if left:
            rows = self._db.call(
                lambda tx: tx.raw("SELECT id, state, reason, node_id, attempt, asked, waits_on FROM task")
            )
            told = [f"{show_task(row[0])} {row[1:]}" for row in rows if row[0] in left]
            raise Wrong(f"tasks never end: {'; '.join(told[:5])}")
        for host in self._hosts:
            if host.alive:
                names = [f"{show_task(p.key[0])}/{p.key[1]}" for p in host.alive]
                raise Wrong(f"processes are left on {host.name}: {', '.join(names)}")
            assert host.agent is not None
            assert host.supervisor is not None
            if host.agent.node.attempts or host.supervisor.running.attempts or host.supervisor.running.ended:
                raise Wrong(f"{host.name} still has attempts: {host.agent.node.attempts}")
