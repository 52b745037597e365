"""Wakes the requests that wait for a job's results or a task's end.

A ring is a hint; those who wait ask the store again after `POLL_SECONDS` at the latest, so that a change made
by another server, or a lost ring, costs a moment and never an answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from geres.aio import Doorbell
from geres.model.ids import job_of
from geres.server.hints import Hints

POLL_SECONDS = 1.0
#: Rings of a job that come closer than this are a stream: its readers may gather for a moment.
_STREAM_SECONDS = 0.02
_MOST_REMEMBERED = 10_000


class Waiters:
    """Doorbells by job and by task; only those that somebody waits at exist.  For one event loop."""

    def __init__(self, hints: Hints | None = None) -> None:
        """`hints` carries what happens here to those who wait at other servers."""
        self._hints = hints or Hints(0)
        self._jobs: dict[int, set[Doorbell]] = {}
        self._tasks: dict[int, set[Doorbell]] = {}
        self._rung_at: dict[int, float] = {}
        self._streaming: set[int] = set()

    def job_changed(self, job_ids: Iterable[int]) -> None:
        """Something ended in these jobs, or one of them changed its state."""
        job_ids = list(job_ids)
        self.job_changed_here(job_ids)
        self._hints.changed(job_ids)

    def job_changed_here(self, job_ids: Iterable[int]) -> None:
        now = time.monotonic()
        if len(self._rung_at) > _MOST_REMEMBERED:
            self._rung_at.clear()
            self._streaming.clear()
        for job_id in job_ids:
            if now - self._rung_at.get(job_id, 0.0) < _STREAM_SECONDS:
                self._streaming.add(job_id)
            else:
                self._streaming.discard(job_id)
            self._rung_at[job_id] = now
            for bell in self._jobs.get(job_id, ()):
                bell.ring()

    def task_ended(self, keys: Iterable[int]) -> None:
        """These tasks changed their state."""
        keys = list(keys)
        self.task_ended_here(keys)
        self._hints.changed(keys=keys)

    def tasks_changed_here(self, job_ids: Iterable[int]) -> None:
        """Any task of these jobs may have changed its state."""
        jobs = set(job_ids)
        self.task_ended_here([key for key in self._tasks if job_of(key) in jobs])

    def task_ended_here(self, keys: Iterable[int]) -> None:
        if not self._tasks:
            return
        for key in self._tasks.keys() & set(keys):
            for bell in self._tasks[key]:
                bell.ring()

    def is_streaming(self, job_id: int) -> bool:
        """True while ends of this job come so fast that answering each would cost more than it gives."""
        return (
            job_id in self._streaming
            and time.monotonic() - self._rung_at.get(job_id, 0.0) < 5 * _STREAM_SECONDS
        )

    @contextmanager
    def job(self, job_id: int) -> Iterator[Doorbell]:
        """A bell that rings when the job changes.  Take it before looking at the store."""
        with _hung(self._jobs, job_id) as bell:
            yield bell

    @contextmanager
    def task(self, key: int) -> Iterator[Doorbell]:
        """A bell that rings when the task changes.  Take it before looking at the store."""
        with _hung(self._tasks, key) as bell:
            yield bell

    def ring_all(self) -> None:
        """Wake everybody: the server stops, or anything may have happened."""
        for bells in (*self._jobs.values(), *self._tasks.values()):
            for bell in bells:
                bell.ring()


@contextmanager
def _hung(bells: dict[int, set[Doorbell]], key: int) -> Iterator[Doorbell]:
    bell = Doorbell()
    bells.setdefault(key, set()).add(bell)
    try:
        yield bell
    finally:
        bells[key].discard(bell)
        if not bells[key]:
            del bells[key]
