"""Arrays that wait for others, and their numbers."""

from __future__ import annotations

import itertools

import pytest

from geres.errors import Invalid, NotFound
from geres.model.jobs import ArraySpec
from geres.model.states import TaskState
from geres.model.tasks import TaskSpec
from geres.store import arrays, doctor, ends, task_edits
from tests.store.world import ended, key

TRUE = TaskSpec(command=["true"])


def array(world, text="1-3", after=(), **options):
    return world.job(task=TRUE, array=ArraySpec(range=text), after=list(after), **options)


def unfold_all(world):
    """What the loops do until there is nothing left to do."""
    more = True
    while more:
        _, more = world.db.call(ends.free_children_of_tasks, now_us=world.now_us)
        for job_id in world.db.call(arrays.arrays_to_unfold):
            more = True
            world.db.call(arrays.unfold, job_id, now_us=world.now_us)


def states(world, job):
    rows = world.rows(
        "SELECT state, COUNT(*) AS n FROM task WHERE job_id = :job GROUP BY state", job=int(job)
    )
    return {row["state"]: row["n"] for row in rows}


def run_all(world, node, outcome="succeeded"):
    for task_id, attempt in world.assign(node):
        world.turn(node, 0, ended=[ended(task_id, attempt, outcome)])


def test_the_tasks_of_an_array_wait_for_tasks_and_jobs(world):
    node = world.connect()
    [first] = world.submit()
    other = array(world, "1-2")
    job = array(world, "1-5:2,8", after=[first, other])

    assert states(world, job) == {"blocked": 4}
    assert {row["waits_on"] for row in world.rows("SELECT waits_on FROM task WHERE state = 'blocked'")} == {2}
    run_all(world, node)
    world.db.call(ends.free_children_of_jobs, now_us=world.now_us)
    assert states(world, job) == {"queued": 4}


def test_where_a_parent_fails_the_whole_array_is_skipped(world):
    node = world.connect()
    [first] = world.submit()
    job = array(world, "1-3", after=[first])

    run_all(world, node, "failed")

    assert states(world, job) == {"skipped": 3}
    assert world.row("SELECT outcome FROM job WHERE id = :job", job=int(job))["outcome"] == "failed"


@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
def test_a_large_array_that_waits_has_one_piece_of_rows_until_its_parents_have_ended(world, outcome):
    node = world.connect()
    [first] = world.submit()
    total = arrays.PIECE + 5
    job = array(world, f"1-{total}", after=[first])
    unfold_all(world)
    assert states(world, job) == {"blocked": arrays.PIECE}

    run_all(world, node, outcome)
    unfold_all(world)

    assert states(world, job) == {"queued" if outcome == "succeeded" else "skipped": total}
    assert world.db.call(doctor.check_invariants) == []
    if outcome == "failed":
        assert world.row("SELECT state FROM job WHERE id = :job", job=int(job))["state"] == "completed"


def test_what_was_skipped_without_ever_waiting_waits_again_for_a_parent_that_is_run_again(world):
    node = world.connect()
    [first] = world.submit()
    total = arrays.PIECE + 2
    job = array(world, f"1-{total}", after=[first])
    unfold_all(world)
    run_all(world, node, "failed")
    unfold_all(world)

    world.db.call(task_edits.rerun, world.ann, [key(first)], now_us=world.now_us)
    while world.db.call(task_edits.revive, now_us=world.now_us)[1]:
        pass

    assert world.state(f"{job}.{total}") is TaskState.BLOCKED
    assert world.task(f"{job}.{total}")["waits_on"] == 1


def test_a_name_means_the_job_that_it_meant_at_the_submit(world):
    named = world.job(name="prep")
    [task] = world.submit(job=named)
    job = array(world, "1-2", after=["prep"])

    spec = world.row("SELECT spec FROM job WHERE id = :job", job=int(job))["spec"]

    assert f'"after":["{named}"]' in spec
    assert world.state(task) is TaskState.QUEUED


def test_an_array_after_what_is_unknown_or_has_failed_is_refused_and_nothing_is_stored(world):
    node = world.connect()
    [first] = world.submit()
    run_all(world, node, "failed")
    before = world.row("SELECT COUNT(*) AS n FROM job")

    with pytest.raises(Invalid, match="rerun it first"):
        array(world, after=[first])
    with pytest.raises(NotFound):
        array(world, after=["999.1"])
    with pytest.raises(Invalid, match="after: goes with `array`"):
        world.job(after=[first])

    assert world.row("SELECT COUNT(*) AS n FROM job") == before


def test_tasks_that_join_an_array_get_numbers_behind_it(world):
    job = array(world, f"1-{arrays.PIECE + 5}")

    [joined] = world.submit(job=job)
    unfold_all(world)

    assert joined == f"{job}.{arrays.PIECE + 6}"
    assert states(world, job) == {"queued": arrays.PIECE + 6}


@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
@pytest.mark.parametrize("of_job", [True, False])
def test_very_many_that_wait_for_one_are_freed_a_piece_at_a_time(world, outcome, of_job):
    node = world.connect()
    parent = world.job()
    [first] = world.submit(job=parent)
    count = ends.CHILDREN_AT_ONCE * 2 + 5
    job = world.job()
    world.submit(count, job=job, after=[parent if of_job else first])
    [grandchild] = world.submit(after=[f"{job}.{count}"])

    run_all(world, node, outcome)
    assert states(world, job) == {"blocked": count}
    assert world.db.call(doctor.check_invariants) == []
    seen = []
    for _ in range(3):
        for free in (ends.free_children_of_jobs, ends.free_children_of_tasks):
            world.db.call(free, now_us=world.now_us)
        seen.append(states(world, job).get("blocked", 0))

    assert seen == [ends.CHILDREN_AT_ONCE + 5, 5, 0]
    assert states(world, job) == {"queued" if outcome == "succeeded" else "skipped": count}
    assert world.state(grandchild) is (TaskState.BLOCKED if outcome == "succeeded" else TaskState.SKIPPED)
    assert world.db.call(ends.free_children_of_tasks, now_us=world.now_us) == (ends.NOTHING, False)
    assert world.db.call(doctor.check_invariants) == []


def test_a_parent_of_very_many_that_is_run_again_keeps_the_rest_waiting(world):
    node = world.connect()
    [first] = world.submit()
    job = world.job()
    count = ends.CHILDREN_AT_ONCE + 5
    world.submit(count, job=job, after=[first])
    run_all(world, node, "failed")
    world.db.call(ends.free_children_of_tasks, now_us=world.now_us)
    assert states(world, job) == {"skipped": ends.CHILDREN_AT_ONCE, "blocked": 5}

    world.db.call(task_edits.rerun, world.ann, [key(first)], now_us=world.now_us)
    for _ in range(2):
        world.db.call(ends.free_children_of_tasks, now_us=world.now_us)
    while world.db.call(task_edits.revive, now_us=world.now_us)[1]:
        pass
    assert states(world, job) == {"blocked": count}
    assert world.rows("SELECT * FROM freeing") == []
    run_all(world, node)
    while world.db.call(ends.free_children_of_tasks, now_us=world.now_us)[1]:
        pass

    assert states(world, job) == {"queued": count}
    assert world.db.call(doctor.check_invariants) == []


def test_many_parents_that_end_at_once_free_no_more_than_a_piece(world, monkeypatch):
    monkeypatch.setattr(ends, "MOST_CHILDREN", 20)
    node = world.connect()
    parents = world.submit(6, cpus=0.1)
    job = world.job()
    for parent in parents:
        world.submit(8, job=job, after=[parent])
    world.turn(node, 0, ended=[ended(task, attempt) for task, attempt in world.assign(node)])
    assert states(world, job) == {"queued": 16, "blocked": 32}
    assert world.db.call(doctor.check_invariants) == []

    while world.db.call(ends.free_children_of_tasks, now_us=world.now_us)[1]:
        assert world.db.call(doctor.check_invariants) == []
    assert states(world, job) == {"queued": 48}


def test_a_long_chain_is_skipped_a_piece_at_a_time(world, monkeypatch):
    monkeypatch.setattr(ends, "MOST_LEVELS", 5)
    node = world.connect()
    last, job = world.submit(), world.job()
    for _ in range(17):
        last = world.submit(job=job, after=last)
    run_all(world, node, "failed")
    left = [states(world, job)["blocked"]]
    while world.db.call(ends.free_children_of_tasks, now_us=world.now_us)[1]:
        assert world.db.call(doctor.check_invariants) == []
        left.append(states(world, job).get("blocked", 0))
    assert left[0] == 12
    assert all(0 <= before - after <= 6 for before, after in itertools.pairwise(left))
    assert states(world, job) == {"skipped": 17}


@pytest.mark.parametrize("what", [{"range": "1-3"}, {"items": ["a", "b", "c"]}])
def test_the_name_of_an_array_is_that_of_its_job_and_its_tasks(world, what):
    spec = TaskSpec(command=["/usr/bin/true"], name="nightly sums")
    jobs = [world.job(task=spec, array=ArraySpec(**what)) for _ in range(2)]  # it takes no name away

    for job in jobs:
        assert world.row("SELECT name FROM job WHERE id = :job", job=int(job))["name"] == "nightly sums"
        row = world.row(
            "SELECT COUNT(*) AS n FROM task WHERE job_id = :job AND name = :name",
            job=int(job),
            name="nightly sums",
        )
        assert row["n"] == 3
