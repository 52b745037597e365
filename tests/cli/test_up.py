"""`geres up` and `geres down`: real parts, kept running, stopped in order."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.cluster import GERES, Cluster, clean_environment


@pytest.fixture
def home() -> Iterator[Path]:
    """A home with a path short enough for sockets; whatever still runs in it is killed."""
    folder = Path(tempfile.mkdtemp(prefix="geres-up-")) / "home"
    yield folder
    for process in psutil.process_iter():
        try:
            if process.environ().get("GERES_HOME") == str(folder) and process.pid != os.getpid():
                process.kill()
        except psutil.Error:
            continue
    shutil.rmtree(folder.parent)


def geres(home: Path, *words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    env = clean_environment(home)
    return subprocess.run([str(GERES), *words], env=env, capture_output=True, text=True, timeout=timeout)


def up(home: Path, *words: str) -> None:
    """`geres up --detach`, done."""
    done = geres(home, "up", "--detach", *words)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Call it for a `geres up` in the foreground, up and ready."""
    with contextlib.ExitStack() as stack:

        def call(*words: str) -> subprocess.Popen[str]:
            keeper = stack.enter_context(
                subprocess.Popen(
                    [str(GERES), "up", *words],
                    env=clean_environment(home),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(keeper.kill)
            assert keeper.stdout is not None
            assert keeper.stderr is not None
            line = keeper.stdout.readline()
            assert "is up at http://" in line, line + keeper.stderr.read()
            return keeper

        yield call


def eventually(true: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_up_says_where_and_down_leaves_nothing_running(home, start):
    keeper = start("--cpus", "3", "--memory", "2G", "-r", "disk=4", "--label", "site=north")
    up = json.loads((home / "up.json").read_text())
    assert up["pid"] == keeper.pid
    assert (home / "token").stat().st_mode & 0o777 == 0o600
    status = json.loads(geres(home, "status", "--json").stdout)
    assert status["home"] == str(home)
    assert status["nodes"] == {"total": 1, "connected": 1}
    (node,) = json.loads(geres(home, "nodes", "--json").stdout)
    assert (node["total"]["cpus"], node["total"]["memory_bytes"]) == (3, 2 << 30)
    assert (node["total"]["resources"], node["labels"]["site"]) == ({"disk": 4}, "north")
    done = geres(home, "down")
    assert (done.returncode, done.stdout) == (0, "")
    assert keeper.wait(20) == 0
    assert not [pid for pid in up["parts"].values() if psutil.pid_exists(pid)]
    assert not (home / "address.json").exists()
    assert geres(home, "status").returncode == 7
    assert geres(home, "down").returncode == 4


def test_the_command_lines_of_the_parts_say_what_they_are(home, start):
    start()
    parts = json.loads((home / "up.json").read_text())["parts"]
    for name, pid in parts.items():
        assert f"geres {name}" in " ".join(psutil.Process(pid).cmdline())
        assert psutil.Process(pid).environ()["GERES_HOME"] == str(home)
    geres(home, "down")


def test_detached_it_outlives_its_caller_and_its_session(home):
    done = geres(home, "up", "--detach")
    assert done.returncode == 0
    assert "is up at" in done.stdout
    keeper = psutil.Process(json.loads((home / "up.json").read_text())["pid"])
    assert os.getsid(keeper.pid) not in (os.getsid(0), keeper.pid), "no terminal can come to it"
    assert keeper.terminal() is None
    assert geres(home, "run", "echo", "hi").stdout == "hi\n"
    again = geres(home, "up")
    assert again.returncode == 5
    assert f"geres is up already in {home} (process {keeper.pid}) at http://" in again.stderr
    assert geres(home, "down").returncode == 0


def test_a_busy_port_is_refused_when_asked_for_and_passed_over_when_not(home):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = geres(home, "up", "--port", str(port))
        assert done.returncode == 5
        assert f"port {port} on 127.0.0.1 is taken" in done.stderr


@pytest.mark.parametrize("words", [(), ("--detach",)], ids=["stays", "detached"])
def test_a_server_that_cannot_start_is_one_sentence(home, words):
    home.mkdir()
    bad = home / "other"
    bad.mkdir()
    done = geres(home, "up", *words, "--store", f"sqlite:{bad}")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("geres: ")
    assert geres(home, "down").returncode == 4


def test_a_database_that_is_none_is_refused(home):
    home.mkdir()
    (home / "geres.db").write_text("dear diary")
    done = geres(home, "up", "--detach")
    assert done.returncode == 2
    assert "geres.db is no database of geres" in done.stderr
    assert (home / "geres.db").read_text() == "dear diary"


@pytest.mark.parametrize("part", ["server", "agent"])
def test_a_part_that_dies_is_started_again_and_the_work_goes_on(make_cluster, part):
    cluster: Cluster = make_cluster()
    task = cluster.client().submit(["sh", "-c", "sleep 1; echo done"])
    killed = cluster.kill(part)
    assert cluster.wait_for(part) != killed
    assert task.wait(timeout=30, check=True).stdout() == "done\n"
    assert task.attempt == 1
    assert f"the {part} (process {killed}) died: SIGKILL" in dict(cluster.logs())["up.log"]


def test_a_kept_part_is_named_in_up_json_after_its_restart(make_cluster):
    cluster: Cluster = make_cluster()
    cluster.kill("server")
    pid = cluster.wait_for("server")
    eventually(lambda: json.loads((cluster.home / "up.json").read_text())["parts"]["server"] == pid)


def test_what_cannot_be_noted_ends_nothing(make_cluster):
    """As on a full disk: parts are kept running although up.json cannot be written."""
    cluster = make_cluster(flags=("--no-agent",))
    keeper = cluster.pid("up")
    (cluster.home / "up.json.new").mkdir()
    cluster.kill("server")
    eventually(lambda: cluster.run("status").returncode == 0)
    assert cluster.pid("up") == keeper
    (cluster.home / "up.json.new").rmdir()


def test_a_log_that_has_grown_large_is_put_aside_while_its_writer_goes_on(make_cluster):
    cluster = make_cluster(flags=("--no-agent",))
    log = cluster.home / "logs" / "server.log"
    os.truncate(log, 65 << 20)  # sparse: as if it had been written for months
    os.kill(cluster.pid("up"), signal.SIGCHLD)  # it looks every minute, and when something happens
    eventually(lambda: log.stat().st_size < 1 << 20)
    aside = log.with_suffix(".log.1")
    assert aside.stat().st_size == 65 << 20
    assert aside.stat().st_mode & 0o077 == 0
    cluster.kill("server", signal.SIGTERM)  # says so in its log, and is started again
    eventually(lambda: b"stopping" in log.read_bytes())
    assert not log.read_bytes().startswith(b"\0")


def test_the_password_of_the_store_is_in_no_command_line(home):
    store = "postgresql://geres:open-sesame@127.0.0.1:1/geres"
    (home.parent / "geres.toml").write_text(f'[server]\nstore = "{store}"\n')
    with subprocess.Popen(
        [str(GERES), "up"],
        cwd=home.parent,
        env=clean_environment(home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as keeper:
        seen = []

        def server():
            with contextlib.suppress(psutil.Error):
                seen.extend(" ".join(one.cmdline()) for one in psutil.Process(keeper.pid).children())
            return any("server" in words for words in seen) or keeper.poll() is not None

        eventually(server)
        _, told = keeper.communicate(timeout=60)
    assert any("server" in words for words in seen)
    assert "open-sesame" not in "".join(seen)
    assert "the database does not answer" in told  # the server did get it
    assert "open-sesame" not in told


def test_ctrl_c_names_the_running_tasks_and_lets_them_end(home, start):
    keeper = start()
    submitted = geres(
        home, "submit", "--name", "last", "--", "sh", "-c", "sleep 1.5; echo whole"
    ).stdout.strip()
    eventually(lambda: "running" in geres(home, "task", "show", submitted, "--format", "{state}").stdout)
    keeper.send_signal(signal.SIGINT)
    _, said = keeper.communicate(timeout=30)
    assert keeper.returncode == 0
    assert f"stopping; 1 running: {submitted} last; they get 20 s" in said
    up(home)
    assert geres(home, "logs", submitted).stdout == "whole\n"
    geres(home, "down")


def test_a_second_ctrl_c_stops_now(home, start):
    keeper = start()
    submitted = geres(home, "submit", "--", "sleep", "61.7").stdout.strip()
    eventually(lambda: "running" in geres(home, "task", "show", submitted, "--format", "{state}").stdout)
    begun = time.monotonic()
    keeper.send_signal(signal.SIGINT)
    assert keeper.stderr is not None
    for line in keeper.stderr:
        if "stopping" in line:
            break
    keeper.send_signal(signal.SIGINT)
    keeper.communicate(timeout=30)
    assert time.monotonic() - begun < 15
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "61.7"]]


def test_down_stops_the_parts_of_a_keeper_that_was_killed(home, start):
    keeper = start()
    parts = json.loads((home / "up.json").read_text())["parts"]
    keeper.kill()
    keeper.communicate()
    again = geres(home, "up")
    assert again.returncode == 5
    assert "parts of an earlier geres still run" in again.stderr
    assert geres(home, "down").returncode == 0
    for pid in parts.values():
        eventually(lambda pid=pid: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")
    up(home)
    geres(home, "down")


def test_a_purge_does_not_wait_for_tasks_of_which_nothing_is_kept(home):
    up(home)
    script = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    task = geres(home, "submit", "--grace", "10m", "--", "sh", "-c", script).stdout.strip()
    eventually(lambda: "ready" in geres(home, "logs", task).stdout)

    done = geres(home, "down", "--purge", "--yes")

    assert done.returncode == 0, done.stderr
    assert "they get a while" not in done.stderr
    assert not (home / "geres.db").exists()


def test_what_was_stored_is_there_after_down_and_up_and_gone_after_purge(home):
    up(home)
    (home / "mine.txt").write_text("keep me")
    assert geres(home, "run", "--name", "kept", "true").returncode == 0
    geres(home, "down")
    up(home)
    assert "kept" in geres(home, "history", "--format", "{name}").stdout
    assert geres(home, "down", "--purge").returncode == 1  # nobody answers
    assert geres(home, "status").returncode == 0
    done = geres(home, "down", "--purge", "--yes")
    assert done.returncode == 0
    assert "geres.db" in done.stderr
    assert [path.name for path in home.iterdir()] == ["mine.txt"]


def test_what_down_stopped_starts_anew_with_the_next_up(home):
    up(home)
    task = geres(home, "submit", "--", "sleep", "62.3").stdout.strip()
    shown = ("task", "show", task, "--format", "{state} {attempt} {requeue_count} {retry_count}")
    eventually(lambda: "running" in geres(home, *shown).stdout)

    assert geres(home, "down", "--now").returncode == 0
    up(home)

    eventually(lambda: geres(home, *shown).stdout == "running 2 1 0\n")
    geres(home, "cancel", task)
    assert geres(home, "wait", task).returncode == 130
    geres(home, "down")


def test_the_python_module_is_the_command_too(home):
    done = subprocess.run([sys.executable, "-m", "geres", "version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "geres 0.1.0\n")


def test_down_ends_the_tasks_of_an_agent_that_was_killed_with_its_keeper(home, start):
    keeper = start()
    geres(home, "submit", "--", "sh", "-c", "exec sleep 62.3")
    eventually(
        lambda: [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "62.3"]]
    )
    keeper.kill()
    keeper.communicate()
    os.kill(json.loads((home / "up.json").read_text())["parts"]["agent"], signal.SIGKILL)
    assert geres(home, "down").returncode == 0
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "62.3"]]
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(home) in " ".join(p.info["cmdline"] or [])]
