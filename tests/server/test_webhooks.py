"""How messages are sent: in order, a few at once, again after a failure, once with several servers."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from geres.api.context import Context
from geres.model.webhooks import CreateWebhook, Webhook, signature
from geres.server.webhooks import Sending, pieces
from geres.store import webhooks
from geres.store.database import Database, open_database
from geres.store.webhooks import Message
from tests.receiver import Got, Receiver
from tests.store.world import SECOND, World, ended

SECRET = "a-secret-of-16-chars"


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'geres.db'}"
    fresh: Callable[[], str] = request.getfixturevalue("fresh_postgres")
    return fresh()


@pytest.fixture
def world(url: str) -> Iterator[World]:
    with closing(open_database(url)) as db:
        yield World(db)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


class Server:
    """What of a server sends to webhooks; it never waits longer than it says."""

    def __init__(self, world: World, db: Database | None = None) -> None:
        unused = cast("Any", None)
        self.context = Context(db or world.db, lambda: world.now_us, unused, unused, unused, version="1")
        self.sending = Sending(self.context, jitter=lambda low, high: high)

    async def run(self) -> int:
        """Rounds until nothing is due; how many there were."""
        rounds = 0
        while await self.sending.step():
            rounds += 1
        return rounds


def add(world: World, url: str, **wanted: Any) -> str:
    made = world.db.call(
        webhooks.create, world.ann, CreateWebhook(url=url, secret=SECRET, **wanted), now_us=world.now_us
    )
    return made.id


def shown(world: World, webhook_id: str) -> Webhook:
    return world.db.call(webhooks.get, world.ann, webhook_id)


def end(world: World, count: int, **job: Any) -> list[str]:
    """Tasks of a job of their own that have succeeded."""
    tasks = world.submit(count, job=world.job(on_all_complete="terminate", **job))
    node = world.connect()
    runs = dict(world.assign(node, most=count))
    world.turn(node, ended=[ended(task, runs[task]) for task in tasks])
    return tasks


async def test_messages_go_signed_and_in_order(world: World, receiver: Receiver) -> None:
    one = add(world, receiver.url)
    tasks = end(world, 5)
    server = Server(world)

    assert await server.run() == 1
    await server.context.close()

    assert [message.get("task_id") for message in receiver.messages] == [*tasks, None]
    for got in receiver.got:
        headers = got.headers
        assert got.message["id"] == got.delivery
        assert headers["content-type"] == "application/json"
        at = int(headers["webhook-timestamp"])
        assert headers["webhook-signature"] == signature(SECRET, got.delivery, at, got.body)
    assert (shown(world, one).delivered, shown(world, one).waiting) == (6, 0)


async def test_where_many_wait_a_receiver_gets_some_at_once_and_the_job_last(world: World) -> None:
    together = threading.Barrier(4)

    def meet(got: Got) -> int:
        if got.message["event"] == "task.ended":
            together.wait(20)  # breaks, and so fails, where fewer than four come at once
        return 204

    with Receiver(meet) as receiver:
        add(world, receiver.url)
        end(world, 40)
        server = Server(world)
        await server.run()
        await server.context.close()

    assert sorted(m["finish_no"] for m in receiver.messages[:-1]) == list(range(1, 41))
    assert receiver.messages[-1]["event"] == "job.ended"


async def test_a_dead_receiver_is_tried_less_and_less_and_warned_about_once(
    world: World, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "geres.webhooks")
    receiver.answer = lambda got: 503
    one = add(world, receiver.url)
    end(world, 1)
    server, tried = Server(world), []
    for pause in (2, 4, 8, 16):
        assert await server.run() == 1
        tried.append(len(receiver.got))
        assert shown(world, one).error == "it answered 503"
        world.now_us += pause * SECOND - 1
        assert await server.run() == 0
        world.now_us += 1
    receiver.answer = lambda got: 204
    assert await server.run() == 1
    await server.context.close()

    events = [(record.levelname, record.event) for record in caplog.records]  # type: ignore[attr-defined]
    assert events == [("WARNING", "webhook_failing"), ("INFO", "webhook_works")]
    assert tried[0] == 1  # in order at first
    assert {one.delivery for one in receiver.got[:1]} <= {one.delivery for one in receiver.got[-2:]}
    assert (shown(world, one).waiting, shown(world, one).failing_since) == (0, None)
    assert server.sending._pause_us(40) == 3600 * SECOND


async def test_a_message_that_is_never_taken_holds_up_no_other(world: World, receiver: Receiver) -> None:
    one = add(world, receiver.url, events=["task.ended"])
    first, *others = end(world, 3)
    receiver.answer = lambda got: 422 if got.message["task_id"] == first else 204
    server = Server(world)

    await server.run()
    world.now_us += 2 * SECOND
    await server.run()
    await server.context.close()

    assert sorted(m["task_id"] for m in receiver.messages if m["task_id"] != first) == others
    assert len(receiver.got) == 4  # alone, then with the others, and then not at once again
    assert (shown(world, one).delivered, shown(world, one).waiting, shown(world, one).error) == (
        *(2, 1, "it answered 422"),
    )


@pytest.mark.parametrize("status", [301, 302, 307])
async def test_redirects_are_not_followed(world: World, receiver: Receiver, status: int) -> None:
    with Receiver(lambda got: status, {"Location": receiver.url}) as first:
        one = add(world, first.url)
        end(world, 1)
        server = Server(world)
        await server.run()
        await server.context.close()

    assert (len(first.got), receiver.got) == (1, [])
    assert shown(world, one).error == f"it answered {status}; redirects are not followed"


async def test_a_name_that_leads_to_credentials_of_a_cloud_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look_up(host: str, port: int, **_: Any) -> list[Any]:
        return [(2, 1, 6, "", ("127.0.0.1", port)), (2, 1, 6, "", ("169.254.169.254", port))]

    monkeypatch.setattr(anyio, "getaddrinfo", look_up)
    one = add(world, "http://innocent.example/")
    end(world, 1)
    server = Server(world)
    await server.run()
    await server.context.close()

    assert shown(world, one).error == "innocent.example is at 169.254.169.254, where no webhook may go"


async def test_a_slow_receiver_holds_no_transaction_and_no_other_webhook(
    world: World, receiver: Receiver
) -> None:
    reached, released = threading.Event(), threading.Event()

    def slow(got: Got) -> int:
        reached.set()
        assert released.wait(20)
        return 204

    with Receiver(slow) as slow_one:
        add(world, slow_one.url)
        add(world, receiver.url)
        end(world, 1)
        server = Server(world)
        try:
            async with anyio.create_task_group() as group:
                for _ in range(2):
                    group.start_soon(server.sending.step)
                await anyio.to_thread.run_sync(reached.wait, 20)
                await anyio.to_thread.run_sync(receiver.wait_for, 2)
                end(world, 1)  # who writes is not kept waiting
                assert world.row("SELECT count(*) AS n FROM outbox")["n"] >= 4
                released.set()
        finally:
            released.set()
        await server.run()
        await server.context.close()

    assert len(slow_one.got) == len(receiver.got) == 4


async def test_two_servers_send_each_message_once(
    fresh_postgres: Callable[[], str], receiver: Receiver
) -> None:
    url = fresh_postgres()
    with closing(open_database(url)) as one, closing(open_database(url)) as other:
        world = World(one)
        add(world, receiver.url)
        servers = [Server(world), Server(world, other)]
        for _ in range(4):
            end(world, 60)
            async with anyio.create_task_group() as group:
                for server in servers * 2:
                    group.start_soon(server.run)
        for server in servers:
            await server.context.close()

    assert len(receiver.got) == 4 * 61
    assert len({got.delivery for got in receiver.got}) == 4 * 61


_KILLED = """
import sys, anyio
from geres.api.context import Context
from geres.server.webhooks import Sending
from geres.store.database import open_database

async def main():
    db = open_database(sys.argv[1])
    await Sending(Context(db, lambda: int(sys.argv[2]), None, None, None)).step()

anyio.run(main)
"""


def killed(url: str, now_us: int, doomed: list[int]) -> int:
    """The exit status of a server that sends until it dies."""
    process = subprocess.Popen([sys.executable, "-c", _KILLED, url, str(now_us)])
    doomed.append(process.pid)
    return process.wait(60)


async def test_a_server_killed_after_sending_is_followed_by_one_that_sends_the_same_again(
    world: World, url: str
) -> None:
    doomed: list[int] = []

    def kill(got: Got) -> int:
        if doomed:
            os.kill(doomed.pop(), signal.SIGKILL)
            return 0
        return 204

    with Receiver(kill) as receiver:
        one = add(world, receiver.url)
        [task] = end(world, 1)
        assert await anyio.to_thread.run_sync(killed, url, world.now_us, doomed) == -signal.SIGKILL
        server = Server(world)
        assert await server.run() == 0  # the claim of the dead one
        world.now_us += webhooks.CLAIM_US
        assert await server.run() == 1
        await server.context.close()

    first, again, last = receiver.got
    assert first.delivery == again.delivery
    assert first.body == again.body
    assert (again.message["task_id"], last.message["event"]) == (task, "job.ended")
    assert shown(world, one).waiting == 0


async def test_what_was_sent_before_a_server_stops_is_not_sent_again(world: World) -> None:
    reached = threading.Event()

    def answer(got: Got) -> int:
        if got.message["event"] == "job.ended":
            reached.set()
            threading.Event().wait(0.2)
        return 204

    with Receiver(answer) as receiver:
        one = add(world, receiver.url)
        end(world, 3)
        stopping = Server(world)
        async with anyio.create_task_group() as group:
            group.start_soon(stopping.sending.step)
            await anyio.to_thread.run_sync(reached.wait, 20)
            group.cancel_scope.cancel()
        await stopping.context.close()

        assert shown(world, one).waiting == 1
        server = Server(world)
        assert await server.run() == 1  # at once: the claim was given back
        await server.context.close()

    assert [m["event"] for m in receiver.messages] == ["task.ended"] * 3 + ["job.ended"] * 2


def message(number: int, event: str = "task.ended", job_id: int = 1) -> Message:
    return Message(number, str(number), event, job_id, 0, b"{}")


def test_pieces() -> None:
    few = [message(1), message(2), message(3, "job.ended")]
    assert [len(piece) for piece in pieces(few, failing=False)] == [1, 1, 1]
    assert [len(piece) for piece in pieces(few, failing=True)] == [3]
    many = [message(n) for n in range(30)] + [message(30, "job.ended"), message(31, job_id=2)]
    found = list(pieces(many, failing=False))
    assert [one.id for piece in found for one in piece] == list(range(32))
    assert [one.id for one in found[-1]] == [30, 31]
    assert list(pieces([], failing=False)) == []
