"""The start task of a pool: each of its nodes runs it after a boot, before it takes tasks."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.acts import PATIENCE_SECONDS, eventually, own_cluster, shown, submit
from tests.acceptance.harm import assert_refused
from tests.acceptance.test_c_nodes_operating import kill_node, state_of
from tests.acceptance.test_k_access import as_user, make_token
from tests.cluster import GERES, Cluster, clean_environment

#: An agent whose machine has been started again: the kernel gives each boot a number of its own.
_AFTER_BOOT = (
    "import sys, geres.agent.supervisor as s; s.boot_id = lambda: 'the-next-boot';"
    "from geres.agent.main import main; sys.exit(main())"
)


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose own node is of the pool `default`, with a hook for reboots that notes the name."""
    hook = tmp_path_factory.mktemp("hook") / "hook"
    hook.write_text(f'#!/bin/sh\necho "$1" >> {hook}.log\n')
    hook.chmod(0o755)
    settings = f'[server]\nlease_seconds = 3\nhooks = {{ reboot = "{hook}" }}\n'
    with own_cluster(request, cpus=1, flags=("--name", "home"), settings=settings) as cluster:
        cluster.hook_log = Path(f"{hook}.log")
        yield cluster


@contextlib.contextmanager
def machine(cluster: Cluster) -> Iterator[Path]:
    """A home for agents that are no part of `geres up`."""
    with tempfile.TemporaryDirectory(prefix="geres-test-") as folder:
        home = Path(folder) / "home"
        home.mkdir()
        shutil.copy2(cluster.home / "agent.token", home)
        yield home


@contextlib.contextmanager
def node(
    cluster: Cluster, home: Path, name: str, *program: str, pool: str = "lab"
) -> Iterator[subprocess.Popen[bytes]]:
    """An agent that is started; whether it gets into service is the test's business."""
    words = [*(program or (str(GERES), "agent")), "--url", cluster.url, "--name", name, "--pool", pool]
    with (home / "log").open("a") as log:
        agent = subprocess.Popen(
            [*words, "--stop-tasks", "--cpus", "1"],
            env=clean_environment(home),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            yield agent
        finally:
            if agent.poll() is None:
                agent.terminate()
                assert agent.wait(PATIENCE_SECONDS) == 0, (home / "log").read_text()


def test_u040_the_first_task_of_a_node_sees_what_its_start_task_made(site: Cluster) -> None:
    made = site.run("pool", "set", "lab", "--create", "--json", "--", "touch", "x", check=True)
    assert json.loads(made.stdout)["start_task"]["command"] == ["touch", "x"]
    first = submit(site, "-p", "lab", "--cwd", "task", "--shell", "ls $GERES_NODE_SHARED_DIR")
    with machine(site) as home, node(site, home, "fresh"):
        site.run("wait", first, check=True)
        assert site.run("logs", first, check=True).stdout == "x\n"
        states = [change["state"] for change in shown(site, "node", "show", "fresh")["history"]]
        assert states[0] == "starting"
        assert states[1] in ("idle", "running")


def test_u040_a_node_whose_start_task_fails_stays_out_of_service_and_says_why(site: Cluster) -> None:
    user = as_user(make_token(site, "--user", "root", "--role", "user"))
    assert_refused(
        site.run("pool", "set", "lab", "--", "true", env=user), "operator", status=3, code="denied"
    )
    site.run("pool", "set", "lab", "--create", "--retries", "1", "--", "false", check=True)
    task = submit(site, "-p", "lab", "--cwd", "task", "--", "true")
    why = "start task failed: exit 1, after 2 tries"
    with machine(site) as home, node(site, home, "broken"):
        eventually(lambda: [one["name"] for one in shown(site, "nodes")], lambda names: "broken" in names)
        eventually(lambda: state_of(site, "broken"), lambda state: state == "start_failed")
        assert f"its {why}" in site.run("nodes", check=True).stderr
        assert f"its {why}" in site.run("node", "show", "broken", check=True).stdout
        assert why in site.run("doctor").stdout
        assert (
            "no node is in service: start task failed on broken: exit 1"
            in site.run("why", task, check=True).stdout
        )
        assert shown(site, "why", task)["satisfiable"]
        assert "try 2 of 2: false" in site.run("node", "logs", "broken", check=True).stdout
        assert shown(site, "task", "show", task)["state"] == "queued"

        site.run("pool", "set", "lab", "--", "true", check=True)
        site.run("agent", "restart", "--nodes", "broken", check=True)
        site.run("wait", task, check=True)
        assert shown(site, "task", "show", task)["node"] == "broken"


def test_u105_reboot_leads_back_to_idle_and_the_start_task_ran_again(site: Cluster, tmp_path: Path) -> None:
    site.run("pool", "set", "lab", "--create", "--shell", f"echo ran >> {tmp_path}/runs", check=True)
    with machine(site) as home:
        with node(site, home, "box") as agent:
            eventually(lambda: [one["name"] for one in shown(site, "nodes")], lambda names: "box" in names)
            eventually(lambda: state_of(site, "box"), lambda state: state == "idle")
            rebooting = site.popen("node", "reboot", "box")
            eventually(site.hook_log.exists)
            kill_node(agent, home)
        with node(site, home, "box", sys.executable, "-c", _AFTER_BOOT):
            out, err = rebooting.communicate(timeout=PATIENCE_SECONDS)
            assert (rebooting.returncode, out) == (0, "box: is back\n"), err
            assert (state_of(site, "box"), (tmp_path / "runs").read_text()) == ("idle", "ran\nran\n")
            states = [change["state"] for change in shown(site, "node", "show", "box")["history"]]
            assert states[-2:] == ["starting", "idle"]
            task = submit(site, "-w", "box", "-p", "lab", "--cwd", "task", "--", "true")
            site.run("wait", task, check=True)
