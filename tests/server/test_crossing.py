"""What crosses on the way: connections of one node, wishes and answers, more reports than there is room."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from geres.errors import StoreUnavailable
from geres.model.wire import Ended, Frame, Heartbeat
from geres.server import dispatcher as dispatching_here
from geres.server.asking import Asking
from geres.store import dispatching, task_actions
from geres.store.turn import Candidate, Placement
from tests.server.test_dispatcher import Servers
from tests.store.world import key


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    found = Servers(tmp_path / "geres.db")
    yield found
    found.db.close()


async def test_of_two_hellos_at_once_the_later_connection_alone_is_left(servers: Servers) -> None:
    servers.world.submit()
    desk = await servers.connect()
    await servers.turns()
    servers.dispatcher.disconnect(desk, "cut off")
    servers.dispatcher.forget_job_here(None)  # so that each hello has something to read
    first_is_there, second_waits = asyncio.Event(), asyncio.Event()
    later: list[asyncio.Task] = []

    async def connect_again() -> None:
        """While the first reads what it has to send; the second then waits until the first is done."""
        servers.db.before_reading = wait_for_first
        later.append(asyncio.create_task(servers.connect()))
        await second_waits.wait()

    async def wait_for_first() -> None:
        second_waits.set()
        await first_is_there.wait()

    servers.db.before_reading = connect_again
    first = await servers.connect()
    assert not first.gone
    first_is_there.set()
    second = await later[0]

    assert second.epoch > first.epoch
    assert first.gone, "what still comes over it must not count"
    assert servers.dispatcher.desks == {second.node_id: second}


async def test_a_signal_that_waited_for_the_connection_is_sent_once(servers: Servers) -> None:
    [task] = servers.world.submit()
    desk = await servers.connect()
    await servers.turns()
    attempt = (key(task), 1)
    servers.dispatcher.receive(desk, Frame(started=[(*attempt, servers.world.now_us)]))
    await servers.turns()
    servers.dispatcher.disconnect(desk, "cut off")
    servers.world.db.call(
        task_actions.send_signal, servers.world.ann, [key(task)], name="USR1", now_us=servers.world.now_us
    )

    await servers.connect(attempts=[attempt], running=[attempt])
    for _ in range(3):
        await Asking(servers.db, servers.dispatcher).step()

    assert [ask.signal for frame in servers.frames for ask in frame.ask] == [10]


async def test_what_some_do_not_answer_hides_nothing_that_was_asked_of_others(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "PIECE", 2)
    tasks = servers.world.submit(6, cpus=0.1)
    await servers.connect()
    await servers.turns()
    for force, some in ((False, tasks[:5]), (True, tasks[:5])):
        servers.world.db.call(
            task_actions.cancel,
            servers.world.ann,
            [key(one) for one in some],
            now_us=servers.world.now_us,
            force=force,
        )
        servers.frames.clear()
        await Asking(servers.db, servers.dispatcher).step()
        asked = [ask.task for frame in servers.frames for ask in frame.ask]
        assert asked == [key(one) for one in some]


async def test_ends_for_which_there_is_no_room_stay_with_their_agents(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = servers.world.submit(8, cpus=0.1)
    desk = await servers.connect()
    await servers.turns()
    desk.busy_at = 0.0
    monkeypatch.setattr(dispatching_here, "_MOST_BYTES", 60_000)
    ends = [Ended(key(one), 1, "succeeded", stdout=b"x" * 20_000) for one in tasks]
    servers.db.loses_answers = True
    for end in ends[:2]:
        servers.dispatcher.receive(desk, Frame(ended=[end]))
    with pytest.raises(StoreUnavailable):
        await servers.dispatcher.step()
    for end in ends[2:]:
        servers.dispatcher.receive(desk, Frame(ended=[end]))
    assert servers.dispatcher.queue_lengths()["ends"] == 3
    assert len(desk.held) == 5, "the others are still there, and so is their room taken"
    for number in range(3):
        servers.dispatcher.receive(desk, Frame(heartbeat=Heartbeat(0, 0, number=number)))
    assert not desk.gone, "that it has sent more than we took is no fault of its"
    servers.db.loses_answers = False

    for _ in range(3):
        await servers.turns()
        acked = {one for frame in servers.frames for one in frame.ack}
        for end in ends:  # as agents do until they are acknowledged
            if (end.task, end.attempt) not in acked:
                servers.dispatcher.receive(desk, Frame(ended=[end]))
    await servers.turns()
    assert {servers.world.state(one) for one in tasks} == {"succeeded"}
    assert servers.dispatcher._ended_bytes == 0


async def test_what_was_assigned_while_a_fault_was_looked_for_is_sent_too(servers: Servers) -> None:
    [task] = servers.world.submit()
    await servers.connect()
    place, tries = servers.dispatcher.planner.place, []

    def fail_once(candidates: Sequence[Candidate]) -> list[Placement]:
        tries.append(len(candidates))
        if len(tries) == 1:
            raise ValueError("cannot be placed")
        servers.db.loses_answers = True
        return place(candidates)

    servers.dispatcher.planner.place = fail_once  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await servers.turns()
    servers.db.loses_answers = False
    servers.dispatcher.planner.place = place  # type: ignore[method-assign]

    await servers.turns()
    assert servers.closed == ["an assignment was not sent: connect again"]
    await servers.connect()
    assert servers.assigned == [(key(task), 1)]
