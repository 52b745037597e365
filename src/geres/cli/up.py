"""`geres up` and `geres down`: a cluster on this machine."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NoReturn

import click

from geres import __version__, config, unix_socket
from geres.cli import home as homes
from geres.cli.keeper import Keeper, end_supervisor, running_tasks
from geres.cli.output import say, write_line
from geres.errors import Conflict, Denied, GeresError, Invalid, NotFound, Unreachable
from geres.files import check_database
from geres.model.units import parse_cpus, parse_size, show_duration, show_size
from geres.sdk.discover import AddressFile, is_alive, read_address

_PORTS = 200
_SHARED_HOME = "/var/lib/geres"
_BACKLOG = 4096
_DETACH_SECONDS = 90.0
_DOWN_SECONDS = 120.0
_HURRY_SECONDS = 0.2  #: between two signals of `down --now`
_TELL_SECONDS = 5.0  #: between two lines on what a stop waits for


@click.command()
@click.option("-d", "--detach", is_flag=True, help="Go to the background; survives the log-out.")
@click.option("-c", "--cpus", metavar="N", help="Declare so many cpus instead of the machine's.")
@click.option("-m", "--memory", metavar="SIZE", help="Declare so much memory.")
@click.option("-G", "--gpus", metavar="N", type=int, help="Declare so many gpus.")
@click.option("-r", "--resource", "resources", multiple=True, metavar="NAME=N", help="Named resource.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label of the node.")
@click.option("--slots", metavar="N", type=int, help="Most tasks at once.")
@click.option("-p", "--pool", metavar="NAME", help="Pool of the node.")
@click.option("--name", metavar="NAME", help="Name of the node.")
@click.option("--host", metavar="ADDRESS", help="Address to listen on.  [127.0.0.1]")
@click.option("--port", metavar="N", type=click.IntRange(0, 65535), help="Port.  [4470 or the next free]")
@click.option("--store", metavar="URL", help="sqlite:PATH or postgresql://...  [geres.db in the home]")
@click.option("--certificate", metavar="FILE", help="PEM file, or self-made.  [self-made where others reach]")
@click.option("--key", metavar="FILE", help="PEM file with the certificate's key.")
@click.option("--insecure", is_flag=True, default=None, help="Let other machines in without TLS.")
@click.option("--no-agent", is_flag=True, help="A server only: no node here.")
@click.option("--shared", is_flag=True, help="One for all users of this machine; only root starts it.")
@click.option("--socket", metavar="PATH", help=f"Socket of --shared.  [GERES_SOCKET or {unix_socket.SHARED}]")
@click.option(
    "--account", "accounts", multiple=True, metavar="USER=ACCOUNT", help="Whose tasks run as which account."
)
@click.option("--trust-submitters", is_flag=True, help="Run everybody's tasks as your account.")
def up(
    detach: bool,
    resources: tuple[str, ...],
    labels: tuple[str, ...],
    no_agent: bool,
    shared: bool,
    socket: str | None,
    accounts: tuple[str, ...],
    trust_submitters: bool,
    **flags: Any,
) -> None:
    """Start a cluster on this machine: a server, and an agent that makes it a node.

    Without --detach it stays; Ctrl-C names the running tasks, lets them end for a while, and stops.  With
    --shared every user of the machine finds it, needs no token, and has their tasks run as their own account.
    """
    if shared or socket:
        _check_shared(shared, flags)
    if shared and "GERES_HOME" not in os.environ:
        os.environ["GERES_HOME"] = _SHARED_HOME
    home = config.home()
    os.environ.setdefault(config.CONFIG_FROM, os.getcwd())
    settings = _settings(flags, resources, labels)
    os.umask(0o077)  # what we write is for us alone; tasks get the usual one
    lock = _take(home, settings.server.store)
    server = settings.server
    if shared:
        listener = unix_socket.listen(os.path.abspath(socket or unix_socket.shared_path()))
    else:
        listener = open_listener(server.host, server.port, asked="server.port" in settings.origins)
    words = ["--home", str(home)]
    # Not among its words: everybody on the machine sees those, and there may be a password in it.
    env = {"GERES_SERVER__STORE": server.store.replace("${", "$${")} if server.store else {}
    for name, given in zip(("--certificate", "--key"), server.certificate, strict=False):
        if given not in (config.SELF_MADE, config.NO_TLS):
            given = os.path.abspath(os.path.expanduser(given))  # the server starts in another folder
        words += [name, given]
    agent = None
    if not no_agent:
        agent = ["--home", str(home), "--stop-tasks", *_agent_words(flags, resources, labels)]
        for account in accounts:
            agent += ["--account", account]
        if trust_submitters:
            agent.append("--trust-submitters")
    if hasattr(os, "geteuid") and os.geteuid() == 0 and not shared:
        if agent and not {"root", "*"} & {*settings.agent.accounts, *(one.split("=")[0] for one in accounts)}:
            agent += ["--account", "root=root"]
        say("geres: you are root: tasks run as root, for everyone who can read the token in the home")
    drain = settings.agent.drain_seconds
    if detach:
        _detach(home, lock, Keeper(home, listener, words, agent, drain, _log_line, env).run)
        return
    keeper = Keeper(home, listener, words, agent, drain, _say_and_log(home), env)
    keeper.run(lambda address: _tell(home, address, stays=True))


def _check_shared(shared: bool, flags: dict[str, Any]) -> None:
    """Raise Invalid for what does not go with --shared, Denied for one who may not start it."""
    if not shared:
        raise Invalid("socket: it goes with --shared", field="socket")
    for name in ("host", "port", "certificate", "key", "insecure"):
        if flags[name] is not None:
            raise Invalid(f"{name}: --shared listens on a Unix socket alone; leave it out", field=name)
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise Denied(
            "only root can run the tasks of all users: `sudo geres up --shared`, or `geres up` for your own"
        )


def _take(home: Path, store: str) -> IO[str]:
    """Make the home ready and take it for this process.  Raises Invalid or Conflict where it cannot be."""
    homes.prepare(home)
    homes.check_host(home)
    lock = homes.lock(home)
    if left := homes.orphans(home):
        named = ", ".join(f"{name} {pid}" for name, pid in left)
        raise Conflict(f"parts of an earlier geres still run in {home} ({named}); `geres down` stops them")
    if not store or store.startswith("sqlite:"):
        check_database(Path(store.removeprefix("sqlite:")) if store else home / "geres.db")
    return lock


@click.command()
@click.option("--purge", is_flag=True, help="Also remove all that the home holds of geres.")
@click.option("--yes", is_flag=True, help="Do not ask before removing.")
@click.option("--now", is_flag=True, help="Do not let running tasks end.")
def down(purge: bool, yes: bool, now: bool) -> None:
    """Stop the cluster of this machine; what it stored stays, and `geres up` goes on with it.

    Running tasks get a while to end; not with --now, nor with --purge, which leaves nothing of them.
    """
    home = config.home()
    if purge and not _may_remove(home, yes=yes):
        return
    if not (now or purge) and (running := running_tasks(home)):
        say(f"geres: stopping; {running}; they get a while to end (Ctrl-C: stop now)")
    stopped = _stop(home, now=now or purge)
    if not purge:
        if not stopped:
            raise NotFound(f"no geres runs in {home}")
        say("geres is down")
        return
    left = homes.remove(home)
    if left:
        say(
            f"removed; {home} stays, for it holds what is not ours: "
            + " ".join(path.name for path in left[:5])
        )


def _may_remove(home: Path, *, yes: bool) -> bool:
    """Show what a purge removes and ask, before anything is stopped; False where there is nothing.

    Raises Exit where the answer is no.
    """
    found = list(homes.ours(home))
    if not found:
        say(f"{home} holds nothing of geres")
        return False
    say(f"this stops what runs in {home} and removes from it, for ever:")
    for path in found:
        say(f"  {path.name}{'/' if path.is_dir() else ''}  {show_size(homes.size_of(path))}")
    if yes:
        return True
    try:
        if click.confirm("Remove them?", err=True):
            return True
    except click.Abort:
        say("")  # the prompt had no answer, and left its line open
    say("nothing was stopped or removed; --yes removes without asking")
    raise click.exceptions.Exit(1)


def open_listener(host: str, port: int, *, asked: bool) -> socket.socket:
    """A listening socket at the asked port, else at the first free one from it on.  Raises Conflict.

    `geres up` holds it for as long as it runs: requests wait in it while the server is replaced.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, port + (1 if asked or port == 0 else _PORTS)):
        listener = socket.socket(family)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            listener.bind((host, candidate))
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                raise Invalid(f"host: {host} is no address of this machine", field="host") from None
            if isinstance(error, PermissionError):
                raise Invalid(
                    f"port: {candidate} is not for you; take one above 1023", field="port"
                ) from None
            continue
        return listener
    if asked:
        raise Conflict(f"port {port} on {host} is taken; choose another --port, or leave it out", port=port)
    raise Conflict(f"the ports {port} to {port + _PORTS - 1} on {host} are all taken; choose a --port")


def _settings(flags: dict[str, Any], resources: tuple[str, ...], labels: tuple[str, ...]) -> config.Config:
    if flags["cpus"] is not None and parse_cpus(flags["cpus"]) <= 0:
        raise Invalid("cpus: a node needs more than 0", field="cpus")
    if flags["memory"] is not None and parse_size(flags["memory"]) <= 0:
        raise Invalid("memory: a node needs more than 0", field="memory")
    given = {
        "server.host": flags["host"],
        "server.port": flags["port"],
        "server.store": flags["store"],
        "server.certificate": config.certificate_of(flags["certificate"], flags["key"], flags["insecure"]),
        "agent.name": flags["name"],
        "agent.pool": flags["pool"],
        "agent.cpus": flags["cpus"],
        "agent.memory_bytes": flags["memory"],
        "agent.gpus": flags["gpus"],
        "agent.slots": flags["slots"],
        "agent.resources": ",".join(resources) or None,
        "agent.labels": ",".join(labels) or None,
    }
    return config.load(given).checked()


def _agent_words(flags: dict[str, Any], resources: tuple[str, ...], labels: tuple[str, ...]) -> list[str]:
    words: list[str] = []
    for name in ("cpus", "memory", "gpus", "slots", "pool", "name"):
        if flags[name] is not None:
            words += [f"--{name}", str(flags[name])]
    for resource in resources:
        words += ["-r", resource]
    for label in labels:
        words += ["--label", label]
    return words


def _tell(home: Path, address: AddressFile, *, stays: bool) -> None:
    write_line(f"geres {__version__} is up at {address.url}")
    if address.fingerprint:
        say(
            f"its certificate has the fingerprint {address.fingerprint}; `geres node join-token` prints how"
            " another machine joins"
        )
    place = f" --home {home}" if unix_socket.path_of(address.url) else ""
    if place:
        say("every user of this machine finds it there; their tasks run as their own accounts")
    say(
        f"home {home}; "
        + ("Ctrl-C stops it" if stays else f"`geres{place} down` stops it")
        + ("; try `geres run hostname` as one of them" if place else "; try `geres run hostname`")
    )
    sys.stdout.flush()


def _log_line(text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk is no reason to end what runs
        print(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S%z} {text}", file=sys.stderr, flush=True)


def _say_and_log(home: Path) -> Callable[[str], None]:
    def tell(text: str) -> None:
        say(f"geres: {text}")
        with contextlib.suppress(OSError), open(home / "logs" / "up.log", "a") as log:
            log.write(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S%z} {text}\n")

    (home / "logs").mkdir(mode=0o700, exist_ok=True)
    return tell


def _detach(home: Path, lock: IO[str], keep: Callable[[Callable[[AddressFile], None]], None]) -> None:
    """Run `keep` in a process that outlives the terminal; return when its server answers.

    The lock goes with it: it is held as long as the keeper lives.
    """
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(read)
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        _background(home, write, keep)
    os.wait()
    os.close(write)
    with open(read) as answers:
        answer = answers.read()
    lock.close()
    if answer != "ready":
        raise Unreachable(answer or f"geres up ended; {home / 'logs' / 'up.log'} may say why")
    address = read_address(home)
    assert address is not None
    _tell(home, address, stays=False)


def _background(home: Path, write: int, keep: Callable[[Callable[[AddressFile], None]], None]) -> NoReturn:
    (home / "logs").mkdir(mode=0o700, exist_ok=True)
    log = os.open(home / "logs" / "up.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.chdir("/")
    answered = False

    def ready(address: AddressFile) -> None:
        nonlocal answered
        answered = True
        os.write(write, b"ready")
        os.close(write)
        _log_line(f"up at {address.url}")

    status = 0
    try:
        keep(ready)
    except GeresError as error:
        status = error.exit_status
        _log_line(f"{error.code}: {error}")
        if not answered:
            os.write(write, str(error).encode())
    except BaseException:
        import traceback  # a fault of ours

        status = 1
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)


def _stop(home: Path, *, now: bool) -> bool:
    """Stop the keeper and its parts, or parts without one.  False where nothing ran."""
    up = homes.read_up(home)
    if homes.is_locked(home) and up is not None:
        keeper = [("up", up.pid)]
    else:
        keeper = homes.orphans(home)
        if not keeper:
            return False
    for _, pid in keeper:
        _kill(pid, signal.SIGTERM)
    began = time.monotonic()
    deadline, tell_at, hurry_at = began + _DOWN_SECONDS, began + _TELL_SECONDS, began + _HURRY_SECONDS
    try:
        while any(is_alive(pid) for _, pid in keeper) or homes.is_locked(home):
            if time.monotonic() > deadline:
                raise Unreachable(
                    f"process {keeper[0][1]} does not stop; its log is {home / 'logs' / 'up.log'}"
                )
            if now and time.monotonic() > hurry_at:  # again: two signals that wait for it together are one
                hurry_at += _HURRY_SECONDS
                for _, pid in keeper:
                    _kill(pid, signal.SIGTERM)
            if not now and time.monotonic() > tell_at:
                tell_at += _TELL_SECONDS
                waits = running_tasks(home) or "its parts end"
                say(f"geres: stopping for {show_duration(time.monotonic() - began)}; {waits}")
            time.sleep(0.02)
    except KeyboardInterrupt:
        for _, pid in keeper:
            _kill(pid, signal.SIGTERM)
        raise
    end_supervisor(home)
    for name in ("up.json", "address.json"):
        (home / name).unlink(missing_ok=True)
    return True


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
