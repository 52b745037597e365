"""`geres service`: units for systemd, with which server and agent start at boot and survive a log-out."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import click

from geres import config
from geres.cli.main import group
from geres.cli.output import say, write_line
from geres.errors import Conflict, Invalid, NotFound, Unreachable

_MARK = "# Made by `geres service install`; `geres service uninstall` removes it.\n"
_SYSTEM_FOLDER = Path("/etc/systemd/system")
_SYSTEM_HOME = Path("/var/lib/geres")
_PARTS = ("server", "agent")
_NAMES = ("geres-server.socket", "geres-server.service", "geres-agent.service")

service = group("service", help="Run server and agent under systemd.")


class Wanted(NamedTuple):
    """What the units are made from."""

    home: Path
    user: bool  #: of the account's own systemd, not the machine's
    account: str  #: that the parts run as; empty for the one whose systemd it is
    host: str
    port: int
    store: str
    insecure: bool
    with_tls: bool


@click.command(name="install")
@click.argument("parts", nargs=-1, type=click.Choice(_PARTS))
@click.option("--print", "only_print", is_flag=True, help="Print the units and change nothing.")
@click.option("--user", is_flag=True, help="For your own systemd, without root.")
@click.option("--account", metavar="NAME", default="", help="Run the parts as this account.  [root]")
@click.option("--host", metavar="ADDRESS", help="Address that the server listens on.  [127.0.0.1]")
@click.option("--port", metavar="N", type=click.IntRange(1, 65535), help="Its port.  [4470]")
@click.option("--store", metavar="URL", help="sqlite:PATH or postgresql://...  [geres.db in the home]")
@click.option("--insecure", is_flag=True, default=None, help="Let other machines in without TLS.")
def service_install(
    parts: tuple[str, ...],
    only_print: bool,
    user: bool,
    account: str,
    host: str | None,
    port: int | None,
    store: str | None,
    insecure: bool | None,
) -> None:
    """Write systemd units for server and agent (or one of them), enable and start them.

    systemd keeps the server's port open while the server restarts, and tasks go on while the agent does.
    """
    settings = config.load(
        {
            "server.host": host,
            "server.port": port,
            "server.store": store,
            "server.certificate": config.certificate_of(None, None, insecure),
        }
    ).checked()
    server = settings.server
    home = config.home() if user or "GERES_HOME" in os.environ else _SYSTEM_HOME
    with_tls = not server.insecure and bool(server.certificate or not config.is_loopback(server.host))
    named = server.store if store else ""
    wanted = Wanted(home, user, account, server.host, server.port, named, bool(insecure), with_tls)
    if user and account:
        raise Invalid("--account: units of --user run as you", field="account")
    if "password" in named or urlsplit(named).password:
        raise Invalid(
            "store: a password in a unit is there for everybody to see; leave --store out, and write it into"
            f" {config.own_file()} as `geres init --store ...` does",
            field="store",
        )
    units = units_of(wanted, parts or _PARTS)
    if only_print:
        for name, text in units.items():
            write_line(f"# {_folder(user) / name}\n{text}")
        return
    _check_systemd(user)
    folder = _folder(user)
    for name in units:
        if (folder / name).exists() and not _is_ours(folder / name):
            raise Conflict(f"{folder / name} is not of `geres service install`; move it away first")
    folder.mkdir(parents=True, exist_ok=True)
    make_home(home, account)
    for name, text in units.items():
        (folder / name).write_text(text)
    _systemctl(user, "daemon-reload")
    _systemctl(user, "enable", "--now", *units)
    say(f"installed {', '.join(units)} in {folder}; `systemctl {'--user ' * user}status geres-*` tells more")


def make_home(home: Path, account: str) -> None:
    """The folder, of the account that is to work in it; "" for our own, or whose it is.

    Raises Invalid for an account that there is not, Conflict for a folder with what is another account's.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not account:
        return
    try:
        owner = pwd.getpwnam(account).pw_uid
    except KeyError:
        raise Invalid(f"--account: there is no account {account!r} here", field="account") from None
    if home.stat().st_uid == owner:
        return
    if any(home.iterdir()):
        raise Conflict(f"{home} is another account's: `chown -R {account} {home}` first, or set GERES_HOME")
    os.chown(home, owner, -1)


@click.command(name="uninstall")
@click.option("--user", is_flag=True, help="From your own systemd.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def service_uninstall(user: bool, yes: bool) -> None:
    """Stop the units and remove them; what the home holds stays."""
    folder = _folder(user)
    found = [name for name in _NAMES if _is_ours(folder / name)]
    if not found:
        raise NotFound(f"{folder} holds no units of geres")
    if not yes:
        say(f"this stops and removes {', '.join(found)}; running tasks go on until they are done")
        if not click.confirm("Remove them?", err=True):
            raise click.exceptions.Exit(1)
    _check_systemd(user)
    _systemctl(user, "disable", "--now", *found)
    for name in found:
        (folder / name).unlink()
    _systemctl(user, "daemon-reload")
    say(f"removed {', '.join(found)}")


def units_of(wanted: Wanted, parts: tuple[str, ...]) -> dict[str, str]:
    """File name to text of the units that these parts need."""
    units = {}
    if "server" in parts:
        units["geres-server.socket"] = _socket(wanted)
        units["geres-server.service"] = _server(wanted)
    if "agent" in parts:
        units["geres-agent.service"] = _agent(wanted, with_server="server" in parts)
    return units


def _socket(wanted: Wanted) -> str:
    host = f"[{wanted.host}]" if ":" in wanted.host else wanted.host
    host = "127.0.0.1" if host == "localhost" else host
    return f"""{_MARK}[Unit]
Description=Port of the geres server

[Socket]
ListenStream={host}:{wanted.port}
Backlog=4096
KeepAlive=yes

[Install]
WantedBy=sockets.target
"""


def _server(wanted: Wanted) -> str:
    words = ["server"]
    if wanted.store:
        words += ["--store", wanted.store]
    if wanted.insecure:
        words.append("--insecure")
    return f"""{_MARK}[Unit]
Description=geres server
Requires=geres-server.socket
Wants=network-online.target
After=geres-server.socket network-online.target postgresql.service
# However long its database is away: it is started again until it is there.
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={_command(words)}
{_common(wanted)}# A migration of a large store takes its time, and must not be killed for it.
TimeoutStartSec=infinity
TimeoutStopSec=30
NoNewPrivileges=yes

[Install]
WantedBy={_target(wanted)}
Also=geres-server.socket
"""


def _agent(wanted: Wanted, *, with_server: bool) -> str:
    after = " geres-server.service" if with_server else ""
    words = ["agent", "--leave-tasks"]
    if with_server:
        host = f"[{wanted.host}]" if ":" in wanted.host else wanted.host
        words += ["--url", f"http://{host}:{wanted.port}"] if not wanted.with_tls else []
    return f"""{_MARK}# Tasks belong to the supervisor; it stays when the agent goes (KillMode=process).
# Before you stop a node for good: geres node drain NAME --wait
[Unit]
Description=geres agent
Wants=network-online.target
After=network-online.target{after}
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={_command(words)}
ExecReload=/bin/kill -HUP $MAINPID
{_common(wanted)}KillMode=process
TimeoutStopSec=60
Delegate=yes
TasksMax=infinity

[Install]
WantedBy={_target(wanted)}
"""


def _common(wanted: Wanted) -> str:
    account = f"User={wanted.account}\n" if wanted.account else ""
    return (
        f"{account}Environment={_quoted(f'GERES_HOME={wanted.home}')}\n"
        "WorkingDirectory=/\n"
        "Restart=always\nRestartSec=1\nLimitNOFILE=65536\nUMask=0077\n"
    )


def _target(wanted: Wanted) -> str:
    return "default.target" if wanted.user else "multi-user.target"


def _command(words: list[str]) -> str:
    return " ".join(_quoted(word) for word in (sys.executable, "-m", "geres", *words))


def _quoted(word: str) -> str:
    """A word of a unit file: its specifiers and variables taken literally."""
    plain = word.replace("%", "%%").replace("$", "$$")
    if plain and not set(plain) & set(" \t\"'\\;"):
        return plain
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _folder(user: bool) -> Path:
    if not user:
        return _SYSTEM_FOLDER
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def _is_ours(path: Path) -> bool:
    try:
        return path.read_text().startswith(_MARK)
    except OSError:
        return False


def _check_systemd(user: bool) -> None:
    if shutil.which("systemctl") is None:
        raise Unreachable("there is no systemd here (no systemctl); `--print` shows the units all the same")
    if not user and os.geteuid() != 0:
        raise Invalid("units for the machine need root; --user makes them for your own systemd")


def _systemctl(user: bool, *words: str) -> None:
    command = ["systemctl", *(["--user"] if user else []), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Unreachable(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
