"""`geres attach`: go on with a task as `geres run` does."""

from __future__ import annotations

import os
import signal
from types import FrameType

import click

from geres.cli.main import App
from geres.cli.output import say
from geres.cli.run import follow, has_stdin, report


@click.command()
@click.argument("id")
@click.option(
    "--stdin/--no-stdin", default=None, help="Pass our stdin on, also from a terminal.  [a pipe or a file]"
)
@click.option("--new", is_flag=True, help="Only output from now on.")
@click.option("-q", "--quiet", is_flag=True, help="No talk on stderr.")
@click.pass_obj
def attach(app: App, id: str, stdin: bool | None, new: bool, quiet: bool) -> int:
    """Follow a task: what it wrote and writes, then its exit status.  Ctrl-C only leaves.

    Where our stdin is a pipe or a file it goes to the task, if that was given a stdin (`geres run`,
    `geres submit --stdin`), and its end ends that of the task: `echo yes | geres attach 12.7`.
    """
    app.has_task_status = True
    task = app.client.task(id)
    by_itself = stdin is None and has_stdin() and not os.isatty(0)
    if by_itself:
        stdin = app.client.task_info(task.id).spec.stdin

    def leave(number: int, frame: FrameType | None) -> None:
        if not quiet:
            say(f"geres: {task.id} goes on; `geres cancel {task.id}` ends it")
        os._exit(128 + number)  # the stdin thread may sit in a read that nothing ends

    signal.signal(signal.SIGINT, leave)
    end = follow(app.client, task.id, stdin=bool(stdin), unasked=by_itself, quiet=quiet, from_now=new)
    return report(task.id, end, quiet=quiet)
