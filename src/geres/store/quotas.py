"""Quotas: kept as limits, counted from what is there, so that they cannot drift.

Tasks on nodes count for who submitted them, tasks that wait for whose job they are in.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from geres.errors import Denied, OverQuota
from geres.model.callers import RANK, Caller
from geres.model.quotas import EACH, Amounts, Quota, SetQuota, What, check, merge
from geres.store import audit, known, show
from geres.store.database import Tx
from geres.store.sharing import set_cap

_AT_SUBMIT: tuple[What, ...] = ("queued", "jobs")
_ON_NODES: tuple[What, ...] = ("running", "cpus")
_NONE = Amounts()


@dataclass
class Use:
    """What users have now; the sum of all is the tenant's."""

    running: Counter[str] = field(default_factory=Counter)
    cpus_milli: Counter[str] = field(default_factory=Counter)
    queued: Counter[str] = field(default_factory=Counter)
    jobs: Counter[str] = field(default_factory=Counter)

    def of(self, user: str | None) -> Amounts:
        def count(counter: Counter[str]) -> int:
            return counter.total() if user is None else counter[user]

        return Amounts(
            running=count(self.running),
            cpus=count(self.cpus_milli) / 1000,
            queued=count(self.queued),
            jobs=count(self.jobs),
        )


def read(tx: Tx, tenant_id: int) -> dict[str | None, Amounts]:
    """The limits of the tenant (None), of each user (`*`) and of users."""
    return _amounts(tx.rows("quotas", tenant_id=tenant_id))


def _amounts(rows: Iterable[tuple[Any, ...]]) -> dict[str | None, Amounts]:
    found: dict[str | None, dict[str, Any]] = defaultdict(dict)
    for key, most in rows:
        what, _, user = key.partition(":")
        found[user or None][what] = most / 1000 if what == "cpus" else most
    return {user: Amounts(**amounts) for user, amounts in found.items()}


def running(tx: Tx, tenant_id: int, use: Use) -> None:
    """Count tasks on nodes and their cpus."""
    for user, body, count in tx.rows("use_of_nodes", tenant_id=tenant_id):
        use.running[user] += count
        use.cpus_milli[user] += count * show.demand(body).cpus_milli


def waiting(tx: Tx, tenant_id: int, use: Use) -> None:
    """Count tasks that wait and jobs that have not ended."""
    for user, jobs, count in tx.rows("open_of_users", tenant_id=tenant_id):
        use.jobs[user] += int(jobs)
        use.queued[user] += int(count)
    for user, count in tx.rows("on_nodes_by_owner", tenant_id=tenant_id):
        use.queued[user] -= count


def use_of(tx: Tx, tenant_id: int) -> Use:
    use = Use()
    running(tx, tenant_id, use)
    waiting(tx, tenant_id, use)
    return use


def list_quotas(tx: Tx, caller: Caller, user: str | None = None) -> list[Quota]:
    """The tenant's, that of each user, and users' own; those that hold for `user`, or for a caller who sees
    no other's.

    There is always one of the tenant and one of the caller, if without limits: they tell what is used.
    Raises NotFound for a user who is not there, Denied for another one than a caller who sees no other's.
    """
    if user not in (None, EACH, caller.subject) and RANK.get(caller.role, 0) < RANK["operator"]:
        raise Denied("only operators and admins see the quotas of others", role=caller.role)
    if user not in (None, EACH):
        known.check_user(tx, caller, user or "")
    return _list(tx, caller, user)


def _list(tx: Tx, caller: Caller, user: str | None) -> list[Quota]:
    limits, use = read(tx, caller.tenant_id), use_of(tx, caller.tenant_id)
    if user is None and RANK.get(caller.role, 0) < RANK["operator"]:
        user = caller.subject
    each = limits.get(EACH, _NONE)
    users = (
        {user} if user is not None else {*limits, *use.queued, *use.running, caller.subject} - {None, EACH}
    )
    found = [Quota(tenant=caller.tenant, user=None, most=limits.get(None, _NONE), used=use.of(None))]
    if EACH in limits and user in (None, EACH):
        found.append(Quota(tenant=caller.tenant, user=EACH, most=each))
    return found + [
        Quota(tenant=caller.tenant, user=one, most=merge(limits.get(one, _NONE), each), used=use.of(one))
        for one in sorted(one for one in users if one is not None and one != EACH)
    ]


def set_quota(
    tx: Tx, caller: Caller, change: SetQuota, *, now_us: int, users_come: bool = False
) -> list[Quota]:
    """Set or take away limits; what is there stays, and nothing more comes.

    Raises Invalid, Denied, and NotFound for a user who is not there, unless `users_come` by themselves.
    """
    check(change)
    if RANK.get(caller.role, 0) < RANK["operator"]:
        raise Denied("only an operator sets quotas", role=caller.role)
    if change.user not in (None, EACH) and not users_come:
        known.check_user(tx, caller, change.user or "")
    for what, most in change.given().items():
        set_cap(tx, caller.tenant_id, "quota", f"{what}:{change.user or ''}", most)
    facts: dict[str, Any] = dict(change.given().items())
    audit.write(tx, caller, "quota.set", change.user or caller.tenant, now_us=now_us, **facts)
    return _list(tx, caller, change.user)


def check_added(tx: Tx, caller: Caller, owner: str, *, tasks: int = 0, jobs: int = 0) -> None:
    """Raise OverQuota where so many tasks and jobs of `owner`, which are counted already, are too many.

    The limits are locked to the end, so that two submits do not both take the last place; the job was before.
    """
    keys = [f"{what}:{who}" for what in _AT_SUBMIT for who in ("", EACH, owner)]
    limits = _amounts(tx.rows("lock_quotas", tenant_id=caller.tenant_id, keys=keys))
    if not limits:
        return
    use = Use()
    waiting(tx, caller.tenant_id, use)
    for user, most in (
        (owner, merge(limits.get(owner, _NONE), limits.get(EACH, _NONE))),
        (None, limits.get(None, _NONE)),
    ):
        whose = f"user {user}" if user is not None else f"tenant {caller.tenant}"
        used = use.of(user)
        for what, wanted, words in (("queued", tasks, "tasks waiting"), ("jobs", jobs, "open jobs")):
            limit, has = getattr(most, what), getattr(used, what)
            if limit is not None and wanted and has > limit:
                has -= wanted
                raise OverQuota(
                    f"the quota of {whose} is {limit} {words}, there are {has}, and this would add {wanted};"
                    " wait until some have ended, or ask an operator (`geres quota set`)",
                    quota=what,
                    most=limit,
                    used=has,
                    wanted=wanted,
                )


class Limit(NamedTuple):
    """A limit on what runs, of lanes of the tenant or of one user."""

    user: str | None  #: None: of the tenant
    most: int  #: tasks, or thousandths of a cpu
    used: int
    is_cpus: bool


def limits_on_nodes(
    tx: Tx, tenant_id: int, users: Iterable[str], *, lock: bool = False
) -> tuple[list[Limit], set[str | None]]:
    """The limits on what runs that the tenant and these users are under, with what is used.

    With `lock` they are locked before it is counted; those under one that another server holds come back
    as the second, None for all.
    """
    rows = dict(tx.rows("quotas", tenant_id=tenant_id))
    under = []
    for what in _ON_NODES:
        for user in (None, *users):
            key = f"{what}:{user or ''}"
            key = key if user is None or key in rows else f"{what}:{EACH}"
            if key in rows:
                under.append((what, user, key))
    if not under:
        return [], set()
    held = set(rows)
    if lock:
        keys = sorted({key for _, _, key in under})
        held = {key for (key,) in tx.rows("try_quotas", tenant_id=tenant_id, keys=keys)}
    use = Use()
    running(tx, tenant_id, use)
    found = []
    for what, user, key in under:
        counter = use.cpus_milli if what == "cpus" else use.running
        used = counter.total() if user is None else counter[user]
        found.append(Limit(user, int(rows[key]), used, what == "cpus"))
    return found, {user for _, user, key in under if key not in held}
