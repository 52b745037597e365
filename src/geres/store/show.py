"""Turns rows of the store into the objects that the API shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from geres.model.demand import Demand
from geres.model.demand import from_text as demand_from_text
from geres.model.ids import job_of, number_of, show_task
from geres.model.placeholders import replace_all
from geres.model.states import TaskState
from geres.model.tasks import Attempt, KnownSpec, Task, TaskDetail, TaskSpec, Usage
from geres.model.units import rfc3339
from geres.store.database import Row, Tx

_MICROS = 1_000_000
#: A task in one of these has no attempt that ended, where its number is 0.
NEW = frozenset({TaskState.BLOCKED, TaskState.QUEUED, TaskState.HELD})
_spec_decoder = msgspec.json.Decoder(KnownSpec)
_argv_decoder = msgspec.json.Decoder(list[str] | str)


@lru_cache(maxsize=4096)
def spec_from_text(text: str) -> KnownSpec:
    """A stored specification; tasks share a few of them."""
    return _spec_decoder.decode(text)


@lru_cache(maxsize=4096)
def demand(text: str) -> Demand:
    return demand_from_text(text)


def tasks_by_id(tx: Tx, keys: Iterable[int]) -> dict[int, Task]:
    """The tasks of these keys; unknown ones are left out."""
    wanted = list(keys)
    if not wanted:
        return {}
    rows = tx.all("show_tasks", task_ids=wanted)
    tried = [row["id"] for row in rows if row["attempt"] or row["state"] not in NEW]
    attempts = tx.all("show_last_attempts", task_ids=tried) if tried else []
    last = {row["task_id"]: row for row in attempts}
    return {row["id"]: Task(**task_fields(row, last.get(row["id"]))) for row in rows}


def task_fields(row: Row, last: Row | None) -> dict[str, Any]:
    """The fields of a Task.  `last` is the row of its latest ended attempt."""
    key, spec, asks = row["id"], spec_from_text(row["spec_body"]), demand(row["demand"])
    state = TaskState(row["state"])
    command, shell = what_runs(row, spec)
    return {
        "id": show_task(key),
        "job_id": str(job_of(key)),
        "number": number_of(key),
        "state": state,
        "reason": row["reason"],
        "message": row["message"],
        "state_since": rfc3339(row["state_since"]),
        "previous_state": TaskState(row["previous_state"]) if row["previous_state"] else None,
        "previous_since": rfc3339(row["previous_since"]),
        "name": row["name"] or spec.name,
        "submitted_by": row["submitted_by"],
        "tenant": row["tenant"],
        "pool": row["pool"],
        "priority": row["priority"],
        "command": command,
        "shell": shell,
        "item": row["item"],
        "index": number_of(key) if row["is_array"] else None,
        "meta": spec.meta,
        "cpus": asks.cpus_milli / 1000,
        "memory_bytes": asks.memory_bytes,
        "gpus": asks.gpus,
        "resources": dict(asks.counts),
        "exclusive": asks.exclusive,
        "node": row["node"] or (last["node"] if last and state.final else None),
        "attempt": row["attempt"],
        "retry_count": row["retry_count"],
        "requeue_count": row["requeue_count"],
        "lost_count": row["lost_count"],
        "created_at": rfc3339(row["created_at"]),
        "assigned_at": rfc3339(row["assigned_at"]),
        "started_at": rfc3339(row["started_at"]),
        "ended_at": rfc3339(row["ended_at"]),
        "cancel_requested_at": rfc3339(row["asked_at"]) if row["asked"] == "cancel" else None,
        "not_before": rfc3339(row["not_before_at"]),
        "exit_code": row["exit_code"],
        "signal": row["signal"],
        "finish_no": last["finish_no"] if last and state.final else None,
        "usage": usage(last) if last else None,
        "wait_seconds": _wait_seconds(row),
        "version": row["version"],
    }


def _own_argv(text: str) -> list[str] | str:
    try:
        words: list[str] | str = _argv_decoder.decode(text)
    except msgspec.MsgspecError:  # a list of tasks must not fail for one of them
        return ["(unreadable)"]
    return words


def what_runs(row: Mapping[str, Any], spec: TaskSpec) -> tuple[list[str] | None, str | None]:
    """(command, shell line) of a task, with the placeholders of an array replaced."""
    if row["argv"] is not None:
        own = _own_argv(row["argv"])
        command, shell = (None, own) if isinstance(own, str) else (own, None)
    else:
        command, shell = spec.command, spec.shell
    if not row["is_array"]:
        return command, shell
    key, item = row["id"], row["item"]
    if command is not None:
        return [replace_all(word, key, item) for word in command], None
    return None, None if shell is None else replace_all(shell, key, item)


def task_detail(tx: Tx, row: Row, attempts: list[Row]) -> TaskDetail:
    """A task with its whole specification and its attempts."""
    last = attempts[-1] if attempts else None
    own_argv = _own_argv(row["argv"]) if row["argv"] is not None else None
    spec = msgspec.structs.replace(
        spec_from_text(row["spec_body"]), priority=row["priority"], id=row["own_id"], name=row["name"]
    )
    if isinstance(own_argv, str):
        spec = msgspec.structs.replace(spec, shell=own_argv)
    elif own_argv is not None:
        spec = msgspec.structs.replace(spec, command=own_argv)
    return TaskDetail(
        **task_fields(row, last),
        spec=spec,
        attempts=[attempt(one, name=row["name"], item=row["item"]) for one in attempts],
        node_connected=node_connected(tx, row["node_id"]),
        location=last["folder"] if last else None,
    )


def node_connected(tx: Tx, node_id: int | None) -> bool | None:
    """Whether the node's agent is connected to a server; None without a node."""
    if node_id is None:
        return None
    return bool(tx.value("node_is_connected", node_id=node_id))


def attempt(row: Row, *, name: str | None, item: str | None) -> Attempt:
    """An attempt from a row of `attempts_of_task` or `results_after`."""
    return Attempt(
        task_id=show_task(row["task_id"]),
        attempt=row["attempt"],
        state=TaskState(row["state"]),
        finish_no=row["finish_no"],
        reason=row["reason"],
        message=row["message"],
        exit_code=row["exit_code"],
        signal=row["signal"],
        node=row["node"],
        assigned_at=rfc3339(row["assigned_at"]),
        started_at=rfc3339(row["started_at"]),
        ended_at=rfc3339(row["ended_at"]),
        usage=usage(row),
        stdout_bytes=row["stdout_bytes"],
        stderr_bytes=row["stderr_bytes"],
        name=name,
        item=item,
    )


def usage(row: Row) -> Usage:
    return Usage(
        wall_seconds=row["wall_us"] / _MICROS,
        user_seconds=row["user_us"] / _MICROS,
        system_seconds=row["system_us"] / _MICROS,
        max_rss_bytes=row["max_rss_bytes"],
        minor_faults=row["minor_faults"],
        major_faults=row["major_faults"],
        blocks_in=row["blocks_in"],
        blocks_out=row["blocks_out"],
        voluntary_switches=row["voluntary_switches"],
        involuntary_switches=row["involuntary_switches"],
    )


def _wait_seconds(row: Row) -> float | None:
    return None if row["started_at"] is None else max(0.0, (row["started_at"] - row["created_at"]) / _MICROS)
