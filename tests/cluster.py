"""A whole cluster for tests and benches: the installed `geres up`, in a home of its own, watched."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

import geres
from geres.agent.accounts import own_account

#: The installed command of the running environment, not a module of the checkout.
GERES = Path(sys.executable).with_name("geres")
PARTS = ("up", "server", "agent", "supervisor")
_START_SECONDS = 30.0
_RUN_SECONDS = 60.0


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    """This process' environment without its own geres settings, for a cluster in `home`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GERES_")}
    env |= {
        "GERES_HOME": str(home),
        "PATH": f"{GERES.parent}{os.pathsep}{os.environ.get('PATH', '/usr/bin:/bin')}",
        "XDG_CONFIG_HOME": str(home / "no-configuration"),
        # The users of tests are no accounts of this machine; tests of accounts take this out.
        "GERES_AGENT__ACCOUNTS": f"*={own_account().name}",
    }
    return env | more


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Cluster:
    """One `geres up --detach`.  Use it as a context manager: at the end it checks that all went well."""

    def __init__(
        self, folder: Path, *, store: str | None = None, cpus: float = 2, flags: tuple[str, ...] = ()
    ) -> None:
        """`folder` must exist; the home is made in it.  `store` is a URL, None for SQLite in the home."""
        self.home = folder / "home"
        self.port = free_port()
        self._store = store
        self._flags = ("--cpus", str(cpus), *flags)
        self._killed: set[int] = set()
        self._clients: list[geres.Client] = []
        self._up = False

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.stop()
        except BaseException:
            if error[0] is None:
                raise

    @property
    def env(self) -> dict[str, str]:
        return clean_environment(self.home)

    @property
    def url(self) -> str:
        return str(self.address["url"])

    @property
    def token(self) -> str:
        """The admin token that `geres up` made."""
        return (self.home / "token").read_text().strip()

    @property
    def address(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home / "address.json").read_text())
        return found

    def start(self) -> None:
        store = ("--store", self._store) if self._store else ()
        words = ("up", "--detach", "--port", str(self.port), *store, *self._flags)
        self.run(*words, check=True, timeout=_START_SECONDS)
        self._up = True

    def wait_until_ready(self, seconds: float = _START_SECONDS) -> None:
        """Wait until a node is connected: `geres up` comes back as soon as the server answers."""
        deadline = time.monotonic() + seconds
        client = self.client()
        while not any(node.connected for node in client.nodes()):
            assert time.monotonic() < deadline, f"no node within {seconds} s"
            time.sleep(0.02)

    def stop(self) -> None:
        """`geres down`, then check: nothing died that no test killed, no traceback, no process left."""
        if not self._up:
            return
        self._up = False
        for client in self._clients:
            client.close()
        done = self.run("down", "--now")
        dead = self.died_unnoticed()
        left = self._end_what_is_left()
        problems = [
            *([f"geres down ended with {done.returncode}: {done.stderr}"] if done.returncode else []),
            *(f"died unnoticed: {line}" for line in dead),
            *(f"still there after geres down: {line}" for line in left),
            *(
                f"a traceback in {name}:\n{_traceback(text)}"
                for name, text in self.logs()
                if "Traceback" in text
            ),
        ]
        assert not problems, "\n".join(problems)

    def run(
        self,
        *words: str,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        timeout: float = _RUN_SECONDS,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run `geres WORDS` to its end.  With `check`, an exit status other than 0 fails, with its output."""
        done = subprocess.run(
            [str(GERES), *words],
            input=input if input is not None else "",
            env=self.env | dict(env or {}),
            cwd=cwd or self.home.parent,
            timeout=timeout,
            capture_output=True,
            text=True,
        )
        if check:
            assert done.returncode == 0, (
                f"geres {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def popen(self, *words: str, env: Mapping[str, str] | None = None, **more: Any) -> subprocess.Popen[str]:
        """Start `geres WORDS` with pipes; the test ends it."""
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
        return subprocess.Popen(
            [str(GERES), *words],
            env=self.env | dict(env or {}),
            cwd=options.pop("cwd", self.home.parent),
            text=True,
            **options,
        )

    def client(self) -> geres.Client:
        """A client of this cluster; closed at the end."""
        client = geres.Client(url=self.url, token=self.token)
        self._clients.append(client)
        return client

    def pid(self, part: str) -> int | None:
        """The process of a part (`up`, `server`, `agent`, `supervisor`), None while it is down."""
        found = [process.pid for process in self.processes() if _part_of(process) == part]
        return min(found) if found else None

    def kill(self, part: str, number: int = signal.SIGKILL) -> int:
        """Send a part a signal, by default -9, and wait until that process is gone; its process number."""
        pid = self.pid(part)
        assert pid is not None, f"there is no {part} to kill"
        self._killed.add(pid)
        process = psutil.Process(pid)
        os.kill(pid, number)
        process.wait(_START_SECONDS)
        return pid

    def wait_for(self, part: str, seconds: float = _START_SECONDS) -> int:
        """Wait until a part runs (again); its process number."""
        deadline = time.monotonic() + seconds
        while (pid := self.pid(part)) is None:
            assert time.monotonic() < deadline, f"no {part} within {seconds} s"
            time.sleep(0.02)
        return pid

    def processes(self) -> Iterator[psutil.Process]:
        """Every process that has this home in its environment: parts and tasks."""
        wanted = str(self.home)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                if process.environ().get("GERES_HOME") == wanted:
                    yield process

    def logs(self) -> Iterator[tuple[str, str]]:
        """Name and text of each log."""
        for path in sorted((self.home / "logs").glob("*.log")):
            yield path.name, path.read_text(errors="replace")

    def died_unnoticed(self) -> list[str]:
        """What the log of `geres up` says about parts that ended badly, but for those that `kill` ended."""
        path = self.home / "logs" / "up.log"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        ended = re.compile(r"the \w+ \(process (\d+)\) died|does not stop; it is killed")
        found = [(line, match[1]) for line in lines if (match := ended.search(line))]
        return [line for line, pid in found if pid is None or int(pid) not in self._killed]

    def _end_what_is_left(self) -> list[str]:
        left = [process for process in self.processes() if process.pid != os.getpid()]
        told = []
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                told.append(f"{process.pid} {' '.join(process.cmdline())}")
                process.kill()
        psutil.wait_procs(left, timeout=10)
        return told


def _traceback(log: str) -> str:
    """The first traceback of a log, whether its lines are JSON or text."""
    around = log[log.index("Traceback") :][:6000]
    return around.partition("\n{")[0].replace("\\n", "\n")


def _part_of(process: psutil.Process) -> str | None:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        words = re.split(r"[\s./]+", " ".join(process.cmdline()[:6]))
        if "geres" in words:
            return next((part for part in reversed(PARTS) if part in words), None)
    return None
