"""The client: everything that can be asked of a cluster, for programs and for the command line."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from geres.errors import Invalid, from_wire
from geres.model import jobs as job_model
from geres.model import tasks as task_model
from geres.model.ids import parse_job, parse_task
from geres.model.options import spec_from_options, task_fields
from geres.model.specs import check_job
from geres.model.units import parse_duration
from geres.sdk import bulk
from geres.sdk.discover import locate
from geres.sdk.group import Tasks
from geres.sdk.http import PATIENCE_SECONDS, Transport
from geres.sdk.job import Job
from geres.sdk.managing import Manager
from geres.sdk.reading import Reader, check_text, path_part
from geres.sdk.task import Task, changes_to_wire
from geres.sdk.waiting import Deadline, Progress, TaskSet, wait_job, wait_sets
from geres.trust import parse_fingerprint

#: What names a task or a job in a call: a handle, or an id or name as text.
Named = Task | Job | Tasks | str
_FEW = 4
_LONGEST_POLL_SECONDS = 30.0


class Client(Reader, Manager):
    """A cluster.  Safe to share between threads and to use after a fork.

    Options are in people's units (`cpus=4, memory="8G", time_limit="1h", priority="high"`); the names are
    those of docs/reference/options.md.  A relative `stdout` lies in the directory where the task starts.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        home: str | Path | None = None,
        *,
        fingerprint: str | None = None,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        """Find the cluster: the arguments, GERES_URL and GERES_TOKEN, else the `geres up` of GERES_HOME.

        `fingerprint` pins the certificate of a server that made its own: `sha256:` and 64 digits.
        `patience` is for how many seconds a server that is gone is tried again.
        """
        pin = None if fingerprint is None else parse_fingerprint(fingerprint)

        def find() -> Any:
            return locate(url, token, home, pin)

        self.transport = Transport(find(), patience_seconds=patience, locate=find)
        self._defaults: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"<geres.Client of {self.url}>"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        return self.transport.address.url

    def close(self) -> None:
        """Close its connections; a later call opens them again."""
        self.transport.close()

    def options(self, **options: Any) -> Client:
        """A client like this one, with these options for all that it submits."""
        task_fields({name: value for name, value in options.items() if name not in ("job", "after")})
        other = copy.copy(self)
        other._defaults = {**self._defaults, **options}
        return other

    # Submitting

    def submit(self, command: Sequence[str] | None = None, /, **options: Any) -> Task:
        """Submit one task: an argv as a list, or `shell="..."`.  Returns its handle at once.

        `job` is the job to join (else the caller's job `default`), `after` what must succeed first.
        """
        answer = self.send_task(self._submission(command, options))
        return Task(self, answer.task.id, info=answer.task)

    def dry_run(self, command: Sequence[str] | None = None, /, **options: Any) -> task_model.DryRun:
        """What `submit` would store and where the task would go; nothing is stored."""
        return self.send_dry_run(self._submission(command, options))

    def send_task(self, submission: task_model.SubmitTask) -> task_model.Submitted:
        """Store one task as it is given; the answer has the server's warnings."""
        return self.transport.post("/v1/tasks", task_model.Submitted, submission)

    def send_dry_run(self, submission: task_model.SubmitTask) -> task_model.DryRun:
        return self.transport.post("/v1/tasks", task_model.DryRun, submission, dry_run=True)

    def send_rows(
        self,
        rows: Sequence[bulk.Row],
        defaults: task_model.TaskSpec,
        job: str | None,
        progress: Progress | None = None,
        *,
        after: Sequence[str] = (),
    ) -> Tasks:
        """Store rows that were checked, in pieces of 10,000."""
        return bulk.send(self, rows, defaults, job, progress, after=after)

    def submit_many(
        self,
        commands: Iterable[Sequence[str] | dict[str, Any]],
        *,
        job: Job | str | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Tasks:
        """Submit many tasks of one job: argvs, or dicts of options where tasks differ in more.

        All are checked before the first is sent.  They are stored in pieces of 10,000: where a later
        piece is refused, the error's fact `stored` says how many there are.  With `after` all wait for it.
        """
        settings = {**self._defaults, **options}
        default_job, after = settings.pop("job", None), _names(settings.pop("after", None))
        job = default_job if job is None else job
        defaults = spec_from_options(needs_command=False, **settings)
        rows = bulk.checked(commands, defaults)
        return self.send_rows(rows, defaults, _job_name(job), progress, after=after)

    def submit_array(
        self,
        command: Sequence[str] | None = None,
        /,
        *,
        items: Iterable[str] | None = None,
        range: str | None = None,
        max_parallel: int | None = None,
        on_all_complete: Literal["none", "terminate"] = "none",
        **options: Any,
    ) -> Job:
        """Make a job of one command over a list of items or a range like `1-10`.

        `{}` in the command is the item, `{index}` its number.  `max_parallel` caps how many run at once.
        With `after` all its tasks wait for those tasks and jobs.
        """
        settings = self._settings(command, options)
        after = _names(settings.pop("after", None))
        spec = spec_from_options(**settings)
        return self.create_job(
            job_model.JobSpec(
                task=spec,
                array=job_model.ArraySpec(
                    range=range, items=None if items is None else [str(one) for one in items]
                ),
                max_parallel=max_parallel,
                on_all_complete=on_all_complete,
                after=after,
            )
        )

    def create_job(self, spec: job_model.JobSpec | str | None = None, /, **options: Any) -> Job:
        """Make a job: of a whole specification, or of a name and options.

        Options of the job are `priority, max_parallel, meta, on_all_complete, time_limit, on_lost`; `task`
        is a dict of options that its tasks have by default.
        """
        if not isinstance(spec, job_model.JobSpec):
            spec = job_spec(spec, options)
        check_job(spec)
        info = self.transport.post("/v1/jobs", job_model.Job, spec)
        return Job(self, info.id, info)

    # Looking

    def task(self, task_id: str) -> Task:
        """The handle of a task by its id, like `12.7`, or its own name.  Raises NotFound."""
        if parse_task(check_text(task_id)) is not None:
            return Task(self, task_id)
        found = self.find(task_id)
        if found.kind != "task" or len(found.task_ids) != 1:
            raise Invalid(f"id: {task_id!r} is no single task; a task's id is like 12.7", field="id")
        return Task(self, found.task_ids[0])

    def job(self, job_id: str) -> Job:
        """The handle of a job by its id or name.  Raises NotFound."""
        info = self.job_info(check_text(job_id))
        return Job(self, info.id, info)

    def tasks(self, **filters: Any) -> Iterator[Task]:
        """Tasks, newest first, page by page as you go on.

        Filters: `job, state, user, name, node, pool, filter` (an expression)`, grep, since, until, dead,
        sort`; `state` may be several with commas, or `pending`, or `final`.
        """
        for page in self.task_pages(**filters):
            for info in page.items:
                yield Task(self, info.id, info=info)

    def jobs(self, **filters: Any) -> Iterator[Job]:
        """Jobs, newest first.  Filters: `state, user, name`."""
        for page in self.job_pages(**filters):
            for info in page.items:
                yield Job(self, info.id, info)

    def why(self, what: Named) -> task_model.Why:
        """Why a task or a job is in its state."""
        name = what if isinstance(what, str) else what.job_id if isinstance(what, Tasks) else what.id
        if parse_task(name) is not None:
            return self.transport.get(f"/v1/tasks/{name}/why", task_model.Why)
        if parse_job(name) is not None:
            return self.job_why(name)
        found = self.find(name)
        if found.kind == "job":
            return self.job_why(found.job_id)
        return self.transport.get(f"/v1/tasks/{found.task_ids[-1]}/why", task_model.Why)

    # Waiting

    def wait(
        self,
        what: Named | Iterable[Named],
        *,
        any: bool = False,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> list[Task | Job]:
        """Wait until all have ended, with `any` until one task has.  Of a job, the tasks present now.

        Returns the tasks in the order given (with `any`, only those that have ended), a job as itself.
        Raises TimedOut after `timeout` seconds and NotFound for what does not exist.
        """
        things = [what] if isinstance(what, (str, Task, Job, Tasks)) else list(what)
        deadline = Deadline(timeout)
        targets = self._targets(things)
        if len(targets) == 1 and isinstance(targets[0], Job):
            wait_job(self, targets[0].id, deadline, progress)
            return [targets[0].refresh()]
        wholes = [one for one in targets if isinstance(one, Job)]
        if any and wholes:
            raise Invalid("any: goes with tasks only; wait for the jobs one by one", field="any")
        ended = self._wait_tasks([one for one in targets if isinstance(one, Task)], any, deadline, progress)
        for job in wholes:
            wait_job(self, job.id, deadline, progress)
        done = {task.id: task for task in ended}
        return [
            one if isinstance(one, Job) else done[one.id]
            for one in targets
            if one.id in done or one in wholes
        ]

    # Acting

    def cancel(
        self, *what: Named, signal: str | None = None, force: bool = False, reason: str | None = None
    ) -> list[task_model.Acted]:
        """Ask for the end of tasks (TERM, grace, KILL), or send only `signal`.

        A job's id means all its tasks.  One bad id does not stop the others; the answer tells of each.
        """
        body = task_model.CancelTasks(ids=names_of(what), signal=signal, force=force, reason=reason)
        return self.transport.post("/v1/tasks:cancel", task_model.ActedAll, body).items

    def hold(self, *what: Named) -> list[task_model.Acted]:
        """Keep queued tasks from starting."""
        return self._select("hold", task_model.SelectTasks(ids=names_of(what)))

    def release(self, *what: Named) -> list[task_model.Acted]:
        """Let held tasks go on."""
        return self._select("release", task_model.SelectTasks(ids=names_of(what)))

    def rerun(self, *what: Named, failed: bool = False, **changes: Any) -> list[task_model.Acted]:
        """Run ended tasks again as their next attempt, with `changes` like `memory="16G"` applied first."""
        body = task_model.SelectTasks(ids=names_of(what), failed=failed, changes=changes_to_wire(changes))
        return self._select("rerun", body)

    def edit(self, *what: Named, **changes: Any) -> list[task_model.Acted]:
        """Change what waiting tasks ask for: `memory="2G", cpus=2, priority="high"`."""
        fields = {name: msgspec.json.decode(raw) for name, raw in changes_to_wire(changes).items()}
        try:
            body = msgspec.convert({"ids": names_of(what), **fields}, task_model.EditTasks)
        except msgspec.ValidationError as error:
            raise Invalid(f"edit: {error}; a task that waits takes no such change") from None
        return self.transport.post("/v1/tasks:edit", task_model.ActedAll, body).items

    def job_action(self, job_id: str, action: str, body: job_model.JobAction | None = None) -> job_model.Job:
        """close, cancel, disable or enable a job."""
        return self.transport.post(
            f"/v1/jobs/{path_part(job_id)}/{action}", job_model.Job, body or job_model.JobAction()
        )

    def edit_job(self, job_id: str, patch: job_model.JobPatch) -> job_model.Job:
        """Change a job; refused with Changed where somebody else changed it meanwhile."""
        content = self.transport.call(
            "PATCH",
            f"/v1/jobs/{path_part(job_id)}",
            msgspec.json.encode(patch),
            headers={"If-Match": self.job_etag(job_id)},
        )
        return msgspec.json.decode(content, type=job_model.Job)

    @staticmethod
    def act_on_one(answer: list[task_model.Acted]) -> task_model.Acted:
        """The one answer of an action.  Raises its error where it was refused."""
        acted = answer[0]
        if acted.code:
            raise from_wire(acted.code, acted.message or acted.code, {"id": acted.id})
        return acted

    def _select(self, action: str, body: task_model.SelectTasks) -> list[task_model.Acted]:
        return self.transport.post(f"/v1/tasks:{action}", task_model.ActedAll, body).items

    def _settings(self, command: Sequence[str] | None, options: dict[str, Any]) -> dict[str, Any]:
        settings = {**self._defaults, **options}
        if command is not None:
            settings["command"] = command
        return settings

    def _submission(self, command: Sequence[str] | None, options: dict[str, Any]) -> task_model.SubmitTask:
        settings = self._settings(command, options)
        job, after = _job_name(settings.pop("job", None)), _names(settings.pop("after", None))
        return task_model.SubmitTask(
            task=spec_from_options(**settings),
            job=job,
            after=after,
        )

    def _targets(self, things: list[Named]) -> list[Task | Job]:
        targets: list[Task | Job] = []
        for thing in things:
            if isinstance(thing, (Task, Job)):
                targets.append(thing)
            elif isinstance(thing, Tasks):
                targets.extend(thing)
            elif parse_task(check_text(thing)) is not None:
                targets.append(Task(self, thing))
            else:
                found = self.find(thing)
                if found.kind == "job":
                    targets.append(Job(self, found.job_id))
                else:
                    targets.extend(Task(self, one) for one in found.task_ids)
        return targets

    def _wait_tasks(
        self, targets: list[Task], any_: bool, deadline: Deadline, progress: Progress | None
    ) -> list[Task]:
        if len(targets) <= (1 if any_ else _FEW) and progress is None:
            return [Task(self, one.id, info=self.wait_one(one.id, deadline)) for one in targets]
        numbers: dict[str, set[int]] = {}
        for one in targets:
            numbers.setdefault(one.job_id, set()).add(one.number)
        sets = [TaskSet(self, job_id, wanted, progress) for job_id, wanted in numbers.items()]
        wait_sets(sets, any_=any_, deadline=deadline)
        ends = {f"{one.job_id}.{number}": end for one in sets for number, end in one.ended.items()}
        return [_ended(self, one.id, ends[one.id]) for one in targets if one.id in ends]


def job_spec(name: str | None, options: dict[str, Any]) -> job_model.JobSpec:
    """A checked JobSpec from a name and options in people's units.  Raises Invalid naming the field."""
    values = {key: value for key, value in options.items() if value is not None}
    if "time_limit" in values:
        values["time_limit_seconds"] = parse_duration(values.pop("time_limit"), "time_limit")
    if "priority" in values:
        values["priority"] = task_fields({"priority": values["priority"]})["priority"]
    task = values.pop("task", None)
    if isinstance(task, dict):
        task = spec_from_options(needs_command=False, field="task.", **task)
    try:
        spec = msgspec.convert({"name": name, **values}, job_model.JobSpec)
    except msgspec.ValidationError as error:
        raise Invalid(f"job: {error}") from None
    spec.task = task
    return spec


def names_of(things: Iterable[Named]) -> list[str]:
    """The ids and names of handles and texts, as actions take them."""
    names: list[str] = []
    for thing in things:
        if isinstance(thing, Tasks):
            names.extend(thing.ranges())
        else:
            names.append(thing.id if isinstance(thing, (Task, Job)) else check_text(thing))
    return names


def _ended(client: Client, task_id: str, end: task_model.Attempt | task_model.Task) -> Task:
    if isinstance(end, task_model.Attempt):
        return Task(client, task_id, ended=end)
    return Task(client, task_id, info=end)


def _names(things: Named | Iterable[Named] | None) -> list[str]:
    if things is None:
        return []
    return names_of([things] if isinstance(things, (str, Task, Job, Tasks)) else things)


def _job_name(job: Job | str | None) -> str | None:
    return job.id if isinstance(job, Job) else None if job is None else check_text(job)
