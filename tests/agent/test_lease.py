"""A node that has lost contact: what must never run twice is stopped in time, by the supervisor alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from geres.agent import lease
from geres.agent.lease import Lease
from tests.agent.world import Agent, Server, until

TASK = 1 << 32


def test_a_lease_ends_with_a_margin_for_the_killing() -> None:
    assert lease.until(100.0, 15.0) == 113.0
    assert lease.until(100.0, 3.0) == pytest.approx(102.4)
    held = Lease()
    assert not held.has_ended
    assert held.ends_at(5.0) is None
    held.renew(lease.clock() + 60)
    assert not held.has_ended
    assert held.ends_at(5.0) == pytest.approx(65.0, abs=1.0)
    held.renew(lease.clock() - 0.001)
    assert held.has_ended
    assert held.ends_at(5.0) is None


async def run_one_of_each(server: Server) -> None:
    """Task 1 runs on, task 2 stops, task 3 is kept."""
    for number, mode in enumerate(("run", "stop", "keep"), 1):
        await server.assign(server.spec("sleep", "983", on_disconnect=mode), number)
        await server.start_of(number)


async def test_what_is_to_stop_is_killed_before_the_lease_ends_and_reported_when_there_is_contact(
    server: Server, agent: Agent
) -> None:
    await run_one_of_each(server)
    await server.until(lambda: len(server.heartbeats) > 2)
    assert len(agent.supervisor()["running"]) == 3, "with contact all go on"

    server.answers_heartbeats = False
    lost_contact = time.monotonic()
    until(lambda: len(agent.supervisor()["running"]) == 2)

    assert time.monotonic() - lost_contact < server.lease_seconds, "not only when the lease was over"
    await server.connected(2)  # the agent comes back by itself, after two leases without an answer
    end = await server.end_of(2)
    assert (end.outcome, end.reason) == ("failed", "node_lost")
    assert [tuple(key) for key in server.peer.hello.running] == [(TASK + 1, 1), (TASK + 3, 1)]


async def test_the_supervisor_stops_it_although_the_agent_is_dead(server: Server, agent: Agent) -> None:
    await run_one_of_each(server)
    [leader] = [entry[2] for entry in agent.supervisor()["running"] if entry[0] == TASK + 2]

    agent.kill()

    until(lambda: not psutil.pid_exists(leader))
    assert {entry[0] for entry in agent.supervisor()["running"]} == {TASK + 1, TASK + 3}


async def test_what_was_to_start_before_the_lease_ended_does_not_start_after_it(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    server.answers_heartbeats = False
    await server.peer.close()
    await server.connected(2)
    supervisor = agent.supervisor()["pid"]
    os.kill(supervisor, signal.SIGSTOP)
    await server.assign(server.spec("touch", str(mark), on_disconnect="stop"), 1)
    over = time.monotonic() + server.lease_seconds
    until(lambda: time.monotonic() > over)
    server.lets_in = False  # a new connection would be a new lease
    os.kill(supervisor, signal.SIGCONT)
    until(lambda: agent.supervisor()["ended"])
    server.lets_in = True

    assert (await server.end_of(1)).outcome == "given_back"
    assert not mark.exists()


async def test_what_comes_after_a_silence_waits_for_the_next_heartbeat_and_is_not_sent_to_and_fro(
    server: Server, agent: Agent
) -> None:
    server.answers_heartbeats = False
    spec = server.spec("true", on_disconnect="stop")
    over = time.monotonic() + server.lease_seconds
    await server.until(lambda: time.monotonic() > over)
    server.answers_heartbeats = True

    await server.assign(spec, 1)

    assert (await server.end_of(1)).outcome == "succeeded"
    assert len(server.peers) == 1


async def test_what_the_node_says_is_for_tasks_that_say_nothing(
    server: Server, make_agent: Callable[..., Agent]
) -> None:
    agent = make_agent("--on-disconnect", "stop")
    assert (await server.connected()).hello.on_disconnect == "stop"
    await server.assign(server.spec("sleep", "982"), 1)
    await server.assign(server.spec("sleep", "982", on_disconnect="run"), 2)
    await server.start_of(2)

    agent.kill()

    until(lambda: {entry[0] for entry in agent.supervisor()["running"]} == {TASK + 2})


async def test_without_its_supervisor_a_node_lets_its_lease_end(server: Server, agent: Agent) -> None:
    await server.run(1, "true")
    supervisor = agent.supervisor()["pid"]
    os.kill(supervisor, signal.SIGSTOP)
    try:
        count = len(server.heartbeats)
        most = count + server.lease_seconds / server.heartbeat_seconds + 2
        await server.until(lambda: not server.peer.open)
        assert len(server.heartbeats) <= most
        assert len(server.peers) == 1, "nor does it connect again: it could do nothing"
    finally:
        os.kill(supervisor, signal.SIGCONT)

    await server.connected(2)
    assert (await server.run(2, "true")).outcome == "succeeded"
