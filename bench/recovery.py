"""How soon work goes on after a part has died: server, agent, PostgreSQL, a whole machine."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import geres
from bench.place import TRUE, Place
from bench.report import Row
from tests.acceptance.site import Site
from tests.cluster import Cluster
from tests.postgres import PostgresServer

_OUTAGE_SECONDS = 2.0
_DEFAULT_LEASE_SECONDS = 15.0


def restart(place: Place) -> Iterator[Row]:
    """Kill with -9, under a running task, what keeps it, and see when the next one has ended."""
    for store in place.stores:
        with place.cluster(store) as cluster:
            for part, told in (("server", "dispatch is back"), ("agent", "its tasks are taken over")):
                yield _killed(cluster, part, told, store)
    if "postgres" in place.stores:
        yield _postgres_crashed()
    yield _host_lost()


def _killed(cluster: Cluster, part: str, told: str, store: str) -> Row:
    client = cluster.client()
    sleeper = _running(client, 3)
    cluster.kill(part)
    cluster.wait_for(part)
    figure = _until_one_has_ended(client)
    unharmed = sleeper.wait(timeout=60).succeeded and sleeper.attempt == 1
    return Row(
        name=f"{part} killed: {told}",
        store=store,
        bar="<= 5 s, nothing rerun",
        figure=figure,
        unit="s",
        passed=figure <= 5 and unharmed,
    )


def _postgres_crashed() -> Row:
    """From the moment in which it takes connections again; a client waits for a task all the while."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="geres-bench-")))
        postgres = PostgresServer()
        stack.callback(postgres.stop)
        url = stack.enter_context(postgres.fresh())
        cluster = stack.enter_context(Cluster(folder, store=url, cpus=2))
        client = cluster.client()
        sleeper = _running(client, _OUTAGE_SECONDS / 2)
        waiter = threading.Thread(target=lambda: seen.append(sleeper.wait(timeout=60).succeeded))
        seen: list[bool] = []
        waiter.start()
        postgres.crash()
        time.sleep(_OUTAGE_SECONDS)
        postgres.restart()
        figure = _until_one_has_ended(client)
        waiter.join(60)
    unharmed = seen == [True] and sleeper.attempt == 1
    return Row(
        name="PostgreSQL crashed and back: dispatch is back",
        store="postgres",
        bar="<= 5 s, no error",
        figure=figure,
        unit="s",
        passed=figure <= 5 and unharmed,
    )


def _host_lost() -> Row:
    """Agent, supervisor and tasks are gone and stay away; settings as they are by default."""
    with Site(lease_seconds=_DEFAULT_LEASE_SECONDS) as site:
        node = site.node()
        task = _running(site.client, 600)
        begun = time.perf_counter()
        node.kill_all()
        while task.refresh().state != "queued":
            time.sleep(0.05)
        figure = time.perf_counter() - begun
    return Row(
        name="host lost: its tasks queued again",
        store="sqlite",
        bar="<= 20 s",
        figure=figure,
        unit="s",
        passed=figure <= 20,
    )


def _running(client: geres.Client, seconds: float) -> geres.Task:
    task = client.submit(["sleep", f"{seconds:g}"])
    while task.state != "running":
        time.sleep(0.01)
    return task


def _until_one_has_ended(client: geres.Client) -> float:
    begun = time.perf_counter()
    client.submit(TRUE).wait(timeout=60, check=True)
    return time.perf_counter() - begun
