"""What one server tells the others: bounded, quick, and never the only way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import psycopg
import pytest

from geres.model.ids import task_key
from geres.server.hints import MOST_BYTES, Hint, Hints, read
from geres.server.notifier import Notifier


def hints(server_id: int = 1) -> Hints:
    made = Hints(server_id)
    made.alone = False
    return made


def taken(made: Hints) -> Hint:
    payload = made.take()
    assert payload is not None
    found = read(payload.decode())
    assert found is not None
    return found


def test_all_that_gathers_goes_in_one() -> None:
    made = hints()
    made.queued()
    made.asked([7])
    made.changed([3], [task_key(3, 1)])
    made.changed([4])
    made.edited(5)

    assert taken(made) == Hint(1, True, [7], [3, 4], [task_key(3, 1)], False, [5])
    assert made.take() is None


def test_a_server_that_is_alone_says_nothing() -> None:
    made = Hints(1)
    made.queued()
    made.asked([7])
    made.changed([3], [4])
    made.edited(5)

    assert made.take() is None


@pytest.mark.parametrize(
    ("jobs", "tasks"), [(1, 200_000), (10_000, 0), (2000, 2000), (249, 149), (240, 100_000)]
)
def test_a_payload_is_never_too_long_and_leaves_nobody_out(jobs: int, tasks: int) -> None:
    made = hints()
    first = (1 << 31) - jobs - 1
    made.changed(range(first, first + jobs))
    for start in range(0, tasks, 1000):
        made.changed(keys=[task_key(first + key % jobs, 1 << 31 | key) for key in range(start, start + 1000)])
    made.asked(range(1 << 40, (1 << 40) + 149))

    payload = made.take()

    assert payload is not None
    assert len(payload) <= MOST_BYTES
    told = read(payload.decode())
    assert told is not None
    everyone = set(range(first, first + jobs))
    assert told.everything or (
        set(told.jobs) == everyone and (told.whole_jobs or len(told.tasks) == min(tasks, 149))
    )


def test_what_a_newer_server_says_means_that_anything_may_have_happened() -> None:
    assert read("[1, 2]") is None
    assert read('{"s": 2, "new": 1}') == Hint(2)


class Heard:
    """What one server was told."""

    def __init__(self) -> None:
        self.hints: list[Hint | None] = []
        self._more = anyio.Event()

    def __call__(self, hint: Hint | None) -> None:
        self.hints.append(hint)
        self._more.set()
        self._more = anyio.Event()

    async def until(self, seen: Callable[[], bool]) -> None:
        with anyio.fail_after(20):
            while not seen():
                await self._more.wait()


@asynccontextmanager
async def running(url: str, *notifiers: tuple[Hints, Heard]) -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        for made, heard in notifiers:
            group.start_soon(Notifier(url, made, heard).run)
        for _, heard in notifiers:  # each listens from here on
            await heard.until(lambda heard=heard: heard.hints == [None])  # type: ignore[misc]
        yield
        group.cancel_scope.cancel()


async def test_the_others_hear_it_and_we_do_not_hear_ourselves(fresh_postgres: Callable[[], str]) -> None:
    a, b, heard_a, heard_b = hints(1), hints(2), Heard(), Heard()
    async with running(fresh_postgres(), (a, heard_a), (b, heard_b)):
        a.queued()
        await heard_b.until(lambda: Hint(1, True) in heard_b.hints)
        b.asked([9])
        await heard_a.until(lambda: Hint(2, nodes=[9]) in heard_a.hints)

    assert heard_a.hints == [None, Hint(2, nodes=[9])]
    assert heard_b.hints == [None, Hint(1, True)]


async def test_a_lost_connection_is_made_again_and_all_is_looked_at(
    fresh_postgres: Callable[[], str],
) -> None:
    url = fresh_postgres()
    a, b, heard_a, heard_b = hints(1), hints(2), Heard(), Heard()
    async with running(url, (a, heard_a), (b, heard_b)):
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'geres notifier'"
            )
        await heard_b.until(lambda: heard_b.hints == [None, None])
        with anyio.fail_after(20):
            while not any(hint and hint.jobs == [3] for hint in heard_b.hints):
                a.changed([3])  # the first one may be lost with the sender's connection
                await anyio.sleep(0.02)
