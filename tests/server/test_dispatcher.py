"""A dispatcher between its store and its nodes: what comes twice, late or never."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from geres.errors import StoreUnavailable
from geres.model.tasks import Usage
from geres.model.wire import Ended, Frame, Hello
from geres.server import known
from geres.server.asking import Asking
from geres.server.desk import Desk
from geres.server.dispatcher import Dispatcher
from geres.server.leases import Leases
from geres.server.waiters import Waiters
from geres.store import task_actions
from geres.store.database import Order, SqliteDatabase
from geres.store.servers import Introduction
from tests.store.world import LEASE_US, SECOND, World, key

ME = Introduction(1, "http://127.0.0.1:1", "0", 0)


class Shaky(SqliteDatabase):
    """A store whose answers, or whose reads, can be lost."""

    loses_answers = False
    refuses_reads = False
    before_reading: Callable[[], Awaitable[object]] | None = None  #: happens once
    during_turn: Callable[[], object] | None = None  #: happens once

    async def run_as(self, order: Order, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        answer = await super().run_as(order, function, *args, **kwargs)
        if first := self.during_turn:
            self.during_turn = None
            first()
        if self.loses_answers:
            raise StoreUnavailable("the connection broke after the commit")
        return answer

    async def read(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if self.refuses_reads:
            raise StoreUnavailable("no reads now")
        if first := self.before_reading:
            self.before_reading = None
            await first()
        return await super().read(function, *args, **kwargs)


class Servers:
    """One dispatcher, a node, and what was said to it."""

    def __init__(self, path: Path) -> None:
        self.db = Shaky(path)
        self.world = World(self.db)
        self.dispatcher = Dispatcher(
            self.db, lambda: self.world.now_us, Waiters(), tenant_id=self.world.tenant_id, me=ME
        )
        self.leases = Leases(
            self.db, lambda: self.world.now_us, self.dispatcher, ME, lease_seconds=LEASE_US / SECOND
        )
        self.frames: list[Frame] = []
        self.closed: list[str] = []

    async def connect(self, **facts: Any) -> Desk:
        hello = Hello(1, "0", "n1", "b", "h", "h", "x86_64", "linux", 1, "ann", 4.0, 1 << 33)
        for name, value in facts.items():
            setattr(hello, name, value)
        self.frames.clear()
        return await self.dispatcher.connect(hello, self.frames.append, self.closed.append)

    async def turns(self) -> None:
        self.dispatcher.ring()
        while await self.dispatcher.step():
            pass

    @property
    def assigned(self) -> list[tuple[int, int]]:
        return [(assign.task, assign.attempt) for frame in self.frames for assign in frame.assign]


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    found = Servers(tmp_path / "geres.db")
    yield found
    found.db.close()


async def test_what_a_turn_assigned_before_its_answer_was_lost_is_sent_again(servers: Servers) -> None:
    [task] = servers.world.submit()
    await servers.connect()
    servers.db.loses_answers = True
    with pytest.raises(StoreUnavailable):
        await servers.turns()
    servers.db.loses_answers = False

    await servers.turns()

    assert servers.closed
    await servers.connect()
    assert servers.assigned == [(key(task), 1)]


async def test_an_end_is_acknowledged_although_nothing_can_be_read_after_its_turn(servers: Servers) -> None:
    first, second = servers.world.submit()[0], servers.world.submit(job=servers.world.job())[0]
    desk = await servers.connect(cpus=1.0)
    await servers.turns()
    assert servers.assigned == [(key(first), 1)]

    servers.db.refuses_reads = True
    servers.dispatcher.receive(desk, Frame(ended=[Ended(key(first), 1, "succeeded", usage=Usage())]))
    await servers.dispatcher.step()
    servers.db.refuses_reads = False

    assert (key(first), 1) in [one for frame in servers.frames for one in frame.ack]
    await servers.turns()
    await servers.connect(cpus=1.0)
    assert servers.assigned == [(key(second), 1)]


async def test_room_that_is_freed_during_a_turn_is_filled_by_the_next(servers: Servers) -> None:
    [first] = servers.world.submit()
    desk = await servers.connect(cpus=2.0)
    await servers.turns()  # nothing waits after this
    [second] = servers.world.submit(cpus=2.0)
    end = Frame(ended=[Ended(key(first), 1, "succeeded", usage=Usage())])
    servers.db.during_turn = lambda: servers.dispatcher.receive(desk, end)

    await servers.turns()

    assert servers.assigned[-1] == (key(second), 1)


async def test_an_end_with_nothing_queued_asks_for_no_lanes(servers: Servers) -> None:
    [task] = servers.world.submit()
    desk = await servers.connect(cpus=2.0)
    await servers.turns()
    asked: list[str] = []
    lanes_of = servers.dispatcher.planner.hopeless
    servers.dispatcher.planner.hopeless = lambda pool: asked.append("lanes") or lanes_of(pool)  # type: ignore[method-assign, func-returns-value]

    servers.dispatcher.receive(desk, Frame(ended=[Ended(key(task), 1, "succeeded", usage=Usage())]))
    while await servers.dispatcher.step():
        pass

    assert servers.world.task(task)["state"] == "succeeded"
    assert not asked


async def test_a_node_that_connects_during_a_turn_gets_its_assignment_once(servers: Servers) -> None:
    servers.world.submit()
    await servers.connect()
    servers.db.before_reading = servers.connect  # the facts of its job are read between commit and sending

    await servers.turns()

    [desk] = servers.dispatcher.desks.values()
    assert desk.epoch == 2
    assert len(servers.assigned) == 1
    assert desk.room.tasks == 1


@pytest.mark.parametrize("clock_us", [SECOND, 0, -10 * SECOND, 3600 * SECOND], ids=str)
async def test_leases_go_on_after_the_store_was_away_and_end_whatever_the_clock_shows(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, clock_us: int
) -> None:
    """`clock_us` is by how much the clock goes on each second."""
    await servers.connect()
    began, lease = time.monotonic(), LEASE_US // SECOND

    async def state_after(seconds: int) -> str:
        servers.world.now_us += clock_us
        with monkeypatch.context() as patched:
            patched.setattr(time, "monotonic", lambda: began + seconds)
            await servers.leases.lose_step()
        return str(servers.world.row("SELECT state FROM node")["state"])

    assert {await state_after(second) for second in range(lease - 1)} == {"idle"}
    back = 3 * lease  # nobody could renew anything meanwhile
    assert {await state_after(back + second) for second in range(lease)} == {"idle"}
    assert await state_after(back + lease) == "lost"


async def test_a_new_connection_keeps_the_gpus_that_tasks_have(servers: Servers) -> None:
    first, second = servers.world.submit(2, gpus=1)
    third = servers.world.submit(gpus=1)[0]
    await servers.connect(gpus=3)
    await servers.turns()
    given = {assign.task: assign.gpu_ids for frame in servers.frames for assign in frame.assign}
    assert sorted(given.values()) == [[0], [1], [2]]

    has = [(key(second), 1), (key(third), 1)]
    ids = [(key(second), 1, [2]), (key(third), 1, [0])]
    desk = await servers.connect(gpus=3, attempts=has, running=has, gpu_ids=ids)

    [resent] = [assign for frame in servers.frames for assign in frame.assign]
    assert (resent.task, resent.gpu_ids, resent.submitted_by) == (key(first), [1], "ann")
    assert desk.held[key(second), 1].gpu_ids == [2]
    assert desk.free_gpus == []


async def test_a_signal_that_was_asked_for_survives_a_new_connection(servers: Servers) -> None:
    [task] = servers.world.submit()
    desk = await servers.connect()
    await servers.turns()
    servers.dispatcher.receive(desk, Frame(started=[(key(task), 1, 1)]))
    await servers.turns()
    servers.db.call(
        task_actions.send_signal, servers.world.ann, [key(task)], name="USR1", now_us=servers.world.now_us
    )

    await servers.connect(attempts=[(key(task), 1)], running=[(key(task), 1)])

    assert [(ask.action, ask.signal) for frame in servers.frames for ask in frame.ask] == [("signal", 10)]


async def test_more_jobs_than_are_remembered_can_start_at_once(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "MOST", 1)
    await servers.connect()
    servers.world.submit()
    await servers.turns()
    servers.world.submit(env={"A": "1"})
    servers.world.submit(job=servers.world.job())

    await servers.turns()

    assert len(servers.assigned) == 3


async def test_lanes_that_no_node_could_ever_serve_hide_nobody(servers: Servers) -> None:
    for memory in range(600):
        servers.world.submit(memory_bytes=(1 << 43) + memory, priority=500)
    [task] = servers.world.submit()
    await servers.connect()

    await servers.turns()
    await servers.turns()

    assert servers.assigned == [(key(task), 1)]


async def test_a_signal_is_sent_once_however_often_the_bell_rings(servers: Servers) -> None:
    [task] = servers.world.submit()
    desk = await servers.connect()
    await servers.turns()
    servers.dispatcher.receive(desk, Frame(started=[(key(task), 1, 1)]))
    await servers.turns()
    servers.db.call(
        task_actions.send_signal, servers.world.ann, [key(task)], name="HUP", now_us=servers.world.now_us
    )

    for _ in range(3):
        await Asking(servers.db, servers.dispatcher).step()

    assert [ask.signal for frame in servers.frames for ask in frame.ask] == [1]


async def test_what_a_node_does_not_start_in_time_is_taken_back_and_the_node_connects_again(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent, started = servers.world.submit(2)
    desk = await servers.connect()
    await servers.turns()
    servers.dispatcher.receive(desk, Frame(started=[(key(started), 1, 1)]))
    await servers.turns()

    async def look_after(leases: float) -> None:
        later = time.monotonic() + leases * LEASE_US / SECOND
        servers.world.now_us += int(0.3 * LEASE_US)  # nor does the lease of the node end meanwhile
        with monkeypatch.context() as patched:
            patched.setattr(time, "monotonic", lambda: later)
            await servers.leases.lose_step()

    await look_after(1.8)
    assert servers.world.state(silent) == "assigned"
    await look_after(2.1)

    assert servers.world.state(silent) == "queued"
    assert servers.world.state(started) == "running"
    assert servers.closed == ["it does not start what it is given: connect again"]
    await servers.connect(attempts=[(key(one), 1) for one in (silent, started)], running=[(key(started), 1)])
    assert servers.frames[0].kill == [(key(silent), 1)]
    await look_after(9.0)
    assert servers.world.state(started) == "running"


async def test_a_good_bye_is_stored_when_the_store_is_back(servers: Servers) -> None:
    desk = await servers.connect()
    servers.dispatcher.disconnect(desk, "it has ended")
    servers.dispatcher.leave(desk)  # waits for nothing: the task of the connection may be cancelled any time

    servers.db.loses_answers = True
    with pytest.raises(StoreUnavailable):
        await servers.leases.renew_step()
    servers.db.loses_answers = False
    await servers.leases.renew_step()

    assert servers.world.rows("SELECT state FROM node") == [{"state": "offline"}]
    assert not servers.dispatcher.left
