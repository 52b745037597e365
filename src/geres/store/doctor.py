"""Looks for what must never be: facts of the store that contradict each other, and records set aside."""

from __future__ import annotations

from collections.abc import Iterator

from geres.model.doctor import Finding
from geres.model.ids import show_task
from geres.model.units import rfc3339
from geres.store import show
from geres.store.database import Tx

_MOST = 50  #: findings of one kind
_STUCK_US = 10 * 60 * 1_000_000


def ping(tx: Tx) -> None:
    """Raises StoreUnavailable where the store does not answer."""
    tx.value("ping")


def findings(tx: Tx, *, now_us: int) -> list[Finding]:
    """What a look at a few rows shows: records set aside, and wishes that no node has answered."""
    return [*_quarantined(tx), *_stuck(tx, now_us)]


def _quarantined(tx: Tx) -> Iterator[Finding]:
    for row in tx.all("list_quarantine", limit=_MOST):
        yield Finding(
            kind="quarantine",
            id=str(row["id"]),
            at=rfc3339(row["at"]),
            text=f"a record of {row['kind']} {row['key']} was set aside: {row['error']}",
            next="report it; its task failed with the reason `internal`",
        )


def check_invariants(tx: Tx) -> list[Finding]:
    """What no sequence of commands and crashes may break.  Reads everything: not for every second.

    Every task is counted in its job, once; every ended task has one accepted result for its last round;
    finish numbers have no gap; no node has more than it has room for; no queued task lies in a sleeping lane.
    """
    found = []
    for job_id, rows, counted in tx.rows("jobs_miscounted", limit=_MOST):
        found.append(_broken(str(job_id), f"job {job_id} counts {counted} tasks and has {rows}"))
    for job_id, ended, counted in tx.rows("jobs_with_wrong_ends", limit=_MOST):
        found.append(_broken(str(job_id), f"job {job_id} counts {counted} ended tasks and has {ended}"))
    for key, results in tx.rows("tasks_without_one_result", limit=_MOST):
        found.append(
            _broken(show_task(key), f"task {show_task(key)} has ended with {results} results instead of one")
        )
    for job_id, results, last, cut in tx.rows("jobs_with_gaps", limit=_MOST):
        text = f"the results of job {job_id} should go from {cut + 1} to {last} and are {results}"
        found.append(_broken(str(job_id), text))
    for lane_id, job_id, count in tx.rows("sleeping_lanes", limit=_MOST):
        text = f"lane {lane_id} of job {job_id} sleeps and has {count} queued tasks"
        found.append(_broken(str(job_id), text))
    for key, waits_on, parents in tx.rows("tasks_miscounting_parents", limit=_MOST):
        text = f"task {show_task(key)} waits for {waits_on} others and has {parents} that have not ended"
        found.append(_broken(show_task(key), text))
    return found + _overbooked(tx)


def _overbooked(tx: Tx) -> list[Finding]:
    """Nodes whose started tasks ask for more than the node has."""
    use: dict[int, list[int]] = {}
    for node_id, body, count in tx.rows("started_classes_on_nodes"):
        asks = show.demand(body)
        sums = use.setdefault(node_id, [0, 0, 0])
        for i, amount in enumerate((asks.cpus_milli, asks.memory_bytes, asks.gpus)):
            sums[i] += amount * count
    found = []
    for node_id, name, *has in tx.rows("capacities_of_nodes"):
        for word, taken, most in zip(
            ("cpus", "memory", "gpus"), use.get(node_id, [0, 0, 0]), has, strict=True
        ):
            if taken > most:
                found.append(_broken(name, f"node {name} has {most} of {word} and runs tasks with {taken}"))
    return found


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


def _broken(about: str, text: str) -> Finding:
    return Finding(kind="invariant", id=about, text=text, next="this is a fault of geres: please report it")
