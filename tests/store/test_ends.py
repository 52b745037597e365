"""Ends that meet: a child that ends with its parent, parents that share a child, ends under a cap."""

from __future__ import annotations

import pytest

from geres.errors import NotFound
from geres.model.states import TaskState
from geres.store import doctor, task_actions
from tests.store.world import World, ended, key


def check(world: World) -> None:
    assert world.db.call(doctor.check_invariants) == []


def test_a_child_that_is_cancelled_with_its_parent_ends_once(world: World) -> None:
    [parent] = world.submit()
    [child] = world.submit(after=[parent])
    [grandchild] = world.submit(after=[child])

    world.db.call(task_actions.cancel, world.ann, [key(parent), key(child)], now_us=world.now_us)

    assert [world.state(one) for one in (parent, child)] == [TaskState.CANCELLED, TaskState.CANCELLED]
    assert world.state(grandchild) is TaskState.SKIPPED
    assert len(world.results("1")) == 3
    check(world)


def test_a_child_of_two_tasks_that_are_skipped_is_skipped_once(world: World) -> None:
    [top] = world.submit()
    [left] = world.submit(after=[top])
    [bottom] = world.submit(after=[top, left])
    node = world.connect()
    [(_, attempt)] = world.assign(node)

    world.turn(node, ended=[ended(top, attempt, "failed")])

    assert [world.state(one) for one in (top, left, bottom)] == ["failed", "skipped", "skipped"]
    assert [task for _, task, _, _ in world.results("1")] == [top, left, bottom]
    check(world)


def test_an_end_under_a_cap_asks_for_another_turn(world: World) -> None:
    job = world.job(name="capped", max_parallel=1)
    first, second = world.submit(2, job=job)
    node = world.connect()
    [(_, attempt)] = world.assign(node)

    done = world.turn(node, ended=[ended(first, attempt)])

    assert done.more
    assert world.assign(node) == [(second, 1)]
    check(world)


@pytest.mark.parametrize("parent", ["4242", "1.999", "nobody"])
def test_what_waits_for_something_unknown_is_refused_and_not_stored(world: World, parent: str) -> None:
    world.submit()
    with pytest.raises(NotFound, match=r"there is no (job|task)"):
        world.submit(after=[parent])
    assert world.row("SELECT count(*) AS n FROM task")["n"] == 1
