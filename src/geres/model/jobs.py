"""What a job is: a group of tasks with defaults for them; an array is a job made of one command."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from geres.model.states import JobState, Outcome
from geres.model.tasks import KnownSpec, TaskSpec, Usage

DEFAULT_JOB = "default"


class ArraySpec(Struct, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    """One command over a range or a list; exactly one of `range` and `items`."""

    range: str | None = None  #: 1-10, 1-10:2; the task's number is the index
    items: list[str] | None = None  #: tasks 1..n, one item each


class JobSpec(Struct, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/jobs.  With `array` the job gets its tasks at once, of the command in `task`."""

    name: str | None = None
    priority: int = 0  #: for tasks that name none
    max_parallel: int | None = None  #: never more than this run at once
    meta: dict[str, str] = {}
    on_all_complete: Literal["none", "terminate"] = "none"  #: terminate: completed when all tasks have ended
    time_limit_seconds: float | None = None  #: for the job as a whole, from its first start
    on_lost: Literal["retry", "fail"] | None = None  #: for all its tasks
    task: TaskSpec | None = None  #: defaults of its tasks; of an array, the task
    array: ArraySpec | None = None
    after: list[str] = []  #: ids of tasks or jobs that must succeed before the tasks of the array start


class KnownJobSpec(JobSpec, kw_only=True, forbid_unknown_fields=False):
    """A JobSpec as it is read: what a newer program has put into it is passed over, not refused."""

    task: KnownSpec | None = None


class Counts(Struct, frozen=True, kw_only=True):
    """Tasks by state.  `not_yet`: tasks of an array that have no row of their own yet (they wait)."""

    blocked: int = 0
    queued: int = 0
    held: int = 0
    assigned: int = 0
    running: int = 0
    suspended: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    skipped: int = 0
    not_yet: int = 0


class Job(Struct, kw_only=True):
    """A job as the API shows it."""

    id: str
    name: str | None
    state: JobState
    reason: str | None = None
    outcome: Outcome | None = None
    state_since: str
    previous_state: JobState | None = None
    previous_since: str | None = None
    tenant: str
    submitted_by: str
    priority: int
    max_parallel: int | None = None
    meta: dict[str, str] = {}
    on_all_complete: str = "none"
    time_limit_seconds: float | None = None
    created_at: str
    ended_at: str | None = None
    counts: Counts = Counts()
    task_count: int = 0
    finished: int = 0  #: the latest finish number of its results stream
    is_array: bool = False
    version: int = 1
    warnings: list[str] = []  #: only in the answer of a creation


class JobDetail(Job, kw_only=True):
    spec: KnownJobSpec
    usage: Usage | None = None  #: of all its attempts; the peak is that of the largest


class JobPage(Struct, kw_only=True):
    items: list[Job]
    next_cursor: str | None = None
    matched: int | None = None


class JobPatch(Struct, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    """Body of PATCH /v1/jobs/{id}; what is None stays."""

    priority: int | None = None
    max_parallel: int | None = None  #: 0 takes the cap away
    meta: dict[str, str] | None = None
    on_all_complete: Literal["none", "terminate"] | None = None


class JobAction(Struct, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/jobs/{id}/close, cancel, disable and enable."""

    reason: str | None = None
    running: Literal["wait", "requeue", "terminate"] = "wait"  #: what disable does with running tasks


class Found(Struct, omit_defaults=True, kw_only=True):
    """What an id as typed means: a job, or tasks of one job."""

    kind: Literal["job", "task"]
    job_id: str
    task_ids: list[str] = []
