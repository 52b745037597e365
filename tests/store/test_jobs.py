"""Jobs as a whole: counts, edits, closing, cancelling, disabling, ending."""

from __future__ import annotations

from typing import Any

import pytest

from geres.errors import Changed, Conflict, Denied, Invalid, JobFinished, NotFound
from geres.model.jobs import ArraySpec, Job, JobPatch
from geres.model.states import TaskState
from geres.model.tasks import TaskSpec
from geres.store import arrays, doctor, jobs, task_actions
from geres.store.ends import free_children_of_jobs
from geres.store.jobs import JobQuery
from tests.store.world import SECOND, World, ended, key


def get(world: World, job: str) -> Job:
    return world.db.call(jobs.get, world.ann, job)


def array(world: World, numbers: str = "1-5", **options: Any) -> str:
    spec = TaskSpec(command=["echo", "{}"])
    return world.job(task=spec, array=ArraySpec(range=numbers), **options)


def cancel(world: World, job: str, **how: Any) -> Job:
    world.db.call(jobs.start_cancel, world.ann, int(job), reason=how.get("reason"), now_us=world.now_us)
    while world.db.call(jobs.cancel_piece, int(job), now_us=world.now_us)[1]:
        pass
    return get(world, job)


def run_all(world: World, node: Any = None, outcome: str = "succeeded") -> None:
    node = node or world.connect()
    reports = [ended(task, attempt, outcome) for task, attempt in world.assign(node)]
    world.turn(node, 0, ended=reports)


def check(world: World) -> None:
    assert world.db.call(doctor.check_invariants) == []


def test_counts_add_up(world: World) -> None:
    job = array(world)
    node = world.connect()
    started = world.assign(node, 3)
    world.turn(
        node, 0, started=[(key(started[0][0]), 1)], ended=[ended(*started[1]), ended(*started[2], "failed")]
    )

    counts = get(world, job).counts

    assert (counts.queued, counts.running, counts.succeeded, counts.failed) == (2, 1, 1, 1)
    assert get(world, job).task_count == 5
    assert get(world, job).finished == 2


def test_a_large_array_counts_what_has_no_row_yet(world: World) -> None:
    job = array(world, "1-25000")

    assert get(world, job).counts.not_yet == 25_000
    assert world.db.call(arrays.unfold, int(job), now_us=world.now_us) == 10_000
    counts = get(world, job).counts
    assert (counts.not_yet, counts.queued) == (15_000, 10_000)
    assert get(world, job).task_count == 25_000


def test_a_closed_job_takes_no_more_and_completes(world: World) -> None:
    job = world.job()
    world.submit(3, job=job)

    assert (
        world.db.call(jobs.close, world.ann, int(job), reason="done", now_us=world.now_us).state == "closing"
    )
    with pytest.raises(JobFinished):
        world.submit(job=job)
    run_all(world)

    assert (get(world, job).state, get(world, job).outcome) == ("completed", "ok")
    assert (
        world.db.call(jobs.close, world.ann, int(job), reason=None, now_us=world.now_us).state == "completed"
    )
    check(world)


def test_an_empty_job_completes_when_it_is_closed(world: World) -> None:
    job = world.job()

    assert (
        world.db.call(jobs.close, world.ann, int(job), reason=None, now_us=world.now_us).state == "completed"
    )


def test_a_job_ends_by_itself_where_it_is_to(world: World) -> None:
    job = world.job(on_all_complete="terminate")
    world.submit(2, job=job)
    node = world.connect()

    run_all(world, node)

    assert get(world, job).state == "completed"
    assert get(world, job).ended_at is not None


def test_the_default_job_can_be_neither_closed_nor_cancelled(world: World) -> None:
    world.submit()

    with pytest.raises(Conflict, match="always there and cannot be cancelled"):
        cancel(world, "1")
    with pytest.raises(Conflict, match="cannot be closed"):
        world.db.call(jobs.close, world.ann, 1, reason=None, now_us=world.now_us)
    assert world.db.call(jobs.find, world.ann, "default") == 1


def test_cancelling_a_job_ends_what_waits_and_asks_what_runs(world: World) -> None:
    job = array(world, "1-7")
    node = world.connect()
    running = world.assign(node, 2)
    world.turn(node, 0, started=[(key(task), 1) for task, _ in running])

    found = cancel(world, job, reason="wrong input")

    assert (found.state, found.counts.cancelled, found.counts.running) == ("closing", 5, 2)
    assert world.assign(node) == []
    assert world.task(running[0][0])["asked"] == "cancel"
    world.turn(node, 0, ended=[ended(task, 1, "cancelled") for task, _ in running])
    found = get(world, job)
    assert (found.state, found.outcome, found.counts.cancelled) == ("cancelled", "failed", 7)
    assert found.reason == "job_cancelled: wrong input"
    waiting = world.task(f"{job}.7")
    assert (waiting["reason"], waiting["message"]) == ("job_cancelled", "the job was cancelled: wrong input")
    check(world)


def test_tasks_of_a_job_that_is_being_cancelled_are_not_started(world: World) -> None:
    job = array(world)
    world.db.call(jobs.start_cancel, world.ann, int(job), reason=None, now_us=world.now_us)

    assert world.assign(world.connect()) == []


def test_cancelling_an_array_makes_no_more_rows(world: World) -> None:
    job = array(world, "1-25000")
    world.db.call(arrays.unfold, int(job), now_us=world.now_us)

    found = cancel(world, job)

    assert (found.state, found.counts.cancelled, found.counts.not_yet) == ("cancelled", 10_000, 0)
    assert world.db.call(arrays.arrays_to_unfold) == []
    check(world)


def test_tasks_that_wait_for_cancelled_ones_are_freed_or_skipped(world: World) -> None:
    job = world.job(max_parallel=1)
    inside = world.submit(3, job=job)
    other = world.job()
    needs = world.submit(job=other, after=[inside[0]])[0]
    held = world.submit(job=job)[0]
    world.db.call(task_actions.hold, world.ann, [key(held)], now_us=world.now_us)

    found = cancel(world, job)

    assert (found.state, found.counts.cancelled) == ("cancelled", 4)
    assert [world.state(one) for one in (*inside, held)] == ["cancelled"] * 4
    assert (world.state(needs), world.task(needs)["reason"]) == ("skipped", "parent_failed")
    assert [number for number, *_ in world.results(job)] == [1, 2, 3, 4]
    check(world)


def test_a_job_over_its_time_limit_is_cancelled(world: World) -> None:
    job = array(world, time_limit_seconds=60.0)
    node = world.connect()
    [task] = world.assign(node, 1)
    world.turn(node, 0, started=[(key(task[0]), 1)])
    world.now_us += 59 * SECOND
    assert world.db.call(jobs.cancel_over_time, now_us=world.now_us) == []

    world.now_us += SECOND
    assert world.db.call(jobs.cancel_over_time, now_us=world.now_us) == [int(job)]

    assert world.db.call(jobs.todo, now_us=world.now_us).to_cancel == {int(job)}
    world.db.call(jobs.cancel_piece, int(job), now_us=world.now_us)
    world.turn(node, 0, ended=[ended(task[0], 1, "cancelled")])
    assert get(world, job).state == "cancelled"
    assert world.db.call(jobs.cancel_over_time, now_us=world.now_us) == []


def test_a_disabled_job_starts_nothing_and_an_enabled_one_goes_on(world: World) -> None:
    job = array(world)
    node = world.connect()
    world.db.call(jobs.disable, world.ann, int(job), reason="maintenance", now_us=world.now_us)
    assert world.assign(node) == []
    assert get(world, job).reason == "requested: maintenance"

    world.db.call(jobs.enable, world.ann, int(job), now_us=world.now_us)

    assert len(world.assign(node)) == 5
    assert get(world, job).state == "active"


@pytest.mark.parametrize(("asked", "state"), [("requeue", "queued"), ("cancel", "cancelled")])
def test_disabling_can_stop_what_runs(world: World, asked: str, state: str) -> None:
    job = array(world, "1-2")
    node = world.connect()
    world.assign(node)
    world.db.call(jobs.disable, world.ann, int(job), reason=None, now_us=world.now_us, stop=asked)
    assert world.db.call(jobs.todo, now_us=world.now_us).to_stop == [int(job)]

    done, more = world.db.call(jobs.stop_piece, int(job), now_us=world.now_us)

    assert not more
    assert world.db.call(jobs.todo, now_us=world.now_us).to_stop == []
    assert done.asked_nodes == {node.node_id}
    assert world.task(f"{job}.1")["asked"] == asked
    world.turn(node, 0, ended=[ended(f"{job}.{n}", 1, "cancelled") for n in (1, 2)])
    assert world.state(f"{job}.1") == TaskState(state)
    check(world)


def test_disabling_lets_what_runs_go_on_where_nothing_else_was_said(world: World) -> None:
    job = array(world, "1-2")
    world.assign(world.connect())

    world.db.call(jobs.disable, world.ann, int(job), reason=None, now_us=world.now_us)

    assert world.db.call(jobs.todo, now_us=world.now_us).to_stop == []
    assert world.db.call(jobs.stop_piece, int(job), now_us=world.now_us)[0].asked_nodes == set()


def test_a_wait_in_a_circle_is_refused(world: World) -> None:
    first, second, third = world.job(), world.job(), world.job()
    world.submit(job=first)
    [link] = world.submit(job=second, after=[first])
    world.submit(job=third, after=[link])

    for parent in (second, third, link):
        with pytest.raises(Invalid, match="waits in turn for job"):
            world.submit(job=first, after=[parent])
    assert world.row("SELECT task_count FROM job WHERE id = :id", id=int(first)) == {"task_count": 1}


def test_what_is_no_circle_is_accepted(world: World) -> None:
    """A task may wait for a job of which another task waits for a task beside it."""
    first, second = world.job(), world.job()
    [early] = world.submit(job=first)
    world.submit(job=second, after=[early])

    [late] = world.submit(job=first, after=[second])

    node = world.connect()
    for _ in range(3):
        for task, attempt in world.assign(node):
            world.turn(node, 0, ended=[ended(task, attempt)])
        world.db.call(free_children_of_jobs, now_us=world.now_us)
    assert world.state(late) is TaskState.SUCCEEDED


def test_an_edit_raises_the_version_and_an_older_one_is_refused(world: World) -> None:
    job = world.job(name="j", max_parallel=5)

    changed, before = world.db.call(
        jobs.patch, world.ann, int(job), JobPatch(max_parallel=2, meta={"a": "b"}), version=1
    )

    assert (changed.version, changed.max_parallel, changed.meta, before) == (2, 2, {"a": "b"}, None)
    with pytest.raises(Changed) as caught:
        world.db.call(jobs.patch, world.ann, int(job), JobPatch(priority=1), version=1)
    assert caught.value.http_status == 412
    with pytest.raises(Denied):
        world.db.call(jobs.patch, world.bob, int(job), JobPatch(priority=1), version=None)
    with pytest.raises(Invalid, match="priority"):
        world.db.call(jobs.patch, world.ann, int(job), JobPatch(priority=2000), version=None)


def test_a_changed_cap_holds_at_once_and_zero_takes_it_away(world: World) -> None:
    job = array(world, "1-9", max_parallel=2)
    node = world.connect()
    assert len(world.assign(node)) == 2

    world.db.call(jobs.patch, world.ann, int(job), JobPatch(max_parallel=3), version=None)
    assert len(world.assign(node)) == 1
    world.db.call(jobs.patch, world.ann, int(job), JobPatch(max_parallel=0), version=None)

    assert len(world.assign(node)) == 6
    assert get(world, job).max_parallel is None


def test_waiting_tasks_follow_the_priority_of_their_job(world: World) -> None:
    job = world.job()
    [own] = world.submit(job=job, priority=5)
    [inherits] = world.submit(job=job)
    world.assign(world.connect("n1"), 0)

    changed, before = world.db.call(jobs.patch, world.ann, int(job), JobPatch(priority=10), version=None)
    assert before == 0
    assert not world.db.call(jobs.follow_priority, int(job), before=before, priority=changed.priority)

    assert [world.task(task)["priority"] for task in (own, inherits)] == [5, 10]
    assert world.assign(world.connect()) == [(inherits, 1), (own, 1)]


def test_jobs_are_listed_newest_first_with_their_counts(world: World) -> None:
    ids = [world.job(name=f"j{number}") for number in range(5)]
    world.db.call(jobs.close, world.ann, int(ids[0]), reason=None, now_us=world.now_us)

    first = world.db.call(jobs.list_jobs, world.ann, JobQuery(limit=2, count=True))
    rest = world.db.call(jobs.list_jobs, world.ann, JobQuery(limit=10, cursor=first.next_cursor))

    assert [job.id for job in first.items + rest.items] == ids[::-1]
    assert first.matched == 5
    assert rest.next_cursor is None
    done = world.db.call(jobs.list_jobs, world.ann, JobQuery(state="completed"))
    assert [job.id for job in done.items] == ids[:1]
    named = world.db.call(jobs.list_jobs, world.ann, JobQuery(name="j3", state="open", user="ann"))
    assert [job.id for job in named.items] == [ids[3]]
    with pytest.raises(Invalid, match="no state of a job"):
        world.db.call(jobs.list_jobs, world.ann, JobQuery(state="running"))


def test_an_unknown_job_is_not_found(world: World) -> None:
    for ref in ("77", "nobody"):
        with pytest.raises(NotFound):
            get(world, ref)


def test_jobs_whose_nodes_do_not_answer_hide_none_that_is_being_cancelled(world: World) -> None:
    node = world.connect()
    stuck = [world.job(name=f"stuck{n}") for n in range(2)]
    for job in stuck:
        world.submit(job=job)
    world.assign(node)
    held, empty, waiting = (world.job(name=name) for name in ("held", "empty", "waiting"))
    world.submit(job=held, hold=True)
    world.submit(job=waiting)
    for job in (*stuck, held, empty, waiting):
        world.db.call(jobs.start_cancel, world.ann, int(job), reason=None, now_us=world.now_us)
    for job in stuck:
        world.db.call(jobs.cancel_piece, int(job), now_us=world.now_us)

    for job in (held, empty, waiting):
        assert world.db.call(jobs.todo, now_us=world.now_us, limit=1).to_cancel == {int(job)}
        for _ in range(2):
            world.db.call(jobs.cancel_piece, int(job), now_us=world.now_us)
    assert world.db.call(jobs.todo, now_us=world.now_us, limit=1).to_cancel == set()
