"""The tasks of one bulk submit: a sequence that makes a handle only for what is looked at."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, overload

from geres.errors import TaskFailed
from geres.model.tasks import Acted, Attempt
from geres.sdk.task import Task, failure, is_success
from geres.sdk.waiting import Deadline, Progress, follow

if TYPE_CHECKING:
    from geres.sdk.client import Client

_MANY = 64


class Tasks(Sequence[Task]):
    """Tasks of one job, in the order in which they were submitted."""

    def __init__(self, client: Client, job_id: str, numbers: list[range], after: int) -> None:
        """`after` is a finish number of the job that none of them has reached yet."""
        self.job_id = job_id
        self._client = client
        self._parts = [part for part in numbers if part]
        self._after = after
        self._ends: list[int] = []
        total = 0
        for part in self._parts:
            total += len(part)
            self._ends.append(total)

    def __repr__(self) -> str:
        return f"<geres.Tasks {len(self)} of job {self.job_id}>"

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Task: ...

    @overload
    def __getitem__(self, index: slice) -> list[Task]: ...

    def __getitem__(self, index: int | slice) -> Task | list[Task]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"there are {len(self)} tasks, no task {index}")
        part = bisect_right(self._ends, position)
        start = self._ends[part - 1] if part else 0
        return Task(self._client, f"{self.job_id}.{self._parts[part][position - start]}")

    def ids(self) -> Iterator[str]:
        """Their ids, in order."""
        return (f"{self.job_id}.{number}" for part in self._parts for number in part)

    def ranges(self) -> list[str]:
        """The same ids, short: `12.3-9`."""
        return [
            f"{self.job_id}.{part[0]}-{part[-1]}" if len(part) > 1 else f"{self.job_id}.{part[0]}"
            for part in self._parts
        ]

    def as_ended(self, timeout: float | None = None) -> Iterator[Task]:
        """Each task once, as it ends, with its end known.  Raises TimedOut after `timeout` seconds."""
        return (
            Task(self._client, end.task_id, ended=end) for end in self._follow(timeout, None, gather=False)
        )

    def wait(
        self, timeout: float | None = None, check: bool = False, progress: Progress | None = None
    ) -> Tasks:
        """Wait until all have ended.  With `check`, raises TaskFailed where one did not succeed."""
        failed = 0
        first: Attempt | None = None
        for end in self._follow(timeout, progress, gather=True):
            if not is_success(end.state, end.reason):
                failed += 1
                first = first or end
        if check and first is not None:
            one = failure(first.task_id, first)
            raise TaskFailed(f"{failed} of {len(self)} tasks did not succeed, the first: {one}", **one.facts)
        return self

    def cancel(self, *, force: bool = False, reason: str | None = None) -> list[Acted]:
        """Ask for the end of all that have not ended; what became of each range."""
        return self._client.cancel(*self.ranges(), force=force, reason=reason)

    def _follow(self, timeout: float | None, progress: Progress | None, *, gather: bool) -> Iterator[Attempt]:
        total = left = len(self)
        if not total:
            return
        seen = [bytearray(len(part)) for part in self._parts]
        pages = follow(
            self._client,
            self.job_id,
            self._after,
            deadline=Deadline(timeout),
            gather=lambda: gather and left > _MANY,
        )
        for page in pages:
            for end in page.items:
                number = int(end.task_id.partition(".")[2])
                for part, flags in zip(self._parts, seen, strict=True):
                    if number in part and not flags[number - part.start]:
                        flags[number - part.start] = 1
                        left -= 1
                        yield end
            if progress and page.items:
                progress(total - left, total)
            if not left or (not page.items and page.open == 0):
                return
