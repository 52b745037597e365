"""What a task takes from the defaults of its job."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

from geres.model.jobs import KnownJobSpec
from geres.model.tasks import TaskSpec

#: What runs, and under which name, is said by each task; directory and machine go together.
_OWN = frozenset(
    ("command", "shell", "handler", "params", "name", "id", "if_exists", "cwd", "see_path", "host")
)
_PLAIN = TaskSpec()
_INHERITED = [name for name in TaskSpec.__struct_fields__ if name not in _OWN]


def inherit(spec: TaskSpec, job_task: TaskSpec) -> TaskSpec:
    """The specification with the job's values where it has none of its own; `env` and `meta` are merged.

    A value that is given and equals the general default counts as none.
    """
    changes: dict[str, Any] = {}
    for name in _INHERITED:
        general, ours, own = getattr(_PLAIN, name), getattr(job_task, name), getattr(spec, name)
        if ours == general:
            continue
        if name in ("env", "meta"):
            changes[name] = {**ours, **own}
        elif own == general:
            changes[name] = ours
    if spec.cwd is None and job_task.cwd is not None:
        changes |= {"cwd": job_task.cwd, "see_path": job_task.see_path, "host": job_task.host}
    if spec.merge:
        changes.pop("stderr", None)
    if spec.stderr is not None:
        changes.pop("merge", None)
    return msgspec.structs.replace(spec, **changes) if changes else spec


@lru_cache(maxsize=4096)
def task_of(job_spec: str) -> TaskSpec | None:
    """The defaults that a stored job has for its tasks."""
    if '"task"' not in job_spec:
        return None
    return msgspec.json.decode(job_spec, type=KnownJobSpec).task
