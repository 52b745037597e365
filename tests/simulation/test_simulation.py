"""Hundreds of schedules of faults keep every promise, and the schedules find bugs that are planted.

`make chaos` runs ten thousand; `SEED=n STORE=sqlite python -m tests.simulation` runs one of them again.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from geres.store.database import Database
from tests.simulation.mutants import MUTANTS
from tests.simulation.places import databases
from tests.simulation.simulation import Failed, Simulation

#: (schedules here, schedules in which a mutant must be found): the same in CI.
FEW = {"sqlite": 150, "postgres": 8}
#: Other schedules each day would make a red build a matter of luck; the long form goes on from here.
FIRST = int(os.environ.get("SEED", "0"))
MUTANT_SCHEDULES = 1000
#: These are looked for each time, the others with `make chaos`.
SIX = (
    "the fence is dropped",
    "the lease is not checked",
    "the clock says when a lease ends",
    "finish numbers come from outside the lock",
    "a requeue is charged as a retry",
    "the epoch is not looked at",
)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest) -> Iterator[tuple[str, Database, Path]]:
    server: Any = request.getfixturevalue("postgres_server") if request.param == "postgres" else None
    with databases(request.param, server) as (db, folder):
        yield request.param, db, folder


@pytest.fixture(scope="module")
def memory() -> Iterator[tuple[Database, Path]]:
    with databases("sqlite") as found:
        yield found


@pytest.mark.timeout(600)
def test_no_schedule_of_faults_breaks_a_promise(place: tuple[str, Database, Path]) -> None:
    store, db, folder = place
    for seed in range(FIRST, FIRST + FEW[store]):
        Simulation(db, seed, folder).run()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SIX else pytest.mark.slow) for name in MUTANTS]
)
def test_a_planted_bug_is_found(memory: tuple[Database, Path], name: str) -> None:
    with MUTANTS[name]():
        seed, told = next(_failing(memory), (None, ""))
    assert seed is not None, f"{MUTANT_SCHEDULES} schedules did not find it"
    print(f"schedule {seed}: {told}")
    Simulation(*_of(memory, seed)).run()  # it was the planted bug that was found


def _failing(memory: tuple[Database, Path]) -> Iterator[tuple[int, str]]:
    for seed in range(FIRST, FIRST + MUTANT_SCHEDULES):
        try:
            Simulation(*_of(memory, seed)).run()
        except Failed as failed:
            yield seed, str(failed).splitlines()[-2]


def _of(memory: tuple[Database, Path], seed: int) -> tuple[Database, int, Path]:
    return memory[0], seed, memory[1]


@pytest.mark.timeout(600)
def test_no_node_is_lost_or_kept_because_a_clock_was_set(memory: tuple[Database, Path]) -> None:
    for seed in range(FIRST, FIRST + 60):
        Simulation(*_of(memory, seed), jumps=True).run()


@pytest.mark.timeout(600)
def test_a_schedule_can_be_had_again(memory: tuple[Database, Path]) -> None:
    """The trace of a seed is the same each time: what it found can be looked at."""

    def traces(seeds: range) -> list[list[str]]:
        found = []
        for seed in seeds:
            simulation = Simulation(*_of(memory, seed))
            simulation.run()
            found.append(simulation.trace)
        return found

    first, second = traces(range(FIRST, FIRST + 10)), traces(range(FIRST, FIRST + 10))
    for one, other in zip(first, second, strict=True):
        assert next((pair for pair in itertools.zip_longest(one, other) if pair[0] != pair[1]), None) is None
