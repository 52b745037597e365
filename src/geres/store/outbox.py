"""Queues messages for webhooks, in the transaction in which something ends."""

from __future__ import annotations

import msgspec

from geres.model.jobs import Counts
from geres.model.units import rfc3339
from geres.model.webhooks import JobEnded
from geres.store.database import Tx

_encode = msgspec.json.Encoder().encode


def tasks_ended(tx: Tx, job_id: int, *, before: int, last: int, now_us: int) -> None:
    """Of the ends of the job with finish numbers from `before` (not with it) to `last`."""
    tx.run("queue_task_messages", job_id=job_id, before=before, last=last, now_us=now_us)


def job_ended(tx: Tx, job_id: int, *, now_us: int) -> None:
    """Of the end of the job, as it stands now: a rerun may open it again before the message is sent."""
    row = tx.one("job_of_message", job_id=job_id)
    if row is None:
        return
    message = JobEnded(
        id="",
        at=rfc3339(row["ended_at"]) or "",
        tenant=row["tenant"],
        job_id=str(job_id),
        name=row["name"],
        user=row["submitted_by"],
        state=row["state"],
        outcome=row["outcome"],
        reason=row["reason"],
        counts=Counts(**{name: row[name] for name in ("succeeded", "failed", "cancelled", "skipped")}),
        meta=msgspec.json.decode(row["meta"]),
    )
    tx.run("queue_job_message", job_id=job_id, body=_encode(message).decode(), now_us=now_us)
