"""What tasks take from the defaults of their job."""

from __future__ import annotations

import msgspec

from geres.model.inherit import inherit, task_of
from geres.model.jobs import JobSpec
from geres.model.tasks import KnownSpec, Retry, TaskSpec


def test_a_task_takes_what_it_does_not_say_itself():
    job = TaskSpec(
        cpus=4, memory_bytes=100, retry=Retry(most=2), env={"A": "job", "B": "job"}, meta={"p": "x"}
    )

    own = inherit(TaskSpec(command=["true"], memory_bytes=5, env={"B": "task"}), job)

    assert own.command == ["true"]
    assert (own.cpus, own.memory_bytes, own.retry.most) == (4, 5, 2)
    assert own.env == {"A": "job", "B": "task"}
    assert own.meta == {"p": "x"}


def test_what_runs_and_names_are_the_tasks_own():
    job = TaskSpec(command=["job"], name="job", id="job", handler=None)

    own = inherit(TaskSpec(shell="true"), job)

    assert (own.command, own.shell, own.name, own.id) == (None, "true", None, None)


def test_the_directory_comes_with_the_machine_where_it_was_seen():
    job = TaskSpec(cwd="/job", see_path="/job", host="h1")

    taken = inherit(TaskSpec(command=["a"]), job)
    kept = inherit(TaskSpec(command=["a"], cwd="/mine"), job)

    assert (taken.cwd, taken.see_path, taken.host) == ("/job", "/job", "h1")
    assert (kept.cwd, kept.see_path, kept.host) == ("/mine", None, None)


def test_a_merged_stderr_and_one_of_its_own_do_not_meet():
    assert inherit(TaskSpec(merge=True), TaskSpec(stderr="e")).stderr is None
    assert not inherit(TaskSpec(stderr="e"), TaskSpec(merge=True)).merge


def test_a_job_without_defaults_changes_nothing():
    spec = TaskSpec(command=["true"])

    assert inherit(spec, TaskSpec()) is spec
    assert task_of(msgspec.json.encode(JobSpec(name="j")).decode()) is None
    assert task_of(msgspec.json.encode(JobSpec(task=TaskSpec(cpus=3))).decode()) == KnownSpec(cpus=3)
