"""Upgrades under load: parts are replaced by new processes, and neither tasks nor clients notice."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

import geres
from tests.acceptance.acts import attempts, eventually, shown, states, submit, wait_for_state
from tests.cluster import GERES
from tests.compatibility.releases import World, current
from tests.server.certificates import Authority

GAP_SECONDS = 2.0


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
    attempt = attempts(cluster, busy)
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
    assert attempts(cluster, busy) == attempt
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


def test_u119_a_certificate_that_cannot_be_used_leaves_the_old_one_at_work(make_cluster, tmp_path):
    """On SQLite, where the old one has to let go of the file before the new one can open it."""
    files = Authority(tmp_path).sign("head")
    words = ("--certificate", str(files[0]), "--key", str(files[1]))
    env = {"SSL_CERT_FILE": str(tmp_path / "authority.pem")}
    cluster = make_cluster(flags=("--no-agent", *words))
    old = cluster.pid("server")
    files[0].write_text("half a certificate")

    done = cluster.run("restart", "server", env=env)

    assert done.returncode == 7, done
    assert "the old one goes on" in done.stderr
    assert cluster.pid("server") == old
    assert cluster.run("submit", "true", env=env).returncode == 0


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_u119_a_server_starts_with_an_array_in_its_queue(make_cluster, store):
    cluster = make_cluster(store=store, flags=("--no-agent",))
    array = cluster.run("submit", "--array", "1-20", "--", "true", check=True).stdout.strip()
    eventually(lambda: shown(cluster, "job", "show", array)["counts"]["not_yet"], lambda left: left == 0)
    cluster.run("restart", "server", check=True)
    cluster.kill("server")
    assert states(cluster, f"{array}.1", f"{array}.20") == ["queued", "queued"]


def test_u119_an_agent_is_restarted_and_its_tasks_keep_their_processes(make_cluster, gate):
    cluster = make_cluster()
    task = submit(cluster, *gate.words)
    wait_for_state(cluster, task, "running")
    attempt = attempts(cluster, task)
    supervisor = psutil.Process(cluster.pid("supervisor"))
    children = {child.pid for child in supervisor.children()}

    cluster.run("restart", "agent", check=True)

    assert {child.pid for child in supervisor.children()} == children
    assert cluster.run("run", "echo", "alive", check=True).stdout == "alive\n"
    gate.open()
    cluster.run("wait", task, check=True)
    assert attempts(cluster, task) == attempt


def test_u119_a_supervisor_without_tasks_is_replaced_with_its_agent(make_cluster):
    """So that it is of the release that is installed; one that has tasks stays, and they with it."""
    cluster = make_cluster()
    cluster.run("run", "true", check=True)
    before = cluster.pid("supervisor")
    cluster.run("restart", "agent", check=True)
    assert cluster.run("run", "echo", "hi", check=True).stdout == "hi\n"
    eventually(lambda: cluster.pid("supervisor") not in (before, None))
    assert cluster.run("doctor", check=True).stdout == ""


def has_begun_anew(client, name):
    return "the agent began anew" in [one.why for one in client.node(name).history]


def test_u119_the_servers_and_agents_of_a_fleet_are_restarted_one_by_one(fresh_postgres, gate):
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="geres-test-")))
        world = stack.enter_context(contextlib.closing(World(folder, fresh_postgres())))
        release, ports = current(), {"h": world.port, "h2": world.port + 1}
        servers = {"h": world.server(release)}
        (folder / "h2").mkdir()
        for name in ("token", "agent.token"):
            (folder / "h2" / name).write_bytes((folder / "h" / name).read_bytes())
        servers["h2"] = world.server(release, home=folder / "h2", port=ports["h2"])
        agents = {"n1": world.agent(release, "n1"), "n2": world.agent(release, "n2", ports["h2"])}
        client = world.client()
        long = [client.submit([*gate.words]) for _ in range(3)]
        for task in long:
            eventually(lambda task=task: task.refresh().state.value, lambda state: state == "running")
        running = [task.refresh().attempt for task in long]
        job = client.create_job().id
        short = [client.submit(["sh", "-c", f"sleep 0.1; echo {n}"], job=job) for n in range(30)]

        with Watcher(client) as watcher:
            for home, old in servers.items():
                world.server(release, home=folder / home, port=ports[home])
                assert old.wait(30) == 0, world.logs()
            for name, agent in agents.items():
                heard = client.node(name).last_heartbeat_at
                os.kill(agent.pid, signal.SIGUSR1)
                eventually(partial(has_begun_anew, client, name))
                assert client.node(name).last_heartbeat_at > heard
        assert not watcher.errors
        assert watcher.longest < GAP_SECONDS, f"a client waited {watcher.longest:.1f} s"

        gate.open()
        for task in [*long, *short]:
            assert task.wait(timeout=60).state == "succeeded"
        assert [task.refresh().attempt for task in long] == running
        assert [task.stdout() for task in short] == [f"{n}\n" for n in range(30)]
        page = client.results_page(job, after=0, limit=1000)
        assert [one.finish_no for one in page.items] == list(range(1, 31))
        assert client.doctor() == []
