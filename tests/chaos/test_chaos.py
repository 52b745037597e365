"""Real processes under seeded schedules of faults: nothing is lost, counted twice, or left behind.

`make chaos CHAOS_SECONDS=600` runs schedules for that long; CI runs one short one.  What a seed draws is the
order of faults; when each meets the work is up to the machine.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

import pytest

from geres.model.doctor import Finding
from tests.chaos.fleet import LEASE_SECONDS, Fleet, Part, starve
from tests.chaos.workload import Workload
from tests.conftest import missing
from tests.postgres import NoPostgres

SECONDS = float(os.environ.get("CHAOS_SECONDS", "20"))
_SCHEDULE_SECONDS = 60.0  #: of faults; a longer run is of several schedules, each on a fleet of its own
_CALM_SECONDS = 240.0


class Faults:
    """What can be done to a fleet; each comes back by itself, or with `Fleet.heal`."""

    def __init__(self, fleet: Fleet, dice: random.Random) -> None:
        self._fleet, self._dice = fleet, dice
        self._later: list[tuple[float, Callable[[], object]]] = []
        self.done: list[str] = []
        self._kinds: dict[Callable[[], str], float] = {
            self.kill_server: 3,
            self.kill_agent: 4,
            self.kill_supervisor: 2,
            self.kill_task: 4,
            self.crash_postgres: 1,
            self.freeze_server: 1,
            self.freeze_agent: 2,
            self.freeze_supervisor: 1,
            self.delay: 2,
            self.cut: 4,
            self.half_close: 2,
            self.hold: 2,
            self.starve_agent: 1,
            self.starve_server: 1,
            self.set_clock: 1,
        }

    def run(self, seconds: float) -> None:
        """One fault after the other, each while others still last."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            [fault] = self._dice.choices(list(self._kinds), list(self._kinds.values()))
            self.done.append(f"{fault()}")
            self._wait(self._dice.uniform(0.1, 1.5))
        for _, again in self._later:
            again()

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            due = [again for at, again in self._later if at <= now]
            self._later = [one for one in self._later if one[0] > now]
            for again in due:
                again()
            time.sleep(0.02)

    def _in(self, seconds: float, again: Callable[[], object]) -> None:
        self._later.append((time.monotonic() + seconds, again))

    def _server(self) -> Part:
        return self._dice.choice(self._fleet.servers)

    def _agent(self) -> Part:
        return self._dice.choice(self._fleet.agents)

    def kill_server(self) -> str:
        return self._kill(self._server())

    def kill_agent(self) -> str:
        return self._kill(self._agent())

    def _kill(self, part: Part) -> str:
        part.kill()
        self._in(self._dice.choice([0.0, 0.5, LEASE_SECONDS + 1]), part.start)
        return f"kill {part.home.name}"

    def kill_supervisor(self) -> str:
        return self._to_supervisor(signal.SIGKILL)

    def freeze_supervisor(self) -> str:
        return self._to_supervisor(signal.SIGSTOP)

    def _to_supervisor(self, number: int) -> str:
        agent = self._agent()
        pid = self._fleet.supervisor(agent)
        if pid is None:
            return "no supervisor"
        _send(pid, number)
        if number == signal.SIGSTOP:
            self._in(LEASE_SECONDS * 1.5, lambda: _send(pid, signal.SIGCONT))
        return f"{signal.Signals(number).name} to the supervisor of {agent.home.name}"

    def kill_task(self) -> str:
        pids = self._fleet.task_pids()
        if pids:
            _send(self._dice.choice(pids), signal.SIGKILL)
        return "kill a task"

    def crash_postgres(self) -> str:
        self._fleet.postgres.crash()
        self._wait(self._dice.choice([0.0, 1.0, LEASE_SECONDS + 1]))
        self._fleet.postgres.restart()
        return "crash PostgreSQL"

    def freeze_server(self) -> str:
        return self._freeze(self._server())

    def freeze_agent(self) -> str:
        return self._freeze(self._agent())

    def _freeze(self, part: Part) -> str:
        part.signal(signal.SIGSTOP)
        self._in(LEASE_SECONDS * 1.5, lambda: part.signal(signal.SIGCONT))
        return f"freeze {part.home.name}"

    def delay(self) -> str:
        proxy = self._dice.choice(self._fleet.proxies)
        proxy.delay_seconds = self._dice.choice([0.05, 0.5, 2.0])
        self._in(3.0, lambda: setattr(proxy, "delay_seconds", 0.0))
        return f"delay by {proxy.delay_seconds} s"

    def cut(self) -> str:
        self._dice.choice(self._fleet.proxies).cut()
        return "cut"

    def half_close(self) -> str:
        self._dice.choice(self._fleet.proxies).half_close()
        return "half-close"

    def hold(self) -> str:
        proxy = self._dice.choice(self._fleet.proxies)
        proxy.held = True
        self._in(self._dice.choice([1.0, LEASE_SECONDS * 1.5]), lambda: setattr(proxy, "held", False))
        return "hold"

    def set_clock(self) -> str:
        seconds = self._dice.choice([-3600.0, -60.0, -3.0, 0.0, 3.0, 60.0, 3600.0])
        self._fleet.set_clock(seconds)
        return f"set the clock by {seconds:g} s"

    def starve_server(self) -> str:
        return self._starve(self._server())

    def starve_agent(self) -> str:
        agent = self._agent()
        pid = self._fleet.supervisor(agent)
        if pid is not None:
            starve(pid, True)
            self._in(2.0, lambda: starve(pid, False))
        return self._starve(agent)

    def _starve(self, part: Part) -> str:
        part.starve(True)
        self._in(2.0, lambda: part.starve(False))
        return f"fill the disk of {part.home.name}"


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it has just ended


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 3 + 600)
def test_a_fleet_keeps_its_promises_whatever_is_done_to_it() -> None:
    first = int(os.environ.get("CHAOS_SEED", str(random.randrange(10**6))))
    until = time.monotonic() + SECONDS
    seed = first
    while seed == first or time.monotonic() < until:
        _schedule(seed, min(SECONDS, _SCHEDULE_SECONDS))
        seed += 1


def _schedule(seed: int, seconds: float) -> None:
    dice = random.Random(seed)
    print(f"\nCHAOS_SEED={seed}")
    try:
        fleet = Fleet(dice)
    except NoPostgres as error:
        missing(str(error))
        raise
    with fleet:
        work = Workload([fleet.client() for _ in range(3)], seed, most=int(seconds * 120))
        work.start()
        faults = Faults(fleet, dice)
        faults.run(seconds)
        print(f"{len(faults.done)} faults: {', '.join(faults.done)}")
        fleet.heal()
        work.stop_submitting()
        work.wait(_CALM_SECONDS)
        work.stop()

        problems = work.problems() + [_told(finding) for finding in fleet.findings()]
        problems += [f"still there: {words}" for words in fleet.stop()]
        problems += [
            f"a traceback in the log of {name}: {_tail(text)}"
            for name, text in fleet.logs()
            if "Traceback" in text
        ]
        print(f"{len(work.tasks)} tasks, {len(work.results)} results, {len(work.touched)} touched by people")
        assert not problems, "\n".join(problems)


def _told(finding: Finding) -> str:
    return f"{finding.kind}: {finding.text}"


def _tail(log: str) -> str:
    at = log.index("Traceback")
    return log[max(0, at - 300) : at + 3000].replace("\\n", "\n")
