"""Tasks of mixed kinds with known ends, people who meddle with some, and what has to come of them."""

from __future__ import annotations

import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import geres
from geres.errors import StoreUnavailable, TimedOut, Unreachable

_PIECE = 200
_LARGE_BYTES = 200_000
#: A starved or frozen machine makes tasks fail that are right: they are tried again, and end well in the end.
_RETRIES = 50
_RIGHT = {"retries": _RETRIES}


@dataclass
class Kind:
    """One kind of task.  `ends` is its final state, `output` what it writes for number n."""

    command: list[str]
    share: int
    ends: str = "succeeded"
    output: str | None = None
    options: dict[str, Any] = field(default_factory=lambda: dict(_RIGHT))


KINDS = {
    "short": Kind(["true"], 50),
    "echo": Kind(["echo", "out {n}"], 20, output="out {n}\n"),
    "sleep": Kind(["sleep", "0.2"], 10),
    "long": Kind(["sleep", "6"], 1),
    "failing": Kind(["sh", "-c", "exit 3"], 5, ends="failed", options={"retries": 1}),
    "flaky": Kind(["sh", "-c", 'test "$GERES_RETRY_COUNT" -gt 0'], 8),
    "large": Kind(["sh", "-c", f"head -c {_LARGE_BYTES} /dev/zero | tr '\\0' {{n}}"], 3),
    "forking": Kind(["sh", "-c", "sleep 300 & echo {n}"], 3, output="{n}\n"),
}


def _command(kind: str, number: int) -> list[str]:
    """Large outputs are of one digit, the others tell their number."""
    text = str(number % 10 if kind == "large" else number)
    return [word.replace("{n}", text) for word in KINDS[kind].command]


class Workload:
    """Submits until it is stopped, by two threads; `check` compares all with what it must be."""

    def __init__(self, clients: list[geres.Client], seed: int, most: int) -> None:
        self._clients, self._dice, self._most = clients, random.Random(seed), most
        self._lock = threading.Lock()
        self._stop, self._leave = threading.Event(), threading.Event()
        self.tasks: dict[str, tuple[str, int]] = {}  #: id to (kind, number)
        self.children: dict[str, list[str]] = {}  #: id to its parents
        self.touched: set[str] = set()  #: cancelled or run again by people
        self._untouchable: set[str] = set()
        self.results: list[Any] = []  #: of the job, as a reader followed them
        self.errors: list[str] = []
        self._job = clients[0].create_job("chaos")
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), daemon=True)
            for work in (self._submit, self._meddle, self._follow)
        ]

    @property
    def job(self) -> Any:
        return self._job

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop_submitting(self) -> None:
        """People leave; who follows the results stays."""
        self._leave.set()
        for thread in self._threads[:2]:
            thread.join(120)
            assert not thread.is_alive(), "a client hangs"

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive(), "a client hangs"

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except Exception as error:
            self.errors.append(f"{work.__name__}: {error!r}")

    def _submit(self) -> None:
        names = list(KINDS)
        number = 0
        while not self._leave.is_set() and number < self._most:
            picked = self._dice.choices(names, [KINDS[name].share for name in names], k=_PIECE)
            for name in set(picked):
                numbers = [number := number + 1 for one in picked if one == name]
                after = self._parents() if self._dice.random() < 0.2 else []
                rows = [_command(name, n) for n in numbers]
                options = dict(KINDS[name].options)
                if after:
                    options["after"] = after
                made = self._insist(partial(self._clients[0].submit_many, rows, job=self._job, **options))
                with self._lock:
                    for task, n in zip(made, numbers, strict=True):
                        self.tasks[task.id] = (name, n)
                        if after:
                            self.children[task.id] = after
            self._leave.wait(0.3)

    def _parents(self) -> list[str]:
        """Tasks that will succeed, whatever happens."""
        with self._lock:
            good = [
                key
                for key, (kind, _) in self.tasks.items()
                if KINDS[kind].ends == "succeeded" and key not in self.touched
            ]
            found = self._dice.sample(good, min(2, len(good)))
            self._untouchable |= set(found)
        return found

    def _meddle(self) -> None:
        while not self._leave.wait(0.2):
            with self._lock:
                free = [key for key in self.tasks if key not in self._untouchable]
                picked = self._dice.sample(free, min(3, len(free)))
                self.touched.update(picked)
            if picked:
                act = self._dice.choice([self._clients[1].cancel, self._clients[1].rerun])
                self._insist(partial(act, *picked))

    def _follow(self) -> None:
        after = 0
        while True:
            stopping = self._stop.is_set()
            page = self._insist(partial(self._clients[2].results_page, self._job.id, after=after, limit=5000))
            self.results += page.items
            after = page.last
            if not page.items and stopping:
                return
            self._stop.wait(0.2)

    def _insist(self, request: Any) -> Any:
        """A client waits out what it can; an outage longer than its patience is asked again."""
        for _ in range(100):
            try:
                return request()
            except (StoreUnavailable, Unreachable, TimedOut):
                threading.Event().wait(0.3)
        raise AssertionError("no server has answered for long")

    def wait(self, seconds: float) -> None:
        """Wait until all tasks have ended."""
        clock = threading.Event()
        for _ in range(int(seconds / 0.5)):
            counts = self._insist(self._job.refresh).counts
            if not (counts.queued or counts.assigned or counts.running or counts.blocked or counts.suspended):
                return
            clock.wait(0.5)
        raise AssertionError(f"tasks have not ended within {seconds:.0f} s: {counts}")

    def problems(self) -> list[str]:
        """What is not as it has to be, once all has ended."""
        found = list(self.errors)
        states = {task.id: task for task in self._clients[0].tasks(job=self._job.id, sort="id")}
        if missing := self.tasks.keys() - states.keys():
            found.append(f"{len(missing)} tasks are lost: {sorted(missing)[:5]}")
        for key, (kind, _) in self.tasks.items():
            state = states[key].state if key in states else "lost"
            if key in self.touched or state == KINDS[kind].ends or self._gave_up(states, key):
                continue
            found.append(f"{key} ({kind}) is {state}: {states[key].info.reason} {states[key].info.message}")
        numbers = [end.finish_no for end in self.results]
        if numbers != list(range(1, len(numbers) + 1)):
            found.append("who followed the results did not get each once, in order")
        results = Counter(end.task_id for end in self.results)
        twice = [key for key, count in results.items() if count > 1 and key not in self.touched]
        if twice:
            found.append(f"tasks have two results: {twice[:5]}")
        return found + self._wrong_outputs()

    def _gave_up(self, states: dict[str, Any], key: str) -> bool:
        """It lost its node three times, as is promised to be its end; or it waited for such a one."""
        if key not in states:
            return False
        if states[key].info.reason == "crash_limit":
            return True
        return any(self._gave_up(states, parent) for parent in self.children.get(key, ()))

    def _wrong_outputs(self) -> list[str]:
        good = {task.id for task in self._clients[0].tasks(job=self._job.id, state="succeeded")}
        plain = [key for key in self.tasks if key not in self.touched and key in good]
        told = [key for key in plain if KINDS[self.tasks[key][0]].output is not None]
        large = [key for key in plain if self.tasks[key][0] == "large"]
        found = []
        for key in self._dice.sample(told, min(40, len(told))):
            kind, n = self.tasks[key]
            expected = (KINDS[kind].output or "").replace("{n}", str(n))
            if (wrote := self._clients[0].task(key).stdout()) != expected:
                found.append(f"{key} ({kind}) wrote {wrote!r} instead of {expected!r}")
        for key in self._dice.sample(large, min(10, len(large))):
            expected = str(self.tasks[key][1] % 10) * _LARGE_BYTES
            if (wrote := self._clients[0].task(key).stdout()) != expected:
                found.append(f"{key} wrote {len(wrote)} bytes instead of {len(expected)}, or others")
        return found
