"""Cancel, hold, release: at once while a task waits, asked of its node once it runs."""

from __future__ import annotations

from typing import Any

import pytest

from geres.errors import Invalid
from geres.model.callers import Caller
from geres.model.states import TaskState
from geres.model.tasks import Retry
from geres.store import dispatching, doctor, task_actions
from geres.store.task_actions import Done
from tests.store.world import World, ended, key


def act(world: World, function: Any, *ids: str, caller: Caller | None = None, **how: Any) -> Done:
    done: Done = world.db.call(
        function, caller or world.ann, [key(one) for one in ids], now_us=world.now_us, **how
    )
    return done


def answers(done: Done) -> list[tuple[str, str | None]]:
    """(id, new state or code of refusal) of each."""
    return [(item.id, item.code or item.state) for item in done.items]


def check(world: World) -> None:
    assert world.db.call(doctor.check_invariants) == []


def test_a_waiting_task_is_cancelled_at_once_and_has_a_result(world: World) -> None:
    first, second = world.submit(2)

    done = act(world, task_actions.cancel, second, message="no longer needed")

    assert answers(done) == [(second, "cancelled")]
    assert world.state(first) is TaskState.QUEUED
    row = world.task(second)
    assert (row["state"], row["reason"], row["message"]) == ("cancelled", "requested", "no longer needed")
    assert row["started_at"] is None
    assert world.results("1") == [(1, second, 0, "cancelled")]
    check(world)


def test_cancelling_twice_says_so_and_changes_nothing(world: World) -> None:
    [task] = world.submit()
    act(world, task_actions.cancel, task)

    done = act(world, task_actions.cancel, task)

    assert answers(done) == [(task, "task_finished")]
    assert len(world.results("1")) == 1
    check(world)


def test_a_task_on_a_node_is_asked_and_ends_when_the_node_says_so(world: World) -> None:
    [task] = world.submit()
    node = world.connect()
    world.assign(node)
    world.turn(node, started=[(key(task), 1)])

    done = act(world, task_actions.cancel, task)

    assert answers(done) == [(task, "running")]
    assert done.asked_nodes == {node.node_id}
    assert world.task(task)["asked"] == "cancel"
    world.turn(node, ended=[ended(task, 1, "cancelled")])
    assert world.state(task) is TaskState.CANCELLED
    assert world.results("1") == [(1, task, 1, "cancelled")]
    check(world)


def test_force_ends_it_in_the_store_and_the_late_report_changes_nothing(world: World) -> None:
    [task] = world.submit()
    node = world.connect()
    world.assign(node)
    world.turn(node, started=[(key(task), 1)])

    done = act(world, task_actions.cancel, task, force=True)

    assert answers(done) == [(task, "cancelled")]
    assert done.asked_nodes == {node.node_id}
    assert world.db.call(dispatching.kills_on, [node.node_id]) == [(node.node_id, key(task), 1)]
    assert world.task(task)["reason"] == "forced"
    late = world.turn(node, ended=[ended(task, 1)])
    assert not late.accepted
    assert world.state(task) is TaskState.CANCELLED
    assert world.db.call(dispatching.kills_on, [node.node_id]) == []  # it need not be told any more
    check(world)


def test_cancelling_a_task_that_waits_for_its_retry_gives_it_one_result(world: World) -> None:
    [task] = world.submit(retry=Retry(most=3, delay_seconds=60))
    node = world.connect()
    world.assign(node)
    world.turn(node, ended=[ended(task, 1, "failed")])
    assert world.state(task) is TaskState.BLOCKED

    act(world, task_actions.cancel, task)

    assert world.results("1") == [(1, task, 0, "cancelled")]
    check(world)


def test_children_of_a_cancelled_task_are_skipped(world: World) -> None:
    [parent] = world.submit()
    [child] = world.submit(after=[parent])
    [grandchild] = world.submit(after=[child])

    act(world, task_actions.cancel, parent)

    assert [world.state(task) for task in (child, grandchild)] == [TaskState.SKIPPED] * 2
    assert [row[1] for row in world.results("1")] == [parent, child, grandchild]
    check(world)


def test_an_unknown_task_and_one_of_another_do_not_stop_the_others(world: World) -> None:
    [mine] = world.submit()

    done = act(world, task_actions.cancel, "1.99", mine)
    refused = act(world, task_actions.cancel, *world.submit(), caller=world.bob)

    assert answers(done) == [("1.99", "not_found"), (mine, "cancelled")]
    assert [code for _, code in answers(refused)] == ["denied"]
    check(world)


def test_a_held_task_is_not_started_and_a_released_one_is(world: World) -> None:
    [task] = world.submit()
    act(world, task_actions.hold, task)
    node = world.connect()
    assert world.assign(node) == []

    done = act(world, task_actions.release, task)

    assert done.queued
    assert world.assign(node) == [(task, 1)]
    check(world)


def test_a_released_task_whose_parent_runs_goes_on_waiting_for_it(world: World) -> None:
    [parent] = world.submit()
    [child] = world.submit(after=[parent])
    act(world, task_actions.hold, child)

    act(world, task_actions.release, child)

    assert world.state(child) is TaskState.BLOCKED


def test_holding_what_a_node_has_not_started_asks_it_back(world: World) -> None:
    [task] = world.submit()
    node = world.connect()
    world.assign(node)

    act(world, task_actions.hold, task)
    world.turn(node, ended=[ended(task, 1, "given_back")])

    assert world.state(task) is TaskState.HELD
    assert world.results("1") == []
    check(world)


def test_a_hold_that_was_released_before_the_node_answered_is_forgotten(world: World) -> None:
    [task] = world.submit()
    node = world.connect()
    world.assign(node)
    act(world, task_actions.hold, task)

    act(world, task_actions.release, task)
    world.turn(node, 0, ended=[ended(task, 1, "given_back")])

    assert world.state(task) is TaskState.QUEUED


def test_a_running_task_cannot_be_held(world: World) -> None:
    [task] = world.submit()
    node = world.connect()
    world.assign(node)
    world.turn(node, started=[(key(task), 1)])

    assert answers(act(world, task_actions.hold, task)) == [(task, "conflict")]


def test_a_signal_is_asked_of_the_node_of_a_running_task_only(world: World) -> None:
    running, waiting = world.submit(2)
    node = world.connect()
    world.assign(node, 1)
    world.turn(node, 0, started=[(key(running), 1)])

    done = act(world, task_actions.send_signal, running, waiting, name="HUP")

    assert answers(done) == [(running, "running"), (waiting, "conflict")]
    assert world.task(running)["asked"] == "signal:1"


def test_a_cancel_is_not_replaced_by_a_later_wish(world: World) -> None:
    [task] = world.submit()
    node = world.connect()
    world.assign(node)
    world.turn(node, started=[(key(task), 1)])
    act(world, task_actions.cancel, task)

    act(world, task_actions.send_signal, task, name="USR1")

    assert world.task(task)["asked"] == "cancel"


def test_a_signal_that_does_not_exist_is_refused(world: World) -> None:
    with pytest.raises(Invalid, match="is no signal"):
        act(world, task_actions.send_signal, *world.submit(), name="FOO")
