"""What a server does as such: register, hold its lease, notice others that are gone, find their addresses."""

from __future__ import annotations

from typing import NamedTuple

from geres.model.callers import Caller
from geres.model.servers import Server
from geres.model.units import rfc3339
from geres.store.database import Tx


class Peer(NamedTuple):
    """Where another server is, and what it knows its callers by."""

    id: int
    url: str
    secret: str
    fingerprint: str  #: SHA-256 of its certificate, where it made one itself


class Introduction(NamedTuple):
    """How a server is known to the others."""

    id: int  #: 0 before it is registered
    url: str  #: where the others reach it
    version: str
    started_us: int
    secret: str = ""
    fingerprint: str = ""


def register(tx: Tx, me: Introduction, *, lease_us: int) -> Introduction:
    """Store a server that starts.  Returns it with its id.

    Where no other server was there nobody could renew a lease: all leases go on for one more.
    """
    until = me.started_us + lease_us
    if tx.value("server_renewed_since", server_id=0, lease_until=me.started_us) is None:
        _extend(tx, None, until)
    number = tx.value(
        "register_server",
        url=me.url,
        version=me.version,
        now_us=me.started_us,
        lease_until=until,
        secret=me.secret,
        fingerprint=me.fingerprint,
    )
    return me._replace(id=int(number))


def renew(tx: Tx, me: Introduction, *, last_us: int, lease_us: int, now_us: int) -> bool:
    """Renew the server's own lease; `last_us` is when that was done before.  Call it every tenth of a lease.

    After an absence of more than half a lease nothing is taken back for one lease more: from this server's
    nodes where another server was there meanwhile, else from any.  True where that was so.
    """
    until, away = now_us + lease_us, now_us - last_us > lease_us // 2
    if away:
        known = last_us + lease_us // 4 + lease_us  # the lease of who has renewed it since
        alone = tx.value("server_renewed_since", server_id=me.id, lease_until=known) is None
        _extend(tx, None if alone else me.id, until)
    tx.run(
        "renew_server",
        server_id=me.id,
        url=me.url,
        version=me.version,
        started_at=me.started_us,
        lease_until=until,
        secret=me.secret,
        fingerprint=me.fingerprint,
    )
    return away


def extend_leases(tx: Tx, *, lease_us: int, now_us: int) -> int:
    """Let no lease end within `lease_us`: after an outage of the store, or a jump of its clock."""
    return _extend(tx, None, now_us + lease_us)


def _extend(tx: Tx, server_id: int | None, until: int) -> int:
    """Extend the leases of a server's nodes; with None those of all nodes and servers."""
    ids = [row[0] for row in tx.rows("lock_nodes_to_extend", server_id=server_id, lease_until=until)]
    if server_id is None:
        tx.run("extend_servers", lease_until=until)
    return tx.run("extend_leases", node_ids=ids, lease_until=until) if ids else 0


def bury(tx: Tx, server_id: int, *, now_us: int, limit: int = 10) -> list[tuple[int, str]]:
    """Forget other servers whose lease has ended; nobody holds their nodes then.  Returns (id, url) of them.

    One that is there after all comes back with its next `renew`, and its nodes with their heartbeats.
    """
    tx.run("renew_older_servers")
    gone = [
        (row[0], row[1]) for row in tx.rows("servers_gone", server_id=server_id, now_us=now_us, limit=limit)
    ]
    _forget(tx, [row[0] for row in gone])
    return gone


def leave(tx: Tx, server_id: int) -> None:
    """The server stops: nobody holds its nodes until they have connected elsewhere."""
    _forget(tx, [server_id])


def _forget(tx: Tx, server_ids: list[int]) -> None:
    if not server_ids:
        return
    nodes = [row[0] for row in tx.rows("lock_nodes_of_servers", server_ids=server_ids)]
    if nodes:
        tx.run("forget_holder", node_ids=nodes, server_ids=server_ids)
    tx.run("drop_servers", server_ids=server_ids)


def list_servers(tx: Tx, caller: Caller, server_id: int, *, now_us: int) -> list[Server]:
    """The servers that are there, by id; `server_id` is the one that is asked.

    Nodes are those of the caller's tenant, for an admin of all.
    """
    tenant_id = None if caller.role == "admin" and not caller.home else caller.tenant_id
    return [
        Server(
            id=str(row["id"]),
            url=row["url"],
            version=row["version"],
            nodes=row["nodes"],
            since=rfc3339(row["started_at"]) or "",
            answers=row["id"] == server_id,
        )
        for row in tx.all("show_servers", server_id=server_id, tenant_id=tenant_id, now_us=now_us)
    ]


def living(tx: Tx, *, now_us: int) -> list[Peer]:
    """All servers whose lease goes on, by id."""
    return [Peer(*row) for row in tx.rows("living_servers", now_us=now_us)]


def holder(tx: Tx, task: int, attempt: int, *, now_us: int) -> Peer | None:
    """The server to which the node of this attempt is connected; None where there is none.

    Attempt N of task 0 stands for node N itself.
    """
    if not task:
        rows = tx.rows("holder_of_node", node_id=attempt, now_us=now_us)
        return Peer(*rows[0]) if rows else None
    rows = tx.rows("holder_of_attempt", task_id=task, attempt=attempt, now_us=now_us)
    return Peer(*rows[0]) if rows else None


def store_time_us(tx: Tx) -> int:
    """The store's own clock in microseconds since 1970; 0 where it has none."""
    return int(tx.value("store_time"))
