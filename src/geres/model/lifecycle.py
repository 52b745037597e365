"""What follows when an attempt ends: a retry, a requeue or the end of the task.  Pure."""

from __future__ import annotations

from typing import NamedTuple

from geres.model.states import Reason, TaskState
from geres.model.tasks import Retry, TaskSpec
from geres.model.wire import Ended

#: A task that has lost its node this often fails with `crash_limit`.
MOST_LOST = 3
#: Reasons of an end that was the node's and not the task's.
LOST = frozenset({Reason.NODE_LOST, Reason.NODE_REBOOTED, Reason.SUPERVISOR_LOST})


class Before(NamedTuple):
    """What is known of the task when its attempt ends."""

    asked: str | None  #: cancel or requeue, where somebody asked
    retry_count: int
    lost_count: int


class Next(NamedTuple):
    """Where the task goes.  The counts are to be added."""

    state: TaskState
    reason: str | None
    message: str | None
    not_before_us: int | None = None
    retry: int = 0
    requeue: int = 0
    lost: int = 0

    @property
    def final(self) -> bool:
        return self.state.final


def after_end(ended: Ended, before: Before, spec: TaskSpec, on_lost: str | None, *, now_us: int) -> Next:
    """Decide.  `on_lost` is the job's, which goes before the task's own."""
    if ended.outcome == "given_back":
        return _given_back(ended, before)
    if ended.outcome == "succeeded":
        return Next(TaskState.SUCCEEDED, ended.reason, ended.message)
    if ended.outcome == "skipped":
        return Next(TaskState.SKIPPED, ended.reason or Reason.UP_TO_DATE, ended.message)
    if before.asked == "requeue":
        return Next(TaskState.QUEUED, Reason.REQUESTED, "stopped and queued again on request", requeue=1)
    if ended.outcome == "cancelled" or before.asked == "cancel":
        return Next(TaskState.CANCELLED, ended.reason or Reason.REQUESTED, ended.message)
    if ended.reason == Reason.NODE_STOPPED and (on_lost or spec.on_lost) != "fail":
        return Next(TaskState.QUEUED, ended.reason, ended.message, requeue=1)
    if ended.reason in LOST:
        return _after_loss(ended, before, on_lost or spec.on_lost)
    if _may_retry(spec.retry, before.retry_count):
        not_before = now_us + retry_delay_us(spec.retry, before.retry_count)
        state = TaskState.BLOCKED if not_before > now_us else TaskState.QUEUED
        return Next(state, ended.reason, ended.message, not_before if not_before > now_us else None, retry=1)
    return Next(TaskState.FAILED, ended.reason, ended.message)


def _given_back(ended: Ended, before: Before) -> Next:
    """It never started: back to its place, charged to nobody."""
    if before.asked == "cancel":
        return Next(TaskState.CANCELLED, Reason.REQUESTED, ended.message)
    if before.asked == "hold":
        return Next(TaskState.HELD, Reason.REQUESTED, None)
    return Next(TaskState.QUEUED, None, None)


def _after_loss(ended: Ended, before: Before, on_lost: str) -> Next:
    if on_lost == "fail":
        return Next(TaskState.FAILED, ended.reason, ended.message, lost=1)
    if before.lost_count + 1 >= MOST_LOST:
        text = f"lost its node {before.lost_count + 1} times: {ended.message or ended.reason}"
        return Next(TaskState.FAILED, Reason.CRASH_LIMIT, text, lost=1)
    return Next(TaskState.QUEUED, ended.reason, ended.message, requeue=1, lost=1)


def _may_retry(retry: Retry, done: int) -> bool:
    return retry.most < 0 or done < retry.most


def retry_delay_us(retry: Retry, done: int) -> int:
    """Microseconds before retry number `done + 1`: the first delay, doubled each time, up to the most."""
    return int(min(retry.delay_seconds * 2.0 ** min(done, 60), retry.most_delay_seconds) * 1e6)
