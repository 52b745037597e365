"""What really happened, beside what the store says; every commit is compared with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from geres.agent.attempts import Attempt, Key
from geres.model.ids import show_task
from geres.model.states import FINAL, TaskState
from geres.store.database import Database, Tx
from geres.store.invariants import check_invariants
from tests.simulation.times import SECOND, Time


class Wrong(AssertionError):
    """The product has broken a promise."""


@dataclass
class Plan:
    """What a task does whenever it runs."""

    cpus: float
    gpus: int
    seconds: float
    fails: int  #: of its first runs; -1: all
    parents: tuple[int, ...] = ()
    runs: int = 0


@dataclass
class Truth:
    """Processes that were started, results that were read, leases that were promised."""

    time: Time
    plans: dict[int, Plan] = field(default_factory=dict)
    processes: dict[Key, Any] = field(default_factory=dict)
    finals: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    fences: dict[int, int] = field(default_factory=dict)
    results: dict[int, list[tuple[Any, ...]]] = field(default_factory=dict)  #: as a reader got them
    beats: dict[int, int] = field(default_factory=dict)  #: of nodes: the last heartbeat in the store
    leases_us: dict[int, int] = field(default_factory=dict)  #: of nodes, in true time
    asked_again: set[int] = field(
        default_factory=set
    )  #: reruns: these start whatever became of their parents
    lost: set[int] = field(default_factory=set)

    # on machines

    def begin(self, host: Any, attempt: Attempt) -> None:
        """A process is about to start.  Raises Wrong where it must not."""
        key = attempt.key
        name = f"attempt {key[1]} of {show_task(key[0])}"
        if key in self.processes:
            raise Wrong(f"{name} starts a second time, on {host.name}")
        plan = self.plans[key[0]]
        taken = sum(self.plans[process.key[0]].cpus for process in host.alive)
        if taken + plan.cpus > host.cpus + 1e-9:
            raise Wrong(
                f"{host.name} has {host.cpus} cpus, runs tasks with {taken}, and starts {name}: {plan.cpus}"
            )
        used = {gpu for process in host.alive for gpu in process.gpus}
        if len(attempt.gpu_ids) != plan.gpus or used & set(attempt.gpu_ids):
            raise Wrong(f"{name} asks for {plan.gpus} gpus, gets {attempt.gpu_ids}; {used} are in use")
        for parent in () if key[0] in self.asked_again else plan.parents:
            if self.finals.get(parent, ("open",))[0] not in ("succeeded", "open"):
                raise Wrong(f"{name} starts though {show_task(parent)} is {self.finals[parent][0]}")
        self.processes[key] = None

    # in the store

    def look(self, db: Database, *, rerun: bool) -> None:
        """Compare the tasks with what they were.  `rerun`: people have just asked for some."""
        for key, state, attempt, *rest in db.call(_tasks):
            name, now = show_task(key), (state, attempt, *rest)
            before = self.finals.get(key)
            if before is not None and before != now and not rerun:
                raise Wrong(f"{name} was final, {before}, and became {now}")
            if TaskState(state) in FINAL:
                self.finals[key] = now
            else:
                self.finals.pop(key, None)
            if attempt < self.fences.get(key, 0):
                raise Wrong(f"the attempt of {name} went down from {self.fences[key]} to {attempt}")
            self.fences[key] = attempt

    def look_closely(self, db: Database) -> None:
        """All invariants of the store, and each result against the process that it tells of."""
        if found := db.call(check_invariants):
            raise Wrong("; ".join(finding.text for finding in found))
        stored: dict[int, list[tuple[Any, ...]]] = {}
        for row in db.call(_attempts):
            job, finish_no, task, attempt, state, reason, exit_code, signal = row
            if finish_no is not None:
                stored.setdefault(job, []).append(row)
            process = self.processes.get((task, attempt))
            ended = None if process is None else process.ended
            name = f"attempt {attempt} of {show_task(task)}"
            if state == "succeeded" and ended != 0:
                raise Wrong(f"{name} is stored as succeeded, and its process {_told(process)}")
            if reason == "exit" and ended != exit_code:
                raise Wrong(f"{name} is stored with exit code {exit_code}, and its process {_told(process)}")
            if reason == "signal" and ended != -signal:
                raise Wrong(f"{name} is stored with signal {signal}, and its process {_told(process)}")
        for job, read in self.results.items():
            if stored.get(job, [])[: len(read)] != read:
                raise Wrong(f"the results of job {job} that were read are not those that are stored")
        self.results = stored

    def leases(self, db: Database) -> None:
        """No node is lost before the lease has ended that was promised to it."""
        for node, name, state in db.call(_nodes):
            if state != "lost":
                self.lost.discard(node)
            elif node not in self.lost:
                self.lost.add(node)
                left = self.leases_us.get(node, 0) - self.time.now_us
                if left > 0:
                    raise Wrong(f"{name} is declared lost {left / SECOND:.1f} s before its lease ends")

    def gone(self, db: Database, host: str) -> None:
        """A machine that has been off for long is not taken for connected."""
        for _, name, state in db.call(_nodes):
            if name == host and state not in ("lost", "offline"):
                raise Wrong(f"{name} has been off for long, and is {state}")


def _told(process: Any) -> str:
    if process is None:
        return "never ran"
    return "still runs" if process.alive else f"ended with {process.ended}"


def _tasks(tx: Tx) -> list[tuple[Any, ...]]:
    return tx.raw(
        "SELECT id, state, attempt, reason, round, exit_code, signal, ended_at FROM task ORDER BY id"
    )


def _attempts(tx: Tx) -> list[tuple[Any, ...]]:
    return tx.raw(
        "SELECT job_id, finish_no, task_id, attempt, state, reason, exit_code, signal FROM attempt"
        " ORDER BY job_id, finish_no, task_id, attempt"
    )


def _nodes(tx: Tx) -> list[tuple[Any, ...]]:
    return tx.raw("SELECT id, name, state FROM node ORDER BY id")
