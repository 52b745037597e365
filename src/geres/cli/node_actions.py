"""`geres node drain|undrain|remove|reboot|ssh|logs`: what operators do to nodes."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import IO, Any

import click

from geres.cli.main import App
from geres.cli.output import escape, pretty_json, say, write_line
from geres.errors import BY_CODE, GeresError, Invalid, NotFound
from geres.model.nodes import NodeActed

_LOOK_SECONDS = 0.5
_TELL_SECONDS = 10.0


@dataclass(frozen=True)
class _Wish:
    """What is asked of nodes, and how it is told."""

    names: tuple[str, ...]
    reason: str | None
    dry_run: bool
    json: bool
    quiet: bool
    wait: bool = False
    running: str = "wait"
    yes: bool = False
    detach: bool = False

    @property
    def stays(self) -> bool:
        """Whether to wait until it is done."""
        return not (self.detach or self.dry_run)


_FOR_ALL = (
    click.argument("names", nargs=-1, required=True, metavar="NODE..."),
    click.option("--reason", metavar="TEXT", help="Kept in the node's history."),
    click.option("--dry-run", is_flag=True, help="Only say what would be done."),
    click.option("--json", is_flag=True, help="What became of each, as JSON."),
    click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors."),
)
#: What becomes of tasks on nodes that go, and whether to wait for it.
_LEAVING = (
    click.option(
        "--wait", "running", flag_value="wait", default="wait", help="Let tasks end first.  [default]"
    ),
    click.option(
        "--requeue",
        "running",
        flag_value="requeue",
        help="Stop tasks that run there and queue them again; this is no retry.",
    ),
    click.option("--terminate", "running", flag_value="terminate", help="Cancel tasks that run there."),
    click.option("--detach", is_flag=True, help="Do not wait until it is done; the cluster goes on."),
    click.option("--yes", is_flag=True, help="Do not ask before tasks are cancelled."),
)


def _action(*options: Callable[..., Any]) -> Callable[[Callable[[App, _Wish], int]], click.Command]:
    """A command on nodes with the options of all of them, and these."""

    def make(act: Callable[[App, _Wish], int]) -> click.Command:
        @click.pass_obj
        def called(app: App, /, **given: Any) -> int:
            return act(app, _Wish(**given))

        command: Callable[..., Any] = called
        for option in reversed((*_FOR_ALL, *options)):
            command = option(command)
        return click.command(act.__name__.replace("_", "-"), help=act.__doc__)(command)

    return make


@_action(click.option("--wait", is_flag=True, help="Come back when no task is on them any more."))
def node_drain(app: App, wish: _Wish) -> int:
    """Start no new tasks on nodes; what runs there goes on.  Names may be globs, like 'rack3-*'."""
    answer = app.client.drain_nodes(*_named(app, wish.names), reason=wish.reason, dry_run=wish.dry_run)
    status = _tell(answer, "drained", wish, busy="draining")
    if wish.wait and not wish.dry_run:
        _follow(app, answer, lambda node: not node.task_ids, quiet=wish.quiet)
        _say_done([one for one in answer if one.task_count], "drained", wish)
    return status


@_action()
def node_undrain(app: App, wish: _Wish) -> int:
    """Start tasks on nodes again; also takes back nodes that were removed."""
    named = _named(app, wish.names, removed=True)
    answer = app.client.undrain_nodes(*named, reason=wish.reason, dry_run=wish.dry_run)
    return _tell(answer, "takes tasks again", wish)


@_action(*_LEAVING)
def node_remove(app: App, wish: _Wish) -> int:
    """Take nodes out of the cluster once no task is on them: they cannot connect any more.

    Stop their agents or machines afterwards.  Ctrl-C only stops waiting; `geres node undrain` takes it back.
    """
    answer = _leave(app, wish, app.client.remove_nodes)
    status = _tell(answer, "is to be removed", wish, later=wish.stays)
    if wish.stays:
        _follow(app, answer, lambda node: node.removed_at is not None, quiet=wish.quiet)
        _say_done(answer, "removed", wish)
    return status


@_action(*_LEAVING)
def node_reboot(app: App, wish: _Wish) -> int:
    """Drain nodes, run the server's hook `reboot` once no task is on them, and take them back.

    The hook is a command in the server's settings, `hooks = { reboot = "..." }`, called with the node's name.
    """
    answer = _leave(app, wish, app.client.reboot_nodes)
    status = _tell(answer, "is to be rebooted", wish, later=wish.stays)
    if not wish.stays:
        return status
    _follow(app, answer, lambda node: node.going is None, quiet=wish.quiet)
    for one in answer:
        node = app.client.node(one.name) if one.code is None else None
        if node is not None and node.state.value == "draining":
            last = next((change.why for change in reversed(node.history) if change.why), "")
            say(f"geres: {one.name}: {last}")
            status = status or 1
    if not status:
        _say_done(answer, "is back", wish)
    return status


def _leave(app: App, wish: _Wish, act: Callable[..., list[NodeActed]]) -> list[NodeActed]:
    """Ask for nodes to go, at a terminal only after asking whether tasks may be cancelled."""
    named = _named(app, wish.names)
    if wish.running == "terminate" and not (wish.yes or wish.dry_run):
        _ask(act(*named, dry_run=True))
    return act(*named, running=wish.running, reason=wish.reason, dry_run=wish.dry_run)


@click.command()
@click.argument("name")
@click.option("--since", metavar="TIME", default="1d", help="Only of the last 1h, 30m, ...  [1d]")
@click.option("-o", "--output", "stdout", metavar="FILE", help="Write it to a file instead of stdout.")
@click.pass_obj
def node_logs(app: App, name: str, since: str, stdout: str | None) -> None:
    """Print what a node's agent and supervisor have logged, brought here through the agent."""
    from geres.model.units import parse_duration  # only this command needs it

    pieces = app.client.node_logs(name, since_seconds=parse_duration(since, "since"))
    first = next(pieces, b"")  # a refusal leaves no file
    try:
        with contextlib.ExitStack() as stack:
            out: IO[bytes] = stack.enter_context(open(stdout, "wb")) if stdout else sys.stdout.buffer
            size = out.write(first)
            for piece in pieces:
                size += out.write(piece)
    except OSError as error:
        if stdout is None:
            raise
        raise Invalid(f"output: {stdout} cannot be written: {error.strerror}", field="output") from None
    if stdout:
        say(f"geres: {size:,} bytes in {stdout}")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[--] [COMMAND...]")
@click.option("--print", "only_print", is_flag=True, help="Print the ssh command and do not run it.")
@click.pass_obj
def node_ssh(app: App, name: str, words: tuple[str, ...], only_print: bool) -> None:
    """Log in to a node's machine: runs `ssh` with the address that the node is known by.

    Its label `ssh` (`geres agent --label ssh=USER@HOST`) says another one.  Words after the name go to ssh.
    """
    login = app.client.node(name).login
    if not login or login.startswith("-"):
        raise NotFound(f"nothing is known of how to reach {name}: give its agent --label ssh=USER@HOST")
    command = ["ssh", login, *words]
    if only_print:
        write_line(shlex.join(command))
        return
    sys.stdout.flush()
    try:
        os.execvp("ssh", command)
    except FileNotFoundError:
        raise NotFound(f"there is no program ssh here; the command would be {shlex.join(command)}") from None


def _named(app: App, names: tuple[str, ...], *, removed: bool = False) -> list[str]:
    """The names, globs replaced by the nodes that they mean.  Raises NotFound for one that means none."""
    found: list[str] = []
    known: list[str] | None = None
    for name in names:
        if not any(mark in name for mark in "*?["):
            found.append(name)
            continue
        if known is None:
            known = [node.name for node in app.client.nodes()]
        matching = [one for one in known if fnmatchcase(one, name)]
        if not matching:
            raise NotFound(f"no node is called like {name!r}; see `geres nodes`")
        found += matching
    return list(dict.fromkeys(found))


def _ask(would: list[NodeActed]) -> None:
    """At a terminal, ask before tasks are cancelled.  Raises Exit where the answer is no."""
    count = sum(one.task_count for one in would)
    if count and sys.stdin.isatty():
        named = ", ".join(f"{escape(one.name)} ({one.task_count})" for one in would if one.task_count)
        try:
            if click.confirm(f"This cancels the tasks on {named}.  Go on?", err=True):
                return
        except click.Abort:
            say("")  # the prompt had no answer, and left its line open
        say("nothing was done; --yes does it without asking")
        raise click.exceptions.Exit(1)


def _tell(
    answer: list[NodeActed], what: str, wish: _Wish, *, busy: str | None = None, later: bool = False
) -> int:
    """Say what became of each, `busy` of one with tasks; the exit status is that of the first refusal.

    With `later` only refusals are told now: the rest is when it is done.
    """
    status = 0
    if wish.json:
        write_line(pretty_json(answer))
    for one in answer:
        if one.code is not None:
            say(f"geres: {one.code}: {escape(one.message or '')}")
            status = status or BY_CODE.get(one.code, GeresError).exit_status
        elif not (later or wish.quiet or wish.json):
            runs = "task runs" if one.task_count == 1 else "tasks run"
            tasks = f"; {one.task_count} {runs} there" if one.task_count else ""
            word = "would be acted on" if wish.dry_run else (busy or what) if one.task_count else what
            write_line(f"{escape(one.name)}: {word}{tasks}")
    return status


def _say_done(answer: list[NodeActed], what: str, wish: _Wish) -> None:
    if not (wish.json or wish.quiet):
        for one in answer:
            if one.code is None:
                write_line(f"{escape(one.name)}: {what}")


def _follow(app: App, answer: list[NodeActed], is_done: Callable[[Any], bool], *, quiet: bool) -> None:
    """Wait until it is so for all of them, and tell on stderr what is waited for."""
    open_names = [one.name for one in answer if one.code is None]
    told_at, told = time.monotonic() - _TELL_SECONDS + 1.0, ""
    while True:
        waiting = {}
        for name in open_names:
            node = app.client.node(name)
            if not is_done(node):
                waiting[name] = node
        open_names = list(waiting)
        if not waiting:
            return
        if not quiet and time.monotonic() - told_at >= _TELL_SECONDS:
            said = "; ".join(_still(node) for node in list(waiting.values())[:5])
            more = f" and {len(waiting) - 5} more" if len(waiting) > 5 else ""
            if said != told:
                say(f"geres: waiting for {said}{more} (Ctrl-C leaves; it goes on)")
            told_at, told = time.monotonic(), said
        time.sleep(_LOOK_SECONDS)


def _still(node: Any) -> str:
    ids = node.task_ids
    if not ids:
        return f"{node.name}, which is {node.state.value}"
    count = "1 task" if len(ids) == 1 else f"{len(ids)} tasks"
    return f"{node.name}: {count} ({' '.join(ids[:3])}{' ...' if len(ids) > 3 else ''})"
