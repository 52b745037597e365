"""Looks for what must never be: facts of the store that contradict each other, and records set aside."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from geres.model.doctor import Finding
from geres.model.ids import show_task
from geres.model.units import rfc3339
from geres.store import unreadable
from geres.store.database import Tx
from geres.store.invariants import check_invariants

_MOST = 50  #: findings of one kind
_STUCK_US = 10 * 60 * 1_000_000


def ping(tx: Tx) -> None:
    """Raises StoreUnavailable where the store does not answer."""
    tx.value("ping")


def findings(tx: Tx, *, now_us: int) -> list[Finding]:
    """What a look at some rows shows: records that were set aside or cannot be read, unanswered wishes."""
    return [*_quarantined(tx), *_unreadable(tx), *_stuck(tx, now_us)]


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


__all__ = ["check_invariants", "findings", "ping"]
