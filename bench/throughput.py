"""Commands end to end, with an empty queue and behind a million queued tasks."""

from __future__ import annotations

import time
from collections.abc import Iterator

import geres
from bench import floors
from bench.place import NOWHERE, TRUE, Place, run_commands, stored
from bench.report import Pairs, Row, in_turns

_BARS = {"sqlite": 0.60, "postgres": 0.55}


def commands(place: Place) -> Iterator[Row]:
    """20,000 runs of /bin/true through the SDK, on one node with two cpus."""
    count = place.sized(20_000, 4_000)
    for store in place.stores:
        with place.cluster(store) as cluster:
            pairs = _against_spawn(cluster.client(), count, place)
        yield Row(
            name=f"{count:,} commands",
            store=store,
            bar=f">= {_BARS[store]:.2f} of floor",
            figure=pairs.figure,
            unit="/s",
            floor=pairs.floor,
            ratio=pairs.ratio,
            passed=pairs.ratio >= _BARS[store],
            details=pairs.details,
        )


def calls(place: Place) -> Iterator[Row]:
    """Calls of Python functions come with a later issue; their floor is taken already."""
    floor = floors.pool(place.sized(20_000, 4_000))
    for store, bar in (("sqlite", ">= 15,000/s and > floor"), ("postgres", ">= 8,000/s")):
        if store in place.stores:
            yield Row(
                name="20,000 Python calls", store=store, bar=bar, unit="", floor=floor, note="open: later"
            )


def backlog(place: Place) -> Iterator[Row]:
    """The commands again behind a million queued tasks: some of lower priority, some that fit nowhere."""
    count = place.sized(20_000, 3_000)
    queued = place.sized(1_000_000, 50_000)
    for store in place.stores:
        with place.cluster(store) as cluster:
            client = cluster.client()
            empty = _against_spawn(client, count, place)
            for kind, options in (
                ("lower priority", {"priority": -1000}),
                ("no room", {"resources": NOWHERE}),
            ):
                job = client.submit_array(TRUE, range=f"1-{queued}", **options)
                job.disable()
                stored(client, job, queued)
                full = _behind(client, job, count, place)
                job.cancel()
                while not job.refresh().state.final:  # the rest of the cancel must not meet the next figure
                    time.sleep(0.2)
                ratio = full.ratio / empty.ratio
                yield Row(
                    name=f"commands behind {queued:,}, {kind}",
                    store=store,
                    bar=">= 0.90 of empty",
                    figure=full.figure,
                    unit="/s",
                    floor=empty.figure,
                    ratio=ratio,
                    passed=ratio >= 0.9,
                    note="floor: with an empty queue; both against the spawn floor",
                    details={"empty": empty.details, "behind": full.details},
                )


def _against_spawn(client: geres.Client, count: int, place: Place) -> Pairs:
    run_commands(client, 500)
    return in_turns(lambda: run_commands(client, count), lambda: floors.spawn(count), place.pairs)


def _behind(client: geres.Client, job: geres.Job, count: int, place: Place) -> Pairs:
    """Ends of both a second: while the commands are on their way in, the backlog has the node.

    It may start only while they run, or it would spoil the floor.
    """

    def figure() -> float:
        before = job.refresh().info.finished
        job.enable()
        begun = time.perf_counter()
        try:
            run_commands(client, count)
            seconds = time.perf_counter() - begun
            return (count + job.refresh().info.finished - before) / seconds
        finally:
            job.disable(running="terminate")

    return in_turns(figure, lambda: floors.spawn(count), place.pairs)
