"""Messages for webhooks: queued with what ends, claimed by one server, kept until they are delivered."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from geres.errors import Invalid, NotFound
from geres.model.callers import Caller
from geres.model.jobs import ArraySpec
from geres.model.tasks import TaskSpec
from geres.model.webhooks import CreateWebhook
from geres.store import arrays, doctor, jobs, task_actions, task_edits, upkeep, webhooks
from geres.store.sharing import ensure_tenant
from geres.store.webhooks import Claimed, Outcome
from tests.store.world import SECOND, World, ended, key

HOUR_US = 3600 * SECOND


def operator(world: World) -> Caller:
    return msgspec.structs.replace(world.ann, role="operator")


def hook(world: World, url: str = "https://host.example/ends", **wanted: Any) -> int:
    made = world.db.call(
        webhooks.create, operator(world), CreateWebhook(url=url, **wanted), now_us=world.now_us
    )
    return int(made.id)


def shown(world: World, webhook_id: int) -> Any:
    return world.db.call(webhooks.get, operator(world), str(webhook_id))


def waiting(world: World, webhook_id: int, **at: int) -> list[dict[str, Any]]:
    messages = world.db.call(webhooks.next_messages, webhook_id, **({"now_us": world.now_us} | at))
    return [json.loads(one.body or b"null") for one in messages]


def claim(world: World) -> Claimed | None:
    return world.db.call(webhooks.claim, now_us=world.now_us)


def settle(world: World, claimed: Claimed, **what: Any) -> None:
    world.db.call(webhooks.settle, claimed, Outcome(**what), now_us=world.now_us)


def ids(world: World, webhook_id: int) -> list[int]:
    return [one.id for one in world.db.call(webhooks.next_messages, webhook_id, now_us=world.now_us)]


def end_one(world: World, outcome: str = "succeeded", **task: Any) -> str:
    """A task that has run and ended."""
    [task_id] = world.submit(**task)
    node = world.connect()
    [(_, attempt)] = world.assign(node)
    world.turn(node, ended=[ended(task_id, attempt, outcome)])
    return task_id


def test_the_end_of_a_task_is_told_in_full(world: World) -> None:
    one = hook(world)
    job = world.job(name="night", meta={"run": "7"})
    task = end_one(world, "failed", job=job)

    [message] = waiting(world, one)

    assert {name: message[name] for name in ("event", "version", "task_id", "job_id", "job_name")} == {
        "event": "task.ended",
        "version": 1,
        "task_id": task,
        "job_id": job,
        "job_name": "night",
    }
    assert (message["state"], message["reason"], message["exit_code"], message["attempt"]) == (
        *("failed", "exit", 1, 1),
    )
    assert (message["node"], message["user"], message["finish_no"]) == ("n1", world.ann.subject, 1)
    assert message["usage"]["wall_seconds"] >= 0
    assert message["at"].endswith("Z")
    assert set(message) >= {
        "id",
        "name",
        "own_id",
        "item",
        "signal",
        "message",
        "started_at",
        "meta",
        "tenant",
    }
    assert not set(message) & {"stdout", "stderr", "value"}


def test_without_a_webhook_nothing_is_queued_and_a_turn_asks_nothing_further(world: World) -> None:
    tenant = world.db.call(ensure_tenant, "other", now_us=world.now_us)
    theirs = Caller(tenant, "other", "bob", "operator")
    world.db.call(webhooks.create, theirs, CreateWebhook(url="https://host.example/"), now_us=world.now_us)
    asked: list[str] = []
    if world.db.dialect == "sqlite":
        world.db._write.set_trace_callback(asked.append)  # type: ignore[attr-defined]

    end_one(world)

    assert world.row("SELECT count(*) AS n FROM outbox")["n"] == 0
    assert not [text for text in asked if "outbox" in text and "count(*)" not in text]


def test_messages_come_in_the_order_of_the_ends_and_the_jobs_own_comes_last(world: World) -> None:
    one = hook(world)
    job = world.job(on_all_complete="terminate")
    tasks = world.submit(3, job=job)
    node = world.connect()
    runs = dict(world.assign(node))

    world.turn(node, ended=[ended(tasks[1], runs[tasks[1]])])
    world.turn(node, ended=[ended(task, runs[task]) for task in (tasks[2], tasks[0])])

    told = waiting(world, one)
    assert [message.get("task_id") for message in told] == [tasks[1], tasks[2], tasks[0], None]
    assert [message.get("finish_no") for message in told] == [1, 2, 3, None]
    assert len({message["id"] for message in told}) == 4
    assert (told[3]["event"], told[3]["job_id"], told[3]["state"], told[3]["outcome"]) == (
        *("job.ended", job, "completed", "ok"),
    )
    assert told[3]["counts"]["succeeded"] == 3


def test_a_job_that_ends_without_a_task_is_told(world: World) -> None:
    one = hook(world)
    job = int(world.job(name="empty"))
    world.db.call(jobs.close, world.ann, job, reason=None, now_us=world.now_us)

    assert [(message["event"], message["name"]) for message in waiting(world, one)] == [
        ("job.ended", "empty")
    ]


def test_every_way_to_an_end_is_told(world: World) -> None:
    one = hook(world)
    [parent] = world.submit()
    [child] = world.submit(after=[parent])
    world.db.call(task_actions.cancel, world.ann, [key(parent)], now_us=world.now_us)
    lost = end_lost(world)

    told = {message["task_id"]: (message["state"], message["reason"]) for message in waiting(world, one)}

    assert told == {
        parent: ("cancelled", "requested"),
        child: ("skipped", "parent_failed"),
        lost: ("failed", "crash_limit"),
    }
    assert [message["attempt"] for message in waiting(world, one)[:2]] == [0, 0]


def end_lost(world: World) -> str:
    """A task that has lost its node three times."""
    [task] = world.submit()
    for _ in range(3):
        node = world.connect()
        world.assign(node)
        world.turn(node, most=0, started=[(key(task), world.task(task)["attempt"])])
        world.now_us += 1000 * SECOND
        world.lose()
    return task


def test_very_many_that_are_cancelled_at_once_are_told(world: World) -> None:
    one = hook(world, states=["cancelled"])
    job = int(world.job(array=ArraySpec(range="1-6000"), task=TaskSpec(command=["true"])))
    while world.db.call(arrays.unfold, job, now_us=world.now_us):
        pass
    world.db.call(jobs.start_cancel, world.ann, job, reason=None, now_us=world.now_us)
    while world.db.call(jobs.cancel_piece, job, now_us=world.now_us)[1]:
        pass

    rows = world.rows("SELECT finish_no FROM outbox WHERE event = 'task.ended' ORDER BY next_try_at, id")
    assert [row["finish_no"] for row in rows] == list(range(1, 6001))
    [last] = world.rows("SELECT event, body FROM outbox ORDER BY id DESC LIMIT 1")
    assert (last["event"], json.loads(last["body"])["state"]) == ("job.ended", "cancelled")
    assert waiting(world, one)[0]["reason"] == "job_cancelled"


def test_a_webhook_is_told_only_of_what_it_asked_for(world: World) -> None:
    job = world.job(name="mine", on_all_complete="terminate")
    hooks = {
        "failed": hook(world, states=["failed"]),
        "of the job": hook(world, job="mine"),
        "jobs": hook(world, events=["job.ended"]),
        "some failed": hook(world, events=["job.ended"], states=["some_failed"]),
        "skipped": hook(world, states=["skipped", "cancelled"]),
    }
    end_one(world, "failed")
    end_one(world, job=job)

    told = {name: [m["event"] + " " + m["state"] for m in waiting(world, one)] for name, one in hooks.items()}

    assert told == {
        "failed": ["task.ended failed"],
        "of the job": ["task.ended succeeded", "job.ended completed"],
        "jobs": ["job.ended completed"],
        "some failed": [],
        "skipped": [],
    }


def test_a_message_stays_as_it_was_when_the_task_runs_again(world: World) -> None:
    one = hook(world)
    task = end_one(world, "failed")
    world.db.call(task_edits.rerun, world.ann, [key(task)], now_us=world.now_us)
    node = world.connect()
    [(_, attempt)] = world.assign(node)
    world.turn(node, ended=[ended(task, attempt)])

    assert [(m["state"], m["attempt"], m["finish_no"]) for m in waiting(world, one)] == [
        ("failed", 1, 1),
        ("succeeded", 2, 2),
    ]


def test_one_server_claims_and_its_claim_comes_back_with_the_same_messages(world: World) -> None:
    one = hook(world)
    end_one(world)
    first = claim(world)
    assert first is not None
    before = waiting(world, one)

    assert claim(world) is None
    world.now_us += webhooks.CLAIM_US
    second = claim(world)

    assert second is not None
    assert waiting(world, one) == before
    world.now_us += SECOND
    settle(world, second, delivered=ids(world, one))
    settle(world, first, error="late", next_try_at=world.now_us + HOUR_US)  # its claim was over
    assert (shown(world, one).waiting, shown(world, one).delivered, shown(world, one).error) == (0, 1, None)
    assert not world.db.call(webhooks.is_due, now_us=world.now_us)


def test_a_webhook_that_fails_waits_and_says_why(world: World) -> None:
    one = hook(world)
    end_one(world)
    for tries in (1, 2):
        claimed = claim(world)
        assert claimed is not None
        settle(world, claimed, error="connection refused", next_try_at=world.now_us + SECOND)
        assert claim(world) is None
        found = shown(world, one)
        assert (found.tries, found.error, found.waiting) == (tries, "connection refused", 1)
        assert found.failing_since is not None
        world.now_us += SECOND
    [finding] = [one for one in world.db.call(doctor.findings, now_us=world.now_us) if one.kind == "webhook"]
    assert "https://host.example fails: connection refused" in finding.text
    assert "/ends" not in finding.text

    claimed = claim(world)
    assert claimed is not None
    settle(world, claimed, delivered=ids(world, one))

    found = shown(world, one)
    assert (found.tries, found.failing_since, found.delivered, found.waiting) == (0, None, 1, 0)
    assert found.error == "connection refused"


def test_what_failed_alone_is_put_off_and_holds_up_nothing(world: World) -> None:
    one = hook(world)
    for _ in range(3):
        end_one(world)
    first, second, third = ids(world, one)
    claimed = claim(world)
    assert claimed is not None
    settle(
        world, claimed, delivered=[second], put_off=[(first, world.now_us + SECOND)], error="it answered 500"
    )

    assert ids(world, one) == [third]
    world.now_us += SECOND
    assert ids(world, one) == [third, first]


def test_messages_are_given_up_when_they_are_old_or_too_many(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = hook(world), hook(world, states=["failed"])
    end_one(world, "failed")
    world.now_us += webhooks.LONGEST_US + 1
    for _ in range(4):
        end_one(world)
    monkeypatch.setattr(webhooks, "MOST_WAITING", 3)

    todo = world.db.call(webhooks.look, now_us=world.now_us)
    world.db.call(webhooks.tidy, todo)
    world.db.call(webhooks.tidy, todo)  # as another server does it at the same time

    assert [message["task_id"] for message in waiting(world, one)] == ["1.3", "1.4", "1.5"]
    assert [(shown(world, each).waiting, shown(world, each).dropped) for each in (one, other)] == [
        (3, 2),
        (0, 1),
    ]
    assert world.db.call(webhooks.look, now_us=world.now_us) == ({}, [])


def test_what_waits_for_a_webhook_goes_with_it(world: World) -> None:
    gone, kept = hook(world), hook(world)
    end_one(world)
    world.db.call(webhooks.remove, operator(world), str(gone), now_us=world.now_us)

    todo = world.db.call(webhooks.look, now_us=world.now_us)
    world.db.call(webhooks.tidy, todo)

    assert {row["subscription_id"] for row in world.rows("SELECT subscription_id FROM outbox")} == {kept}
    with pytest.raises(NotFound):
        world.db.call(webhooks.get, operator(world), str(gone))


def test_the_webhook_of_a_job_goes_when_the_job_is_no_longer_kept(world: World) -> None:
    job = world.job(name="x")
    hook(world, job=job)
    world.db.call(jobs.close, world.ann, int(job), reason=None, now_us=world.now_us)
    assert world.db.call(upkeep.forget_jobs, before_us=world.now_us + 1) == [int(job)]

    for _ in range(2):
        world.db.call(webhooks.tidy, world.db.call(webhooks.look, now_us=world.now_us))

    assert world.db.call(webhooks.list_webhooks, operator(world)) == []
    assert world.rows("SELECT id FROM outbox") == []


def test_a_task_that_is_no_longer_kept_is_nothing_to_send(world: World) -> None:
    one = hook(world)
    end_one(world)
    world.db.call(upkeep.forget_tasks, before_us=world.now_us + HOUR_US)

    [message] = world.db.call(webhooks.next_messages, one, now_us=world.now_us)
    assert message.body is None
    claimed = claim(world)
    assert claimed is not None
    settle(world, claimed, lost=[message.id])

    assert (shown(world, one).waiting, shown(world, one).dropped, shown(world, one).delivered) == (0, 1, 0)


def test_a_webhook_of_another_tenant_is_not_there(world: World) -> None:
    one = hook(world)
    tenant = world.db.call(ensure_tenant, "other", now_us=world.now_us)
    stranger = Caller(tenant, "other", "bob", "operator")

    assert world.db.call(webhooks.list_webhooks, stranger) == []
    for change in (webhooks.to_test, webhooks.remove):
        with pytest.raises(NotFound):
            world.db.call(change, stranger, str(one), now_us=world.now_us)  # type: ignore[operator]
    with pytest.raises(NotFound):
        world.db.call(
            webhooks.create,
            stranger,
            CreateWebhook(url="https://host.example/", job=world.job()),
            now_us=world.now_us,
        )


def test_secrets_and_paths_stay_out_of_the_audit_log(world: World) -> None:
    hook(world, secret="a-secret-of-16-chars")

    row = world.row("SELECT action, target, facts FROM audit ORDER BY id DESC LIMIT 1")

    assert row["action"] == "webhook.create"
    assert json.loads(row["facts"])["to"] == "https://host.example"
    assert "a-secret" not in row["facts"]


def test_no_more_than_some_dozens_in_a_tenant(world: World) -> None:
    for _ in range(50):
        hook(world)
    with pytest.raises(Exception, match="50 webhooks already"):
        hook(world)
    with pytest.raises(Invalid):
        hook(world, url="ftp://host.example/")
