"""geres: a batch scheduler without a head node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `import geres` loads nothing, so that programs and commands start fast
    from geres.errors import (
        Conflict,
        Denied,
        GeresError,
        Gone,
        Invalid,
        NotFound,
        OverQuota,
        StoreUnavailable,
        TaskFailed,
        TimedOut,
        Unauthenticated,
        Unreachable,
    )
    from geres.sdk.client import Client
    from geres.sdk.group import Tasks
    from geres.sdk.job import Job
    from geres.sdk.task import Task

__version__ = "0.1.0"
__all__ = [
    "Client",
    "Conflict",
    "Denied",
    "GeresError",
    "Gone",
    "Invalid",
    "Job",
    "NotFound",
    "OverQuota",
    "StoreUnavailable",
    "Task",
    "TaskFailed",
    "Tasks",
    "TimedOut",
    "Unauthenticated",
    "Unreachable",
]
_HOMES = {
    "Client": "geres.sdk.client",
    "Job": "geres.sdk.job",
    "Task": "geres.sdk.task",
    "Tasks": "geres.sdk.group",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'geres' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES.get(name, "geres.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
