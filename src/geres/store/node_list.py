"""Nodes as people see them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import msgspec

from geres.errors import NotFound
from geres.model.callers import Caller
from geres.model.ids import show_task
from geres.model.nodes import Capacity, Node, NodeChange, NodeDetail
from geres.model.states import NodeState
from geres.model.units import rfc3339
from geres.model.wire import Hello
from geres.store import show
from geres.store.below import reached
from geres.store.database import Row, Tx

_hello = msgspec.json.Decoder(Hello)
_MOST_CHANGES = 100
_MOST_TASKS = 1000


def list_nodes(tx: Tx, caller: Caller) -> list[Node]:
    """All nodes, by name."""
    use = _use(tx, caller)
    rows = tx.all("show_nodes", tenant_id=caller.tenant_id)
    return [Node(**_fields(row, use[row["id"]])) for row in rows]


def get(tx: Tx, caller: Caller, name: str) -> NodeDetail:
    """One node with its history and what is on it.  Raises NotFound."""
    row = tx.one("show_node", tenant_id=caller.tenant_id, name=name)
    if row is None:
        raise NotFound(f"there is no node {name!r}; see `geres nodes`", id=name)
    changes = tx.all("history_of_node", node_id=row["id"], limit=_MOST_CHANGES)
    tasks = tx.rows("tasks_on_node", node_id=row["id"], limit=_MOST_TASKS)
    seen = reached(tx, caller, {key for (key,) in tasks})
    return NodeDetail(
        **_fields(row, _use(tx, caller)[row["id"]]),
        history=[
            NodeChange(at=rfc3339(one["at"]) or "", state=NodeState(one["state"]), why=one["why"])
            for one in reversed(changes)
        ],
        task_ids=[show_task(key) for (key,) in tasks if key in seen],
        login=_login(row),
        going=(row["going"] or "").partition(":")[0] or None,
        removed_at=rfc3339(row["removed_at"]),
    )


def _login(row: Row) -> str | None:
    address: str | None = row["address"]
    try:
        hello = _hello.decode(row["info"])
    except msgspec.MsgspecError:
        return address
    return hello.labels.get("ssh") or address or hello.host


class _Use:
    """What the tasks on one node have together."""

    def __init__(self) -> None:
        self.tasks = self.cpus_milli = self.memory_bytes = self.gpus = 0
        self.counts: dict[str, int] = defaultdict(int)


def _use(tx: Tx, caller: Caller) -> dict[int, _Use]:
    """What is taken on each node, from the tasks that the store has there."""
    nodes: dict[int, _Use] = defaultdict(_Use)
    for node_id, body, count in tx.rows("classes_on_nodes", tenant_id=caller.tenant_id):
        use, asks = nodes[node_id], show.demand(body)
        use.tasks += count
        use.cpus_milli += asks.cpus_milli * count
        use.memory_bytes += asks.memory_bytes * count
        use.gpus += asks.gpus * count
        for name, most in asks.counts:
            use.counts[name] += most * count
    return nodes


def _fields(row: Row, use: _Use) -> dict[str, Any]:
    try:
        hello = _hello.decode(row["info"])
    except msgspec.MsgspecError:  # a provider made it, and it has never connected
        hello = None
    resources = hello.resources if hello else {}
    return {
        "name": row["name"],
        "id": str(row["id"]),
        "pool": row["pool"],
        "state": NodeState(row["state"]),
        "state_since": rfc3339(row["state_since"]) or "",
        "previous_state": NodeState(row["previous_state"]) if row["previous_state"] else None,
        "previous_since": rfc3339(row["previous_since"]),
        "connected": row["server_id"] is not None,
        "last_heartbeat_at": rfc3339(row["heartbeat_at"]),
        "total": Capacity(
            cpus=row["cpus"] / 1000, memory_bytes=row["memory_bytes"], gpus=row["gpus"], resources=resources
        ),
        "free": Capacity(
            cpus=max(0, row["cpus"] - use.cpus_milli) / 1000,
            memory_bytes=max(0, row["memory_bytes"] - use.memory_bytes),
            gpus=max(0, row["gpus"] - use.gpus),
            resources={name: max(0, count - use.counts[name]) for name, count in resources.items()},
        ),
        "task_count": use.tasks,
        "labels": hello.labels if hello else {},
        "arch": hello.arch if hello else None,
        "os": hello.os if hello else None,
        "host": hello.host if hello else None,
        "version": hello.version if hello else None,
        "account": hello.account if hello else None,
        "shared_paths": hello.shared_paths if hello else [],
        "reason": row["reason"] if row["state"] in (NodeState.STARTING, NodeState.START_FAILED) else None,
    }
