"""`geres attach`: go on with a task as `geres run` does."""

from __future__ import annotations

import os
import signal
from types import FrameType

import click

from geres.cli.main import App
from geres.cli.output import say
from geres.cli.run import follow, report


@click.command()
@click.argument("id")
@click.option(
    "--stdin/--no-stdin", default=False, help="Pass our stdin on, where the task was given one.  [leave it]"
)
@click.option("--new", is_flag=True, help="Only output from now on.")
@click.option("-q", "--quiet", is_flag=True, help="No talk on stderr.")
@click.pass_obj
def attach(app: App, id: str, stdin: bool, new: bool, quiet: bool) -> int:
    """Follow a task: what it wrote and writes, then its exit status.  Ctrl-C only leaves."""
    app.has_task_status = True
    task = app.client.task(id)

    def leave(number: int, frame: FrameType | None) -> None:
        if not quiet:
            say(f"geres: {task.id} goes on; `geres cancel {task.id}` ends it")
        os._exit(128 + number)  # the stdin thread may sit in a read that nothing ends

    signal.signal(signal.SIGINT, leave)
    end = follow(app.client, task.id, stdin=stdin, quiet=quiet, from_now=new)
    return report(task.id, end, quiet=quiet)
