"""Times of one thing: round trip, start of the command line."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from statistics import median

from bench import floors
from bench.place import TRUE, Place
from bench.report import Row, percentile
from tests.cluster import GERES


def roundtrip(place: Place) -> Iterator[Row]:
    """Submit one /bin/true and wait for its end, on an idle cluster."""
    count = place.sized(500, 100)
    for store in place.stores:
        with place.cluster(store) as cluster:
            client = cluster.client()
            taken = []
            for _ in range(count + 20):
                begun = time.perf_counter()
                client.submit(TRUE).wait(timeout=30)
                taken.append((time.perf_counter() - begun) * 1000)
        floor = median(floors.spawn_seconds(count)) * 1000
        for percent, bar in ((50, 6.0), (99, 20.0)):
            figure = percentile(taken[20:], percent)
            yield Row(
                name=f"round trip of /bin/true, p{percent}",
                store=store,
                bar=f"<= {bar:g} ms",
                figure=figure,
                unit="ms",
                floor=floor,
                ratio=figure / floor,
                passed=figure <= bar,
            )
        for percent, bar in ((50, 3.0), (99, 10.0)):
            yield Row(
                name=f"round trip of a Python call, p{percent}",
                store=store,
                bar=f"<= {bar:g} ms",
                note="open: later",
            )


def cli(place: Place) -> Iterator[Row]:
    """Whole processes of the command line, from start to exit."""
    count = place.sized(30, 10)
    with place.cluster("sqlite") as cluster:
        client = cluster.client()
        client.create_job("idle").disable()
        for words, bar in ((("--help",), 100.0), (("submit", "-J", "idle", "--", "true"), 150.0)):
            figures, starts = [], []
            for _ in range(count):
                starts.append(floors.python_start() * 1000)
                begun = time.perf_counter()
                subprocess.run([GERES, *words], env=cluster.env, check=True, capture_output=True)
                figures.append((time.perf_counter() - begun) * 1000)
            shown = " ".join(word for word in words if word not in ("-J", "idle"))
            yield Row(
                name=f"geres {shown}",
                bar=f"<= {bar:g} ms",
                figure=median(figures),
                unit="ms",
                floor=median(starts),
                ratio=median(figures) / median(starts),
                passed=median(figures) <= bar,
                details={"p99": percentile(figures, 99)},
            )
