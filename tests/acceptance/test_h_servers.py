"""Two servers on one PostgreSQL: any of them does for any task, and either may die."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.acceptance.acts import eventually
from tests.acceptance.fleet import Fleet, Part, ended
from tests.postgres import PostgresServer

#: So long a restarted server or database may take before tasks start again.
_BACK_SECONDS = 5.0


@pytest.fixture(scope="module")
def shared(postgres_server: PostgresServer) -> Iterator[Fleet]:
    """Servers a and b; the node `far` is connected to b alone, and people ask a."""
    with postgres_server.fresh() as url, Fleet(url) as fleet:
        fleet.agent("far", fleet.servers[1])
        yield fleet


@pytest.fixture
def here(shared: Fleet) -> Part:
    return shared.servers[0]


@pytest.fixture
def fleet(fresh_postgres: Callable[[], str]) -> Iterator[Fleet]:
    with Fleet(fresh_postgres(), lease_seconds=6) as started:
        yield started


def running(fleet: Fleet, server: Part, *command: str) -> str:
    """A task that runs by now."""
    words = ("submit", "--cwd", "task", "--grace", "0.5", "--", *command)
    task = fleet.run(server, *words).stdout.strip()
    client = fleet.client(server)
    eventually(lambda: client.task_info(task).state.value, lambda state: state == "running")
    return task


def test_servers_are_listed_with_what_they_hold(shared: Fleet, here: Part) -> None:
    listed = json.loads(shared.run(here, "servers", "--json").stdout)

    assert {(one["url"], one["nodes"], one["answers"]) for one in listed} == {
        (shared.url(shared.servers[0]), 0, True),
        (shared.url(shared.servers[1]), 1, False),
    }
    status = shared.run(here, "status").stdout
    assert f"{shared.url(shared.servers[1])} (1 node)" in status


def test_run_at_one_server_reaches_a_node_of_the_other(shared: Fleet, here: Part) -> None:
    done = shared.run(here, "run", "--cwd", "task", "--", "sh", "-c", "cat; echo told >&2", input="typed\n")

    assert done.stdout == "typed\n"
    assert "told\n" in done.stderr


def test_output_of_a_running_task_is_read_at_the_other_server(shared: Fleet, here: Part) -> None:
    task = running(shared, here, "sh", "-c", "echo first; read -r line < /dev/null; sleep 60")
    eventually(lambda: shared.run(here, "logs", task).stdout, lambda text: text == "first\n")
    with ended(shared.popen(here, words=("logs", "-F", task))) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "first\n"
        shared.run(here, "cancel", task)
        assert following.wait(30) is not None
    info = shared.client(here).wait([shared.client(here).task(task)], timeout=30)[0].info
    assert info.state.value == "cancelled"


def test_cancel_signal_and_force_reach_the_other_servers_node(shared: Fleet, here: Part) -> None:
    trap = "trap 'echo heard; exit 3' USR1; echo ready; while :; do sleep 0.05; done"
    task = running(shared, here, "sh", "-c", trap)
    eventually(lambda: shared.run(here, "logs", task).stdout, lambda text: "ready" in text)
    shared.run(here, "cancel", "--signal", "USR1", task)
    client = shared.client(here)
    eventually(lambda: client.task_info(task).state.value, lambda state: state == "failed")
    assert client.task_info(task).exit_code == 3

    stubborn = running(shared, here, "sh", "-c", "trap '' TERM; echo $$; while :; do sleep 0.05; done")
    eventually(lambda: shared.run(here, "logs", stubborn).stdout)
    shared.run(here, "cancel", "--force", stubborn)
    assert client.task_info(stubborn).reason == "forced"
    eventually(lambda: client.nodes()[0].task_count, lambda count: count == 0)
    assert shared.run(here, "run", "--cwd", "task", "--", "echo", "free").stdout == "free\n"  # its one cpu


def test_u109_killing_one_of_two_servers_disturbs_nobody(fleet: Fleet) -> None:
    """Running tasks go on, their node connects to the other server, and who waits sees no error."""
    first, second = fleet.servers
    fleet.agent("n1", first, second, cpus=2)
    client = fleet.client(first, second)
    task = client.submit(["sh", "-c", "sleep 4; echo done"])
    eventually(lambda: client.task_info(task.id).state.value, lambda state: state == "running")
    with ended(
        fleet.popen(first, second, words=("run", "--cwd", "task", "--", "sh", "-c", "sleep 5; echo x"))
    ) as run:
        eventually(
            lambda: (
                len(fleet.client(second).nodes()[0:1])
                and fleet.client(second).summary().tasks["running"] >= 2
            )
        )

        first.kill()

        out, err = run.communicate(timeout=60)
        assert (run.returncode, out) == (0, "x\n"), err
    found = task.wait(timeout=60)
    assert (found.state, found.attempt) == ("succeeded", 1)
    assert client.submit(["true"]).wait(timeout=60).state == "succeeded"
    servers = eventually(lambda: fleet.client(second).servers(), lambda found: len(found) == 1)
    assert servers[0].nodes == 1


def test_a_server_that_is_stopped_hands_its_nodes_over(fleet: Fleet) -> None:
    first, second = fleet.servers
    fleet.agent("n1", first, second, cpus=2)
    client = fleet.client(first, second)
    tasks = [client.submit(["sleep", "2"]) for _ in range(2)]
    eventually(lambda: client.summary().tasks["running"], lambda count: count == 2)

    first.kill(15)

    assert [task.wait(timeout=60).attempt for task in tasks] == [1, 1]
    assert [one.nodes for one in fleet.client(second).servers()] == [1]


def test_u112_a_frozen_server_comes_back_and_changes_nothing(fleet: Fleet) -> None:
    """Its node has connected to the other server meanwhile, which has forgotten it."""
    first, second = fleet.servers
    fleet.agent("n1", first, second, cpus=2)
    client = fleet.client(second)
    task = client.submit(["sh", "-c", "sleep 12; echo done"])
    eventually(lambda: client.task_info(task.id).state.value, lambda state: state == "running")
    first.process.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: client.servers(), lambda found: [one.nodes for one in found] == [1])
        assert client.submit(["true"]).wait(timeout=60).state == "succeeded"
    finally:
        first.process.send_signal(signal.SIGCONT)

    eventually(lambda: client.servers(), lambda found: len(found) == 2)
    held = {one.url: one.nodes for one in client.servers()}
    assert held == {fleet.url(first): 0, fleet.url(second): 1}
    found = task.wait(timeout=60)
    assert (found.state, found.attempt) == ("succeeded", 1)
    assert client.doctor() == []


def test_u116_postgresql_crashes_and_nobody_sees_an_error() -> None:
    server = PostgresServer()
    try:
        with server.fresh() as url, Fleet(url) as fleet:
            first, second = fleet.servers
            fleet.agent("n1", first, cpus=2)
            client = fleet.client(first, second)
            slow = client.submit(["sleep", "3"])
            eventually(lambda: client.task_info(slow.id).state.value, lambda state: state == "running")
            with ended(fleet.popen(second, words=("wait", slow.id))) as waiting:
                server.crash()
                time.sleep(6)  # the outage itself: longer than a request waits for its connection
                server.restart()
                back = time.monotonic()

                found = client.submit(["true"]).wait(timeout=60)

                assert found.state == "succeeded"
                seconds = time.monotonic() - back
                assert waiting.wait(60) == 0
            assert (slow.wait(timeout=60).state, slow.attempt) == ("succeeded", 1)
            assert seconds < 2 * _BACK_SECONDS, "dispatch did not come back"
            assert client.doctor() == []
    finally:
        server.stop()
