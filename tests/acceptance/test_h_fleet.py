"""A fleet that loses nothing: leases, lost nodes, lost contact, restarts of agents and of servers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from geres.agent.journal import Journal, read
from tests.acceptance.acts import Gate, eventually
from tests.acceptance.site import LEASE_SECONDS, Node, Site, is_alive, marks
from tests.cluster import GERES


@pytest.fixture(scope="module")
def server() -> Iterator[Site]:
    with Site() as made:
        yield made


@pytest.fixture
def site(server: Site) -> Iterator[Site]:
    """The site, of which no node of an earlier test is left but as lost."""
    yield server
    server.end_nodes()


@pytest.fixture(scope="module")
def calm_server() -> Iterator[Site]:
    with Site(lease_seconds=30.0) as made:
        yield made


@pytest.fixture
def calm_site(calm_server: Site) -> Iterator[Site]:
    """As `site`, with so long a lease that no busy machine makes it end."""
    yield calm_server
    calm_server.end_nodes()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A command that lasts until the test, or its end, opens it."""
    made = Gate(tmp_path)
    yield made
    made.open()


def until_running(site: Site, task_id: str, node: Node, attempt: int = 1) -> int:
    """Wait until the attempt runs on the node; the pid of its process."""
    eventually(
        lambda: site.client.task_info(task_id),
        lambda info: (info.state.value, info.node, info.attempt) == ("running", node.home.name, attempt),
    )
    return int(eventually(lambda: node.supervisor()["running"])[0][2])


def results(site: Site, task_id: str) -> list[tuple[int, str]]:
    """(attempt, state) of what was accepted as the end of the task."""
    job, _, _ = task_id.partition(".")
    found = site.client.results_page(job).items
    return [(one.attempt, one.state.value) for one in found if one.task_id == task_id]


# U103, U104: nodes


def test_u103_a_started_agent_is_a_node_and_one_without_a_heartbeat_is_lost(site: Site) -> None:
    node = site.node()
    info = site.client.node(node.name)
    assert (info.name, info.total.cpus, info.connected) == (node.name, 1.0, True)
    assert info.total.memory_bytes > 0
    assert info.last_heartbeat_at is not None

    node.freeze()
    site.until_node(node.name, "lost")
    assert not site.client.node(node.name).connected

    node.thaw()
    site.until_node(node.name, "idle")
    node.kill_all()
    site.until_node(node.name, "lost")
    listed = subprocess.run([GERES, "nodes", "--json"], env=site.env, capture_output=True, check=True)
    assert [one["state"] for one in json.loads(listed.stdout) if one["name"] == node.name] == ["lost"]


def test_u104_a_node_shows_through_which_states_it_went_and_when(site: Site, gate: Gate) -> None:
    node = site.node()
    task = site.client.submit([*gate.words]).id
    until_running(site, task, node)
    site.until_node(node.name, "running")
    node.freeze()
    site.until_node(node.name, "lost")
    node.thaw()
    site.until_node(node.name, "running")
    gate.open()
    site.until_node(node.name, "idle")

    shown = subprocess.run(
        [GERES, "node", "show", node.name, "--json"], env=site.env, capture_output=True, check=True
    )
    history = json.loads(shown.stdout)["history"]
    wanted = iter(change["state"] for change in history)
    assert all(state in wanted for state in ("idle", "running", "lost", "running", "idle")), history
    assert [change["at"] for change in history] == sorted(change["at"] for change in history)
    assert any("heartbeat" in (change["why"] or "") for change in history if change["state"] == "lost")


# U109, U110: servers away, long tasks


def test_u109_without_a_server_tasks_go_on_and_their_ends_and_outputs_wait_on_disk(
    site: Site, tmp_path: Path
) -> None:
    node = site.node("--slots", "2")
    go, ran = tmp_path / "go", tmp_path / "ran"
    line = f"echo x >> {ran}; until [ -e {go} ]; do sleep 0.02; done; seq 20000; exit $1"
    large = site.client.submit(["sh", "-c", line, "sh", "0"], cpus=0.5).id
    failing = site.client.submit(["sh", "-c", line, "sh", "3"], cpus=0.5).id
    for task in (large, failing):
        site.until(task, "running")
    site.server.kill()
    gone = time.monotonic()

    go.touch()
    eventually(lambda: len(node.supervisor()["ended"]) == 2)
    node.kill()  # nor does an agent live that could remember them
    os.kill(node.supervisor()["pid"], signal.SIGKILL)
    node.start()
    eventually(lambda: len(node.supervisor().get("ended", [])) == 2)
    eventually(lambda: time.monotonic() > gone + LEASE_SECONDS)
    site.server.start()
    site.wait_for_server()

    assert (site.until(large, "succeeded").attempt, site.until(failing, "failed").exit_code) == (1, 3)
    assert site.client.task(large).stdout() == "".join(f"{n}\n" for n in range(1, 20001))
    assert ran.read_text() == "x\n" * 2, "each ran once"
    assert results(site, large) == [(1, "succeeded")]


def test_u110_a_task_longer_than_three_leases_runs_once(site: Site, tmp_path: Path) -> None:
    site.node()
    site.node()
    began = time.monotonic()
    task = site.client.submit(["sh", "-c", f"echo x >> {tmp_path}/ran; sleep {LEASE_SECONDS * 3 + 0.5:g}"]).id

    info = site.until(task, "succeeded", "failed")

    assert time.monotonic() - began > LEASE_SECONDS * 3
    assert (info.state, info.attempt, info.requeue_count) == ("succeeded", 1, 0)
    assert (tmp_path / "ran").read_text() == "x\n"


# U111, U112: lost nodes


def test_u111_the_task_of_a_dead_node_is_finished_by_another(site: Site, tmp_path: Path) -> None:
    line = f"[ -e {tmp_path}/first ] || {{ touch {tmp_path}/first; sleep 600; }}; echo $GERES_NODE_ID"
    first = site.node()
    task = site.client.submit(["sh", "-c", line]).id
    until_running(site, task, first)
    other = site.node()

    first.kill_all()

    info = site.until(task, "succeeded", "failed")
    assert (info.state, info.requeue_count, info.retry_count, info.lost_count) == ("succeeded", 1, 0, 1)
    assert site.client.task(task).stdout() == f"{other.name}\n"
    assert [(one.attempt, one.reason) for one in info.attempts] == [(1, "node_lost"), (2, None)]


def test_u112_the_late_report_of_an_agent_that_was_frozen_is_refused(site: Site, tmp_path: Path) -> None:
    go = tmp_path / "go"
    line = f"until [ -e {go} ]; do sleep 0.02; done; echo $GERES_NODE_ID"
    frozen = site.node()
    task = site.client.submit(["sh", "-c", line]).id
    until_running(site, task, frozen)
    other = site.node()

    frozen.freeze()
    until_running(site, task, other, attempt=2)
    os.kill(other.supervisor()["pid"], signal.SIGSTOP)  # so that the old copy ends first
    go.touch()
    eventually(lambda: frozen.supervisor()["ended"])
    frozen.thaw()
    eventually(lambda: not frozen.supervisor()["ended"])  # it was told that nobody wants it
    assert site.client.task_info(task).state == "running"
    os.kill(supervisor_of(other), signal.SIGCONT)

    info = site.until(task, "succeeded")
    assert (info.node, info.attempt, info.requeue_count) == (other.name, 2, 1)
    assert site.client.task(task).stdout() == f"{other.name}\n"
    assert results(site, task) == [(2, "succeeded")]


def supervisor_of(node: Node) -> int:
    """The pid of a supervisor that is stopped and so cannot be asked."""
    found = [
        pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_supervisor_of(node, pid)
    ]
    assert len(found) == 1, found
    return found[0]


def _is_supervisor_of(node: Node, pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"supervisor" in words and os.fsencode(node.home / "agent") in words


def test_u112_a_job_may_rather_fail_than_run_a_task_again(site: Site, gate: Gate) -> None:
    node = site.node()
    job = site.client.create_job(on_lost="fail")
    task = site.client.submit([*gate.words], job=job.id).id
    until_running(site, task, node)

    node.kill_all()

    info = site.until(task, "failed", "queued")
    assert (info.state, info.reason, info.requeue_count) == ("failed", "node_lost", 0)
    why = subprocess.run(
        [GERES, "why", task], env=site.env, capture_output=True, text=True, check=True
    ).stdout
    assert "node_lost" in why or "lost its node" in why


def test_u112_what_a_hung_node_does_not_start_is_started_by_another(site: Site) -> None:
    hung = site.node()
    os.kill(hung.supervisor()["pid"], signal.SIGSTOP)
    task = site.client.submit(["true"]).id
    eventually(lambda: site.client.task_info(task).node == hung.name)
    other = site.node()

    info = site.until(task, "succeeded", "failed")

    assert (info.state, info.node) == ("succeeded", other.name)
    os.kill(supervisor_of(hung), signal.SIGCONT)
    site.until_node(hung.name, "idle")
    assert results(site, task) == [(info.attempt, "succeeded")]


def test_u112_a_task_that_kills_its_node_three_times_is_not_tried_for_ever(site: Site) -> None:
    site.node()
    task = site.client.submit(["sh", "-c", "kill -9 $PPID; sleep 600"]).id

    info = site.until(task, "failed", "succeeded")

    assert (info.state, info.reason, info.lost_count) == ("failed", "crash_limit", 3)
    assert [one.reason for one in info.attempts] == ["supervisor_lost", "supervisor_lost", "crash_limit"]
    assert site.client.submit(["true"]).wait().exit_code == 0, "the node is well"


# U114, U115: restarts, ends repeated


def test_u114_an_agent_that_is_restarted_keeps_its_tasks(calm_site: Site, tmp_path: Path) -> None:
    go = tmp_path / "go"
    node = calm_site.node()
    line = f"echo begin; until [ -e {go} ]; do sleep 0.02; done; echo end"
    task = calm_site.client.submit(["sh", "-c", line]).id
    pid = until_running(calm_site, task, node)

    for number in (signal.SIGKILL, signal.SIGKILL):
        node.kill(number)
        node.start()
        calm_site.until_node(node.name, "running")
    assert is_alive(pid)
    go.touch()

    info = calm_site.until(task, "succeeded", "failed")
    assert (info.exit_code, info.attempt, info.requeue_count) == (0, 1, 0)
    assert calm_site.client.task(task).stdout() == "begin\nend\n"


def test_u114_after_a_reboot_the_node_says_so_and_the_task_runs_again(
    calm_site: Site, tmp_path: Path
) -> None:
    node = calm_site.node()
    line = f"[ -e {tmp_path}/first ] || {{ touch {tmp_path}/first; sleep 600; }}"
    task = calm_site.client.submit(["sh", "-c", line]).id
    until_running(calm_site, task, node)

    node.kill_all()
    path = str(node.home / "agent" / "journal")
    known = read(path)
    started = [(*key, *entry) for key, entry in known.started.items() if entry is not None]
    Journal(path, "the-boot-before").rewrite([], started, list(known.ended.values()))
    node.start()

    info = calm_site.until(task, "succeeded", "failed")
    assert (info.state, info.attempt, info.requeue_count, info.retry_count) == ("succeeded", 2, 1, 0)
    assert [(one.attempt, one.reason) for one in info.attempts] == [(1, "node_rebooted"), (2, None)]


def test_u115_an_end_that_the_network_swallowed_is_repeated_and_counts_once(
    calm_site: Site, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    node = calm_site.node()
    task = calm_site.client.submit(
        ["sh", "-c", f"until [ -e {go} ]; do sleep 0.02; done; echo x >> {tmp_path}/ran"]
    ).id
    until_running(calm_site, task, node)

    node.network.cut()
    go.touch()
    eventually(lambda: node.supervisor()["ended"])
    assert calm_site.client.task_info(task).state == "running"
    node.network.mend()

    assert calm_site.until(task, "succeeded", "failed").attempt == 1
    assert results(calm_site, task) == [(1, "succeeded")]
    assert (tmp_path / "ran").read_text() == "x\n"
    eventually(lambda: not node.supervisor()["ended"])


# on_disconnect


def test_with_stop_a_task_never_runs_twice_at_once(site: Site, tmp_path: Path) -> None:
    log, go = tmp_path / "log", tmp_path / "go"
    line = f"until [ -e {go} ]; do echo $GERES_NODE_ID $(date +%s%N) >> {log}; sleep 0.02; done"
    first = site.node()
    task = site.client.submit(["sh", "-c", line], on_disconnect="stop").id
    until_running(site, task, first)
    second = site.node()
    eventually(lambda: marks(log))

    first.network.cut()
    until_running(site, task, second, attempt=2)
    eventually(lambda: any(node == second.name for node, _ in marks(log)))
    first.network.mend()
    go.touch()

    assert site.until(task, "succeeded", "failed").node == second.name
    times = {name: [int(at) for node, at in marks(log) if node == name] for name in (first.name, second.name)}
    assert max(times[first.name]) < min(times[second.name])


def test_with_run_it_may_and_the_old_copy_is_killed_when_its_node_is_back(site: Site, gate: Gate) -> None:
    first = site.node()
    task = site.client.submit([*gate.words]).id
    pid = until_running(site, task, first)
    second = site.node()

    first.network.cut()
    until_running(site, task, second, attempt=2)
    assert is_alive(pid), "both run"
    first.network.mend()

    eventually(lambda: not is_alive(pid))
    assert (site.client.task_info(task).state, site.client.task_info(task).attempt) == ("running", 2)


def test_with_keep_a_task_waits_for_its_node(site: Site, tmp_path: Path) -> None:
    go = tmp_path / "go"
    node = site.node("--on-disconnect", "keep")
    task = site.client.submit(["sh", "-c", f"until [ -e {go} ]; do sleep 0.02; done; echo $GERES_NODE_ID"]).id
    pid = until_running(site, task, node)
    site.node()

    node.network.cut()
    site.until_node(node.name, "lost")
    other = site.client.submit(["true"])
    assert other.wait().exit_code == 0  # turns were taken meanwhile, and losses looked for
    assert (site.client.task_info(task).state, site.client.task_info(task).attempt) == ("running", 1)
    why = subprocess.run(
        [GERES, "why", task], env=site.env, capture_output=True, text=True, check=True
    ).stdout
    assert "kept for it" in why
    node.network.mend()
    site.until_node(node.name, "running")
    assert is_alive(pid)
    go.touch()

    assert site.until(task, "succeeded", "failed").attempt == 1
    assert site.client.task(task).stdout() == f"{node.name}\n"
