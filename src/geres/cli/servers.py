"""`geres servers`: who answers, and who holds which nodes."""

from __future__ import annotations

import click

from geres.cli.main import App
from geres.cli.output import Column, Style, print_list, say, show_number, show_since, style_options

COLUMNS = [
    Column("id", "ID"),
    Column("url", "URL"),
    Column("version", "VERSION"),
    Column("nodes", "NODES", show_number, right=True),
    Column("since", "SINCE", show_since),
    Column("answers", "ANSWERS", lambda answers: "here" if answers else ""),
]


@click.command()
@style_options()
@click.pass_obj
def servers(app: App, style: Style) -> None:
    """List the servers that are there, each with the nodes that are connected to it."""
    found = app.client.servers()
    shown = print_list(style, found, COLUMNS)
    if style.table:
        say(f"{shown} server{'s' if shown != 1 else ''}; work and nodes may use any of them")
