"""Servers, agents and PostgreSQL, each a process, each to be killed, frozen, starved and cut off."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import psycopg

import geres
from geres.model.doctor import Finding
from geres.store.database import open_database
from geres.store.invariants import check_invariants
from tests.chaos.proxy import Proxy
from tests.cluster import GERES, clean_environment, free_port
from tests.postgres import PostgresServer, die_with_parent

LEASE_SECONDS = 4.0
#: PostgreSQL's clock cannot be set, but another one can stand before it.
_CLOCK = """
CREATE SCHEMA clock;
CREATE TABLE clock.ahead AS SELECT 0.0::double precision AS seconds;
CREATE FUNCTION clock.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
    'SELECT pg_catalog.clock_timestamp() + make_interval(secs => (SELECT seconds FROM clock.ahead))';
DO $$ BEGIN
    EXECUTE format('ALTER DATABASE %I SET search_path = public, clock, pg_catalog', current_database());
END $$
"""
_WAIT_SECONDS = 60.0
_LITTLE_BYTES = 4096  #: the largest file that a starved process may write


class Part:
    """A server or an agent with a home of its own, started again whenever it is killed."""

    def __init__(self, home: Path, *words: str, lease_seconds: float = LEASE_SECONDS) -> None:
        self.home, self._words, self._lease_seconds = home, words, lease_seconds
        self.home.mkdir(exist_ok=True)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        if self.is_alive:
            return
        env = clean_environment(self.home, GERES_SERVER__LEASE_SECONDS=str(self._lease_seconds))
        with open(self.home / "log", "ab") as log:
            self.process = subprocess.Popen(
                [str(GERES), *self._words, "--home", str(self.home)],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def signal(self, number: int) -> None:
        if self.is_alive:
            assert self.process is not None
            self.process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(_WAIT_SECONDS)

    def starve(self, little: bool) -> None:
        """Let it write nothing more, as on a full disk; or again whatever it likes."""
        if self.is_alive:
            assert self.process is not None
            starve(self.process.pid, little)

    def log(self) -> str:
        path = self.home / "log"
        return path.read_text(errors="replace") if path.exists() else ""


def starve(pid: int, little: bool) -> None:
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        _, hard = psutil.Process(pid).rlimit(psutil.RLIMIT_FSIZE)
        psutil.Process(pid).rlimit(psutil.RLIMIT_FSIZE, (_LITTLE_BYTES if little else hard, hard))


class Fleet:
    """A whole fleet on one PostgreSQL.  Use it as a context manager: nothing of it is left afterwards."""

    def __init__(
        self,
        dice: random.Random,
        *,
        servers: int = 2,
        agents: int = 5,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._dice = dice
        self.folder = Path(tempfile.mkdtemp(prefix="geres-chaos-"))
        self.postgres = PostgresServer()
        self._exits = contextlib.ExitStack()
        self.store = self._exits.enter_context(self.postgres.fresh())
        with psycopg.connect(self.store, autocommit=True) as connection:
            connection.execute(_CLOCK)
        self.ports = [free_port() for _ in range(servers)]
        self.servers = [
            Part(
                self.folder / f"s{n}",
                *("server", "--port", str(port), "--store", self.store),
                lease_seconds=lease_seconds,
            )
            for n, port in enumerate(self.ports)
        ]
        self.proxies: list[Proxy] = []
        self.agents: list[Part] = []
        self._agent_count = agents
        self._clients: list[geres.Client] = []

    def __enter__(self) -> Fleet:
        try:
            self._start()
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def _start(self) -> None:
        for server in self.servers:
            server.start()
        until(lambda: all((server.home / "address.json").exists() for server in self.servers), "the servers")
        for number in range(self._agent_count):
            proxy = Proxy(lambda: self.ports, self._dice)
            proxy.start()
            self.proxies.append(proxy)
            url = f"http://127.0.0.1:{proxy.port}"
            home = self.folder / f"a{number}"
            agent = Part(home, "agent", "--url", url, "--name", f"n{number}", "--cpus", "2", "--leave-tasks")
            shutil.copy(self.servers[0].home / "agent.token", home)
            self.agents.append(agent)
            agent.start()
        self.wait_until_connected()

    def wait_until_connected(self) -> None:
        client = self.client()
        until(
            lambda: sum(node.connected for node in client.nodes()) == self._agent_count,
            "all nodes to connect",
        )

    def client(self) -> geres.Client:
        urls = ",".join(f"http://127.0.0.1:{port}" for port in self.ports)
        token = (self.servers[0].home / "token").read_text().strip()
        client = geres.Client(url=urls, token=token)
        self._clients.append(client)
        return client

    def set_clock(self, seconds: float) -> None:
        """Let the store's clock be so far ahead of what it was at first; behind where it is negative."""
        with psycopg.connect(self.store, autocommit=True) as connection:
            connection.execute("UPDATE clock.ahead SET seconds = %s", [seconds])

    def supervisor(self, agent: Part) -> int | None:
        """The process of an agent's supervisor."""
        folder = str(agent.home / "agent")
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                words = process.cmdline()
                if "supervisor" in words and folder in words:
                    return process.pid
        return None

    def task_pids(self) -> list[int]:
        """Processes of tasks."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                if "GERES_TASK_ID" in process.environ():
                    found.append(process.pid)
        return found

    def processes(self) -> list[psutil.Process]:
        """Everything that was started for this fleet: parts, supervisors, tasks."""
        mark = str(self.folder)
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                env = process.environ()
                here = [env.get("GERES_HOME", ""), env.get("GERES_TASK_DIR", ""), " ".join(process.cmdline())]
                if any(mark in text for text in here) and process.pid != os.getpid():
                    found.append(process)
        return found

    def heal(self) -> None:
        """No more faults: everything is there and answers."""
        for proxy in self.proxies:
            proxy.held, proxy.delay_seconds = False, 0.0
        for part in [*self.servers, *self.agents]:
            part.signal(signal.SIGCONT)
            part.starve(False)
            part.start()
        for agent in self.agents:
            if (pid := self.supervisor(agent)) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        self.wait_until_connected()

    def findings(self) -> list[Finding]:
        """What is wrong in the store."""
        db = open_database(self.store)
        try:
            return db.call(check_invariants)
        finally:
            db.close()

    def stop(self) -> list[str]:
        """Stop all parts in order.  Returns what is left of processes afterwards."""
        for part in [*self.agents, *self.servers]:
            part.signal(signal.SIGTERM)
        for part in [*self.agents, *self.servers]:
            if part.process is not None:
                part.process.wait(_WAIT_SECONDS)
        with contextlib.suppress(
            AssertionError
        ):  # supervisors leave by themselves when nothing is left to do
            until(lambda: not self.processes(), "the supervisors", 30)
        return [" ".join(process.cmdline()) for process in self.processes()]

    def logs(self) -> list[tuple[str, str]]:
        return [(part.home.name, part.log()) for part in [*self.servers, *self.agents]]

    def __exit__(self, *error: object) -> None:
        for client in self._clients:
            client.close()
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for part in [*self.agents, *self.servers]:
            if part.process is not None:
                part.process.wait(_WAIT_SECONDS)
        for proxy in self.proxies:
            proxy.stop()
        with contextlib.suppress(Exception):
            self._exits.close()
        self.postgres.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def until(condition: Any, what: str, seconds: float = _WAIT_SECONDS) -> None:
    """Wait until it is so.  Requests that fail meanwhile are asked again."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(geres.GeresError):
            if condition():
                return
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.05)
