"""`geres run` of an array or of many tasks: each one's output whole, as it ends."""

from __future__ import annotations

import sys
from typing import Any

from geres.cli.output import say
from geres.cli.run import Stops, report, streams_to_files
from geres.cli.submit import submit_rows
from geres.cli.work import Work, warn
from geres.model.tasks import Attempt
from geres.sdk.task import Task, exit_status


def run_many(client: Any, work: Work, *, no_io: bool, quiet: bool) -> int:
    """Submit, print what each task wrote, and return the status of the last one that failed."""
    stops = Stops(client)
    with stops:
        if work.rows is not None:
            group = submit_rows(client, work)
            stops.submitted(*group.ranges())
        else:
            group = client.create_job(work.job_spec())
            stops.submitted(group.id)
            if not quiet:
                warn(group.warnings)
        failed: dict[int, int] = {}
        for task in group.as_ended():
            if not no_io:
                print_output(client, task, streams_to_files(work.spec))
            end = task.ended
            assert end is not None
            if status := exit_status(end):
                failed[task.number] = status
                report(task.id, end, quiet=quiet)
            else:
                failed.pop(task.number, None)
    if failed and not quiet:
        say(f"geres: {len(failed)} of the tasks failed; `geres tasks --job {group_id(group)} --state failed`")
    return failed[max(failed)] if failed else 0


def print_output(client: Any, task: Task, leave_out: frozenset[str]) -> None:
    """Print all that is kept of a task's output, stdout and stderr apart, but for what goes to a file."""
    end = task.ended
    assert isinstance(end, Attempt)  # tasks of a results stream bring their end along
    for kind, stream, size, target in (
        ("o", "stdout", end.stdout_bytes, sys.stdout.buffer),
        ("e", "stderr", end.stderr_bytes, sys.stderr.buffer),
    ):
        if size and kind not in leave_out:
            for piece in client.logs(task.id, stream=stream, attempt=end.attempt):
                target.write(piece)
            target.flush()


def group_id(group: Any) -> str:
    return str(getattr(group, "job_id", None) or group.id)
