"""Two servers on one store: what is asked of one works for a task whose node is connected to the other."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from websockets.exceptions import InvalidStatus

from geres.api.peers import HEADER, sign
from geres.model.ids import parse_task
from geres.server.clock import wall_us
from tests.api.world import Agent, AgentStream, Api, Client, Socket
from tests.postgres import PostgresServer


class Pair:
    """Servers `here` and `there`; agents connect there, people ask here.  Each test has a pool of its own."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path, url: str) -> None:
        self._stack, self.store_url, self.pool = stack, url, "default"
        self.here = stack.enter_context(Api(folder / "here", store=url))
        self.there = stack.enter_context(Api(folder / "there", store=url))
        until_both_are_known(self.here, self.there)

    def agent(self, **facts: Any) -> Agent:
        found = Agent(self.there, f"{self.pool}-n", pool=self.pool, **facts)
        self._stack.callback(found.close)
        return found

    def attach(self, task: str, query: str = "") -> Client:
        found = Client(self.here, task, query)
        self._stack.callback(found.close)
        return found

    def running(self, node: Agent) -> str:
        """A task that the node has started."""
        task = self.here.submit("cat", pool=self.pool)
        node.take()
        node.start(task)
        self.here.wait(task, "running")
        return task

    def act(self, action: str, task: str, **more: Any) -> None:
        [done] = self.here.post(f"/v1/tasks:{action}", {"ids": [task], **more})["items"]
        assert "code" not in done, done


def until_both_are_known(*apis: Api) -> None:
    for api in apis:
        while len(api.get("/v1/servers")) < len(apis):
            threading.Event().wait(0.01)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer) -> Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(postgres_server.fresh())
        yield Pair(stack, tmp_path_factory.mktemp("servers"), url)


@pytest.fixture
def pair(servers: Pair) -> Iterator[Pair]:
    with contextlib.ExitStack() as servers._stack:
        servers.pool = f"p{next(_numbers)}"
        yield servers


_numbers = itertools.count(1)


def test_servers_know_each_other_and_who_holds_which_nodes(pair: Pair) -> None:
    pair.agent()

    shown = {one["url"]: one for one in pair.here.get("/v1/servers")}
    assert {url: one["answers"] for url, one in shown.items()} == {pair.here.url: True, pair.there.url: False}
    assert shown[pair.there.url]["nodes"] >= 1


def test_a_task_submitted_here_runs_there_and_its_end_is_heard_here(pair: Pair) -> None:
    node = pair.agent()
    task = pair.here.submit("true", pool=pair.pool)
    node.take()
    answers: list[Any] = []

    def wait() -> None:
        answers.append(pair.here.get(f"/v1/tasks/{task}", wait_seconds=30))

    waiting = threading.Thread(target=wait)
    waiting.start()
    node.start(task)
    node.end(task)
    waiting.join(20)

    assert answers[0]["state"] == "succeeded"


def test_output_and_input_go_through_the_server_that_holds_the_node(pair: Pair) -> None:
    node = pair.agent()
    task = pair.running(node)
    client = pair.attach(task, "?stdin=1")
    stream = node.stream()

    stream.write("o", b"one\n")
    assert client.until("o")[-1] == ["o", b"one\n"]
    client.write("i", b"typed")
    client.write("eof")
    assert [stream.read(), stream.read()] == [["i", b"typed"], ["eof"]]
    stream.write("e", b"two\n")
    assert client.read() == ["e", b"two\n"]
    stream.write("end", {})
    node.end(task, stdout=b"one\n", stdout_bytes=4, stderr=b"two\n", stderr_bytes=4)

    rest = client.until("end")
    assert [frame for frame in rest if frame[0] in "oe"] == [], "kept output came twice"
    assert rest[-1][1]["state"] == "succeeded"


@pytest.mark.parametrize("asked", ["here", "there"])
def test_an_agent_that_a_balancer_leads_elsewhere_is_passed_on(pair: Pair, asked: str) -> None:
    """Its stream is waited for at the server that holds it; a balancer knows nothing of that."""
    node = pair.agent()
    task = pair.running(node)
    client = Client(getattr(pair, asked), task, "?stdin=1")
    node.until(lambda: node.streams)
    stream = AgentStream(pair.here.socket(node.streams[0].path, token=pair.here.agent_token), node.streams[0])

    stream.write("o", b"one\n")
    assert client.until("o")[-1] == ["o", b"one\n"]
    client.write("i", b"typed")
    assert stream.read() == ["i", b"typed"]
    client.close()
    with pytest.raises(Exception, match=r"closed|received 1000"):
        stream.read()


def test_a_client_that_goes_ends_the_stream_at_the_agent(pair: Pair) -> None:
    node = pair.agent()
    client = pair.attach(pair.running(node))
    stream = node.stream()
    stream.write("o", b"one\n")
    client.until("o")

    client.close()

    with pytest.raises(Exception, match=r"closed|received 1000"):
        stream.read()


def test_what_a_running_task_wrote_so_far_is_read_through_the_other_server(pair: Pair) -> None:
    node = pair.agent()
    task = pair.running(node)
    answers: list[bytes] = []

    def read() -> None:
        answers.append(pair.here.call("GET", f"/v1/tasks/{task}/logs").body)

    reading = threading.Thread(target=read)
    reading.start()
    stream = node.stream()
    stream.write("present")
    stream.write("o", b"so far\n")
    stream.write("end", {})
    reading.join(20)

    assert answers == [b"so far\n"]


def test_a_large_output_is_read_where_it_does_not_lie(pair: Pair) -> None:
    """The agent has uploaded it to its own server, whose folder no other server has."""
    node = pair.agent()
    task = pair.running(node)
    written = b"".join(b"line %d\n" % number for number in range(300_000))
    path = f"/v1/agents/outputs/{parse_task(task)}/1/stdout"
    blob = pair.there.call("PUT", path, written, token=pair.there.agent_token).good["blob"]
    node.end(task, stdout=written[-100:], stdout_bytes=len(written), stdout_blob=blob)

    for api in (pair.here, pair.there):
        assert api.call("GET", f"/v1/tasks/{task}/logs").body == written
        assert api.call("GET", f"/v1/tasks/{task}/logs", tail=2).body == b"line 299998\nline 299999\n"
        assert api.call("GET", f"/v1/tasks/{task}/logs", offset=len(written) - 5).body == written[-5:]
    assert not (pair.here.home / "blobs" / blob).exists()


def test_a_blob_that_lies_nowhere_is_not_found(pair: Pair) -> None:
    node = pair.agent()
    task = pair.running(node)
    path = f"/v1/agents/outputs/{parse_task(task)}/1/stdout"
    blob = pair.there.call("PUT", path, b"x" * 100_000, token=pair.there.agent_token).good["blob"]
    node.end(task, stdout_bytes=100_000, stdout_blob=blob)
    (pair.there.home / "blobs" / blob).unlink()

    assert pair.here.call("GET", f"/v1/tasks/{task}/logs").status == 404


def test_only_servers_may_read_blobs_of_each_other(pair: Pair) -> None:
    refused = pair.there.call("GET", "/v1/peers/blobs", key="outputs/1/0/1.1.stdout")

    assert refused.status == 401


@pytest.mark.parametrize(
    ("action", "more", "asked"),
    [
        ("cancel", {}, ("cancel", 0)),
        ("cancel", {"signal": "USR1"}, ("signal", 10)),
        ("cancel", {"force": True}, ("cancel", 0)),
    ],
)
def test_what_is_asked_here_is_told_there(
    pair: Pair, action: str, more: dict[str, Any], asked: tuple[str, int]
) -> None:
    node = pair.agent()
    task = pair.running(node)

    pair.act(action, task, **more)

    node.until(lambda: node.asked)
    assert (node.asked[0].action, node.asked[0].signal) == asked
    assert node.asked[0].task == parse_task(task)


def test_a_forced_end_is_repeated_until_the_node_has_done_it(pair: Pair) -> None:
    """Also to a node that was away when it was asked: the store remembers."""
    node = pair.agent()
    task = pair.running(node)
    pair.act("cancel", task, force=True)
    node.until(lambda: len(node.asked) >= 2)
    assert pair.here.get(f"/v1/tasks/{task}")["state"] == "cancelled"

    node.end(task, outcome="failed", reason="signal", signal=9)

    with psycopg.connect(pair.store_url) as looking:
        found = looking.execute("SELECT count(*) FROM kill WHERE task_id = %s", [parse_task(task)])
        assert found.fetchone() == (0,)
    assert pair.here.get(f"/v1/tasks/{task}")["state"] == "cancelled"


def test_why_knows_the_nodes_of_the_other_server(pair: Pair) -> None:
    node = pair.agent()
    pair.running(node)
    large = pair.here.submit("true", pool=pair.pool, cpus=4)
    never = pair.here.submit("true", pool=pair.pool, cpus=64)

    def says(task: str, *words: str) -> bool:
        told = str(pair.here.get(f"/v1/tasks/{task}/why"))
        return all(word in told for word in words)

    until = time.monotonic() + 20
    while not (says(large, node.name, "3 are free") and says(never, node.name, "the node has 4")):
        assert time.monotonic() < until, pair.here.get(f"/v1/tasks/{large}/why")
        time.sleep(0.05)


def test_a_hold_recalls_what_the_other_servers_node_has_not_started(pair: Pair) -> None:
    node = pair.agent()
    task = pair.here.submit("true", pool=pair.pool)
    node.take()

    pair.act("hold", task)

    node.until(lambda: node.asked)
    assert node.asked[0].action == "recall"
    node.end(task, outcome="given_back", exit_code=None)
    pair.here.wait(task, "held")


def test_a_job_that_is_disabled_here_stops_its_tasks_there(pair: Pair) -> None:
    node = pair.agent()
    job = pair.here.post("/v1/jobs", {"name": "sweep"})["id"]
    plain = {"command": ["true"], "pool": pair.pool}
    task = pair.here.submit("true", pool=pair.pool)
    other = pair.here.post("/v1/tasks", {"task": plain, "job": job})["task"]["id"]
    node.take(2)
    node.start(task, other)
    pair.here.wait(other, "running")

    pair.here.post(f"/v1/jobs/{job}/disable", {"running": "requeue"})

    node.until(lambda: node.asked)
    assert {one.task for one in node.asked} == {parse_task(other)}


def test_a_job_that_is_edited_here_has_its_new_facts_there(pair: Pair) -> None:
    node = pair.agent()
    job = pair.here.post("/v1/jobs", {"name": "before", "meta": {"colour": "red"}})["id"]
    plain = {"command": ["true"], "pool": pair.pool}
    pair.here.post("/v1/tasks", {"task": plain, "job": job})
    node.take()
    patched = pair.here.call("PATCH", f"/v1/jobs/{job}", {"meta": {"colour": "blue"}})
    assert patched.status == 200
    frames: list[Any] = []
    pair.here.post("/v1/tasks", {"task": plain | {"env": {"A": "1"}}, "job": job})

    def specs() -> bool:
        frame = node._read(10)
        frames.extend(frame.specs)
        return any(one.job_meta == {"colour": "blue"} for one in frames)

    while not specs():
        pass


def test_a_node_that_connects_to_the_other_server_keeps_its_tasks_and_its_followers(pair: Pair) -> None:
    node = pair.agent()
    task = pair.running(node)
    client = pair.attach(task)
    first = node.stream()
    first.write("o", b"one\n")
    client.until("o")

    moved = Agent(
        pair.here,
        node.name,
        pool=pair.pool,
        attempts=[(parse_task(task), 1)],
        running=[(parse_task(task), 1)],
    )
    first.close()
    while client.read() != ["lost"]:  # and a client attaches again by itself
        pass
    again = pair.attach(task, "?out=4")
    stream = moved.stream()
    assert "out=4" in stream.asked.path
    stream.write("o", b"two\n")
    assert again.until("o")[-1] == ["o", b"two\n"]

    node.until(lambda: node.refused)
    moved.assigned = node.assigned
    moved.end(task)
    assert again.until("end")[-1][1]["state"] == "succeeded"
    moved.close()


@pytest.mark.parametrize("signature", ["", "x", "1.abc", "1.\xe9", "own", "old", "other path"])
def test_only_servers_may_ask_a_server_for_streams(pair: Pair, signature: str) -> None:
    node = pair.agent()
    task = pair.running(node)
    target = f"/v1/peers/streams/{parse_task(task)}/1?from=begin&out=0&err=0&stdin=0"
    with psycopg.connect(pair.store_url) as looking:
        secrets = dict(looking.execute("SELECT url, secret FROM server").fetchall())
    theirs = secrets[pair.there.url]
    signature = {
        "own": sign(secrets[pair.here.url], target, wall_us()),
        "old": sign(theirs, target, wall_us() - 3600 * 1_000_000),
        "other path": sign(theirs, target + "1", wall_us()),
    }.get(signature, signature)

    with pytest.raises(InvalidStatus) as refused:
        Socket(f"ws://127.0.0.1:{pair.there.port}{target}", pair.there.token, headers={HEADER: signature})

    assert refused.value.response.status_code == 401


def test_without_notify_all_is_done_all_the_same(tmp_path: Path, postgres_server: PostgresServer) -> None:
    """As an account that may not notify: whatever the others do is found by asking the store again."""
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(postgres_server.fresh())
        with psycopg.connect(url, autocommit=True) as admin:
            name = f"quiet_{admin.info.dbname}"
            admin.execute(f"CREATE ROLE {name} LOGIN")
            stack.callback(postgres_server.run, f"DROP ROLE {name}")
            stack.callback(_own_nothing, url, name)
            admin.execute(f"GRANT ALL ON SCHEMA public TO {name}")
            admin.execute("REVOKE EXECUTE ON FUNCTION pg_notify(text, text) FROM PUBLIC")
        pair = Pair(stack, tmp_path, url.replace("postgres@", f"{name}@"))
        node = pair.agent()
        task = pair.running(node)
        pair.act("cancel", task)
        node.until(lambda: node.asked)
        node.end(task, outcome="failed", reason="signal", signal=15)
        assert pair.here.get(f"/v1/tasks/{task}", wait_seconds=30)["state"] == "cancelled"


def _own_nothing(url: str, name: str) -> None:
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"DROP OWNED BY {name} CASCADE")
