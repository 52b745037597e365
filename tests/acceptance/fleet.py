"""Several servers and agents on one PostgreSQL, each a process of its own, as on machines of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geres
from geres.sdk.discover import read_address
from tests.acceptance.acts import eventually
from tests.cluster import GERES, clean_environment, free_port

_STOP_SECONDS = 20.0


class Part:
    """One process with its home."""

    def __init__(self, home: Path, *words: str, **env: str) -> None:
        self.home, self._words, self._env = home, words, env
        self.start()

    def start(self) -> None:
        self.home.mkdir(exist_ok=True)
        with open(self.home / "log", "ab") as log:
            self.process = subprocess.Popen(
                [str(GERES), *self._words, "--home", str(self.home)],
                env=clean_environment(self.home, **self._env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, by default -9, and wait for the end."""
        self.process.send_signal(number)
        self.process.wait(_STOP_SECONDS)

    def log(self) -> str:
        return (self.home / "log").read_text(errors="replace")


class Fleet:
    """Servers `a`, `b`, ... and agents; use it as a context manager.  At the end nothing of it is left."""

    def __init__(self, store: str, servers: int = 2, *, lease_seconds: float = 15.0) -> None:
        self._store, self._lease = store, lease_seconds
        self.folder = Path(tempfile.mkdtemp(prefix="geres-fleet-"))
        self._count = servers
        self.servers: list[Part] = []
        self.agents: list[Part] = []
        self._clients: list[geres.Client] = []

    def __enter__(self) -> Fleet:
        try:
            self.servers += [self._server("abcdef"[number]) for number in range(self._count)]
            for server in self.servers:
                eventually(lambda server=server: self.url(server))  # type: ignore[misc]
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for client in self._clients:
            client.close()
        for part in [*self.agents, *self.servers]:
            if part.process.poll() is None:
                part.process.send_signal(signal.SIGTERM)
        for part in [*self.agents, *self.servers]:
            try:
                part.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                part.kill()
        tracebacks = [part.log() for part in [*self.agents, *self.servers] if "Traceback" in part.log()]
        shutil.rmtree(self.folder, ignore_errors=True)
        if error[0] is None:
            assert not tracebacks, tracebacks[0][-6000:]

    def _server(self, name: str) -> Part:
        port = str(free_port())
        words = ("server", "--port", port, "--store", self._store)
        return Part(self.folder / name, *words, GERES_SERVER__LEASE_SECONDS=str(self._lease))

    def agent(self, name: str, *servers: Part, cpus: float = 1) -> Part:
        """An agent that knows these servers; it is connected when this comes back."""
        home = self.folder / name
        home.mkdir()
        shutil.copy(servers[0].home / "agent.token", home)
        urls = [word for server in servers for word in ("--url", self.url(server))]
        part = Part(home, "agent", *urls, "--name", name, "--cpus", str(cpus), "--stop-tasks")
        self.agents.append(part)
        client = self.client(servers[0])
        eventually(
            lambda: [node.name for node in client.nodes() if node.connected], lambda found: name in found
        )
        return part

    def url(self, server: Part) -> str:
        """Where it answers; empty before it does."""
        assert server.process.poll() is None, server.log()
        found = read_address(server.home)
        return found.url if found else ""

    def env(self, *servers: Part) -> dict[str, str]:
        """The environment of a client that knows these servers, in this order."""
        token = (servers[0].home / "token").read_text().strip()
        urls = ",".join(self.url(server) for server in servers)
        return clean_environment(self.folder / "client", GERES_URL=urls, GERES_TOKEN=token)

    def client(self, *servers: Part) -> geres.Client:
        env = self.env(*servers)
        client = geres.Client(url=env["GERES_URL"], token=env["GERES_TOKEN"])
        self._clients.append(client)
        return client

    def run(self, server: Part, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """`geres WORDS` at this server, to its end; it must go well."""
        done = subprocess.run(
            [str(GERES), *words],
            env=self.env(server),
            input=options.pop("input", ""),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            **options,
        )
        assert done.returncode == 0, f"geres {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def popen(self, *servers: Part, words: tuple[str, ...]) -> subprocess.Popen[str]:
        """`geres WORDS` with pipes, knowing these servers; the test ends it."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [str(GERES), *words], env=self.env(*servers), stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """The process, which is no more afterwards."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
