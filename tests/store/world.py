"""A small world around a store: tasks, nodes and turns with as few words as a test can use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from geres.model.callers import Caller
from geres.model.ids import parse_task, show_task
from geres.model.jobs import JobSpec
from geres.model.states import TaskState
from geres.model.tasks import TaskRow, TaskSpec
from geres.model.tenants import CreateUser
from geres.model.wire import Ended, Hello
from geres.store import nodes, sharing, submit, tenants
from geres.store.database import Database, Tx
from geres.store.migrate import migrate
from geres.store.turn import Candidate, Cap, Gathered, Lane, Placement, Turned, turn

SECOND = 1_000_000
LEASE_US = 15 * SECOND


class FirstNode:
    """Places every candidate on one node, up to a number."""

    def __init__(self, node_id: int, most: int) -> None:
        self.node_id, self.most = node_id, most

    def hopeless(self, pool_id: int) -> frozenset[int]:
        return frozenset()

    def caps_of(self, lanes: Sequence[Lane]) -> list[tuple[str, str, list[int]]]:
        return [("job", str(lane.job_id), [lane.id]) for lane in lanes if lane.max_parallel is not None]

    def choose(self, lanes: Sequence[Lane], caps: Sequence[Cap]) -> list[tuple[int, int]]:
        left = {lane_id: cap.left for cap in caps for lane_id in cap.lane_ids}
        return [(lane.id, min(self.most, left.get(lane.id, self.most))) for lane in lanes]

    def place(self, candidates: Sequence[Candidate]) -> list[Placement]:
        return [Placement(candidate, self.node_id) for candidate in candidates[: self.most]]


class World:
    """One tenant, one caller `ann`, any number of nodes.  `now_us` moves only when a test moves it."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.now_us = 1_000 * SECOND
        db.call(migrate, now_us=self.now_us)
        self.tenant_id = db.call(sharing.ensure_tenant, "default", now_us=self.now_us)
        self.ann = Caller(self.tenant_id, "default", "ann", "admin")
        self.bob = Caller(self.tenant_id, "default", "bob", "user")

    def add_user(self, name: str) -> None:
        """A user who has submitted nothing yet."""
        self.db.call(tenants.create_user, self.ann, CreateUser(name=name), now_us=self.now_us)

    def submit(
        self, n: int = 1, *, job: str | None = None, after: Sequence[str] = (), **options: Any
    ) -> list[str]:
        """Ids of n new tasks of /bin/true with these options."""
        spec = TaskSpec(command=["true"], **options)
        answer = self.db.call(
            submit.create_tasks, self.ann, job, spec, [TaskRow()] * n, after=after, now_us=self.now_us
        )
        first = answer.first_number
        return [f"{answer.job_id}.{number}" for number in range(first, first + n)]

    def job(self, **options: Any) -> str:
        return str(self.db.call(submit.create_job, self.ann, JobSpec(**options), now_us=self.now_us))

    def connect(
        self,
        name: str = "n1",
        has: Sequence[tuple[int, int]] = (),
        running: Sequence[tuple[int, int]] = (),
        **facts: Any,
    ):
        """A new connection of a node that says it has these attempts."""
        hello = Hello(1, "0", name, "boot", "host", name, "x86_64", "linux", 1, "ann", 4.0, 1 << 33)
        hello.attempts, hello.running = list(has), list(running)
        for fact, value in facts.items():
            setattr(hello, fact, value)
        return self.db.call(
            nodes.hello, hello, tenant_id=self.tenant_id, server_id=1, lease_us=LEASE_US, now_us=self.now_us
        )

    def turn(self, node: nodes.Connected, most: int = 100, **reports: Any) -> Turned:
        """One turn for one connected node; `ended` are reports over its connection."""
        work = Gathered({node.node_id: node.epoch}, [node.pool_id] if most else [])
        work.ended = [(node.node_id, report) for report in reports.get("ended", ())]
        work.started = [
            (task, attempt, node.node_id, self.now_us) for task, attempt in reports.get("started", ())
        ]
        planner = FirstNode(node.node_id, most)
        return self.db.call(turn, work, planner, now_us=self.now_us)

    def assign(self, node: nodes.Connected, most: int = 100) -> list[tuple[str, int]]:
        """(task id, attempt) of what a turn starts on the node."""
        return [(show_task(p.candidate.id), attempt) for p, attempt in self.turn(node, most).assigned]

    def lose(self) -> Turned:
        return self.db.call(nodes.lose, self.ended, now_us=self.now_us)

    def ended(self, leases: Sequence[nodes.Lease]) -> list[nodes.Lease]:
        """As a server sees it that looks all the time."""
        return [
            lease for lease in leases if (lease.until or (lease.heartbeat_at or 0) + LEASE_US) <= self.now_us
        ]

    def task(self, task_id: str) -> dict[str, Any]:
        return self.row("SELECT * FROM task WHERE id = :id", id=key(task_id))

    def state(self, task_id: str) -> TaskState:
        return TaskState(self.task(task_id)["state"])

    def row(self, sql: str, **parameters: Any) -> dict[str, Any]:
        return self.rows(sql, **parameters)[0]

    def rows(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        def read(tx: Tx) -> list[dict[str, Any]]:
            return tx.text(sql, parameters)

        return self.db.call(read)

    def results(self, job_id: str) -> list[tuple[int, str, int, str]]:
        """(finish number, task, attempt, state) of a job's results stream."""
        rows = self.rows(
            "SELECT * FROM attempt WHERE job_id = :job AND finish_no IS NOT NULL ORDER BY finish_no",
            job=int(job_id),
        )
        return [(r["finish_no"], show_task(r["task_id"]), r["attempt"], r["state"]) for r in rows]


def key(task_id: str) -> int:
    found = parse_task(task_id)
    assert found is not None
    return found


def ended(task_id: str, attempt: int, outcome: str = "succeeded", **facts: Any) -> Ended:
    """A report: the attempt ended like this."""
    if outcome == "failed":
        facts = {"reason": "exit", "exit_code": 1} | facts
    return Ended(key(task_id), attempt, outcome, **facts)
