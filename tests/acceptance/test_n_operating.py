"""Operating: is it ready, what does it do, and settings that take effect without a restart of tasks."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request

import pytest

from tests.acceptance.acts import (
    another_node,
    attempts,
    eventually,
    own_cluster,
    shown,
    submit,
    wait_for_state,
)


def ask(cluster, path):
    """Status and text of a GET without a token."""
    try:
        with urllib.request.urlopen(f"{cluster.url}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_u141_health_and_readiness_need_no_token_and_name_the_parts(any_cluster):
    assert ask(any_cluster, "/healthz") == (200, "ok\n")
    status, text = ask(any_cluster, "/readyz")
    ready = json.loads(text)
    assert (status, ready["ready"]) == (200, True)
    assert ready["parts"] == dict.fromkeys(("accepting", "store", "schema", "loops"), "ok")


def test_u141_a_server_without_its_store_says_that_it_is_not_ready(postgres_server_of_its_own, tmp_path):
    from tests.cluster import Cluster

    server = postgres_server_of_its_own
    with server.fresh() as url, Cluster(tmp_path, store=url, flags=("--no-agent",)) as cluster:
        assert ask(cluster, "/readyz")[0] == 200
        server.crash()
        _, text = eventually(lambda: ask(cluster, "/readyz"), lambda seen: seen[0] == 503)
        parts = json.loads(text)["parts"]
        assert parts["store"] == "the store does not answer"
        assert "postgres" not in text
        assert ask(cluster, "/healthz")[0] == 200  # no reason to start it again
        server.restart()
        eventually(lambda: ask(cluster, "/readyz")[0], lambda status: status == 200)


def test_u141_the_state_of_the_server_is_shown(any_cluster, gate):
    task = submit(any_cluster, *gate.words)
    wait_for_state(any_cluster, task, "running")

    state = shown(any_cluster, "debug", "state")
    assert state["pid"] == any_cluster.pid("server")
    [node] = state["nodes"]
    assert (node["attempts"], node["cpus_free"]) == (1, 1)
    loops = {loop["name"]: loop for loop in state["loops"]}
    assert {"dispatcher", "leases", "janitor", "job ender"} <= loops.keys()
    assert loops["dispatcher"]["rounds"] > 0
    assert loops["dispatcher"]["longest_seconds"] >= loops["dispatcher"]["mean_seconds"] > 0
    assert not any(loop["error"] for loop in state["loops"])
    assert state["memory_bytes"] > 1 << 20
    assert state["threads"][0]["frames"]
    assert state["tasks"]
    text = any_cluster.run("debug", "state", "--stacks", check=True).stdout
    assert "dispatcher" in text
    assert node["name"] in text


def test_u141_the_state_is_for_admins(cluster):
    made = shown(cluster, "token", "create", "--role", "viewer")
    env = {"GERES_URL": cluster.url, "GERES_TOKEN": made["token"]}
    refused = cluster.run("debug", "state", env=env)
    assert refused.returncode == 3
    assert "admin" in refused.stderr


@pytest.fixture
def limited(request):
    """A cluster whose node takes one task at once, as its settings file says."""
    with own_cluster(request, cpus=4, settings="[agent]\nslots = 1\n") as cluster:
        yield cluster


def set_slots(cluster, text):
    (cluster.home.parent / "geres.toml").write_text(
        f"[agent]\nslots = {text}\n[agent.labels]\nsite = 'north'\n"
    )


def test_u141_a_changed_limit_is_active_after_a_reload_and_no_task_is_killed(limited, gate):
    first, second = submit(limited, *gate.words), submit(limited, *gate.words)
    wait_for_state(limited, first, "running")
    attempt = attempts(limited, first)
    pids = {part: limited.pid(part) for part in ("server", "agent", "supervisor")}
    assert "slot" in limited.run("why", second, check=True).stdout

    set_slots(limited, 2)
    done = limited.run("agent", "reload", "--all", check=True)

    assert "read its settings again" in done.stderr
    wait_for_state(limited, second, "running")
    assert wait_for_state(limited, first, "running") == "running"
    assert {part: limited.pid(part) for part in pids} == pids
    [node] = shown(limited, "nodes")
    assert node["labels"] == {"site": "north"}
    gate.open()
    limited.run("wait", first, second, check=True)
    assert attempts(limited, first) == attempt
    history = shown(limited, "node", "show", node["name"])["history"]
    assert [one["why"] for one in history].count("the agent read its settings again") == 1


@pytest.mark.parametrize("words", [("agent", "reload"), ("agent", "reload", "--all")])
def test_u141_settings_that_cannot_be_are_refused_and_the_old_ones_stay(limited, words):
    set_slots(limited, "'many'")

    done = limited.run(*words)

    assert done.returncode == 2
    assert "the agent keeps its settings" in done.stderr
    assert "agent.slots" in done.stderr
    assert limited.run("run", "echo", "alive", check=True, cwd="/").stdout == "alive\n"
    set_slots(limited, 3)
    limited.run(*words, check=True)


def test_u141_an_agent_here_is_reloaded_by_a_signal(limited, gate):
    tasks = [submit(limited, *gate.words) for _ in range(3)]
    wait_for_state(limited, tasks[0], "running")
    set_slots(limited, 3)

    os.kill(limited.pid("agent"), signal.SIGHUP)

    for task in tasks:
        wait_for_state(limited, task, "running")


def test_u141_agents_elsewhere_are_restarted_with_their_tasks_running(cluster, gate):
    with another_node(cluster, "far"):
        task = submit(cluster, "-w", "far", *gate.words)
        wait_for_state(cluster, task, "running")
        attempt = attempts(cluster, task)

        done = cluster.run("agent", "restart", "--nodes", "far,gone")

        assert done.returncode == 4
        assert "far: the agent began anew" in done.stderr
        assert "gone: not_found" in done.stderr
        assert wait_for_state(cluster, task, "running") == "running"
        gate.open()
        cluster.run("wait", task, check=True)
        assert attempts(cluster, task) == attempt
