"""Looks for what must never be: facts of the store that contradict each other, and records set aside."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from geres.model.doctor import Finding
from geres.model.ids import show_task
from geres.model.units import plural, rfc3339
from geres.model.webhooks import host_of
from geres.store import unreadable
from geres.store.database import Tx
from geres.store.invariants import check_invariants
from geres.store.tokens import LOCAL_TENANT

_MOST = 50  #: findings of one kind
_STUCK_US = 10 * 60 * 1_000_000


def ping(tx: Tx) -> None:
    """Raises StoreUnavailable where the store does not answer."""
    tx.value("ping")


def findings(tx: Tx, *, now_us: int) -> list[Finding]:
    """What a look at some rows shows: records that were set aside or cannot be read, unanswered wishes, pools
    in which nothing can start."""
    return [
        *(*_quarantined(tx), *_unreadable(tx), *_stuck(tx, now_us)),
        *(*_at_rest(tx), *_failed_to_start(tx), *_failing_webhooks(tx)),
    ]


def _quarantined(tx: Tx) -> Iterator[Finding]:
    for row in tx.all("list_quarantine", limit=_MOST):
        yield Finding(
            kind="quarantine",
            id=str(row["id"]),
            at=rfc3339(row["at"]),
            text=f"a record of {row['kind']} {row['key']} was set aside: {row['error']}",
            next="report it; its task failed with the reason `internal`",
        )


def _unreadable(tx: Tx) -> Iterator[Finding]:
    for one in itertools.islice(unreadable.look(tx), _MOST):
        yield Finding(
            kind="unreadable",
            id=show_task(one.id) if one.kind == "task" else str(one.id),
            text=f"the record of {one.kind} {one.key} cannot be read: {one.error}",
            next="`geres restart` sets it aside and fails the waiting tasks that need it",
        )


def _stuck(tx: Tx, now_us: int) -> Iterator[Finding]:
    for key, asked, asked_at, node in tx.rows("asked_long_ago", before_us=now_us - _STUCK_US, limit=_MOST):
        word = asked.partition(":")[0]
        yield Finding(
            kind="stuck",
            id=show_task(key),
            at=rfc3339(asked_at),
            text=f"task {show_task(key)} was asked to {word}, and node {node} has not answered",
            next=f"geres cancel --force {show_task(key)}" if word == "cancel" else f"geres node show {node}",
        )


def _at_rest(tx: Tx) -> Iterator[Finding]:
    for row in tx.all("pools_without_taker", limit=_MOST):
        pool, waiting, draining = row["pool"], row["waiting"], row["draining"]
        of = f"pool {pool}" if row["tenant"] == LOCAL_TENANT else f"pool {pool} of tenant {row['tenant']}"
        waits = "" if waiting is None else f"tasks wait for a node of {of} (like {show_task(waiting)}), and "
        if draining is not None:
            many = f" and {row['connected'] - 1} more" if row["connected"] > 1 else ""
            text = f"{waits}every node of {of} is drained, so that nothing starts there: {draining}{many}"
            yield Finding(kind="pool", id=pool, text=text, next=f"geres node undrain {draining}")
        elif waiting is not None:
            move = f"geres edit {show_task(waiting)} pool=NAME, or geres agent --pool {pool}"
            yield Finding(kind="pool", id=pool, text=f"{waits}none is connected", next=move)


def _failed_to_start(tx: Tx) -> Iterator[Finding]:
    for row in tx.all("nodes_that_failed_to_start", limit=_MOST):
        of = row["pool"] if row["tenant"] == LOCAL_TENANT else f"{row['pool']} of tenant {row['tenant']}"
        yield Finding(
            kind="node",
            id=row["name"],
            at=rfc3339(row["state_since"]),
            text=f"node {row['name']} of pool {of} is not in service: {row['reason']}",
            next=f"geres node logs {row['name']}, then geres agent restart --nodes {row['name']}",
        )


def _failing_webhooks(tx: Tx) -> Iterator[Finding]:
    for row in tx.all("failing_webhooks", limit=_MOST):
        of = "" if row["tenant"] == LOCAL_TENANT else f" of tenant {row['tenant']}"
        yield Finding(
            kind="webhook",
            id=str(row["id"]),
            at=rfc3339(row["failing_since"]),
            text=f"webhook {row['id']}{of} to {host_of(row['target'])} fails: {row['error']};"
            f" waiting: {plural(row['waiting'], 'message')}",
            next=f"geres webhook test {row['id']}",
        )


__all__ = ["check_invariants", "findings", "ping"]
