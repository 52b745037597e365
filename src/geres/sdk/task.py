"""A task as a program holds it: its id, what is known of it, and what can be done with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from geres.errors import TaskFailed
from geres.model import tasks as model
from geres.model.states import Reason, TaskState

if TYPE_CHECKING:  # the client makes handles and handles ask the client: one of the two must name the other
    from geres.sdk.client import Client


class Task:
    """One task.  Its properties ask the server while it has not ended, and never after.

    After a rerun call `refresh()`: the task has not ended any more.
    """

    __slots__ = ("_client", "_ended", "_info", "id")

    def __init__(
        self,
        client: Client,
        task_id: str,
        *,
        info: model.Task | None = None,
        ended: model.Attempt | None = None,
    ) -> None:
        self.id = task_id
        self._client = client
        self._info = info
        self._ended = ended

    def __repr__(self) -> str:
        known = self._ended or self._info
        return f"<geres.Task {self.id}{f' {known.state}' if known else ''}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def job_id(self) -> str:
        return self.id.partition(".")[0]

    @property
    def number(self) -> int:
        """The task's number in its job; in an array, the index."""
        return int(self.id.partition(".")[2])

    @property
    def info(self) -> model.Task:
        """All that the API says about it; a `TaskDetail` once it was asked for by itself."""
        if self._info is None or (not self._info.state.final):
            self.refresh()
        assert self._info is not None
        return self._info

    @property
    def ended(self) -> model.Attempt | model.Task | None:
        """How it ended, where that is known here without asking."""
        return self._known_end()

    @property
    def state(self) -> TaskState:
        return self._now().state

    @property
    def reason(self) -> str | None:
        return self._now().reason

    @property
    def message(self) -> str | None:
        """One sentence about the reason."""
        return self._now().message

    @property
    def exit_code(self) -> int | None:
        return self._now().exit_code

    @property
    def signal(self) -> int | None:
        return self._now().signal

    @property
    def node(self) -> str | None:
        return self._now().node

    @property
    def item(self) -> str | None:
        """In an array of items, its item."""
        return self._now().item

    @property
    def name(self) -> str | None:
        return self._now().name

    @property
    def attempt(self) -> int:
        """The number of the latest attempt; 0 before the first."""
        return self._now().attempt

    @property
    def usage(self) -> model.Usage | None:
        """What its latest ended attempt used."""
        return self._now().usage

    @property
    def succeeded(self) -> bool:
        """True where it succeeded, or had nothing to do."""
        now = self._now()
        return is_success(now.state, now.reason)

    def done(self) -> bool:
        """True where it has ended, well or not."""
        return self._now().state.final

    def refresh(self) -> Task:
        """Ask the server again, also where it had ended."""
        self._info = self._client.task_info(self.id)
        self._ended = None
        return self

    def wait(self, timeout: float | None = None, check: bool = False) -> Task:
        """Wait for its end and return itself.  Raises TimedOut after `timeout` seconds.

        With `check` a task that did not succeed raises TaskFailed.
        """
        if self._known_end() is None:
            self._info = self._client.wait_one(self.id, timeout)
        return self.check() if check else self

    def check(self) -> Task:
        """Itself.  Raises TaskFailed where it ended and did not succeed."""
        now = self._now()
        if now.state.final and not is_success(now.state, now.reason):
            raise failure(self.id, now)
        return self

    def result(self, timeout: float | None = None) -> Any:
        """Wait, and return the value that it left; None for a command.  Raises TaskFailed if it failed."""
        self.wait(timeout, check=True)
        return self._client.result(self.id)

    def stdout(self) -> str:
        """What is kept of its standard output, or what there is so far; undecodable bytes are replaced."""
        return self.stdout_bytes().decode("utf-8", "replace")

    def stderr(self) -> str:
        return self.stderr_bytes().decode("utf-8", "replace")

    def stdout_bytes(self, *, attempt: int | None = None) -> bytes:
        return b"".join(self._client.logs(self.id, stream="stdout", attempt=attempt))

    def stderr_bytes(self, *, attempt: int | None = None) -> bytes:
        return b"".join(self._client.logs(self.id, stream="stderr", attempt=attempt))

    def cancel(self, *, signal: str | None = None, force: bool = False, reason: str | None = None) -> Task:
        """Ask for its end (TERM, grace, KILL), or send only `signal`.  Returns at once."""
        self._client.act_on_one(self._client.cancel(self, signal=signal, force=force, reason=reason))
        return self

    def hold(self) -> Task:
        self._client.act_on_one(self._client.hold(self))
        return self

    def release(self) -> Task:
        self._client.act_on_one(self._client.release(self))
        return self

    def rerun(self, **changes: Any) -> Task:
        """Run it again as its next attempt, with `changes` like `memory="16G"` applied first."""
        self._client.act_on_one(self._client.rerun(self, **changes))
        self._info = self._ended = None
        return self

    def edit(self, **changes: Any) -> Task:
        """Change what a waiting task asks for."""
        self._client.act_on_one(self._client.edit(self, **changes))
        self._info = None
        return self

    def why(self) -> model.Why:
        """Why it is in its state, in words and facts."""
        return self._client.why(self.id)

    def _known_end(self) -> model.Task | model.Attempt | None:
        if self._ended is not None:
            return self._ended
        return self._info if self._info is not None and self._info.state.final else None

    def _now(self) -> model.Task | model.Attempt:
        return self._known_end() or self.info


def is_success(state: TaskState, reason: str | None) -> bool:
    return state is TaskState.SUCCEEDED or (state is TaskState.SKIPPED and reason == Reason.UP_TO_DATE)


_STATUS_OF_REASON: dict[str | None, int] = {
    Reason.TIMEOUT: 124,
    Reason.NOT_EXECUTABLE: 126,
    Reason.NOT_FOUND: 127,
}


def exit_status(end: model.Task | model.Attempt) -> int:
    """The exit status that stands for how a task ended; see design.md 8 and `geres help exit-codes`."""
    if is_success(end.state, end.reason):
        return 0
    if end.state is TaskState.CANCELLED:
        return 130
    if end.reason in _STATUS_OF_REASON:
        return _STATUS_OF_REASON[end.reason]
    if end.reason == Reason.EXIT and end.exit_code:
        return end.exit_code
    if end.signal:
        return 128 + end.signal
    return 1


def failure(task_id: str, end: model.Task | model.Attempt) -> TaskFailed:
    """The error that stands for a task that did not succeed."""
    cause = end.message or (end.reason.replace("_", " ") if end.reason else end.state.value)
    if end.reason == Reason.EXIT and end.exit_code is not None:
        cause = f"exit {end.exit_code}"
    return TaskFailed(
        f"task {task_id} {end.state.value}: {cause}; `geres why {task_id}` says more",
        id=task_id,
        state=end.state.value,
        reason=end.reason,
        exit_code=end.exit_code,
        signal=end.signal,
        attempt=end.attempt,
    )


def changes_to_wire(changes: dict[str, Any]) -> dict[str, msgspec.Raw]:
    """Changes in people's units as a rerun takes them."""
    from geres.model.options import task_fields  # only reruns with changes need the parsers

    fields = task_fields(changes)
    retry = fields.pop("retry", None)
    if retry is not None:
        fields["retries"] = retry.most
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in fields.items()}
