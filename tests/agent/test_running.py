"""Tasks run, and end in the words that people read."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from tests.agent.world import Agent, Server


async def test_a_command_runs_and_its_output_travels_with_its_end(server: Server, agent: Agent) -> None:
    end = await server.run(1, "sh", "-c", "echo out; echo err >&2")

    assert (end.outcome, end.reason, end.exit_code) == ("succeeded", None, 0)
    assert (end.stdout, end.stderr) == (b"out\n", b"err\n")
    assert (end.stdout_bytes, end.stderr_bytes) == (4, 4)
    assert end.started_us is not None
    assert end.started_us <= end.ended_us
    assert end.usage is not None
    assert end.usage.wall_seconds > 0
    assert end.folder is None


async def test_an_exit_code_other_than_zero_is_a_failure_with_reason_exit(
    server: Server, agent: Agent
) -> None:
    end = await server.run(1, "sh", "-c", "exit 3")

    assert (end.outcome, end.reason, end.exit_code, end.signal) == ("failed", "exit", 3, None)


async def test_a_task_that_kills_itself_fails_with_its_signal(server: Server, agent: Agent) -> None:
    end = await server.run(1, "sh", "-c", "kill -9 $$")

    assert (end.outcome, end.reason, end.signal) == ("failed", "signal", signal.SIGKILL)
    assert end.exit_code is None
    assert (await server.run(2, "true")).outcome == "succeeded"
    assert len(server.peers) == 1


async def test_signals_that_python_ignores_are_not_ignored_in_tasks(server: Server, agent: Agent) -> None:
    end = await server.run(1, "sh", "-c", "kill -PIPE $$; echo survived")

    assert (end.reason, end.signal, end.stdout) == ("signal", signal.SIGPIPE, b"")


async def test_a_program_that_does_not_exist_is_not_found(server: Server, agent: Agent) -> None:
    end = await server.run(1, "no-such-program")

    assert (end.outcome, end.reason, end.exit_code) == ("failed", "not_found", 127)
    assert "no-such-program" in (end.message or "")


async def test_a_path_that_does_not_exist_is_not_found(server: Server, agent: Agent) -> None:
    end = await server.run(1, "/no/such/program")

    assert (end.reason, end.exit_code) == ("not_found", 127)


async def test_a_file_without_the_right_to_run_is_not_executable(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")

    end = await server.run(1, str(program))

    assert (end.reason, end.exit_code) == ("not_executable", 126)
    assert str(program) in (end.message or "")


async def test_an_interpreter_that_does_not_exist_is_named(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)

    end = await server.run(1, str(program))

    assert (end.reason, end.exit_code) == ("not_found", 127)
    assert "interpreter" in (end.message or "")


async def test_a_script_without_a_first_line_runs_in_a_shell(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_text('echo "script $1"\n')
    program.chmod(0o755)

    end = await server.run(1, str(program), "word")

    assert end.stdout == b"script word\n"


async def test_a_hundred_thousand_arguments_arrive_or_are_refused_in_words(
    server: Server, agent: Agent
) -> None:
    words = ["x"] * 100_000
    end = await server.run(1, "sh", "-c", 'echo "$#"', "sh", *words)
    too_many = await server.run(2, "true", *["y" * 100] * 100_000)

    assert end.stdout == b"100000\n"
    assert (too_many.reason, too_many.exit_code) == ("not_executable", 126)
    assert "longer than" in (too_many.message or "")


async def test_a_shell_line_is_expanded_and_a_command_is_not(server: Server, agent: Agent) -> None:
    line = await server.run(1, shell="echo $((1 + 1)) | cat")
    command = await server.run(2, "echo", "$HOME")

    assert line.stdout == b"2\n"
    assert command.stdout == b"$HOME\n"


async def test_usage_counts_processor_time_and_large_memory(server: Server, agent: Agent) -> None:
    code = "x = bytearray(100 << 20); x[::4096] = b'1' * len(x[::4096]); sum(range(2_000_000))"
    end = await server.run(1, sys.executable, "-c", code)
    small = await server.run(2, "true")

    assert end.usage is not None
    assert small.usage is not None
    assert end.usage.user_seconds > 0.01
    assert (end.usage.max_rss_bytes or 0) > 100 << 20
    assert small.usage.max_rss_bytes is None, "not above the supervisor's own"


async def test_the_environment_is_the_accounts_and_the_published_names(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    os.environ["GERES_TEST_LEAK"] = "1"
    spec = server.spec(
        "env", env={"A": "1", "PATH": os.environ["PATH"]}, cpus=0.5, memory_bytes=0, meta={"p-x": "y"}
    )

    await server.assign(spec, 7, submitted_by="ann", retry_count=2)
    end = await server.end_of(7)

    seen = dict(line.split("=", 1) for line in end.stdout.decode().splitlines())
    home = str(tmp_path / "home")
    assert seen["A"] == "1"
    assert seen["HOME"]
    assert seen["USER"]
    assert seen["GERES_TASK_ID"] == "1.7"
    assert seen["GERES_JOB_ID"] == "1"
    assert seen["GERES_JOB_NAME"] == "default"
    assert seen["GERES_TASK_NUMBER"] == "7"
    assert seen["GERES_ATTEMPT"] == "1"
    assert seen["GERES_NODE_ID"] == "n1"
    assert seen["GERES_CPUS"] == "0.5"
    assert seen["GERES_META_P_X"] == "y"
    assert seen["GERES_SUBMITTED_BY"] == "ann"
    assert seen["GERES_RETRY_COUNT"] == "2"
    assert seen["GERES_URL"] == server.url
    assert "GERES_HOME" not in seen, "an agent alone is no `geres up`"
    assert seen["GERES_TASK_DIR"].startswith(home)
    assert seen["TMPDIR"].startswith(seen["GERES_TASK_DIR"])
    assert seen["GERES_NODE_SHARED_DIR"].startswith(home)
    assert "GERES_TEST_LEAK" not in seen


async def test_the_items_and_indexes_of_an_array_are_put_in_place(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    spec = server.spec("sh", "-c", "echo $GERES_ARRAY_INDEX $GERES_ITEM $1", "sh", "{.}:{/}:{index}:{task}")

    await server.assign(spec, 4, is_array=True, item="d/a.txt")

    assert (await server.end_of(4)).stdout == b"4 d/a.txt d/a:a.txt:4:1.4\n"


async def test_a_task_without_a_folder_of_its_own_choice_gets_a_private_empty_one(
    server: Server, agent: Agent
) -> None:
    first = await server.run(1, "sh", "-c", "ls; touch x; pwd")
    second = await server.run(2, "sh", "-c", "ls; pwd")

    assert first.stdout.decode().startswith("/"), "it was empty"
    assert second.stdout.decode().startswith("/"), "and so is the next one"


async def test_files_that_a_task_left_are_kept_under_its_name(
    server: Server, agent: Agent, tmp_path: Path
) -> None:
    end = await server.run(5, "sh", "-c", "echo kept > x")
    again = await server.run(6, "sh", "-c", "mktemp; true")

    assert end.folder == str(tmp_path / "home" / "agent" / "tasks" / "1" / "5")
    assert (Path(end.folder) / "wd" / "x").read_text() == "kept\n"
    assert again.folder is None, "temporary files are not kept"


async def test_the_shared_folder_of_the_node_is_shared(server: Server, agent: Agent) -> None:
    await server.run(1, "sh", "-c", 'echo shared > "$GERES_NODE_SHARED_DIR/s"')

    assert (await server.run(2, "sh", "-c", 'cat "$GERES_NODE_SHARED_DIR/s"')).stdout == b"shared\n"


async def test_a_folder_to_start_in_is_entered_or_named(server: Server, agent: Agent, tmp_path: Path) -> None:
    for number in (1, 2):  # the first by the launcher, the second perhaps directly
        end = await server.run(number, "pwd", cwd=str(tmp_path))
        assert end.stdout.decode().strip() == str(tmp_path)
        gone = await server.run(number + 10, "pwd", cwd="/no/such/folder")
        assert (gone.outcome, gone.reason) == ("failed", "no_cwd")
        assert "/no/such/folder" in (gone.message or "")


async def test_a_umask_is_set_for_the_task_alone(server: Server, agent: Agent) -> None:
    assert (await server.run(1, "sh", "-c", "umask", umask=0o027)).stdout == b"0027\n"
    assert (await server.run(2, "sh", "-c", "umask")).stdout == b"0022\n"


async def test_a_handler_is_refused_in_words(server: Server, agent: Agent) -> None:
    end = await server.run(1, handler="demo:work")

    assert (end.outcome, end.reason) == ("failed", "handler_load")
    assert "demo:work" in (end.message or "")


async def test_more_tasks_run_at_once_than_a_process_may_open_files(
    server: Server, make_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    go = tmp_path / "go"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    try:
        agent = make_agent()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await server.connected()
    spec = server.spec(shell=f"ulimit -n; while [ ! -e {go} ]; do sleep 0.5; done")

    await server.assign(spec, *range(1, 101))
    await server.until(lambda: len(agent.supervisor()["running"]) == 100)
    go.touch()

    for number in range(1, 101):
        end = await server.end_of(number)
        assert (end.outcome, end.stdout) == ("succeeded", b"128\n"), "tasks see the limit as it was"
