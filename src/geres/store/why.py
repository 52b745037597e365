"""The facts behind `why`: what a task or job waits for, and how it went.  api/explain.py makes the words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from geres.model.callers import Caller
from geres.model.demand import Demand
from geres.model.ids import show_task, task_key
from geres.model.jobs import Counts, Job
from geres.model.states import TaskState
from geres.model.tasks import TaskDetail
from geres.store import jobs, quotas, show, tasks
from geres.store.database import Tx

_TAIL_LINES = 20
_MOST_PARENTS = 5
_LAST = (1 << 32) - 1


class Cap(NamedTuple):
    """A limit that the task counts against."""

    words: str  #: like `job 12`
    most: float
    used: float
    asks: float = 1  #: of one task
    unit: str = "tasks"

    @property
    def full(self) -> bool:
        return self.asks > 0 and self.used + self.asks > self.most


@dataclass
class TaskFacts:
    """What is known of one task."""

    task: TaskDetail
    demand: Demand
    job: Job
    waits_on: int = 0
    parents: list[str] = field(default_factory=list)  #: ids of some that it waits for
    caps: list[Cap] = field(default_factory=list)
    before: int = 0  #: queued tasks of its lane that start first
    asked: str | None = None
    stderr_tail: list[str] = field(default_factory=list)
    stderr_path: str | None = None  #: where it wrote instead
    on_disconnect: str = "run"  #: what becomes of it while its node is away


class LaneGroup(NamedTuple):
    """Queued tasks that ask for the same."""

    tasks: int
    first: int
    pool: str
    demand: Demand


class EndGroup(NamedTuple):
    """Tasks that ended alike."""

    state: str
    reason: str | None
    exit_code: int | None
    signal: int | None
    tasks: int
    first: int


@dataclass
class JobFacts:
    job: Job
    counts: Counts
    caps: list[Cap]
    lanes: list[LaneGroup]
    ends: list[EndGroup]
    live: list[EndGroup]  #: blocked, held and on nodes, by state and reason


def of_task(tx: Tx, caller: Caller, key: int) -> TaskFacts:
    """Raises NotFound."""
    task = tasks.get(tx, caller, key)
    row = tx.one("why_task", task_id=key)
    assert row is not None
    job = jobs.get_short(tx, row["job_id"])
    facts = TaskFacts(task, show.demand(row["demand"]), job, waits_on=row["waits_on"], asked=row["asked"])
    facts.on_disconnect = row["on_disconnect"]
    if task.state is TaskState.BLOCKED and row["waits_on"]:
        facts.parents = _parents(tx, key)
    if task.state is TaskState.QUEUED:
        facts.caps = _caps(tx, caller, job, facts.demand, task.submitted_by)
        facts.before = int(
            tx.value(
                "tasks_before",
                lane_id=row["lane_id"],
                priority=row["priority"],
                seq=row["seq"],
                task_id=key,
                limit=1000,
            )
        )
    if task.attempts and task.attempts[-1].attempt:
        facts.stderr_tail = _stderr_tail(tx, key, task.attempts[-1].attempt)
        facts.stderr_path = task.spec.stdout if task.spec.merge else task.spec.stderr
    return facts


def _parents(tx: Tx, key: int) -> list[str]:
    rows = tx.rows("open_parents", task_id=key, limit=_MOST_PARENTS)
    return [show_task(task_id) if task_id is not None else f"job {job_id}" for task_id, job_id in rows]


def _caps(tx: Tx, caller: Caller, job: Job, demand: Demand, user: str) -> list[Cap]:
    found = []
    if job.max_parallel is not None:
        used = tx.value("use_of_job", job_id=int(job.id))
        found.append(Cap(f"job {job.id}", job.max_parallel, int(used)))
    for scope, name, use in (
        ("label", demand.label, "use_of_label"),
        ("user", job.submitted_by, "use_of_user"),
    ):
        if name is None:
            continue
        most = tx.value("most_of_limit", tenant_id=caller.tenant_id, scope=scope, key=name)
        if most is not None:
            parameter = {"label": name} if scope == "label" else {"subject": name}
            used = tx.value(use, tenant_id=caller.tenant_id, **parameter)
            found.append(Cap(f"the {scope} {name}", int(most), int(used)))
    limits, _ = quotas.limits_on_nodes(tx, caller.tenant_id, [user])
    for limit in limits:
        words = f"user {limit.user}" if limit.user is not None else f"tenant {caller.tenant}"
        if limit.is_cpus:
            amounts = (limit.most / 1000, limit.used / 1000, demand.cpus_milli / 1000)
            found.append(Cap(f"{words} (its quota)", *amounts, "cpus"))
        else:
            found.append(Cap(f"{words} (its quota)", limit.most, limit.used))
    return found


def _stderr_tail(tx: Tx, key: int, attempt: int) -> list[str]:
    kept = tasks.kept_output(tx, key, "stderr", attempt)
    if kept is None:
        return []
    return kept.inline.decode(errors="replace").splitlines()[-_TAIL_LINES:]


def of_job(tx: Tx, caller: Caller, job_id: int) -> JobFacts:
    """Raises NotFound."""
    jobs.find(tx, caller, str(job_id))
    job = jobs.get_short(tx, job_id)
    span = {"first": task_key(job_id, 0), "last": task_key(job_id, _LAST)}
    lanes = [
        LaneGroup(count, first, pool, show.demand(body))
        for count, first, pool, body in tx.rows("queued_by_lane", job_id=job_id)
        if count
    ]
    return JobFacts(
        job,
        job.counts,
        _caps(tx, caller, job, lanes[0].demand if lanes else Demand(), job.submitted_by),
        lanes,
        [EndGroup(*row) for row in tx.rows("failures_of_job", **span, limit=50)],
        [EndGroup(*row) for row in tx.rows("live_of_job", **span, limit=50)],
    )
