"""`geres top`: a live view of the cluster."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from geres.cli.main import App
from geres.cli.nodes import COLUMNS as NODE_COLUMNS
from geres.cli.output import Column, escape, pick, plain, show_since
from geres.cli.tasks import command_of
from geres.errors import GeresError

_ROWS = 30
_TASK_COLUMNS = [
    Column("id", "ID"),
    Column("state", "STATE"),
    Column("node", "NODE"),
    Column("submitted_by", "USER"),
    Column("started_at", "FOR", show_since, right=True),
    Column("command", "COMMAND", command_of, of_row=True),
]


@click.command()
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(0.2),
    default=1.0,
    show_default=True,
    help="Between two looks.",
)
@click.option("--once", is_flag=True, help="Print one picture and leave.")
@click.pass_obj
def top(app: App, interval: float, once: bool) -> None:
    """Watch nodes and running tasks; Ctrl-C leaves.  Not on a terminal it prints one picture."""
    from rich.console import Console  # draws: slow to load
    from rich.live import Live

    console = Console()
    if once or not sys.stdout.isatty():
        console.print(_picture(app.client, _ROWS))
        return
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                try:
                    shown = _picture(app.client, max(5, console.height - 12))
                except GeresError as error:
                    shown = f"{error.code}: {error}"
                live.update(shown, refresh=True)
                time.sleep(interval)
    except KeyboardInterrupt:
        return


def _picture(client: Any, rows: int) -> Any:
    from rich.console import Group
    from rich.text import Text

    summary = client.summary()
    page = next(client.task_pages(state="assigned,running,suspended", limit=rows, count=True))
    counts = "  ".join(f"{name} {count:,}" for name, count in summary.tasks.items() if count) or "no tasks"
    running = page.matched or len(page.items)
    more = f"{len(page.items)} of {running:,} on nodes" if running > len(page.items) else ""
    return Group(
        Text(f"{client.url}  {time.strftime('%H:%M:%S')}", style="bold"),
        Text(counts),
        _table(client.nodes()[:10], NODE_COLUMNS),
        _table(page.items, _TASK_COLUMNS),
        Text(more, style="dim"),
    )


def _table(items: list[Any], columns: list[Column]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, expand=False)
    for column in columns:
        table.add_column(column.heading, justify="right" if column.right else "left", no_wrap=True)
    for item in items:
        row = plain(item)
        cells = []
        for column in columns:
            value = row if column.of_row else pick(row, column.name)
            text = column.show(value) if column.show else "" if value is None else str(value)
            cells.append(Text(escape(text)))
        table.add_row(*cells)
    return table
