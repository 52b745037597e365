"""Words what a node is to start, from what the store says of the task and its job."""

from __future__ import annotations

from typing import Protocol

from geres.model import task_tokens
from geres.model.ids import job_of
from geres.model.wire import Assign, Frame, Spec
from geres.server.desk import Desk
from geres.server.frames import argv_of
from geres.server.known import Known


class Startable(Protocol):
    """A task as the store has it, about to start."""

    @property
    def id(self) -> int: ...

    @property
    def spec_id(self) -> int: ...

    @property
    def lane_id(self) -> int: ...

    @property
    def argv(self) -> str | None: ...

    @property
    def item(self) -> str | None: ...

    @property
    def retry_count(self) -> int: ...

    @property
    def requeue_count(self) -> int: ...


class Orders:
    """For one dispatcher.  What a node is told of has to be in `known`."""

    def __init__(self, known: Known, task_key: bytes) -> None:
        """`task_key` is of the tokens of tasks; empty: they get none."""
        self._known, self._task_key = known, task_key

    def assign(self, desk: Desk, frame: Frame, task: Startable, attempt: int) -> Assign:
        """Add the start of an attempt to a frame, and its specification where the node does not have it yet.

        Raises what decoding raises for a task that cannot be read; then nothing was added but, perhaps, the
        specification.
        """
        job_id = job_of(task.id)
        job = self._known.jobs[job_id]
        if task.spec_id in self._known.unreadable:
            raise ValueError(self._known.unreadable[task.spec_id])
        if task.spec_id not in desk.specs:
            desk.specs.add(task.spec_id)
            frame.specs.append(Spec(task.spec_id, self._known.specs[task.spec_id], job.meta))
        token = task_tokens.make(self._task_key, desk.tenant_id, task.id, attempt) if self._task_key else ""
        made = Assign(
            task.id,
            attempt,
            task.spec_id,
            task.lane_id,
            job.name,
            argv_of(task.argv),
            task.item,
            job.is_array,
            requeue_count=task.requeue_count,
            retry_count=task.retry_count,
            token=token,
        )
        frame.assign.append(made)
        return made
