"""What a task reaches with its token: itself, what it submitted, and what that submitted."""

from __future__ import annotations

import msgspec
import pytest

from geres.api import submitting
from geres.errors import Denied, NameTaken, NotFound, Unauthenticated
from geres.model.callers import Caller
from geres.model.ids import parse_task
from geres.model.jobs import ArraySpec, JobSpec
from geres.model.task_tokens import Claim, check, make
from geres.model.tasks import SubmitTask, TaskRow, TaskSpec
from geres.store import (
    below,
    dry_run,
    jobs,
    results,
    secrets,
    submit,
    task_actions,
    task_list,
    tasks,
    tenants,
)
from geres.store.jobs import JobQuery
from geres.store.task_list import TaskQuery
from tests.store.world import World, ended, key


def as_task(world: World, task: str) -> Caller:
    return Caller(world.tenant_id, "default", "ann", "task", task=key(task))


def submit_by(world: World, task: str, job: str | None = None, after: tuple[str, ...] = ()) -> str:
    spec = TaskSpec(command=["true"])
    answer = world.db.call(
        submit.create_tasks, as_task(world, task), job, spec, [TaskRow()], after=after, now_us=world.now_us
    )
    return f"{answer.job_id}.{answer.first_number}"


def test_a_task_reaches_itself_and_all_below_it_and_no_other(world: World) -> None:
    top, other = world.submit(2)
    child = submit_by(world, top)
    grandchild = submit_by(world, child)
    cousin = submit_by(world, other)
    keys = [key(one) for one in (top, other, child, grandchild, cousin)]

    def reaches(task: str) -> set[int]:
        return set(world.db.call(below.reached, as_task(world, task), keys))

    assert reaches(top) == {key(top), key(child), key(grandchild)}
    assert reaches(child) == {key(child), key(grandchild)}
    assert reaches(other) == {key(other), key(cousin)}
    for hidden in (other, cousin):
        with pytest.raises(NotFound):
            world.db.call(tasks.get, as_task(world, top), key(hidden))
        with pytest.raises(NotFound):
            world.db.call(tasks.place, as_task(world, top), key(hidden))
        with pytest.raises(NotFound):
            world.db.call(tasks.keys_of, as_task(world, top), hidden)
    assert world.db.call(tasks.get, as_task(world, top), key(grandchild)).id == grandchild
    page = world.db.call(task_list.list_tasks, as_task(world, top), TaskQuery(count=True), job_id=None)
    assert {task.id for task in page.items} == {top, child, grandchild}
    assert page.matched == 3


def test_a_task_acts_on_what_is_below_it_alone(world: World) -> None:
    top, other = world.submit(2)
    child = submit_by(world, top)

    done = world.db.call(
        task_actions.cancel, as_task(world, top), [key(child), key(other)], now_us=world.now_us
    )

    assert {item.id: item.code for item in done.items} == {other: "not_found", child: None}
    assert (world.state(child), world.state(other)) == ("cancelled", "queued")


def test_a_task_sees_of_a_results_stream_what_is_its_own(world: World) -> None:
    node = world.connect()
    top, other = world.submit(2)
    child = submit_by(world, top)
    attempts = dict(world.assign(node))
    world.turn(node, 0, ended=[ended(task, attempts[task]) for task in (other, child)])
    job = int(top.partition(".")[0])

    seen = world.db.call(results.after, as_task(world, top), job, 0, limit=10)

    assert [item.task_id for item in seen.items] == [child]
    assert seen.last == 2
    everything = world.db.call(results.after, world.ann, job, 0, limit=10)
    assert len(everything.items) == 2


def test_a_task_reaches_the_jobs_that_it_made(world: World) -> None:
    (top,) = world.submit()
    (other,) = world.submit()
    hidden = world.job(name="theirs")
    spec = JobSpec(name="mine", array=ArraySpec(range="1-3"), task=TaskSpec(command=["true"]))
    made = str(world.db.call(submit.create_job, as_task(world, top), spec, now_us=world.now_us))

    shown = world.db.call(jobs.list_jobs, as_task(world, top), JobQuery(count=True))
    assert {job.id for job in shown.items} == {made}
    assert world.db.call(tasks.keys_of, as_task(world, top), made) == [key(f"{made}.{n}") for n in (1, 2, 3)]
    assert world.db.call(jobs.get, as_task(world, top), "mine").id == made
    world.db.call(jobs.disable, as_task(world, top), int(made), reason=None, now_us=world.now_us)
    submit_by(world, top, "mine")
    for job in (hidden, "theirs"):
        with pytest.raises(NotFound):
            world.db.call(jobs.get, as_task(world, top), job)
        with pytest.raises(NotFound):
            submit_by(world, top, job)
    for job in (made, "mine"):
        with pytest.raises(NotFound):
            world.db.call(jobs.get, as_task(world, other), job)
    with pytest.raises(NotFound):
        submit_by(world, top, after=(other,))


def test_a_task_is_not_attached_to_one_that_it_does_not_reach(world: World) -> None:
    top, _ = world.submit(1)[0], world.submit(1, id="secret", name="secret")

    def attach(caller: Caller) -> bool:
        body = SubmitTask(task=TaskSpec(command=["true"], id="secret", if_exists="attach"))
        return world.db.call(submitting._submit, caller, body, world.now_us)[1]

    assert attach(world.ann)
    with pytest.raises(NameTaken):
        attach(as_task(world, top))


def test_a_user_fills_only_their_own_jobs(world: World) -> None:
    bob, spec = world.bob, TaskSpec(command=["true"])
    theirs, mine = (
        world.job(name="sweep"),
        world.db.call(submit.create_job, bob, JobSpec(name="mine"), now_us=world.now_us),
    )
    for ref in (theirs, "sweep", world.submit()[0].partition(".")[0]):
        with pytest.raises(Denied, match="is ann's"):
            world.db.call(submit.create_tasks, bob, ref, spec, [TaskRow()], now_us=world.now_us)
        with pytest.raises(Denied):
            world.db.call(dry_run.resolve, bob, ref, spec)
        attached = SubmitTask(task=TaskSpec(command=["true"], id="a", if_exists="attach"), job=ref)
        with pytest.raises(Denied):
            world.db.call(submitting._submit, bob, attached, world.now_us)
    for ref in (None, "default", str(mine), "mine"):
        world.db.call(submit.create_tasks, bob, ref, spec, [TaskRow()], now_us=world.now_us)
    operator = Caller(world.tenant_id, "default", "olga", "operator")
    world.db.call(submit.create_tasks, operator, theirs, spec, [TaskRow()], now_us=world.now_us)
    with pytest.raises(NotFound):
        world.db.call(submit.create_tasks, bob, "9000", spec, [TaskRow()], now_us=world.now_us)


def test_a_name_means_ones_own_before_what_others_call_so(world: World) -> None:
    def job(by: Caller) -> int:
        return world.db.call(submit.create_job, by, JobSpec(name="sweep"), now_us=world.now_us)

    mine = job(world.bob)
    world.db.call(jobs.close, world.bob, mine, reason=None, now_us=world.now_us)
    theirs = job(world.ann)
    for bob in (world.bob, msgspec.structs.replace(world.bob, private=True)):
        assert world.db.call(jobs.get, bob, "sweep").id == str(mine)
    assert world.db.call(jobs.get, world.ann, "sweep").id == str(theirs)
    zoe = Caller(world.tenant_id, "default", "zoe", "user")
    assert world.db.call(jobs.get, zoe, "sweep").id == str(theirs)
    with pytest.raises(NotFound):
        world.db.call(jobs.get, msgspec.structs.replace(zoe, private=True), "sweep")


def test_a_task_cannot_change_the_default_job_that_it_shares(world: World) -> None:
    (top,) = world.submit()
    submit_by(world, top)
    default = int(top.partition(".")[0])

    with pytest.raises(Denied):
        world.db.call(jobs.disable, as_task(world, top), default, reason=None, now_us=world.now_us)


def test_a_token_is_good_while_its_attempt_is_on_a_node(world: World) -> None:
    node = world.connect()
    (task,) = world.submit()
    claim = Claim(world.tenant_id, key(task), 1)

    def refused(claim: Claim) -> bool:
        with pytest.raises(Unauthenticated):
            world.db.call(below.find_caller, claim)
        return True

    assert refused(claim)  # not assigned yet
    world.assign(node)
    caller = world.db.call(below.find_caller, claim)
    assert (caller.role, caller.subject, caller.task) == ("task", "ann", key(task))
    assert refused(claim._replace(attempt=2))
    assert refused(claim._replace(tenant_id=world.tenant_id + 1))
    assert refused(claim._replace(task=key(task) + 1))
    world.turn(node, 0, ended=[ended(task, 1)])
    assert refused(claim)


def test_the_token_of_somebody_who_was_disabled_is_refused(world: World) -> None:
    node = world.connect()
    (task,) = world.submit()
    world.assign(node)
    root = Caller(world.tenant_id, "default", "root", "admin")
    world.db.call(tenants.create_user, root, tenants.CreateUser(name="ann"), now_us=world.now_us)
    claim = Claim(world.tenant_id, key(task), 1)
    assert world.db.call(below.find_caller, claim)

    world.db.call(tenants.edit_user, root, "ann", tenants.EditUser(disabled=True), now_us=world.now_us)

    with pytest.raises(Unauthenticated, match="disabled"):
        world.db.call(below.find_caller, claim)


def test_the_tasks_of_somebody_who_may_only_look_by_now_change_nothing_more(world: World) -> None:
    (task,) = world.submit()
    world.assign(world.connect())
    root = Caller(world.tenant_id, "default", "root", "admin")
    world.db.call(tenants.create_user, root, tenants.CreateUser(name="ann"), now_us=world.now_us)
    claim = Claim(world.tenant_id, key(task), 1)
    assert world.db.call(below.find_caller, claim)

    world.db.call(tenants.edit_user, root, "ann", tenants.EditUser(role="viewer"), now_us=world.now_us)
    with pytest.raises(Unauthenticated, match="may only look"):
        world.db.call(below.find_caller, claim)
    world.db.call(tenants.edit_user, root, "ann", tenants.EditUser(role="user"), now_us=world.now_us)
    assert world.db.call(below.find_caller, claim)


def test_only_what_was_made_with_the_key_is_a_token(world: World) -> None:
    secret = world.db.call(secrets.shared, secrets.TASK_TOKENS, now_us=world.now_us)
    assert world.db.call(secrets.shared, secrets.TASK_TOKENS, now_us=world.now_us) == secret
    assert len(secret) == 32
    task = parse_task("12.7") or 0
    token = make(secret, 3, task, 2)

    assert check(secret, token) == Claim(3, task, 2)
    assert token.startswith("geres_task_3.12.7.2_")
    assert check(b"x" * 32, token) is None
    for forged in (
        token.replace("_3.12", "_4.12"),
        token.replace(".7.", ".8."),
        token.replace(".2_", ".3_"),
        token[:-1],
        token[:-1] + ("A" if token[-1] != "A" else "B"),
        token + "A",
        "geres_task_",
        "",
    ):
        assert check(secret, forged) is None, forged
