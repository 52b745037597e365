"""Pools: their settings, and how far nodes are with the start task of their pool."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from geres.errors import Changed, Conflict, Denied, NotFound
from geres.model import pools as model
from geres.model.callers import RANK, Caller
from geres.model.ids import check_name
from geres.model.nearest import did_you_mean
from geres.model.pools import Pool, PoolPatch, StartTask
from geres.model.states import NodeState
from geres.model.units import rfc3339
from geres.model.wire import StartOrder, StartReport
from geres.store import audit
from geres.store.database import Row, Tx
from geres.store.sharing import pool_of

RUNS = "its start task runs"
FAILED = "its start task failed"
_MOST_WHY = 300  #: characters that are kept of what a node says
_MOST_TAIL = 1000


def list_pools(tx: Tx, caller: Caller) -> list[Pool]:
    """All pools of the tenant, by name."""
    nodes = _nodes(tx, caller)
    return [_pool(row, nodes) for row in tx.all("show_pools", tenant_id=caller.tenant_id)]


def get(tx: Tx, caller: Caller, name: str) -> Pool:
    """Raises NotFound."""
    pools = list_pools(tx, caller)
    for pool in pools:
        if pool.name == name:
            return pool
    hint = did_you_mean(name, [pool.name for pool in pools]) or "; see `geres pools`"
    raise NotFound(f"there is no pool {name[:100]!r}{hint}", id=name)


def patch(tx: Tx, caller: Caller, name: str, changes: PoolPatch, *, version: int | None, now_us: int) -> Pool:
    """Edit a pool; nodes are told when they next connect.  Returns it as it is, or would be.

    Raises Invalid, Denied, NotFound for one that is not there and not to be made, Changed where `version` (of
    If-Match) is not the pool's.
    """
    if RANK.get(caller.role, 0) < RANK["operator"]:
        raise Denied("only an operator sets what nodes run as their own account", role=caller.role)
    if changes.start_task not in (UNSET, None):
        model.check(changes.start_task)
    row = tx.one("lock_pool", tenant_id=caller.tenant_id, name=name)
    if row is None and not changes.create:
        get(tx, caller, name)  # which says what is near
    if row is None:
        check_name(name, "pool")
        if changes.dry_run:
            row = {"id": 0, "name": name, "settings": "{}", "version": 1, "created_at": now_us}
        else:
            pool_of(tx, caller.tenant_id, name, now_us=now_us)
            row = tx.one("lock_pool", tenant_id=caller.tenant_id, name=name)
            assert row is not None
    if version is not None and version != row["version"]:
        raise Changed(
            f"the pool {name} has version {row['version']}, not {version}: read it again",
            version=row["version"],
        )
    if changes.start_task is not UNSET:
        settings = _settings(row) | {"start_task": changes.start_task}
        row["settings"] = msgspec.json.encode(settings).decode()
        if not changes.dry_run:
            tx.run("edit_pool", pool_id=row["id"], settings=row["settings"])
            row["version"] += 1
    if not changes.dry_run:
        audit.write(tx, caller, "pool.set", name, now_us=now_us, **_facts(changes))
    return _pool(row, _nodes(tx, caller))


def _facts(changes: PoolPatch) -> dict[str, Any]:
    """Of variables only the names: their values may be secrets."""
    start = changes.start_task
    if start is UNSET:
        return {}
    if start is None:
        return {"start_task": None}
    facts = msgspec.to_builtins(start)
    return {"start_task": facts | {"env": sorted(start.env)}}


def _settings(row: Row) -> dict[str, Any]:
    """All settings, those of newer versions too.  Raises Conflict where they cannot be read."""
    try:
        return msgspec.json.decode(row["settings"], type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise Conflict(f"the settings of the pool {row['name']} cannot be read: {error}") from None


def _start_task(row: Row) -> StartTask | None:
    found = _settings(row).get("start_task")
    try:
        return None if found is None else msgspec.convert(found, StartTask)
    except msgspec.MsgspecError as error:
        raise Conflict(
            f"the start task of the pool {row['name']} cannot be read: {error};"
            f" `geres pool set {row['name']}` sets it anew"
        ) from None


def _nodes(tx: Tx, caller: Caller) -> dict[int, dict[str, int]]:
    found: dict[int, dict[str, int]] = defaultdict(dict)
    for pool_id, state, count in tx.rows("nodes_of_pools", tenant_id=caller.tenant_id):
        found[pool_id][state] = int(count)
    return found


def _pool(row: Row, nodes: dict[int, dict[str, int]]) -> Pool:
    return Pool(
        name=row["name"],
        created_at=rfc3339(row["created_at"]) or "",
        start_task=_start_task(row),
        nodes=nodes.get(row["id"], {}),
        version=row["version"],
    )


def order_of(start: StartTask) -> StartOrder:
    """What a node is told; the digest tells one version of it from another."""
    argv = ["/bin/sh", "-c", start.shell] if start.shell is not None else start.command or []
    made = StartOrder("", argv, start.env, start.retries, start.time_limit_seconds)
    made.digest = hashlib.sha256(msgspec.json.encode(made, order="sorted")).hexdigest()[:16]
    return made


class Start(NamedTuple):
    """Whether a node that connects is in service, and what it is to run before."""

    order: StartOrder | None = None
    state: NodeState | None = None  #: starting or start_failed; None: it takes tasks
    reason: str | None = None


def at_hello(tx: Tx, pool_id: int, report: StartReport | None) -> Start:
    """What is to be done with a node that has come so far with its start task; None: it knows of none.

    One that failed stays so until its agent is started again, or its start task is another.
    """
    row = tx.one("settings_of_pool", pool_id=pool_id)
    start = None if row is None else _start_task(row)
    if start is None or report is None:
        return Start()
    order = order_of(start)
    if report.digest != order.digest or report.state not in ("done", "failed"):
        return Start(order, NodeState.STARTING, RUNS)
    return after_report(order, report)


def after_report(order: StartOrder, report: StartReport) -> Start:
    """Whether a node takes tasks whose start task is over."""
    if report.state == "failed":
        return Start(order, NodeState.START_FAILED, _reason_of(report))
    return Start(order)


def _reason_of(report: StartReport) -> str:
    """Why a node is `start_failed`."""
    return f"{FAILED}: {_clean(report.why, _MOST_WHY) or 'it does not say why'}"


def note_start(tx: Tx, node_id: int, epoch: int, report: StartReport, *, now_us: int) -> None:
    """A node's start task is over: it takes tasks from now on, or is `start_failed`.  Twice is harmless."""
    row = tx.one("lock_starting_node", node_id=node_id, epoch=epoch)
    if row is None or row["state"] not in (NodeState.STARTING, NodeState.START_FAILED):
        return
    state, why = NodeState.START_FAILED, _reason_of(report)
    if report.state != "failed":
        state, why = NodeState.RUNNING if row["task_count"] else NodeState.IDLE, "its start task succeeded"
        state = NodeState.DRAINING if row["draining"] else state
    tx.run("set_node_reason", node_id=node_id, reason=why)
    if tx.run("move_node", node_id=node_id, state=state, now_us=now_us):
        tail = _clean(report.tail, _MOST_TAIL)
        words = f"{why}; it wrote: {tail}" if tail else why
        tx.run("add_node_event", node_id=node_id, state=state, why=words, now_us=now_us)


def _clean(text: str, most: int) -> str:
    return text.replace("\0", "").strip()[-most:]
