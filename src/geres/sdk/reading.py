"""What can be asked of a cluster: one method for a route, answers as the API's own types."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from geres.errors import Invalid, NotFound
from geres.model import jobs as job_model
from geres.model import nodes as node_model
from geres.model import servers as server_model
from geres.model import tasks as task_model
from geres.sdk.http import Transport, no_text
from geres.sdk.waiting import Deadline

_LONGEST_POLL_SECONDS = 30.0
_PLAIN = re.compile(r"[A-Za-z0-9._~-]+")


class Reader:
    """The questions of a client."""

    transport: Transport

    def find(self, what: str) -> job_model.Found:
        """What an id or name as typed means: a job, or tasks of one job.  Raises NotFound."""
        return self.transport.get("/v1/find", job_model.Found, id=check_text(what))

    def task_pages(
        self, *, limit: int = 1000, kind: type[Any] = task_model.TaskPage, **query: Any
    ) -> Iterator[Any]:
        """Pages of at most `limit` tasks; `count=True` fills `matched`.

        With `fields="id,state"` a task has only these, and `kind` is PartPage or another that takes them.
        """
        return self._pages("/v1/tasks", kind, limit=limit, **query)

    def job_pages(
        self, *, limit: int = 1000, kind: type[Any] = job_model.JobPage, **query: Any
    ) -> Iterator[Any]:
        return self._pages("/v1/jobs", kind, limit=limit, **query)

    def nodes(self) -> list[node_model.Node]:
        """All nodes."""
        return self.transport.get("/v1/nodes", list[node_model.Node])

    def node(self, name: str) -> node_model.NodeDetail:
        return self.transport.get(f"/v1/nodes/{path_part(name)}", node_model.NodeDetail)

    def servers(self) -> list[server_model.Server]:
        """The servers that are there."""
        return self.transport.get("/v1/servers", list[server_model.Server])

    def summary(self) -> node_model.Summary:
        """Counts of tasks, jobs and nodes by state."""
        return self.transport.get("/v1/summary", node_model.Summary)

    def whoami(self) -> node_model.WhoAmI:
        return self.transport.get("/v1/whoami", node_model.WhoAmI)

    def doctor(self) -> list[dict[str, Any]]:
        """What is wrong in the store: records set aside, broken invariants; empty where all is well."""
        return self.transport.get("/v1/doctor", list[dict[str, Any]])

    def task_info(self, task_id: str) -> task_model.TaskDetail:
        """All about one task as it stands."""
        return self.transport.get(f"/v1/tasks/{path_part(task_id)}", task_model.TaskDetail)

    def job_info(self, job_id: str, *, usage: bool = False) -> job_model.JobDetail:
        """All about one job as it stands; `job_id` may be its name.  `usage`: with what its attempts used."""
        return self.transport.get(f"/v1/jobs/{path_part(job_id)}", job_model.JobDetail, usage=usage or None)

    def job_etag(self, job_id: str) -> str:
        return f'"{self.job_info(job_id).version}"'

    def job_why(self, job_id: str) -> task_model.Why:
        return self.transport.get(f"/v1/jobs/{path_part(job_id)}/why", task_model.Why)

    def results_page(
        self, job_id: str, *, after: int = 0, limit: int = 1000, wait_seconds: float = 0.0
    ) -> task_model.Results:
        """A piece of a job's results stream; waits up to `wait_seconds` where nothing has come yet."""
        return self.transport.get(
            f"/v1/jobs/{path_part(job_id)}/results",
            task_model.Results,
            timeout=wait_seconds + 30,
            after=after,
            limit=limit,
            wait_seconds=round(wait_seconds, 3) or None,
        )

    def logs(
        self,
        task_id: str,
        *,
        stream: Literal["stdout", "stderr"] = "stdout",
        attempt: int | None = None,
        offset: int | None = None,
        tail: int | None = None,
    ) -> Iterator[bytes]:
        """A task's output in pieces: what is kept, or what there is so far; `tail` gives the last lines."""
        return self.transport.stream(
            f"/v1/tasks/{path_part(task_id)}/logs", stream=stream, attempt=attempt, offset=offset, tail=tail
        )

    def result(self, task_id: str) -> Any:
        """The value that a task left; None for a command."""
        try:
            return msgspec.json.decode(self.transport.call("GET", f"/v1/tasks/{path_part(task_id)}/result"))
        except NotFound:
            self.task_info(task_id)  # no such task is an error, no value is none
            return None

    def wait_one(self, task_id: str, timeout: float | Deadline | None = None) -> task_model.TaskDetail:
        """Wait for one task and return all about it.  Raises TimedOut."""
        deadline = timeout if isinstance(timeout, Deadline) else Deadline(timeout)
        while True:
            seconds = deadline.poll_seconds(_LONGEST_POLL_SECONDS)
            info = self.transport.get(
                f"/v1/tasks/{path_part(task_id)}",
                task_model.TaskDetail,
                timeout=seconds + 30,
                wait_seconds=round(seconds, 3),
            )
            if info.state.final:
                return info
            deadline.check(f"task {task_id} is still {info.state.value}")

    def _pages(self, path: str, kind: type[Any], **query: Any) -> Iterator[Any]:
        cursor: str | None = None
        while True:
            page = self.transport.get(path, kind, cursor=cursor, timeout=60.0, **query)
            yield page
            cursor = page.next_cursor
            if cursor is None:
                return


def check_text(name: object) -> str:
    if not isinstance(name, str):
        raise Invalid(f"id: {name!r} is no text; ids are texts, so write it in quotes", field="id")
    return name


def path_part(name: str) -> str:
    if _PLAIN.fullmatch(name):
        return name
    from urllib.parse import quote  # names are nearly always plain

    if not name:
        raise Invalid("id: is empty", field="id")
    try:
        return quote(name, safe="")
    except UnicodeEncodeError as error:
        raise no_text(error) from None
