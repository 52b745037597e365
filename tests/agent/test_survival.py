"""Agents and supervisors die; tasks and their outputs do not get lost, and nothing runs twice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from geres.agent import journal
from geres.model.wire import Frame
from tests.agent.world import Agent, Server, until

TASK = 1 << 32


async def test_tasks_outlive_their_agent_and_the_next_one_takes_them_over(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    marks, go = tmp_path / "marks", tmp_path / "go"
    line = f"echo begin; echo x >> {marks}; while [ ! -e {go} ]; do sleep 0.02; done; echo end"
    await server.assign(server.spec(shell=line), 1)
    await server.start_of(1)

    agent.kill()
    agent.start()
    peer = await server.connected(2)

    assert peer.hello.attempts == [[TASK + 1, 1]] or peer.hello.attempts == [(TASK + 1, 1)]
    assert [tuple(key) for key in peer.hello.running] == [(TASK + 1, 1)]
    go.touch()
    end = await server.end_of(1)
    assert (end.outcome, end.stdout) == ("succeeded", b"begin\nend\n")
    assert marks.read_text() == "x\n", "it ran once"


async def test_the_gpus_of_attempts_are_known_on_the_next_connection_and_to_the_next_agent(
    server: Server, agent: Agent
) -> None:
    await server.assign(server.spec("sleep", "60"), 1, gpu_ids=[0, 3])
    await server.assign(server.spec("sleep", "60"), 2)
    await server.assign(server.spec("true"), 3, gpu_ids=[1])
    await server.start_of(1)
    await server.end_of(3)

    await server.peer.close()
    assert (await server.connected(2)).hello.gpu_ids == [(TASK + 1, 1, [0, 3])]
    agent.kill()
    agent.start()
    assert (await server.connected(3)).hello.gpu_ids == [(TASK + 1, 1, [0, 3])]


async def test_an_end_while_no_agent_lives_is_reported_by_the_next_one(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    await server.assign(server.spec(shell=f"while [ ! -e {go} ]; do sleep 0.02; done; echo late"), 1)
    await server.start_of(1)

    agent.kill()
    go.touch()
    until(lambda: agent.supervisor()["ended"])
    agent.start()

    assert (await server.end_of(1)).stdout == b"late\n"
    await server.until(lambda: not agent.supervisor()["ended"])


async def test_an_end_is_repeated_on_the_next_connection_until_it_is_acknowledged(
    server: Server, agent: Agent
) -> None:
    server.acknowledges = False
    await server.run(1, "echo", "once")
    await server.until(lambda: server.end_count[TASK + 1, 1] == 1)

    server.acknowledges = True
    await server.peer.close()
    peer = await server.connected(2)

    assert [tuple(key) for key in peer.hello.attempts] == [(TASK + 1, 1)]
    await server.until(lambda: server.end_count[TASK + 1, 1] == 2)
    await server.until(lambda: not agent.supervisor()["ended"])


async def test_a_start_is_repeated_on_the_next_connection_and_by_the_next_agent(
    server: Server, agent: Agent
) -> None:
    await server.assign(server.spec("sleep", "60"), 1)
    await server.start_of(1)
    [started_us] = server.started.values()

    server.started.clear()
    await server.peer.close()
    await server.start_of(1)
    assert server.started == {(TASK + 1, 1): started_us}

    server.started.clear()
    agent.kill()
    agent.start()
    await server.start_of(1)
    assert server.started == {(TASK + 1, 1): started_us}


async def test_an_attempt_that_is_sent_again_does_not_start_again(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    marks, go = tmp_path / "marks", tmp_path / "go"
    spec = server.spec(shell=f"echo x >> {marks}; while [ ! -e {go} ]; do sleep 0.02; done")
    await server.assign(spec, 1)
    await server.start_of(1)

    await server.assign(spec, 1)
    agent.kill()
    agent.start()
    await server.connected(2)
    await server.assign(spec, 1)
    assert (await server.run(2, "true")).outcome == "succeeded"
    go.touch()

    await server.end_of(1)
    assert marks.read_text() == "x\n"


async def test_when_the_supervisor_dies_its_tasks_are_killed_and_reported_lost(
    server: Server, agent: Agent
) -> None:
    daemon = "setsid sleep 987 & echo $!; sleep 986"
    await server.assign(server.spec("sh", "-c", daemon), 1)
    await server.start_of(1)
    first = agent.supervisor()
    [(_, _, leader, *_)] = first["running"]
    family = until(lambda: [p for p in psutil.Process(leader).children() if "987" in p.cmdline()])

    os.kill(first["pid"], signal.SIGKILL)
    end = await server.end_of(1)

    assert (end.outcome, end.reason) == ("failed", "supervisor_lost")
    until(lambda: not psutil.pid_exists(leader))
    until(lambda: not any(process.is_running() for process in family))
    assert agent.supervisor()["pid"] != first["pid"]
    assert (await server.run(2, "true")).outcome == "succeeded", "the next supervisor works"
    assert len(server.peers) == 1, "the agent kept its connection"


async def test_ends_that_nobody_acknowledged_survive_the_supervisor(server: Server, agent: Agent) -> None:
    server.acknowledges = False
    await server.run(1, "echo", "precious")
    agent.kill()
    os.kill(agent.supervisor()["pid"], signal.SIGKILL)
    server.ended.clear()

    agent.start()

    assert (await server.end_of(1)).stdout == b"precious\n"


async def test_an_end_whose_output_is_being_uploaded_survives_the_supervisor(
    server: Server, agent: Agent
) -> None:
    server.refuses_uploads = True
    await server.assign(server.spec("seq", "10000"), 1)
    await server.until(lambda: agent.supervisor()["ended"])
    first = agent.supervisor()["pid"]
    os.kill(first, signal.SIGKILL)
    await server.until(lambda: agent.supervisor().get("pid", first) != first)
    await server.run(2, "true")  # the agent has the list of the next supervisor

    server.refuses_uploads = False

    assert (await server.end_of(1)).outcome == "succeeded"


async def test_after_a_reboot_what_ran_is_reported_so(
    server: Server, make_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    folder = tmp_path / "home" / "agent"
    folder.mkdir(parents=True)
    book = journal.Journal(str(folder / "journal"), "another-boot")
    book.rewrite([(TASK + 1, 1)], [(TASK + 2, 3, os.getpid(), time.time_ns() // 1000)], [])

    make_agent()

    assert (await server.end_of(1)).reason == "node_rebooted"
    assert (await server.end_of(2, attempt=3)).reason == "node_rebooted"


async def test_attempts_that_the_server_does_not_know_are_killed_without_a_word(
    server: Server, agent: Agent
) -> None:
    await server.assign(server.spec("sleep", "985"), 1)
    await server.start_of(1)

    await server.peer.send(Frame(kill=[(TASK + 1, 1)]))

    await server.until(lambda: not agent.supervisor()["running"])
    assert not server.ended
    assert not agent.supervisor()["ended"]


async def test_an_agent_that_drains_takes_nothing_more_and_leaves_when_its_tasks_have_ended(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    spec = server.spec(shell=f"while [ ! -e {go} ]; do sleep 0.02; done")
    await server.assign(spec, 1)
    await server.start_of(1)

    assert agent.process is not None
    agent.process.send_signal(signal.SIGTERM)
    await server.until(lambda: server.drained)
    await server.assign(server.spec("true"), 2)

    assert (await server.end_of(2)).outcome == "given_back"
    go.touch()
    assert (await server.end_of(1)).outcome == "succeeded"
    assert agent.process.wait(10) == 0
    until(lambda: not agent.supervisor())


async def test_a_second_signal_stops_the_agent_and_leaves_tasks_to_the_supervisor(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    await server.assign(server.spec(shell=f"while [ ! -e {go} ]; do sleep 0.02; done; echo on"), 1)
    await server.start_of(1)

    assert agent.process is not None
    agent.process.send_signal(signal.SIGTERM)
    await server.until(lambda: server.drained)
    agent.process.send_signal(signal.SIGTERM)
    assert agent.process.wait(10) == 0
    agent.start()
    await server.connected(2)
    go.touch()

    assert (await server.end_of(1)).stdout == b"on\n"


async def test_an_agent_told_to_stop_its_tasks_ends_them_reports_them_and_leaves_nothing(
    server: Server, make_agent: Callable[..., Agent]
) -> None:
    agent = make_agent("--stop-tasks", GERES_AGENT__DRAIN_SECONDS="0.1")
    await server.connected()
    await server.assign(server.spec("sh", "-c", "trap '' TERM; sleep 984 & sleep 984; sleep 984"), 1)
    await server.start_of(1)
    [(_, _, leader, *_)] = agent.supervisor()["running"]

    assert agent.process is not None
    agent.process.send_signal(signal.SIGTERM)
    await server.until(lambda: server.drained)
    agent.process.send_signal(signal.SIGTERM)

    end = await server.end_of(1)
    assert (end.outcome, end.reason) == ("failed", "node_stopped")
    assert agent.process.wait(10) == 0
    until(lambda: not psutil.pid_exists(leader))
    until(lambda: not agent.supervisor())


async def test_a_second_agent_on_the_same_home_is_refused_in_words(
    server: Server, agent: Agent, make_agent: Callable[..., Agent]
) -> None:
    second = make_agent()

    assert second.process is not None
    assert second.process.wait(20) == 2
    assert f"process {agent.pid}" in second.log
