"""`geres tasks`, `history`, `dead-letter` and `task`: look at tasks."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from typing import Any

import click

from geres.cli.lists import moment, show_pages, whose
from geres.cli.main import App, group
from geres.cli.output import (
    Column,
    Style,
    escape,
    print_one,
    show_bytes,
    show_number,
    show_since,
    show_time,
    show_usage,
    style_options,
    write_line,
)
from geres.model.tasks import Attempt, TaskDetail
from geres.model.units import plural, show_duration, show_size

_LONGEST_MESSAGE = 60


def command_of(row: dict[str, Any]) -> str:
    """The command of a task as one would type it."""
    if row.get("shell") is not None:
        return str(row["shell"])
    return shlex.join(row.get("command") or [])


def _ended_how(row: dict[str, Any]) -> str:
    if row.get("signal"):
        return f"signal {row['signal']}"
    return "" if row.get("exit_code") is None else str(row["exit_code"])


def _ran_for(row: dict[str, Any]) -> str:
    usage = row.get("usage")
    if row.get("ended_at") is None and row.get("started_at") is not None:
        return show_since(row["started_at"])
    return show_duration(usage["wall_seconds"]) if usage and "wall_seconds" in usage else ""


def _shortened(text: str | None) -> str:
    text = text or ""
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 1] + "…"


_RAN = Column(
    "usage.wall_seconds", "RAN", _ran_for, right=True, of_row=True, needs=("started_at", "ended_at")
)
_COMMAND = Column("command", "COMMAND", command_of, of_row=True, needs=("shell",))
_EXIT = Column("exit_code", "EXIT", _ended_how, right=True, of_row=True, needs=("signal",))
_COLUMNS = [
    Column("id", "ID"),
    Column("name", "NAME"),
    Column("state", "STATE"),
    Column("reason", "REASON"),
    Column("node", "NODE"),
    Column("priority", "PRIO", show_number, right=True),
    Column("cpus", "CPUS", show_number, right=True),
    Column("memory_bytes", "MEMORY", show_bytes, right=True),
    Column("created_at", "CREATED"),
    _RAN,
    _COMMAND,
]
_HISTORY_COLUMNS = [
    Column("id", "ID"),
    Column("name", "NAME"),
    Column("state", "STATE"),
    Column("reason", "REASON"),
    _EXIT,
    Column("node", "NODE"),
    Column("ended_at", "ENDED"),
    _RAN,
    Column("usage.max_rss_bytes", "PEAK", show_bytes, right=True),
    _COMMAND,
]
_DEAD_COLUMNS = [
    Column("id", "ID"),
    Column("name", "NAME"),
    Column("reason", "REASON"),
    _EXIT,
    Column("attempt", "TRIES", show_number, right=True),
    Column("ended_at", "ENDED"),
    Column("message", "MESSAGE", _shortened),
    _COMMAND,
]


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.option("-J", "--job", metavar="JOB", help="Of this job, by id or name."),
        click.option("--user", metavar="NAME", help="Of this submitter.  [you]"),
        click.option("--all", "everyone", is_flag=True, help="Of everybody."),
        click.option("--name", metavar="TEXT", help="With this name."),
        click.option("--node", metavar="NAME", help="On this node."),
        click.option("-p", "--pool", metavar="NAME", help="Of this pool."),
        click.option("--filter", metavar="EXPR", help="Like 'meta.proj==\"x\" and exit_code!=0'."),
        click.option("--grep", metavar="TEXT", help="With this in the command or the name."),
        click.option("--since", metavar="TIME", help="Not older: 2026-03-01T12:00, or 2h, 7d."),
        click.option("--until", metavar="TIME", help="Not younger."),
        click.option("-n", "--limit", metavar="N", type=click.IntRange(min=0), help="How many; 0 for all."),
        click.option("--sort", metavar="FIELD", help="By this field, `-FIELD` backwards.  [newest first]"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@_filters
@click.option("--state", metavar="STATES", help="In these states, with commas; also pending, final.")
@click.option("--pending", is_flag=True, help="Those that wait, the next to start first.")
@click.option("--count", is_flag=True, help="Print only how many there are.")
@style_options()
@click.pass_obj
def tasks(app: App, /, style: Style, state: str | None, pending: bool, count: bool, **flags: Any) -> None:
    """List tasks: yours, newest first; 50 on a terminal, all of them in a pipe."""
    if pending:
        state = "pending"
        flags["sort"] = flags["sort"] or "queue"
    if count:
        query = _query(app, flags)
        page = next(app.client.task_pages(limit=1, count=True, state=state, **query))
        write_line(str(page.matched))
        return
    _list(app, style, _COLUMNS, flags, state=state)


@click.command()
@_filters
@style_options()
@click.pass_obj
def history(app: App, /, style: Style, **flags: Any) -> None:
    """List ended tasks, the latest end first; --since and --until are about the end."""
    flags["sort"] = flags["sort"] or "-ended_at"
    _list(app, style, _HISTORY_COLUMNS, flags, state="final")


@click.command(name="dead-letter")
@_filters
@style_options()
@click.pass_obj
def dead_letter(app: App, /, style: Style, **flags: Any) -> None:
    """List failed tasks whose retries are used up; `geres rerun` gives one another round."""
    _list(app, style, _DEAD_COLUMNS, flags, dead=True)


task = group("task", default="list", help="Show one task, or list them.")


@click.command(name="show")
@click.argument("id")
@style_options(stream=False)
@click.pass_obj
def task_show(app: App, id: str, style: Style) -> None:
    """Show all about one task: state, node, requests, attempts, use, timeline."""
    info = app.client.task_info(app.client.task(id).id)
    print_one(style, info, lambda one: _show_lines(one, style))


def _list(app: App, style: Style, columns: list[Column], flags: dict[str, Any], **fixed: Any) -> None:
    query = {**_query(app, flags), **fixed}
    if not query["sort"] and not query["job"] and query.get("state") != "pending":
        query["sort"] = "-created_at"  # ids grow within a job only
    show_pages(style, app.client, "tasks", columns, flags["limit"], query)


def _query(app: App, flags: dict[str, Any]) -> dict[str, Any]:
    user = whose(app.client, flags["user"], flags["everyone"] or flags["job"] is not None)
    return {
        **{name: flags[name] for name in ("job", "name", "node", "pool", "filter", "grep", "sort")},
        "user": user,
        "since": moment(flags["since"], "since"),
        "until": moment(flags["until"], "until"),
    }


def _show_lines(info: TaskDetail, style: Style) -> Iterator[str]:
    for name, value in _facts(info, style):
        if value not in (None, ""):
            yield f"{name + ':':<14}{value}"
    if info.attempts:
        yield "attempts:"
        for attempt in info.attempts:
            yield "  " + _attempt_line(attempt, style)


def _facts(info: TaskDetail, style: Style) -> Iterator[tuple[str, str | None]]:
    def at(text: str | None) -> str:
        return show_time(text, utc=style.utc)

    spec = info.spec
    yield "task", info.id + (f"  {escape(info.name)}" if info.name else "")
    yield (
        "state",
        info.state.value + (f" ({info.reason})" if info.reason else "") + f" since {at(info.state_since)}",
    )
    if info.previous_state:
        yield "before", f"{info.previous_state.value} since {at(info.previous_since)}"
    yield "message", info.message and escape(info.message)
    yield "command", escape(command_of({"shell": info.shell, "command": info.command}))
    yield "item", info.item and escape(info.item)
    yield "submitted by", escape(info.submitted_by)
    yield "pool", info.pool
    yield "node", info.node and info.node + ("" if info.node_connected is not False else " (not connected)")
    yield "location", info.location
    yield "directory", spec.cwd or "its own folder"
    asked = [plural(info.cpus, "cpu")]
    if info.memory_bytes:
        asked.append(show_size(info.memory_bytes) + " memory")
    if info.gpus:
        asked.append(plural(info.gpus, "gpu"))
    asked += [f"{count} {escape(name)}" for name, count in info.resources.items()]
    yield "asks for", ", ".join(asked) + (", the node for itself" if info.exclusive else "")
    yield "time limit", show_duration(spec.time_limit_seconds)
    yield "priority", f"{info.priority}"
    yield "exit code", None if info.exit_code is None else str(info.exit_code)
    yield "signal", None if info.signal is None else str(info.signal)
    counts = (
        *(
            (info.retry_count, "retried"),
            (info.requeue_count, "requeued"),
            (info.lost_count, "lost with its node"),
        ),
    )
    yield "tries", f"{info.attempt}" + "".join(f", {count} times {what}" for count, what in counts if count)
    if info.meta:
        yield "meta", ", ".join(f"{escape(key)}={escape(value)}" for key, value in info.meta.items())
    for rule in info.rules:
        yield "rule", escape(rule)
    yield "created", at(info.created_at)
    yield "not before", at(info.not_before)
    yield "assigned", at(info.assigned_at)
    yield "started", at(info.started_at)
    yield "asked to end", at(info.cancel_requested_at)
    yield "ended", at(info.ended_at)
    yield "waited", show_duration(info.wait_seconds)
    if info.usage is not None:
        yield "used", show_usage(info.usage)


def _attempt_line(attempt: Attempt, style: Style) -> str:
    how = attempt.reason or ""
    if attempt.exit_code is not None:
        how = f"exit {attempt.exit_code}"
    if attempt.signal:
        how = f"signal {attempt.signal}"
    parts = [
        f"{attempt.attempt}: {attempt.state.value}",
        how,
        f"on {attempt.node}" if attempt.node else "",
        f"ended {show_time(attempt.ended_at, utc=style.utc)}",
        show_duration(attempt.usage.wall_seconds),
        f"peak {show_size(attempt.usage.max_rss_bytes)}" if attempt.usage.max_rss_bytes else "",
        f"stdout {show_size(attempt.stdout_bytes)}" if attempt.stdout_bytes else "",
        f"stderr {show_size(attempt.stderr_bytes)}" if attempt.stderr_bytes else "",
        escape(attempt.message or ""),
    ]
    return ", ".join(part for part in parts if part)
