"""What operators do to nodes: drain them, take them back, take them away, start their machines again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from geres.errors import Conflict, GeresError, Invalid, NotFound
from geres.model.callers import Caller
from geres.model.ids import is_node_name
from geres.model.nodes import NodeActed
from geres.model.states import NodeState
from geres.model.wire import Hello
from geres.store import audit, nodes
from geres.store.database import Row, Tx
from geres.store.task_actions import Done, ask, cancel, lock

MOST_NAMES = 10_000
#: Of others the state stays: it takes nothing anyway.
_AT_WORK = (NodeState.IDLE, NodeState.RUNNING, NodeState.DRAINING)
_PIECE = 500

_hello = msgspec.json.Decoder(Hello)


class Going(NamedTuple):
    """A node that is to go once no task is on it."""

    id: int
    tenant_id: int
    name: str
    state: str
    going: str  #: remove, remove:requeue, reboot, ...
    why: str
    host: str  #: where its machine is reached


class Silent(NamedTuple):
    """A node that nobody has heard for a while."""

    id: int
    name: str
    tries: int  #: so far, since it was heard last
    heard_at: int
    kicked_at: int | None
    host: str


@dataclass
class NodesDone:
    items: list[NodeActed] = field(default_factory=list)
    node_ids: list[int] = field(default_factory=list)  #: that have to be told


def drain(
    tx: Tx, caller: Caller, names: Sequence[str], *, why: str | None, now_us: int, dry_run: bool = False
) -> NodesDone:
    """Let nodes take no new tasks; what runs there goes on.  Twice is harmless."""
    return _each(tx, caller, names, "drain", None, why, now_us, dry_run)


def undrain(
    tx: Tx, caller: Caller, names: Sequence[str], *, why: str | None, now_us: int, dry_run: bool = False
) -> NodesDone:
    """Let nodes take tasks again; also those that were removed, or were about to be."""
    return _each(tx, caller, names, "undrain", None, why, now_us, dry_run)


def leave(
    tx: Tx,
    caller: Caller,
    names: Sequence[str],
    *,
    how: str,
    running: str,
    why: str | None,
    now_us: int,
    dry_run: bool = False,
) -> NodesDone:
    """Drain nodes, and have them removed or rebooted (`how`) once no task is on them.

    `running` says what becomes of tasks that are there: wait, requeue or terminate.
    """
    going = how if running == "wait" else f"{how}:{running}"
    return _each(tx, caller, names, how, going, why, now_us, dry_run)


def _each(
    tx: Tx,
    caller: Caller,
    names: Sequence[str],
    action: str,
    going: str | None,
    why: str | None,
    now_us: int,
    dry_run: bool,
) -> NodesDone:
    """One bad name does not stop the others."""
    if len(names) > MOST_NAMES:
        raise Invalid(f"names: at most {MOST_NAMES:,} in a request", field="names")
    if not names:
        raise Invalid("names: is empty; name the nodes", field="names")
    wanted = list(dict.fromkeys(names))
    known = [name for name in wanted if is_node_name(name)]
    ids = [row[0] for row in tx.rows("node_ids_called", tenant_id=caller.tenant_id, names=known)]
    rows = {row["name"]: row for row in tx.all("lock_nodes_to_act", node_ids=sorted(ids))}
    done = NodesDone()
    for name in wanted:
        try:
            row = rows.get(name)
            if row is None:
                raise NotFound(f"there is no node {name[:100]!r}; see `geres nodes`", id=name)
            if row["removed_at"] is not None and action != "undrain":
                raise Conflict(f"the node {name} is removed; `geres node undrain {name}` takes it back")
            state = _after(row, action)
            done.items.append(NodeActed(name=name, state=state, task_count=row["task_count"]))
        except GeresError as error:
            done.items.append(NodeActed(name=name, code=error.code, message=str(error)))
            continue
        if dry_run:
            continue
        draining = int(action != "undrain")
        tx.run("set_draining", node_id=row["id"], draining=draining, going=going, why=why)
        words = _past(action) + f" by {caller.subject}" + (f": {why}" if why else "")
        if state is not NodeState(row["state"]):
            nodes.move(tx, row["id"], state, why=words, now_us=now_us)
        audit.write(tx, caller, f"node.{action}", name, now_us=now_us, why=why, how=going)
        done.node_ids.append(row["id"])
    return done


def _after(row: Row, action: str) -> NodeState:
    """The state of a node in a moment."""
    state = NodeState(row["state"])
    if state not in _AT_WORK:
        return state
    if action != "undrain":
        return NodeState.DRAINING
    return NodeState.RUNNING if row["task_count"] else NodeState.IDLE


def _past(action: str) -> str:
    return {
        "drain": "drained",
        "undrain": "taken back",
        "remove": "about to be removed,",
        "reboot": "about to be rebooted,",
    }[action]


def going(tx: Tx, *, limit: int = 100) -> list[Going]:
    """The nodes that are to go."""
    return [
        Going(
            row["id"],
            row["tenant_id"],
            row["name"],
            row["state"],
            row["going"],
            row["going_why"] or "",
            _host_of(row),
        )
        for row in tx.all("nodes_going", limit=limit)
    ]


def send_off(tx: Tx, node: Going, *, now_us: int) -> Done:
    """Have a piece of the tasks on the node ended or queued again, as its operator said."""
    done = Done()
    running = node.going.partition(":")[2]
    if not running:
        return done
    keys = [row[0] for row in tx.rows("unasked_on_node", node_id=node.id, limit=_PIECE)]
    if not keys:
        return done
    system = Caller(node.tenant_id, "", "geres", "admin")
    message = f"its node {node.name} was taken away{f': {node.why}' if node.why else ''}"
    if running == "terminate":
        return cancel(tx, system, keys, now_us=now_us, message=message)
    rows = [row for row in lock(tx, system, keys, done) if row["node_id"] == node.id]
    ask(tx, rows, "requeue", done, now_us=now_us, message=message)
    return done


def begin(tx: Tx, node: Going, *, now_us: int) -> bool:
    """Remove the node, or note that it reboots now, if no task is on it any more.  False: not yet."""
    how = node.going.partition(":")[0]
    following = None if how == "remove" else "rebooting"
    if tx.value("begin_going", node_id=node.id, going=node.going, next=following) is None:
        return False
    if how == "remove":
        tx.run("remove_node", node_id=node.id, now_us=now_us)
        tx.run("revoke_all_credentials", tenant_id=node.tenant_id, node=node.name, now_us=now_us)
        nodes.move(tx, node.id, NodeState.OFFLINE, why="removed", now_us=now_us)
    else:
        tx.run(
            "add_node_event", node_id=node.id, state=node.state, why="its machine is rebooted", now_us=now_us
        )
    return True


def give_up(tx: Tx, node: Going, why: str, *, now_us: int) -> None:
    """A reboot that could not be begun: the node stays drained."""
    if tx.run("stop_going", node_id=node.id, going="rebooting"):
        tx.run("add_node_event", node_id=node.id, state=node.state, why=why, now_us=now_us)


def silent(
    tx: Tx, *, silent_us: int, again_us: int, give_up_us: int, now_us: int, limit: int = 20
) -> list[Silent]:
    """Lost nodes that were not heard for `silent_us`, and for less than `give_up_us`.

    One that was tried to be revived is left alone for `again_us`, doubled with each try.
    """
    rows = tx.all(
        "silent_nodes",
        silent_us=now_us - silent_us,
        again_us=again_us,
        give_up_us=now_us - give_up_us,
        now_us=now_us,
        limit=limit,
    )
    return [
        Silent(
            *(row["id"], row["name"], row["kick_count"], row["heartbeat_at"], row["kicked_at"], _host_of(row))
        )
        for row in rows
    ]


def note_kick(tx: Tx, node: Silent, *, now_us: int) -> int | None:
    """Count one more try; its number, or None where another server makes it."""
    found = tx.value("note_kick", node_id=node.id, kick_count=node.tries, now_us=now_us)
    return None if found is None else int(found)


def _host_of(row: dict[str, Any]) -> str:
    """Where the node's machine is reached: as its label `ssh` says, else where its connection came from."""
    try:
        hello = _hello.decode(row["info"])
    except msgspec.MsgspecError:
        return row["address"] or ""
    return hello.labels.get("ssh") or row["address"] or hello.host
