"""The audit log: who changed what, in the transaction that changed it; and who was refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import msgspec

from geres.errors import BY_CODE, Invalid
from geres.model.callers import Caller
from geres.model.ids import job_of, number_of
from geres.model.nearest import did_you_mean
from geres.model.tenants import AuditEntry, AuditPage, AuditQuery
from geres.model.units import parse_time, rfc3339
from geres.store import known
from geres.store.database import Tx
from geres.store.sql import statements

T = TypeVar("T")

#: Of somebody who is not known.
NOBODY = Caller(0, "", "", "viewer")
_MOST_ON_PAGE = 10_000
_MOST_TARGET = 500  #: characters
_encode = msgspec.json.Encoder().encode


def write(
    tx: Tx, caller: Caller, action: str, target: str | None, *, now_us: int, result: str = "ok", **facts: Any
) -> None:
    """Note what the caller does.  `target` are the ids; `facts` plain JSON values without secrets."""
    if caller.home:
        facts["admin_of"] = caller.home
    tx.run(
        "write_audit",
        tenant_id=caller.tenant_id,
        now_us=now_us,
        subject=caller.subject,
        role=caller.role if caller.tenant_id else None,
        action=action,
        target=_short(target),
        address=caller.address or None,
        result=result,
        facts=_encode(facts).decode(),
    )


class Note(NamedTuple):
    """What an entry says beside who did it."""

    action: str
    target: str
    now_us: int


def noted(tx: Tx, /, note: Note, change: Callable[..., T], caller: Caller, *args: Any, **how: Any) -> T:
    """Do it, and note that it was done."""
    answer = change(tx, caller, *args, **how)
    write(tx, caller, note.action, note.target, now_us=note.now_us)
    return answer


def tasks(keys: Sequence[int]) -> str:
    """The ids of tasks, what follows each other as a range: `12.3-9,11 13.1`."""
    parts = []
    for job_id, of_job in groupby(sorted(keys), job_of):
        ranges = []
        for _, run in groupby(enumerate(map(number_of, of_job)), lambda pair: pair[1] - pair[0]):
            numbers = [number for _, number in run]
            ranges.append(str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}")
        parts.append(f"{job_id}.{','.join(ranges)}")
    return " ".join(parts)


def _short(target: str | None) -> str | None:
    return target if target is None or len(target) <= _MOST_TARGET else target[: _MOST_TARGET - 1] + "…"


def list_audit(tx: Tx, caller: Caller, query: AuditQuery) -> AuditPage:
    """One page, newest first.  An admin sees all tenants, but for one who works in another, others their own.

    Raises Invalid, or where there is no entry NotFound for a user who is not there.
    """
    if not 1 <= query.limit <= _MOST_ON_PAGE:
        raise Invalid(f"limit: {query.limit} is not between 1 and {_MOST_ON_PAGE}", field="limit")
    where, parameters = "", dict[str, Any](limit=query.limit + 1)
    if caller.role != "admin" or caller.home:
        where, parameters["tenant_id"] = where + " AND a.tenant_id = :tenant_id", caller.tenant_id
    if query.user is not None:
        where, parameters["subject"] = where + " AND a.subject = :subject", query.user
    if query.action is not None and query.action.endswith("."):
        where += " AND a.action >= :action AND a.action < :beyond"
        parameters |= {"action": query.action, "beyond": query.action[:-1] + "/"}
    elif query.action is not None:
        where, parameters["action"] = where + " AND a.action = :action", query.action
    if query.result is not None:
        if query.result not in (words := ["ok", *BY_CODE]):
            hint = did_you_mean(query.result, words) or "; it is ok, or a code like denied"
            raise Invalid(f"result: {query.result!r} is no result{hint}", field="result")
        where, parameters["result"] = where + " AND a.result = :result", query.result
    if query.since is not None:
        where, parameters["since"] = where + " AND a.at >= :since", parse_time(query.since, "since")
    if query.until is not None:
        where, parameters["until"] = where + " AND a.at < :until", parse_time(query.until, "until")
    if query.cursor is not None:
        if not (query.cursor.isascii() and query.cursor.isdigit() and len(query.cursor) < 19):
            raise Invalid("cursor: is not one that this server gave", field="cursor")
        where, parameters["before"] = where + " AND a.id < :before", int(query.cursor)
    rows = tx.text(statements("sqlite")["select_audit"].replace("/* where */", where), parameters)
    if not rows and query.cursor is None and query.user is not None:
        known.check_user(tx, caller, query.user, everywhere="tenant_id" not in parameters)
    more, rows = len(rows) > query.limit, rows[: query.limit]
    items = [
        AuditEntry(
            id=str(row["id"]),
            at=rfc3339(row["at"]) or "",
            tenant=row["tenant"],
            user=row["subject"],
            role=row["role"],
            action=row["action"],
            target=row["target"],
            address=row["address"],
            result=row["result"],
            facts=msgspec.json.decode(row["facts"]),
        )
        for row in rows
    ]
    return AuditPage(items=items, next_cursor=items[-1].id if more else None)


def forget(tx: Tx, *, before_us: int, limit: int = 1000) -> int:
    """Forget entries from before a time.  Returns how many."""
    return tx.run("forget_audit", before_us=before_us, limit=limit)
