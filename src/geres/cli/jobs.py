"""`geres jobs` and `geres job`: look at jobs and change them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from geres.cli.lists import show_pages, whose
from geres.cli.main import App, group
from geres.cli.output import (
    Column,
    Style,
    escape,
    print_one,
    show_number,
    show_time,
    show_usage,
    style_options,
    write_line,
)
from geres.cli.task_options import pairs
from geres.cli.work import read_file
from geres.errors import Invalid
from geres.model.jobs import JobAction, JobDetail, JobPatch
from geres.model.options import parse_priority
from geres.model.units import show_duration

_WAITING = ("blocked", "queued", "held", "not_yet")
_ON_NODE = ("assigned", "running", "suspended")


def _counted(names: tuple[str, ...], row: dict[str, Any]) -> str:
    total = sum(row.get("counts", {}).get(name, 0) for name in names)
    return str(total) if total else ""


_COLUMNS = [
    Column("id", "ID"),
    Column("name", "NAME"),
    Column("state", "STATE"),
    Column("outcome", "OUTCOME"),
    Column("priority", "PRIO", show_number, right=True),
    Column("task_count", "TASKS", show_number, right=True),
    Column("counts.queued", "WAIT", lambda row: _counted(_WAITING, row), right=True, of_row=True),
    Column("counts.running", "RUN", lambda row: _counted(_ON_NODE, row), right=True, of_row=True),
    Column("counts.succeeded", "OK", lambda row: _counted(("succeeded",), row), right=True, of_row=True),
    Column("counts.failed", "FAILED", lambda row: _counted(("failed",), row), right=True, of_row=True),
    Column(
        "counts.cancelled",
        "OTHER",
        lambda row: _counted(("cancelled", "skipped"), row),
        right=True,
        of_row=True,
    ),
    Column("submitted_by", "USER"),
    Column("created_at", "CREATED"),
]


@click.command()
@click.option("--state", metavar="STATES", help="In these states, with commas.")
@click.option("--user", metavar="NAME", help="Of this submitter.  [you]")
@click.option("--all", "everyone", is_flag=True, help="Of everybody.")
@click.option("--name", metavar="TEXT", help="With this name.")
@click.option("-n", "--limit", metavar="N", type=click.IntRange(min=0), help="How many; 0 for all.")
@style_options()
@click.pass_obj
def jobs(
    app: App,
    style: Style,
    state: str | None,
    user: str | None,
    everyone: bool,
    name: str | None,
    limit: int | None,
) -> None:
    """List jobs: yours, newest first."""
    query = {"state": state, "name": name, "user": whose(app.client, user, everyone)}
    show_pages(style, app.client, "jobs", _COLUMNS, limit, query)


job = group("job", default="list", help="Make, show and change jobs.")


@click.command(name="create")
@click.argument("name", required=False)
@click.option("--priority", metavar="N", help="For tasks that name none: low, normal, high, -1000..1000.")
@click.option("--max-parallel", metavar="N", type=int, help="Never more of its tasks at once.")
@click.option("--meta", multiple=True, metavar="KEY=VALUE", help="Data to find it by.")
@click.option("-t", "--time-limit", metavar="TIME", help="For the job as a whole, from its first start.")
@click.option("--on-lost", type=click.Choice(["retry", "fail"]), help="When a node is lost.")
@click.option(
    "--on-disconnect",
    type=click.Choice(["run", "stop", "keep"]),
    help="When a node loses contact: run on, stop before another node may get the task, or wait for it.",
)
@click.option("--end-when-done", is_flag=True, help="Completed as soon as all its tasks have ended.")
@click.option("-f", "--file", metavar="FILE", help="Options of its tasks, as TOML, YAML or JSON.")
@style_options(stream=False)
@click.pass_obj
def job_create(
    app: App,
    /,
    style: Style,
    name: str | None,
    meta: tuple[str, ...],
    file: str | None,
    end_when_done: bool,
    on_disconnect: str | None,
    **options: Any,
) -> None:
    """Make a job and print its id; `geres submit --job NAME` adds tasks to it."""
    task = read_file(file) if file else {}
    if on_disconnect is not None:
        task["on_disconnect"] = on_disconnect
    made = app.client.create_job(
        name,
        meta=pairs(meta, "meta"),
        on_all_complete="terminate" if end_when_done else "none",
        task=task or None,
        **options,
    )
    print_one(style, made.info, lambda info: [info.id])


@click.command(name="show")
@click.argument("id")
@style_options(stream=False)
@click.pass_obj
def job_show(app: App, id: str, style: Style) -> None:
    """Show all about one job."""
    print_one(style, app.client.job_info(id, usage=True), lambda info: _show_lines(info, style))


@click.command(name="close")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.pass_obj
def job_close(app: App, ids: tuple[str, ...]) -> None:
    """Take no more tasks; those that are queued still run, then the job is completed."""
    _act(app, ids, "close", JobAction())


@click.command(name="cancel")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--reason", metavar="TEXT", help="Kept with the job.")
@click.pass_obj
def job_cancel(app: App, ids: tuple[str, ...], reason: str | None) -> None:
    """End all its tasks, queued ones included, and the job."""
    _act(app, ids, "cancel", JobAction(reason=reason))


@click.command(name="disable")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option(
    "--running",
    type=click.Choice(["wait", "requeue", "terminate"]),
    default="wait",
    show_default=True,
    help="What becomes of running tasks.",
)
@click.option("--reason", metavar="TEXT", help="Kept with the job.")
@click.pass_obj
def job_disable(app: App, ids: tuple[str, ...], running: Any, reason: str | None) -> None:
    """Start no more of its tasks until `geres job enable`."""
    _act(app, ids, "disable", JobAction(reason=reason, running=running))


@click.command(name="enable")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.pass_obj
def job_enable(app: App, ids: tuple[str, ...]) -> None:
    """Start its tasks again."""
    _act(app, ids, "enable", JobAction())


@click.command(name="edit")
@click.argument("id")
@click.option("--priority", metavar="N", help="low, normal, high or -1000..1000.")
@click.option("--max-parallel", metavar="N", type=int, help="Never more of its tasks at once; 0 for no cap.")
@click.option("--meta", multiple=True, metavar="KEY=VALUE", help="Replaces its metadata.")
@click.option("--end-when-done/--stay-open", default=None, help="Completed when all tasks have ended.")
@click.pass_obj
def job_edit(
    app: App,
    id: str,
    priority: str | None,
    max_parallel: int | None,
    meta: tuple[str, ...],
    end_when_done: bool | None,
) -> None:
    """Change a job's priority, cap or metadata."""
    if (priority, max_parallel, meta, end_when_done) == (None, None, (), None):
        raise Invalid("edit: nothing to change; `geres job edit --help` lists what there is", field="edit")
    patch = JobPatch(
        priority=None if priority is None else parse_priority(priority),
        max_parallel=max_parallel,
        meta=pairs(meta, "meta") if meta else None,
        on_all_complete=None if end_when_done is None else "terminate" if end_when_done else "none",
    )
    changed = app.client.edit_job(id, patch)
    write_line(f"{changed.id} {changed.state.value}")


def _act(app: App, ids: tuple[str, ...], action: str, body: JobAction) -> None:
    for one in ids:
        changed = app.client.job_action(one, action, body)
        write_line(f"{changed.id} {changed.state.value}")


def _show_lines(info: JobDetail, style: Style) -> Iterator[str]:
    for name, value in _facts(info, style):
        if value not in (None, ""):
            yield f"{name + ':':<14}{value}"


def _facts(info: JobDetail, style: Style) -> Iterator[tuple[str, str | None]]:
    def at(text: str | None) -> str:
        return show_time(text, utc=style.utc)

    counts = {name: count for name in info.counts.__struct_fields__ if (count := getattr(info.counts, name))}
    yield "job", info.id + (f"  {escape(info.name)}" if info.name else "")
    reason = f" ({escape(info.reason)})" if info.reason else ""
    yield "state", f"{info.state.value}{reason} since {at(info.state_since)}"
    yield "outcome", info.outcome and info.outcome.value
    yield "submitted by", escape(info.submitted_by)
    yield "tasks", f"{info.task_count}" + (" (array)" if info.is_array else "")
    for name, count in counts.items():
        yield f"  {name}", f"{count}"
    yield "priority", f"{info.priority}"
    yield "max parallel", None if info.max_parallel is None else str(info.max_parallel)
    yield "time limit", show_duration(info.time_limit_seconds)
    yield "when all end", "completed" if info.on_all_complete == "terminate" else "stays open"
    if info.meta:
        yield "meta", ", ".join(f"{escape(key)}={escape(value)}" for key, value in info.meta.items())
    yield "created", at(info.created_at)
    yield "ended", at(info.ended_at)
    yield "used", show_usage(info.usage) if info.usage is not None else None
