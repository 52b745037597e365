"""The results stream after a cursor, retention from its front, and what the doctor sees."""

from __future__ import annotations

from typing import Any

import pytest

from geres.blobs.folder import output_key, parse_output_key
from geres.errors import Gone, Invalid, NotFound
from geres.model.tasks import Results, Retry
from geres.store import doctor, idempotency, jobs, results, servers, task_edits, tasks, upkeep
from geres.store.database import Tx
from geres.store.servers import Introduction
from tests.store.world import SECOND, World, ended, key


def after(world: World, job: int, cursor: int = 0, limit: int = 100) -> Results:
    return world.db.call(results.after, world.ann, job, cursor, limit=limit)


def run(world: World, *ids: str, outcome: str = "succeeded", **facts: Any) -> None:
    node = world.connect()
    started = dict(world.assign(node, len(ids)))
    reports = [ended(one, started[one], outcome, ended_us=world.now_us, **facts) for one in ids]
    world.turn(node, 0, ended=reports)


def forget(world: World, before_us: int) -> list[str]:
    """Everything that retention removes; the keys of the blobs to remove."""
    blobs, more = [], True
    while more:
        done = world.db.call(upkeep.forget_tasks, before_us=before_us, limit=2)
        blobs += done.blobs
        more = done.more
    return blobs


def check(world: World) -> None:
    assert world.db.call(doctor.check_invariants) == []


def test_results_come_in_order_after_a_cursor_without_a_gap(world: World) -> None:
    ids = world.submit(5, name="t")
    node = world.connect("n7")
    started = dict(world.assign(node))
    order = [ids[3], ids[0], ids[4]]
    for one in order:
        world.turn(node, 0, ended=[ended(one, started[one], stdout=b"out", stdout_bytes=3, exit_code=0)])

    first = after(world, 1, limit=2)
    rest = after(world, 1, first.last)

    assert [(one.finish_no, one.task_id) for one in first.items + rest.items] == list(enumerate(order, 1))
    assert (first.last, rest.last, rest.finished, rest.open, rest.job_state) == (2, 3, 3, 2, "active")
    assert (first.items[0].node, first.items[0].name, first.items[0].stdout_bytes) == ("n7", "t", 3)
    empty = after(world, 1, rest.last)
    assert (empty.items, empty.last) == ([], 3)


def test_only_the_attempt_that_ends_a_task_is_a_result(world: World) -> None:
    [task] = world.submit(retry=Retry(most=1))
    run(world, task, outcome="failed")
    assert after(world, 1).items == []
    run(world, task, outcome="failed")

    assert [(one.attempt, one.state) for one in after(world, 1).items] == [(2, "failed")]


@pytest.mark.parametrize(("cursor", "limit"), [(-1, 1), (1, 1), (0, 0), (0, 10_001)])
def test_a_cursor_or_limit_out_of_range_is_refused(world: World, cursor: int, limit: int) -> None:
    world.submit()

    with pytest.raises(Invalid):
        after(world, 1, cursor, limit)


def test_results_of_an_unknown_job_are_not_found(world: World) -> None:
    with pytest.raises(NotFound):
        after(world, 9)


def test_retention_cuts_from_the_front_and_a_cursor_before_the_cut_is_gone(world: World) -> None:
    old = world.submit(5, retry=Retry(most=1))
    run(world, *old[:1], outcome="failed")
    run(world, *old)
    [late] = world.submit()
    world.now_us += 100 * SECOND
    run(world, late)
    waiting = world.submit(2)

    forget(world, world.now_us - 50 * SECOND)

    with pytest.raises(Gone) as caught:
        after(world, 1, 3)
    assert caught.value.facts == {"oldest": 6, "after": 5}
    assert [one.task_id for one in after(world, 1, 5).items] == [late]
    assert [row["id"] for row in world.rows("SELECT id FROM task ORDER BY id")] == [
        key(one) for one in (late, *waiting)
    ]
    assert world.rows("SELECT * FROM attempt WHERE task_id = :id", id=key(old[0])) == []
    assert world.db.call(jobs.get, world.ann, "1").task_count == 3
    check(world)


def test_a_kept_result_in_front_keeps_those_behind_it(world: World) -> None:
    first, second = world.submit(2)
    node = world.connect()
    started = dict(world.assign(node))
    early_us, world.now_us = world.now_us + SECOND, world.now_us + 1000 * SECOND
    world.turn(node, 0, ended=[ended(first, started[first], ended_us=world.now_us)])
    world.turn(node, 0, ended=[ended(second, started[second], ended_us=early_us)])

    forget(world, early_us + SECOND)

    assert len(after(world, 1).items) == 2


def test_the_blobs_of_what_is_forgotten_are_named(world: World) -> None:
    first, second = world.submit(2, retry=Retry(most=1))
    run(world, first, outcome="failed", stdout_blob="outputs/a", stderr_blob="outputs/b")
    run(world, first, stdout_blob="outputs/c")
    run(world, second)

    assert sorted(forget(world, world.now_us + SECOND)) == ["outputs/a", "outputs/b", "outputs/c"]


def test_outputs_are_unwanted_that_no_attempt_names_or_may_name_yet(world: World) -> None:
    ended_one, running, lost = world.submit(3)
    run(world, ended_one, stdout_blob=output_key(key(ended_one), 1, "stdout"))
    node = world.connect()
    world.assign(node, 2)
    world.now_us += 60 * SECOND
    world.lose()
    [(task, attempt)] = world.assign(world.connect("n2"), 1)
    assert (task, attempt) == (running, 2)

    keys = {
        output_key(key(one), number, stream): (key(one), number)
        for one in (ended_one, running, lost)
        for number in (1, 2)
        for stream in ("stdout", "stderr")
    }
    kept = {
        output_key(key(ended_one), 1, "stdout"),
        output_key(key(running), 2, "stdout"),
        output_key(key(running), 2, "stderr"),
    }
    assert {name: parse_output_key(name) for name in keys} == keys
    assert world.db.call(upkeep.unwanted_outputs, keys) == [name for name in keys if name not in kept]


def test_a_task_that_ran_again_lately_stays_with_its_later_result(world: World) -> None:
    [task] = world.submit()
    run(world, task, outcome="failed")
    world.now_us += 100 * SECOND
    world.db.call(task_edits.rerun, world.ann, [key(task)], now_us=world.now_us)
    run(world, task)

    forget(world, world.now_us - 50 * SECOND)

    assert [one.finish_no for one in after(world, 1, 1).items] == [2]
    assert world.db.call(tasks.get, world.ann, key(task)).state == "succeeded"


def test_an_ended_job_without_tasks_is_forgotten(world: World) -> None:
    job = world.job(on_all_complete="terminate", max_parallel=3)
    [task] = world.submit(job=job)
    run(world, task)
    forget(world, world.now_us + SECOND)

    assert world.db.call(upkeep.forget_jobs, before_us=world.now_us + SECOND) == [int(job)]
    assert world.rows("SELECT * FROM lane") == world.rows("SELECT * FROM spec") == []
    assert world.rows('SELECT * FROM "limit"') == []


def test_idempotency_keys_are_forgotten_after_a_day(world: World) -> None:
    def use(tx: Tx) -> bytes:
        return idempotency.once(tx, world.ann, "k", b"body", now_us=world.now_us, do=lambda tx: b"{}")

    world.db.call(use)
    assert world.db.call(upkeep.forget_keys, now_us=world.now_us + 86_400 * SECOND) == 0

    assert world.db.call(upkeep.forget_keys, now_us=world.now_us + 86_401 * SECOND) == 1


def test_tasks_are_queued_when_their_time_has_come(world: World) -> None:
    [soon] = world.submit(not_before="1970-01-01T00:17:00Z")
    [later] = world.submit(not_before="1970-01-01T01:00:00Z")
    assert world.db.call(upkeep.next_wake_us) == 1020 * SECOND
    assert world.db.call(upkeep.wake, now_us=1019 * SECOND) == []

    assert world.db.call(upkeep.wake, now_us=1020 * SECOND) == [key(soon)]

    assert world.assign(world.connect()) == [(soon, 1)]
    assert world.state(later) == "blocked"
    check(world)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("UPDATE job SET task_count = task_count + 1", "counts 4 tasks and has 3"),
        ("UPDATE job SET succeeded = succeeded - 1", "counts 0 ended tasks and has 1"),
        ("DELETE FROM attempt", "is succeeded and has 0 results"),
        ("UPDATE job SET succeeded = 0, failed = 1", "or miscounts their states"),
        ("UPDATE attempt SET state = 'failed'", "is succeeded, and its accepted result says failed"),
        ("UPDATE attempt SET attempt = 7", "has ended attempt 7, and its last was 1"),
        (
            "INSERT INTO attempt (task_id, attempt, job_id, finish_no, state, ended_at)"
            " SELECT task_id, 9, job_id, 2, state, ended_at FROM attempt",
            "has 2 accepted results in its round 0",
        ),
        ("UPDATE task SET retry_count = 1", "counts 1 retries, 0 requeues"),
        ("UPDATE task SET lost_count = 1", "0 requeues, 1 losses"),
        ("UPDATE lane SET priority = -1", "has priority -1 and a queued task of priority 0"),
        ("UPDATE task SET state = 'blocked' WHERE state = 'queued'", "nothing will ever wake it"),
        ("UPDATE task SET asked = 'cancel' WHERE state = 'queued'", "is queued no node will answer"),
        ("UPDATE task SET node_id = 99 WHERE state = 'running'", "on node 99, which does not exist"),
        ("UPDATE attempt SET finish_no = 2", "results of job 1 should go from 1 to 1"),
        ("UPDATE lane SET active = 0", "sleeps and has"),
        ("UPDATE task SET waits_on = 1 WHERE state = 'queued'", "waits for 1 others and has 0"),
        ("UPDATE node SET cpus = 10", "has 10 of cpus and runs tasks with 1000"),
    ],
)
def test_the_doctor_names_what_is_damaged(world: World, damage: str, words: str) -> None:
    first, second, _ = world.submit(3)
    node = world.connect()
    world.assign(node, 2)
    world.turn(node, 0, started=[(key(second), 1)], ended=[ended(first, 1)])
    check(world)

    world.db.call(lambda tx: tx.raw_run(damage, ()))

    assert any(words in finding.text for finding in world.db.call(doctor.check_invariants))


def test_the_doctor_names_records_set_aside_and_wishes_not_answered(world: World) -> None:
    [task] = world.submit()
    world.assign(world.connect())
    world.db.call(
        lambda tx: tx.run(
            "quarantine", now_us=world.now_us, kind="ended", key="5/1", body="{}", error="ValueError()"
        )
    )
    world.db.call(
        lambda tx: tx.run(
            "ask_tasks", task_ids=[key(task)], asked="cancel", message=None, now_us=world.now_us
        )
    )

    found = world.db.call(doctor.findings, now_us=world.now_us + 601 * SECOND)

    assert [finding.kind for finding in found] == ["quarantine", "stuck"]
    assert "ended 5/1 was set aside: ValueError()" in found[0].text
    assert found[1].next == f"geres cancel --force {task}"


def test_a_new_server_lets_all_leases_go_on(world: World) -> None:
    node = world.connect()
    world.now_us += 1000 * SECOND

    world.db.call(servers.register, Introduction(0, "http://x", "1", world.now_us), lease_us=15 * SECOND)

    assert world.row("SELECT lease_until FROM node WHERE id = :id", id=node.node_id) == {
        "lease_until": world.now_us + 15 * SECOND
    }
    assert world.lose().stale_nodes == []
