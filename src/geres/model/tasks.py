"""What a task is: the specification that people submit, the task and its attempts as the API shows them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from geres.model.states import TaskState

LOWEST_PRIORITY, HIGHEST_PRIORITY = -1000, 1000
PRIORITIES = {"low": -500, "normal": 0, "medium": 0, "high": 500}
DEFAULT_POOL = "default"
#: Kept of a stream; beyond it its first MiB and its end.
DEFAULT_OUTPUT_LIMIT_BYTES = 64 << 20
#: What travels inside an end report, a stream.
INLINE_OUTPUT_BYTES = 16 << 10


class Retry(Struct, omit_defaults=True, frozen=True, forbid_unknown_fields=True):
    """When a failed task is tried again."""

    most: int = 0  #: retries after the first try; -1 for no limit
    delay_seconds: float = 0.0  #: before the first retry; doubles each time
    most_delay_seconds: float = 300.0


class TaskSpec(Struct, frozen=True, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    """What to run and what it needs.  The tasks of a job share one where nothing but the command differs."""

    command: list[str] | None = None  #: argv, run as it is
    shell: str | None = None  #: a line for /bin/sh, instead of `command`
    name: str | None = None  #: for people to see
    id: str | None = None  #: a name, unique among the unfinished tasks of the job
    if_exists: Literal["fail", "attach"] = "fail"  #: when `id` is taken: refuse, or answer with that task
    meta: dict[str, str] = {}
    pool: str = DEFAULT_POOL
    priority: int | None = None  #: -1000..1000, larger first; None takes the job's
    cpus: float = 1.0
    memory_bytes: int = 0  #: 0: not asked for, not limited
    gpus: int = 0
    resources: dict[str, int] = {}  #: named counts, like {"disk_io": 3}
    exclusive: bool = False  #: the node for itself
    nodelist: list[str] = []  #: only these nodes: names or globs
    match: str | None = None  #: only nodes for which this expression is true
    see_path: str | None = None  #: only nodes that see this path of the submitter's host (see `host`)
    host: str | None = None  #: the host id where `see_path` was seen
    cwd: str | None = None  #: absolute path; None for the task's own folder
    env: dict[str, str] = {}
    umask: int | None = None
    stdin: bool = False  #: True: a pipe that a client may write to; False: empty
    stdout: str | None = None  #: a path on the node instead of kept output
    stderr: str | None = None
    append: bool = False  #: append to `stdout` and `stderr` instead of replacing them
    merge: bool = False  #: stderr goes where stdout goes
    keep_output: bool = True  #: False: thrown away
    output_limit_bytes: int = DEFAULT_OUTPUT_LIMIT_BYTES
    disk_bytes: int = 0  #: allowance for its folder and outputs; 0: the node's default
    time_limit_seconds: float | None = None
    grace_seconds: float = 20.0  #: between TERM and KILL
    retry: Retry = Retry()
    on_lost: Literal["retry", "fail"] = "retry"
    #: When its node loses contact.  run: it goes on, and is given to another when the lease has ended; stop:
    #: it is ended before that; keep: it goes on and is given to nobody.  None: what its node says.
    on_disconnect: Literal["run", "stop", "keep"] | None = None
    retain_seconds: float = 7 * 86400.0  #: how long its folder stays on the node
    hold: bool = False
    not_before: str | None = None  #: RFC 3339
    max_parallel_label: str | None = None  #: counts against the limit of this label
    handler: str | None = None  #: a task type instead of a command
    params: Any = None  #: JSON for the handler
    user: str | None = None  #: the account to run as, where the node allows it; None for the submitter's
    group: str | None = None  #: its group, one of the account's; None for the account's own


class KnownSpec(TaskSpec, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """A specification as it is read: what a newer program has put into it is passed over, not refused."""


class TaskRow(Struct, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    """One task of a bulk submit: what differs from the request's defaults.

    A field that is left out takes the default; given, it replaces it whole, but for `meta` and
    `env`, which are merged.
    """

    command: list[str] | UnsetType = UNSET
    shell: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    id: str | UnsetType = UNSET
    if_exists: Literal["fail", "attach"] | UnsetType = UNSET
    meta: dict[str, str] | UnsetType = UNSET
    pool: str | UnsetType = UNSET
    priority: int | UnsetType = UNSET
    cpus: float | UnsetType = UNSET
    memory_bytes: int | UnsetType = UNSET
    gpus: int | UnsetType = UNSET
    resources: dict[str, int] | UnsetType = UNSET
    exclusive: bool | UnsetType = UNSET
    nodelist: list[str] | UnsetType = UNSET
    match: str | UnsetType = UNSET
    cwd: str | UnsetType = UNSET
    env: dict[str, str] | UnsetType = UNSET
    stdout: str | UnsetType = UNSET
    stderr: str | UnsetType = UNSET
    append: bool | UnsetType = UNSET
    merge: bool | UnsetType = UNSET
    time_limit_seconds: float | UnsetType = UNSET
    grace_seconds: float | UnsetType = UNSET
    retry: Retry | UnsetType = UNSET
    on_lost: Literal["retry", "fail"] | UnsetType = UNSET
    on_disconnect: Literal["run", "stop", "keep"] | UnsetType = UNSET
    retain_seconds: float | UnsetType = UNSET
    output_limit_bytes: int | UnsetType = UNSET
    disk_bytes: int | UnsetType = UNSET
    hold: bool | UnsetType = UNSET
    not_before: str | UnsetType = UNSET
    max_parallel_label: str | UnsetType = UNSET


class SubmitTask(Struct, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/tasks."""

    task: TaskSpec
    job: str | None = None  #: id or name; None for the caller's job `default`
    after: list[str] = []  #: ids of tasks or jobs that must succeed first


class SubmitBulk(Struct, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/tasks:bulk, at most 100,000 tasks."""

    tasks: list[TaskRow]
    defaults: TaskSpec = TaskSpec()
    job: str | None = None
    atomic: bool = (
        True  #: True: one bad task refuses all; False: the good ones are stored, the bad ones listed
    )
    after: list[str] = []  #: ids of tasks or jobs that must succeed before any of them starts


class BulkError(Struct, omit_defaults=True):
    index: int  #: position in the request, from 0
    code: str
    message: str


class BulkAnswer(Struct):
    """The accepted tasks have the numbers first_number .. first_number + count - 1, in input order."""

    job_id: str
    first_number: int
    count: int
    errors: list[BulkError] = []


class Usage(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What an attempt used.  `max_rss_bytes` is None where it is not above the supervisor's own."""

    wall_seconds: float = 0.0
    user_seconds: float = 0.0
    system_seconds: float = 0.0
    max_rss_bytes: int | None = None
    minor_faults: int = 0
    major_faults: int = 0
    blocks_in: int = 0
    blocks_out: int = 0
    voluntary_switches: int = 0
    involuntary_switches: int = 0


class Attempt(Struct, kw_only=True):
    """One try of a task, once it has ended.  Entries of a results stream carry their `finish_no`."""

    task_id: str
    attempt: int  #: 0: the task ended without ever running
    state: TaskState
    finish_no: int | None = (
        None  #: place in the job's results stream, from 1; None where another try followed
    )
    reason: str | None = None  #: one of Reason, or of a newer program's
    message: str | None = None  #: one sentence about the reason
    exit_code: int | None = None
    signal: int | None = None
    node: str | None = None
    assigned_at: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    usage: Usage = Usage()
    stdout_bytes: int = 0  #: written by the task; what is kept may be less
    stderr_bytes: int = 0
    name: str | None = None
    item: str | None = None


class Task(Struct, kw_only=True):
    """A task as the API shows it."""

    id: str
    job_id: str
    number: int
    state: TaskState
    reason: str | None = None  #: one of Reason, or of a newer program's
    message: str | None = None
    state_since: str
    previous_state: TaskState | None = None
    previous_since: str | None = None
    name: str | None = None
    submitted_by: str
    tenant: str
    pool: str
    priority: int
    command: list[str] | None = None  #: with placeholders replaced
    shell: str | None = None
    item: str | None = None
    index: int | None = None  #: in an array
    meta: dict[str, str] = {}
    cpus: float
    memory_bytes: int
    gpus: int
    resources: dict[str, int] = {}
    exclusive: bool = False
    node: str | None = None
    attempt: int  #: the latest one; 0 before the first
    retry_count: int
    requeue_count: int
    lost_count: int
    created_at: str
    assigned_at: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    cancel_requested_at: str | None = None
    not_before: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    finish_no: int | None = None
    usage: Usage | None = None  #: of the latest ended attempt
    wait_seconds: float | None = None  #: from submit to start
    version: int = 1
    rules: list[str] = []  #: site rules that changed the request


class TaskDetail(Task, kw_only=True):
    """A task with its whole specification and its attempts, oldest first."""

    spec: KnownSpec
    attempts: list[Attempt] = []
    node_connected: bool | None = None
    location: str | None = None  #: its folder on the node


class TaskPage(Struct, kw_only=True):
    items: list[Task]
    next_cursor: str | None = None
    matched: int | None = None  #: how many the filter matches; None where it was not asked for


class PartPage(Struct, kw_only=True):
    """A page of tasks with some of their fields."""

    items: list[dict[str, Any]]
    next_cursor: str | None = None
    matched: int | None = None


class Results(Struct, kw_only=True):
    """A piece of a job's results stream.  Ask again with `after=last`."""

    items: list[Attempt]
    last: int  #: the finish number to go on after
    finished: int  #: ended so far, the whole job
    open: int  #: tasks that have not ended
    job_state: str


class SelectTasks(Struct, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/tasks:hold, :release and :rerun.  `ids` are task ids, ranges, job ids or names."""

    ids: list[str]
    failed: bool = False  #: only the tasks that failed (rerun)
    changes: dict[str, msgspec.Raw] = {}  #: like `memory_bytes`, applied first (rerun)


class CancelTasks(Struct, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/tasks:cancel."""

    ids: list[str]
    signal: str | None = (
        None  #: HUP, USR1, ...: only send this signal; None: end the task (TERM, grace, KILL)
    )
    force: bool = False  #: end it in the store even where the node does not answer
    reason: str | None = None


class EditTasks(Struct, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/tasks:edit.  Only tasks that wait are edited."""

    ids: list[str]
    priority: int | None = None
    cpus: float | None = None
    memory_bytes: int | None = None
    gpus: int | None = None
    resources: dict[str, int] | None = None
    exclusive: bool | None = None
    nodelist: list[str] | None = None
    match: str | None = None
    pool: str | None = None
    time_limit_seconds: float | None = None
    retries: int | None = None
    not_before: str | None = None


class Acted(Struct, omit_defaults=True, kw_only=True):
    """What became of one id of an action; `code` and `message` where it was refused.

    A message without a code is a warning: it was done.
    """

    id: str
    state: TaskState | None = None
    code: str | None = None
    message: str | None = None


class ActedAll(Struct):
    items: list[Acted]


class WhyNode(Struct, omit_defaults=True, kw_only=True):
    """Why one node (or `count` nodes alike) does not take the task now."""

    node: str
    reason: str
    ever: bool  #: True: it could later
    in_service: bool = True  #: False: its start task runs, or has failed


class WhyGroup(Struct, omit_defaults=True, kw_only=True):
    count: int
    text: str
    example: str  #: the id of one such task


class Why(Struct, omit_defaults=True, kw_only=True):
    """Why a task or job is in its state, in words and in facts."""

    id: str
    state: str
    summary: str  #: one sentence
    lines: list[str] = []  #: more sentences, in the order to read them
    nodes: list[WhyNode] = []
    groups: list[WhyGroup] = []  #: for a job
    satisfiable: bool | None = None  #: False: no node that is known could ever run it
    stderr_tail: list[str] = []  #: the last 20 lines
    next_command: str | None = None


class DryRun(Struct, omit_defaults=True, kw_only=True):
    """What a submit would store and where the task would go, with nothing stored."""

    job: str
    spec: KnownSpec
    placement: str  #: a node's name, or why it would wait
    rules: list[str] = []
    warnings: list[str] = []
    count: int = 1  #: of tasks, where an array is shown
    first_command: list[str] | str | None = None  #: of an array, with placeholders replaced
    last_command: list[str] | str | None = None


class Submitted(Struct, kw_only=True):
    """Answer of POST /v1/tasks."""

    task: Task
    attached: bool = False  #: True: `id` was taken and `if_exists` is attach
    warnings: list[str] = []
