"""Whether the jobs, users, nodes and pools that a filter names are there.

Asked where a list is empty: that nothing matches is one thing, a misspelt name is another.
"""

from __future__ import annotations

from geres.errors import NotFound
from geres.model.callers import Caller
from geres.model.nearest import did_you_mean
from geres.model.tasks import DEFAULT_POOL
from geres.store.below import sees_job
from geres.store.database import Tx

_MOST_NAMES = 10_000  #: that one is looked for among


def check_names(
    tx: Tx,
    caller: Caller,
    *,
    user: str | None = None,
    node: str | None = None,
    pool: str | None = None,
    job_id: int | None = None,
) -> None:
    """Raise NotFound for a name that is not there, saying which is near.

    Callers who see only what is theirs are not told who else there is.
    """
    if job_id is not None and (
        tx.one("job_state", job_id=job_id, tenant_id=caller.tenant_id) is None
        or not sees_job(tx, caller, job_id)
    ):
        raise NotFound(f"there is no job {job_id}; see `geres jobs`", id=str(job_id))
    if user is not None and not (caller.private or caller.task):
        check_user(tx, caller, user)
    if node is not None:
        _check(tx, "node", node, caller.tenant_id, "geres nodes")
    if pool not in (None, DEFAULT_POOL):
        _check(tx, "pool", pool or "", caller.tenant_id, "geres nodes --select name,pool")


def check_user(tx: Tx, caller: Caller, name: str, *, everywhere: bool = False) -> None:
    """Raise NotFound for one who is no user and has never submitted a thing; `everywhere`: in no tenant."""
    if name != caller.subject:
        _check(tx, "user", name, None if everywhere else caller.tenant_id, "geres user list")


def _check(tx: Tx, kind: str, name: str, tenant_id: int | None, where: str) -> None:
    if tx.value(f"is_{kind}", tenant_id=tenant_id, name=name):
        return
    names = [row[0] for row in tx.rows(f"names_of_{kind}s", tenant_id=tenant_id, limit=_MOST_NAMES)]
    hint = did_you_mean(name, names) or f"; see `{where}`"
    raise NotFound(f"there is no {kind} {name!r}{hint}", id=name)
