"""`geres agent`: makes this machine a node.  Tasks belong to the supervisor, and outlive us."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec

from geres import config as settings
from geres import log_setup
from geres.agent import access as joining
from geres.agent.access import Access, Credential
from geres.agent.accounts import Accounts, let_pass, own_account
from geres.agent.channel import Channel
from geres.agent.link import Link, ask, socket_path
from geres.agent.local import Localities
from geres.agent.machine import node_name
from geres.agent.node import Node
from geres.agent.orders import Orders, Place, account_environment
from geres.agent.renewal import Renewal, notice_of_start
from geres.agent.start_task import StartTask
from geres.agent.streams import Streams
from geres.agent.upkeep import Upkeep
from geres.agent.upload import Uploader
from geres.config import AgentConfig, LogConfig
from geres.errors import GeresError, Invalid
from geres.model.joining import parse_invitation
from geres.model.units import parse_cpus, parse_size

log = logging.getLogger("geres.agent")

_SWEEP_SECONDS = 30.0
_DISK_SECONDS = 3.0
_LAST_WORDS_SECONDS = 3.0
_LONGEST_GRACE_SECONDS = 10.0
_NO_GRACE_SECONDS = 1.5


@dataclass(frozen=True)
class Options:
    """What an agent is started with."""

    home: Path
    access: Access
    config: AgentConfig
    log: LogConfig
    accounts: dict[str, str]  #: see config.AgentConfig
    read: Callable[[], settings.Config]  #: the settings as they are now
    stop_tasks: bool = False  #: end the tasks on the way out, and the supervisor with them
    leave_tasks: bool = False  #: leave at once, and the tasks to the supervisor
    on_disconnect: str = "run"  #: see TaskSpec

    @property
    def folder(self) -> Path:
        return self.home / "agent"


class Stop:
    """Signals: the first drains, the second stops now.  One of another kind has the agent begin anew."""

    def __init__(self) -> None:
        self.count = 0
        self.anew = False
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def begin_anew(self) -> None:
        if not self.count:
            self.anew = True
            self.first.set()

    def signalled(self) -> None:
        self.count += 1
        self.anew = False
        (self.first if self.count == 1 else self.second).set()


async def run(options: Options, note: Callable[[str], None] = lambda text: None) -> bool:
    """Be a node until told to stop; True where we are to begin anew.

    `note` is told what came of reading the settings again.  Raises TimeoutError where no supervisor can be
    started.
    """
    folder, config = options.folder, options.config
    is_up_home = (options.home / "token").exists()  # an agent alone has no admin's token
    access = options.access
    place = Place(
        *(node_name(config), access.url, options.home, folder, is_up_home, account_environment()),
        access.fingerprint,
        on_disconnect=options.on_disconnect,
    )
    _make_folders(folder, place)
    accounts = Accounts(options.accounts)
    _open_the_way(options.home, folder, accounts)
    localities = Localities()
    upkeep = Upkeep(folder, socket_path(folder))
    lost = asyncio.Event()
    node: Node

    def hear(frame: Any) -> None:
        node.hear(frame)

    link = Link(folder, options.home / "logs" / "supervisor.log", hear, lost.set)
    orders = Orders(config, place, localities, accounts, link.send)
    node = Node(orders, Uploader(access), upkeep)
    node.link = link
    streams = Streams(node, link.path, access, options.home / "logs")
    node.open_stream = streams.open
    upkeep.readers = streams.reader_of
    start_task = StartTask(
        folder, options.home / "logs", place.start_environment(), place.shared, node.start_is
    )
    node.start, node.begin = start_task.report, start_task.begin
    channel = Channel(node, config, folder, access, notice_of_start())
    localities.settle([path for path in place.account["PATH"].split(":") if path[:1] == "/"], 0.3)
    stop = Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.signalled)
    log_file = options.home / "logs" / "agent.log"
    renewal = Renewal(config, options.read, log_file, orders, channel, stop.begin_anew, note)
    node.renew = renewal.obey
    loop.add_signal_handler(signal.SIGUSR1, renewal.obey, "restart")
    loop.add_signal_handler(signal.SIGHUP, renewal.reload)
    try:
        async with anyio.create_task_group() as group:
            await link.open()
            group.start_soon(_keep_link, link, lost, node)
            group.start_soon(channel.run)
            group.start_soon(streams.run)
            for _ in range(2):
                group.start_soon(_forever, node.upload_step)
            group.start_soon(_sweep, upkeep)
            group.start_soon(_watch_disk, upkeep, node)
            gc.freeze()
            await _stop_in_order(stop, options, node, channel)
            group.cancel_scope.cancel()
    finally:
        start_task.close()
        link.close()
        upkeep.close()
        localities.close()
        accounts.close()
    return stop.anew


def _open_the_way(home: Path, folder: Path, accounts: Accounts) -> None:
    """Where tasks run as other accounts, let these come to the folders of their tasks."""
    if accounts.may_switch:
        ours = [path for pattern in settings.OURS for path in home.glob(pattern)]
        accounts.barred = let_pass(home, folder, ours)
        if accounts.barred:
            log.warning("no task can run as another account than %s: %s", accounts.own.name, accounts.barred)


def _make_folders(folder: Path, place: Place) -> None:
    for path in (folder, folder / "tasks", place.shared):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)


async def _keep_link(link: Link, lost: asyncio.Event, node: Node) -> None:
    """Come back to the supervisor, or start another, whenever the connection to it ends."""
    while True:
        await lost.wait()
        lost.clear()
        log.warning("the supervisor is gone; another one is started")
        link.reap()
        await link.open()
        node.linked()


async def _forever(step: Any) -> None:
    while True:
        await step()


async def _watch_disk(upkeep: Upkeep, node: Node) -> None:
    while True:
        upkeep.make_room(node.dropped, lambda full: node.disk_is(full=full))
        await anyio.sleep(_DISK_SECONDS)


async def _sweep(upkeep: Upkeep) -> None:
    while True:
        upkeep.sweep()
        await anyio.sleep(_SWEEP_SECONDS)


async def _stop_in_order(stop: Stop, options: Options, node: Node, channel: Channel) -> None:
    """After the first signal: take nothing more, let tasks end; renewing the lease stops last."""
    await stop.first.wait()
    if stop.anew or options.leave_tasks:
        how = "beginning anew" if stop.anew else "stopping"
        log.info("%s; %d tasks stay with the supervisor", how, node.running_count)
        node.link.send(("leave",))  # if it has none: the next one is of what is installed by then
        await asyncio.sleep(0)
        return
    node.drain()
    channel.leave()
    log.info("stopping; %d tasks run here", node.running_count)
    with anyio.move_on_after(options.config.drain_seconds if options.stop_tasks else None):
        await _until_idle(stop, node)
    if options.stop_tasks:
        hurried = stop.second.is_set()
        grace = _NO_GRACE_SECONDS if hurried else _LONGEST_GRACE_SECONDS
        if node.running_count:
            log.warning("ending %d tasks: %s", node.running_count, ", ".join(node.names()[:20]))
            node.stop_tasks(node.attempts, grace)
        with anyio.move_on_after(grace + _LAST_WORDS_SECONDS):
            await _until(node, lambda: not node.running_count)
    if channel.is_connected:
        with anyio.move_on_after(_LAST_WORDS_SECONDS):
            await _until(node, lambda: not (node.ended or node.uploading))
    node.link.send(("leave",))
    await asyncio.sleep(0)


async def _until(node: Node, condition: Callable[[], bool]) -> None:
    while not condition():
        node.progress.clear()
        with anyio.move_on_after(0.5):
            await node.progress.wait()


async def _until_idle(stop: Stop, node: Node) -> None:
    while node.running_count and not stop.second.is_set():
        with anyio.move_on_after(0.05):
            await stop.second.wait()


def main(argv: list[str] | None = None) -> int:
    """`geres agent`.  Returns the exit status."""
    words = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    home = Path(words.home).absolute() if words.home else settings.home()
    try:
        if words.renew:
            _say(f"{joining.renew(home).node} has another credential now")
            return 0
        lock = _lock(home / "agent")
        try:
            options = _options(words, home)
        except BaseException:
            os.close(lock)
            raise
    except GeresError as error:
        print(f"geres: {error.code}: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    log_setup.set_up(options.log)
    log_setup.keep(options.home / "logs" / "agent.log")
    os.umask(0o077)  # what we write is for us alone; the supervisor gives tasks the usual one
    try:
        anew = anyio.run(run, options, partial(_note, lock), backend_options={"use_uvloop": _has_uvloop()})
    except TimeoutError as error:
        log.error("%s", error)
        return 1
    finally:
        os.close(lock)
    if not anew:
        _leave_what_hangs()
    if anew:  # the same process, so that whoever keeps it need not know; the code is what is installed now
        for number in (signal.SIGUSR1, signal.SIGHUP):  # another one must not end us before we listen to it
            signal.signal(number, signal.SIG_IGN)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return 0


def _leave_what_hangs() -> None:
    """End at once where a thread waits for a disk, or for a server: the interpreter would wait for it."""
    ours = threading.main_thread()
    if any(thread is not ours and not thread.daemon for thread in threading.enumerate()):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401  # not on every platform
    except ImportError:
        return False
    return True


def _note(lock: int, text: str) -> None:
    """Leave a sentence for `geres agent reload` beside our process number."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n{text}\n".encode(), 0)


def _settings(words: argparse.Namespace) -> settings.Config:
    flags: dict[str, Any] = {
        "agent.name": words.name,
        "agent.pool": words.pool,
        "agent.cpus": None if words.cpus is None else parse_cpus(words.cpus),
        "agent.memory_bytes": None if words.memory is None else parse_size(words.memory),
        "agent.gpus": words.gpus,
        "agent.slots": words.slots,
        "agent.resources": _pairs(words.resource, "resource", int) or None,
        "agent.labels": _pairs(words.label, "label", str) or None,
    }
    return settings.load(flags).checked()


def _options(words: argparse.Namespace, home: Path) -> Options:
    config = _settings(words)
    words.url = ",".join(words.url) if words.url else None
    access, agent = _access(words, home, config)
    accounts = {**config.agent.accounts, **_pairs(words.account, "account", str)}
    if words.trust_submitters:
        accounts = {"*": own_account().name}
    read = partial(_settings, words)
    return Options(
        *(home, access, agent, config.log, accounts, read),
        stop_tasks=words.stop_tasks,
        leave_tasks=words.leave_tasks,
        on_disconnect=words.on_disconnect,
    )


def _access(words: argparse.Namespace, home: Path, config: settings.Config) -> tuple[Access, AgentConfig]:
    """How the server is reached: as a node that joined, else as the agent of the server in the same home.

    With the name and the pool that the node joined with, where nothing else is asked for.
    """
    learnt = home / "agent" / joining.LEARNT_NAME
    agent, is_local = config.agent, words.url is not None and words.url == _address(home)
    found: Credential | None = None
    if invitation := words.join or ("" if is_local else agent.join):
        found = joining.join(home, parse_invitation(invitation), node_name(agent), say=_say)
    elif not is_local and (found := joining.read(home)) is not None and not found.joined:
        raise Invalid(f"{home} has not joined to its end: give the same --join once more", field="join")
    if found is not None:
        pool = agent.pool if "agent.pool" in config.origins else found.pool or agent.pool
        agent = msgspec.structs.replace(agent, name=agent.name or found.node, pool=pool)
        url, path = words.url or found.url, home / joining.FILE_NAME
        return Access(url, found.token, found.fingerprint, path, learnt), agent
    url = words.url or os.environ.get("GERES_URL") or _address(home)
    if not url:
        raise Invalid(
            "--join: which cluster? `geres node join-token` on its server prints the command to type here",
            field="join",
        )
    path = home / "agent.token"
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise Invalid(f"{path}: the agent's token cannot be read: {error.strerror}", field="home") from None
    return Access(url, token, _fingerprint(home, url), learnt=learnt), agent


def _say(text: str) -> None:
    print(f"geres agent: {text}", file=sys.stderr, flush=True)


def _address(home: Path) -> str:
    """The address of the server that works in this home; empty where none does."""
    return str(_address_file(home).get("url", ""))


def _fingerprint(home: Path, url: str) -> str:
    """What the server of this home says of its certificate; empty for a server elsewhere."""
    found = _address_file(home)
    return str(found.get("fingerprint", "")) if found.get("url") == url.rstrip("/") else ""


def _address_file(home: Path) -> dict[str, Any]:
    try:
        found = msgspec.json.decode((home / "address.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="geres agent", description="Make this machine a node of a cluster.")
    parser.add_argument(
        "--home", metavar="DIR", help="where this node keeps its credential and its tasks  [GERES_HOME]"
    )
    parser.add_argument(
        "--join", metavar="INVITATION", help="become a node; `geres node join-token` prints the whole command"
    )
    parser.add_argument("--renew", action="store_true", help="get another credential for this node, and end")
    parser.add_argument(
        "--url",
        metavar="URL",
        action="append",
        help="address of a server  [that of the invitation]; again, or with commas, for further ones",
    )
    parser.add_argument("--name", metavar="NAME", help="the node's name; default: the host's")
    parser.add_argument("--pool", "-p", metavar="NAME", help="pool of the node")
    parser.add_argument("--cpus", "-c", metavar="N", help="cpus to offer; default: what the machine has")
    parser.add_argument(
        "--memory", "-m", metavar="SIZE", help="memory to offer; default: what the machine has"
    )
    parser.add_argument("--gpus", "-G", metavar="N", type=int, help="gpus to offer")
    parser.add_argument("--slots", metavar="N", type=int, help="most tasks at once")
    parser.add_argument(
        "--resource", "-r", metavar="NAME=N", action="append", default=[], help="a named count"
    )
    parser.add_argument(
        "--label", metavar="KEY=VALUE", action="append", default=[], help="a label of the node"
    )
    parser.add_argument(
        "--account",
        metavar="USER=ACCOUNT",
        action="append",
        default=[],
        help="whose tasks run as which account here; `*` for all others  [the one of the same name]",
    )
    parser.add_argument(
        "--trust-submitters", action="store_true", help="run everybody's tasks as the agent's own account"
    )
    parser.add_argument(
        "--on-disconnect",
        choices=["run", "stop", "keep"],
        default="run",
        help="what becomes of tasks that do not say, when this node loses contact: they run on, and another"
        " node may get them too; stop before another may get them; or wait for this node  [run]",
    )
    parser.add_argument(
        "--leave-tasks",
        action="store_true",
        help="stop at once, tasks go on under their supervisor: for an agent that is started again soon",
    )
    parser.add_argument(
        "--stop-tasks",
        action="store_true",
        help="end the tasks when the agent is stopped, instead of leaving them",
    )
    return parser


def _pairs(words: list[str], field: str, kind: type) -> dict[str, Any]:
    pairs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise Invalid(f"--{field}: {word!r} is no NAME=VALUE", field=field)
        try:
            pairs[name] = kind(value)
        except ValueError:
            raise Invalid(f"--{field}: {value!r} of {name} is no whole number", field=field) from None
    return pairs


def _lock(folder: Path) -> int:
    """Hold the folder, for one agent at a time.  Raises Invalid where another agent has it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(folder / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(lock, 32, 0).decode().partition("\n")[0]
        os.close(lock)
        raise Invalid(f"an agent already works in {folder} (process {pid})", field="home") from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def stop_supervisor(home: Path, grace_seconds: float) -> bool:
    """End the tasks and the supervisor of a home whose agent is gone.  False where there is no supervisor."""
    return ask(socket_path(home / "agent"), "stop", grace_seconds) is not None
