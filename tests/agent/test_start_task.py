"""The start task of a pool: once a boot and version, before the node takes tasks, ended with its agent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import psutil

from geres.agent import start_task
from geres.model.wire import StartOrder, StartReport
from tests.agent.world import Agent, Server, until


def order(line: str, **how: object) -> StartOrder:
    return StartOrder(line, ["/bin/sh", "-c", line], **{"retries": 0, **how})


def shared(agent: Agent) -> Path:
    return agent.home / "agent" / "shared"


def output(agent: Agent) -> str:
    return (agent.home / "logs" / "start-task.log").read_text()


async def report(server: Server, state: str, since: int = 0) -> StartReport:
    """The first report of this state behind the first `since` ones."""
    found = await server.until(lambda: [one for one in server.starts[since:] if one.state == state])
    return found[0]


async def again(server: Server) -> None:
    """Have the agent connect again."""
    count = len(server.peers)
    await server.peer.close()
    await server.connected(count + 1)


def starts_of(agent: Agent) -> int:
    return output(agent).count(" try 1 of ")


def pids(path: Path) -> list[int]:
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_nothing_is_started_before_it_succeeded(
    server: Server, make_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    server.start_task = order(f"until [ -e {tmp_path}/go ]; do sleep 0.02; done; touch x; echo all is well")
    agent = make_agent()
    await report(server, "running")
    assert (await server.run(1, "true")).outcome == "given_back"

    (tmp_path / "go").touch()
    assert (await report(server, "done")).tail == "all is well\n"
    assert (await server.run(2, "sh", "-c", "ls $GERES_NODE_SHARED_DIR")).stdout == b"x\n"
    assert "all is well" in output(agent)
    assert (shared(agent) / "x").stat().st_mode & 0o777 == 0o644


async def test_another_agent_on_the_same_boot_does_not_run_it_again_and_one_after_a_boot_does(
    server: Server, make_agent: Callable[..., Agent]
) -> None:
    server.start_task = order("echo hello")
    agent = make_agent()
    await report(server, "done")
    await again(server)
    agent.kill()
    agent.start()
    await server.connected(3)
    assert server.peer.hello.start is not None
    assert (server.peer.hello.start.digest, server.peer.hello.start.state) == ("echo hello", "done")
    assert (await server.run(1, "true")).outcome == "succeeded"
    assert starts_of(agent) == 1

    agent.kill()
    path = agent.home / "agent" / "start-task.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"boot_id": "an earlier one"}))
    told = len(server.starts)
    agent.start()
    await server.connected(4)
    assert server.peer.hello.start == StartReport()
    await report(server, "done", told)
    assert starts_of(agent) == 2


async def test_it_is_tried_again_and_then_given_up_with_its_last_words(
    server: Server, make_agent: Callable[..., Agent]
) -> None:
    server.start_task = order("echo try $GERES_START_TRY $A; exit 3", retries=1, env={"A": "b c"})
    agent = make_agent()
    failed = await report(server, "failed")
    assert (failed.why, failed.tail) == ("exit 3, after 2 tries", "try 2 b c\n")
    assert "try 1 b c" in output(agent)
    assert (await server.run(1, "true")).outcome == "given_back"

    await again(server)  # a connection is no reason to try again, an agent that was started again is
    assert server.peer.hello.start == failed
    told = len(server.starts)
    agent.kill()
    agent.start()
    await report(server, "failed", told)
    assert starts_of(agent) == 2


async def test_what_cannot_be_started_is_said(server: Server, make_agent: Callable[..., Agent]) -> None:
    server.start_task = StartOrder("1", ["/no/such/program"])
    make_agent()
    assert (await report(server, "failed")).why == "there is no program '/no/such/program' on the node"


async def test_one_over_its_time_limit_is_ended_with_all_that_it_started(
    server: Server, make_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    begin = f"sleep 100 & echo $! > {tmp_path}/pid; setsid sleep 100 & echo $! >> {tmp_path}/pid"
    server.start_task = order(f"{begin}; wait", time_limit_seconds=4)
    make_agent()
    assert (await report(server, "failed")).why == "it was over its time limit of 4.00s"
    assert len(pids(tmp_path / "pid")) == 2
    until(lambda: all(map(is_gone, pids(tmp_path / "pid"))))


async def test_what_it_leaves_in_the_background_goes_on_and_does_not_hold_it_up(
    server: Server, make_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    server.start_task = order(f"sleep 100 & echo $! > {tmp_path}/pid")
    make_agent()
    await report(server, "done")
    (pid,) = pids(tmp_path / "pid")
    assert not is_gone(pid)
    psutil.Process(pid).kill()


async def test_a_changed_one_runs_at_the_next_connection_and_leaves_tasks_alone(
    server: Server, make_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    server.start_task = order("echo one")
    agent = make_agent()
    await report(server, "done")
    await server.assign(server.spec("sh", "-c", f"until [ -e {tmp_path}/go ]; do sleep 0.02; done"), 1)
    await server.start_of(1)
    server.start_task = order("echo two; exit 1")
    await again(server)
    await report(server, "failed")
    assert "two" in output(agent)
    (tmp_path / "go").touch()
    assert (await server.end_of(1)).outcome == "succeeded"


async def test_an_agent_ends_what_one_that_was_killed_left_and_begins_anew(
    server: Server, make_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    line = f"setsid sleep 100 & echo $! $$ >> {tmp_path}/pid; [ -e {tmp_path}/go ] || wait"
    server.start_task = order(line)
    agent = make_agent()
    first = await server.until(lambda: len(pids(tmp_path / "pid")) == 2 and pids(tmp_path / "pid"))
    agent.kill()
    assert not any(map(is_gone, first))
    (tmp_path / "go").touch()
    agent.start()
    await report(server, "done")
    assert all(map(is_gone, first))
    assert starts_of(agent) == 2
    psutil.Process(pids(tmp_path / "pid")[2]).kill()


async def test_it_ends_with_its_agent_and_where_there_is_none_any_more(
    server: Server, make_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    server.start_task = order(f"echo $$ >> {tmp_path}/pid; sleep 100")
    agent = make_agent()
    await server.until(lambda: pids(tmp_path / "pid"))
    assert await asyncio.to_thread(agent.terminate) == 0
    assert all(map(is_gone, pids(tmp_path / "pid")))

    agent.start()
    await server.until(lambda: len(pids(tmp_path / "pid")) == 2)
    server.start_task = None
    await again(server)
    assert (await server.run(1, "true")).outcome == "succeeded"
    until(lambda: all(map(is_gone, pids(tmp_path / "pid"))))


def test_its_output_is_kept_in_two_files_of_bounded_size(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(start_task, "_MOST_LOG_BYTES", 1000)
    log = start_task._Log(tmp_path / "logs" / "start-task.log")
    for number in range(1000):
        log.write(f"line {number}\n".encode())
    texts = [path.read_text() for path in sorted((tmp_path / "logs").iterdir())]
    assert len(texts) == 2
    assert all(len(text) < 1100 for text in texts)
    assert "line 999\n" in "".join(texts)
