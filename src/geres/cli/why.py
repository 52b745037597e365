"""`geres why`: why a task or a job is in its state."""

from __future__ import annotations

from collections.abc import Iterator

import click

from geres.cli.main import App
from geres.cli.output import escape, pretty_json, write_line
from geres.model.tasks import Why

_MOST_NODES = 20


@click.command()
@click.argument("id")
@click.option("--json", is_flag=True, help="In facts.")
@click.pass_obj
def why(app: App, id: str, json: bool) -> None:
    """Say why a task or a job is in its state, in every state, and what to do next."""
    found: Why = app.client.why(id)
    if json:
        write_line(pretty_json(found))
        return
    for line in why_lines(found):
        write_line(line)


def why_lines(found: Why) -> Iterator[str]:
    yield f"{found.id}: {escape(found.summary)}"
    for line in found.lines:
        yield f"  {escape(line)}"
    for group in found.groups:
        yield f"  {group.count} {escape(group.text)} (like {group.example})"
    for node in found.nodes[:_MOST_NODES]:
        later = "" if node.ever else " (never)"
        yield f"  node {escape(node.node)}: {escape(node.reason)}{later}"
    if len(found.nodes) > _MOST_NODES:
        yield f"  and {len(found.nodes) - _MOST_NODES} more nodes"
    if found.satisfiable is False:
        yield "  No node that is known could ever run it."
    if found.stderr_tail:
        yield "  The end of its stderr:"
        for line in found.stderr_tail:
            yield f"    {escape(line)}"
    if found.next_command:
        yield f"  Next: {escape(found.next_command)}"
