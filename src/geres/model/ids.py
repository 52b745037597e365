"""Ids: `12` is a job, `12.7` its task 7, `12.3-9,11` some of its tasks, anything else a name.

Inside the store a task's id is one integer, `job << 32 | number`, so that one key gives both and the
tasks of a job lie side by side.  Outside, ids are strings everywhere.
"""

from __future__ import annotations

import re

from geres.errors import Invalid

_NUMBER_BITS = 32
MOST_NUMBER = (1 << _NUMBER_BITS) - 1
_MOST_JOBS = (1 << 31) - 1
_TASK = re.compile(r"(\d{1,10})\.(\d{1,10})")
_NAME = re.compile(r"[^\s.\x00-\x1f\x7f][^.\x00-\x1f\x7f]{0,199}")
_SHELL = frozenset("\"'`$;|&<>(){}\\!#")
_NODE = re.compile(r"[^\s/,*?\[\]\x00-\x1f\x7f]{1,200}")


def task_key(job_id: int, number: int) -> int:
    """The store's key of task `number` of job `job_id`."""
    return job_id << _NUMBER_BITS | number


def job_of(key: int) -> int:
    return key >> _NUMBER_BITS


def number_of(key: int) -> int:
    return key & MOST_NUMBER


def show_task(key: int) -> str:
    """`12.7` for a task's key."""
    return f"{key >> _NUMBER_BITS}.{key & MOST_NUMBER}"


def parse_job(text: str) -> int | None:
    """The job's number where `text` is one, else None (then it may be a name)."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None
    return int(text) if 0 < int(text) <= _MOST_JOBS else None


def parse_task(text: str) -> int | None:
    """The key of `12.7`, else None."""
    match = _TASK.fullmatch(text)
    if not match:
        return None
    job_id, number = int(match[1]), int(match[2])
    if not (0 < job_id <= _MOST_JOBS and number <= MOST_NUMBER):
        return None
    return task_key(job_id, number)


def parse_numbers(text: str, field: str = "id") -> list[range]:
    """The ranges of `3-9,11` or `1-10:2`, as ranges with their end inside.  Raises Invalid naming `field`."""
    ranges = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10})(?::(\d{1,10}))?)?", part)
        if not match:
            raise Invalid(
                f"{field}: {text!r} is no range; write one like 7, 3-9, 1-10:2 or 3-9,11", field=field
            )
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        if last < first or step < 1 or last > MOST_NUMBER:
            raise Invalid(
                f"{field}: {part!r} counts down, stands still or is too long; write FIRST-LAST:STEP",
                field=field,
            )
        ranges.append(range(first, last + 1, step))
    return ranges


def is_name(text: str) -> bool:
    """True unless the text could be mistaken for an id, or breaks a line."""
    return _NAME.fullmatch(text) is not None and not text.isdigit() and text != "-"


def is_node_name(text: str) -> bool:
    """True for what can stand in lists of nodes, in paths and on a line; a host's name may have dots."""
    return _NODE.fullmatch(text) is not None


def may_name_node(text: str) -> bool:
    """True for what a new node may call itself: also no option and nothing that a shell would run, for
    operators' hooks get the name."""
    return is_node_name(text) and not text.startswith("-") and not _SHELL & set(text)


def check_name(text: str, field: str = "name") -> str:
    """The name, unless it could be mistaken for an id.  Raises Invalid naming `field`."""
    if not is_name(text):
        raise Invalid(
            f"{field}: {text!r} cannot be a name; use 1 to 200 characters, no dot, no control character,"
            " and not only digits",
            field=field,
        )
    return text
