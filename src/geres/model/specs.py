"""Checks of what people submit: one set of rules, and every refusal names the field.

The SDK and the command line apply them before they send, the server before it stores.  The way from
people's units to a specification is in options.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import UNSET

from geres.errors import Invalid
from geres.model.ids import check_name, parse_numbers
from geres.model.jobs import ArraySpec, JobSpec
from geres.model.tasks import HIGHEST_PRIORITY, LOWEST_PRIORITY, Retry, TaskRow, TaskSpec
from geres.model.units import parse_time

MOST_BULK_TASKS = 100_000  #: in one request
MOST_ARRAY_TASKS = 10_000_000
_MOST_COUNT = 1 << 53  #: beyond it JSON readers lose digits
_MOST_BYTES = 1 << 62
_MOST_SECONDS = 1e10
_MOST_CPUS = 1_000_000
_LONGEST_NAME = 1000


def check_spec(spec: TaskSpec, *, needs_command: bool = True, field: str = "") -> None:
    """Raise Invalid, naming the field, unless this can be stored as it is.

    `field` goes before the names of fields, like `tasks[3].`.  With `needs_command` False the
    specification holds defaults for others, and may be without one.
    """
    if spec == TaskSpec(command=spec.command):
        if spec.command is not None:
            check_command(spec.command, field + "command")
        elif needs_command:
            raise _no_command(field)
        return
    _check_what_runs(spec.command, spec.shell, spec.handler, needs_command, field)
    _check_fields(spec, _SPEC_DEFAULTS, field)
    if spec.see_path is not None and spec.host is None:
        raise _invalid(field + "see_path", "needs `host`, the id of the host where the path was seen")
    if spec.merge and spec.stderr is not None:
        raise _invalid(field + "merge", "does not go together with `stderr`; leave one out")
    if spec.params is not None and spec.handler is None:
        raise _invalid(field + "params", "needs `handler`")


def check_row(row: TaskRow, defaults: TaskSpec, *, field: str = "") -> None:
    """Raise Invalid unless this row of a bulk submit is right.  `defaults` must have been checked before."""
    command = row.command
    if (
        command is not UNSET
        and row == TaskRow(command=command)
        and defaults.shell is None
        and defaults.handler is None
        and defaults.command is None
    ):
        check_command(command, field + "command")
        return
    if command is not UNSET and defaults.command is not None:
        raise _invalid(field + "command", "is in the defaults too; leave one out")
    _check_what_runs(
        defaults.command if command is UNSET else command,
        defaults.shell if row.shell is UNSET else row.shell,
        defaults.handler,
        True,
        field,
    )
    _check_fields(row, _ROW_DEFAULTS, field)
    merge = defaults.merge if row.merge is UNSET else row.merge
    if merge and (defaults.stderr if row.stderr is UNSET else row.stderr) is not None:
        raise _invalid(field + "merge", "does not go together with `stderr`; leave one out")


def merge_row(defaults: TaskSpec, row: TaskRow) -> TaskSpec:
    """The specification of one row: its fields over the defaults; `meta` and `env` are merged."""
    changes = {name: value for name in _ROW_DEFAULTS if (value := getattr(row, name)) is not UNSET}
    if "meta" in changes:
        changes["meta"] = {**defaults.meta, **changes["meta"]}
    if "env" in changes:
        changes["env"] = {**defaults.env, **changes["env"]}
    return msgspec.structs.replace(defaults, **changes)


def check_job(spec: JobSpec, *, field: str = "") -> None:
    """Raise Invalid, naming the field, unless this job can be stored as it is."""
    if spec.name is not None:
        check_name(spec.name, field + "name")
    check_priority(spec.priority, field + "priority")
    if spec.max_parallel is not None:
        _check_count(spec.max_parallel, field + "max_parallel")
        if spec.max_parallel == 0:
            raise _invalid(field + "max_parallel", "must be at least 1; disable the job to start nothing")
    _check_meta(spec.meta, field + "meta")
    if spec.time_limit_seconds is not None:
        _check_time_limit(spec.time_limit_seconds, field + "time_limit_seconds")
    if spec.task is not None:
        check_spec(spec.task, needs_command=spec.array is not None, field=field + "task.")
    if spec.array is not None:
        if spec.task is None:
            raise _invalid(field + "task", "is missing; an array needs the command that it runs")
        check_array(spec.array, spec.task, field=field)
    elif spec.after:
        raise _invalid(field + "after", "goes with `array`; elsewhere it is said with the tasks")


def check_array(array: ArraySpec, task: TaskSpec, *, field: str = "") -> None:
    """Raise Invalid unless this is one range or one list of items, and its outputs do not collide."""
    if (array.range is None) == (array.items is None):
        raise _invalid(field + "array", "needs either `range`, like 1-10, or `items`")
    if array.range is not None:
        parts = sorted(parse_numbers(array.range, field + "array.range"), key=lambda part: part.start)
        for part, following in itertools.pairwise(parts):
            if part[-1] >= following.start:
                raise _invalid(
                    field + "array.range",
                    f"{array.range[:80]!r} has parts that overlap; name each index once",
                )
        count = sum(len(part) for part in parts)
    else:
        count = len(array.items or ())
        for position, item in enumerate(array.items or ()):
            if "\0" in item or not item.isascii():
                _check_text(item, f"{field}array.items[{position}]")
    if not 0 < count <= MOST_ARRAY_TASKS:
        raise _invalid(field + "array", f"has {count} tasks; an array has 1 to {MOST_ARRAY_TASKS:,}")
    if task.id is not None and not _tells_tasks_apart(task.id) and count > 1:
        raise _invalid(field + "task.id", "would be the same for every task; put {index} into it")
    for name, path in (("stdout", task.stdout), ("stderr", task.stderr)):
        if path is not None and count > 1 and not task.append and not _tells_tasks_apart(path):
            raise _invalid(
                f"{field}task.{name}",
                f"{path!r} would be overwritten by every task; put {{index}} into it, or append",
            )


def check_command(command: list[str], field: str = "command") -> None:
    """Raise Invalid unless this is an argv that a system can run."""
    if not command:
        raise _invalid(field, "is empty; give the program and its arguments")
    if not command[0]:
        raise _invalid(field, "begins with an empty word; the first word is the program to run")
    together = "".join(command)
    if "\0" in together or not together.isascii():
        for position, word in enumerate(command):
            _check_text(word, f"{field}[{position}]")


def _invalid(field: str, problem: str) -> Invalid:
    return Invalid(f"{field}: {problem}", field=field)


def _no_command(field: str) -> Invalid:
    return _invalid(field + "command", "is missing; say what to run")


def _tells_tasks_apart(text: str) -> bool:
    return any(mark in text for mark in ("{}", "{.}", "{/}", "{index}", "{task}"))


def _check_what_runs(
    command: list[str] | None, shell: str | None, handler: str | None, needed: bool, field: str
) -> None:
    given = [
        name
        for name, value in (("command", command), ("shell", shell), ("handler", handler))
        if value is not None
    ]
    if len(given) > 1:
        raise _invalid(field + given[1], f"does not go together with `{given[0]}`; leave one out")
    if not given and needed:
        raise _no_command(field)


def _check_text(text: str, field: str) -> None:
    if "\0" in text:
        raise _invalid(field, f"{text[:80]!r} holds a NUL character, which no system takes")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _invalid(field, f"{text[:80]!r} is no valid Unicode text") from None


def _check_filled(text: str, field: str) -> None:
    if not text:
        raise _invalid(field, "is empty")
    _check_text(text, field)


def _check_shown_name(text: str, field: str) -> None:
    _check_filled(text, field)
    if len(text) > _LONGEST_NAME:
        raise _invalid(field, f"has {len(text)} characters; at most {_LONGEST_NAME}")


def _check_shell(line: str, field: str) -> None:
    if not line.strip():
        raise _invalid(field, "is empty; give a line for /bin/sh")
    _check_text(line, field)
    end = line.rstrip()
    if end.endswith("&") and not end.endswith(("&&", "\\&", ">&", "<&")):
        raise _invalid(
            field,
            "ends with `&`: the task would end at once and what it started be killed; leave the `&` out",
        )


def _check_meta(meta: dict[str, str], field: str) -> None:
    for key, value in meta.items():
        if not key or "=" in key or len(key) > 200 or not key.isprintable():
            raise _invalid(
                field, f"{key!r} is no key; use 1 to 200 characters, no `=` and no control character"
            )
        _check_text(value, f"{field}.{key}")


def _check_env(env: dict[str, str], field: str) -> None:
    for key, value in env.items():
        if not key or "=" in key:
            raise _invalid(field, f"{key!r} is no name of a variable")
        _check_text(key, field)
        _check_text(value, f"{field}.{key}")


def check_priority(value: int, field: str) -> None:
    if not LOWEST_PRIORITY <= value <= HIGHEST_PRIORITY:
        raise _invalid(field, f"{value} is not between {LOWEST_PRIORITY} and {HIGHEST_PRIORITY}")


def _check_cpus(value: float, field: str) -> None:
    if not 0 <= value <= _MOST_CPUS:
        raise _invalid(field, f"{value:g} is not between 0 and {_MOST_CPUS}")


def _check_bytes(value: int, field: str) -> None:
    if not 0 <= value <= _MOST_BYTES:
        raise _invalid(field, f"{value} is not between 0 and 4096P")


def _check_count(value: int, field: str) -> None:
    if value < 0:
        raise _invalid(field, f"{value} is below 0")
    if value > _MOST_COUNT:
        raise _invalid(field, f"{value} is not between 0 and {_MOST_COUNT}")


def _check_resources(resources: dict[str, int], field: str) -> None:
    for name, count in resources.items():
        check_name(name, field)
        _check_count(count, f"{field}.{name}")


def _check_nodelist(nodes: list[str], field: str) -> None:
    for node in nodes:
        _check_filled(node, field)


def _check_match(expression: str, field: str) -> None:
    from geres.model.expressions import node_matcher  # a parser: only tasks that use it wait for it

    _check_filled(expression, field)
    node_matcher(expression, field)


def _check_absolute(path: str, field: str) -> None:
    _check_filled(path, field)
    if not path.startswith("/"):
        raise _invalid(field, f"{path!r} is relative; write the whole path, from / on")


def _check_umask(value: int, field: str) -> None:
    if not 0 <= value <= 0o777:
        raise _invalid(field, f"{value:o} is not between 000 and 777")


def _check_account(name: str, field: str) -> None:
    _check_filled(name, field)
    if not name.isprintable() or any(mark in name for mark in ":/ ") or name.startswith("-"):
        raise _invalid(field, f"{name!r} is no name of an account or a group")


def _check_seconds(value: float, field: str) -> None:
    if not 0 <= value <= _MOST_SECONDS:
        raise _invalid(field, f"{value:g} is not between 0 seconds and 300 years")


def _check_time_limit(value: float, field: str) -> None:
    _check_seconds(value, field)
    if value == 0:
        raise _invalid(field, "must be above 0; leave it out for no limit")


def _check_retry(retry: Retry, field: str) -> None:
    if not -1 <= retry.most <= 1_000_000_000:
        raise _invalid(field + ".most", f"{retry.most} is not -1 (no limit), 0 or above")
    _check_seconds(retry.delay_seconds, field + ".delay_seconds")
    _check_seconds(retry.most_delay_seconds, field + ".most_delay_seconds")


def _check_moment(text: str, field: str) -> None:
    parse_time(text, field)


_CHECKS: dict[str, Callable[[Any, str], object]] = {
    "command": check_command,
    "shell": _check_shell,
    "name": _check_shown_name,
    "id": lambda text, field: check_name(text, field),
    "meta": _check_meta,
    "pool": check_name,
    "priority": check_priority,
    "cpus": _check_cpus,
    "memory_bytes": _check_bytes,
    "gpus": _check_count,
    "resources": _check_resources,
    "nodelist": _check_nodelist,
    "match": _check_match,
    "see_path": _check_absolute,
    "host": _check_filled,
    "cwd": _check_absolute,
    "env": _check_env,
    "umask": _check_umask,
    "stdout": _check_filled,
    "stderr": _check_filled,
    "output_limit_bytes": _check_bytes,
    "disk_bytes": _check_bytes,
    "time_limit_seconds": _check_time_limit,
    "grace_seconds": _check_seconds,
    "retry": _check_retry,
    "retain_seconds": _check_seconds,
    "not_before": _check_moment,
    "max_parallel_label": check_name,
    "handler": _check_filled,
    "user": _check_account,
    "group": _check_account,
}


def _check_fields(values: TaskSpec | TaskRow, defaults: dict[str, Any], field: str) -> None:
    for name, default in defaults.items():
        value = getattr(values, name)
        if value is not default and value != default and (check := _CHECKS.get(name)):
            check(value, field + name)


_SPEC_DEFAULTS: dict[str, Any] = {
    one.name: getattr(TaskSpec(), one.name) for one in msgspec.structs.fields(TaskSpec)
}
_ROW_DEFAULTS: dict[str, Any] = {one.name: UNSET for one in msgspec.structs.fields(TaskRow)}
