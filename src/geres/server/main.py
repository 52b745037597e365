"""One server: the store, the dispatcher, the API and the loops, started and stopped in order."""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import anyio
import msgspec
import uvicorn

from geres import __version__, config, log_setup
from geres.aio import Doorbell, run_loop
from geres.api import context as api
from geres.api.app import create_app
from geres.api.context import Context
from geres.blobs.folder import FolderBlobs
from geres.config import ServerConfig
from geres.errors import Conflict, GeresError, Invalid, StoreUnavailable
from geres.server import loops, opening
from geres.server.clock import Clock, wall_us
from geres.server.dispatcher import Dispatcher
from geres.server.opening import Opened
from geres.server.waiters import Waiters
from geres.store import servers

log = logging.getLogger("geres.server")

_BACKLOG = 4096
_MOST_FRAME_BYTES = 256 << 20
_OPEN_REQUESTS_SECONDS = 5
_KEEP_ALIVE_SECONDS = 75


def main(argv: Sequence[str] | None = None) -> int:
    """`geres server`: run until a signal comes.  Returns the exit status."""
    words = _parser().parse_args(argv)
    home = Path(words.home).expanduser().absolute() if words.home else config.home()
    flags = {
        "server.host": words.host,
        "server.port": words.port,
        "server.store": words.store,
        "server.insecure": words.insecure or None,
    }
    try:
        settings = config.load(flags).checked()
        log_setup.set_up(settings.log)
        os.umask(0o077)  # what people run and wrote is for them alone
        anyio.run(_serve_until_signal, settings.server, home, backend_options={"use_uvloop": True})
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
    return parser


async def _serve_until_signal(settings: ServerConfig, home: Path) -> None:
    stop, stop_now = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(_signals, stop, stop_now)
        await serve(settings, home, stop=stop, stop_now=stop_now)
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
) -> None:
    """Run a server on this home until `stop` is set; `ready` gets its URL when it accepts requests.

    Raises Invalid or Conflict where it cannot start.
    """
    listener = _listen(settings.host, settings.port)
    try:
        opened = opening.open_store(opening.store_url(settings.store, home), now_us=wall_us())
    except BaseException:
        listener.close()
        raise
    try:
        server = _Server(settings, home, opened, listener)
        await server.run(stop, stop_now or anyio.Event(), ready)
    finally:
        listener.close()
        opened.close()


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket.  Raises Conflict for a port that is taken, Invalid for an address that is not ours."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if isinstance(error, PermissionError):
            raise Invalid(f"port: {port} is not for you; take one above 1023", field="port") from None
        if error.errno == 98 or "in use" in str(error):
            raise Conflict(f"port {port} on {host} is taken; choose another --port", port=port) from None
        raise Invalid(f"host: {host} is no address of this machine: {error.strerror}", field="host") from None
    return listener


class _Http(uvicorn.Server):
    """uvicorn without its own signal handlers: they are set once, for the whole server."""

    def __init__(self, settings: uvicorn.Config) -> None:
        super().__init__(settings)
        self.accepting, self.over = anyio.Event(), anyio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().serve(sockets)
        finally:
            self.over.set()


class _Server:
    """What one server consists of."""

    def __init__(self, settings: ServerConfig, home: Path, opened: Opened, listener: socket.socket) -> None:
        self._home, self._listener, self._db = home, listener, opened.db
        host, port = listener.getsockname()[:2]
        self._url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._host = host
        lease_us = int(settings.lease_seconds * 1e6)
        self._clock = Clock(wall_us())
        if opened.dialect == "postgres":
            self._clock = Clock(opened.db.call(servers.store_time_us))
        tenant_id, server_id = opened.db.call(
            opening.introduce,
            admin=opening.ensure_token_file(home / "token"),
            node=opening.ensure_token_file(home / "agent.token"),
            url=self._url,
            version=__version__,
            lease_us=lease_us,
            now_us=self._clock(),
        )
        self._waiters = Waiters()
        self._dispatcher = Dispatcher(
            opened.db,
            self._clock,
            self._waiters,
            tenant_id=tenant_id,
            server_id=server_id,
            lease_seconds=settings.lease_seconds,
            reserve_after_seconds=settings.reserve_after_seconds,
            placing=settings.placement,
            fair=settings.order == "fair",
            version=__version__,
        )
        self._context = Context(
            opened.db,
            self._clock,
            cast("api.Dispatcher", self._dispatcher),
            self._waiters,
            FolderBlobs(home / "blobs"),
            version=__version__,
            disk_warn_percent=settings.disk_warn_percent,
        )
        self._settings = settings
        self._http = _Http(
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
                server_header=False,
                date_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_OPEN_REQUESTS_SECONDS,
            )
        )

    async def run(self, stop: anyio.Event, stop_now: anyio.Event, ready: Callable[[str], None]) -> None:
        """Start everything, wait, stop everything: the loops last, so that what was reported is stored."""
        async with anyio.create_task_group() as loops_group:
            self._start_loops(loops_group)
            async with anyio.create_task_group() as http_group:
                http_group.start_soon(self._http.serve, [self._listener])
                await self._http.accepting.wait()
                self._write_address()
                ready(self._url)
                log.info("geres %s answers at %s", __version__, self._url, extra={"event": "started"})
                tidy_memory()
                await stop.wait()
                self._begin_stop()
                http_group.start_soon(self._force, stop_now, http_group.cancel_scope)
                await self._http.over.wait()
                http_group.cancel_scope.cancel()
            loops_group.cancel_scope.cancel()
        with anyio.move_on_after(_OPEN_REQUESTS_SECONDS, shield=True):
            await self._last_turns()
        log.info("stopped", extra={"event": "stopped"})

    def _start_loops(self, group: anyio.abc.TaskGroup) -> None:
        context, dispatcher = self._context, self._dispatcher
        lease = self._settings.lease_seconds
        janitor = loops.Janitor(context, self._settings.retention_seconds)
        clock = loops.ClockKeeper(context, self._clock, lease)
        for name, step, every, bell in (
            ("dispatcher", dispatcher.step, 1.0, dispatcher.bell),
            ("asking", dispatcher.ask_step, 2.0, dispatcher.ask_bell),
            ("leases", dispatcher.renew_step, min(1.0, lease / 10), Doorbell()),
            ("losses", dispatcher.lose_step, min(1.0, lease / 10), Doorbell()),
            ("unfolder", loops.Unfolder(context).step, 1.0, context.unfolder),
            ("waker", loops.Waker(context).step, 0.2, Doorbell()),
            ("job ender", loops.JobEnder(context).step, 1.0, context.job_ender),
            ("janitor", janitor.step, 60.0, Doorbell()),
            ("clock", clock.step, 10.0, Doorbell()),
        ):
            group.start_soon(_loop, name, step, every, bell)

    def _begin_stop(self) -> None:
        """Refuse what is new, answer what waits."""
        log.info("stopping", extra={"event": "stopping"})
        self._remove_address()
        self._context.stopping = True
        self._waiters.ring_all()
        self._http.should_exit = True

    async def _force(self, stop_now: anyio.Event, scope: anyio.CancelScope) -> None:
        await stop_now.wait()
        self._http.force_exit = True
        scope.cancel()

    async def _last_turns(self) -> None:
        """Store what the agents had reported when their connections ended; what fails comes again later."""
        try:
            while await self._dispatcher.step():
                pass
        except StoreUnavailable as error:
            log.warning("the last reports could not be stored: %s", error)

    @property
    def _address_file(self) -> Path:
        return self._home / "address.json"

    def _write_address(self) -> None:
        """Tell clients on this machine where we are: written beside and moved into place."""
        content = {
            "url": self._url,
            "host_id": config.host_id(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "started_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        }
        part = self._address_file.with_suffix(f".json.{os.getpid()}")
        part.touch(0o600)
        part.write_bytes(msgspec.json.encode(content))
        part.replace(self._address_file)

    def _remove_address(self) -> None:
        """Only our own: another server may have started on this home meanwhile."""
        with contextlib.suppress(OSError, msgspec.DecodeError):
            if msgspec.json.decode(self._address_file.read_bytes()).get("pid") == os.getpid():
                self._address_file.unlink()


async def _loop(name: str, step: Callable[[], object], every: float, bell: Doorbell) -> None:
    try:
        await run_loop(name, step, every=every, bell=bell)  # type: ignore[arg-type]  # all steps are async
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
