"""`geres debug state`: what the server does at this moment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from geres.cli.main import App, group
from geres.cli.output import Style, escape, print_one, style_options
from geres.model.inside import ServerInside
from geres.model.units import show_size

debug = group("debug", help="Look into the running server.")


@click.command(name="state")
@click.option("--stacks", is_flag=True, help="Also where each thread and task of it is.")
@style_options(stream=False)
@click.pass_obj
def debug_state(app: App, stacks: bool, style: Style) -> None:
    """Show the loops, connected nodes, queues and connections of the server that answers; for admins.

    --json has it all, with the stack of each thread and task of the event loop.
    """
    state = app.client.transport.get("/v1/debug/state", ServerInside)
    print_one(style, state, lambda one: _lines(one, stacks), key="pid")


def _lines(state: ServerInside, stacks: bool) -> Iterator[str]:
    yield f"server {state.server_id}, process {state.pid}, geres {state.version}, at {state.url}"
    stopping = ", stopping" if state.stopping else ""
    yield f"up for {state.up_seconds:,.0f} s, {show_size(state.memory_bytes)} of memory{stopping}"
    yield "waiting: " + ", ".join(f"{count:,} {name}" for name, count in state.queues.items())
    facts = (f"{name.replace('_', ' ')} {_short(value)}" for name, value in state.store.items())
    yield f"store: {', '.join(facts)}"
    yield ""
    yield f"{'LOOP':<14}{'ROUNDS':>10}{'LAST AGO':>10}{'TOOK':>10}{'MEAN':>10}{'LONGEST':>10}  ERROR"
    for loop in state.loops:
        ago = "now" if loop.runs_for_seconds is not None else _seconds(loop.last_round_seconds_ago or 0)
        times = "".join(
            f"{_seconds(one):>10}" for one in (loop.last_seconds, loop.mean_seconds, loop.longest_seconds)
        )
        error = f"  {_seconds(loop.error_seconds_ago or 0)} ago: {escape(loop.error)}" if loop.error else ""
        yield f"{loop.name:<14}{loop.rounds:>10,}{ago:>10}{times}{error}"
    yield ""
    yield f"{'NODE':<20}{'EPOCH':>7}{'ATTEMPTS':>10}{'CPUS FREE':>11}{'MEMORY FREE':>13}{'HEARD AGO':>11}"
    for node in state.nodes:
        yield (
            f"{escape(node.name):<20}{node.epoch:>7}{node.attempts:>10,}{node.cpus_free:>11g}"
            f"{show_size(node.memory_bytes_free):>13}{_seconds(node.heard_seconds_ago):>11}"
            + ("" if node.accepting else "  takes nothing")
        )
    for kind, found in (("thread", state.threads), ("task", state.tasks)) if stacks else ():
        for one in found:
            yield ""
            yield f"{kind} {one.name}"
            yield from (f"  {frame}" for frame in one.frames)


def _seconds(value: float) -> str:
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:,.1f} s"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value.get('pool_size', 0)} open, {value.get('pool_available', 0)} idle"
    return str(value)
