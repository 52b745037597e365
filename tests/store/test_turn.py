"""Turns: assigning, reports and their fence, results, retries, loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from geres.errors import Invalid, JobFinished, NameTaken
from geres.model.states import TaskState
from geres.model.tasks import Retry, TaskRow, TaskSpec
from geres.store import ends, jobs, nodes, submit, task_actions, upkeep
from geres.store.database import Tx
from geres.store.invariants import check_invariants
from geres.store.turn import Candidate, Gathered, Placement, turn
from tests.store.world import LEASE_US, SECOND, FirstNode, World, ended, key


def test_a_queued_task_is_assigned_once_and_ends_with_a_result(world: World) -> None:
    [task] = world.submit()
    node = world.connect()

    assert world.assign(node) == [(task, 1)]
    assert world.assign(node) == []
    done = world.turn(node, ended=[ended(task, 1, stdout=b"hi", exit_code=0)])

    assert world.state(task) is TaskState.SUCCEEDED
    assert done.acks == [(node.node_id, (key(task), 1))]
    assert world.results("1") == [(1, task, 1, "succeeded")]


def test_priority_goes_first_then_age(world: World) -> None:
    low, high, late = world.submit(priority=-500), world.submit(priority=500), world.submit(priority=500)
    node = world.connect()

    assert world.assign(node) == [(high[0], 1), (late[0], 1), (low[0], 1)]


def test_a_report_of_an_older_attempt_is_acknowledged_and_changes_nothing(world: World) -> None:
    [task] = world.submit()
    first = world.connect("n1")
    world.assign(first)
    world.now_us += LEASE_US
    world.lose()
    assert world.state(task) is TaskState.QUEUED
    second = world.connect("n2")
    assert world.assign(second) == [(task, 2)]

    again = world.connect("n1", has=[(key(task), 1)])
    done = world.turn(again, 0, ended=[ended(task, 1)])

    assert again.kill == [(key(task), 1)]
    assert done.acks
    assert not done.accepted
    assert world.state(task) is TaskState.ASSIGNED


def test_a_report_over_an_older_connection_is_not_acknowledged(world: World) -> None:
    [task] = world.submit()
    old = world.connect()
    world.assign(old)
    new = world.connect(has=[(key(task), 1)], running=[(key(task), 1)])

    done = world.turn(old, 0, ended=[ended(task, 1)])

    assert done.stale_nodes == [old.node_id]
    assert not done.acks
    assert world.turn(new, 0, ended=[ended(task, 1)]).acks
    assert world.state(task) is TaskState.SUCCEEDED


def test_the_same_end_twice_counts_once(world: World) -> None:
    [task] = world.submit()
    node = world.connect()
    world.assign(node)

    world.turn(node, ended=[ended(task, 1), ended(task, 1)])
    world.turn(node, ended=[ended(task, 1)])

    assert len(world.results("1")) == 1


def test_a_failed_task_is_retried_as_often_as_allowed_and_only_the_last_is_a_result(world: World) -> None:
    [task] = world.submit(retry=Retry(most=1))
    node = world.connect()
    world.assign(node)

    world.turn(node, 0, ended=[ended(task, 1, "failed")])
    assert world.state(task) is TaskState.QUEUED
    assert world.assign(node) == [(task, 2)]
    world.turn(node, ended=[ended(task, 2, "failed")])

    assert world.state(task) is TaskState.FAILED
    assert world.task(task)["retry_count"] == 1
    assert world.results("1") == [(1, task, 2, "failed")]
    assert len(world.rows("SELECT * FROM attempt")) == 2


def test_a_retry_with_a_delay_waits_for_its_time(world: World) -> None:
    [task] = world.submit(retry=Retry(most=1, delay_seconds=10))
    node = world.connect()
    world.assign(node)

    world.turn(node, ended=[ended(task, 1, "failed")])

    assert world.state(task) is TaskState.BLOCKED
    assert world.task(task)["not_before_at"] == world.now_us + 10 * SECOND


def test_a_lost_node_gives_its_tasks_back_without_charging_a_retry(world: World) -> None:
    started, waiting = world.submit(2)
    node = world.connect()
    world.assign(node)
    world.turn(node, 0, started=[(key(started), 1)])

    world.now_us += LEASE_US - 1
    assert not world.lose().stale_nodes
    world.now_us += 1
    assert world.lose().stale_nodes == [node.node_id]

    assert [world.state(t) for t in (started, waiting)] == [TaskState.QUEUED] * 2
    assert [world.task(t)["requeue_count"] for t in (started, waiting)] == [1, 0]
    assert world.task(started)["retry_count"] == 0
    assert world.row("SELECT state FROM node")["state"] == "lost"


def test_a_task_that_loses_its_node_three_times_fails(world: World) -> None:
    [task] = world.submit()
    for number in (1, 2, 3):
        node = world.connect(f"n{number}")
        world.assign(node)
        world.turn(node, 0, started=[(key(task), number)])
        world.now_us += LEASE_US
        world.lose()

    assert world.state(task) is TaskState.FAILED
    row = world.task(task)
    assert (row["reason"], row["lost_count"], row["requeue_count"]) == ("crash_limit", 3, 2)
    assert world.db.call(check_invariants) == []


def test_the_loss_that_a_task_fails_for_is_counted(world: World) -> None:
    [task] = world.submit(on_lost="fail")
    node = world.connect()
    world.assign(node)
    world.turn(node, 0, started=[(key(task), 1)])
    world.now_us += LEASE_US
    world.lose()

    row = world.task(task)
    assert (row["reason"], row["lost_count"], row["requeue_count"]) == ("node_lost", 1, 0)
    assert world.db.call(check_invariants) == []


@pytest.mark.parametrize(
    ("node_says", "task_says", "kept"),
    [("keep", None, True), ("run", "keep", True), ("keep", "run", False), ("keep", "stop", False)],
)
def test_what_is_to_be_kept_for_its_node_is_given_to_nobody_while_that_is_away(
    world: World, node_says: str, task_says: Any, kept: bool
) -> None:
    [task] = world.submit(on_disconnect=task_says)
    [other] = world.submit(on_disconnect="run")
    node = world.connect(on_disconnect=node_says)
    world.assign(node)
    world.turn(node, 0, started=[(key(one), 1) for one in (task, other)])

    world.now_us += LEASE_US
    world.lose()
    world.now_us += 1000 * LEASE_US
    assert not world.lose().more

    assert world.state(task) is (TaskState.RUNNING if kept else TaskState.QUEUED)
    assert world.state(other) is TaskState.QUEUED
    if kept:  # and when the node is back it goes on
        again = world.connect(has=[(key(task), 1)], running=[(key(task), 1)], on_disconnect=node_says)
        assert [held.id for held in again.held] == [key(task)]
        world.turn(again, 0, ended=[ended(task, 1)])
        assert world.state(task) is TaskState.SUCCEEDED


def test_no_retry_waits_for_a_time_to_come_again_after_a_clock_was_set_back(world: World) -> None:
    def fail(task: str, **facts: int) -> None:
        world.turn(node, 0, ended=[ended(task, 1, "failed", reason="exit", exit_code=1, **facts)])

    begun = world.now_us
    waiting, early, held, timed = world.submit(4, retry=Retry(most=1, delay_seconds=10))
    node = world.connect()
    world.assign(node, 2)
    fail(waiting)
    before = world.task(waiting)["not_before_at"]
    world.now_us += 3600 * SECOND
    world.assign(node)
    fail(early, started_us=begun, ended_us=begun)
    fail(held)
    fail(timed)
    world.db.call(task_actions.hold, world.ann, [key(held)], now_us=world.now_us)
    world.now_us = begun + SECOND
    world.db.call(task_actions.release, world.ann, [key(held)], now_us=world.now_us)
    world.db.call(task_actions.hold, world.ann, [key(held)], now_us=world.now_us)

    assert not world.db.call(upkeep.shorten_retries, now_us=world.now_us)

    world.db.call(task_actions.release, world.ann, [key(held)], now_us=world.now_us)
    assert world.state(held) is TaskState.QUEUED
    assert sorted(world.db.call(upkeep.wake, now_us=world.now_us)) == [key(early), key(timed)]
    assert (world.state(waiting), world.task(waiting)["not_before_at"]) == (TaskState.BLOCKED, before)


def test_what_was_kept_for_a_node_is_given_away_when_that_is_removed(world: World) -> None:
    [task] = world.submit(on_disconnect="keep")
    node = world.connect()
    world.assign(node)
    world.now_us += LEASE_US
    world.lose()
    assert world.state(task) is TaskState.ASSIGNED

    world.db.call(lambda tx: tx.text("UPDATE node SET removed_at = 1 RETURNING id", {}))
    world.lose()

    assert world.state(task) is TaskState.QUEUED


def test_what_a_node_does_not_start_is_taken_back_uncharged(world: World) -> None:
    silent, started, over = world.submit(3)
    node = world.connect()
    world.assign(node)
    world.turn(node, 0, started=[(key(started), 1)], ended=[ended(over, 1)])

    done = world.db.call(
        nodes.take_back,
        node.node_id,
        node.epoch,
        [(key(one), 1) for one in (silent, started, over)],
        now_us=world.now_us,
    )

    assert [report.task for _, report, _ in done.accepted] == [key(silent)]
    assert (world.state(silent), world.task(silent)["requeue_count"]) == (TaskState.QUEUED, 0)
    assert world.state(started) is TaskState.RUNNING
    world.turn(node, 0, ended=[ended(silent, 1)])
    assert world.state(silent) is TaskState.QUEUED, "what it says too late is refused"
    stale = world.db.call(
        nodes.take_back, node.node_id, node.epoch - 1, [(key(started), 1)], now_us=world.now_us
    )
    assert not stale.accepted


def test_on_lost_fail_is_obeyed(world: World) -> None:
    [task] = world.submit(on_lost="fail")
    node = world.connect()
    world.assign(node)
    world.turn(node, 0, started=[(key(task), 1)])
    world.now_us += LEASE_US

    world.lose()

    assert (world.state(task), world.task(task)["reason"]) == (TaskState.FAILED, "node_lost")


def test_an_assignment_that_the_agent_never_got_is_sent_again(world: World) -> None:
    [task] = world.submit()
    world.assign(world.connect())

    again = world.connect()

    assert [held.id for held in again.resend] == [key(task)]
    assert world.task(task)["attempt"] == 1


def test_a_given_back_assignment_leaves_no_trace(world: World) -> None:
    first, _ = world.submit(2)
    node = world.connect()
    world.assign(node, 1)

    world.turn(node, 0, ended=[ended(first, 1, "given_back")])

    assert world.state(first) is TaskState.QUEUED
    assert world.rows("SELECT * FROM attempt") == []
    assert world.assign(node, 1) == [(first, 2)]  # its old place, the next attempt


def test_finish_numbers_have_no_gaps_and_follow_the_order_of_reports(world: World) -> None:
    tasks = world.submit(5)
    node = world.connect()
    world.assign(node)

    world.turn(node, ended=[ended(tasks[3], 1), ended(tasks[0], 9), ended(tasks[1], 1, "failed")])
    world.turn(node, ended=[ended(tasks[0], 1)])

    assert [r[:2] for r in world.results("1")] == [(1, tasks[3]), (2, tasks[1]), (3, tasks[0])]
    job = world.row("SELECT * FROM job WHERE id = 1")
    assert (job["finish_seq"], job["succeeded"], job["failed"]) == (3, 2, 1)


def test_children_start_after_their_parents(world: World) -> None:
    a, b = world.submit(2)
    [child] = world.submit(after=[a, b])
    node = world.connect()
    assert world.state(child) is TaskState.BLOCKED
    world.assign(node)

    world.turn(node, 0, ended=[ended(a, 1)])
    assert world.state(child) is TaskState.BLOCKED
    world.turn(node, 0, ended=[ended(b, 1)])

    assert world.assign(node) == [(child, 1)]


def test_children_of_a_failed_parent_are_skipped_down_the_line(world: World) -> None:
    [parent] = world.submit()
    [child] = world.submit(after=[parent])
    [grandchild] = world.submit(after=[child])
    node = world.connect()
    world.assign(node)

    world.turn(node, ended=[ended(parent, 1, "failed")])

    assert [world.state(t) for t in (child, grandchild)] == [TaskState.SKIPPED] * 2
    assert [(r[1], r[3]) for r in world.results("1")] == [
        (parent, "failed"),
        (child, "skipped"),
        (grandchild, "skipped"),
    ]


def test_a_cap_of_a_job_is_kept(world: World) -> None:
    job = world.job(name="capped", max_parallel=2)
    world.submit(5, job=job)
    node = world.connect()

    first = world.assign(node)
    assert len(first) == 2
    assert world.assign(node) == []
    world.turn(node, 0, ended=[ended(first[0][0], 1)])

    assert len(world.assign(node)) == 1


def test_an_array_is_unfolded_in_pieces_and_ends_its_job(world: World) -> None:
    from geres.model.jobs import ArraySpec
    from geres.model.tasks import TaskSpec
    from geres.store import arrays

    job = world.job(array=ArraySpec(range="1-2500:2"), task=TaskSpec(command=["echo", "{}"]))
    while world.db.call(arrays.unfold, int(job), now_us=world.now_us):
        pass
    numbers = [row["id"] & 0xFFFFFFFF for row in world.rows("SELECT id FROM task ORDER BY id")]
    assert numbers == list(range(1, 2501, 2))

    node = world.connect()
    assigned = world.assign(node, 10_000)
    world.turn(node, ended=[ended(task, 1) for task, _ in assigned])

    assert world.row("SELECT * FROM job WHERE id = :id", id=int(job))["state"] == "completed"
    assert world.row("SELECT * FROM job WHERE id = :id", id=int(job))["outcome"] == "ok"
    with pytest.raises(JobFinished):
        world.submit(job=job)


def test_items_of_an_array_keep_their_order(world: World) -> None:
    from geres.model.jobs import ArraySpec
    from geres.model.tasks import TaskSpec

    items = ["a b", "", "ü", "{}", "it's"]
    job = world.job(array=ArraySpec(items=items), task=TaskSpec(command=["echo", "{}"]))

    rows = world.rows("SELECT item FROM task WHERE job_id = :job ORDER BY id", job=int(job))
    assert [row["item"] for row in rows] == items


def test_a_task_id_of_ones_own_is_free_again_after_the_end(world: World) -> None:
    [task] = world.submit(id="mine")
    with pytest.raises(NameTaken):
        world.submit(id="mine")
    node = world.connect()
    world.assign(node)
    world.turn(node, ended=[ended(task, 1)])

    assert world.submit(id="mine")


def test_a_bad_row_stores_nothing(world: World) -> None:
    from geres.model.tasks import TaskRow, TaskSpec
    from geres.store import submit

    rows = [TaskRow(command=["true"]), TaskRow(command=[])]
    with pytest.raises(Invalid, match=r"tasks\[1\]"):
        world.db.call(submit.create_tasks, world.ann, None, TaskSpec(), rows, now_us=world.now_us)
    assert world.rows("SELECT * FROM task") == []

    answer = world.db.call(
        submit.create_tasks, world.ann, None, TaskSpec(), rows, atomic=False, now_us=world.now_us
    )
    assert (answer.count, [error.index for error in answer.errors]) == (1, [1])
    assert len(world.rows("SELECT * FROM task")) == 1


def test_the_job_says_what_becomes_of_tasks_on_a_lost_node(world: World) -> None:
    [task] = world.submit(job=world.job(on_lost="fail"))
    node = world.connect()
    world.assign(node)
    world.turn(node, 0, started=[(key(task), 1)])

    world.now_us += LEASE_US
    world.lose()

    assert world.state(task) is TaskState.FAILED
    assert world.task(task)["reason"] == "node_lost"


def test_a_job_of_short_tasks_has_a_time_limit_too(world: World) -> None:
    job = world.job(time_limit_seconds=10)
    tasks = world.submit(2, job=job)
    node = world.connect()
    world.assign(node)
    world.turn(node, 0, ended=[ended(tasks[0], 1, started_us=world.now_us)])

    world.now_us += 10 * SECOND

    assert world.db.call(jobs.cancel_over_time, now_us=world.now_us) == [int(job)]


def test_what_was_skipped_for_its_parent_lets_nothing_start_after_it(world: World) -> None:
    [parent] = world.submit()
    other = world.job()
    [skipped] = world.submit(job=other, after=[parent])
    late = world.submit(after=[other])
    node = world.connect()
    world.assign(node)
    world.turn(node, 0, ended=[ended(parent, 1, "failed")])
    world.db.call(ends.free_children_of_jobs, now_us=world.now_us)

    assert [world.state(task) for task in (skipped, *late)] == [TaskState.SKIPPED] * 2
    with pytest.raises(Invalid, match="without success"):
        world.submit(after=[skipped])
    with pytest.raises(Invalid, match="without success"):
        world.submit(after=[other])


def test_a_task_cannot_wait_for_its_own_job(world: World) -> None:
    world.submit()

    with pytest.raises(Invalid, match="the job itself"):
        world.submit(after=["1"])


def test_a_hold_that_comes_too_late_is_forgotten_with_the_start(world: World) -> None:
    [task] = world.submit()
    node = world.connect()
    world.assign(node)
    world.db.call(task_actions.hold, world.ann, [key(task)], now_us=world.now_us)

    world.turn(node, 0, started=[(key(task), 1)])

    assert world.task(task)["asked"] is None


@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)  # SQLite has one writer at a time
def test_a_turn_beside_a_submit_does_not_put_its_lane_to_rest(world: World) -> None:
    world.submit()
    node = world.connect()
    world.assign(node)

    def submit_slowly(tx: Tx) -> None:
        spec = TaskSpec(command=["true"])
        submit.create_tasks(tx, world.ann, None, spec, [TaskRow()], now_us=world.now_us)
        assert world.assign(node) == []  # it sees an empty lane

    world.db.call(submit_slowly)

    assert world.assign(node) == [("1.2", 1)]


def test_a_job_whose_tasks_were_skipped_for_a_parent_has_not_gone_well(world: World) -> None:
    [parent] = world.submit()
    job = world.job(name="later", on_all_complete="terminate")
    world.submit(2, job=job, after=[parent])
    node = world.connect()
    world.assign(node)

    world.turn(node, ended=[ended(parent, 1, "failed")])

    row = world.row("SELECT * FROM job WHERE id = :id", id=int(job))
    assert (row["state"], row["outcome"], row["skipped"]) == ("completed", "failed", 2)


@pytest.mark.parametrize(("high", "read"), [(4, ["high"]), (3, ["high", "low"])])
def test_tasks_behind_as_many_as_could_start_are_not_read(world: World, high: int, read: list[str]) -> None:
    names = {
        key(world.submit(high, job=world.job(), priority=1)[-1]) >> 32: "high",
        key(world.submit(9, job=world.job(), priority=0)[-1]) >> 32: "low",
    }
    node = world.connect()
    seen: list[str] = []

    class Noting(FirstNode):
        def place(self, candidates: Sequence[Candidate]) -> list[Placement]:
            seen.extend(sorted({names[candidate.id >> 32] for candidate in candidates}))
            return super().place(candidates)

    work = Gathered({node.node_id: node.epoch}, pools=[node.pool_id])
    planner = Noting(node.node_id, 4)
    done = world.db.call(turn, work, planner, now_us=world.now_us)

    assert seen == read
    assert len(done.assigned) == 4
    assert done.waiting


def test_ids_that_are_taken_are_listed_where_the_others_are_to_be_stored(world: World) -> None:
    [first] = world.submit(id="a")
    rows = [TaskRow(id=one) for one in ("x", "a", "y", "x")] + [TaskRow()]

    answer = world.db.call(
        submit.create_tasks,
        world.ann,
        None,
        TaskSpec(command=["true"]),
        rows,
        atomic=False,
        now_us=world.now_us,
    )

    assert (answer.first_number, answer.count) == (2, 3)
    assert [(error.index, error.code) for error in answer.errors] == [(1, "name_taken"), (3, "name_taken")]
    assert first in answer.errors[0].message
    assert "another task of this request" in answer.errors[1].message
