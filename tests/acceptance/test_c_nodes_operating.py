"""What operators do to nodes: drain, remove, reboot, revive, look into and log in to them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.acceptance.acts import (
    PATIENCE_SECONDS,
    Gate,
    another_node,
    eventually,
    own_cluster,
    shown,
    submit,
    wait_for_state,
)
from tests.acceptance.fleet import Fleet
from tests.cluster import Cluster


def state_of(cluster: Cluster, name: str) -> str:
    return shown(cluster, "node", "show", name)["state"]


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster whose own node is called `home`, with a short lease."""
    settings = "[server]\nlease_seconds = 3\n"
    with own_cluster(request, cpus=2, flags=("--name", "home"), settings=settings) as cluster:
        yield cluster


def test_u105_a_drained_node_takes_no_new_task_and_its_task_ends_in_peace(site, tmp_path):
    gate = Gate(tmp_path)
    with another_node(site, "side", "--cpus", "2"):
        running = submit(site, "-w", "side", "--", *gate.words)
        wait_for_state(site, running, "running")
        done = site.run("node", "drain", "side", "--reason", "new disk", check=True)
        assert done.stdout == "side: draining; 1 task runs there\n"
        waiting = submit(site, "-w", "side", "--", "true")

        assert eventually(lambda: state_of(site, "side"), lambda state: state == "draining")
        assert "drain" in site.run("why", waiting, check=True).stdout
        assert shown(site, "task", "show", waiting)["state"] == "queued"
        history = shown(site, "node", "show", "side")["history"]
        assert "new disk" in history[-1]["why"]

        gate.open()
        site.run("wait", running, check=True)
        assert shown(site, "task", "show", waiting)["state"] == "queued"
        site.run("node", "undrain", "side", check=True)
        site.run("wait", waiting, check=True)
        assert shown(site, "task", "show", waiting)["node"] == "side"


def test_u101_remove_waits_for_the_task_and_the_node_stays_out(site, tmp_path):
    gate = Gate(tmp_path)
    with another_node(site, "gone", "--cpus", "2"):
        running = submit(site, "-w", "gone", "--", *gate.words)
        wait_for_state(site, running, "running")
        removing = site.popen("node", "remove", "gone", "--wait")
        eventually(lambda: shown(site, "node", "show", "gone")["going"], lambda going: going == "remove")
        assert "gone" in [node["name"] for node in shown(site, "nodes")]
        assert removing.poll() is None

        gate.open()
        out, err = removing.communicate(timeout=PATIENCE_SECONDS)
        assert (removing.returncode, out) == (0, "gone: removed\n"), err
        assert shown(site, "task", "show", running)["state"] == "succeeded"
        assert "gone" not in [node["name"] for node in shown(site, "nodes")]
        found = shown(site, "node", "show", "gone")
        assert (found["state"], found["connected"]) == ("offline", False)
        assert found["removed_at"]

        site.run("node", "undrain", "gone", check=True)
        eventually(lambda: state_of(site, "gone"), lambda state: state == "idle")


@pytest.mark.parametrize(("how", "state"), [("--requeue", "succeeded"), ("--terminate", "cancelled")])
def test_u101_remove_requeues_or_ends_what_runs(site, tmp_path, how, state):
    gate = Gate(tmp_path)
    with another_node(site, "spare", "--cpus", "2"):
        site.run("node", "drain", "home", check=True)
        running = submit(site, "-w", "spare,home", "--retries", "0", "--", *gate.words)
        wait_for_state(site, running, "running")
        site.run("node", "undrain", "home", check=True)
        site.run("node", "remove", "spare", how, check=True)
        if state == "succeeded":
            eventually(lambda: shown(site, "task", "show", running)["node"], lambda node: node == "home")
            gate.open()
        site.run("wait", running)

        info = shown(site, "task", "show", running)
        assert info["state"] == state
        if state == "succeeded":
            assert (info["node"], info["retry_count"]) == ("home", 0)
        site.run("node", "undrain", "spare", check=True)
        eventually(lambda: state_of(site, "spare"), lambda found: found == "idle")


def test_u101_the_task_of_a_killed_spot_node_runs_again_without_a_retry(site, tmp_path):
    gate = Gate(tmp_path)
    with spot_node(site, "spot") as (agent, home):
        running = submit(site, "-w", "spot", "--retries", "0", "--", *gate.words)
        wait_for_state(site, running, "running")
        kill_node(agent, home)
        eventually(lambda: state_of(site, "spot"), lambda state: state == "lost")
        eventually(lambda: shown(site, "task", "show", running)["state"], lambda state: state == "queued")
    with spot_node(site, "spot"):
        gate.open()
        site.run("wait", running, check=True)
        info = shown(site, "task", "show", running)
        assert (info["state"], info["retry_count"]) == ("succeeded", 0)


def test_u105_many_nodes_globs_dry_run_json_and_errors(site):
    dry = site.run("node", "drain", "ho*", "--dry-run", check=True)
    assert "home" in dry.stdout
    assert state_of(site, "home") != "draining"

    answer = json.loads(site.run("node", "drain", "home", "nowhere", "--json").stdout)
    assert [one.get("code") for one in answer] == [None, "not_found"]
    refused = site.run("node", "undrain", "home", "nowhere")
    assert (refused.returncode, "no node 'nowhere'" in refused.stderr) == (4, True)
    assert site.run("node", "drain", "zz*").returncode == 4
    assert "reboot" in site.run("node", "reboot", "home").stderr
    assert eventually(lambda: state_of(site, "home"), lambda state: state == "idle")


def test_u107_ssh_prints_the_address_that_the_node_registered(site):
    with another_node(site, "far", "--label", "ssh=ops@far.example"):
        words = ("node", "ssh", "far", "--print")
        assert site.run(*words, check=True).stdout == "ssh ops@far.example\n"
        assert site.run(*words, "uptime", check=True).stdout == "ssh ops@far.example uptime\n"


def test_u107_the_logs_of_a_node_come_as_a_text_archive(site, tmp_path):
    task = submit(site, "--", "true")
    site.run("wait", task, check=True)
    with another_node(site, "far"):
        text = site.run("node", "logs", "far", "--since", "1h", check=True).stdout
        assert "==> agent.log" in text
        assert f"connected to {site.url}" in text
        assert (
            site.run("node", "logs", "home", "--since", "1h", check=True).stdout.count("==> supervisor.log")
            == 1
        )

        file = tmp_path / "far.txt"
        said = site.run("node", "logs", "far", "--since", "1h", "-o", str(file), check=True)
        assert (said.stdout, "bytes in" in said.stderr) == ("", True)
        assert "==> agent.log" in file.read_text()
        assert (
            f"connected to {site.url}"
            not in site.run("node", "logs", "far", "--since", "0s", check=True).stdout
        )
    refused = site.run("node", "logs", "far", "-o", str(tmp_path / "none"))
    assert (refused.returncode, "is not connected" in refused.stderr) == (5, True)
    assert not (tmp_path / "none").exists()
    assert site.run("node", "logs", "nowhere").returncode == 4


def test_u106_a_silent_node_is_kicked_once_per_try_and_comes_back(request, tmp_path):
    """The hook starts the agent again, as an operator's would over ssh."""
    log, script = tmp_path / "hook.log", tmp_path / "hook"
    script.write_text(
        f'#!/bin/sh\necho "$1 $GERES_TRY" >> {log}\n[ ! -e {tmp_path}/start ] || . {tmp_path}/start\n'
    )
    script.chmod(0o755)
    settings = f'[server]\nlease_seconds = 3\nhooks = {{ kickstart = "{script}" }}\n'
    with (
        own_cluster(request, cpus=1, flags=("--name", "home"), settings=settings) as cluster,
        spot_node(cluster, "quiet") as (agent, home),
    ):
        kill_node(agent, home)
        lines = eventually(
            lambda: log.read_text().splitlines() if log.exists() else [], lambda all: len(all) > 1
        )
        assert lines[:2] == ["quiet 1", "quiet 2"]
        with spot_node(cluster, "quiet"):
            eventually(lambda: state_of(cluster, "quiet"), lambda state: state == "idle")
            tries = len(log.read_text().splitlines())
        assert len(log.read_text().splitlines()) == tries
        assert "home" not in log.read_text()


def test_u105_reboot_runs_the_hook_once_the_node_is_empty_and_takes_it_back(request, tmp_path):
    log = tmp_path / "hook.log"
    script = tmp_path / "hook"
    script.write_text(f'#!/bin/sh\necho "$1" >> {log}\nexit $(cat {tmp_path}/status)\n')
    script.chmod(0o755)
    (tmp_path / "status").write_text("1\n")
    settings = f'[server]\nhooks = {{ reboot = "{script}" }}\n'
    gate = Gate(tmp_path)
    with own_cluster(request, cpus=1, flags=("--name", "box"), settings=settings) as cluster:
        running = submit(cluster, "--", *gate.words)
        wait_for_state(cluster, running, "running")
        rebooting = cluster.popen("node", "reboot", "box")
        eventually(lambda: shown(cluster, "node", "show", "box")["going"], lambda going: going == "reboot")
        assert not log.exists()
        gate.open()
        _, err = rebooting.communicate(timeout=PATIENCE_SECONDS)
        assert log.read_text() == "box\n"
        assert (rebooting.returncode, "ended with status 1" in err) == (1, True)

        (tmp_path / "status").write_text("0\n")
        cluster.run("node", "reboot", "box", "--detach", check=True)
        eventually(lambda: shown(cluster, "node", "show", "box")["going"], lambda going: going == "rebooting")
        assert state_of(cluster, "box") == "draining"  # until its agent comes back after another boot


@contextlib.contextmanager
def spot_node(cluster: Cluster, name: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A node that a test may kill with all that it runs."""
    from tests.cluster import GERES, clean_environment

    with tempfile.TemporaryDirectory(prefix="geres-test-") as folder:
        home = Path(folder) / "home"
        home.mkdir()
        (home / "agent.token").write_bytes((cluster.home / "agent.token").read_bytes())
        log = (home / "log").open("w")
        agent = subprocess.Popen(
            [GERES, "agent", "--url", cluster.url, "--name", name, "--stop-tasks", "--cpus", "1"],
            env=clean_environment(home),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            eventually(
                lambda: {node["name"]: node["state"] for node in shown(cluster, "nodes")},
                lambda nodes: nodes.get(name) in ("idle", "running"),
            )
            yield agent, home
        finally:
            if agent.poll() is None:
                agent.terminate()
                assert agent.wait(PATIENCE_SECONDS) == 0, (home / "log").read_text()
            log.close()


def kill_node(agent: subprocess.Popen[bytes], home: Path) -> None:
    """End the agent, its supervisor and its tasks at once, as a machine that vanishes does."""
    wanted = [
        process
        for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get("GERES_HOME") == str(home)
    ]
    for process in wanted:
        with contextlib.suppress(psutil.NoSuchProcess):
            os.kill(process.pid, signal.SIGSTOP)
    for process in wanted:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    agent.wait(PATIENCE_SECONDS)


def test_u101_u105_u107_nodes_of_another_server_are_looked_after_alike(postgres_server, tmp_path):
    """The node `far` is connected to the second server alone; the operator asks the first."""
    gate = Gate(tmp_path)
    with postgres_server.fresh() as url, Fleet(url) as fleet:
        here, there = fleet.servers
        fleet.agent("far", there)
        client = fleet.client(here)
        assert "==> agent.log" in fleet.run(here, "node", "logs", "far").stdout

        task = fleet.run(here, "submit", "--cwd", "task", "--", *gate.words).stdout.strip()
        eventually(lambda: client.task_info(task).state.value, lambda state: state == "running")
        fleet.run(here, "node", "drain", "far")
        waiting = fleet.run(here, "submit", "--cwd", "task", "--", "true").stdout.strip()
        fleet.run(here, "node", "remove", "far", "--requeue")
        assert client.node("far").removed_at is not None
        assert {client.task_info(one).state.value for one in (task, waiting)} == {"queued"}
        assert [node.name for node in fleet.client(there).nodes()] == []

        fleet.run(here, "node", "undrain", "far")
        gate.open()
        fleet.run(here, "wait", task, waiting)
        assert client.task_info(task).retry_count == 0


def test_u101_at_a_terminal_it_asks_before_tasks_are_cancelled(site, tmp_path):
    gate = Gate(tmp_path)
    task = submit(site, "-w", "home", "--", *gate.words)
    wait_for_state(site, task, "running")
    ours, theirs = pty.openpty()
    try:
        words = ("node", "remove", "home", "--terminate")
        os.write(ours, b"n\n")
        asking = site.popen(*words, stdin=theirs)
        _, err = asking.communicate(timeout=PATIENCE_SECONDS)
    finally:
        os.close(ours)
        os.close(theirs)
    assert (asking.returncode, "home (1)" in err, "nothing was done" in err) == (1, True, True)
    assert shown(site, "task", "show", task)["state"] == "running"
    eventually(lambda: state_of(site, "home"), lambda state: state == "running")
    gate.open()
    site.run("wait", task, check=True)
