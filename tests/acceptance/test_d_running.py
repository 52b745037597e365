"""Running a task on a node: its folder, its environment, its limits and the words for how it ended."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.acceptance.acts import eventually, shown, submit, wait_for_state
from tests.acceptance.configured import cluster_with

DOCUMENTED = Path(__file__).parents[2] / "docs" / "reference" / "environment.md"


@pytest.fixture(scope="module")
def generous():
    """A cluster whose limit of memory is one and a half times what a task asks for."""
    with cluster_with("[agent]\nlimit_factor = 1.5\n") as started:
        yield started


def allocate(mib):
    """A program that uses so much memory, and says so."""
    return (
        sys.executable,
        "-c",
        f"import os; x = bytearray({mib} << 20); x[::4096] = bytes(len(x[::4096])); os.write(1, b'lived')",
    )


def test_u058_a_task_has_a_folder_of_its_own(cluster):
    first = cluster.run("run", "--cwd", "task", "--", "sh", "-c", "ls; echo mine > x; cat x", check=True)
    second = cluster.run("run", "--cwd", "task", "--", "sh", "-c", "ls; test ! -e x && pwd", check=True)

    assert first.stdout == "mine\n"
    folder = Path(second.stdout.strip())
    assert folder.is_absolute()
    assert cluster.home in folder.parents


def test_u058_what_it_leaves_is_kept_and_found_by_task_show(cluster):
    task = submit(cluster, "--cwd", "task", "--", "sh", "-c", "echo kept > result.txt")
    cluster.run("wait", task, check=True)

    location = shown(cluster, "task", "show", task)["location"]

    assert (Path(location) / "wd" / "result.txt").read_text() == "kept\n"


def test_u058_tasks_of_a_node_share_a_folder(cluster):
    cluster.run("run", "--", "sh", "-c", 'echo seen > "$GERES_NODE_SHARED_DIR/x"', check=True)
    done = cluster.run("run", "--", "sh", "-c", 'cat "$GERES_NODE_SHARED_DIR/x"', check=True)

    assert done.stdout == "seen\n"


def test_u058_a_task_over_its_disk_allowance_fails_with_disk_full(cluster):
    task = submit(
        *(cluster, "--cwd", "task", "--disk", "4M", "--time-limit", "60s", "--", "sh", "-c"),
        "head -c 32M /dev/zero > x; sleep 120",
    )
    cluster.run("wait", task)

    assert shown(cluster, "task", "show", task)["reason"] == "disk_full"


def test_u065_a_task_that_kills_itself_and_its_group_leaves_the_agent_alone(cluster):
    before = {part: cluster.pid(part) for part in ("agent", "supervisor", "server")}

    alone = cluster.run("run", "--", "sh", "-c", "kill -9 $$")
    group = cluster.run("run", "--", "sh", "-c", "sleep 100 & kill -9 0")

    assert (alone.returncode, group.returncode) == (128 + 9, 128 + 9)
    assert {part: cluster.pid(part) for part in before} == before
    [node] = shown(cluster, "nodes")
    assert node["state"] in ("idle", "running")


def test_u065_no_process_of_a_task_outlives_it(cluster):
    program = (
        "import os, time\n"
        "os.fork() and os._exit(0)\n"
        "os.setsid()\n"
        "os.write(1, b'%d' % os.getpid())\n"
        "time.sleep(99)\n"
    )
    done = cluster.run("run", "--", "sh", "-c", f'{sys.executable} -c "{program}"; sleep 0.3', check=True)

    process = int(done.stdout)
    eventually(lambda: psutil.pid_exists(process), lambda there: not there)


def test_u067_a_task_finds_every_documented_variable_in_its_environment(cluster):
    words = re.findall(r"`(GERES_[A-Z_]+)`", DOCUMENTED.read_text())
    assert len(words) > 15
    done = cluster.run(
        *("run", "--name", "n", "--meta", "proj=x y", "-c", "0.5", "-m", "500M", "--", "env"), check=True
    )
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    [newest] = shown(cluster, "history", "-n", "1")

    not_here = {"GERES_ARRAY_INDEX", "GERES_ITEM", "GERES_META_KEY", "GERES_GPUS", "GERES_FINGERPRINT"}
    not_here |= {"GERES_START_TASK", "GERES_START_TRY"}  # only in the start task of a pool
    assert {word for word in words if word not in found} <= not_here
    assert found["GERES_TASK_ID"] == newest["id"]
    assert found["GERES_JOB_ID"] == newest["job_id"]
    assert found["GERES_NODE_ID"] == newest["node"]
    assert (found["GERES_CPUS"], found["GERES_MEMORY_BYTES"]) == ("0.5", str(500 << 20))
    assert found["GERES_META_PROJ"] == "x y"
    assert found["GERES_TOKEN"].startswith(f"geres_task_1.{newest['id']}.1_")
    assert found["GERES_ATTEMPT"] == "1"
    assert found["TMPDIR"].startswith(found["GERES_TASK_DIR"])
    assert {"HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG"} <= found.keys()


def test_u067_an_array_task_finds_its_index_and_item(cluster):
    done = cluster.run(
        *("run", "--", "sh", "-c", 'echo "$GERES_ARRAY_INDEX $GERES_ITEM {}"', ":::", "a b"), check=True
    )

    index, item = done.stdout.strip().split(" ", 1)
    assert index.isdigit()
    assert item == "a b a b"


def test_u068_more_memory_than_asked_for_ends_with_out_of_memory(cluster):
    done = cluster.run("run", "-m", "100M", "--", *allocate(300))
    fits = cluster.run("run", "-m", "400M", "--", *allocate(300), check=True)

    assert done.returncode != 0
    assert "lived" not in done.stdout
    assert fits.stdout == "lived"
    failed, _ = sorted(shown(cluster, "history", "-n", "2"), key=lambda task: task["number"])
    assert (failed["state"], failed["reason"]) == ("failed", "out_of_memory")
    why = cluster.run("why", failed["id"], check=True).stdout
    assert "memory" in why
    again = next(line.split("geres ", 1)[1] for line in why.splitlines() if "Next: geres rerun" in line)
    cluster.run(*again.split(), check=True)
    cluster.run("wait", failed["id"])
    assert shown(cluster, "task", "show", failed["id"])["memory_bytes"] == 200 << 20


def test_u068_a_factor_scales_the_limit_from_the_request(generous):
    within = generous.run("run", "-m", "200M", "--", *allocate(240))
    beyond = generous.run("run", "-m", "100M", "--", *allocate(300))

    assert (within.returncode, within.stdout) == (0, "lived"), within.stderr
    assert "lived" not in beyond.stdout
    [failed] = shown(generous, "dead-letter")
    assert failed["reason"] == "out_of_memory"


def test_u069_a_task_over_its_time_limit_is_ended(cluster):
    begun = time.monotonic()
    done = cluster.run("run", "--time-limit", "1s", "--", "sleep", "60")

    assert done.returncode == 124
    assert time.monotonic() - begun < 30
    [task] = shown(cluster, "history", "-n", "1")
    assert (task["state"], task["reason"]) == ("failed", "timeout")


def test_u069_one_that_ignores_the_first_signal_is_killed_after_its_grace(cluster):
    done = cluster.run(
        *("run", "--time-limit", "0.3s", "--grace", "0.5s", "--", "sh", "-c"),
        "trap 'echo asked' TERM; while :; do sleep 0.1; done",
    )

    assert done.returncode == 124
    assert done.stdout == "asked\n"


def test_u069_a_job_over_its_time_limit_is_cancelled_with_all_its_tasks(cluster):
    cluster.run("job", "create", "short", "--time-limit", "0.5s", check=True)
    line = '{"command": ["sleep", "60"], "cpus": 2}\n'
    done = cluster.run("submit", "--job", "short", "--from", "-", input=line * 2, check=True)
    running, queued = done.stdout.split()
    ended = cluster.run("wait", running)

    assert ended.returncode == 130
    assert "time limit" in ended.stderr
    assert shown(cluster, "task", "show", queued)["state"] == "cancelled"
    assert shown(cluster, "task", "show", queued)["started_at"] is None
    assert shown(cluster, "job", "show", "short")["state"] == "cancelled"


def test_u070_retries_end_and_the_task_is_set_aside(cluster):
    done = cluster.run("run", "--retries", "2", "--retry-delay", "0.05s", "--", "false")

    assert done.returncode == 1
    [task] = shown(cluster, "history", "-n", "1")
    assert [one["attempt"] for one in shown(cluster, "task", "show", task["id"])["attempts"]] == [1, 2, 3]
    assert task["retry_count"] == 2
    dead = shown(cluster, "dead-letter")
    assert task["id"] in [one["id"] for one in dead]
    assert task["id"] in cluster.run("dead-letter", check=True).stdout


def test_u070_a_retry_that_succeeds_ends_the_retries(cluster, tmp_path):
    script = f"test -e {tmp_path}/seen || {{ touch {tmp_path}/seen; exit 1; }}; echo $GERES_RETRY_COUNT"
    done = cluster.run("run", "--retries", "-1", "--retry-delay", "0.05s", "--", "sh", "-c", script)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "1\n"
    [task] = shown(cluster, "history", "-n", "1")
    assert task["id"] not in [one["id"] for one in shown(cluster, "dead-letter")]


def test_u070_a_rerun_gives_a_dead_letter_another_round(cluster, tmp_path):
    task = submit(cluster, "--retries", "1", "--retry-delay", "0", "--", "test", "-e", str(tmp_path / "x"))
    wait_for_state(cluster, task, "failed")
    assert task in [one["id"] for one in shown(cluster, "dead-letter")]

    (tmp_path / "x").touch()
    cluster.run("rerun", task, check=True)
    cluster.run("wait", task, check=True)

    assert task not in [one["id"] for one in shown(cluster, "dead-letter")]


def test_u071_a_folder_goes_after_its_time_and_the_record_stays(cluster):
    kept = submit(cluster, "--cwd", "task", "--", "touch", "x")
    brief = submit(cluster, "--cwd", "task", "--retain", "0.1s", "--", "touch", "x")
    cluster.run("wait", kept, brief, check=True)
    folder = Path(shown(cluster, "task", "show", brief)["location"])

    eventually(folder.exists, lambda there: not there)

    assert shown(cluster, "task", "show", brief)["state"] == "succeeded"
    assert Path(shown(cluster, "task", "show", kept)["location"]).exists()


def test_u072_an_end_has_a_reason_a_code_and_a_signal(cluster, tmp_path):
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    cases = [
        (("sh", "-c", "kill -SEGV $$"), 139, "signal", None, 11),
        (("no-such-program",), 127, "not_found", 127, None),
        ((str(tmp_path / "plain"),), 126, "not_executable", 126, None),
        (("sh", "-c", "exit 3"), 3, "exit", 3, None),
        (("true",), 0, None, 0, None),
    ]
    for words, status, reason, code, number in cases:
        done = cluster.run("run", "--", *words)
        [task] = shown(cluster, "history", "-n", "1")

        assert done.returncode == status, words
        assert (task["reason"], task["exit_code"], task["signal"]) == (reason, code, number), words
