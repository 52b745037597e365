"""What loops do a piece at a time: wake tasks whose time has come, forget what is old."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from geres.model.wire import AttemptKey
from geres.store.database import Tx

_PIECE = 1000
_KEEP_KEYS_US = 24 * 3600 * 1_000_000


def wake(tx: Tx, *, now_us: int, limit: int = _PIECE) -> list[int]:
    """Queue the tasks whose time has come.  Returns them; `limit` of them means that there are more."""
    ids = sorted(row[0] for row in tx.rows("tasks_to_wake", now_us=now_us, limit=limit))
    if ids:
        tx.run("wake_tasks", task_ids=ids, now_us=now_us)
        tx.run("wake_lanes_of_tasks", task_ids=ids)
    return ids


def shorten_retries(tx: Tx, *, now_us: int, limit: int = _PIECE) -> bool:
    """After a clock was set back: let no retry wait for that time to come again.  True where there are more.

    What an operator or user wants to start at a time of day is left alone.
    """
    ids = [row[0] for row in tx.rows("retries_from_a_time_to_come", now_us=now_us, limit=limit)]
    if ids:
        tx.run("retry_now", task_ids=ids, now_us=now_us)
    return len(ids) == limit


def next_wake_us(tx: Tx) -> int | None:
    """When the next task's time comes; None where none waits for a time."""
    found = tx.value("next_wake")
    return None if found is None else int(found)


def forget_keys(tx: Tx, *, now_us: int, limit: int = _PIECE) -> int:
    """Forget Idempotency-Keys after a day.  Returns how many."""
    return tx.run("forget_idempotency", before_us=now_us - _KEEP_KEYS_US, limit=limit)


@dataclass
class Forgotten:
    """What a piece of retention removed."""

    tasks: int = 0
    blobs: list[str] = field(default_factory=list)  #: keys that nothing names any more
    more: bool = False


def forget_tasks(tx: Tx, *, before_us: int, limit: int = _PIECE) -> Forgotten:
    """Remove tasks that ended before a time, with their attempts, from the front of their results streams.

    A task that something open still waits for, or whose result is behind one that stays, stays too.
    """
    done = Forgotten()
    for job_id, cut in tx.rows("jobs_to_cut", before_us=before_us, limit=10):
        # The stream stays without a gap: it is cut up to the first result that is to be kept.
        first_kept = tx.value("first_kept_result", job_id=job_id, before_us=before_us)
        last = tx.value("last_result_to_cut", job_id=job_id, after=cut, before=first_kept, limit=limit)
        if last is None:
            continue
        # Tasks before their job, as everybody; where another server has cut this piece meanwhile, it is done.
        ids = [row[0] for row in tx.rows("tasks_to_forget", job_id=job_id, after=cut, last=last)]
        blobs = tx.rows("blobs_to_cut", job_id=job_id, after=cut, last=last)
        if not tx.run("cut_results", job_id=job_id, before=cut, last=last):
            continue
        done.blobs += [key for row in blobs for key in row if key is not None]
        counts = {state: int(n) for state, n in tx.rows("count_by_state", task_ids=ids)} if ids else {}
        tx.run("drop_attempts", job_id=job_id, last=last)
        if ids:
            tx.run("drop_attempts_of_tasks", task_ids=ids)
            tx.run("drop_dependencies", task_ids=ids)
            tx.run("drop_tasks", task_ids=ids)
            four = {name: counts.get(name, 0) for name in ("succeeded", "failed", "cancelled", "skipped")}
            tx.run("uncount_tasks", job_id=job_id, n=len(ids), **four)
        done.tasks += len(ids)
        done.more = True
    return done


def forget_jobs(tx: Tx, *, before_us: int, limit: int = 100) -> list[int]:
    """Remove jobs that ended before a time and have no tasks left.  Returns them."""
    ids = [row[0] for row in tx.rows("jobs_to_forget", before_us=before_us, limit=limit)]
    if ids:
        tx.run("drop_limits_of_jobs", keys=[str(job_id) for job_id in ids])
        tx.run("drop_lanes", job_ids=ids)
        tx.run("drop_specs", job_ids=ids)
        tx.run("drop_jobs", job_ids=ids)
    return ids


def store_began_us(tx: Tx) -> int:
    """When this store was made."""
    return int(tx.value("store_began"))


def unwanted_outputs(tx: Tx, attempts: Mapping[str, AttemptKey]) -> list[str]:
    """Which of these blobs, each with the attempt that wrote it, nothing names and nothing ever will.

    An attempt that is still on a node may name its blob yet.  Those are looked at first: one whose end is
    stored between the two looks is found by the second.
    """
    task_ids = sorted({task for task, _ in attempts.values()})
    live = {(task, attempt) for task, attempt in tx.rows("attempts_on_nodes", task_ids=task_ids)}
    named = {key for row in tx.rows("blobs_of_tasks", task_ids=task_ids) for key in row}
    return [key for key, attempt in attempts.items() if attempt not in live and key not in named]
