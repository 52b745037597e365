"""Parts of this release and of the previous one, side by side: each in an environment of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import psutil

import geres
from tests.cluster import clean_environment, free_port

ROOT = Path(__file__).parents[2]
START_SECONDS = 30.0
_STOP_SECONDS = 30.0


class NoHistory(Exception):
    """The previous release cannot be had; the message says why."""


class Release:
    """The code of one release in a folder."""

    def __init__(self, name: str, source: Path) -> None:
        self.name, self.source = name, source

    def start(self, part: str, home: Path, *words: object) -> subprocess.Popen[bytes]:
        """`geres PART WORDS` of this release, with its home; its output goes to PART.log there."""
        env = clean_environment(home) | {"PYTHONPATH": str(self.source), "PYTHONDONTWRITEBYTECODE": "1"}
        if self.name == "previous":  # it refuses settings that it does not know
            env = {name: value for name, value in env.items() if not re.match("GERES_.*__", name)}
        with (home / f"{part}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "geres", part, *map(str, words)],
                env=env,
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


def current() -> Release:
    return Release("current", ROOT / "src")


def previous(folder: Path) -> Release:
    """Check the previous release out of the history into `folder`.  Raises NoHistory where there is none."""
    commit = (Path(__file__).with_name("previous-release")).read_text().strip()
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "archive", commit, "src"], capture_output=True, timeout=60
        )
    except FileNotFoundError:
        raise NoHistory("there is no git to look the previous release up with") from None
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()
        raise NoHistory(f"the history does not hold the previous release {commit[:12]}: {words}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return Release("previous", folder / "src")


class World:
    """A server and agents, of any release; `close` ends all that is left of them."""

    def __init__(self, folder: Path, store: str | None = None) -> None:
        """`store` is the URL of a PostgreSQL database; None for SQLite in the home."""
        self.folder, self.home, self._store = folder, folder / "h", store
        self.home.mkdir()
        self.port = free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        self._clients: list[geres.Client] = []

    def server(self, release: Release, *, home: Path | None = None, port: int = 0) -> subprocess.Popen[bytes]:
        """Start a server and wait until it answers."""
        home = home or self.home
        store = ("--store", self._store) if self._store else ()
        process = release.start("server", home, "--port", port or self.port, *store)
        self.processes.append(process)
        self._wait(lambda: self._answers(home, process), process, f"{release.name} server", home)
        return process

    def _answers(self, home: Path, process: subprocess.Popen[bytes]) -> bool:
        """True once the address file is that of this process: it is written when requests are accepted."""
        try:
            return bool(json.loads((home / "address.json").read_text())["pid"] == process.pid)
        except (OSError, ValueError):
            return False

    def agent(self, release: Release, name: str = "n1", port: int = 0) -> subprocess.Popen[bytes]:
        """Start an agent in a home of its own and wait until its node is connected."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        (home / "agent.token").write_bytes((self.home / "agent.token").read_bytes())
        began = time.time()
        url = f"http://127.0.0.1:{port or self.port}"
        process = release.start("agent", home, "--url", url, "--name", name, "--cpus", "2", "--stop-tasks")
        self.processes.append(process)
        self._wait(lambda: self._heard(name, began), process, f"{release.name} agent", home)
        return process

    def _heard(self, name: str, after: float) -> bool:
        from datetime import datetime

        for node in self.client().nodes():
            if node.name == name and node.connected and node.last_heartbeat_at:
                return datetime.fromisoformat(node.last_heartbeat_at).timestamp() >= after - 0.001
        return False

    def client(self) -> geres.Client:
        """A client of the current release."""
        if not self._clients:
            token = (self.home / "token").read_text().strip()
            self._clients.append(geres.Client(f"http://127.0.0.1:{self.port}", token))
        return self._clients[0]

    def _wait(self, done, process, what, home) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not done():
            log = "".join(path.read_text(errors="replace")[-4000:] for path in self.folder.rglob("*.log"))
            assert process.poll() is None, f"the {what} ended with {process.poll()}:\n{log}"
            assert time.monotonic() < deadline, f"the {what} does not start:\n{log}"
            time.sleep(0.02)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        assert process.wait(_STOP_SECONDS) == 0, self.logs()

    def logs(self) -> str:
        return "\n".join(f"{path}:\n{path.read_text()[-4000:]}" for path in self.folder.rglob("*.log"))

    def close(self) -> None:
        for client in self._clients:
            client.close()
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        left = [one for one in psutil.process_iter() if self._is_ours(one)]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)

    def _is_ours(self, process: psutil.Process) -> bool:
        """True for what runs in one of our homes: supervisors outlive their agents, and tasks these."""
        with contextlib.suppress(psutil.Error):
            home = process.environ().get("GERES_HOME", "")
            return home.startswith(f"{self.folder}{os.sep}") and process.pid != os.getpid()
        return False
