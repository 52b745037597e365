"""What nodes report: by clocks that may be wrong, in frames that cross what people ask meanwhile."""

from __future__ import annotations

import pytest

from geres.model.states import TaskState
from geres.store import upkeep
from geres.store.database import Tx
from geres.store.turn import Gathered, turn
from tests.store.world import SECOND, FirstNode, World, ended, key

YEAR = 365 * 86400 * SECOND


@pytest.mark.parametrize("wrong_us", [0, -YEAR, YEAR, -3 * SECOND, 3 * SECOND])
def test_no_clock_of_a_node_says_when_a_task_was_stored(world: World, wrong_us: int) -> None:
    """A result of 1970 would be forgotten at once; one of the future would keep all behind it for ever."""
    world.now_us += 10 * YEAR
    [task] = world.submit()
    node = world.connect()
    world.assign(node)
    assigned_at = world.now_us
    world.now_us += 10 * SECOND
    started_us, ended_us = assigned_at + 2 * SECOND + wrong_us, assigned_at + 9 * SECOND + wrong_us
    work = Gathered({node.node_id: node.epoch}, started=[(key(task), 1, node.node_id, started_us)])
    world.db.call(turn, work, FirstNode(node.node_id, 0), now_us=world.now_us)
    assert assigned_at <= world.task(task)["started_at"] <= world.now_us
    world.turn(node, 0, ended=[ended(task, 1, started_us=started_us, ended_us=ended_us)])

    row = world.task(task)
    assert assigned_at <= row["started_at"] <= row["ended_at"] <= world.now_us
    if abs(wrong_us) <= SECOND:
        assert (row["started_at"], row["ended_at"]) == (started_us, ended_us)
    else:
        assert row["ended_at"] - row["started_at"] == 7 * SECOND, "the time that it took is right"
    attempt = world.row("SELECT started_at, ended_at FROM attempt")
    assert (attempt["started_at"], attempt["ended_at"]) == (row["started_at"], row["ended_at"])
    world.db.call(upkeep.forget_tasks, before_us=world.now_us - 86400 * SECOND)
    assert world.state(task) is TaskState.SUCCEEDED, "it is not forgotten before its time"
    world.db.call(upkeep.forget_tasks, before_us=world.now_us + 1)
    assert world.rows("SELECT id FROM task") == []


def ask(world: World, task: str, what: str) -> None:
    def do(tx: Tx) -> None:
        tx.run("ask_tasks", task_ids=[key(task)], asked=what, message=None, now_us=world.now_us)

    world.db.call(do)


def answers(world: World, node, task: str, *states: str) -> None:
    work = Gathered(
        {node.node_id: node.epoch}, asked=[(key(task), 1, node.node_id, state) for state in states]
    )
    world.db.call(turn, work, FirstNode(node.node_id, 0), now_us=world.now_us)


@pytest.fixture
def running(world: World):
    [task] = world.submit()
    node = world.connect()
    world.assign(node)
    world.turn(node, 0, started=[(key(task), 1)])
    return node, task


def test_a_resume_that_crosses_the_answer_to_a_suspend_is_not_lost(world: World, running) -> None:
    node, task = running
    ask(world, task, "suspend")
    ask(world, task, "resume")
    answers(world, node, task, "suspended")
    assert (world.task(task)["state"], world.task(task)["asked"]) == ("suspended", "resume")
    answers(world, node, task, "running")
    assert (world.task(task)["state"], world.task(task)["asked"]) == ("running", None)


def test_of_two_answers_in_one_turn_the_last_is_how_it_stands(world: World, running) -> None:
    node, task = running
    ask(world, task, "resume")
    answers(world, node, task, "suspended", "running")
    assert (world.task(task)["state"], world.task(task)["asked"]) == ("running", None)
    ask(world, task, "suspend")
    answers(world, node, task, "suspended", "running", "suspended")
    assert (world.task(task)["state"], world.task(task)["asked"]) == ("suspended", None)
    ask(world, task, "suspend")
    answers(world, node, task, "suspended")
    assert (world.task(task)["state"], world.task(task)["asked"]) == ("suspended", None)
