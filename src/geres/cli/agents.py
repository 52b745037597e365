"""`geres agent reload|restart`: agents that run read their settings again, or begin anew; tasks go on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import click

from geres import config
from geres.cli.main import App
from geres.cli.node_actions import _named
from geres.cli.output import escape, pretty_json, say, write_line
from geres.cli.restart import agent_pid, restart_agent
from geres.errors import BY_CODE, GeresError, Invalid

_PATIENCE_SECONDS = 30.0
_LOOK_SECONDS = 0.1
_REFUSED = "the agent keeps its settings"
_DONE = {
    "reload": ("the agent read its settings again", _REFUSED),
    "restart": ("the agent began anew",),
}


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--json", is_flag=True, help="What became of each, as JSON."),
        click.option("--detach", is_flag=True, help="Do not wait until it is done."),
        click.option("--dry-run", is_flag=True, help="Only say which nodes it would be."),
        click.option("--all", "everywhere", is_flag=True, help="On all connected nodes."),
        click.option("--nodes", metavar="NAMES", help="On these nodes, like a,b or 'rack3-*'."),
    ):
        command = option(command)
    return command


@click.command()
@_options
@click.pass_obj
def reload(app: App, nodes: str | None, everywhere: bool, dry_run: bool, detach: bool, json: bool) -> int:
    """Have agents read their settings again: the one of this machine, or those of other nodes.

    Limits, labels, resources and slots of the node are others from then on; tasks that run go on.  What was
    given to an agent as an option on its command line stays as it is.
    """
    if _is_here(nodes, everywhere):
        return _reload_here(dry_run)
    return _ask(app, "reload", nodes, dry_run=dry_run, detach=detach, json=json)


@click.command()
@_options
@click.pass_obj
def restart(app: App, nodes: str | None, everywhere: bool, dry_run: bool, detach: bool, json: bool) -> int:
    """Have agents begin anew, as after an upgrade: the one of this machine, or those of other nodes.

    Tasks stay with the supervisor, which the new agent finds again.
    """
    if not _is_here(nodes, everywhere):
        return _ask(app, "restart", nodes, dry_run=dry_run, detach=detach, json=json)
    if dry_run:
        say(f"would restart the agent of {config.home()}, process {agent_pid(config.home())}")
        return 0
    say(f"the agent was restarted, it is process {restart_agent(config.home())}")
    return 0


def _is_here(nodes: str | None, everywhere: bool) -> bool:
    if nodes is not None and everywhere:
        raise Invalid("--nodes and --all: one of them")
    return nodes is None and not everywhere


def _reload_here(dry_run: bool) -> int:
    home = config.home()
    pid = agent_pid(home)
    if dry_run:
        say(f"would have the agent of {home}, process {pid}, read its settings again")
        return 0
    path = home / "agent" / "agent.lock"
    before = path.stat().st_mtime_ns
    os.kill(pid, signal.SIGHUP)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while path.stat().st_mtime_ns == before or not (words := path.read_text().partition("\n")[2].strip()):
        if time.monotonic() > deadline:
            log = home / "logs" / "agent.log"
            raise GeresError(f"the agent (process {pid}) does not answer; {log} may say why")
        time.sleep(_LOOK_SECONDS)
    if words.startswith(_REFUSED):
        raise Invalid(words)
    say(words)
    return 0


def _ask(app: App, what: str, nodes: str | None, *, dry_run: bool, detach: bool, json: bool) -> int:
    """Ask it through the server, and wait until the nodes' history says what came of it."""
    client = app.client
    if nodes is None:
        names = [node.name for node in client.nodes() if node.connected]
    else:
        names = _named(app, tuple(name.strip() for name in nodes.split(",") if name.strip()))
    if not names:
        raise Invalid("no node is connected; `geres nodes` lists them")
    seen = {} if dry_run or detach else {name: _told(client, name, what) for name in names}
    act = client.reload_agents if what == "reload" else client.restart_agents
    outcome: dict[str, str] = {}
    status = 0
    for one in act(*names, dry_run=dry_run):
        if one.code is not None:
            seen.pop(one.name, None)
            outcome[one.name] = f"{one.code}: {one.message}"
            status = status or getattr(BY_CODE.get(one.code), "exit_status", 1)
        elif dry_run or detach:
            outcome[one.name] = f"would {what}" if dry_run else "asked"
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while seen and time.monotonic() < deadline:
        for name in list(seen):
            if len(told := _told(client, name, what)) > len(seen[name]):
                outcome[name] = told[-1]
                status = status or (2 if told[-1].startswith(_REFUSED) else 0)
                del seen[name]
        if seen:
            time.sleep(_LOOK_SECONDS)
    for name in seen:
        outcome[name] = f"no answer within {_PATIENCE_SECONDS:g} s; its agent may be of an older geres"
        status = status or 1
    if json:
        write_line(pretty_json([{"name": name, "outcome": words} for name, words in outcome.items()]))
    else:
        for name, words in outcome.items():
            say(f"{escape(name)}: {escape(words)}")
    return status


def _told(client: Any, name: str, what: str) -> list[str]:
    """What the node's history says of such wishes so far; empty for an unknown node."""
    try:
        history = client.node(name).history
    except GeresError:
        return []
    return [change.why for change in history if change.why and change.why.startswith(_DONE[what])]
