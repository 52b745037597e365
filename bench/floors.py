"""Floors: what the machine can do at best, in bare loops without geres."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

AT_ONCE = 2


def spawn(count: int) -> float:
    """Runs of /bin/true a second: `posix_spawn`, two at a time, each with an output file."""
    env = {"PATH": "/usr/bin:/bin"}
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with tempfile.TemporaryDirectory(prefix="geres-floor-") as folder:
        started = running = 0
        begun = time.perf_counter()
        while started < count or running:
            while running < AT_ONCE and started < count:
                # The same two files again and again: a new file for each would make a lower floor.
                output = (os.POSIX_SPAWN_OPEN, 1, f"{folder}/{started % AT_ONCE}", flags, 0o600)
                os.posix_spawn("/bin/true", ["/bin/true"], env, file_actions=[output])
                started += 1
                running += 1
            os.wait4(-1, 0)
            running -= 1
        return count / (time.perf_counter() - begun)


def spawn_seconds(count: int) -> list[float]:
    """How long one run of /bin/true takes, one after the other, each of `count` times."""
    taken = []
    for _ in range(count):
        begun = time.perf_counter()
        pid = os.posix_spawn("/bin/true", ["/bin/true"], {})
        os.waitpid(pid, 0)
        taken.append(time.perf_counter() - begun)
    return taken


def nothing(_: int) -> None:
    """What the pool floor runs."""


def pool(count: int) -> float:
    """Calls a second of a function that does nothing: `ProcessPoolExecutor(2).map` with chunksize 1."""
    with ProcessPoolExecutor(AT_ONCE) as executor:
        list(executor.map(nothing, range(100), chunksize=1))
        begun = time.perf_counter()
        list(executor.map(nothing, range(count), chunksize=1))
        return count / (time.perf_counter() - begun)


def sqlite_insert(count: int) -> float:
    """Rows a second of one synced transaction into an empty table with one index."""
    with tempfile.TemporaryDirectory(prefix="geres-floor-") as folder:
        connection = sqlite3.connect(Path(folder) / "floor.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(
            "CREATE TABLE task (id INTEGER PRIMARY KEY, state TEXT, lane INTEGER, payload TEXT)"
        )
        connection.execute("CREATE INDEX queue ON task (lane, id) WHERE state = 'queued'")
        rows = ((number, "queued", 1, '["/bin/true"]') for number in range(count))
        begun = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO task VALUES (?, ?, ?, ?)", rows)
        connection.execute("COMMIT")
        seconds = time.perf_counter() - begun
        connection.close()
        return count / seconds


def python_start() -> float:
    """Seconds of a whole process of this Python that does nothing."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - begun
