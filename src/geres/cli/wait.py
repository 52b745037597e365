"""`geres wait`: until tasks or jobs have ended."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import click

from geres.cli.ids import ids_argument, read_ids
from geres.cli.main import App
from geres.cli.output import pretty_json, write_line
from geres.cli.run import report
from geres.model.units import parse_duration
from geres.sdk.job import Job
from geres.sdk.task import Task, exit_status
from geres.sdk.waiting import Progress


@click.command()
@ids_argument()
@click.option("--any", "any_", is_flag=True, help="Until one of the tasks has ended.")
@click.option("--timeout", metavar="TIME", help="Give up after so long, with status 125.")
@click.option("--json", is_flag=True, help="Print the ended tasks and jobs.")
@click.option("-q", "--quiet", is_flag=True, help="No talk on stderr.")
@click.pass_obj
def wait(app: App, ids: tuple[str, ...], any_: bool, timeout: str | None, json: bool, quiet: bool) -> int:
    """Wait for tasks or jobs; of a job, for the tasks that it has now.

    The exit status is that of the last that failed, in the order given, else 0.  Ctrl-C only leaves.
    """
    app.has_task_status = True
    client = app.client
    seconds = None if timeout is None else parse_duration(timeout, "timeout")
    with progress_bar(quiet=quiet) as progress:
        ended = client.wait(read_ids(ids), any=any_, timeout=seconds, progress=progress)
    status = 0
    for one in ended:
        status = _status(client, one, quiet=quiet) or status
    if json:
        write_line(pretty_json([one.info for one in ended]))
    return status


def _status(client: Any, one: Task | Job, *, quiet: bool) -> int:
    if isinstance(one, Job):
        worst = one.last_failed()
        return report(worst.id, worst.info, quiet=quiet) if worst is not None else 0
    end = one.ended or one.info
    return report(one.id, end, quiet=quiet) if exit_status(end) else 0


@contextlib.contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Progress | None]:
    """A bar on stderr, where that is a terminal; None elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # slow to load: only where a bar is drawn
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("waiting"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        line = bar.add_task("waiting", total=None)
        yield lambda done, total: bar.update(line, completed=done, total=total)
