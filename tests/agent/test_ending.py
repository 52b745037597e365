"""Attempts are ended: asked to, over a limit, or with processes that would stay behind."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from geres.agent.cgroups import MemoryGroups
from tests.agent.world import Agent, Server, processes_with, until
from tests.conftest import missing


async def test_a_cancelled_task_hears_term_and_may_clean_up(server: Server, agent: Agent) -> None:
    await server.assign(
        server.spec(shell="trap 'echo bye; exit 0' TERM; echo on; while :; do sleep 0.02; done"), 1
    )
    await server.start_of(1)
    until(lambda: psutil.Process(agent.supervisor()["running"][0][2]).children())

    await server.ask(1, "cancel", why="not needed")
    end = await server.end_of(1)

    assert (end.outcome, end.reason, end.message) == ("cancelled", "requested", "not needed")
    assert end.stdout == b"on\nbye\n"


async def test_a_task_that_ignores_term_is_killed_after_its_grace(server: Server, agent: Agent) -> None:
    spec = server.spec(shell="trap '' TERM; echo on; while :; do sleep 0.02; done", grace_seconds=0.3)
    await server.assign(spec, 1)
    await server.start_of(1)
    until(lambda: psutil.Process(agent.supervisor()["running"][0][2]).children())

    began = time.monotonic()
    await server.ask(1, "cancel")
    end = await server.end_of(1)

    assert (end.outcome, end.signal) == ("cancelled", signal.SIGKILL)
    assert 0.3 <= time.monotonic() - began < 5


async def test_a_task_over_its_time_limit_times_out(server: Server, agent: Agent) -> None:
    end = await server.run(1, "sleep", "60", time_limit_seconds=0.3)

    assert (end.outcome, end.reason, end.signal) == ("failed", "timeout", signal.SIGTERM)
    assert "0.3 s" in (end.message or "")
    assert (await server.run(2, "true", time_limit_seconds=0.3)).outcome == "succeeded"


async def test_a_suspended_task_stands_still_until_it_is_resumed_and_can_be_cancelled(
    server: Server, agent: Agent
) -> None:
    await server.assign(server.spec("sleep", "60"), 1)
    await server.start_of(1)
    leader = psutil.Process(agent.supervisor()["running"][0][2])

    await server.ask(1, "suspend")
    until(lambda: leader.status() == psutil.STATUS_STOPPED)
    await server.ask(1, "resume")
    until(lambda: leader.status() != psutil.STATUS_STOPPED)
    await server.ask(1, "suspend")
    until(lambda: leader.status() == psutil.STATUS_STOPPED)
    await server.ask(1, "cancel")

    assert (await server.end_of(1)).outcome == "cancelled"
    assert [action for _, _, action in server.asked] == ["suspend", "resume", "suspend"]


async def test_a_signal_reaches_the_whole_group(server: Server, agent: Agent) -> None:
    await server.assign(
        server.spec(shell="trap 'echo heard; exit 0' USR1; echo on; while :; do sleep 0.02; done"), 1
    )
    await server.start_of(1)
    until(lambda: psutil.Process(agent.supervisor()["running"][0][2]).children())

    await server.ask(1, "signal", signal=int(signal.SIGUSR1))

    assert (await server.end_of(1)).stdout.endswith(b"heard\n")


async def test_no_process_of_a_task_outlives_it(server: Server, agent: Agent) -> None:
    line = (
        "sleep 9871 & setsid sleep 9872 & (setsid sh -c 'sleep 9873 & sleep 9874' &) ; sleep 0.1; echo done"
    )

    end = await server.run(1, "sh", "-c", line)

    assert (end.outcome, end.stdout) == ("succeeded", b"done\n")
    for word in ("9871", "9872", "9873", "9874"):
        until(lambda word=word: not list(processes_with(word)), 5)


async def test_a_daemon_of_a_task_that_still_runs_is_left_alone_until_the_end(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    line = f"(setsid sleep 9881 &); while [ ! -e {go} ]; do sleep 0.02; done"
    await server.assign(server.spec("sh", "-c", line), 1)
    await server.start_of(1)
    until(lambda: list(processes_with("9881")))

    for number in range(2, 12):
        assert (await server.run(number, "echo", "x")).stdout == b"x\n"
    assert list(processes_with("9881"))
    go.touch()

    assert (await server.end_of(1)).outcome == "succeeded"
    until(lambda: not list(processes_with("9881")), 5)


async def test_a_daemon_that_hid_its_environment_ends_with_the_last_task(
    server: Server, agent: Agent
) -> None:
    end = await server.run(1, "sh", "-c", "(env -i setsid sleep 9891 &); sleep 0.1")

    assert end.outcome == "succeeded"
    until(lambda: not list(processes_with("9891")), 5)


async def test_memory_over_the_limit_ends_a_task_with_out_of_memory(
    server: Server, make_agent: Callable[..., Agent]
) -> None:
    agent = make_agent(GERES_AGENT__LIMIT_FACTOR="1.5")
    await server.connected()
    hog = [sys.executable, "-c", "x = bytearray(300 << 20); print('survived')"]
    modest = [sys.executable, "-c", "x = bytearray(120 << 20); print('survived')"]

    over = await server.run(1, *hog, memory_bytes=100 << 20)
    within = await server.run(2, *modest, memory_bytes=100 << 20)
    free = await server.run(3, *hog)

    assert (over.outcome, over.reason) == ("failed", "out_of_memory")
    assert within.stdout == free.stdout == b"survived\n"
    assert agent.supervisor()["pid"]


def test_where_no_groups_can_be_made_the_address_space_is_limited(tmp_path: Path) -> None:
    """The launcher's other way; here without a supervisor, for it would find the groups of this machine."""
    from geres.agent.attempts import Attempt, Spec
    from geres.agent.capture import Captures
    from geres.agent.folders import Folders
    from geres.agent.starting import Starter

    class NoGroups(MemoryGroups):
        def __init__(self) -> None:
            super().__init__()
            self._is_barred = True

    code = "x = bytearray(300 << 20)"
    fields = {
        "argv": [sys.executable.encode(), b"-c", code.encode()],
        "env": {b"PATH": b"/usr/bin:/bin"},
        "memory_bytes": 200 << 20,
    }
    captures = Captures(str(tmp_path))
    starter = Starter(Folders(str(tmp_path / "tasks")), captures, NoGroups())
    attempt = Attempt((1, 1, 0, 0, 0, None, None), Spec(fields), 0.0)

    starter.start(attempt, 0.0)
    import os

    _, status = os.waitpid(attempt.pid, 0)

    assert os.waitstatus_to_exitcode(status) == 1
    assert attempt.err is not None
    assert b"MemoryError" in captures.tail(attempt.err, captures.size(attempt.err))


async def test_memory_groups_are_removed_with_their_tasks(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    line = f"cat /proc/self/cgroup; while [ ! -e {go} ]; do sleep 0.02; done"
    await server.assign(server.spec(shell=line, memory_bytes=100 << 20), 1)
    await server.start_of(1)
    groups = memory_groups_of(agent.supervisor()["pid"])
    if not groups:
        missing("no memory groups can be made here")

    go.touch()
    end = await server.end_of(1)

    assert b"/geres-" in end.stdout
    until(lambda: not any(group.exists() for group in groups), 5)


def memory_groups_of(pid: int) -> list[Path]:
    """What a supervisor made below the memory groups of this machine."""
    return [path for path in Path("/sys/fs/cgroup").glob(f"**/geres-{pid}") if path.is_dir()]


async def test_a_task_over_its_disk_allowance_ends_with_disk_full(server: Server, agent: Agent) -> None:
    files = await server.run(1, "sh", "-c", "head -c 9000000 /dev/zero > x; sleep 60", disk_bytes=4 << 20)
    output = await server.run(2, "sh", "-c", "head -c 9000000 /dev/zero; sleep 60", disk_bytes=4 << 20)
    within = await server.run(3, "sh", "-c", "head -c 1000 /dev/zero > x; sleep 1.5", disk_bytes=4 << 20)

    assert (files.outcome, files.reason) == ("failed", "disk_full")
    assert "4096 KiB" in (files.message or "")
    assert output.reason == "disk_full"
    assert within.outcome == "succeeded"
