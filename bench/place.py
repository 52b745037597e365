"""Where a bench runs: a fresh cluster on SQLite or on a PostgreSQL of its own."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

import geres
from tests.cluster import Cluster
from tests.postgres import PostgresServer

STORES = ("sqlite", "postgres")
TRUE = ["/bin/true"]
#: No node has it: tasks that ask for it stay queued.
NOWHERE = {"nothing-has-this": 1}


@dataclass
class Place:
    """How much to measure, and on which stores."""

    short: bool
    stores: tuple[str, ...]
    pairs: int
    nodes: int | None = None  #: simulated agents of `fleet`
    tasks: int | None = None  #: that they run
    snapshot_seconds: float = 0.0  #: how old a snapshot is beside which they do

    @property
    def fleet_nodes(self) -> int:
        return self.nodes or self.sized(10_000, 200)

    @property
    def fleet_tasks(self) -> int:
        return self.tasks or self.sized(500_000, 5_000)

    def sized(self, full: int, short: int) -> int:
        return short if self.short else full

    @contextlib.contextmanager
    def cluster(self, store: str, cpus: float = 2) -> Iterator[Cluster]:
        """A cluster whose node is ready; stopped, and checked for silent deaths, at the end."""
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="geres-bench-")))
            url = None
            if store == "postgres":
                server = PostgresServer()
                stack.callback(server.stop)
                url = stack.enter_context(server.fresh())
            cluster = stack.enter_context(Cluster(folder, store=url, cpus=cpus))
            cluster.client().submit(TRUE).wait(timeout=30, check=True)
            yield cluster


def run_commands(client: geres.Client, count: int, job: str | None = None) -> float:
    """Submit `count` runs of /bin/true, wait until all ends are known here; tasks a second."""
    begun = time.perf_counter()
    tasks = client.submit_many([TRUE] * count, job=job).wait(timeout=600, check=True)
    seconds = time.perf_counter() - begun
    assert len(tasks) == count
    return count / seconds


def stored(client: geres.Client, job: geres.Job, count: int, seconds: float = 300.0) -> float:
    """Wait until all rows of an array are there; how long that took from now."""
    begun = time.perf_counter()
    while missing := job.counts.not_yet:
        if time.perf_counter() - begun > seconds:
            raise TimeoutError(f"{missing} of {count} rows are missing after {seconds} s")
        time.sleep(0.05)
    return time.perf_counter() - begun


def resident_bytes(cluster: Cluster, *parts: str) -> int:
    """Memory of parts of a cluster that is theirs (USS plus what they share among themselves, as RSS)."""
    return sum(psutil.Process(cluster.wait_for(part)).memory_info().rss for part in parts)
