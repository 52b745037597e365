"""`geres logs` and `geres result`: what tasks wrote and left."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import click
import msgspec

from geres.cli.ids import ids_argument, read_ids
from geres.cli.main import App
from geres.cli.output import say, write_line
from geres.errors import Invalid
from geres.model.states import TaskState
from geres.sdk.task import Task

Stream = Literal["stdout", "stderr"]


@click.command()
@ids_argument()
@click.option("-F", "--follow", is_flag=True, help="Go on while it runs.")
@click.option("-n", "--tail", metavar="N", type=click.IntRange(min=0), help="Only the last N lines.")
@click.option("--attempt", metavar="N", type=int, help="Of this attempt.  [the latest]")
@click.option("--stdout", "only", flag_value="stdout", help="Only stdout.")
@click.option("--stderr", "only", flag_value="stderr", help="Only stderr.")
@click.option("--failed", is_flag=True, help="Of a job: only tasks that failed.")
@click.pass_obj
def logs(
    app: App,
    ids: tuple[str, ...],
    follow: bool,
    tail: int | None,
    attempt: int | None,
    only: Stream | None,
    failed: bool,
) -> None:
    """Print what tasks wrote: their stdout on stdout, their stderr on stderr.

    Of several tasks, or of a job, each line comes with the task's id before it.
    """
    client = app.client
    named = read_ids(ids)
    if follow:
        _follow_one(client, named, tail)
        return
    streams: tuple[Stream, ...] = (only,) if only else ("stdout", "stderr")
    tasks, many = _tasks(client, named, failed)
    count = 0
    for task in tasks:
        count += 1
        printed = False
        for stream in streams:
            pieces = client.logs(task.id, stream=stream, attempt=attempt, tail=tail)
            printed = _print(pieces, stream, f"{task.id}: ".encode() if many else b"") or printed
        if not (printed or many) and not client.task_info(task.id).attempt:
            say(f"geres: {task.id} has not run yet; `geres why {task.id}` says why")
    if not count:
        say("geres: no such task" if not failed else "geres: no task of it failed")


@click.command()
@click.argument("id")
@click.option("--wait", is_flag=True, help="Wait for the task first.")
@click.pass_obj
def result(app: App, id: str, wait: bool) -> None:
    """Print the value that a task left, as JSON; `null` where it left none."""
    task = app.client.task(id)
    if wait:
        task.wait(check=True)
    write_line(msgspec.json.encode(app.client.result(task.id)).decode())


def _tasks(client: Any, ids: list[str], failed: bool) -> tuple[Iterable[Task], bool]:
    """The tasks meant, oldest first, and whether lines say of which task they are."""
    tasks: list[Task] = []
    many = len(ids) > 1
    for one in ids:
        found = client.find(one)
        if found.kind == "job":
            many = True
            tasks.extend(client.tasks(job=found.job_id, sort="id", state="failed" if failed else None))
        else:
            many = many or len(found.task_ids) > 1
            tasks.extend(Task(client, task_id) for task_id in found.task_ids)
    if failed:
        tasks = [task for task in tasks if task.state is TaskState.FAILED]
    return tasks, many


def _print(pieces: Iterator[bytes], stream: Stream, prefix: bytes) -> bool:
    """Print what comes; False where that was nothing."""
    target = sys.stdout.buffer if stream == "stdout" else sys.stderr.buffer
    sys.stdout.flush()
    at_start, printed = True, False
    for piece in pieces:
        printed = printed or bool(piece)
        if prefix:
            ends = piece.endswith(b"\n")
            piece = piece.replace(b"\n", b"\n" + prefix)
            piece = (prefix if at_start else b"") + (piece[: -len(prefix)] if ends else piece)
            at_start = ends
        target.write(piece)
    if prefix and not at_start:
        target.write(b"\n")
    target.flush()
    return printed


def _follow_one(client: Any, ids: list[str], tail: int | None) -> None:
    """Print a task's output until it ends; our end changes nothing for it."""
    if len(ids) != 1:
        raise Invalid("follow: goes with one task", field="follow")
    from geres.sdk.attach import Attachment  # loads the WebSocket client

    task = client.task(ids[0])
    if tail is not None:
        for stream in ("stdout", "stderr"):
            _print(client.logs(task.id, stream=stream, tail=tail), stream, b"")
    attached = Attachment(client.transport, task.id, from_now=tail is not None)
    try:
        for frame in attached.frames():
            if frame is not None and frame[0] in ("o", "e"):
                _write_all(1 if frame[0] == "o" else 2, frame[1])
    except KeyboardInterrupt:
        attached.close()


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
