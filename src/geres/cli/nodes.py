"""`geres nodes`, `node` and `summary`: look at the cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from geres.cli.main import App, group
from geres.cli.output import (
    Column,
    Style,
    escape,
    print_list,
    print_one,
    say,
    show_number,
    show_since,
    show_time,
    style_options,
)
from geres.model.nodes import Capacity, NodeDetail, Summary
from geres.model.units import plural, show_size


def _cpus(row: dict[str, Any]) -> str:
    return f"{row['free'].get('cpus', 0):g}/{row['total'].get('cpus', 0):g}"


def _memory(row: dict[str, Any]) -> str:
    return f"{show_size(row['free'].get('memory_bytes', 0))}/{show_size(row['total'].get('memory_bytes', 0))}"


def _gpus(row: dict[str, Any]) -> str:
    total = row["total"].get("gpus", 0)
    return f"{row['free'].get('gpus', 0)}/{total}" if total else ""


COLUMNS = [
    Column("name", "NAME"),
    Column("pool", "POOL"),
    Column("state", "STATE"),
    Column("free.cpus", "CPUS FREE", _cpus, right=True, of_row=True),
    Column("free.memory_bytes", "MEMORY FREE", _memory, right=True, of_row=True),
    Column("free.gpus", "GPUS", _gpus, right=True, of_row=True),
    Column("task_count", "TASKS", show_number, right=True),
    Column("last_heartbeat_at", "HEARD", show_since),
    Column("version", "VERSION"),
    Column("arch", "ARCH"),
]


@click.command()
@style_options()
@click.pass_obj
def nodes(app: App, style: Style) -> None:
    """List nodes with what they have and what is free."""
    found = app.client.nodes()
    shown = print_list(style, found, COLUMNS, key="name")
    if style.table:
        for one in found:
            if one.reason:
                say(f"geres: {escape(one.name)}: {one.state.value}: {escape(one.reason)}")
        say(f"{shown} of {len(found)} nodes" if shown else "no nodes; `geres agent` makes this machine one")


node = group("node", default="list", help="Show one node, or list them.")


@click.command(name="show")
@click.argument("name")
@style_options(stream=False)
@click.pass_obj
def node_show(app: App, name: str, style: Style) -> None:
    """Show all about one node, with its history."""
    print_one(style, app.client.node(name), lambda info: _show_lines(info, style), key="name")


@click.command()
@style_options(stream=False)
@click.pass_obj
def summary(app: App, style: Style) -> None:
    """Count tasks, jobs and nodes by state."""
    print_one(style, app.client.summary(), _summary_lines, key="tasks.running")


def _summary_lines(found: Summary) -> Iterator[str]:
    for what, counts in (("tasks", found.tasks), ("jobs", found.jobs), ("nodes", found.nodes)):
        parts = [f"{count:,} {name}" for name, count in counts.items() if count]
        yield f"{what + ':':<11}{', '.join(parts) or 'none'}"
    if found.schedules_active:
        yield f"schedules: {found.schedules_active} active"
    if found.quarantined:
        yield f"set aside: {found.quarantined} unreadable records; `geres doctor` names them"


def _show_lines(info: NodeDetail, style: Style) -> Iterator[str]:
    def at(text: str | None) -> str:
        return show_time(text, utc=style.utc)

    facts = [
        ("node", info.name),
        ("state", f"{info.state.value} since {at(info.state_since)}"),
        ("because", info.reason),
        ("connected", "yes" if info.connected else "no"),
        ("heard", f"{show_since(info.last_heartbeat_at)} ago" if info.last_heartbeat_at else "never"),
        ("pool", info.pool),
        ("has", _capacity(info.total)),
        ("free", _capacity(info.free)),
        ("tasks", f"{info.task_count}"),
        ("labels", ", ".join(f"{escape(key)}={escape(one)}" for key, one in info.labels.items())),
        ("machine", " ".join(part for part in (info.host, info.os, info.arch) if part)),
        ("account", info.account),
        ("version", info.version),
        ("login", info.login or ""),
        ("next", f"{info.going}, once no task is on it" if info.going else ""),
        ("removed", at(info.removed_at) if info.removed_at else ""),
        ("shares", ", ".join(info.shared_paths)),
    ]
    for name, value in facts:
        if value:
            yield f"{name + ':':<14}{escape(value)}"
    if info.task_ids:
        yield f"{'running:':<14}{' '.join(info.task_ids[:20])}{' ...' if len(info.task_ids) > 20 else ''}"
    if info.history:
        yield "history:"
        for change in info.history:
            yield f"  {at(change.at)}  {change.state.value}{': ' + escape(change.why) if change.why else ''}"


def _capacity(capacity: Capacity) -> str:
    parts = [f"{capacity.cpus:g} cpus", f"{show_size(capacity.memory_bytes)} memory"]
    if capacity.gpus:
        parts.append(plural(capacity.gpus, "gpu"))
    parts += [f"{count} {name}" for name, count in capacity.resources.items()]
    return ", ".join(parts)
