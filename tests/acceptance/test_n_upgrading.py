"""Upgrades under load: parts are replaced by new processes, and neither tasks nor clients notice."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time

import psutil
import pytest

import geres
from tests.acceptance.acts import Gate, eventually, shown, states, submit, wait_for_state
from tests.cluster import GERES

GAP_SECONDS = 2.0


@pytest.fixture
def gate(tmp_path):
    made = Gate(tmp_path)
    yield made
    made.open()


class Watcher:
    """A client that asks again and again, in a thread; the longest time that an answer took."""

    def __init__(self, client):
        self._client, self._stop = client, threading.Event()
        self.longest, self.answers, self.errors = 0.0, 0, []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        eventually(lambda: self.answers)
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join()

    def _run(self):
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self._client.summary()
            except geres.GeresError as error:
                self.errors.append(error)
            self.longest = max(self.longest, time.monotonic() - began)
            self.answers += 1


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_u119_all_parts_are_restarted_under_work_and_nobody_notices(make_cluster, gate, tmp_path, store):
    cluster = make_cluster(store=store, cpus=4)
    busy = submit(cluster, *gate.words)
    wait_for_state(cluster, busy, "running")
    before = {part: cluster.pid(part) for part in ("up", "server", "supervisor")}
    streamed = cluster.popen(
        "run", "--", "sh", "-c", "for n in $(seq 60); do echo $n; sleep 0.05; done", stdin=subprocess.DEVNULL
    )
    waiting = cluster.popen("wait", busy, stdin=subprocess.DEVNULL)
    job = cluster.run("job", "create", check=True).stdout.strip()
    lines = "".join(f'{{"command": ["sh", "-c", "echo {n} >> {tmp_path}/ran"]}}\n' for n in range(150))
    cluster.run("submit", "--job", job, "--from", "-", input=lines, check=True)

    with Watcher(cluster.client()) as watcher:
        for _ in range(2):
            cluster.run("restart", "server", check=True)
            cluster.run("restart", "agent", check=True)
    assert not watcher.errors
    assert watcher.longest < GAP_SECONDS, f"a client waited {watcher.longest:.1f} s"

    assert cluster.pid("server") != before["server"]
    assert {part: cluster.pid(part) for part in ("up", "supervisor")} == {
        part: before[part] for part in ("up", "supervisor")
    }
    assert waiting.poll() is None
    gate.open()
    assert waiting.wait(60) == 0, waiting.communicate()
    out, talk = streamed.communicate(timeout=60)
    assert (streamed.returncode, out.split()) == (0, [str(n) for n in range(1, 61)]), talk
    waiting.communicate()
    cluster.run("wait", job, check=True)
    assert sorted(map(int, (tmp_path / "ran").read_text().split())) == list(range(150))  # each once
    assert shown(cluster, "task", "show", busy)["attempt"] == 1
    assert cluster.run("doctor", check=True).stdout == ""


def test_u119_a_server_by_hand_takes_over_from_the_one_on_its_port(tmp_path, make_cluster):
    """Without `geres up`: two servers share the port for a moment, and the old one goes by itself."""
    cluster = make_cluster(flags=("--no-agent",))
    words = ["server", "--home", str(cluster.home), "--port", str(cluster.port)]
    refused = cluster.run(*words)
    assert refused.returncode == 5
    assert "geres restart" in refused.stderr

    home = tmp_path / "h"
    with contextlib.ExitStack() as stack:

        def start():
            log = stack.enter_context((tmp_path / "log").open("a"))
            words = [GERES, "server", "--home", home, "--port", str(port)]
            env = cluster.env | {"GERES_HOME": str(home)}
            server = subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            stack.callback(lambda: server.poll() is None and (server.kill(), server.wait()))
            return server

        port = cluster.port + 1
        first = start()
        client = eventually(lambda: _client_of(home))
        with Watcher(client) as watcher:
            second = start()
            assert first.wait(30) == 0, (tmp_path / "log").read_text()
            seen = watcher.answers
            eventually(lambda: watcher.answers > seen + 3)
        assert not watcher.errors
        assert watcher.longest < GAP_SECONDS
        assert second.poll() is None
        assert client.submit(["true"]).id == "1.1"
        client.close()
        second.terminate()
        assert second.wait(30) == 0


def _client_of(home):
    try:
        client = geres.Client(home=home)
        client.summary()
    except geres.GeresError:
        return None
    return client


def test_u119_a_server_that_cannot_take_over_leaves_the_old_one_at_work(make_cluster):
    cluster = make_cluster(flags=("--no-agent",))
    old = cluster.pid("server")
    (cluster.home.parent / "geres.toml").write_text("[server]\nlease_seconds = 1\n")  # refused

    done = cluster.run("restart", "server")

    assert done.returncode == 7, done
    assert "the old one goes on" in done.stderr
    assert cluster.pid("server") == old
    assert states(cluster, submit(cluster, "true")) == ["queued"]


def test_u119_an_agent_is_restarted_and_its_tasks_keep_their_processes(make_cluster, gate):
    cluster = make_cluster()
    task = submit(cluster, *gate.words)
    wait_for_state(cluster, task, "running")
    supervisor = psutil.Process(cluster.pid("supervisor"))
    children = {child.pid for child in supervisor.children()}

    cluster.run("restart", "agent", check=True)

    assert {child.pid for child in supervisor.children()} == children
    assert cluster.run("run", "echo", "alive", check=True).stdout == "alive\n"
    gate.open()
    cluster.run("wait", task, check=True)
    assert shown(cluster, "task", "show", task)["attempt"] == 1
