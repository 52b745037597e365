"""`python -m tests.simulation`: SCHEDULES=n, one in ten on PostgreSQL, on all cpus; `SEED=n`: that one.

STORE=sqlite or STORE=postgres is for that store alone; with JUMPS=1 the clock is set in each schedule, else
in one of four.  Exit status 1, with its trace, where one fails.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed

from tests.simulation.places import databases
from tests.simulation.simulation import Failed, Simulation

_CHUNK = 100  #: schedules that share a database
_ON_POSTGRES = 10  #: one in so many
_JUMPS = True if os.environ.get("JUMPS") else None


def run(store: str, first: int, count: int) -> str:
    """Run schedules.  Returns what is wrong with the first that fails; nothing where all are well."""
    with databases(store) as (db, folder):
        for seed in range(first, first + count):
            try:
                Simulation(db, seed, folder, jumps=_JUMPS).run()
            except Failed as failed:
                return str(failed)
    return ""


def _chunks(store: str, first: int, count: int) -> Iterator[tuple[str, int, int]]:
    for start in range(first, first + count, _CHUNK):
        yield store, start, min(_CHUNK, first + count - start)


def main() -> int:
    seed, store = os.environ.get("SEED"), os.environ.get("STORE")
    count = int(os.environ.get("SCHEDULES", "1" if seed else "1000"))
    first, begun = int(seed or 0), time.monotonic()
    if count == 1:
        told = run(store or "sqlite", first, 1)
        print(told or f"schedule {first}: all promises kept")
        return 1 if told else 0
    few = count if store == "postgres" else 0 if store == "sqlite" else count // _ON_POSTGRES
    chunks = [*_chunks("postgres", first, few), *_chunks("sqlite", first + few, count - few)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for done in as_completed([pool.submit(run, *chunk) for chunk in chunks]):
            if told := done.result():
                pool.shutdown(wait=False, cancel_futures=True)
                print(told)
                return 1
    print(f"{count} schedules in {time.monotonic() - begun:.0f} s, {few} on PostgreSQL: all promises kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())
