"""`geres pools` and `pool`: what the nodes of a pool run before they take tasks."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import click
import msgspec
from msgspec import UNSET, UnsetType

from geres.cli.main import App, group
from geres.cli.output import (
    Column,
    Style,
    escape,
    pretty_json,
    print_list,
    print_one,
    say,
    show_time,
    style_options,
    write_line,
)
from geres.cli.task_options import pairs
from geres.errors import Invalid, NotFound
from geres.model.pools import Pool, StartTask
from geres.model.units import parse_duration, show_duration

_MOST_SHOWN = 60


def _command(start: dict[str, Any] | None) -> str:
    if start is None:
        return ""
    return str(start["shell"]) if start.get("shell") is not None else shlex.join(start.get("command") or [])


def _nodes(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _short(start: dict[str, Any] | None) -> str:
    text = " ".join(_command(start).split())
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 1] + "…"


_COLUMNS = [
    Column("name", "NAME"),
    Column("nodes", "NODES", _nodes),
    Column("start_task", "START TASK", _short),
]


@click.command()
@style_options()
@click.pass_obj
def pools(app: App, style: Style) -> None:
    """List pools with their nodes and start tasks; takes an operator."""
    print_list(style, app.client.pools(), _COLUMNS, key="name")


pool = group("pool", default="list", help="Show pools, and set what their nodes run first.")


@click.command(name="show")
@click.argument("name")
@style_options(stream=False)
@click.pass_obj
def pool_show(app: App, name: str, style: Style) -> None:
    """Show all about one pool; takes an operator."""
    print_one(style, app.client.pool(name), lambda info: _show_lines(info, style), key="name")


@click.command(name="set")
@click.argument("name")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[--] [COMMAND...]")
@click.option("--shell", is_flag=True, help="The command is a line for /bin/sh.")
@click.option("--retries", metavar="N", type=int, help="Try again when it fails.  [2]")
@click.option("-t", "--time-limit", metavar="TIME", help="A try is ended after so long.  [10m]")
@click.option(
    "--env", multiple=True, metavar="NAME=VALUE", help="A variable that it gets; replaces those it has."
)
@click.option("--no-start-task", is_flag=True, help="Run nothing first any more.")
@click.option("--create", is_flag=True, help="Make the pool where no node has joined it yet.")
@click.option("--dry-run", is_flag=True, help="Only show what it would be.")
@click.option("--json", is_flag=True, help="Print the pool as JSON.")
@click.pass_obj
def pool_set(
    app: App,
    name: str,
    words: tuple[str, ...],
    shell: bool,
    retries: int | None,
    time_limit: str | None,
    env: tuple[str, ...],
    no_start_task: bool,
    create: bool,
    dry_run: bool,
    json: bool,
) -> None:
    """Set the start task of a pool: what each of its nodes runs before it takes tasks; takes an operator.

    \b
      geres pool set gpu -- /site/bin/prepare-node --driver 550
      geres pool set gpu --shell 'mount /scratch && touch ready'
      geres pool set gpu --retries 5 --time-limit 30m
      geres pool set gpu --no-start-task

    It runs once after each boot, and again when it was changed, as the account of the agent, in the folder
    GERES_NODE_SHARED_DIR, which tasks see too.  Nodes are told when they connect: `geres agent restart
    --nodes 'NAMES'` has them do so now.  What is left out stays as it is.
    """
    before = _of(app, name, create)
    given: dict[str, Any] = {}
    if words:
        argv, line = (None, " ".join(words)) if shell else (list(words), None)
        given |= {"command": argv, "shell": line}
    elif shell:
        raise Invalid("shell: needs the line; write it after --shell", field="shell")
    if retries is not None:
        given["retries"] = retries
    if time_limit is not None:
        given["time_limit_seconds"] = parse_duration(time_limit, "time-limit")
    if env:
        given["env"] = pairs(env, "env")
    start = _changed(before, given, no_start_task)
    if start is UNSET and not create:
        raise Invalid("pool: nothing to set; `geres pool set --help` lists what there is", field="pool")
    version = None if before is None else before.version
    found = app.client.edit_pool(name, start, version=version, create=create, dry_run=dry_run)
    if json:
        write_line(pretty_json(found))
        return
    for line in _show_lines(found, Style()):
        write_line(line)
    if found.nodes and start is not UNSET and not dry_run:
        say(
            "geres: nodes that are connected hear of it when they connect again; "
            "`geres agent restart --nodes 'NAMES'` has them do so now"
        )


def _of(app: App, name: str, create: bool) -> Pool | None:
    try:
        found: Pool = app.client.pool(name)
    except NotFound:
        if create:
            return None
        raise
    return found


def _changed(before: Pool | None, given: dict[str, Any], remove: bool) -> StartTask | UnsetType | None:
    if remove:
        if given:
            raise Invalid(
                "no-start-task: does not go together with what is to be set of it", field="no-start-task"
            )
        return None
    if not given:
        return UNSET
    start = before.start_task if before is not None and before.start_task is not None else StartTask()
    return msgspec.structs.replace(start, **given)


def _show_lines(info: Pool, style: Style) -> Iterator[str]:
    start = info.start_task
    facts = [
        ("pool", info.name),
        ("made", show_time(info.created_at, utc=style.utc)),
        ("nodes", _nodes(info.nodes) or "none"),
        ("start task", _command(msgspec.to_builtins(start)) or "none"),
    ]
    if start is not None:
        facts += [
            ("retries", str(start.retries)),
            ("time limit", show_duration(start.time_limit_seconds)),
            ("variables", " ".join(f"{key}={shlex.quote(value)}" for key, value in start.env.items())),
        ]
    for name, value in facts:
        if value:
            yield f"{name + ':':<14}{escape(value)}"
