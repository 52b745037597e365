"""Work sent ahead waits for the room of its lane, and is given back when it waits too long."""

from __future__ import annotations

import os
from pathlib import Path

from geres.agent.attempts import Spec
from geres.agent.capture import Captures
from geres.agent.cgroups import MemoryGroups
from geres.agent.ends import ended_of
from geres.agent.folders import Folders
from geres.agent.journal import Journal
from geres.agent.running import Running
from geres.agent.starting import Starter
from geres.model.wire import Assign, Frame
from tests.agent.world import LANE, Agent, Server, until

TASK = 1 << 32


async def test_work_sent_ahead_starts_in_the_room_of_its_lane_one_after_the_other(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    lock = f"set -C; echo > {tmp_path}/lock || exit 9; rm {tmp_path}/lock"
    line = f'{lock}; echo "$GERES_TASK_NUMBER" >> {tmp_path}/order'
    spec = server.spec(shell=line)

    await server.assign(spec, 1)
    await server.assign(spec, *range(2, 21), ahead=1)
    ends = [await server.end_of(number) for number in range(1, 21)]

    assert {end.outcome for end in ends} == {"succeeded"}, "two never ran at once"
    assert (tmp_path / "order").read_text().split() == [str(number) for number in range(1, 21)]


async def test_work_ahead_of_another_lane_does_not_take_the_room(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    await server.assign(server.spec(shell=f"while [ ! -e {go} ]; do sleep 0.02; done"), 1, lane=1)
    await server.assign(server.spec("true"), 2, ahead=1, lane=1)
    await server.assign(server.spec("true"), 3, lane=2)

    assert (await server.end_of(3)).outcome == "succeeded"
    assert (TASK + 2, 1) not in server.ended
    go.touch()
    assert (await server.end_of(2)).outcome == "succeeded"


async def test_what_has_not_started_within_a_second_is_given_back(server: Server, agent: Agent) -> None:
    await server.assign(server.spec("sleep", "60"), 1)
    await server.assign(server.spec("true"), 2, ahead=1)

    end = await server.end_of(2, seconds=3)

    assert (end.outcome, end.started_us) == ("given_back", None)
    await server.until(lambda: not agent.supervisor()["ended"])


async def test_what_is_recalled_is_given_back_at_once_and_what_runs_is_not(
    server: Server, agent: Agent
) -> None:
    await server.assign(server.spec("sleep", "60"), 1)
    await server.assign(server.spec("true"), 2, 3, ahead=1)
    await server.start_of(1)

    await server.ask(2, "recall")
    await server.ask(1, "recall")

    assert (await server.end_of(2, seconds=0.9)).outcome == "given_back"
    await server.ask(3, "cancel")
    assert (await server.end_of(3, seconds=0.9)).outcome == "cancelled"
    assert (TASK + 1, 1) not in server.ended


async def test_more_specifications_than_are_remembered_run_from_one_frame(
    server: Server, agent: Agent
) -> None:
    specs = [server.spec("true") for _ in range(1001)]
    await server.peer.send(
        Frame(
            specs=specs,
            assign=[
                Assign(TASK + n, 1, spec.spec_id, LANE, "default") for n, spec in enumerate(specs, start=1)
            ],
        )
    )

    assert (await server.end_of(1, seconds=10)).outcome == "succeeded"
    assert (await server.end_of(1001)).outcome == "succeeded"


def test_a_start_whose_specification_is_not_there_is_given_back(tmp_path: Path) -> None:
    starter = Starter(Folders(str(tmp_path / "tasks")), Captures(str(tmp_path)), MemoryGroups())
    running = Running(starter, Journal(str(tmp_path / "journal"), "boot"))

    running.add((TASK + 1, 1, 77, LANE, 0, None, None), None, 0.0)

    [end] = running.new_ended
    assert ended_of(end).outcome == "given_back"
    assert running.ended == {(TASK + 1, 1): end}
    assert running.is_urgent
    running.acknowledge([(TASK + 1, 1)])
    assert not running.ended


def test_the_room_of_what_is_killed_is_for_what_waits_and_not_for_what_comes_later(tmp_path: Path) -> None:
    """A server that does not know an attempt has it killed, and counts its room as free at once."""
    starter = Starter(Folders(str(tmp_path / "tasks")), Captures(str(tmp_path)), MemoryGroups())
    running = Running(starter, Journal(str(tmp_path / "journal"), "boot"))
    sleeps = Spec({"argv": [b"sleep", b"60"], "env": {}})

    def add(number: int, ahead: int) -> tuple[int, int]:
        running.add((TASK + number, 1, 1, LANE, ahead, None, None), sleeps, 0.0)
        return TASK + number, 1

    def ready() -> list[tuple[int, int]]:
        return [attempt.key for attempt in running.lanes.ready]

    first, waits = add(1, ahead=0), add(2, ahead=1)
    running.start_some(0.0)
    running.kill_silently([first])
    assert ready() == [waits]

    add(3, ahead=1)
    assert ready() == [waits]
    os.waitpid(running.attempts[first].pid, 0)


async def test_a_start_is_told_only_where_the_end_is_not(server: Server, agent: Agent) -> None:
    spec = server.spec("true")
    await server.assign(spec, 1)
    await server.assign(spec, *range(2, 102), ahead=1)
    for number in range(1, 102):
        await server.end_of(number)

    assert len(server.started) < 50
    await server.assign(server.spec("sleep", "60"), 200)
    await server.until(lambda: (TASK + 200, 1) in server.started, 1)


async def test_the_journal_stays_small(server: Server, agent: Agent) -> None:
    journal = agent.home / "agent" / "journal"
    spec = server.spec("head", "-c", "16000", "/dev/zero")
    await server.assign(spec, 1)
    await server.assign(spec, *range(2, 202), ahead=1)
    for number in range(1, 202):
        assert (await server.end_of(number)).stdout_bytes == 16000

    until(lambda: journal.stat().st_size < 3 << 20, 5)
    await server.until(lambda: not agent.supervisor()["ended"])


async def test_heartbeats_count_what_the_server_believes_to_be_here(server: Server, agent: Agent) -> None:
    await server.assign(server.spec("sleep", "60"), 1, 2)
    await server.until(lambda: server.heartbeats and server.heartbeats[-1].count == 2)

    await server.peer.send(Frame(kill=[(TASK + 1, 1)]))

    await server.until(lambda: server.heartbeats[-1].count == 1)
