"""What operators ask of agents themselves: to read their settings again, to begin anew."""

from __future__ import annotations

from collections.abc import Sequence

from geres.errors import Conflict, GeresError, Invalid, NotFound
from geres.model.callers import Caller
from geres.model.ids import is_node_name
from geres.model.nodes import NodeActed
from geres.model.states import NodeState
from geres.store import audit
from geres.store.database import Tx
from geres.store.node_actions import MOST_NAMES, NodesDone


def ask(
    tx: Tx,
    caller: Caller,
    names: Sequence[str],
    *,
    what: str,
    why: str | None,
    now_us: int,
    dry_run: bool = False,
) -> NodesDone:
    """Ask `reload` or `restart` of the agents of nodes.  One bad name does not stop the others.

    It is told by the server to which the node is connected; what came of it stands in the node's history.
    """
    if not 0 < len(names) <= MOST_NAMES:
        raise Invalid(f"names: name 1 to {MOST_NAMES:,} nodes", field="names")
    wanted = list(dict.fromkeys(names))
    known = [name for name in wanted if is_node_name(name)]
    rows = {row["name"]: row for row in tx.all("agents_to_ask", tenant_id=caller.tenant_id, names=known)}
    done = NodesDone()
    for name in wanted:
        try:
            row = rows.get(name)
            if row is None:
                raise NotFound(f"there is no node {name[:100]!r}; see `geres nodes`", id=name)
            if row["server_id"] is None:
                raise Conflict(f"the agent of {name} is not connected; `geres node show {name}` tells more")
        except GeresError as error:
            done.items.append(NodeActed(name=name, code=error.code, message=str(error)))
            continue
        done.items.append(NodeActed(name=name, state=NodeState(row["state"]), task_count=row["task_count"]))
        if not dry_run:
            tx.run("ask_agent", node_id=row["id"], asked=what)
            audit.write(tx, caller, f"agent.{what}", name, now_us=now_us, why=why)
            done.node_ids.append(row["id"])
    return done


def asked(tx: Tx, node_ids: Sequence[int]) -> list[tuple[int, str]]:
    """(node id, what) of that which these nodes' agents have not been told yet."""
    return [(row[0], row[1]) for row in tx.rows("asked_of_agents", node_ids=list(node_ids))]


def told(tx: Tx, node_ids: Sequence[int]) -> None:
    """They have been told.  Asking is not repeated: a restart must not come twice."""
    tx.run("told_agents", node_ids=sorted(node_ids))
