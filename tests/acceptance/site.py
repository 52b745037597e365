"""One server with a short lease and its agents, each behind a network of its own that a test can cut."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

import geres
from geres.agent.link import ask, socket_path
from geres.model.tasks import TaskDetail
from geres.sdk.discover import read_address
from tests.acceptance.acts import eventually
from tests.acceptance.fleet import Part
from tests.cluster import clean_environment, free_port

LEASE_SECONDS = 3.0


class Network:
    """Carries the bytes of one agent to the server and back, for as long as it is not cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._is_cut = False
        self._ends: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections, and let no other in."""
        self._is_cut = True
        for end in list(self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._is_cut = False

    def close(self) -> None:
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self._is_cut:
                    raise ConnectionRefusedError
                far = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                near.close()
                continue
            self._ends |= {near, far}
            for here, there in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(here, there), daemon=True).start()

    def _carry(self, here: socket.socket, there: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := here.recv(1 << 16):
                there.sendall(data)
        for end in (here, there):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
            self._ends.discard(end)


class Node(Part):
    """An agent in a home of its own; its tasks outlive it."""

    def __init__(self, home: Path, network: Network, token: Path, *words: str) -> None:
        self.network = network
        home.mkdir()
        shutil.copy(token, home / "agent.token")
        url = f"http://127.0.0.1:{network.port}"
        super().__init__(home, "agent", "--url", url, "--name", home.name, "--cpus", "1", *words)

    def supervisor(self) -> dict[str, Any]:
        """What its supervisor has; empty where there is none."""
        answer = ask(socket_path(self.home / "agent"), "status")
        return {} if answer is None else answer[0]

    @property
    def supervisor_log(self) -> str:
        path = self.home / "logs" / "supervisor.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def name(self) -> str:
        return self.home.name

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill_all(self) -> None:
        """As if the machine had no power any more: agent, supervisor and tasks are gone."""
        if self.process.poll() is None:
            self.thaw()
            self.kill()
        if pid := self.supervisor().get("pid"):
            supervisor = psutil.Process(pid)
            family = [supervisor, *supervisor.children(recursive=True)]
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            psutil.wait_procs(family, 10)


class Site:
    """A server `site.server` and nodes; use it as a context manager.  At the end nothing of it is left."""

    def __init__(self, lease_seconds: float = LEASE_SECONDS) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="geres-site-"))
        self._lease_seconds = lease_seconds
        self._port = free_port()
        self._count = 0
        self.nodes: list[Node] = []
        self._logs: list[str] = []

    def __enter__(self) -> Site:
        words = ("server", "--port", str(self._port))
        self.server = Part(
            self.folder / "server", *words, GERES_SERVER__LEASE_SECONDS=f"{self._lease_seconds:g}"
        )
        self.wait_for_server()
        token = (self.server.home / "token").read_text().strip()
        self.client = geres.Client(url=f"http://127.0.0.1:{self._port}", token=token)
        return self

    def wait_for_server(self) -> None:
        def looks() -> bool:
            assert self.server.process.poll() is None, self.server.log()
            found = read_address(self.server.home)
            return found is not None and urlsplit(found.url).port == self._port and self._answers()

        eventually(looks)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
            return True
        return False

    def __exit__(self, *error: object) -> None:
        self.client.close()
        self.end_nodes()
        self.server.kill(signal.SIGTERM)
        logs = [self.server.log(), *self._logs]
        shutil.rmtree(self.folder, ignore_errors=True)
        if error[0] is None:
            for text in logs:
                assert "Traceback" not in text, text[-6000:]

    @property
    def env(self) -> dict[str, str]:
        """The environment of a client of this site."""
        token = (self.server.home / "token").read_text().strip()
        return clean_environment(self.folder, GERES_URL=f"http://127.0.0.1:{self._port}", GERES_TOKEN=token)

    def node(self, *words: str) -> Node:
        """A node that is connected when this comes back."""
        self._count += 1
        name = f"n{self._count}"
        node = Node(self.folder / name, Network(self._port), self.server.home / "agent.token", *words)
        self.nodes.append(node)
        self.until_node(name, "idle", "running")
        return node

    def end_nodes(self) -> None:
        """End all nodes, with all that runs there."""
        for node in self.nodes:
            node.kill_all()
            node.network.close()
            self._logs += [node.log(), node.supervisor_log]
        self.nodes.clear()

    def until_node(self, name: str, *states: str) -> None:
        eventually(
            lambda: {one.name: one.state.value for one in self.client.nodes()},
            lambda found: found.get(name) in states,
        )

    def until(self, task_id: str, *states: str) -> TaskDetail:
        """Wait until a task is in one of these states; all about it then."""
        return eventually(
            lambda: self.client.task_info(task_id),
            lambda info: info.state.value in states,
        )


def is_alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def marks(path: Path) -> list[list[str]]:
    """The lines that a task wrote so far, in words; a line that is being written is left out."""
    text = path.read_text() if path.exists() else ""
    return [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]
