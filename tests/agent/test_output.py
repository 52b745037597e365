"""What tasks write is kept: whole while it is small, its ends where it is large, or in the file asked for."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.agent.world import Agent, Server, until

TASK = 1 << 32


def upload(number: int, stream: str = "stdout") -> str:
    return f"/v1/agents/outputs/{TASK + number}/1/{stream}"


async def test_binary_output_arrives_byte_by_byte(server: Server, agent: Agent) -> None:
    end = await server.run(1, "printf", r"\000\377\n\033")

    assert end.stdout == b"\x00\xff\n\x1b"


async def test_output_files_are_emptied_before_they_are_used_again(server: Server, agent: Agent) -> None:
    for number in range(1, 8):
        text = "x" * (number * 7 % 5)
        assert (await server.run(number, "printf", "%s", text)).stdout == text.encode()


async def test_larger_output_is_uploaded_before_the_end_is_reported(server: Server, agent: Agent) -> None:
    end = await server.run(1, "seq", "100000")

    whole = "".join(f"{n}\n" for n in range(1, 100001)).encode()
    assert end.stdout_blob == upload(1)
    assert server.blobs[upload(1)] == whole
    assert end.stdout == whole[-16384:]
    assert end.stdout_bytes == len(whole)
    assert end.folder is None
    tasks = agent.home / "agent" / "tasks"
    until(lambda: not (tasks / "1").exists(), 5)


async def test_an_upload_is_tried_until_the_server_takes_it(server: Server, agent: Agent) -> None:
    server.refuses_uploads = True
    await server.assign(server.spec("seq", "10000"), 1)
    await server.until(lambda: not agent.supervisor()["running"] and agent.supervisor()["ended"])
    assert (await server.run(2, "echo", "small")).stdout == b"small\n", "others are not held up"
    assert (TASK + 1, 1) not in server.ended

    server.refuses_uploads = False

    assert (await server.end_of(1)).stdout_blob == upload(1)


async def test_an_upload_is_taken_up_by_the_next_agent(server: Server, agent: Agent) -> None:
    server.refuses_uploads = True
    await server.assign(server.spec("seq", "10000"), 1)
    await server.until(lambda: agent.supervisor()["ended"])
    agent.kill()
    server.refuses_uploads = False

    agent.start()

    assert (await server.end_of(1)).stdout_blob == upload(1)
    assert server.blobs[upload(1)].endswith(b"\n10000\n")


async def test_an_output_that_vanishes_during_its_upload_does_not_hold_up_the_end(
    server: Server, agent: Agent
) -> None:
    server.refuses_uploads = True
    await server.assign(server.spec("seq", "10000"), 1)
    [end] = await server.until(lambda: agent.supervisor()["ended"])
    await server.until(lambda: "could not be uploaded" in agent.log)

    output = agent.home / end[10][2]
    output.unlink()

    report = await server.end_of(1, seconds=10)
    assert report.outcome == "succeeded"
    assert report.stdout.endswith(b"\n10000\n")
    assert report.stdout_blob is None
    assert "stdout" in (report.message or "")


async def test_an_output_that_cannot_be_reached_does_not_end_the_agent(server: Server, agent: Agent) -> None:
    server.refuses_uploads = True
    await server.assign(server.spec("seq", "10000"), 1)
    [end] = await server.until(lambda: agent.supervisor()["ended"])
    agent.kill()
    folder = Path(end[10][2]).parent
    (folder / "stdout").unlink()
    folder.rmdir()
    folder.touch()  # even root cannot read below it
    server.refuses_uploads = False

    agent.start()

    assert (await server.end_of(1, seconds=10)).stdout.endswith(b"\n10000\n")
    assert (await server.run(2, "true")).outcome == "succeeded"


async def test_of_output_over_the_limit_the_beginning_a_line_and_the_end_are_kept(
    server: Server, agent: Agent
) -> None:
    end = await server.run(1, "seq", "1000000", output_limit_bytes=3 << 20)

    whole = "".join(f"{n}\n" for n in range(1, 1000001)).encode()
    kept = server.blobs[upload(1)]
    left_out = len(whole) - (3 << 20)
    head, tail = kept.split(b"\n[geres: %d bytes left out here]\n" % left_out)
    assert head == whole[: 1 << 20]
    assert tail == whole[-(2 << 20) :]
    assert end.stdout_bytes == len(whole)


async def test_a_small_limit_is_kept_too(server: Server, agent: Agent) -> None:
    end = await server.run(1, "seq", "100000", output_limit_bytes=1000)

    assert end.stdout_bytes == 588895
    assert len(server.blobs[upload(1)]) < 1100
    assert server.blobs[upload(1)].endswith(b"\n100000\n")


async def test_two_hundred_megabytes_pass_with_flat_memory_and_a_freed_middle(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    line = f"head -c 200000000 /dev/zero; echo x; while [ ! -e {go} ]; do sleep 0.05; done"
    await server.assign(server.spec(shell=line, output_limit_bytes=4 << 20), 1)
    await server.start_of(1)
    [(_, _, leader, *_)] = agent.supervisor()["running"]
    output = Path(f"/proc/{leader}/fd/1")
    until(lambda: output.stat().st_size == 200000002)

    until(lambda: output.stat().st_blocks * 512 < 10 << 20, 10)
    go.touch()
    end = await server.end_of(1)

    assert end.stdout_bytes == 200000002
    assert len(server.blobs[upload(1)]) < 5 << 20
    assert server.blobs[upload(1)].endswith(b"\0x\n")
    parts = psutil.Process(agent.pid), psutil.Process(agent.supervisor()["pid"])
    assert sum(part.memory_info().rss for part in parts) < 80 << 20


async def test_output_can_be_thrown_away(server: Server, agent: Agent) -> None:
    end = await server.run(1, "sh", "-c", "echo out; echo err >&2", keep_output=False)

    assert (end.outcome, end.stdout, end.stderr, end.stdout_bytes) == ("succeeded", b"", b"", 0)


async def test_errors_can_go_where_output_goes(server: Server, agent: Agent) -> None:
    end = await server.run(1, "sh", "-c", "echo a; echo b >&2; echo c", merge=True)

    assert (end.stdout, end.stderr) == (b"a\nb\nc\n", b"")


async def test_output_goes_to_the_files_that_were_named(server: Server, agent: Agent, tmp_path: Path) -> None:
    for number in (1, 2):  # the first by the launcher, the second perhaps directly
        out, err = tmp_path / "out", tmp_path / "err"
        spec = server.spec(
            "sh", "-c", "echo out; echo err >&2", stdout="out", stderr=str(err), cwd=str(tmp_path)
        )
        await server.assign(spec, number)
        end = await server.end_of(number)
        assert end.outcome == "succeeded"
        assert (out.read_text(), err.read_text()) == ("out\n", "err\n"), "replaced, not appended"
        until(lambda: True)


#: A PATH with a folder on no ordinary disk: so the launcher starts the task, and it alone touches its files.
ELSEWHERE = {"PATH": "/usr/bin:/bin:/dev/pts"}


@pytest.mark.parametrize("append", [False, True])
async def test_output_in_files_that_only_the_launcher_opened_is_in_the_report(
    server: Server, agent: Agent, tmp_path: Path, append: bool
) -> None:
    (tmp_path / "out").write_text("older\n")
    line = "echo out; echo err >&2"
    end = await server.run(
        1,
        shell=line,
        stdout="out",
        stderr=str(tmp_path / "err"),
        cwd=str(tmp_path),
        append=append,
        env=ELSEWHERE,
    )

    assert (end.stdout, end.stdout_bytes, end.stderr, end.stderr_bytes) == (b"out\n", 4, b"err\n", 4)
    assert (tmp_path / "out").read_text() == ("older\nout\n" if append else "out\n")
    assert (end.outcome, end.message, end.stdout_blob) == ("succeeded", None, None)


async def test_of_a_large_file_that_only_the_launcher_opened_the_last_part_is_in_the_report(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    end = await server.run(1, shell="seq 100000", stdout=str(tmp_path / "out"), env=ELSEWHERE)

    written = (tmp_path / "out").read_bytes()
    assert end.stdout_bytes == len(written) > 500_000
    assert end.stdout == written[-(16 << 10) :]


async def test_a_file_in_the_own_folder_that_only_the_launcher_opened_is_found_where_it_is_kept(
    server: Server, agent: Agent
) -> None:
    end = await server.run(1, shell="echo a; echo b >&2", stdout="log", merge=True, env=ELSEWHERE)

    assert (end.stdout, end.stderr) == (b"a\nb\n", b"")
    assert (Path(end.folder or "") / "wd" / "log").read_bytes() == b"a\nb\n"


async def test_what_the_launcher_opened_and_cannot_be_read_again_is_said(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    gone = await server.run(1, shell="echo a; rm out", stdout="out", cwd=str(tmp_path), env=ELSEWHERE)
    assert (gone.outcome, gone.stdout) == ("succeeded", b"")
    assert str(tmp_path / "out") in (gone.message or "")

    null = await server.run(2, shell="echo a", stdout="/dev/null", env=ELSEWHERE)
    assert (null.outcome, null.stdout, null.message) == ("succeeded", b"", None)


async def test_output_is_appended_where_that_was_asked_for(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    for number in range(1, 4):
        spec = server.spec("echo", str(number), stdout=str(tmp_path / "log"), append=True, merge=True)
        await server.assign(spec, number)
        await server.end_of(number)

    assert (tmp_path / "log").read_text() == "1\n2\n3\n"


async def test_one_file_for_both_holds_both(server: Server, agent: Agent, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    for number in (1, 2, 3):
        end = await server.run(number, "sh", "-c", "echo a; echo b >&2; echo c", stdout=log, stderr=log)
        assert end.outcome == "succeeded"
        assert (tmp_path / "log").read_text() == "a\nb\nc\n"


async def test_arrays_write_to_a_file_of_each(server: Server, agent: Agent, tmp_path: Path) -> None:
    spec = server.spec("echo", "{}", stdout=str(tmp_path / "o-{index}"))
    await server.assign(spec, 1, 2, 3, is_array=True)
    for number in (1, 2, 3):
        await server.end_of(number)

    assert [(tmp_path / f"o-{n}").read_text() for n in (1, 2, 3)] == ["1\n", "2\n", "3\n"]


async def test_a_file_in_no_folder_is_a_staging_failure_in_words(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    for number in (1, 2):
        end = await server.run(number, "echo", "x", stdout=str(tmp_path / "no" / "out"))
        assert (end.outcome, end.reason) == ("failed", "staging")
        assert str(tmp_path / "no") in (end.message or "")


async def test_kept_folders_are_swept_when_their_time_is_over(server: Server, agent: Agent) -> None:
    short = await server.run(1, "touch", "x", retain_seconds=0.01)
    await server.run(2, "touch", "x", retain_seconds=1000.0)
    assert short.folder is not None
    until(lambda: (Path(short.folder or "") / ".retain").exists())

    agent.kill()
    agent.start()  # the sweep at its start

    until(lambda: not Path(short.folder or "").exists(), 5)
    assert (agent.home / "agent" / "tasks" / "1" / "2" / "wd" / "x").exists()
