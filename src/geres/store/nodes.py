"""Nodes: connecting, leases, and taking work back from a node that is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from geres.errors import Conflict, NameTaken
from geres.model.ids import show_task
from geres.model.states import NodeState, Reason, TaskState
from geres.model.wire import AttemptKey, Ended, Hello
from geres.store.database import Row, Tx, batch
from geres.store.pools import Start, at_hello
from geres.store.sharing import pool_of
from geres.store.turn import LockedTask, Turned, settle

_PIECE = 500
_MOST_NOTICE = 500  #: characters


class Lease(NamedTuple):
    """As it stands in the store.  Nodes that were renewed together share one; each renewal makes another."""

    until: int | None  #: None after a good-bye
    heartbeat_at: int | None
    node_id: int = 0  #: where its node is gone
    state: str = "connected"  #: else `lost` or `offline`


class Held(NamedTuple):
    """An attempt that the store has on a node."""

    id: int
    attempt: int
    state: str
    lane_id: int
    spec_id: int
    argv: str | None
    item: str | None
    asked: str | None
    retry_count: int
    requeue_count: int
    lost_count: int
    round: int
    is_parent: int
    assigned_at: int | None
    started_at: int | None
    message: str | None
    node_id: int
    submitted_by: str
    asked_at: int | None
    demand: str


@dataclass
class Connected:
    """Answer to a hello."""

    node_id: int
    pool_id: int
    epoch: int
    draining: bool
    kill: list[AttemptKey] = field(default_factory=list)  #: only the agent has them
    resend: list[Held] = field(default_factory=list)  #: only the store has them
    held: list[Held] = field(default_factory=list)  #: all that now count as on the node, resent ones included
    specs: dict[int, str] = field(default_factory=dict)
    turned: Turned = field(default_factory=Turned)  #: what was taken back
    start: Start = field(default_factory=Start)  #: whether it has to run a start task first


def hello(tx: Tx, hello: Hello, *, tenant_id: int, server_id: int, lease_us: int, now_us: int) -> Connected:
    """Connect a node: raise its epoch, and settle which attempts it has.

    An attempt that only the agent knows is to be killed; one that only the store knows is sent again, unless
    it was running: then the node has lost it.  After a reboot none is sent again: it may have run before, and
    what said so is gone with the machine's memory.
    """
    pool_id = pool_of(tx, tenant_id, hello.pool, now_us=now_us)
    key = {"tenant_id": tenant_id, "name": hello.node}
    node = tx.one("find_node", **key)
    if is_new := node is None:
        tx.value("create_node", **key, pool_id=pool_id, now_us=now_us)
        node = tx.one("find_node", **key)
        assert node is not None
    if node["removed_at"] is not None:
        raise Conflict(
            f"the node {hello.node} was removed from the cluster; "
            f"`geres node undrain {hello.node}` takes it back"
        )
    if node["boot_id"] not in (None, hello.boot_id):
        tx.run("let_come_back", node_id=node["id"])
    row = tx.one(
        "connect_node",
        node_id=node["id"],
        server_id=server_id,
        lease_until=now_us + lease_us,
        boot_id=hello.boot_id,
        host_id=hello.host_id,
        cpus=round(hello.cpus * 1000),
        memory_bytes=hello.memory_bytes,
        gpus=hello.gpus,
        info=_info_of(hello),
        pool_id=pool_id,
        instance=_instance_of(node, hello, now_us),
        on_disconnect=hello.on_disconnect or None,
        now_us=now_us,
    )
    assert row is not None
    tx.run("note_address", node_id=node["id"], address=hello.address or None)
    answer = Connected(node["id"], pool_id, row["epoch"], bool(row["draining"]))
    tx.run("forget_kills_of_node", node_id=node["id"])  # what only the agent has is killed anyway
    _settle_attempts(tx, hello, answer, node["boot_id"] not in (None, hello.boot_id), now_us)
    state = NodeState.DRAINING if answer.draining else NodeState.RUNNING if answer.held else NodeState.IDLE
    why = f"connected from {hello.host}"
    answer.start = at_hello(tx, pool_id, hello.start)
    if answer.start.state is not None:
        state, why = answer.start.state, f"{why}; {answer.start.reason}"
        tx.run("set_node_reason", node_id=answer.node_id, reason=answer.start.reason)
    if is_new and state is NodeState.STARTING:  # as which it was made
        tx.run("add_node_event", node_id=answer.node_id, state=state, why=why, now_us=now_us)
    move(tx, answer.node_id, state, why=why, now_us=now_us)
    if hello.notice:
        notice = hello.notice.replace("\0", "")[:_MOST_NOTICE]
        tx.run("add_node_event", node_id=answer.node_id, state=state, why=notice, now_us=now_us)
    return answer


def _info_of(hello: Hello) -> str:
    """The hello without what changes."""
    lasting = msgspec.structs.replace(hello, attempts=[], running=[], notice="", start=None)
    return msgspec.json.encode(lasting).decode()


def _instance_of(node: Row, hello: Hello, now_us: int) -> str:
    """What is noted of the agent: its folder's number, and the boot of its machine before this one.

    Raises NameTaken while another agent has the node: of another machine, or of another folder.  A machine
    that was started again may take its node back at once; a copy of it is known by the boot that it still has
    after a later one was seen.
    """
    instance, _, earlier_boot = (node["instance"] or "").rpartition(":")
    is_copy = hello.boot_id == earlier_boot and hello.boot_id != node["boot_id"]
    if node["boot_id"] not in (None, hello.boot_id):
        earlier_boot = node["boot_id"]
    same = node["host_id"] in (None, "", hello.host_id) and instance in ("", hello.instance or instance)
    is_there = node["lease_until"] is not None and node["lease_until"] > now_us
    if is_there and (is_copy or not same):
        raise NameTaken(
            f"node: another agent is connected as {hello.node}, from {_host_of(node)}: give this one another"
            " --name, or stop that one",
            node=hello.node,
        )
    return f"{hello.instance or instance}:{earlier_boot}"


def _host_of(node: Row) -> str:
    try:
        return msgspec.json.decode(node["info"], type=Hello).host
    except msgspec.MsgspecError:
        return "elsewhere"


def _settle_attempts(tx: Tx, hello: Hello, answer: Connected, rebooted: bool, now_us: int) -> None:
    stored = [Held(*row) for row in tx.rows("attempts_of_node", node_id=answer.node_id)]
    has = {(task, attempt) for task, attempt in hello.attempts}
    known = {(held.id, held.attempt) for held in stored}
    answer.kill = sorted(has - known)
    missing = [held for held in stored if (held.id, held.attempt) not in has]
    if not rebooted:
        answer.resend = [held for held in missing if held.state == TaskState.ASSIGNED and held.asked is None]
    gone = [held for held in missing if held not in answer.resend]
    if gone:  # one may be ended by force at this moment, which locks no node
        locked = tx.rows("lock_reported_tasks", task_ids=sorted(held.id for held in gone))
        still = {(row[0], row[1]) for row in locked if row[2] == answer.node_id}
        stored = [held for held in stored if held not in gone or (held.id, held.attempt) in still]
        gone = [held for held in gone if (held.id, held.attempt) in still]
    answer.held = [held for held in stored if held not in gone]
    if gone:
        text = "its node no longer knows it after a new connection"
        settle(
            tx, [(answer.node_id, _lost(held, text, now_us), held) for held in gone], answer.turned, now_us
        )
    spec_ids = sorted({held.spec_id for held in answer.held})
    if spec_ids:
        answer.specs = dict(tx.rows("specs_by_id", spec_ids=spec_ids))


def _lost(task: Any, message: str, now_us: int) -> Ended:
    """The end of an attempt that the store gives up.  One that had not started is just given back."""
    if task.state == TaskState.ASSIGNED:
        return Ended(task.id, task.attempt, "given_back", message=message, ended_us=now_us)
    return Ended(task.id, task.attempt, "failed", Reason.NODE_LOST, message, ended_us=now_us)


def move(tx: Tx, node_id: int, state: NodeState, *, why: str, now_us: int) -> None:
    """Put a node into a state, with an entry in its history; nothing where it is there already."""
    if tx.run("move_node", node_id=node_id, state=state, now_us=now_us):
        tx.run("add_node_event", node_id=node_id, state=state, why=why, now_us=now_us)


def move_all(tx: Tx, moves: Sequence[tuple[int, NodeState]], *, why: str, now_us: int) -> None:
    for node_id, state in sorted(moves):
        move(tx, node_id, state, why=why, now_us=now_us)


def renew(
    tx: Tx, nodes: Sequence[tuple[int, int]], *, server_id: int, lease_us: int, now_us: int
) -> dict[int, bool]:
    """Renew the leases of (node id, epoch), held by this server.

    Returns the nodes that are still connected by that epoch, and whether each is to take no new tasks.
    """
    if not nodes:
        return {}
    tx.rows("lock_nodes_to_change", node_ids=sorted(node for node, _ in nodes))
    rows = tx.rows(
        "renew_leases",
        batch=batch(sorted(nodes)),
        server_id=server_id,
        lease_until=now_us + lease_us,
        now_us=now_us,
    )
    return {row[0]: bool(row[1]) for row in rows}


def goodbye(tx: Tx, node_id: int, epoch: int, *, now_us: int) -> None:
    """The agent leaves on purpose.  Its running tasks are waited for until its lease would have ended."""
    if tx.run("goodbye_node", node_id=node_id, epoch=epoch):
        move(tx, node_id, NodeState.OFFLINE, why="the agent stopped", now_us=now_us)


def take_back(tx: Tx, node_id: int, epoch: int, attempts: Sequence[AttemptKey], *, now_us: int) -> Turned:
    """Queue again what a connected node has not started long after it was told to; not what has started.

    The node learns at its next hello that the attempts are no longer its own.
    """
    done = Turned()
    if dict(tx.rows("lock_nodes", node_ids=[node_id])).get(node_id) != epoch:
        return done
    asked = set(attempts)
    rows = tx.rows("lock_reported_tasks", task_ids=sorted(task for task, _ in asked))
    tasks = [task for task in (LockedTask(*row) for row in rows) if (task.id, task.attempt) in asked]
    text = "its node did not start it in time"
    reports = [
        (node_id, Ended(task.id, task.attempt, "given_back", message=text, ended_us=now_us), task)
        for task in tasks
        if task.node_id == node_id and task.state == TaskState.ASSIGNED
    ]
    if reports:
        settle(tx, reports, done, now_us)
    return done


def lose(
    tx: Tx, ended: Callable[[Sequence[Lease]], Sequence[Lease]], *, now_us: int, limit: int = 50
) -> Turned:
    """Declare nodes lost whose lease has ended, and take back what they had, a piece of it each call.

    `ended` picks those that have ended from all leases, once, and may keep what it saw whatever becomes of
    this transaction.  A node that said good-bye has a lease for as long as it has attempts.  `more` is True
    while there is more to take back.
    """
    done = Turned()
    leases = [Lease(*row) for row in tx.rows("leases")]
    over = {*ended([lease for lease in leases if lease.state != NodeState.LOST])}
    over |= {lease for lease in leases if lease.state == NodeState.LOST}
    if not over:
        return done
    rows = tx.rows(
        "lock_nodes_of_leases",
        untils=sorted({lease.until for lease in over if lease.until is not None}),
        node_ids=sorted(lease.node_id for lease in over if lease.node_id),
        limit=limit,
    )
    gone = []
    for node_id, until, heartbeat_at, state in rows:
        is_gone = state in (NodeState.LOST, NodeState.OFFLINE)
        lease = Lease(until, heartbeat_at, node_id, state) if is_gone else Lease(until, heartbeat_at)
        if lease not in over:
            continue  # it was renewed meanwhile
        gone.append(node_id)
        if not is_gone:
            tx.run("lose_node", node_id=node_id)
            tx.run("forget_kills_of_node", node_id=node_id)
            move(tx, node_id, NodeState.LOST, why="no heartbeat until the end of its lease", now_us=now_us)
            done.stale_nodes.append(node_id)
    if gone:
        _take_back(tx, gone, done, now_us)
    done.more = done.more or len(gone) == limit
    return done


def _is_spot(info: str) -> bool:
    """True for a machine that its owner may take away at any moment: its label `class` is `spot`."""
    try:
        return msgspec.json.decode(info, type=Hello).labels.get("class") == "spot"
    except msgspec.MsgspecError:
        return False


def _take_back(tx: Tx, node_ids: list[int], done: Turned, now_us: int) -> None:
    """Of all these nodes at once: tasks are locked in order, and jobs after the last of them."""
    rows = tx.all("attempts_to_take_back", node_ids=node_ids, limit=_PIECE)
    spot = {row[0] for row in tx.rows("infos_of_nodes", node_ids=node_ids) if _is_spot(row[1])}
    reports = []
    for row in rows:
        task = LockedTask(**row)
        text = f"attempt {task.attempt} of {show_task(task.id)} was lost with its node"
        report = _lost(task, text, now_us)
        if row["node_id"] in spot and report.reason == Reason.NODE_LOST:
            # To lose a spot node says nothing against the task: it does not count towards its crash limit.
            report.reason, report.message = Reason.NODE_STOPPED, f"{text}, a spot node"
        reports.append((row["node_id"], report, task))
    if reports:
        settle(tx, reports, done, now_us)
    done.more = done.more or len(rows) == _PIECE
