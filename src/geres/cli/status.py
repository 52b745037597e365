"""`geres status` and `geres doctor`: does it run, and is it well?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from geres import __version__
from geres.cli.main import App
from geres.cli.output import Style, escape, pretty_json, print_one, say, show_since, style_options, write_line
from geres.errors import GeresError, NotFound
from geres.model.servers import Server


@click.command()
@style_options(stream=False)
@click.pass_obj
def status(app: App, style: Style) -> int:
    """Tell whether a cluster runs and where; exit status 7 where none answers."""
    from geres import config  # reads the home
    from geres.sdk.discover import read_address

    client = app.client
    summary, nodes, me = client.summary(), client.nodes(), client.whoami()
    found = read_address(config.home())
    local = found if found is not None and found.url.rstrip("/") == client.url else None
    facts: dict[str, Any] = {
        "url": client.url,
        "fingerprint": client.transport.address.fingerprint or None,
        "home": str(config.home()) if local else None,
        "version": local.version if local else None,
        "pid": local.pid if local else None,
        "started_at": local.started_at if local else None,
        "subject": me.subject,
        "role": me.role,
        "servers": [msgspec.to_builtins(one) for one in _servers(client)],
        "nodes": {"total": len(nodes), "connected": sum(node.connected for node in nodes)},
        "tasks": summary.tasks,
    }
    print_one(style, facts, _status_lines, key="url")
    return 0


def _servers(client: Any) -> list[Server]:
    try:
        found: list[Server] = client.servers()
    except NotFound:  # a server of an older geres
        return []
    return found


@click.command()
@click.option("--json", is_flag=True, help="The findings as JSON.")
@click.pass_obj
def doctor(app: App, json: bool) -> int:
    """Look for what is wrong: settings, the home, the server, nodes, records set aside.

    Exit status 1 where something is.
    """
    findings = list(_findings(app))
    if json:
        write_line(pretty_json(findings))
    else:
        for one in findings:
            write_line(f"{one.get('kind', 'problem')}: {escape(one['text'])}")
            if one.get("next"):
                write_line(f"  next: {escape(one['next'])}")
        if not findings:
            say("nothing is wrong")
    return 1 if findings else 0


def _findings(app: App) -> Iterator[dict[str, Any]]:
    from geres import config
    from geres.mounts import network_file_system

    home = config.home()
    for problem in config.load().check():
        yield {"kind": "settings", "text": problem}
    if home.exists():
        if kind := network_file_system(home):
            yield {"kind": "home", "text": f"{home} is on a network file system ({kind})"}
        yield from _open_to_others(home)
    try:
        client = app.client
        yield from client.doctor()
        for node in client.nodes():
            if not node.connected:
                yield {
                    "kind": "node",
                    "node": node.name,
                    "text": f"node {node.name} is {node.state.value}, "
                    f"last heard {show_since(node.last_heartbeat_at)} ago",
                }
    except GeresError as error:
        yield {"kind": error.code, "text": str(error)}


def _open_to_others(home: Path) -> Iterator[dict[str, Any]]:
    for name in ("token", "agent.token"):
        path = home / name
        if path.exists() and path.stat().st_mode & 0o077:
            yield {"kind": "home", "text": f"{path} can be read by others; chmod 600 it"}


def _status_lines(facts: dict[str, Any]) -> Iterator[str]:
    since = f", for {show_since(facts['started_at'])}" if facts["started_at"] else ""
    version = facts["version"] or __version__
    yield f"geres {version} is up at {facts['url']}{since}"
    if facts["home"]:
        yield f"home:   {facts['home']} (server process {facts['pid']})"
    if facts["fingerprint"]:
        yield f"shows:  {facts['fingerprint']}"
    yield f"you:    {escape(facts['subject'])}, {facts['role']}"
    if len(facts["servers"]) > 1:
        yield f"servers: {', '.join(_server(one) for one in facts['servers'])}"
    nodes = facts["nodes"]
    yield f"nodes:  {nodes['connected']} of {nodes['total']} connected"
    parts = [f"{count:,} {name}" for name, count in facts["tasks"].items() if count]
    yield f"tasks:  {', '.join(parts) or 'none'}"


def _server(one: dict[str, Any]) -> str:
    nodes = f"{one['nodes']} node{'s' if one['nodes'] != 1 else ''}"
    return f"{one['url']} ({nodes}{', answers here' if one['answers'] else ''})"
