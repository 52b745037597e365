"""What a turn cannot digest is set aside, and the rest goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from geres.model.states import TaskState
from geres.model.tasks import Usage
from geres.model.wire import Ended, Frame
from geres.store.database import Tx
from geres.store.turn import Candidate, Placement
from tests.server.test_dispatcher import Servers
from tests.store.world import key


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    found = Servers(tmp_path / "geres.db")
    yield found
    found.db.close()


def spoil(servers: Servers, sql: str, *values: Any) -> None:
    def write(tx: Tx) -> None:
        tx.raw_run(sql, values)

    servers.db.call(write)


def task(servers: Servers, one: str) -> tuple[str, str | None]:
    row = servers.world.task(one)
    return row["state"], row["reason"]


@pytest.mark.parametrize(
    "sql",
    [
        'UPDATE task SET argv = \'{"no": "argv"\' WHERE id = ?',
        "UPDATE task SET argv = '7' WHERE id = ?",
        "UPDATE spec SET body = 'no JSON' WHERE id = (SELECT spec_id FROM task WHERE id = ?)",
        "DELETE FROM spec WHERE id = (SELECT spec_id FROM task WHERE id = ?)",
    ],
)
async def test_a_task_that_cannot_be_read_fails_alone(servers: Servers, sql: str) -> None:
    bad = servers.world.submit(meta={"bad": "yes"})[0]
    good = servers.world.submit(3)
    spoil(servers, sql, key(bad))
    desk = await servers.connect()

    await servers.turns()

    assert task(servers, bad) == ("failed", "internal")
    assert [servers.world.state(one) for one in good] == [TaskState.ASSIGNED] * 3
    assert len(desk.held) == 3
    assert desk.room.cpus_milli == 1000


async def test_it_fails_too_where_it_was_assigned_before_it_was_spoilt(servers: Servers) -> None:
    [bad] = servers.world.submit()
    await servers.connect()
    await servers.turns()
    spoil(servers, "UPDATE task SET argv = '7' WHERE id = ?", key(bad))

    desk = await servers.connect()  # which does not have it
    await servers.turns()

    assert task(servers, bad) == ("failed", "internal")
    assert not desk.held


async def test_a_lane_that_cannot_be_read_is_left_out_after_some_tasks(servers: Servers) -> None:
    bad = servers.world.submit(6, cpus=2.0)
    good = servers.world.submit(2)
    sql = "UPDATE resource_class SET body = 'no JSON' WHERE id = (SELECT class_id FROM lane WHERE id = ?)"
    spoil(servers, sql, servers.world.task(bad[0])["lane_id"])
    await servers.connect()

    await servers.turns()
    await servers.turns()

    states = [task(servers, one) for one in bad]
    assert states[:3] == [("failed", "internal")] * 3
    assert states[3:] == [("queued", None)] * 3  # were it our fault, not all of them are to be lost
    assert [servers.world.state(one) for one in good] == [TaskState.ASSIGNED] * 2
    kept = servers.world.rows("SELECT kind, key FROM quarantine ORDER BY id")
    assert kept == [{"kind": "task", "key": one} for one in bad[:3]]


async def test_a_fault_of_ours_ends_the_server_and_no_task(servers: Servers) -> None:
    tasks = servers.world.submit(5)
    await servers.connect()

    def broken(pool_id: int) -> frozenset[int]:
        raise ZeroDivisionError

    servers.dispatcher.planner.hopeless = broken  # type: ignore[assignment]
    with pytest.raises(ZeroDivisionError):
        await servers.turns()

    assert {task(servers, one) for one in tasks} == {("queued", None)}


async def test_reports_of_a_turn_whose_dispatch_fails_are_stored(servers: Servers) -> None:
    first, second = servers.world.submit(2, cpus=4.0)
    desk = await servers.connect()
    await servers.turns()
    planner, place = servers.dispatcher.planner, servers.dispatcher.planner.place

    def poisoned(candidates: Sequence[Candidate]) -> list[Placement]:
        if any(one.id == key(second) for one in candidates):
            raise OverflowError("this one")
        return place(candidates)

    planner.place = poisoned  # type: ignore[method-assign]
    servers.dispatcher.receive(desk, Frame(ended=[Ended(key(first), 1, "succeeded", usage=Usage())]))
    await servers.turns()

    assert task(servers, first) == ("succeeded", None)
    assert task(servers, second) == ("failed", "internal")


async def test_a_node_with_a_task_without_specification_connects_again(servers: Servers) -> None:
    bad = servers.world.submit(meta={"bad": "yes"})[0]
    await servers.connect()
    await servers.turns()
    spoil(servers, "DELETE FROM spec WHERE id = (SELECT spec_id FROM task WHERE id = ?)", key(bad))
    servers.dispatcher._known.specs.clear()  # as at another server

    await servers.connect()
    await servers.turns()
    assert task(servers, bad) == ("failed", "internal")
