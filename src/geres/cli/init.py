"""`geres init`: make this host one on which a server runs."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from geres import config
from geres.cli import home as homes
from geres.cli.output import pretty_json, say, write_line
from geres.errors import Invalid

_SYSTEM_HOME = Path("/var/lib/geres")  #: as `geres service` has it


@click.command()
@click.option("--store", metavar="URL", help="sqlite:PATH, or postgresql://...  [geres.db in the home]")
@click.option("--host", metavar="ADDRESS", help="Address to listen on.  [0.0.0.0: all of this host]")
@click.option("--port", metavar="N", type=click.IntRange(1, 65535), help="Port.  [4470]")
@click.option("--address", metavar="URL", help="By which other machines reach it.  [its name and port]")
@click.option("--certificate", metavar="FILE", help="PEM file.  [one that geres makes]")
@click.option("--key", metavar="FILE", help="PEM file with the certificate's key.")
@click.option("--insecure", is_flag=True, help="No TLS, on a network that is yours alone.")
@click.option("--file", "path", metavar="PATH", type=click.Path(path_type=Path), help="The settings file.")
@click.option("--dry-run", is_flag=True, help="Check everything, show the file, change nothing.")
@click.option("--yes", is_flag=True, help="Ask nothing; what is not given is as shown in brackets.")
@click.option("--json", is_flag=True, help="What was done, as JSON.")
def init(
    path: Path | None, dry_run: bool, yes: bool, json: bool, insecure: bool, **given: str | int | None
) -> None:
    """Set up a server on this host: its settings, its store, its certificate, the admin's token.

    Asks for what is not given, checks that it works, and prints the next two commands.  Twice is harmless; a
    settings file that says otherwise is never overwritten.
    """
    from geres.server import setup  # the store and its drivers: only this command needs them

    ask = _ask if sys.stdin.isatty() and not (yes or json) else _take_default
    home = _home()
    path = (path or config.own_file()).absolute()
    settings = _settings(given, insecure, home, ask)
    files = settings["certificate"]
    fields = settings | {"certificate": (files,) if isinstance(files, str) else tuple(files)}
    checked = config.Config(server=config.ServerConfig(**fields)).checked().server
    store = setup.check_store(checked.store or f"sqlite:{home / 'geres.db'}", home)
    certificate = setup.check_certificate(checked)
    text = setup.text_of(settings)
    written = setup.write(path, text, dry_run=dry_run)
    if not dry_run:
        homes.prepare(home)
        setup.make_token(home)
    commands = _next_commands(home)
    if json:
        facts = {"file": str(path), "written": written and not dry_run, "home": str(home), "next": commands}
        write_line(pretty_json({**facts, "store": store, "certificate": certificate, "settings": settings}))
        return
    say(f"store:        {store}")
    say(f"certificate:  {certificate}")
    if dry_run:
        say(f"this would be {path}; nothing was changed:" if written else f"{path} says this already:")
        write_line(text.rstrip("\n"))
        return
    say(f"settings:     {path}{'' if written else ' says so already'}")
    say(f"admin token:  {home / 'token'}, for this account alone")
    up = f"geres{_chosen(home)} up --detach"
    say(f"next, start the service (without systemd: `{up}`), and let the first machine join:")
    for one in commands:
        write_line(one)


def _settings(
    given: dict[str, Any], insecure: bool, home: Path, ask: Callable[[str, str], str]
) -> dict[str, Any]:
    """The settings of the section `server`, from what was given and what is answered."""
    default_store = f"sqlite:{home / 'geres.db'}"
    store = given["store"] or ask(
        "Store (postgresql://USER@HOST/DATABASE for several servers)", default_store
    )
    host = given["host"] or ask("Address to listen on", "0.0.0.0")
    port = given["port"] or config.DEFAULT_PORT
    scheme = "http" if insecure else "https"
    address = given["address"] or ""
    if not address and not config.is_loopback(host):
        own = next((one for one in (socket.getfqdn(), socket.gethostname()) if "localhost" not in one), "")
        address = ask(
            "Address by which other machines reach this host", f"{scheme}://{own}:{port}" if own else ""
        )
    certificate, key = given["certificate"] or "", given["key"] or ""
    if not (certificate or insecure or config.is_loopback(host)):
        certificate = ask("Certificate, a PEM file, or self-made", "self-made")
        if certificate != "self-made" and not key:
            key = ask("Its key, a PEM file; the same one where it holds both", certificate)
    for name, file in (("certificate", certificate), ("key", key)):
        if file and file != "self-made" and not Path(file).expanduser().is_absolute():
            raise Invalid(
                f"{name}: {file} is relative; the service starts elsewhere: write the whole path", field=name
            )
    files = config.certificate_of(certificate, key if key != certificate else "", insecure) or []
    return {
        "host": host,
        "port": int(port),
        "url": address.rstrip("/"),
        "store": "" if store == default_store else store,
        "certificate": files[0] if len(files) == 1 else files,
    }


def _ask(question: str, default: str) -> str:
    answer: str = click.prompt(question, default=default, err=True)
    return answer.strip()


def _take_default(question: str, default: str) -> str:
    return default


def _home() -> Path:
    """Of the service: for root the machine's, where the account has not chosen another."""
    return _SYSTEM_HOME if os.geteuid() == 0 and not os.environ.get("GERES_HOME") else config.home()


def _next_commands(home: Path) -> list[str]:
    user = "" if os.geteuid() == 0 else " --user"
    return [f"geres service install server{user}", f"geres{_chosen(home)} node join-token"]


def _chosen(home: Path) -> str:
    return "" if home == config.home() else f" --home {home}"
