"""Counts of tasks by state, from the jobs' own counters; only what waits or runs is counted in rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from geres.model.jobs import Counts
from geres.store.database import Row, Tx


def count_states(tx: Tx, tenant_id: int, job_id: int | None = None) -> Counts:
    """Tasks by state of one job, or of the whole tenant."""
    if job_id is not None:
        if tx.one("job_state", job_id=job_id, tenant_id=tenant_id) is None:
            return Counts()
        return counts_of_jobs(tx, [job_id]).get(job_id, Counts())
    totals = tx.one("job_totals", tenant_id=tenant_id) or {}
    live = {row["state"]: row["n"] for row in tx.all("waiting_totals", tenant_id=tenant_id)}
    live |= {row["state"]: row["n"] for row in tx.all("on_node_totals", tenant_id=tenant_id)}
    return _counts(totals | {"task_count": totals["rows"]}, live)


def counts_of_jobs(tx: Tx, job_ids: Sequence[int]) -> dict[int, Counts]:
    """Tasks by state of each of these jobs."""
    if not job_ids:
        return {}
    wanted = list(job_ids)
    live: dict[int, dict[str, int]] = defaultdict(dict)
    for statement in ("waiting_of_jobs", "on_node_of_jobs"):
        for row in tx.all(statement, job_ids=wanted):
            live[row["job_id"]][row["state"]] = row["n"]
    return {row["id"]: _counts(row, live[row["id"]]) for row in tx.all("counts_of_jobs", job_ids=wanted)}


def _counts(totals: Row, live: dict[str, int]) -> Counts:
    ended = {name: int(totals[name]) for name in ("succeeded", "failed", "cancelled", "skipped")}
    queued = int(totals["task_count"]) - sum(ended.values()) - sum(live.values())
    return Counts(queued=max(queued, 0), not_yet=int(totals["not_yet"]), **live, **ended)
