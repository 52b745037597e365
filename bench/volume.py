"""Very many tasks at once: bulk submit, an array of a million, memory with a million stored."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from statistics import median

import geres
from bench import floors
from bench.place import NOWHERE, TRUE, Place, resident_bytes, stored
from bench.report import Row, in_turns

_MIB = 1 << 20


def submit(place: Place) -> Iterator[Row]:
    """100,000 tasks in one call, durable when it returns.  Their job is disabled: only storing counts."""
    count = place.sized(100_000, 20_000)
    for store in place.stores:
        with place.cluster(store) as cluster:
            client = cluster.client()

            def figure(client: geres.Client = client) -> float:
                job = client.create_job(f"bulk-{time.monotonic_ns()}")
                job.disable()
                begun = time.perf_counter()
                client.submit_many([TRUE] * count, job=job)
                seconds = time.perf_counter() - begun
                assert job.counts.queued == count
                job.cancel()
                return count / seconds

            pairs = in_turns(figure, lambda: floors.sqlite_insert(count), place.pairs)
        bar = {"sqlite": 150_000, "postgres": 50_000}[store]
        yield Row(
            name=f"bulk submit of {count:,}",
            store=store,
            bar=f">= {bar:,}/s",
            figure=pairs.figure,
            unit="/s",
            floor=pairs.floor,
            ratio=pairs.ratio,
            passed=pairs.figure >= bar,
            note="floor: bare SQLite insert",
            details=pairs.details,
        )


def array(place: Place) -> Iterator[Row]:
    """An array of a million: accepted at once, its rows there soon, while other tasks run."""
    count = place.sized(1_000_000, 50_000)
    for store in place.stores:
        with place.cluster(store) as cluster:
            client = cluster.client()
            with _Busy(client) as alone:
                time.sleep(3)
            with _Busy(client) as meanwhile:
                begun = time.perf_counter()
                job = client.submit_array(TRUE, range=f"1-{count}", resources=NOWHERE)
                accepted = (time.perf_counter() - begun) * 1000
                seconds = accepted / 1000 + stored(client, job, count)
        yield Row(
            name=f"array of {count:,}: accepted",
            store=store,
            bar="<= 100 ms",
            figure=accepted,
            unit="ms",
            passed=accepted <= 100,
        )
        yield Row(
            name=f"array of {count:,}: all rows",
            store=store,
            bar="<= 10 s, turns going on",
            figure=seconds,
            unit="s",
            passed=seconds <= 10 and meanwhile.done > 0,
            note=f"round trips meanwhile {meanwhile.rate:.0f}/s, worst {meanwhile.worst * 1000:.0f} ms; "
            f"alone {alone.rate:.0f}/s",
        )


def memory(place: Place) -> Iterator[Row]:
    """Resident memory with a million tasks stored, after pages of them were read."""
    count = place.sized(1_000_000, 50_000)
    for store in place.stores:
        with place.cluster(store) as cluster:
            client = cluster.client()
            job = client.submit_array(TRUE, range=f"1-{count}", resources=NOWHERE)
            stored(client, job, count)
            for _ in zip(range(20), client.task_pages(job=job.id, limit=1000), strict=False):
                pass
            client.submit_many([TRUE] * 1000).wait(timeout=120)
            server = resident_bytes(cluster, "server") / _MIB
            node = resident_bytes(cluster, "agent", "supervisor") / _MIB
        yield Row(
            name=f"memory of the server, {count:,} stored",
            store=store,
            bar="< 200 MB",
            figure=server,
            unit="MB",
            passed=server < 200,
        )
        yield Row(
            name="memory of agent and supervisor",
            store=store,
            bar="< 80 MB",
            figure=node,
            unit="MB",
            passed=node < 80,
        )


class _Busy:
    """Round trips of /bin/true from a thread of their own, for as long as the block lasts."""

    def __init__(self, client: geres.Client) -> None:
        self._client = client
        self._stop = threading.Event()
        self._taken: list[float] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> _Busy:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def done(self) -> int:
        return len(self._taken)

    @property
    def rate(self) -> float:
        return 1 / median(self._taken) if self._taken else 0.0

    @property
    def worst(self) -> float:
        return max(self._taken, default=0.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            begun = time.perf_counter()
            self._client.submit(TRUE).wait(timeout=60)
            self._taken.append(time.perf_counter() - begun)
