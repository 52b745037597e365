"""Submit very many tasks: check all, then send pieces while the next one is encoded."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from geres.errors import GeresError, Invalid, NotFound
from geres.model.jobs import DEFAULT_JOB
from geres.model.options import row_from_options
from geres.model.specs import check_command
from geres.model.tasks import BulkAnswer, TaskRow, TaskSpec
from geres.sdk.group import Tasks
from geres.sdk.http import encode
from geres.sdk.waiting import Progress

if TYPE_CHECKING:
    from geres.sdk.client import Client

PIECE = 10_000
Row = TaskRow | Sequence[str]


def send(
    client: Client,
    rows: Sequence[Row],
    defaults: TaskSpec,
    job: str | None,
    progress: Progress | None = None,
    *,
    after: Sequence[str] = (),
) -> Tasks:
    """Send rows that were checked; the handles come in the order given."""
    finished = _finished(client, job or DEFAULT_JOB)
    pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    sender = _Sender(client, pieces, len(rows), progress)
    sender.start()
    try:
        for start in range(0, len(rows), PIECE):
            if sender.failure:
                break
            pieces.put(_body(rows[start : start + PIECE], defaults, job, after))
    finally:
        pieces.put(None)
        sender.join()
    if sender.failure:
        raise sender.failure
    return Tasks(client, sender.job_id or job or "", sender.numbers, finished)


def checked(commands: Iterable[Sequence[str] | dict[str, Any] | TaskRow], defaults: TaskSpec) -> list[Row]:
    """All rows, checked; the first bad one raises Invalid, named by its place."""
    rows: list[Row] = []
    plain = defaults.command is None and defaults.shell is None and defaults.handler is None
    for position, command in enumerate(commands):
        if plain and type(command) is list:
            try:
                check_command(command)
            except (Invalid, TypeError):
                row_from_options({"command": command}, defaults, field=f"tasks[{position}].")
                raise
            rows.append(command)
        elif isinstance(command, TaskRow):
            rows.append(command)
        else:
            options = command if isinstance(command, dict) else {"command": command}
            rows.append(row_from_options(options, defaults, field=f"tasks[{position}]."))
    return rows


class _Sender(threading.Thread):
    """Sends encoded pieces one after the other, so that numbers follow the order given."""

    def __init__(
        self, client: Client, pieces: queue.SimpleQueue[bytes | None], total: int, progress: Progress | None
    ) -> None:
        super().__init__(name="geres-bulk", daemon=True)
        self.failure: GeresError | None = None
        self.job_id: str | None = None
        self.numbers: list[range] = []
        self._client = client
        self._pieces = pieces
        self._total = total
        self._progress = progress

    def run(self) -> None:
        stored = 0
        try:
            while (piece := self._pieces.get()) is not None:
                answer = self._client.transport.post("/v1/tasks:bulk", BulkAnswer, piece)
                self.job_id = answer.job_id
                self.numbers.append(range(answer.first_number, answer.first_number + answer.count))
                stored += answer.count
                if self._progress:
                    self._progress(stored, self._total)
        except GeresError as error:
            error.facts.setdefault("stored", stored)
            self.failure = error
        except Exception as error:  # the caller's thread raises it
            self.failure = GeresError(f"the submit broke off after {stored} tasks: {error!r}", stored=stored)
            self.failure.__cause__ = error


def _body(rows: Sequence[Row], defaults: TaskSpec, job: str | None, after: Sequence[str]) -> bytes:
    body: dict[str, Any] = {"tasks": [row if isinstance(row, TaskRow) else {"command": row} for row in rows]}
    if defaults != TaskSpec():
        body["defaults"] = defaults
    if job is not None:
        body["job"] = job
    if after:
        body["after"] = after
    return encode(body)


def _finished(client: Client, job: str) -> int:
    """The job's finish number before the submit: none of the new tasks ends at or before it."""
    try:
        return client.job_info(job).finished
    except NotFound:
        return 0
