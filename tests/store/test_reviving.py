"""Tasks that were skipped for the sake of others, and very many of them: they come back in pieces."""

from __future__ import annotations

from collections import Counter

import pytest

from geres.model.jobs import ArraySpec
from geres.model.tasks import TaskSpec
from geres.store import doctor, ends, task_actions, task_edits
from geres.store.database import Tx
from tests.store.test_two_servers import Two, two  # noqa: F401 - a fixture
from tests.store.world import World, ended, key

MANY = 10


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_edits, "CHILDREN_AT_ONCE", MANY)


def run(world: World, *ids: str, outcome: str = "succeeded") -> None:
    node = world.connect()
    started = dict(world.assign(node))
    world.turn(node, 0, ended=[ended(one, started[one], outcome) for one in ids])


def rerun(world: World, *ids: str) -> None:
    world.db.call(task_edits.rerun, world.ann, [key(one) for one in ids], now_us=world.now_us)
    check(world)


def revive(world: World) -> list[int]:
    """Everything.  How many tasks came back in each transaction."""
    sizes, more = [], True
    while more:
        done, more = world.db.call(task_edits.revive, now_us=world.now_us)
        check(world)
        sizes.append(len(done.task_ids))
    return sizes


def check(world: World) -> None:
    assert world.db.call(doctor.check_invariants) == []


def states(world: World, ids: list[str]) -> dict[str, int]:
    return dict(Counter(str(world.state(one)) for one in ids))


def test_many_children_wait_again_a_piece_at_a_time(world: World) -> None:
    [parent] = world.submit()
    children = world.submit(25, after=[parent])
    grandchildren = [world.submit(after=[child])[0] for child in children[:3]]
    run(world, parent, outcome="failed")
    assert states(world, children + grandchildren) == {"skipped": 28}

    rerun(world, parent)
    assert states(world, children) == {"skipped": 25}, "not in the transaction of the rerun"
    sizes = revive(world)
    assert max(sizes) <= 2 * MANY
    assert states(world, children + grandchildren) == {"blocked": 28}

    run(world, parent)
    assert states(world, children) == {"queued": 25}
    assert states(world, grandchildren) == {"blocked": 3}
    check(world)


def test_those_whose_parent_has_succeeded_meanwhile_start(world: World) -> None:
    [parent] = world.submit()
    children = world.submit(25, after=[parent])
    run(world, parent, outcome="failed")
    rerun(world, parent)
    world.db.call(task_edits.revive, now_us=world.now_us)
    run(world, parent)
    assert states(world, children) == {"queued": 10, "skipped": 15}

    revive(world)
    assert states(world, children) == {"queued": 25}
    assert len(world.assign(world.connect("n2"))) == 25


def test_those_whose_parent_has_failed_once_more_stay_skipped(world: World) -> None:
    [parent] = world.submit()
    children = world.submit(25, after=[parent])
    run(world, parent, outcome="failed")
    rerun(world, parent)
    world.db.call(task_edits.revive, now_us=world.now_us)
    run(world, parent, outcome="failed")
    assert states(world, children) == {"skipped": 25}

    assert sum(revive(world)) == 0
    assert states(world, children) == {"skipped": 25}
    assert world.rows("SELECT * FROM reviving") == []
    rerun(world, parent)
    revive(world)
    assert states(world, children) == {"blocked": 25}


def test_one_that_was_skipped_for_another_parent_too_stays(world: World) -> None:
    good, bad = world.submit(2)
    both = world.submit(12, after=[good, bad])
    one = world.submit(12, after=[good])
    run(world, good, bad, outcome="failed")

    rerun(world, good)
    revive(world)
    assert (states(world, both), states(world, one)) == ({"skipped": 12}, {"blocked": 12})


def test_one_stays_skipped_whose_other_parent_stays_so_too(world: World) -> None:
    """`last` waits for both; `middle`, which comes with it into view, does not come back."""
    first, other = world.submit(2)
    middle = world.submit(after=[first, other])[0]
    last = world.submit(after=[other, middle])[0]
    for one in (first, other):
        world.db.call(task_actions.cancel, world.ann, [key(one)], now_us=world.now_us)
    assert states(world, [middle, last]) == {"skipped": 2}

    rerun(world, other)

    assert states(world, [middle, last]) == {"skipped": 2}
    rerun(world, first)
    assert states(world, [middle, last]) == {"blocked": 2}


def test_many_children_of_a_job_wait_again(world: World) -> None:
    job = world.job(name="j")
    [parent] = world.submit(job=job)
    spec = TaskSpec(command=["true"])
    array = world.job(array=ArraySpec(range="1-25"), task=spec, after=[job])
    children = [f"{array}.{n}" for n in range(1, 26)]
    run(world, parent, outcome="failed")
    while world.db.call(ends.free_children_of_jobs, now_us=world.now_us)[1]:
        pass
    assert states(world, children) == {"skipped": 25}

    rerun(world, parent)
    revive(world)
    assert states(world, children) == {"blocked": 25}
    run(world, parent)
    while world.db.call(ends.free_children_of_jobs, now_us=world.now_us)[1]:
        pass
    assert states(world, children) == {"queued": 25}
    check(world)


def test_many_parents_with_some_children_each_are_many_too(world: World) -> None:
    parents = world.submit(6, cpus=0.1)
    children = [world.submit(4, after=[parent]) for parent in parents]
    run(world, *parents, outcome="failed")

    rerun(world, *parents)
    at_once = sum(states(world, some).get("blocked", 0) for some in children)
    assert 0 < at_once <= MANY
    revive(world)
    assert [states(world, some) for some in children] == [{"blocked": 4}] * 6


def test_two_servers_revive_at_once(two: Two) -> None:  # noqa: F811
    world = two.world
    [parent] = world.submit()
    children = world.submit(25, after=[parent])
    run(world, parent, outcome="failed")
    rerun(world, parent)
    more = True
    while more:
        (_, a), (_, b) = two.both(task_edits.revive, now_us=world.now_us)
        more = a or b
        check(world)
    assert states(world, children) == {"blocked": 25}


def test_what_waits_for_a_job_is_not_skipped_while_its_task_is_run_again(two: Two) -> None:  # noqa: F811
    world = two.world
    job = world.job(name="j")
    [parent] = world.submit(job=job)
    children = world.submit(5, after=[job])
    run(world, parent, outcome="failed")

    def run_again(tx: Tx) -> None:
        task_edits.rerun(tx, world.ann, [key(parent)], now_us=world.now_us)

    def free(tx: Tx) -> None:
        ends.free_children_of_jobs(tx, now_us=world.now_us)

    two.at_once(run_again, free)
    assert two.waited == 1
    assert states(world, children) == {"blocked": 5}
    run(world, parent)
    world.db.call(ends.free_children_of_jobs, now_us=world.now_us)
    assert states(world, children) == {"queued": 5}
    check(world)


def test_a_job_with_tasks_that_were_up_to_date_has_not_failed(world: World) -> None:
    job = world.job(name="j")
    fresh, parent = world.submit(2, job=job, cpus=0.1)
    children = world.submit(25, after=[job])
    node = world.connect()
    world.assign(node)
    world.turn(node, 0, ended=[ended(fresh, 1, "skipped"), ended(parent, 1, "failed")])
    while world.db.call(ends.free_children_of_jobs, now_us=world.now_us)[1]:
        pass
    assert states(world, children) == {"skipped": 25}
    rerun(world, parent)
    run(world, parent)

    revive(world)
    while world.db.call(ends.free_children_of_jobs, now_us=world.now_us)[1]:
        pass
    assert states(world, children) == {"queued": 25}
