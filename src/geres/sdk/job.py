"""A job as a program holds it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from geres.errors import TaskFailed
from geres.model import jobs as model
from geres.model.states import JobState, Outcome
from geres.model.tasks import Acted, Attempt, Why
from geres.sdk.task import Task, failure
from geres.sdk.waiting import Deadline, Progress, follow, wait_job

if TYPE_CHECKING:
    from geres.sdk.client import Client


class Job:
    """One job.  Its properties ask the server while it has not ended."""

    __slots__ = ("_client", "_info", "id")

    def __init__(self, client: Client, job_id: str, info: model.Job | None = None) -> None:
        self.id = job_id
        self._client = client
        self._info = info

    def __repr__(self) -> str:
        return f"<geres.Job {self.id}{f' {self._info.state}' if self._info else ''}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def info(self) -> model.Job:
        """All that the API says about it."""
        if self._info is None or not self._info.state.final:
            self.refresh()
        assert self._info is not None
        return self._info

    @property
    def name(self) -> str | None:
        return self._info.name if self._info else self.info.name

    @property
    def state(self) -> JobState:
        return self.info.state

    @property
    def outcome(self) -> Outcome | None:
        return self.info.outcome

    @property
    def counts(self) -> model.Counts:
        """Its tasks by state."""
        return self.info.counts

    @property
    def warnings(self) -> list[str]:
        """What the server said when it was made."""
        return self._info.warnings if self._info else []

    def refresh(self) -> Job:
        """Ask the server again."""
        self._info = self._client.job_info(self.id)
        self.id = self._info.id
        return self

    def submit(self, command: list[str] | None = None, **options: Any) -> Task:
        """Submit one more task to it."""
        return self._client.submit(command, job=self, **options)

    def tasks(self, **filters: Any) -> Iterator[Task]:
        """Its tasks, newest first; `filters` as in `Client.tasks`."""
        return self._client.tasks(job=self.id, **filters)

    def wait(
        self, timeout: float | None = None, check: bool = False, progress: Progress | None = None
    ) -> Job:
        """Wait until the tasks that it has now have ended.  Raises TimedOut after `timeout` seconds.

        With `check`, raises TaskFailed where one of its tasks did not succeed.
        """
        wait_job(self._client, self.id, Deadline(timeout), progress)
        if check and (worst := self.last_failed()) is not None:
            one = failure(worst.id, worst.info)
            raise TaskFailed(f"job {self.id}: {one}", **one.facts)
        return self

    def results(self, after: int = 0) -> Iterator[Attempt]:
        """The ends that are there now, in the order of their finish numbers, from `after` on; no waiting."""
        while (page := self._client.results_page(self.id, after=after, limit=10_000)).items:
            yield from page.items
            after = page.last

    def as_ended(self, after: int = 0, timeout: float | None = None) -> Iterator[Task]:
        """Its tasks as they end, each end once, until none is open.  `after` goes on from a finish number.

        A task that is rerun comes again.  Raises TimedOut after `timeout` seconds.
        """
        for page in follow(self._client, self.id, after, deadline=Deadline(timeout)):
            for end in page.items:
                yield Task(self._client, end.task_id, ended=end)
            if page.open == 0 and page.last >= page.finished:
                return

    def rerun(self, *, failed: bool = False, **changes: Any) -> list[Acted]:
        """Run its ended tasks again, with `failed` only those that failed, with `changes` applied first."""
        return self._client.rerun(self, failed=failed, **changes)

    def close(self) -> Job:
        """Take no more tasks; those that it has still run, then it is completed."""
        return self._act("close")

    def cancel(self, *, reason: str | None = None) -> Job:
        """End all its tasks, queued ones included, and the job."""
        return self._act("cancel", model.JobAction(reason=reason))

    def disable(self, *, running: str = "wait") -> Job:
        """Start no more tasks.  `running`: `wait` lets running ones end, `requeue` and `terminate` do not."""
        return self._act("disable", model.JobAction(running=running))  # type: ignore[arg-type]

    def enable(self) -> Job:
        return self._act("enable")

    def why(self) -> Why:
        """Why its tasks wait or failed, in groups."""
        return self._client.job_why(self.id)

    def last_failed(self) -> Task | None:
        """The last of its tasks, in the order of their numbers, that did not succeed."""
        for page in self._client.task_pages(job=self.id, state="failed,cancelled,skipped", limit=100):
            for info in page.items:
                task = Task(self._client, info.id, info=info)
                if not task.succeeded:
                    return task
        return None

    def _act(self, action: str, body: model.JobAction | None = None) -> Job:
        self._info = self._client.job_action(self.id, action, body)
        return self
