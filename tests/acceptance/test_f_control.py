"""Controlling work: cancel, signal, wait, hold, edit and run again."""

from __future__ import annotations

import json
import os
import signal
import time

import psutil
import pytest

from tests.acceptance.acts import eventually, fresh_job, shown, states, submit, wait_for_state


def show(cluster, task):
    return shown(cluster, "task", "show", task)


def running_process(cluster, *words):
    """Submit a command that writes its process number to its stdout; its id and that process."""
    task = submit(cluster, *words)
    wait_for_state(cluster, task, "running")
    text = eventually(lambda: cluster.run("logs", "--stdout", task).stdout, lambda text: "\n" in text)
    return task, psutil.Process(int(text.split()[0]))


def test_u081_a_queued_task_is_cancelled_at_once_and_never_starts(cluster, tmp_path):
    task = submit(cluster, "-m", "9T", "-q", "--", "touch", str(tmp_path / "x"))
    done = cluster.run("cancel", "--reason", "no need", task, check=True)

    assert done.stdout == f"{task} cancelled\n"
    info = show(cluster, task)
    assert (info["state"], info["reason"], info["started_at"]) == ("cancelled", "requested", None)
    assert info["attempt"] == 0
    assert "no need" in json.dumps(info)
    assert cluster.run("wait", task).returncode == 130
    assert not (tmp_path / "x").exists()


def test_u081_held_and_blocked_tasks_are_cancelled_and_one_bad_id_does_not_stop_the_others(cluster):
    held = submit(cluster, "--hold", "--", "true")
    blocked = submit(cluster, "--after", held, "--", "true")

    done = cluster.run("cancel", blocked, "1.99999", held)

    assert done.returncode == 4
    assert "1.99999" in done.stderr
    assert states(cluster, held, blocked) == ["cancelled", "cancelled"]
    again = cluster.run("cancel", held)
    assert again.returncode == 5
    assert "has ended" in again.stderr


def test_u082_a_running_task_ends_with_all_its_processes(cluster):
    task, process = running_process(cluster, "--", "sh", "-c", "echo $$; sleep 999 & sleep 999; true")
    family = [process, *process.children(recursive=True)]
    assert len(family) == 3

    begun = time.monotonic()
    cluster.run("cancel", task, check=True)
    status = cluster.run("wait", task).returncode

    assert status == 130
    assert time.monotonic() - begun < 20  # its grace, which TERM made unnecessary
    info = show(cluster, task)
    assert (info["state"], info["reason"], info["signal"]) == ("cancelled", "requested", signal.SIGTERM)
    assert psutil.wait_procs(family, timeout=30)[1] == []


def test_u082_one_that_ignores_term_is_killed_after_its_grace(cluster):
    script = "trap '' TERM; echo $$; while :; do sleep 0.1; done"
    task, process = running_process(cluster, "--grace", "0.5s", "--", "sh", "-c", script)

    cluster.run("cancel", task, check=True)
    cluster.run("wait", task)

    assert show(cluster, task)["signal"] == signal.SIGKILL
    assert not process.is_running()


def test_u083_a_chosen_signal_reaches_the_whole_group(cluster):
    inner = "sh -c 'trap \"echo inner\" HUP; echo $$; sleep 999 & wait'"
    script = f"trap 'echo outer; wait; exit 8' HUP; {inner} & wait; wait"
    task, _ = running_process(cluster, "--", "sh", "-c", script)

    cluster.run("cancel", "--signal", "SIGHUP", task, check=True)

    assert cluster.run("wait", task).returncode == 8
    info = show(cluster, task)
    assert (info["state"], info["exit_code"]) == ("failed", 8)
    assert {"outer", "inner"} <= set(cluster.run("logs", task).stdout.split())
    unknown = cluster.run("cancel", "--signal", "NOPE", task)
    assert unknown.returncode == 2
    assert "NOPE" in unknown.stderr


def test_u083_where_the_agent_is_silent_cancel_waits_and_force_does_not(make_cluster):
    cluster = make_cluster()
    task, process = running_process(cluster, "--", "sh", "-c", "echo $$; exec sleep 999")
    agent = cluster.pid("agent")
    os.kill(agent, signal.SIGSTOP)
    try:
        cluster.run("cancel", task, check=True)
        asked = show(cluster, task)
        forced = cluster.run("cancel", "--force", task, check=True)
        info = show(cluster, task)
    finally:
        os.kill(agent, signal.SIGCONT)

    assert asked["state"] == "running"
    assert asked["cancel_requested_at"] is not None
    assert forced.stdout == f"{task} cancelled\n"
    assert (info["state"], info["reason"]) == ("cancelled", "forced")
    assert psutil.wait_procs([process], timeout=60)[1] == []
    assert cluster.run("run", "-c", "2", "--", "echo", "room again").stdout == "room again\n"


def test_u084_run_and_wait_give_the_status_of_the_command(cluster):
    assert cluster.run("run", "--", "sh", "-c", "exit 7").returncode == 7
    assert cluster.run("run", "--", "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM

    ok, bad = submit(cluster, "--", "true"), submit(cluster, "--", "sh", "-c", "exit 3")
    worse = submit(cluster, "--", "sh", "-c", "exit 4")
    for _ in ("while they run", "when they have ended"):
        assert cluster.run("wait", ok, bad).returncode == 3
        assert cluster.run("wait", worse, bad, ok).returncode == 3
        assert cluster.run("wait", bad, worse).returncode == 4
        assert cluster.run("wait", ok).returncode == 0


def test_u084_an_unknown_id_is_named(cluster):
    done = cluster.run("wait", "77.7")

    assert done.returncode == 125
    assert "77.7" in done.stderr


def test_u084_wait_for_any_and_with_a_limit(cluster, gate):
    slow = submit(cluster, "--", *gate.words)
    quick = submit(cluster, "--", "sh", "-c", "exit 9")

    first = cluster.run("wait", "--any", slow, quick)
    over = cluster.run("wait", "--timeout", "0.2s", slow)

    assert first.returncode == 9
    assert over.returncode == 125
    assert states(cluster, slow) == ["running"]
    gate.open()
    assert cluster.run("wait", slow).returncode == 0


def test_u084_wait_for_a_job_gives_the_status_of_its_last_failure(cluster):
    job = submit(cluster, "--array", "1-4", "--", "sh", "-c", "exit $(( {index} == 2 ? 6 : 0 ))")

    assert cluster.run("wait", job).returncode == 6
    assert cluster.run("wait", f"{job}.3-4").returncode == 0


def test_u084_ctrl_c_on_run_cancels(cluster):
    with cluster.popen("run", "--name", "stopped", "--", "sh", "-c", "echo $$; exec sleep 999") as running:
        process = psutil.Process(int(running.stdout.readline()))
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)

    assert running.returncode == 130
    [task] = shown(cluster, "tasks", "--name", "stopped")
    assert task["state"] == "cancelled"
    assert not process.is_running()


def test_u084_ctrl_c_on_wait_only_leaves(cluster, gate):
    task = submit(cluster, "--", *gate.words)
    wait_for_state(cluster, task, "running")
    with cluster.popen("wait", task) as waiting:
        eventually(lambda: len(psutil.Process(waiting.pid).net_connections()))
        waiting.send_signal(signal.SIGINT)
        waiting.communicate(timeout=60)

    assert waiting.returncode == 130
    assert states(cluster, task) == ["running"]


def test_u085_a_held_task_waits_on_an_empty_cluster_until_it_is_released(cluster):
    held = submit(cluster, "--hold", "--", "echo", "released")
    later = submit(cluster, "--", "true")
    cluster.run("wait", later, check=True)
    assert states(cluster, held) == ["held"]

    done = cluster.run("release", held, check=True)

    assert done.stdout == f"{held} queued\n"
    cluster.run("wait", held, check=True)
    assert cluster.run("logs", held).stdout == "released\n"


def test_u085_a_queued_task_is_held_and_a_running_one_is_not(cluster, gate):
    job = fresh_job(cluster)
    busy = submit(cluster, "--job", job, "-c", "2", "--", *gate.words)
    wait_for_state(cluster, busy, "running")
    queued = submit(cluster, "--job", job, "-c", "2", "--", "true")

    assert cluster.run("hold", queued, check=True).stdout == f"{queued} held\n"
    refused = cluster.run("hold", busy)
    gate.open()
    cluster.run("wait", busy, check=True)
    cluster.run("run", "--", "true", check=True)

    assert refused.returncode == 5
    assert busy in refused.stderr
    assert states(cluster, queued) == ["held"]
    cluster.run("release", queued, check=True)
    cluster.run("wait", queued, check=True)


def test_u087_a_task_that_does_not_fit_starts_after_its_memory_is_lowered(cluster):
    task = submit(cluster, "-m", "9T", "-q", "--", "true")
    assert states(cluster, task) == ["queued"]

    cluster.run("edit", task, "memory=64M", "cpus=2", check=True)
    cluster.run("wait", task, check=True)

    info = show(cluster, task)
    assert (info["memory_bytes"], info["cpus"], info["state"]) == (64 << 20, 2, "succeeded")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("memory=2Q", "memory"),
        ("cpus=-1", "cpus"),
        ("cpus=many", "cpus"),
        ("priority=5000", "priority"),
        ("colour=red", "colour"),
        ("match=node.", "match"),
    ],
)
def test_u087_a_bad_change_is_refused_and_nothing_changes(cluster, change, word):
    task = submit(cluster, "--hold", "--", "true")
    before = show(cluster, task)

    done = cluster.run("edit", task, change)

    assert done.returncode == 2
    assert word in done.stderr
    assert show(cluster, task) == before
    cluster.run("cancel", task, check=True)


def test_u087_a_task_that_runs_or_has_ended_is_not_edited(cluster, gate):
    running = submit(cluster, "--", *gate.words)
    wait_for_state(cluster, running, "running")

    refused = cluster.run("edit", running, "memory=1M")
    gate.open()
    cluster.run("wait", running, check=True)

    assert refused.returncode == 5
    assert cluster.run("edit", running, "memory=1M").returncode == 5


def test_u088_a_rerun_is_the_next_attempt_and_the_first_stays_visible(cluster):
    task = submit(cluster, "--", "sh", "-c", "echo try $GERES_ATTEMPT")
    cluster.run("wait", task, check=True)

    cluster.run("rerun", task, check=True)
    cluster.run("wait", task, check=True)

    info = show(cluster, task)
    assert [(one["attempt"], one["state"]) for one in info["attempts"]] == [
        (1, "succeeded"),
        (2, "succeeded"),
    ]
    assert info["retry_count"] == 0
    assert cluster.run("logs", "--attempt", "1", task).stdout == "try 1\n"
    assert cluster.run("logs", task).stdout == "try 2\n"


def test_u088_only_what_failed_of_a_job_runs_again(cluster, tmp_path):
    job = submit(cluster, "--array", "1-4", "--", "sh", "-c", f"test {{index}} != 3 || test -e {tmp_path}/x")
    assert cluster.run("wait", job).returncode == 1
    assert shown(cluster, "job", "show", job)["counts"]["failed"] == 1

    (tmp_path / "x").touch()
    done = cluster.run("rerun", "--failed", "--job", job, check=True)
    cluster.run("wait", job, check=True)

    assert done.stdout == f"{job}.3 queued\n"
    counts = shown(cluster, "job", "show", job)["counts"]
    assert (counts["succeeded"], counts["failed"]) == (4, 0)
    assert [show(cluster, f"{job}.{n}")["attempt"] for n in (1, 2, 3, 4)] == [1, 1, 2, 1]


def test_u088_a_rerun_may_ask_for_more_and_a_waiting_task_is_not_rerun(cluster):
    task = submit(cluster, "-m", "32M", "--", "false")
    cluster.run("wait", task)
    cluster.run("rerun", task, "memory=48M", check=True)
    cluster.run("wait", task)
    assert show(cluster, task)["memory_bytes"] == 48 << 20

    held = submit(cluster, "--hold", "--", "true")
    refused = cluster.run("rerun", held)

    assert refused.returncode == 5
    assert held in refused.stderr
    cluster.run("cancel", held, check=True)


def test_u048_an_edit_of_what_has_ended_points_to_rerun_and_a_rerun_warns(cluster):
    task = submit(cluster, "--", "true")
    cluster.run("wait", task, check=True)

    edited = cluster.run("edit", task, "memory=1G")
    again = cluster.run("rerun", task, "memory=900T", check=True)

    assert (edited.returncode, f"`geres rerun {task} NAME=VALUE`" in edited.stderr) == (5, True)
    assert again.stdout == f"{task} queued\n"
    assert "no node can ever run this" in again.stderr
    cluster.run("cancel", task, check=True)
