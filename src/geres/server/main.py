"""One server: the store, the dispatcher, the API and the loops, started and stopped in order."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import uvicorn

from geres import __version__, config, log_setup, unix_socket
from geres.aio import Doorbell, Pulse, run_loop
from geres.api import context as api
from geres.api.app import create_app
from geres.api.context import Context
from geres.config import ServerConfig
from geres.errors import GeresError, StoreUnavailable
from geres.model.identity import provider_of
from geres.sdk.discover import read_address
from geres.server import fleet, listening, loops, opening, tls
from geres.server.address import local_url, named_url, remove_address, write_address
from geres.server.asking import Asking
from geres.server.attending import Attendant
from geres.server.clock import Clock, wall_us
from geres.server.dispatcher import Dispatcher
from geres.server.far_blobs import FarBlobs
from geres.server.far_nodes import FarNodes
from geres.server.fleet import Fleet
from geres.server.hints import Hints
from geres.server.http import Http
from geres.server.inside import Inside
from geres.server.leases import Leases
from geres.server.opening import Opened
from geres.server.waiters import Waiters
from geres.server.webhooks import Sending
from geres.store import secrets as store_secrets
from geres.store import servers
from geres.store.servers import Introduction

log = logging.getLogger("geres.server")

_MOST_FRAME_BYTES = 16 << 20
_OPEN_REQUESTS_SECONDS = 5
_HAND_OVER_SECONDS = 30.0  #: for the server that we replace to let go of a SQLite file
_KEEP_ALIVE_SECONDS = 75
_REQUESTS_A_SECOND = 5000.0  #: of one token on one server: far above what one program asks for


def main(argv: Sequence[str] | None = None) -> int:
    """`geres server`: run until a signal comes.  Returns the exit status."""
    words = _parser().parse_args(argv)
    home = Path(words.home).expanduser().absolute() if words.home else config.home()
    flags: dict[str, Any] = {
        "server.host": words.host,
        "server.port": words.port,
        "server.store": words.store,
        "server.certificate": config.certificate_of(words.certificate, words.key, words.insecure),
    }
    try:
        listener = listening.inherited(words.listen_fd)
        if listener is not None:  # what it is bound to counts, for what is allowed there too
            if listener.family == socket.AF_UNIX:
                flags["server.host"] = unix_socket.url_of(listener.getsockname())
            else:
                flags["server.host"], flags["server.port"] = listener.getsockname()[:2]
        settings = config.load(flags).checked()
        log_setup.set_up(settings.log)
        os.umask(0o077)  # what people run and wrote is for them alone
        run = partial(_serve_until_signal, settings.server, home, listener, words.replace)
        anyio.run(run, backend_options={"use_uvloop": True})
    except (GeresError, ExceptionGroup) as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        print(f"geres server: {refusal}", file=sys.stderr)
        return refusal.exit_status
    return 0


def _refusal(error: Exception) -> GeresError | None:
    """The deliberate error alone in a group of groups; None where there is another one."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, GeresError) else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="geres server", description="Run one server until a signal comes.")
    parser.add_argument("--home", metavar="DIR", help="the folder of the cluster  [GERES_HOME]")
    parser.add_argument("--host", metavar="ADDRESS", help="address to listen on  [127.0.0.1]")
    parser.add_argument("--port", metavar="N", type=int, help="port; 0 for any free one  [4470]")
    parser.add_argument(
        "--store", metavar="URL", help="sqlite:PATH or postgresql://...  [geres.db in the home]"
    )
    parser.add_argument("--insecure", action="store_true", help="let other machines in without TLS")
    parser.add_argument(
        "--certificate", metavar="FILE", help="PEM file, or self-made  [self-made where others reach us]"
    )
    parser.add_argument("--key", metavar="FILE", help="PEM file with the certificate's key")
    # How `geres up` starts one: a socket that stays open while servers change, and the server that goes.
    parser.add_argument("--listen-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--replace", metavar="PID", type=int, help=argparse.SUPPRESS)
    return parser


async def _serve_until_signal(
    settings: ServerConfig, home: Path, listener: socket.socket | None, replaces: int | None
) -> None:
    stop, stop_now = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(_signals, stop, stop_now)
        await serve(settings, home, stop=stop, stop_now=stop_now, listener=listener, replaces=replaces)
        group.cancel_scope.cancel()


async def _signals(stop: anyio.Event, stop_now: anyio.Event) -> None:
    """The first signal stops in order, the second at once."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        async for _ in received:
            if stop.is_set():
                stop_now.set()
            stop.set()


async def serve(
    settings: ServerConfig,
    home: Path,
    *,
    stop: anyio.Event,
    stop_now: anyio.Event | None = None,
    ready: Callable[[str], None] = lambda url: None,
    listener: socket.socket | None = None,
    replaces: int | None = None,
) -> None:
    """Run a server on this home until `stop` is set; `ready` gets its URL when it accepts requests.

    `listener` is a listening socket that was handed over.  `replaces` is the process of the server that goes:
    it is told to stop once we can take over; on SQLite, which serves one at a time, before we open the file,
    and requests wait in the socket meanwhile.  Without a `listener`, the server of this home that answers at
    our address is replaced so.  Raises Invalid or Conflict where it cannot start.
    """
    if listener is None:
        replaces = replaces or listening.predecessor(home, settings.host, settings.port)
        listener = listening.listen(settings.host, settings.port, beside=replaces is not None)
    try:
        tls.check(settings)  # a refusal now leaves the server that we replace at work
        opened = _open_store(opening.store_url(settings.store, home), home, listener, replaces)
    except BaseException:
        listener.close()
        raise
    try:
        server = _Server(settings, home, opened, listener)
        if opened.dialect == "sqlite":
            replaces = None  # it has gone
        await server.run(stop, stop_now or anyio.Event(), ready, replaces)
    finally:
        listener.close()
        opened.close()


def _open_store(url: str, home: Path, listener: socket.socket, replaces: int | None) -> Opened:
    if replaces is None or not url.startswith("sqlite:"):
        return opening.open_store(url, now_us=wall_us())
    opening.check_file(url)  # a refusal now leaves the other one at work
    if (found := read_address(home)) is not None:  # before it takes its own away: nobody is to find none
        write_address(home, found.url, found.fingerprint, found.listens)
    listening.tell_to_stop(replaces)
    return opening.open_store(url, now_us=wall_us(), patience_seconds=_HAND_OVER_SECONDS)


class _Server:
    """What one server consists of."""

    def __init__(self, settings: ServerConfig, home: Path, opened: Opened, listener: socket.socket) -> None:
        self._home, self._listener, self._db = home, listener, opened.db
        self._store_url = opening.store_url(settings.store, home)
        self._clock = Clock(wall_us())
        if opened.dialect == "postgres":
            self._clock = Clock(opened.db.call(servers.store_time_us))
        self._tls = tls.prepare(settings, home, opened.db, now_us=self._clock())
        self._pin = self._tls.pin if self._tls else ""
        self._listens = local_url(listener, with_tls=self._tls is not None)
        self._url = named_url(self._listens, settings.url, self._tls.names if self._tls else ())
        url = fleet.reachable_url(settings.url, self._listens, listener, self._store_url)
        me = Introduction(0, url, __version__, self._clock(), secrets.token_urlsafe(32), self._pin)
        tenant_id, me = opened.db.call(
            opening.introduce,
            admin=opening.ensure_token_file(home / "token"),
            node=opening.ensure_token_file(home / "agent.token"),
            me=me,
            lease_us=int(settings.lease_seconds * 1e6),
        )
        task_key = opened.db.call(store_secrets.shared, store_secrets.TASK_TOKENS, now_us=self._clock())
        self._hints = Hints(me.id)
        self._fleet = Fleet(opened.db, self._clock, me, self._hints)
        self._waiters = Waiters(self._hints)
        self._dispatcher = Dispatcher(
            opened.db,
            self._clock,
            self._waiters,
            tenant_id=tenant_id,
            me=me,
            hints=self._hints,
            lease_seconds=settings.lease_seconds,
            reserve_after_seconds=settings.reserve_after_seconds,
            placing=settings.placement,
            fair=settings.order == "fair",
            task_key=task_key,
        )
        self._fleet.tell = partial(fleet.tell_nodes, self._dispatcher)
        self._far_nodes = FarNodes(opened.db, me.id)
        self._dispatcher.far_nodes = self._far_nodes.of_tenant
        self._leases = Leases(
            opened.db, self._clock, self._dispatcher, me, lease_seconds=settings.lease_seconds
        )
        self._context = Context(
            opened.db,
            self._clock,
            cast("api.Dispatcher", self._dispatcher),
            self._waiters,
            FarBlobs(home / "blobs", lambda: self._fleet.others, self._clock),
            server_id=me.id,
            server_secret=me.secret,
            hooks=frozenset(settings.hooks),
            private=listener.family
            == socket.AF_UNIX,  # accounts of one machine, who did not choose each other
            version=__version__,
            url=me.url,
            fingerprint=self._pin,
            disk_warn_percent=settings.disk_warn_percent,
            task_key=task_key,
            provider=provider_of(settings.oidc),
            requests_per_second=_REQUESTS_A_SECOND,
        )
        self._context.inside = Inside(self._context, self._dispatcher).look
        self._settings = settings
        self._http = Http(
            uvicorn.Config(
                create_app(self._context),
                http="httptools",
                ws="websockets-sansio",
                ws_max_size=_MOST_FRAME_BYTES,
                ws_ping_interval=None,  # a side that is held back answers no ping; agents have heartbeats
                ws_per_message_deflate=False,
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,  # addresses are those that we see, not those that callers claim
                server_header=False,
                date_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_OPEN_REQUESTS_SECONDS,
            ),
            self._tls.context if self._tls else None,
        )

    async def run(
        self, stop: anyio.Event, stop_now: anyio.Event, ready: Callable[[str], None], replaces: int | None
    ) -> None:
        """Start everything, wait, stop everything: the loops last, so that what was reported is stored."""
        async with anyio.create_task_group() as loops_group:
            self._start_loops(loops_group)
            async with anyio.create_task_group() as http_group:
                http_group.start_soon(self._http.serve, [self._listener])
                await self._http.accepting.wait()
                write_address(self._home, self._url, self._pin, self._listens)
                ready(self._url)
                listening.notify("READY=1")
                if replaces is not None:
                    listening.tell_to_stop(replaces)
                log.info("geres %s answers at %s", __version__, self._url, extra={"event": "started"})
                tidy_memory()
                await stop.wait()
                self._begin_stop()
                http_group.start_soon(self._force, stop_now, http_group.cancel_scope)
                await self._dispatcher.send_away()
                self._http.should_exit = True
                await self._http.over.wait()
                http_group.cancel_scope.cancel()
            loops_group.cancel_scope.cancel()
        with anyio.move_on_after(_OPEN_REQUESTS_SECONDS, shield=True):
            await self._last_turns()
            await self._leave()
            await self._context.close()
        log.info("stopped", extra={"event": "stopped"})

    def _start_loops(self, group: anyio.abc.TaskGroup) -> None:
        context, dispatcher = self._context, self._dispatcher
        lease = self._settings.lease_seconds
        janitor = loops.Janitor(context, self._settings.retention_seconds)
        clock = loops.ClockKeeper(context, self._clock, lease)
        attendant = Attendant(context, dispatcher, self._settings.hooks, lease_seconds=lease)
        group.start_soon(attendant.run)
        sending = Sending(context)
        if self._db.dialect == "postgres":
            group.start_soon(self._notifier().run)
        for name, step, every, bell in (
            ("dispatcher", dispatcher.step, 1.0, dispatcher.bell),
            ("asking", Asking(self._db, dispatcher).step, 2.0, dispatcher.ask_bell),
            ("leases", self._leases.renew_step, min(1.0, lease / 10), Doorbell()),
            ("losses", self._leases.lose_step, min(1.0, lease / 10), Doorbell()),
            *(
                [("far nodes", self._far_nodes.step, 3.0, Doorbell())]
                if self._db.dialect == "postgres"
                else []
            ),
            ("fleet", self._fleet.step, min(1.0, lease / 10), Doorbell()),
            ("migrations", loops.Migrator(context).step, 60.0, Doorbell()),
            ("unfolder", loops.Unfolder(context).step, 1.0, context.unfolder),
            ("waker", loops.Waker(context).step, 0.2, Doorbell()),
            ("job ender", loops.JobEnder(context).step, 1.0, context.job_ender),
            ("janitor", janitor.step, 60.0, Doorbell()),
            ("going nodes", attendant.step, 1.0, context.attendant),
            ("silent nodes", attendant.revive_step, 1.0, Doorbell()),
            ("sweeper", loops.Sweeper(context).step, 60.0, Doorbell()),
            ("clock", clock.step, lease / 3, Doorbell()),
            *([("certificate", self._tls.step, 30.0, Doorbell())] if self._tls else []),
            *(
                (f"webhooks {n}", sending.step, 15.0 if n else 1.0, bell)
                for n, bell in enumerate(sending.bells)
            ),
        ):
            pulse = context.pulses[name] = Pulse(every)
            group.start_soon(_loop, name, step, every, bell, pulse)

    def _notifier(self) -> Any:
        from geres.server.notifier import Notifier  # an extra: only those who use PostgreSQL have the driver

        return Notifier(
            self._store_url, self._hints, lambda hint: fleet.hear(hint, self._dispatcher, self._waiters)
        )

    def _begin_stop(self) -> None:
        """Accept nothing more, first of all: what comes now waits in the socket, or goes to another server.
        Then refuse what is new on open connections, and answer what waits."""
        log.info("stopping", extra={"event": "stopping"})
        listening.notify("STOPPING=1")
        for listening_here in self._http.servers:
            listening_here.close()
        remove_address(self._home)
        self._context.stopping = True
        self._waiters.ring_all()

    async def _force(self, stop_now: anyio.Event, scope: anyio.CancelScope) -> None:
        await stop_now.wait()
        self._http.force_exit = True
        scope.cancel()

    async def _last_turns(self) -> None:
        """Store what the agents had reported when their connections ended; what fails comes again later."""
        try:
            while await self._dispatcher.step():
                pass
            await self._leases.renew_step()
        except StoreUnavailable as error:
            log.warning("the last reports could not be stored: %s", error)

    async def _leave(self) -> None:
        try:
            await self._fleet.leave()
        except StoreUnavailable as error:
            log.warning("our lease in the store will have to end by itself: %s", error)


async def _loop(
    name: str, step: Callable[[], Awaitable[bool]], every: float, bell: Doorbell, pulse: Pulse
) -> None:
    try:
        await run_loop(name, step, every=every, bell=bell, pulse=pulse)
    except Exception:
        log.critical(
            "the loop %s has failed; the server ends", name, exc_info=True, extra={"event": "loop_failed"}
        )
        raise


def tidy_memory() -> None:
    """Collect rarely: a bulk submit makes hundreds of thousands of objects that live on."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


if __name__ == "__main__":
    sys.exit(main())
