"""The turn: one transaction for everything that has gathered since the last one.

Locks are taken in an order in which nobody waits for another in a circle: the nodes that have reported,
whose epochs are checked, and the tasks that they report of; then limits and candidates, for which it never
waits, and the nodes that get them; dependents; last the jobs, where results are numbered, and lanes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import msgspec

from geres.model.ids import job_of
from geres.model.lifecycle import LOST, Before, Next, after_end
from geres.model.states import Reason, TaskState
from geres.model.tasks import KnownSpec, TaskSpec
from geres.model.wire import AttemptKey, Ended
from geres.store import quotas, show
from geres.store.database import Tx, batch
from geres.store.ends import End, record, wake_lanes

MOST_LANES = 512  #: looked at in one turn, a pool


class Lane(NamedTuple):
    """A lane that may have queued tasks."""

    id: int
    priority: int  #: of its first task, or higher
    submitted_by: str
    class_id: int
    demand: str  #: JSON
    job_id: int
    max_parallel: int | None
    job_priority: int
    pool_id: int
    quotas: int = 0  #: how many its tenant has


class Candidate(NamedTuple):
    """A queued task, locked for this turn."""

    id: int
    attempt: int
    spec_id: int
    argv: str | None
    item: str | None
    priority: int
    seq: int
    retry_count: int
    requeue_count: int
    lane_id: int


class Placement(NamedTuple):
    candidate: Candidate
    node_id: int
    ahead: bool = False  #: takes no room


class Cap(NamedTuple):
    """A limit that was locked: at most `left` more tasks of these lanes, or of what their tasks cost."""

    lane_ids: frozenset[int]
    left: int
    costs: Mapping[int, int] = {}  #: of a task, by lane; 1 where nothing is said

    def most_of(self, lane_id: int, many: int) -> int:
        """How many tasks of a lane it lets start, at most `many`."""
        cost = self.costs.get(lane_id, 1)
        return min(many, self.left // cost) if cost else many


class Planner(Protocol):
    """What the dispatcher decides inside the transaction.  Must not block."""

    def hopeless(self, pool_id: int) -> Set[int]:
        """Lanes that no connected node of the pool could ever serve; they are not looked at."""

    def caps_of(self, lanes: Sequence[Lane]) -> list[tuple[str, str, list[int]]]:
        """(scope, key, lane ids) of every limit that a lane is under."""

    def choose(self, lanes: Sequence[Lane], caps: Sequence[Cap]) -> list[tuple[int, int]]:
        """(lane id, most tasks to read) of the lanes that could start something now."""

    def place(self, candidates: Sequence[Candidate]) -> list[Placement]:
        """Where they start; a candidate that fits nowhere is left out."""


@dataclass
class Gathered:
    """What a turn has to do.  Reports carry the node and the epoch of the connection they came over."""

    epochs: dict[int, int] = field(default_factory=dict)  #: node id: epoch, of all nodes concerned
    pools: list[int] = field(default_factory=list)  #: to dispatch for; empty: reports only
    started: list[tuple[int, int, int, int]] = field(default_factory=list)  #: task, attempt, node, started_us
    asked: list[tuple[int, int, int, str]] = field(
        default_factory=list
    )  #: task, attempt, node, new state or ""
    ended: list[tuple[int, Ended]] = field(default_factory=list)  #: node, report
    lanes: Set[int] | None = None  #: dispatch only these, one task at most of each; None: all


@dataclass
class Turned:
    """What a turn did."""

    stale_nodes: list[int] = field(default_factory=list)  #: connected elsewhere by now
    assigned: list[tuple[Placement, int]] = field(default_factory=list)  #: with the attempt's number
    specs: dict[int, str] = field(default_factory=dict)  #: bodies that the caller did not know
    acks: list[tuple[int, AttemptKey]] = field(default_factory=list)  #: by node; accepted or stale
    accepted: list[tuple[int, Ended, str]] = field(
        default_factory=list
    )  #: node, report, the task's new state
    task_ids: list[int] = field(default_factory=list)  #: that ended, or changed their state
    jobs: dict[int, int] = field(default_factory=dict)  #: with new results: the last finish number
    more: bool = False  #: another turn would find more to do
    queued: bool = False  #: something is queued that was not before: on another server's nodes it may start
    waiting: bool = False  #: tasks were left queued that freed room might start


def turn(
    tx: Tx,
    work: Gathered,
    planner: Planner,
    *,
    now_us: int,
    known_specs: Set[int] = frozenset(),
) -> Turned:
    """Take one turn.  Doing it again after an unknown outcome is harmless: every write is fenced."""
    done = Turned()
    held, locked = _lock_reported(tx, work, done)
    empty: list[int] = []
    capped = [_dispatch(tx, pool_id, planner, work, done, empty, now_us) for pool_id in work.pools]
    _load_specs(tx, done, known_specs)
    begun = _start(tx, work, held, done, now_us) if work.started else []
    if work.asked:
        over = {(report.task, report.attempt) for _, report in work.ended}
        asked = [row for row in work.asked if row[2] in held and (row[0], row[1]) not in over]
        _answer(tx, asked, done, now_us)
    if work.ended:
        _end(tx, [(node, report) for node, report in work.ended if node in held], locked, done, now_us)
        # Tasks that ended counted against their limits until now.
        done.more = done.more or (any(capped) and bool(done.accepted))
    # Jobs after all tasks, lanes after the jobs: a submit holds its job when it wants its lane.
    if begun:
        tx.run("start_jobs", job_ids=begun, now_us=now_us)
    if empty:
        _rest(tx, empty)
    return done


def _lock_reported(tx: Tx, work: Gathered, done: Turned) -> tuple[set[int], dict[int, LockedTask]]:
    """The nodes that report and are still connected here, and the tasks that they report of, by id.

    Before the candidates: with those in hand a turn must not wait for a task that somebody else has, who may
    wait for one of them.
    """
    nodes = (
        {row[2] for row in work.started} | {row[2] for row in work.asked} | {node for node, _ in work.ended}
    )
    if not nodes:
        return set(), {}
    held = _check_epochs(tx, {node: work.epochs[node] for node in nodes if node in work.epochs}, done)
    ids = {row[0] for row in (*work.started, *work.asked)} | {report.task for _, report in work.ended}
    rows = tx.rows("lock_reported_tasks", task_ids=sorted(ids)) if held else []
    return held, {row[0]: LockedTask(*row) for row in rows}


def _check_epochs(tx: Tx, epochs: Mapping[int, int], done: Turned) -> set[int]:
    """Those of the nodes that are still connected here; they stay so until the turn is over.

    Reports of the others are not acknowledged: they come again.
    """
    rows = dict(tx.rows("lock_nodes", node_ids=sorted(epochs)))
    held = {node for node, epoch in epochs.items() if rows.get(node) == epoch}
    done.stale_nodes += [node for node in epochs if node not in held and node not in done.stale_nodes]
    return held


def _dispatch(
    tx: Tx,
    pool_id: int,
    planner: Planner,
    work: Gathered,
    done: Turned,
    empty: list[int],
    now_us: int,
) -> bool:
    """Assign what starts now; lanes with nothing queued join `empty`.  True where limits decided about it."""
    left_out = sorted(planner.hopeless(pool_id))
    rows = tx.rows("active_lanes", pool_id=pool_id, left_out=left_out, limit=MOST_LANES)
    lanes = [Lane(*row) for row in rows if work.lanes is None or row[0] in work.lanes]
    if not lanes:
        return False
    wanted = planner.caps_of(lanes)
    tenant_id = tx.value("tenant_of_pool", pool_id=pool_id) if wanted else 0
    caps, locked_out = _lock_caps(tx, wanted, tenant_id)
    if lanes[0].quotas:
        _lock_quotas(tx, pool_id, lanes, caps, locked_out)
    chosen = planner.choose([lane for lane in lanes if lane.id not in locked_out], caps)
    candidates: list[Candidate] = []
    read_out = 0
    in_front: Counter[tuple[int, int]] = Counter()  # by class and priority, of lanes without a limit
    lane_of, capped = {lane.id: lane for lane in lanes}, {lane_id for cap in caps for lane_id in cap.lane_ids}
    for lane_id, most in chosen:
        lane = lane_of[lane_id]
        if _in_front_of(lane, in_front) >= most:
            continue
        most = most if work.lanes is None else 1
        rows = tx.rows("queued_tasks_of_lane", lane_id=lane_id, limit=most)
        found = [Candidate._make((*row, lane_id)) for row in rows]
        candidates += found
        if lane_id not in capped:
            in_front.update((lane.class_id, candidate.priority) for candidate in found)
        read_out += len(rows) < most
        if not rows:
            empty.append(lane_id)
    done.more = done.more or (bool(empty) and len(lanes) == MOST_LANES)  # these hide the lanes behind them
    placements = _held(tx, planner.place(candidates), work, done) if candidates else []
    done.waiting = done.waiting or read_out < len(lanes) or len(placements) < len(candidates)
    if placements:
        rows = tx.rows(
            "assign_tasks", batch=batch((p.candidate.id, p.node_id) for p in placements), now_us=now_us
        )
        attempts = dict(rows)
        done.assigned += [(p, attempts[p.candidate.id]) for p in placements if p.candidate.id in attempts]
    return bool(caps)


def _held(tx: Tx, placements: list[Placement], work: Gathered, done: Turned) -> list[Placement]:
    """The placements on nodes that are still connected here; what the others were to get stays queued."""
    epochs = {p.node_id: work.epochs[p.node_id] for p in placements if p.node_id in work.epochs}
    held = _check_epochs(tx, epochs, done) if epochs else set()
    done.more = done.more or len(held) < len(epochs)
    return [p for p in placements if p.node_id in held]


def _in_front_of(lane: Lane, read: Counter[tuple[int, int]]) -> int:
    """How many tasks were read that ask for the same and come before any of this lane by their priority.

    As many as could start of the lane: reading it, which on PostgreSQL is a lock a row, would be for nothing.
    """
    return sum(
        n
        for (class_id, priority), n in read.items()
        if class_id == lane.class_id and priority > lane.priority
    )


def _rest(tx: Tx, lane_ids: list[int]) -> None:
    """Clear the hint of lanes with nothing queued; a lane that a submit has locked is left alone."""
    locked = [row[0] for row in tx.rows("lock_lanes", lane_ids=sorted(lane_ids))]
    if locked:
        tx.run("rest_lanes", lane_ids=locked)


def _lock_caps(
    tx: Tx, wanted: Sequence[tuple[str, str, list[int]]], tenant_id: int
) -> tuple[list[Cap], set[int]]:
    """Lock the limits.  Lanes under a limit that another server holds are left out of this turn."""
    caps, locked_out = [], set[int]()
    for scope, key, lane_ids in sorted(wanted):
        row = tx.one("lock_limits", tenant_id=tenant_id, scope=scope, key=key)
        if row is None:
            locked_out.update(lane_ids)
        else:
            caps.append(Cap(frozenset(lane_ids), max(0, row["most"] - _use(tx, scope, key, tenant_id))))
    return caps, locked_out


def _lock_quotas(tx: Tx, pool_id: int, lanes: list[Lane], caps: list[Cap], locked_out: set[int]) -> None:
    """Add the quotas of the tenant and of its users to the caps."""
    tenant_id = tx.value("tenant_of_pool", pool_id=pool_id)
    users = sorted({lane.submitted_by for lane in lanes})
    limits, busy = quotas.limits_on_nodes(tx, tenant_id, users, lock=True)
    costs = {lane.id: show.demand(lane.demand).cpus_milli for lane in lanes}
    for limit in limits:
        mine = frozenset(lane.id for lane in lanes if limit.user in (None, lane.submitted_by))
        caps.append(Cap(mine, max(0, limit.most - limit.used), costs if limit.is_cpus else {}))
    locked_out.update(lane.id for lane in lanes if None in busy or lane.submitted_by in busy)


def _use(tx: Tx, scope: str, key: str, tenant_id: int) -> int:
    """How many tasks on nodes count against the limit.  Counted, not kept: it cannot drift."""
    if scope == "job":
        return int(tx.value("use_of_job", job_id=int(key)))
    if scope == "label":
        return int(tx.value("use_of_label", tenant_id=tenant_id, label=key))
    return int(tx.value("use_of_user", tenant_id=tenant_id, subject=key))


def _load_specs(tx: Tx, done: Turned, known: Set[int]) -> None:
    wanted = {placement.candidate.spec_id for placement, _ in done.assigned}
    missing = {spec_id for spec_id in wanted if spec_id not in known}  # `known` may change meanwhile
    if missing:
        done.specs = dict(tx.rows("specs_by_id", spec_ids=sorted(missing)))


def _start(tx: Tx, work: Gathered, held: set[int], done: Turned, now_us: int) -> list[int]:
    """Note what has started.  Returns the jobs of it."""
    rows = [row for row in work.started if row[2] in held]
    if not rows:
        return []
    started = [row[0] for row in tx.rows("start_tasks", batch=batch(rows), now_us=now_us)]
    done.task_ids += started
    return sorted({job_of(key) for key in started})


def _answer(tx: Tx, rows: list[tuple[int, int, int, str]], done: Turned, now_us: int) -> None:
    """Nodes have done what was asked: a new state, or none where it was a signal."""
    moved = {row[:3]: row for row in rows if row[3]}.values()  # of several answers the last
    if moved:
        done.task_ids += [row[0] for row in tx.rows("answer_asked", batch=batch(moved), now_us=now_us)]
    if signalled := [row for row in rows if not row[3]]:
        tx.run("forget_asked", batch=batch(signalled))


class LockedTask(NamedTuple):
    """A locked row of a task that a node has, or had."""

    id: int
    attempt: int
    node_id: int | None
    state: str
    asked: str | None
    lane_id: int
    spec_id: int
    retry_count: int
    requeue_count: int
    lost_count: int
    round: int
    is_parent: int
    assigned_at: int | None
    started_at: int | None
    message: str | None


def _end(
    tx: Tx, reports: list[tuple[int, Ended]], tasks: dict[int, LockedTask], done: Turned, now_us: int
) -> None:
    """`tasks` are the locked tasks of the reports, by id."""
    done.acks += [(node, (report.task, report.attempt)) for node, report in reports]
    if not reports:
        return
    accepted: list[tuple[int, Ended, LockedTask]] = []
    for node, report in reports:
        task = tasks.get(report.task)
        if task is not None and task.attempt == report.attempt and task.node_id == node:
            accepted.append((node, report, task))
            del tasks[report.task]  # the same end twice in one turn counts once
    if len(accepted) < len(reports):  # some were ended by force, and their node has now ended them too
        tx.run("forget_kills", batch=batch((node, report.task, report.attempt) for node, report in reports))
    if accepted:
        settle(tx, accepted, done, now_us)


def settle(tx: Tx, accepted: list[tuple[int, Ended, Any]], done: Turned, now_us: int) -> None:
    """Write attempts that ended, of tasks that are locked and on that node."""
    specs = _specs_of_failures(tx, accepted)
    on_lost = _on_lost(tx, accepted)
    ends: list[End] = []
    requeued: list[tuple[Any, ...]] = []
    lost: list[int] = []
    for node, report, task in accepted:
        then = _decide(report, task, specs, on_lost.get(job_of(task.id)), now_us)
        done.accepted.append((node, report, then.state))
        if then.final or report.outcome != "given_back":
            ends.append(_end_of(node, report, task, then, now_us))
        if then.final and then.lost:
            lost.append(task.id)
        if not then.final:
            requeued.append(
                (
                    task.id,
                    then.state,
                    then.reason,
                    then.message,
                    then.not_before_us,
                    then.retry,
                    then.requeue,
                    then.lost,
                )
            )
    if requeued:
        tx.run("requeue_tasks", batch=batch(requeued), now_us=now_us)
        done.task_ids += sorted(row[0] for row in requeued)
        done.more = done.queued = True
    if lost:
        tx.run("count_losses", task_ids=lost)
    if ends:
        ended = record(tx, ends, now_us=now_us)
        done.task_ids += ended.task_ids
        done.jobs |= ended.jobs
        done.more, done.queued = done.more or bool(ended.freed), done.queued or bool(ended.freed)
    wake_lanes(tx, (row[0] for row in requeued))


def _specs_of_failures(tx: Tx, accepted: list[tuple[int, Ended, Any]]) -> dict[int, TaskSpec]:
    ids = sorted({task.spec_id for _, report, task in accepted if report.outcome == "failed"})
    rows = tx.rows("specs_by_id", spec_ids=ids) if ids else []
    found: dict[int, TaskSpec] = {}
    for spec_id, body in rows:
        with suppress(msgspec.MsgspecError):  # a task that cannot be read is not tried again
            found[spec_id] = msgspec.json.decode(body, type=KnownSpec)
    return found


def _on_lost(tx: Tx, accepted: list[tuple[int, Ended, Any]]) -> dict[int, str]:
    """What jobs say about lost nodes, of those whose tasks a node gave up."""
    ids = sorted({job_of(task.id) for _, report, task in accepted if report.reason in _NODE_REASONS})
    return dict(tx.rows("on_lost_of_jobs", job_ids=ids)) if ids else {}


def _decide(report: Ended, task: Any, specs: dict[int, TaskSpec], on_lost: str | None, now_us: int) -> Next:
    if report.outcome == "succeeded":
        return Next(TaskState.SUCCEEDED, report.reason, report.message)
    spec = specs.get(task.spec_id, _NO_RETRY)
    before = Before(task.asked, task.retry_count, task.lost_count)
    return after_end(report, before, spec, on_lost, now_us=now_us)


_NODE_REASONS = LOST | {Reason.NODE_STOPPED}
_NO_RETRY = TaskSpec()


def _end_of(node: int, report: Ended, task: Any, then: Next, now_us: int) -> End:
    never_ran = report.outcome == "given_back"
    started_at, ended_at = _times(report, task, now_us)
    return End(
        task.id,
        0 if never_ran else report.attempt,
        task.round,
        then.state if then.final else report.outcome,
        then.reason if then.final else report.reason,
        then.message if then.final else report.message,
        report.exit_code,
        report.signal,
        None if never_ran else node,
        task.assigned_at,
        started_at,
        ended_at,
        report.usage,
        report.stdout,
        report.stderr,
        report.stdout_bytes,
        report.stderr_bytes,
        report.stdout_blob,
        report.stderr_blob,
        report.value,
        report.folder,
        bool(task.is_parent),
        then.final,
    )


def _times(report: Ended, task: Any, now_us: int) -> tuple[int | None, int]:
    """When it started and ended.  The node's clock may be wrong: what lies before the assignment, or ahead of
    us, is moved between the two, and what it took stays."""
    started, ended = report.started_us or task.started_at, report.ended_us or now_us
    first = min(task.assigned_at or now_us, now_us)
    shift = min(now_us - ended, 0) or max(first - (started or ended), 0)
    ended = min(max(ended + shift, first), now_us)
    return None if started is None else min(max(started + shift, first), ended), ended
