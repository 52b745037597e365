"""`geres restart`: new processes for the parts of this machine, without a gap for tasks and clients."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import click

from geres import config
from geres.cli import home as homes
from geres.cli.output import say
from geres.errors import GeresError, NotFound, Unreachable
from geres.sdk.client import Client
from geres.sdk.discover import is_alive, read_address

_PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.02


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(["server", "agent"]))
def restart(parts: tuple[str, ...]) -> None:
    """Replace the server and the agent of this machine's `geres up` by new processes; all by default.

    Tasks go on, and whoever waits for them notices nothing.  Use it after an upgrade of geres.
    """
    home = config.home()
    up = homes.read_up(home)
    if up is None or not homes.is_locked(home):
        raise NotFound(f"no `geres up` runs in {home}; parts under systemd are restarted by systemctl")
    for part in ("server", "agent"):
        if part in (parts or up.parts):
            if part not in up.parts:
                raise NotFound(f"this `geres up` runs no {part}")
            pid = _restart_server(home, up.pid) if part == "server" else restart_agent(home)
            say(f"the {part} was restarted, it is process {pid}")


def _restart_server(home: Path, keeper: int) -> int:
    """Have the keeper replace the server, and wait until the new one answers alone; its process."""
    log = home / "logs" / "up.log"
    before = _server_pid(home)
    os.kill(keeper, signal.SIGUSR1)
    began: list[int] = []

    def done() -> bool:
        if (now := _server_pid(home)) != before:
            began.append(now)
        elif began:
            raise Unreachable(f"the new server did not start, the old one goes on; {log} may say why")
        found = read_address(home)
        return bool(began) and found is not None and found.pid == now and not is_alive(before)

    _wait(done, f"the server was not replaced; {log} may say why")
    with Client(home=home) as client:
        client.transport.call("GET", "/readyz")
    return _server_pid(home)


def _server_pid(home: Path) -> int:
    up = homes.read_up(home)
    return up.parts.get("server", 0) if up else 0


def restart_agent(home: Path) -> int:
    """Have the agent of this home begin anew, and wait until its node is connected; its process number.

    Raises NotFound where no agent works in this home.
    """
    lock = home / "agent" / "agent.lock"
    pid = agent_pid(home)
    before, now = lock.stat().st_mtime_ns, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
    os.kill(pid, signal.SIGUSR1)
    log = home / "logs" / "agent.log"
    _wait(lambda: lock.stat().st_mtime_ns != before, f"the agent did not begin anew; {log} may say why")
    with Client(home=home) as client:

        def heard() -> bool:
            nodes = client.nodes()
            return any(node.connected and (node.last_heartbeat_at or "") > now for node in nodes)

        _wait(heard, f"the agent is not connected again; {log} may say why")
    return agent_pid(home)


def agent_pid(home: Path) -> int:
    """The process of the agent that works in this home.  Raises NotFound."""
    path = home / "agent" / "agent.lock"
    try:
        pid = int(path.read_text().partition("\n")[0])
    except (OSError, ValueError):
        pid = 0
    if not pid or not is_alive(pid):
        raise NotFound(f"no agent works in {home}")
    return pid


def _wait(done: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            if done():
                return
        except Unreachable:
            raise
        except GeresError:
            pass
        if time.monotonic() > deadline:
            raise Unreachable(otherwise)
        time.sleep(_LOOK_SECONDS)
