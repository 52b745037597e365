"""What people submit is checked in one place, and every refusal names the field."""

from __future__ import annotations

import math

import msgspec
import pytest

from geres.errors import Invalid
from geres.model.jobs import ArraySpec, JobSpec
from geres.model.options import row_from_options, spec_from_options, task_fields
from geres.model.specs import check_job, check_row, check_spec, merge_row
from geres.model.tasks import Retry, TaskRow, TaskSpec


def test_options_in_peoples_units_become_the_wires():
    spec = spec_from_options(
        command=["true"],
        cpus="0.5",
        memory="1.5G",
        gpus="2",
        resources={"disk_io": "3"},
        priority="high",
        time_limit="1h30m",
        retries=3,
        retry_delay="2s",
        nodelist="a,b*",
        umask="022",
    )
    assert (spec.cpus, spec.memory_bytes, spec.gpus, spec.resources) == (0.5, 1610612736, 2, {"disk_io": 3})
    assert (spec.priority, spec.time_limit_seconds, spec.nodelist, spec.umask) == (
        500,
        5400,
        ["a", "b*"],
        0o22,
    )
    assert spec.retry == Retry(most=3, delay_seconds=2)


def test_a_specification_that_was_shown_can_be_submitted_again():
    spec = spec_from_options(command=["x"], memory="2G", retries=2, time_limit="5m", env={"A": "1"})
    assert spec_from_options(**msgspec.to_builtins(spec)) == spec


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({}, "command"),
        ({"command": []}, "command"),
        ({"command": [""]}, "command"),
        ({"command": "echo hi"}, "command"),
        ({"command": ["a", "b\0"]}, "command[1]"),
        ({"command": ["a\udc80"]}, "command[0]"),
        ({"command": ["a", None]}, "command[1]"),
        ({"command": ["a"], "shell": "b"}, "shell"),
        ({"shell": "  "}, "shell"),
        ({"shell": "sleep 9 &"}, "shell"),
        ({"shell": "sleep 9 & \n"}, "shell"),
        ({"cpus": -1}, "cpus"),
        ({"cpus": math.nan}, "cpus"),
        ({"cpus": "many"}, "cpus"),
        ({"cpus": [1]}, "cpus"),
        ({"memory": "1.5X"}, "memory"),
        ({"memory": "-1G"}, "memory"),
        ({"memory_bytes": -1}, "memory_bytes"),
        ({"memory_bytes": "2G"}, "memory_bytes"),
        ({"gpus": 1.5}, "gpus"),
        ({"gpus": True}, "gpus"),
        ({"gpus": -1}, "gpus"),
        ({"resources": {"a": -1}}, "resources.a"),
        ({"resources": {"a": "x"}}, "resources.a"),
        ({"resources": "a=1"}, "resources"),
        ({"priority": "urgent"}, "priority"),
        ({"priority": 1001}, "priority"),
        ({"time_limit": 0}, "time_limit_seconds"),
        ({"time_limit": "soon"}, "time_limit"),
        ({"grace": "-1"}, "grace"),
        ({"retries": -2}, "retry.most"),
        ({"retries": "x"}, "retries"),
        ({"id": "1.2"}, "id"),
        ({"id": "12"}, "id"),
        ({"name": "x" * 1001}, "name"),
        ({"meta": {"a=b": "c"}}, "meta"),
        ({"meta": {"a": "\0"}}, "meta.a"),
        ({"env": {"": "c"}}, "env"),
        ({"env": {"A": "\udcff"}}, "env.A"),
        ({"cwd": "relative"}, "cwd"),
        ({"see_path": "/x"}, "see_path"),
        ({"stdout": ""}, "stdout"),
        ({"merge": True, "stderr": "e"}, "merge"),
        ({"umask": "9"}, "umask"),
        ({"umask": 0o1000}, "umask"),
        ({"not_before": "noon"}, "not_before"),
        ({"nodelist": ["a", ""]}, "nodelist"),
        ({"exclusive": "yes"}, "exclusive"),
        ({"if_exists": "replace"}, "if_exists"),
        ({"params": {"a": 1}}, "params"),
        ({"mem": "2G"}, "mem"),
    ],
)
def test_bad_input_is_refused_with_the_name_of_its_field(options, field):
    if not {"command", "shell"} & set(options) and options:
        options = {"command": ["true"], **options}
    with pytest.raises(Invalid) as refused:
        spec_from_options(**options)
    assert refused.value.facts["field"] == field
    assert str(refused.value).startswith(field + ":")


@pytest.mark.parametrize(
    "line", ["a && b", "echo a\\&", "cat 2>&", "a & b", "echo '&' ; x", "sleep 1 & wait"]
)
def test_an_ampersand_that_leaves_nothing_behind_is_fine(line):
    assert spec_from_options(shell=line).shell == line


def test_an_ampersand_in_a_word_of_a_command_is_just_text():
    assert spec_from_options(command=["echo", "a &"]).command == ["echo", "a &"]


def test_a_misspelt_option_gets_the_nearest_one():
    with pytest.raises(Invalid, match="did you mean 'memory'"):
        task_fields({"memry": "2G"})


def test_a_hundred_thousand_arguments_are_fine():
    check_spec(TaskSpec(command=["x"] * 100_000))


def test_the_fast_path_of_a_plain_command_checks_it_too():
    with pytest.raises(Invalid, match=r"command\[1\]"):
        check_spec(TaskSpec(command=["a", "\0"]))
    with pytest.raises(Invalid, match="command: is empty"):
        check_row(TaskRow(command=[]), TaskSpec())


def test_a_row_is_checked_together_with_the_defaults():
    with pytest.raises(Invalid, match=r"tasks\[3\].command: is in the defaults"):
        check_row(TaskRow(command=["a"]), TaskSpec(command=["b"]), field="tasks[3].")
    with pytest.raises(Invalid, match="does not go together"):
        check_row(TaskRow(command=["a"]), TaskSpec(shell="b"))
    with pytest.raises(Invalid, match="command: is missing"):
        check_row(TaskRow(name="x"), TaskSpec())
    with pytest.raises(Invalid, match="merge"):
        check_row(TaskRow(stderr="e"), TaskSpec(command=["a"], merge=True))
    check_row(TaskRow(name="x"), TaskSpec(command=["a"]))


def test_a_row_replaces_what_it_gives_and_merges_meta_and_env():
    defaults = TaskSpec(cpus=2, meta={"a": "1", "b": "2"}, env={"X": "1"}, nodelist=["n1"])
    row = row_from_options(
        {"command": ["c"], "memory": "1K", "meta": {"b": "3"}, "nodelist": ["n2"]}, defaults
    )
    assert merge_row(defaults, row) == TaskSpec(
        command=["c"], cpus=2, memory_bytes=1024, meta={"a": "1", "b": "3"}, env={"X": "1"}, nodelist=["n2"]
    )


def test_what_is_the_same_for_all_rows_is_refused_in_one():
    with pytest.raises(Invalid, match="stdin: is the same for all"):
        row_from_options({"command": ["c"], "stdin": True}, TaskSpec())


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (JobSpec(name="a.b"), "name"),
        (JobSpec(priority=-1001), "priority"),
        (JobSpec(max_parallel=0), "max_parallel"),
        (JobSpec(time_limit_seconds=0), "time_limit_seconds"),
        (JobSpec(task=TaskSpec(cpus=-1)), "task.cpus"),
        (JobSpec(array=ArraySpec(range="1-3")), "task"),
        (JobSpec(task=TaskSpec(), array=ArraySpec(range="1-3")), "task.command"),
        (JobSpec(task=TaskSpec(command=["x"]), array=ArraySpec()), "array"),
        (JobSpec(task=TaskSpec(command=["x"]), array=ArraySpec(range="3-1")), "array.range"),
        (JobSpec(task=TaskSpec(command=["x"]), array=ArraySpec(range="1-99999999")), "array"),
        (JobSpec(task=TaskSpec(command=["x"]), array=ArraySpec(items=[])), "array"),
        (JobSpec(task=TaskSpec(command=["x"]), array=ArraySpec(items=["a", "\0"])), "array.items[1]"),
        (JobSpec(task=TaskSpec(command=["x"], stdout="o"), array=ArraySpec(range="1-3")), "task.stdout"),
        (JobSpec(task=TaskSpec(command=["x"], id="o"), array=ArraySpec(range="1-3")), "task.id"),
    ],
)
def test_a_bad_job_is_refused_with_the_name_of_its_field(spec, field):
    with pytest.raises(Invalid) as refused:
        check_job(spec)
    assert refused.value.facts["field"] == field


def test_tasks_of_an_array_may_share_a_file_where_they_append_or_are_told_apart():
    for task in (
        TaskSpec(command=["x"], stdout="o", append=True),
        TaskSpec(command=["x"], stdout="o.{index}", stderr="{/}.err"),
    ):
        check_job(JobSpec(task=task, array=ArraySpec(items=["a", "b"])))
