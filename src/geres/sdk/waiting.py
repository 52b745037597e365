"""Waiting for many tasks: one results stream for each job, never a request for each task."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from geres.errors import Gone, NotFound, TimedOut
from geres.model.jobs import Counts
from geres.model.states import FINAL, TaskState
from geres.model.tasks import Attempt, Results, Task

if TYPE_CHECKING:
    from geres.sdk.client import Client

#: Ended and expected so far; called as they end.
Progress = Callable[[int, int], None]

UNFINISHED = ",".join(state.value for state in TaskState if state not in FINAL)
_PAGE = 10_000
_LONGEST_POLL_SECONDS = 30.0
#: While many are still open, ends are gathered for so long: a request for each end would only slow them.
_GATHER_SECONDS = 0.02
_MANY = 64


class Deadline:
    """When to give up; never for None."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._at = None if timeout is None else time.monotonic() + timeout

    def poll_seconds(self, most: float = _LONGEST_POLL_SECONDS) -> float:
        """How long the next request may wait."""
        return most if self._at is None else max(0.0, min(most, self._at - time.monotonic()))

    def check(self, what: str) -> None:
        """Raise TimedOut, saying that `what` was not reached, where the time is over."""
        if self._at is not None and time.monotonic() >= self._at:
            raise TimedOut(f"{what} after {self._timeout:g} s", timeout_seconds=self._timeout)


def follow(
    client: Client, job_id: str, after: int, *, deadline: Deadline, gather: Callable[[], bool] = lambda: False
) -> Iterator[Results]:
    """The job's results stream after `after`, page by page; empty pages where nothing ended in a while.

    Never ends by itself.  Results that were cut by retention are passed over.  Where `gather` is true
    it waits a moment before it asks again.
    """
    while True:
        deadline.check(f"job {job_id} has not got so far")
        try:
            page = client.results_page(job_id, after=after, limit=_PAGE, wait_seconds=deadline.poll_seconds())
        except Gone as gone:
            after = int(gone.facts.get("oldest", after + 1)) - 1
            continue
        yield page
        if page.items and len(page.items) < _PAGE and gather():
            time.sleep(_GATHER_SECONDS)
        after = page.last


class TaskSet:
    """Some tasks of one job, and how those of them ended that have."""

    def __init__(
        self, client: Client, job_id: str, numbers: set[int], progress: Progress | None = None
    ) -> None:
        self.job_id = job_id
        self.ended: dict[int, Attempt | Task] = {}
        self._client = client
        self._open = set(numbers)
        self._total = len(numbers)
        self._progress = progress
        self._after: int | None = None

    @property
    def done(self) -> bool:
        return not self._open

    @property
    def open_count(self) -> int:
        return len(self._open)

    def look(self) -> None:
        """Find out which have ended by now.  Raises NotFound for a task that does not exist."""
        job = self._client.job_info(self.job_id)
        self._after = job.finished  # first the cursor, then the list: an end falls into one of the two
        lowest = min(self._open, default=0)
        missing = set(self._open)
        for page in self._client.task_pages(job=self.job_id, limit=min(_PAGE, len(self._open) + 100)):
            for task in page.items:
                missing.discard(task.number)
                if task.number in self._open and task.state.final:
                    self._end(task.number, task)
            if not missing or (page.items and page.items[-1].number < lowest):
                break
        if missing and not job.counts.not_yet:
            example = f"{self.job_id}.{min(missing)}"
            raise NotFound(
                f"there is no task {example}; `geres tasks --job {self.job_id}` lists them", id=example
            )

    def advance(self, deadline: Deadline, most_seconds: float = _LONGEST_POLL_SECONDS) -> None:
        """Wait for the next ends, at most `most_seconds`."""
        assert self._after is not None
        try:
            page = self._client.results_page(
                self.job_id, after=self._after, limit=_PAGE, wait_seconds=deadline.poll_seconds(most_seconds)
            )
        except Gone:
            self.look()
            return
        self._after = page.last
        for attempt in page.items:
            number = int(attempt.task_id.partition(".")[2])
            if number in self._open:
                self._end(number, attempt)
        if page.items and len(page.items) < _PAGE and len(self._open) > _MANY:
            time.sleep(_GATHER_SECONDS)
        elif not page.items and page.open == 0 and self._open:
            self.look()  # ended, and its entry was cut from the stream meanwhile
            if not self.done:
                time.sleep(_GATHER_SECONDS)

    def _end(self, number: int, how: Attempt | Task) -> None:
        self._open.discard(number)
        self.ended[number] = how
        if self._progress:
            self._progress(self._total - len(self._open), self._total)


def wait_sets(sets: list[TaskSet], *, any_: bool, deadline: Deadline) -> None:
    """Wait until all of the sets are done; with `any_`, until one task has ended."""
    for one in sets:
        one.look()
    while True:
        waiting = [one for one in sets if not one.done]
        if not waiting or (any_ and any(one.ended for one in sets)):
            return
        deadline.check(f"{sum(one.open_count for one in waiting)} tasks have not ended")
        if any_:
            for one in waiting:
                one.advance(deadline, _LONGEST_POLL_SECONDS if len(waiting) == 1 else 0.5)
        else:
            waiting[0].advance(deadline)


def wait_job(client: Client, job_id: str, deadline: Deadline, progress: Progress | None = None) -> None:
    """Wait until the tasks that the job has now have ended; tasks that join later are not waited for."""
    latest = _latest_number(client, job_id)
    job = client.job_info(job_id)  # after the number, before the search: what ends meanwhile is in the stream
    open_now = _open_tasks(job.counts)
    if not open_now:
        return
    # An array has tasks that no list shows yet; what joins it later is waited for too.
    lowest = None if job.is_array else _lowest_open(client, job_id, latest)
    if lowest is None and not job.is_array:
        return
    total = open_now + job.finished
    seen: set[int] = set()
    pages = follow(
        client, job_id, job.finished, deadline=deadline, gather=lambda: open_now - len(seen) > _MANY
    )
    for page in pages:
        seen.update(int(attempt.task_id.partition(".")[2]) for attempt in page.items)
        if progress:
            progress(min(total, job.finished + len(seen)), total)
        if page.open == 0:
            return
        if lowest in seen:
            lowest = _lowest_open(client, job_id, latest)
            if lowest is None:
                return


def _open_tasks(counts: Counts) -> int:
    names = [state.value for state in TaskState if state not in FINAL]
    return sum(int(getattr(counts, name)) for name in names) + counts.not_yet


def _latest_number(client: Client, job_id: str) -> int:
    page = next(client.task_pages(job=job_id, limit=1))
    return page.items[0].number if page.items else 0


def _lowest_open(client: Client, job_id: str, latest: int) -> int | None:
    """The first task up to number `latest` that has not ended."""
    page = next(client.task_pages(job=job_id, state=UNFINISHED, sort="id", limit=1))
    return page.items[0].number if page.items and page.items[0].number <= latest else None
