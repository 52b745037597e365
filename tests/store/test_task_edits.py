"""Edits of waiting tasks, and reruns of ended ones."""

from __future__ import annotations

from typing import Any

import pytest

from geres.errors import Invalid
from geres.model.states import TaskState
from geres.model.tasks import EditTasks, Retry
from geres.store import doctor, ends, jobs, task_actions, task_edits, tasks, upkeep
from geres.store.task_actions import Done
from geres.store.task_edits import Changes
from tests.store.world import SECOND, World, ended, key


def edit(world: World, *ids: str, **changes: Any) -> Done:
    return world.db.call(
        task_edits.edit,
        world.ann,
        [key(one) for one in ids],
        task_edits.check_changes(Changes(**changes)),
        now_us=world.now_us,
    )


def rerun(world: World, *ids: str, **changes: Any) -> Done:
    return world.db.call(
        task_edits.rerun,
        world.ann,
        [key(one) for one in ids],
        Changes(**changes) if changes else None,
        now_us=world.now_us,
    )


def run(world: World, *ids: str, outcome: str = "succeeded", **facts: Any) -> None:
    """Run these tasks, and only these, to an end on a node."""
    node = world.connect()
    started = dict(world.assign(node))
    assert set(started) == set(ids)
    world.turn(node, 0, ended=[ended(one, started[one], outcome, **facts) for one in ids])


def answers(done: Done) -> list[tuple[str, str | None]]:
    return [(item.id, item.code or item.state) for item in done.items]


def check(world: World) -> None:
    assert world.db.call(doctor.check_invariants) == []


def detail(world: World, task: str) -> Any:
    return world.db.call(tasks.get, world.ann, key(task))


def test_a_higher_priority_moves_a_task_to_the_front(world: World) -> None:
    first, second = world.submit(2)

    done = edit(world, second, priority=900)

    assert answers(done) == [(second, "queued")]
    assert world.assign(world.connect()) == [(second, 1), (first, 1)]
    assert world.task(second)["version"] == 2


def test_an_edit_changes_the_request_of_one_task_alone(world: World) -> None:
    first, second = world.submit(2, memory_bytes=8 << 30)

    edit(world, second, memory_bytes=1 << 30, cpus=0.5, retries=2)

    assert (detail(world, second).memory_bytes, detail(world, second).cpus) == (1 << 30, 0.5)
    assert detail(world, second).spec.retry.most == 2
    assert (detail(world, first).memory_bytes, detail(world, first).cpus) == (8 << 30, 1.0)
    assert detail(world, second).command == ["true"]
    assert {task for task, _ in world.assign(world.connect())} == {first, second}
    check(world)


def test_an_edit_to_the_same_leaves_the_lane(world: World) -> None:
    [task] = world.submit()
    before = world.task(task)

    edit(world, task, cpus=1.0)

    assert world.task(task)["lane_id"] == before["lane_id"]
    assert world.task(task)["spec_id"] == before["spec_id"]


def test_a_time_makes_a_task_wait_and_no_time_lets_it_go(world: World) -> None:
    [task] = world.submit()

    edit(world, task, not_before="2099-01-01T00:00:00Z")
    assert world.state(task) is TaskState.BLOCKED

    edit(world, task, not_before="")
    assert world.state(task) is TaskState.QUEUED
    assert world.assign(world.connect()) == [(task, 1)]


def test_a_task_on_a_node_is_not_edited(world: World) -> None:
    [task] = world.submit()
    world.assign(world.connect())

    assert answers(edit(world, task, cpus=2.0)) == [(task, "conflict")]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"cpus": -1.0}, "cpus"),
        ({"priority": 5000}, "priority"),
        ({"match": "nonsense =="}, "match"),
        ({"not_before": "soon"}, "not_before"),
        ({"memory_bytes": -5}, "memory_bytes"),
    ],
)
def test_a_bad_change_names_its_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        task_edits.check_changes(Changes(**changes))

    assert caught.value.facts["field"] == field


def test_an_edit_of_nothing_is_refused() -> None:
    with pytest.raises(Invalid, match="nothing to change; known are priority, cpus"):
        task_edits.changes_of(EditTasks(ids=["1.1"]))


def test_a_rerun_is_the_next_attempt_with_a_new_finish_number(world: World) -> None:
    [task] = world.submit(retry=Retry(most=1))
    run(world, task, outcome="failed")
    run(world, task, outcome="failed")
    assert world.results("1") == [(1, task, 2, "failed")]

    assert answers(rerun(world, task)) == [(task, "queued")]
    check(world)
    assert world.task(task)["retry_count"] == 0
    run(world, task)

    assert world.results("1") == [(1, task, 2, "failed"), (2, task, 3, "succeeded")]
    assert [one.attempt for one in detail(world, task).attempts] == [1, 2, 3]
    assert detail(world, task).finish_no == 2
    check(world)


def test_a_rerun_of_a_task_that_never_ran_and_is_cancelled_again_has_two_results(world: World) -> None:
    [task] = world.submit()
    world.db.call(task_actions.cancel, world.ann, [key(task)], now_us=world.now_us)
    rerun(world, task)
    world.db.call(task_actions.cancel, world.ann, [key(task)], now_us=world.now_us)

    assert world.results("1") == [(1, task, 0, "cancelled"), (2, task, 0, "cancelled")]
    check(world)


def test_a_rerun_applies_changes_first(world: World) -> None:
    [task] = world.submit(memory_bytes=1 << 30)
    run(world, task, outcome="failed", reason="out_of_memory")

    rerun(world, task, memory_bytes=2 << 30)

    assert detail(world, task).memory_bytes == 2 << 30
    run(world, task)
    assert world.state(task) is TaskState.SUCCEEDED
    check(world)


def test_only_an_ended_task_is_run_again(world: World) -> None:
    [task] = world.submit()

    assert answers(rerun(world, task)) == [(task, "conflict")]


def test_a_rerun_reopens_the_job(world: World) -> None:
    job = world.job(name="j", on_all_complete="terminate")
    [task] = world.submit(job=job)
    run(world, task, outcome="failed")
    assert world.row("SELECT state, outcome FROM job WHERE id = :id", id=int(job)) == {
        "state": "completed",
        "outcome": "failed",
    }

    rerun(world, task)

    assert world.db.call(jobs.get, world.ann, job).state == "active"
    run(world, task)
    reopened = world.db.call(jobs.get, world.ann, job)
    assert (reopened.state, reopened.outcome) == ("completed", "ok")
    check(world)


def test_a_job_that_was_closed_ends_again_after_a_rerun(world: World) -> None:
    job = world.job(name="j")
    [task] = world.submit(job=job)
    run(world, task, outcome="failed")
    world.db.call(jobs.close, world.ann, int(job), reason=None, now_us=world.now_us)
    assert world.db.call(jobs.get, world.ann, job).state == "completed"

    rerun(world, task)

    assert world.db.call(jobs.get, world.ann, job).state == "closing"
    run(world, task)
    assert world.db.call(jobs.get, world.ann, job).state == "completed"
    check(world)


def test_a_reopened_job_gives_way_to_a_living_one_of_its_name(world: World) -> None:
    first = world.job(name="j", on_all_complete="terminate")
    [task] = world.submit(job=first)
    run(world, task)
    second = world.job(name="j")

    rerun(world, task)

    assert world.db.call(jobs.find, world.ann, "j") == int(second)
    run(world, task)
    check(world)


def test_children_that_were_skipped_wait_again(world: World) -> None:
    [parent] = world.submit()
    [child] = world.submit(after=[parent])
    [grandchild] = world.submit(after=[child])
    run(world, parent, outcome="failed")
    assert world.state(grandchild) is TaskState.SKIPPED

    rerun(world, parent)

    assert [world.state(one) for one in (child, grandchild)] == [TaskState.BLOCKED] * 2
    check(world)
    for one in (parent, child, grandchild):
        run(world, one)
    assert [row[1] for row in world.results("1")] == [parent, child, grandchild, parent, child, grandchild]
    check(world)


def test_a_child_that_another_failed_parent_dooms_stays_skipped(world: World) -> None:
    first, second = world.submit(2)
    [child] = world.submit(after=[first, second])
    run(world, first, second, outcome="failed")

    rerun(world, first)
    assert world.state(child) is TaskState.SKIPPED
    rerun(world, second)

    assert world.state(child) is TaskState.BLOCKED
    assert world.task(child)["waits_on"] == 2
    run(world, first, second)
    assert world.state(child) is TaskState.QUEUED
    check(world)


def test_a_child_of_a_job_waits_again_for_the_whole_job(world: World) -> None:
    job = world.job()
    first, second = world.submit(2, job=job)
    [child] = world.submit(after=[job])
    run(world, first, second, outcome="failed")
    world.db.call(ends.free_children_of_jobs, now_us=world.now_us)
    assert world.state(child) is TaskState.SKIPPED

    rerun(world, first, second)
    assert world.state(child) is TaskState.BLOCKED
    run(world, first, second)
    world.db.call(ends.free_children_of_jobs, now_us=world.now_us)

    assert world.state(child) is TaskState.QUEUED
    check(world)


def test_a_rerun_does_not_take_an_own_id_from_a_living_task(world: World) -> None:
    [old] = world.submit(id="a")
    run(world, old)
    world.submit(id="a")

    assert answers(rerun(world, old)) == [(old, "name_taken")]


def test_what_was_waiting_for_a_time_is_run_again_at_once(world: World) -> None:
    [task] = world.submit(not_before="1970-01-01T00:20:00Z")
    world.now_us += 300 * SECOND
    assert world.db.call(upkeep.wake, now_us=world.now_us) == [key(task)]
    run(world, task)

    rerun(world, task)

    assert world.state(task) is TaskState.QUEUED


def test_a_child_that_is_run_again_waits_for_its_parent(world: World) -> None:
    [parent] = world.submit()
    [child] = world.submit(after=[parent])
    world.db.call(task_actions.cancel, world.ann, [key(child)], now_us=world.now_us)

    assert answers(rerun(world, child)) == [(child, "blocked")]
    run(world, parent, outcome="failed")

    assert world.state(child) is TaskState.SKIPPED
    check(world)


def test_a_pipeline_that_is_run_again_keeps_its_order(world: World) -> None:
    [parent] = world.submit()
    [child] = world.submit(after=[parent])
    run(world, parent)
    run(world, child)

    assert answers(rerun(world, parent, child)) == [(parent, "queued"), (child, "blocked")]
    run(world, parent)
    run(world, child)

    assert [world.state(task) for task in (parent, child)] == [TaskState.SUCCEEDED] * 2
    check(world)


def test_a_child_is_run_again_beside_a_parent_that_failed(world: World) -> None:
    [parent] = world.submit()
    [child] = world.submit(after=[parent])
    run(world, parent, outcome="failed")

    assert answers(rerun(world, child)) == [(child, "queued")]
    run(world, child)

    assert world.state(child) is TaskState.SUCCEEDED
    check(world)


def test_of_two_tasks_with_one_id_one_is_run_again(world: World) -> None:
    first = world.submit(id="x")
    run(world, *first)
    second = world.submit(id="x")
    run(world, *second)

    assert answers(rerun(world, *first, *second)) == [(first[0], "queued"), (second[0], "name_taken")]


def test_a_rerun_begins_the_time_limit_of_its_job_anew(world: World) -> None:
    job = world.job(time_limit_seconds=10, on_all_complete="terminate")
    [task] = world.submit(job=job)
    node = world.connect()
    world.assign(node)
    world.turn(node, 0, started=[(key(task), 1)])
    world.turn(node, 0, ended=[ended(task, 1, "failed")])

    world.now_us += 60 * SECOND
    rerun(world, task)

    assert world.db.call(jobs.cancel_over_time, now_us=world.now_us) == []


def test_a_signal_does_not_replace_the_wish_to_requeue(world: World) -> None:
    [task] = world.submit()
    node = world.connect()
    world.assign(node)
    world.turn(node, 0, started=[(key(task), 1)])
    world.db.call(jobs.disable, world.ann, 1, reason=None, now_us=world.now_us, stop="requeue")
    world.db.call(jobs.stop_piece, 1, now_us=world.now_us)

    world.db.call(task_actions.send_signal, world.ann, [key(task)], name="USR1", now_us=world.now_us)
    world.turn(node, 0, ended=[ended(task, 1, "cancelled")])

    assert world.state(task) is TaskState.QUEUED


def test_a_request_can_change_all_that_a_task_can_be_changed_in() -> None:
    assert set(EditTasks.__struct_fields__) - {"ids"} == set(task_edits.Changes.__struct_fields__)
