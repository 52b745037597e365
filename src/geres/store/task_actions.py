"""Cancel, hold and release tasks: at once in the store while they wait, asked of their node once they run.

Every function takes at most some 1,000 keys, and one task that it cannot act on does not stop the others.
"""

from __future__ import annotations

import signal as signals
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from geres.errors import Conflict, Denied, GeresError, Invalid, TaskFinished
from geres.model.callers import Caller
from geres.model.ids import job_of, show_task
from geres.model.states import Reason, TaskState
from geres.model.tasks import Acted
from geres.store.below import reached
from geres.store.database import Row, Tx
from geres.store.ends import End, record
from geres.store.tasks import may_change, no_task


@dataclass
class Done:
    """What an action did, and whom to tell."""

    items: list[Acted] = field(default_factory=list)
    task_ids: list[int] = field(default_factory=list)  #: whose state changed
    jobs: set[int] = field(default_factory=set)  #: with new results or another state
    queued: bool = False  #: something may start now
    asked_nodes: set[int] = field(default_factory=set)  #: where something was asked

    def add(self, other: Done) -> None:
        self.items += other.items
        self.task_ids += other.task_ids
        self.jobs |= other.jobs
        self.queued = self.queued or other.queued
        self.asked_nodes |= other.asked_nodes


def cancel(
    tx: Tx,
    caller: Caller,
    keys: Sequence[int],
    *,
    now_us: int,
    force: bool = False,
    message: str | None = None,
    reason: Reason = Reason.REQUESTED,
) -> Done:
    """End tasks: those that wait at once, those on a node when the node has done it.

    With `force` those on a node end at once too; their room stays taken until the node confirms or is lost.
    """
    done = Done()
    ends: list[End] = []
    asking: list[Row] = []
    kills: list[tuple[int, int, int, int]] = []
    for row in lock(tx, caller, keys, done):
        state = TaskState(row["state"])
        if state.waiting:
            ends.append(_cancelled(row, 0, reason, message, now_us))
        elif force:
            ends.append(_cancelled(row, row["attempt"], Reason.FORCED, message, now_us))
            kills.append((row["node_id"], row["id"], row["attempt"], now_us))
        else:
            asking.append(row)
            done.items.append(Acted(id=show_task(row["id"]), state=state))
    if ends:
        ended = record(tx, ends, now_us=now_us)
        done.items += [Acted(id=show_task(end.task_id), state=TaskState.CANCELLED) for end in ends]
        done.task_ids += ended.task_ids
        done.jobs |= set(ended.jobs)
        done.queued = ended.freed > 0
    if kills:
        tx.insert("kill", ("node_id", "task_id", "attempt", "asked_at"), kills)
        done.asked_nodes |= {node_id for node_id, *_ in kills}
    ask(tx, asking, "cancel", done, message=message, now_us=now_us)
    return in_order(done, keys)


def send_signal(tx: Tx, caller: Caller, keys: Sequence[int], *, name: str, now_us: int) -> Done:
    """Ask the nodes of running tasks to send a signal to their process groups.  Raises Invalid."""
    number = signal_number(name)
    done = Done()
    asking: list[Row] = []
    for row in lock(tx, caller, keys, done):
        if TaskState(row["state"]) in (TaskState.RUNNING, TaskState.SUSPENDED):
            asking.append(row)
            done.items.append(Acted(id=show_task(row["id"]), state=TaskState(row["state"])))
        else:
            refuse(
                done,
                row["id"],
                Conflict(f"task {show_task(row['id'])} is {row['state']}: only a running task takes signals"),
            )
    ask(tx, asking, f"signal:{number}", done, now_us=now_us)
    return in_order(done, keys)


def hold(tx: Tx, caller: Caller, keys: Sequence[int], *, now_us: int) -> Done:
    """Make waiting tasks wait on purpose.  One that a node has but has not started is asked back."""

    def act(row: Row) -> TaskState:
        state = TaskState(row["state"])
        if state in (TaskState.QUEUED, TaskState.BLOCKED):
            holding.append(row["id"])
            return TaskState.HELD
        if state is TaskState.ASSIGNED:
            asking.append(row)
        elif state is not TaskState.HELD:
            raise Conflict(f"task {show_task(row['id'])} is {state}: only a task that waits can be held")
        return state

    done, holding, asking = Done(), list[int](), list[Row]()
    _each(tx, caller, keys, done, act)
    if holding:
        tx.run("hold_tasks", task_ids=holding, now_us=now_us)
        done.task_ids += holding
    ask(tx, asking, "hold", done, now_us=now_us)
    return in_order(done, keys)


def release(tx: Tx, caller: Caller, keys: Sequence[int], *, now_us: int) -> Done:
    """Let held tasks go on; one that waits already stays as it is."""

    def act(row: Row) -> TaskState:
        state = TaskState(row["state"])
        if state is TaskState.HELD:
            releasing.append(row["id"])
            later = row["waits_on"] > 0 or (row["not_before_at"] or 0) > now_us
            return TaskState.BLOCKED if later else TaskState.QUEUED
        if not state.waiting and state is not TaskState.ASSIGNED:
            raise Conflict(f"task {show_task(row['id'])} is {state}, not held")
        return state

    done, releasing = Done(), list[int]()
    _each(tx, caller, keys, done, act)
    tx.run("forget_hold", task_ids=list(keys))
    if releasing:
        tx.run("release_tasks", task_ids=releasing, now_us=now_us)
        tx.run("wake_lanes_of_tasks", task_ids=releasing)
        done.task_ids += releasing
        done.queued = True
    return in_order(done, keys)


def _each(tx: Tx, caller: Caller, keys: Sequence[int], done: Done, act: Callable[[Row], TaskState]) -> None:
    """Lock the tasks and act on each; what `act` raises becomes that task's answer."""
    for row in lock(tx, caller, keys, done):
        try:
            done.items.append(Acted(id=show_task(row["id"]), state=act(row)))
        except GeresError as error:
            refuse(done, row["id"], error)


def lock(
    tx: Tx, caller: Caller, keys: Sequence[int], done: Done, *, ended: bool = False, hint: str = ""
) -> list[Row]:
    """Lock the tasks.  Returns those that the caller may act on and that have not ended.

    With `ended`, those that have.  The others are answered in `done`, what has ended with the `hint`.
    """
    rows = {row["id"]: row for row in tx.all("lock_tasks", task_ids=sorted(set(keys)))}
    good = []
    within = reached(tx, caller, rows)
    for key in dict.fromkeys(keys):
        row = rows.get(key)
        if row is None or row["tenant_id"] != caller.tenant_id or key not in within:
            refuse(done, key, no_task(key))
        elif not may_change(caller, row):
            refuse(done, key, Denied(f"task {show_task(key)} is {row['submitted_by']}'s"))
        elif TaskState(row["state"]).final and not ended:
            text = f"task {show_task(key)} has ended: {row['state']}"
            refuse(done, key, TaskFinished(text + hint.format(id=show_task(key))))
        elif ended and not TaskState(row["state"]).final:
            refuse(done, key, Conflict(f"task {show_task(key)} has not ended: it is {row['state']}"))
        else:
            good.append(row)
    return good


def refuse(done: Done, key: int, error: GeresError) -> None:
    done.items.append(Acted(id=show_task(key), code=error.code, message=str(error)))


def ask(
    tx: Tx, rows: Sequence[Row], what: str, done: Done, *, now_us: int, message: str | None = None
) -> None:
    """Ask the nodes of these tasks; the latest wish counts, but a cancel stays one."""
    if not rows:
        return
    tx.run("ask_tasks", task_ids=[row["id"] for row in rows], asked=what, message=message, now_us=now_us)
    done.asked_nodes |= {row["node_id"] for row in rows}


def _cancelled(row: Row, attempt: int, reason: Reason, message: str | None, now_us: int) -> End:
    return End(
        row["id"],
        attempt,
        row["round"],
        TaskState.CANCELLED,
        reason,
        message,
        node_id=row["node_id"] if attempt else None,
        assigned_at=row["assigned_at"] if attempt else None,
        started_at=row["started_at"] if attempt else None,
        ended_at=now_us,
        is_parent=bool(row["is_parent"]),
    )


def in_order(done: Done, keys: Sequence[int]) -> Done:
    """The answers in the order in which the tasks were named."""
    place = {show_task(key): position for position, key in enumerate(dict.fromkeys(keys))}
    done.items.sort(key=lambda item: place[item.id])
    done.jobs |= {job_of(key) for key in done.task_ids}
    return done


def signal_number(name: str) -> int:
    """The number of `HUP`, `SIGUSR1` or `10`.  Raises Invalid."""
    word = name.upper().removeprefix("SIG")
    try:
        return signals.Signals(int(word)) if word.isdigit() else signals.Signals[f"SIG{word}"]
    except (KeyError, ValueError):
        raise Invalid(
            f"signal: {name!r} is no signal; write one like HUP, USR1 or TERM", field="signal"
        ) from None
