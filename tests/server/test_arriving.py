"""What is counted, and what is sent again, when a node connects: never more than it has room for."""

from __future__ import annotations

from typing import Any

from geres.model.demand import Demand, to_text
from geres.model.wire import Hello
from geres.scheduling.rooms import empty_room
from geres.server.arriving import take_in
from geres.server.desk import Desk
from geres.server.frames import facts_of
from geres.store.nodes import Held

LANE = 7


def desk(cpus: float = 2.0, gpus: int = 0) -> Desk:
    hello = Hello(1, "0", "n1", "b", "h", "h", "x86_64", "linux", 1, "ann", cpus, 1 << 33, gpus)
    found = Desk(1, "n1", 1, 1, empty_room(1, facts_of(hello)), lambda frame: None, lambda why: None)
    found.free_gpus = list(range(gpus))
    return found


def held(task: int, lane: int = LANE, **demand: Any) -> Held:
    values = dict.fromkeys(Held._fields, None)
    values |= {"id": task, "attempt": 1, "lane_id": lane, "demand": to_text(Demand(**demand))}
    return Held(**values)  # type: ignore[arg-type]


def test_what_was_sent_ahead_and_lost_is_sent_ahead_again() -> None:
    here, lost = [held(1), held(2)], [held(3), held(4)]
    node = desk(cpus=2.0)

    send, give_back = take_in(node, here + lost, lost, [(1, 1), (2, 1)], [])

    assert [(one.id, ahead) for one, ahead in send] == [(3, 2), (4, 2)]
    assert give_back == []
    assert (node.room.cpus_milli, node.lanes[LANE].in_room, node.lanes[LANE].ahead) == (0, 2, 2)


def test_what_fits_gets_room_and_what_has_nothing_to_follow_is_given_back() -> None:
    here, lost = [held(1)], [held(2, lane=8), held(3, lane=9)]
    node = desk(cpus=2.0)

    send, give_back = take_in(node, here + lost, lost, [(1, 1)], [])

    assert [(one.id, ahead) for one, ahead in send] == [(2, 0)]
    assert [one.id for one in give_back] == [3]
    assert node.room.cpus_milli == 0


def test_one_that_waits_there_with_room_of_its_own_keeps_it() -> None:
    node = desk(cpus=2.0)

    take_in(node, [held(1), held(2)], [], [(1, 1)], [])

    assert (node.room.cpus_milli, node.lanes[LANE].in_room, node.lanes[LANE].ahead) == (0, 2, 0)


def test_gpus_of_attempts_that_are_killed_are_free() -> None:
    node = desk(gpus=3)

    take_in(node, [held(1, gpus=1)], [], [(1, 1)], [(1, 1, [0]), (99, 1, [1, 2])])

    assert node.free_gpus == [1, 2]
    assert node.held[1, 1].gpu_ids == [0]
