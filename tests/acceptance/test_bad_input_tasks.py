"""Tasks that misbehave: programs that are missing, write too much, do not stop, or leave something behind."""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.acceptance.acts import eventually
from tests.acceptance.harm import peak_bytes, unharmed
from tests.cluster import GERES, Cluster

MIB = 1 << 20


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["--", "no-such-program"], 127, "no program no-such-program"),
        (["--", "/no/such/program"], 127, "/no/such/program"),
        (["--", "/etc/passwd"], 126, "/etc/passwd is not executable"),
        (["--", "/tmp"], 126, "/tmp is not executable"),
        (["--cwd", "/no/such/folder", "--", "true"], 2, "no folder /no/such/folder"),
        (["-o", "/no/such/folder/out", "--", "true"], 1, "/no/such/folder/out for stdout cannot be opened"),
        (["-o", "/dev/full", "--", "cat", "/etc/passwd"], 1, ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_started_says_why(cluster: Cluster, words: list[str], status: int, told: str) -> None:
    with unharmed(cluster):
        done = cluster.run("run", *words)
    assert (done.returncode, done.stdout) == (status, "")
    assert told in done.stderr
    assert done.stderr.count("\n") <= 1


def test_100_000_arguments_arrive(cluster: Cluster) -> None:
    count = "import sys; print(len(sys.argv) - 1, sys.argv[1], sys.argv[-1])"
    numbers = [str(number) for number in range(100_000)]
    done = cluster.run("run", "--", "python3", "-c", count, *numbers)
    assert (done.returncode, done.stdout) == (0, "100000 0 99999\n")


@pytest.mark.parametrize("words", [["x" * 1000] * 5000, ["x" * 200_000]], ids=["in all", "one"])
def test_more_arguments_than_the_system_takes_fail_the_task_alone(
    cluster: Cluster, tmp_path: Path, words: list[str]
) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps(["/bin/true", *words]) + '\n["/bin/true"]\n')
    with unharmed(cluster):
        long, short = cluster.run("submit", "--from", str(path), check=True).stdout.split()
        assert cluster.run("wait", short).returncode == 0
        done = cluster.run("wait", long)
        assert done.returncode == 126
        assert "longer than this system allows" in done.stderr


def test_200_mb_of_output_cost_no_memory(cluster: Cluster) -> None:
    size = 200_000_000
    script = f"yes 0123456789 | head -c {size}"
    wanted, whole = hashlib.sha256(), b"0123456789\n" * 100_000
    for start in range(0, size, len(whole)):
        wanted.update(whole[: size - start])
    with unharmed(cluster):
        seen = hashlib.sha256()
        running = subprocess.Popen(
            [str(GERES), "run", "--", "sh", "-c", script],
            env=cluster.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert running.stdout is not None
        with running.stdout as stdout:
            while piece := stdout.read(MIB):
                seen.update(piece)
        assert running.wait(30) == 0
        assert seen.hexdigest() == wanted.hexdigest()

        [task] = json.loads(cluster.run("tasks", "--limit", "1", "--json", check=True).stdout)
        kept = subprocess.run(
            [str(GERES), "logs", task["id"]], env=cluster.env, capture_output=True, check=True, timeout=60
        ).stdout
        assert len(kept) < 65 * MIB
        assert kept.startswith(b"0123456789\n")
        assert kept.endswith(whole[: size % len(whole)][-1000:])
        assert b"bytes left out here" in kept
    assert peak_bytes(cluster, "server") < 200 * MIB
    assert peak_bytes(cluster, "agent") + peak_bytes(cluster, "supervisor") < 100 * MIB


def test_binary_output_comes_back_byte_for_byte(cluster: Cluster, tmp_path: Path) -> None:
    program = tmp_path / "write.py"
    program.write_text(
        "import sys\n"
        "sys.stdout.buffer.write(bytes(range(256)) * 5000)\n"
        r"sys.stderr.buffer.write(b'\x00\xff\xfe\x1b[31m\r no end of line')" + "\n"
    )
    out, err = bytes(range(256)) * 5000, b"\x00\xff\xfe\x1b[31m\r no end of line"
    task = cluster.run("submit", "--", "python3", str(program), check=True).stdout.strip()
    for words in (["run", "--", "python3", str(program)], ["logs", task]):
        cluster.run("wait", task, check=True)
        done = subprocess.run(
            [str(GERES), *words], env=cluster.env, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
        )
        assert done.returncode == 0
        assert done.stdout == out
        assert done.stderr == err


def test_a_task_that_ignores_term_is_killed_after_its_grace(cluster: Cluster) -> None:
    script = "trap '' TERM; echo deaf; while :; do sleep 0.05; done"
    task = cluster.run("submit", "--grace", "0.2s", "--", "sh", "-c", script, check=True).stdout.strip()
    eventually(lambda: cluster.run("logs", task).stdout, lambda text: "deaf" in text)
    with unharmed(cluster):
        cluster.run("cancel", task, check=True)
        assert cluster.run("wait", task, timeout=20).returncode == 130
    done = cluster.run("run", "--grace", "0.2s", "-t", "0.5s", "--", "sh", "-c", script, timeout=20)
    assert done.returncode == 124


DAEMONS = {
    "background": "sleep {n} & echo started",
    "session": "setsid nohup sleep {n} >/dev/null 2>&1 & echo started",
    "daemon": (
        "python3 -c 'import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        os.closerange(0, 100)\n"
        '        os.execlp("sleep", "sleep", "{n}")\n'
        "    os._exit(0)\n"
        "os.wait()'; echo started"
    ),
}


@pytest.mark.parametrize("kind", DAEMONS)
def test_a_daemon_does_not_outlive_its_task(cluster: Cluster, kind: str) -> None:
    seconds = str(7_000_000 + sorted(DAEMONS).index(kind))
    with unharmed(cluster):
        done = cluster.run("run", "--", "sh", "-c", DAEMONS[kind].replace("{n}", seconds), timeout=20)
        assert (done.returncode, done.stdout) == (0, "started\n")
        eventually(lambda: _running(cluster, seconds), lambda found: not found)


def _running(cluster: Cluster, word: str) -> list[psutil.Process]:
    found = []
    for process in cluster.processes():
        try:
            if process.cmdline()[-1:] == [word]:
                found.append(process)
        except psutil.Error:
            continue
    return found


@contextmanager
def no_file_grows(cluster: Cluster, part: str, most_bytes: int) -> Iterator[None]:
    """Let every write of a part (and of what it starts) beyond `most_bytes` of a file fail."""
    process = psutil.Process(cluster.pid(part))
    before = process.rlimit(resource.RLIMIT_FSIZE)
    process.rlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        process.rlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_of_the_server_is_told_and_stores_nothing(cluster: Cluster) -> None:
    with unharmed(cluster, stores_nothing=True), no_file_grows(cluster, "server", 4096):
        for words, status in (
            (["submit", "--", "true"], 7),
            (["run", "--", "true"], 125),
            (["job", "create", "x"], 7),
        ):
            done = cluster.run(*words, timeout=20)
            assert done.returncode == status
            assert done.stderr.startswith("geres: store_full: nothing was stored")
            assert str(cluster.home / "geres.db") in done.stderr
        cluster.run("tasks", check=True)
    assert cluster.run("run", "--", "echo", "again").stdout == "again\n"


def test_a_result_waits_for_room_on_the_server(cluster: Cluster) -> None:
    database = max(path.stat().st_size for path in cluster.home.glob("geres.db*"))
    script = "yes | head -c 60000000"
    with unharmed(cluster):
        with no_file_grows(cluster, "server", database + 8 * MIB):
            task = cluster.run("submit", "--", "sh", "-c", script, check=True).stdout.strip()
            log = cluster.home / "logs" / "agent.log"
            eventually(log.read_text, lambda text: "store_full" in text)
            assert cluster.run("task", "show", task, "--format", "{state}").stdout == "running\n"
        assert cluster.run("wait", task).returncode == 0
        kept = subprocess.run([str(GERES), "logs", task], env=cluster.env, capture_output=True, timeout=60)
        assert kept.stdout == b"y\n" * 30_000_000
    assert not list((cluster.home / "blobs").rglob("*.part"))


@pytest.mark.parametrize("part", ["supervisor", "agent"])
def test_a_full_disk_of_a_node_fails_its_tasks_alone(cluster: Cluster, part: str) -> None:
    """What the supervisor cannot write its tasks cannot write either; the agent writes nothing it needs."""
    with unharmed(cluster):
        with no_file_grows(cluster, part, 0):
            assert cluster.run("run", "--", "true").returncode == 0
            done = cluster.run("run", "--", "echo", "hello")
            if part == "supervisor":
                assert done.returncode == 128 + 25
                assert "SIGXFSZ" in done.stderr
            else:
                assert (done.returncode, done.stdout) == (0, "hello\n")
        assert cluster.run("run", "--", "echo", "again").stdout == "again\n"
