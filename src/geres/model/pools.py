"""Pools: nodes of one kind, and what each of them runs before it takes tasks."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Struct, UnsetType

from geres.errors import Invalid
from geres.model.specs import check_spec
from geres.model.tasks import TaskSpec

_MOST_RETRIES = 100
_MOST_SECONDS = 86_400.0
_MOST_BYTES = 256 << 10


class StartTask(Struct, frozen=True, kw_only=True):
    """What each node of a pool runs, once a boot, before it takes tasks; as the agent's own account."""

    command: list[str] | None = None  #: an argv
    shell: str | None = None  #: or a line for /bin/sh
    env: dict[str, str] = {}
    retries: int = 2
    time_limit_seconds: float = 600.0  #: of each try


class SetStartTask(StartTask, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As people write it."""


class Pool(Struct, kw_only=True):
    """A pool as the API shows it."""

    name: str
    created_at: str
    start_task: StartTask | None = None
    nodes: dict[str, int] = {}  #: how many there are in which state
    version: int = 1  #: changes with edits


class PoolPatch(Struct, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    """Body of PATCH /v1/pools/{name}.  What is left out stays."""

    start_task: SetStartTask | UnsetType | None = UNSET  #: null takes it away
    create: bool = False  #: make the pool where it is not there
    dry_run: bool = False  #: only say what would be


def check(start: StartTask) -> None:
    """Raise Invalid, naming the field, unless nodes could run this."""
    spec = TaskSpec(command=start.command, shell=start.shell, env=start.env)
    check_spec(spec, field="start_task.")
    if not 0 <= start.retries <= _MOST_RETRIES:
        raise Invalid(
            f"start_task.retries: {start.retries} is not between 0 and {_MOST_RETRIES}",
            field="start_task.retries",
        )
    if not 0 < start.time_limit_seconds <= _MOST_SECONDS:
        raise Invalid(
            f"start_task.time_limit_seconds: {start.time_limit_seconds:g} is not above 0 and at most"
            f" {_MOST_SECONDS:g}, a day",
            field="start_task.time_limit_seconds",
        )
    if len(msgspec.json.encode(start)) > _MOST_BYTES:
        raise Invalid(f"start_task: is longer than {_MOST_BYTES >> 10} KiB", field="start_task")
