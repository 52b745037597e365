"""Every loop runs on every server at once: while one server's transaction is open another one's begins."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import psycopg
import pytest

from geres.api import submitting
from geres.model.callers import Caller
from geres.model.jobs import ArraySpec, JobSpec
from geres.model.states import TaskState
from geres.model.tasks import SubmitTask, Submitted, TaskSpec
from geres.model.tenants import CreateToken, CreateUser, EditUser, RotateToken
from geres.model.wire import Hello
from geres.store import (
    arrays,
    ends,
    jobs,
    nodes,
    servers,
    submit,
    task_actions,
    tenants,
    tokens,
    turn,
    upkeep,
)
from geres.store.database import Database, Tx, open_database
from geres.store.invariants import check_invariants
from geres.store.servers import Introduction
from tests.store.world import LEASE_US, SECOND, FirstNode, World, ended, key

_DEADLINE_SECONDS = 20.0


class Two:
    """A world, and a second server's connections to its store."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.world = World(open_database(url))
        self.db: Database = open_database(url)
        self.waited = 0  #: how often the second one had to wait for the first

    def at_once(self, one: Callable[[Tx], Any], other: Callable[[Tx], Any]) -> tuple[Any, Any]:
        """What both answer; `other` begins when `one` has not yet committed, and goes as far as it can."""
        written, commit = threading.Event(), threading.Event()

        def slowly(tx: Tx) -> Any:
            found = one(tx)
            written.set()
            assert commit.wait(_DEADLINE_SECONDS)
            return found

        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(self.world.db.call, slowly)
            try:
                while not written.wait(0.01):
                    if first.done():
                        first.result()
                second = threads.submit(self.db.call, other)
                self._until(lambda: second.done() or self._someone_waits())
                self.waited += not second.done()
            finally:
                commit.set()
            return first.result(_DEADLINE_SECONDS), second.result(_DEADLINE_SECONDS)

    def both(self, function: Callable[..., Any], /, *args: Any, **how: Any) -> tuple[Any, Any]:
        """The same on both."""

        def act(tx: Tx) -> Any:
            return function(tx, *args, **how)

        return self.at_once(act, act)

    def _someone_waits(self) -> bool:
        with psycopg.connect(self._url, autocommit=True) as looking:
            found = looking.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE wait_event_type = 'Lock' AND datname = current_database()"
            ).fetchone()
        return bool(found and found[0])

    @staticmethod
    def _until(seen: Callable[[], bool]) -> None:
        until = time.monotonic() + _DEADLINE_SECONDS
        while not seen():
            assert time.monotonic() < until, "the second transaction neither ended nor waited"
            time.sleep(0.01)


@pytest.fixture
def two(fresh_postgres: Callable[[], str]) -> Iterator[Two]:
    found = Two(fresh_postgres())
    yield found
    assert found.world.db.call(check_invariants) == []
    found.db.close()
    found.world.db.close()


def test_a_task_whose_time_has_come_is_woken_once(two: Two) -> None:
    world = two.world
    ids = world.submit(10, not_before="2030-01-01T00:00:00Z")
    world.now_us = 2_000_000_000 * SECOND

    a, b = two.both(upkeep.wake, now_us=world.now_us, limit=6)

    assert (len(a), len(b)) == (6, 4)
    assert sorted(a + b) == [key(one) for one in ids]


def test_an_array_is_unfolded_by_one_at_a_time(two: Two) -> None:
    world = two.world
    spec = JobSpec(task=TaskSpec(command=["true"]), array=ArraySpec(range="1-25000"))
    job = world.db.call(submit.create_job, world.ann, spec, now_us=world.now_us)

    assert two.both(arrays.unfold, job, now_us=world.now_us) == (arrays.PIECE, 0)

    while world.db.call(arrays.unfold, job, now_us=world.now_us):
        pass
    assert world.row("SELECT count(*) AS n, max(id) - min(id) + 1 AS width FROM task") == {
        "n": 25_000,
        "width": 25_000,
    }


def test_a_job_over_its_time_is_cancelled_once(two: Two) -> None:
    world = two.world
    job = world.job(time_limit_seconds=1)
    [task] = world.submit(job=job)
    node = world.connect()
    world.assign(node)
    world.turn(node, started=[(key(task), 1)])
    world.now_us += 2 * SECOND

    a, b = two.both(jobs.cancel_over_time, now_us=world.now_us)

    assert (a, b) == ([int(job)], [])


def test_the_tasks_of_a_cancelled_job_end_once(two: Two) -> None:
    world = two.world
    job = world.job()
    world.submit(20, job=job)
    world.db.call(jobs.start_cancel, world.ann, int(job), reason=None, now_us=world.now_us)

    (a, _), (b, _) = two.both(jobs.cancel_piece, int(job), now_us=world.now_us)

    assert len(a.task_ids) == 20
    assert b.task_ids == []
    assert len(world.results(job)) == 20


def test_what_a_turn_assigns_while_its_job_is_disabled_is_stopped_too(two: Two) -> None:
    world = two.world
    job = world.job()
    world.submit(5, job=job)
    node = world.connect()

    def disable(tx: Tx) -> int:
        jobs.disable(tx, world.ann, int(job), reason=None, now_us=world.now_us, stop="requeue")
        return len(jobs.stop_piece(tx, int(job), now_us=world.now_us)[0].task_ids)

    given, seen = two.at_once(take_turn(world, node, 5), disable)

    assert (len(given.assigned), seen) == (5, 0)
    assert world.db.call(jobs.todo, now_us=world.now_us).to_stop == [int(job)]  # the loop looks again
    assert len(world.db.call(jobs.stop_piece, int(job), now_us=world.now_us)[0].task_ids) == 5


def test_of_two_submits_that_may_attach_one_makes_the_task(two: Two) -> None:
    world = two.world
    world.submit()  # so that the job is there
    body = SubmitTask(task=TaskSpec(command=["true"], id="nightly", if_exists="attach"))

    def act(tx: Tx) -> Submitted:
        answer = submitting._submit_once(tx, world.ann, body, b"", key=None, warnings=[], now_us=world.now_us)
        return msgspec.json.decode(answer, type=Submitted)

    a, b = two.at_once(act, act)

    assert (a.attached, b.attached) == (False, True)
    assert a.task.id == b.task.id


def test_a_job_with_nothing_left_ends_once(two: Two) -> None:
    world = two.world
    job = world.job()
    world.db.call(jobs.close, world.ann, int(job), reason=None, now_us=world.now_us)
    done = world.job(on_all_complete="terminate")
    [task] = world.submit(job=done)
    node = world.connect()
    world.assign(node)
    world.turn(node, ended=[ended(task, 1)])
    world.db.call(lambda tx: tx.raw_run("UPDATE job SET state = 'closing', ended_at = NULL", ()))

    a, b = two.both(jobs.end_done_jobs, now_us=world.now_us)

    assert sorted(a) == sorted([int(job), int(done)])
    assert b == []


def test_what_waits_for_a_job_is_freed_once(two: Two) -> None:
    world = two.world
    parent = world.job()
    [task] = world.submit(job=parent)
    children = world.submit(30, job=world.job(), after=[parent])
    node = world.connect()
    world.assign(node)
    world.turn(node, ended=[ended(task, 1)])

    (a, _), (b, _) = two.both(ends.free_children_of_jobs, now_us=world.now_us)

    assert (a.freed, b.freed) == (30, 0)
    assert {world.state(one) for one in children} == {TaskState.QUEUED}


def test_a_lost_node_gives_back_its_tasks_once(two: Two) -> None:
    world = two.world
    ids = world.submit(8)
    for name in ("n1", "n2"):
        node = world.connect(name)
        given = world.turn(node, most=4).assigned
        world.turn(node, 0, started=[(placement.candidate.id, attempt) for placement, attempt in given])
    world.now_us += LEASE_US

    a, b = two.both(nodes.lose, world.ended, now_us=world.now_us)

    assert (len(a.stale_nodes), len(b.stale_nodes)) == (2, 0)
    assert {world.task(one)["lost_count"] for one in ids} == {1}
    assert world.row("SELECT count(*) AS n FROM node_event WHERE state = 'lost'") == {"n": 2}


def test_what_is_old_is_forgotten_once(two: Two) -> None:
    world = two.world
    job = world.job()
    ids = world.submit(12, job=job)
    node = world.connect()
    world.assign(node)
    world.turn(node, ended=[ended(one, 1) for one in ids])
    world.now_us += SECOND

    a, b = two.both(upkeep.forget_tasks, before_us=world.now_us, limit=8)

    assert a.tasks == 8
    assert b.tasks == 0
    while two.db.call(upkeep.forget_tasks, before_us=world.now_us, limit=8).more:
        pass
    assert world.row("SELECT task_count, results_cut FROM job WHERE id = :id", id=int(job)) == {
        "task_count": 0,
        "results_cut": 12,
    }


def test_a_cut_that_comes_late_takes_nothing_back(two: Two) -> None:
    """Between another server's reading and its writing two pieces were cut."""
    world = two.world
    job = world.job()
    ids = world.submit(12, job=job)
    node = world.connect()
    world.assign(node)
    world.turn(node, ended=[ended(one, 1) for one in ids])
    world.now_us += SECOND
    world.db.call(upkeep.forget_tasks, before_us=world.now_us, limit=8)

    late = world.db.call(lambda tx: tx.run("cut_results", job_id=int(job), before=0, last=4))

    assert late == 0
    assert world.row("SELECT results_cut FROM job WHERE id = :id", id=int(job)) == {"results_cut": 8}


def test_a_server_that_is_gone_is_forgotten_once(two: Two) -> None:
    world = two.world
    a, b, gone = (
        world.db.call(
            servers.register, Introduction(0, f"http://{name}", "1", world.now_us), lease_us=LEASE_US
        )
        for name in "abc"
    )
    world.now_us += LEASE_US
    for me in (a, b):
        world.db.call(servers.renew, me, last_us=world.now_us, lease_us=LEASE_US, now_us=world.now_us)

    buried = two.at_once(
        lambda tx: servers.bury(tx, a.id, now_us=world.now_us),
        lambda tx: servers.bury(tx, b.id, now_us=world.now_us),
    )

    assert buried == ([(gone.id, "http://c")], [])


def test_keys_of_yesterday_are_forgotten_once(two: Two) -> None:
    world = two.world
    rows = [(world.tenant_id, "ann", f"k{number}", "", "{}", 0) for number in range(10)]
    columns = ("tenant_id", "subject", "key", "body_hash", "answer", "created_at")
    world.db.call(lambda tx: tx.insert("idempotency", columns, rows))

    a, b = two.both(upkeep.forget_keys, now_us=100_000 * SECOND, limit=6)

    assert (a, b) == (6, 4)


def take_turn(world: World, node: nodes.Connected, most: int, **more: Any) -> Callable[[Tx], turn.Turned]:
    work = turn.Gathered({node.node_id: node.epoch}, [node.pool_id], **more)

    def act(tx: Tx) -> turn.Turned:
        planner = FirstNode(node.node_id, most)
        return turn.turn(tx, work, planner, now_us=world.now_us)

    return act


def test_two_turns_never_assign_the_same_task(two: Two) -> None:
    world = two.world
    ids = world.submit(20)
    mine, its = world.connect("mine"), world.connect("its")

    a, b = two.at_once(take_turn(world, mine, 12), take_turn(world, its, 12))

    keys = [[placement.candidate.id for placement, _ in done.assigned] for done in (a, b)]
    assert (len(keys[0]), len(keys[1])) == (12, 8)
    assert sorted(keys[0] + keys[1]) == [key(one) for one in ids]


def test_two_turns_never_exceed_a_cap(two: Two) -> None:
    world = two.world
    world.submit(20, job=world.job(max_parallel=5))
    mine, its = world.connect("mine"), world.connect("its")

    a, b = two.at_once(take_turn(world, mine, 4), take_turn(world, its, 4))

    assert (len(a.assigned), len(b.assigned)) == (4, 0)  # the limit was locked, and its lane left out
    assert len(two.db.call(take_turn(world, its, 4)).assigned) == 1


def test_a_node_that_says_hello_and_a_task_that_is_ended_by_force(two: Two) -> None:
    """The node no longer knows its task, which so is lost: and at that moment it is ended."""
    world = two.world
    [task] = world.submit()
    node = world.connect()
    world.assign(node)
    world.turn(node, started=[(key(task), 1)])

    def force(tx: Tx) -> Any:
        return task_actions.cancel(tx, world.ann, [key(task)], now_us=world.now_us, force=True)

    two.at_once(force, lambda tx: _hello(tx, world))

    assert world.state(task) is TaskState.CANCELLED
    assert [state for *_, state in world.results(task.split(".")[0])] == ["cancelled"]


def _hello(tx: Tx, world: World) -> Any:
    hello = Hello(1, "0", "n1", "boot", "host", "n1", "x86_64", "linux", 1, "ann", 4.0, 1 << 33)
    return nodes.hello(
        tx, hello, tenant_id=world.tenant_id, server_id=2, lease_us=LEASE_US, now_us=world.now_us
    )


def test_a_node_moves_to_another_server_while_it_gets_work(two: Two) -> None:
    """What its old server assigns at that moment is its own to start: the store has it there."""
    world = two.world
    [task] = world.submit()
    node = world.connect()

    _, moved = two.at_once(take_turn(world, node, 4), lambda tx: _hello(tx, world))

    assert [held.id for held in moved.resend] == [key(task)]
    stale = two.db.call(take_turn(world, node, 4, ended=[(node.node_id, ended(task, 1))]))
    assert stale.stale_nodes == [node.node_id]
    assert stale.acks == []


def test_a_turn_holds_no_candidate_while_it_waits_for_a_task_that_it_was_told_of(two: Two) -> None:
    """Else a cancel of both, which has locked the one and wants the other, would never end."""
    world = two.world
    running, queued = world.submit(2)
    node = world.connect()
    world.assign(node, 1)

    def cancel_in_two_steps(tx: Tx) -> None:
        task_actions.cancel(tx, world.ann, [key(running)], now_us=world.now_us)

    def other(tx: Tx) -> turn.Turned:
        return take_turn(world, node, 4, ended=[(node.node_id, ended(running, 1))])(tx)

    class Waiting(threading.Thread):
        """The turn, which waits for the task that the cancel has locked."""

        def run(self) -> None:
            self.done = two.db.call(other)

    waiting = Waiting()

    def cancel_both(tx: Tx) -> int:
        cancel_in_two_steps(tx)
        waiting.start()
        two._until(two._someone_waits)
        found = tx.rows("queued_tasks_of_lane", lane_id=world.task(queued)["lane_id"], limit=5)
        return len(found)

    free = world.db.call(cancel_both)
    waiting.join(_DEADLINE_SECONDS)

    assert free == 1, "the turn has locked it already"
    assert [state for *_, state in world.results(running.split(".")[0])] == ["succeeded"]


def test_leases_are_renewed_while_a_turn_is_under_way(two: Two) -> None:
    world = two.world
    world.submit(4)
    both = [world.connect("n1"), world.connect("n2")]
    pairs = [(node.node_id, node.epoch) for node in both]

    done, held = two.at_once(
        take_turn(world, both[0], 4),
        lambda tx: nodes.renew(tx, pairs, server_id=1, lease_us=LEASE_US, now_us=world.now_us),
    )

    assert len(done.assigned) == 4
    assert two.waited == 0  # a renewal that waits for turns would wait for each of them
    assert sorted(held) == sorted(node.node_id for node in both)


def test_a_token_made_while_its_user_is_demoted_is_of_the_new_role(two: Two) -> None:
    world = two.world
    admin = Caller(world.tenant_id, "default", "root", "admin")
    mia = Caller(world.tenant_id, "default", "mia", "operator")
    world.db.call(tenants.create_user, admin, CreateUser(name="mia", role="operator"), now_us=world.now_us)
    old = world.db.call(tokens.create, mia, CreateToken(), now_us=world.now_us)
    for role, make in (
        ("user", lambda tx: tokens.create(tx, mia, CreateToken(), now_us=world.now_us)),
        ("viewer", lambda tx: tokens.rotate(tx, mia, old.id, RotateToken(), now_us=world.now_us)),
    ):
        change = EditUser(role=role)
        _, made = two.at_once(
            lambda tx, change=change: tenants.edit_user(tx, admin, "mia", change, now_us=world.now_us), make
        )
        assert made.role == role
    assert two.waited == 2
