"""A job's results stream: its ends in the order of their finish numbers, without a gap."""

from __future__ import annotations

from geres.errors import Gone, Invalid, NotFound
from geres.model.callers import Caller
from geres.model.tasks import Results
from geres.store import show
from geres.store.below import reached, sees_job
from geres.store.database import Tx

MOST_AT_ONCE = 10_000


def after(tx: Tx, caller: Caller, job_id: int, cursor: int, *, limit: int) -> Results:
    """At most `limit` results behind the cursor, in order; empty where there are none yet.

    Raises NotFound, Invalid, and Gone for a cursor before the oldest result that is kept.
    """
    if not 1 <= limit <= MOST_AT_ONCE:
        raise Invalid(f"limit: {limit} is not between 1 and {MOST_AT_ONCE}", field="limit")
    job = tx.one("job_state", job_id=job_id, tenant_id=caller.tenant_id)
    if job is None or not sees_job(tx, caller, job_id):
        raise NotFound(f"there is no job {job_id}; see `geres jobs`", id=str(job_id))
    if not 0 <= cursor <= job["finish_seq"]:
        raise Invalid(f"after: {cursor} is not between 0 and {job['finish_seq']}", field="after")
    if cursor < job["results_cut"]:
        oldest = job["results_cut"] + 1
        raise Gone(
            f"the results of job {job_id} up to {job['results_cut']} are no longer kept; go on after that",
            oldest=oldest,
            after=job["results_cut"],
        )
    rows = (
        tx.all("results_after", job_id=job_id, after=cursor, limit=limit)
        if cursor < job["finish_seq"]
        else []
    )
    within = reached(tx, caller, {row["task_id"] for row in rows})
    items = [
        show.attempt(row, name=row["name"], item=row["item"]) for row in rows if row["task_id"] in within
    ]
    return Results(
        items=items,
        last=rows[-1]["finish_no"] if rows else cursor,
        finished=job["finish_seq"],
        open=job["open"],
        job_state=job["state"],
    )
