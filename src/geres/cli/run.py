"""`geres run`: a command on some node, as if it ran here."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import click

from geres.cli.main import App
from geres.cli.output import say
from geres.cli.submit import show_dry_run, submit_one
from geres.cli.task_options import task_options
from geres.cli.work import Work, read_work, warn
from geres.errors import GeresError
from geres.model.states import Reason, TaskState
from geres.sdk.task import exit_status

_STDIN_PIECE = 1 << 16
_PATIENCE_SECONDS = 600.0
_TELL_AFTER_SECONDS = 3.0
_HANGUP_STATUS = 128 + 1
_BROKEN_PIPE_STATUS = 128 + 13
_OUR_FAULT_STATUS = 125


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--stdin/--no-stdin", default=None, help="Pass stdin through or leave it alone.  [pass]")
@click.option("--no-io", is_flag=True, help="Wait only: print no output, pass no input.")
@click.option("--line-buffered", is_flag=True, help="Print whole lines only, as they are complete.")
@click.option("-q", "--quiet", is_flag=True, help="No talk on stderr.")
@task_options
@click.pass_obj
def run(
    app: App,
    /,
    words: tuple[str, ...],
    stdin: bool | None,
    no_io: bool,
    line_buffered: bool,
    quiet: bool,
    **flags: Any,
) -> int:
    """Run a command on some node and wait: its output as it comes, its stdin, its exit status.

    Ctrl-C cancels it, a second one does not wait for that.  A lost terminal leaves it running; `geres
    attach ID` goes on.  Arrays and --from print each task's output whole as it ends.

    \b
      geres run -c 4 -m 8G -- make -j4
      geres run sort -u < names.txt
      geres run --items files.txt -- wc -l {}
    """
    app.has_task_status = True
    live = not no_io and not (flags["array"] or flags["items"] or flags["from_"] or ":::" in words)
    wants_stdin = live and (has_stdin() if stdin is None else stdin)
    work = read_work(app, words, flags, stdin=wants_stdin)
    client = app.client
    if work.dry_run:
        show_dry_run(client, work, json=False)
        return 0
    if work.array is not None or work.rows is not None:
        from geres.cli.run_many import run_many  # one task needs none of it

        return run_many(client, work, no_io=no_io, quiet=quiet)
    return run_one(client, work, no_io=no_io, lines=line_buffered, quiet=quiet)


def run_one(client: Any, work: Work, *, no_io: bool, lines: bool, quiet: bool) -> int:
    """Submit and stay with the task; its exit status."""
    stops = Stops(client)
    with stops:
        answer = submit_one(client, work)
        stops.submitted(answer.task.id)
        if not quiet:
            warn(answer.warnings)
            if answer.attached:
                say(f"geres: {answer.task.id} has that id already; following it")
        if no_io:
            end = client.wait_one(answer.task.id)
        else:
            to_files = streams_to_files(work.spec)
            end = follow(
                client, answer.task.id, stdin=work.spec.stdin, lines=lines, quiet=quiet, leave_out=to_files
            )
    return report(answer.task.id, end, quiet=quiet)


def streams_to_files(spec: Any) -> frozenset[str]:
    """Which of "o" and "e" go to a file that the caller named: as with `cmd > FILE`, nowhere else."""
    out, err = spec.stdout is not None, spec.stderr is not None
    return frozenset([*(["o"] if out else []), *(["e"] if err or (out and spec.merge) else [])])


def follow(
    client: Any,
    task_id: str,
    *,
    stdin: bool,
    quiet: bool,
    unasked: bool = False,
    from_now: bool = False,
    lines: bool = False,
    leave_out: frozenset[str] = frozenset(),
) -> Any:
    """Pass the task's streams through until it ends, or with `lines` whole lines of them; how it ended.

    With `unasked` a stdin that is empty is not passed on: nobody may have meant it.
    """
    from geres.model.tasks import Attempt
    from geres.sdk.attach import Attachment  # loads the WebSocket client

    attached = Attachment(
        client.transport, task_id, stdin=stdin, from_now=from_now, patience_seconds=_PATIENCE_SECONDS
    )
    if stdin:
        threading.Thread(
            target=pump_stdin, args=(attached,), kwargs={"unasked": unasked}, name="geres-stdin", daemon=True
        ).start()
    has_run = told = False
    breaks = 0
    partial = {"o": b"", "e": b""}
    facts: dict[str, Any] = {}
    for frame in attached.frames(_TELL_AFTER_SECONDS):
        if frame is None:
            if not (has_run or told or quiet) and sys.stderr.isatty():
                told = True
                _tell_why(client, task_id)
            continue
        kind, value = frame
        if kind in ("o", "e"):
            has_run = True
            if kind in leave_out:
                continue
            if lines:
                whole, end, partial[kind] = (partial[kind] + value).rpartition(b"\n")
                value = whole + end
            _pass_on(client, task_id, 1 if kind == "o" else 2, value)
        elif kind == "s":
            has_run = has_run or value in (TaskState.RUNNING, TaskState.SUSPENDED)
        elif kind == "lost":
            breaks += 1
            if breaks == 3 and not quiet:
                say(f"geres: the connection for {task_id} broke; trying again")
        elif kind == "end":
            facts = value
    for descriptor, rest in enumerate(partial.values(), 1):
        _pass_on(client, task_id, descriptor, rest)
    return Attempt(
        task_id=task_id,
        attempt=facts.get("attempt") or 0,
        state=TaskState(facts["state"]),
        reason=facts.get("reason"),
        message=facts.get("message"),
        exit_code=facts.get("exit_code"),
        signal=facts.get("signal"),
    )


def report(task_id: str, end: Any, *, quiet: bool) -> int:
    """Say on stderr how a task ended that did not end by itself; its exit status."""
    status = exit_status(end)
    if not quiet and status != 0 and end.reason != Reason.EXIT:
        cause = end.reason.replace("_", " ") if end.reason else ""
        told = end.message or (f"signal {end.signal}" if end.signal else cause)
        say(f"geres: {task_id} {end.state.value}: {told}" if told else f"geres: {task_id} {end.state.value}")
    return status


class Stops:
    """What Ctrl-C, SIGTERM and a lost terminal mean while we stay with tasks."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._ids: list[str] = []
        self._count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stops:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._cancel)
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            self._before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._leave)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def submitted(self, *ids: str) -> None:
        """From now on these are what a stop is about; one that came before is carried out."""
        self._ids.extend(ids)
        if self._count:
            self._ask(force=False)

    def _cancel(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if not self._ids:
            if self._count > 1:
                raise KeyboardInterrupt
            return
        if self._count == 1:
            say(f"geres: cancelling {' '.join(self._ids)}; once more leaves without waiting")
            self._ask(force=False)
        else:
            say(f"geres: left; `geres why {self._ids[0]}` tells how it ends")
            self._ask(force=True, wait_seconds=2.0)
            raise KeyboardInterrupt

    def _leave(self, number: int, frame: FrameType | None) -> None:
        for one in self._ids:
            say(f"geres: {one} goes on; `geres attach {one}` follows it")
        os._exit(_HANGUP_STATUS)  # stdout is gone too: nothing to flush, and no thread to wait for

    def _ask(self, *, force: bool, wait_seconds: float = 0.0) -> None:
        """Ask in a thread of its own: a signal may come in the middle of a request."""

        def ask() -> None:
            try:
                self._client.cancel(*self._ids, force=force, reason="interrupted")
            except GeresError as error:
                say(f"geres: {error.code}: {error}")

        thread = threading.Thread(target=ask, name="geres-cancel", daemon=True)
        thread.start()
        if wait_seconds:
            thread.join(wait_seconds)


def has_stdin() -> bool:
    """True where stdin can hold something: open, and not the null device."""
    try:
        here = os.fstat(0)
        null = os.stat(os.devnull)
    except OSError:
        return False
    return not (here.st_dev == null.st_dev and here.st_ino == null.st_ino)


def pump_stdin(attached: Any, read: Callable[[], bytes] | None = None, *, unasked: bool = False) -> None:
    """Send our stdin to the task until it ends; only as fast as the task reads."""
    read = read or (lambda: os.read(0, _STDIN_PIECE))
    sent = False
    while True:
        try:
            piece = read()
        except OSError:  # a terminal that we are not in front of
            piece = b""
        if not piece:
            if sent or not unasked:
                attached.write_eof()
            return
        if not attached.write(piece):
            return
        sent = True


def _pass_on(client: Any, task_id: str, descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        # As for a local command: who wants no more output of it wants no more of it.
        client.cancel(task_id, reason="its output is not read any more")
        if isinstance(error, BrokenPipeError):
            os._exit(_BROKEN_PIPE_STATUS)
        say(f"geres: output: {task_id} is cancelled, its output cannot be written here: {error.strerror}")
        os._exit(_OUR_FAULT_STATUS)


def _tell_why(client: Any, task_id: str) -> None:
    try:
        say(f"geres: {task_id}: {client.why(task_id).summary}")
    except GeresError:
        say(f"geres: {task_id} waits; `geres why {task_id}` says why")
