"""Live output, and input: through a second connection, with back-pressure, across a change of agents."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path

import psutil
import pytest

from geres.model.wire import Frame
from tests.agent.world import Agent, Server, until


async def gather(server: Server, name: str) -> tuple[bytes, bytes, dict[str, object]]:
    """All of stdout and stderr until the end of the stream, and what the end says."""
    out, err = b"", b""
    while (frame := await server.heard(name)) is not None:
        if frame[0] == "o":
            out += frame[1]
        elif frame[0] == "e":
            err += frame[1]
        elif frame[0] == "end":
            return out, err, frame[1]
    raise AssertionError("the stream broke")


async def test_output_comes_as_it_is_written_on_its_own_streams(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    line = f"echo a; while [ ! -e {go} ]; do sleep 0.02; done; echo b >&2; exit 4"
    await server.assign(server.spec(shell=line), 1)
    name = await server.stream(1)

    assert await server.heard(name) == ["o", b"a\n"]
    go.touch()
    out, err, end = await gather(server, name)

    assert (out, err) == (b"", b"b\n")
    assert (end["state"], end["reason"], end["exit_code"]) == ("failed", "exit", 4)


async def test_a_line_is_there_within_milliseconds(server: Server, agent: Agent) -> None:
    line = "while read x; do date +%s%N; done"
    await server.assign(server.spec(shell=line, stdin=True), 1)
    name = await server.stream(1, with_stdin=True)
    assert await server.heard(name) == ["in", 0]

    delays = []
    for _ in range(10):
        await server.say(name, "i", b"go\n")
        frame = await server.heard(name)
        delays.append(time.time() - int(frame[1]) / 1e9)
    await server.say(name, "eof")

    assert (await gather(server, name))[2]["state"] == "succeeded"
    assert sorted(delays)[len(delays) // 2] < 0.05


async def test_input_passes_through_whole_and_ends(server: Server, agent: Agent) -> None:
    await server.assign(server.spec("sha256sum", stdin=True), 1)
    name = await server.stream(1, with_stdin=True)
    piece = bytes(range(256)) * 256

    for _ in range(100):
        await server.say(name, "i", piece)
    await server.say(name, "eof")
    out, _, _ = await gather(server, name)

    assert out.split()[0].decode() == hashlib.sha256(piece * 100).hexdigest()


async def test_input_waits_for_a_task_that_does_not_read(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    await server.assign(server.spec(shell=f"while [ ! -e {go} ]; do sleep 0.02; done; wc -c", stdin=True), 1)
    name = await server.stream(1, with_stdin=True)
    sent = 0

    async def send_all() -> None:
        nonlocal sent
        for _ in range(512):
            await server.say(name, "i", b"x" * 65536)
            sent += 65536
        await server.say(name, "eof")

    async with asyncio.TaskGroup() as group:
        sending = group.create_task(send_all())
        for number in range(2, 12):
            assert (await server.run(number, "echo", "x")).stdout == b"x\n", "others go on meanwhile"
        assert not sending.done()
        assert psutil.Process(agent.supervisor()["pid"]).memory_info().rss < 20 << 20
        go.touch()
    out, _, _ = await gather(server, name)

    assert int(out) == sent == 512 * 65536


async def test_a_signal_can_be_sent_through_the_stream(server: Server, agent: Agent) -> None:
    await server.assign(server.spec("sleep", "60"), 1)
    name = await server.stream(1)
    await server.start_of(1)

    await server.say(name, "sig", "INT")

    assert (await gather(server, name))[2]["signal"] == 2


async def test_a_stream_goes_on_from_the_bytes_that_were_seen(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    await server.assign(
        server.spec(shell=f"echo abcdef; while [ ! -e {go} ]; do sleep 0.02; done; echo g"), 1
    )
    first = await server.stream(1)
    assert await server.heard(first) == ["o", b"abcdef\n"]

    agent.kill()
    agent.start()
    await server.connected(2)
    second = await server.stream(1, "from=begin&out=3&err=0")
    assert await server.heard(second) == ["o", b"def\n"]
    go.touch()

    assert (await gather(server, second))[0] == b"g\n"


async def test_a_stream_from_now_leaves_out_what_was_written_before(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    line = f"echo old; while [ ! -e {go} ]; do echo new; sleep 0.02; done"
    await server.assign(server.spec(shell=line), 1)
    first = await server.stream(1)
    assert (await server.heard(first))[1].startswith(b"old")

    name = await server.stream(1, "from=now")

    assert (await server.heard(name))[1].startswith(b"new")
    go.touch()
    await gather(server, name)


async def test_input_that_was_taken_is_counted_across_agents(server: Server, agent: Agent) -> None:
    await server.assign(server.spec("cat", stdin=True), 1)
    name = await server.stream(1, with_stdin=True)
    await server.say(name, "i", b"hello ")
    assert await server.heard(name) == ["in", 0]
    assert await server.heard(name) == ["o", b"hello "]

    agent.kill()
    agent.start()
    await server.connected(2)
    again = await server.stream(1, "from=begin&out=6&in=6", with_stdin=True)
    assert await server.heard(again) == ["in", 6]
    await server.say(again, "i", b"world")
    await server.say(again, "eof")

    assert (await gather(server, again))[0] == b"world"


async def test_input_that_waits_in_the_supervisor_is_not_asked_for_again(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    await server.assign(server.spec(shell=f"while [ ! -e {go} ]; do sleep 0.02; done; wc -c", stdin=True), 1)
    name = await server.stream(1, with_stdin=True)
    assert await server.heard(name) == ["in", 0]
    for _ in range(3):  # more than a pipe holds
        await server.say(name, "i", b"x" * 65536)

    async def taken() -> int:
        return int((await server.heard(await server.stream(1, with_stdin=True)))[1])

    async with asyncio.timeout(20):
        while (count := await taken()) < 3 * 65536:
            pass
    again = await server.stream(1, f"from=begin&in={count}", with_stdin=True)
    await server.say(again, "eof")
    go.touch()
    out, _, _ = await gather(server, again)

    assert count == int(out) == 3 * 65536


async def test_a_stream_of_an_attempt_that_is_not_here_ends_at_once(server: Server, agent: Agent) -> None:
    name = await server.stream(77)

    assert await server.heard(name) == ["end", {}]


async def test_a_stream_of_a_task_that_waits_begins_when_it_starts(server: Server, agent: Agent) -> None:
    await server.assign(server.spec("sleep", "0.3"), 1)
    await server.assign(server.spec(shell="echo mine; sleep 0.5"), 2, ahead=1)
    name = await server.stream(2)

    assert (await gather(server, name))[0] == b"mine\n"


async def test_many_short_tasks_stream_their_own_output_and_no_other(server: Server, agent: Agent) -> None:
    for number in range(1, 30):
        spec = server.spec(shell=f"sleep 0.01; echo {number}")
        await server.assign(spec, number)
        name = await server.stream(number)
        out, _, end = await gather(server, name)
        assert out in (f"{number}\n".encode(), b""), (
            "all of it, or none where it ended before the stream began"
        )
        assert end["state"] == "succeeded"


async def test_a_late_reader_is_told_what_was_left_out(server: Server, agent: Agent, tmp_path: Path) -> None:
    go = tmp_path / "go"
    line = f"head -c 60000000 /dev/zero | tr '\\0' x; while [ ! -e {go} ]; do sleep 0.05; done; echo last"
    await server.assign(server.spec(shell=line, output_limit_bytes=4 << 20), 1)
    await server.start_of(1)
    output = Path(f"/proc/{agent.supervisor()['running'][0][2]}/fd/1")
    until(lambda: output.stat().st_size == 60000000 and output.stat().st_blocks * 512 < 10 << 20)

    name = await server.stream(1)
    kind, first = await server.heard(name)  # now the stream is open, and the task may end
    go.touch()
    rest, _, _ = await gather(server, name)
    out = first + rest

    assert kind == "o"
    assert len(out) < 10 << 20
    assert b"bytes left out here]" in out
    assert b"\0" not in out
    assert out.endswith(b"xxxlast\n")


async def test_a_stream_of_a_file_that_is_appended_to_begins_with_this_attempt(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.write_text("older\n")
    for number, path in ((1, "/usr/bin:/bin:/dev/pts"), (2, "/usr/bin:/bin")):  # the first by the launcher
        line = "sleep 0.2; echo mine; sleep 0.5"
        spec = server.spec(shell=line, stdout=str(log), append=True, merge=True, env={"PATH": path})
        await server.assign(spec, number)
        name = await server.stream(number)
        out, _, _ = await gather(server, name)
        assert out == b"mine\n"

    assert log.read_text() == "older\nmine\nmine\n"


async def present(server: Server, number: int, query: str = "") -> tuple[bytes, bytes] | None:
    """What the agent says that there is now; None where it does not have the attempt."""
    name = await server.stream(number, f"from=begin&until=now{query}")
    first = await server.heard(name)
    if first[0] == "end":
        return None
    assert first == ["present"]
    return (await gather(server, name))[:2]


@pytest.mark.parametrize("path", ["/usr/bin:/bin", "/usr/bin:/bin:/dev/pts"])  # the second by the launcher
async def test_what_there_is_now_is_told_without_waiting_for_more(
    server: Server, agent: Agent, tmp_path: Path, path: str
) -> None:
    mark, go = tmp_path / "mark", tmp_path / "go"
    line = f"seq 300000; echo e >&2; touch {mark}; while [ ! -e {go} ]; do sleep 0.02; done; echo last"
    files = {} if "pts" not in path else {"stdout": str(tmp_path / "o"), "stderr": str(tmp_path / "e")}
    await server.assign(server.spec(shell=line, env={"PATH": path}, **files), 1)
    until(mark.exists)

    numbers = b"".join(b"%d\n" % n for n in range(1, 300001))
    assert await present(server, 1) == (numbers, b"e\n")
    assert await present(server, 1, "&only=e") == (b"", b"e\n")
    assert await present(server, 1, "&only=o&out=2000000") == (numbers[2000000:], b"")
    go.touch()
    await server.end_of(1)


async def test_of_a_task_that_writes_on_and_on_what_there_is_now_has_an_end(
    server: Server, agent: Agent
) -> None:
    await server.assign(server.spec(shell="while :; do echo y; done"), 1)
    await server.start_of(1)

    out, _ = await present(server, 1) or (b"", b"")

    assert set(out) <= set(b"y\n")


async def test_what_an_ended_attempt_wrote_is_told_until_its_end_is_acknowledged(
    server: Server, agent: Agent
) -> None:
    server.acknowledges = False
    server.refuses_uploads = True
    await server.run(1, shell="echo small; echo err >&2")
    await server.assign(server.spec("seq", "10000"), 2)
    await server.until(lambda: len(agent.supervisor()["ended"]) == 2)

    assert await present(server, 1) == (b"small\n", b"err\n")
    assert await present(server, 1, "&out=2") == (b"all\n", b"err\n")
    whole = b"".join(b"%d\n" % n for n in range(1, 10001))
    assert await present(server, 2) == (whole, b"")
    server.refuses_uploads = False
    await server.end_of(2)
    assert await present(server, 2) == (whole, b"")
    await server.peer.send(Frame(ack=[(1 << 32 | 1, 1), (1 << 32 | 2, 1)]))
    await server.until(lambda: not agent.supervisor()["ended"])
    assert await present(server, 1) is None
