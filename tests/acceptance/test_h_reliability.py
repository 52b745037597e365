"""Reliability: what survives a kill, what becomes of records that cannot be read, errors that come back."""

from __future__ import annotations

import contextlib
import json
import sqlite3

import pytest

from geres.model.ids import task_key
from tests.acceptance.acts import eventually, shown, submit, wait_for_state


def key_of(task):
    job, number = task.split(".")
    return task_key(int(job), int(number))


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_u113_a_server_killed_with_1000_queued_loses_none(make_cluster, gate, store):
    cluster = make_cluster(store=store)
    busy = submit(cluster, "-c", "2", "--", *gate.words)
    wait_for_state(cluster, busy, "running")
    lines = "".join(json.dumps({"command": ["echo", str(n)]}) + "\n" for n in range(1000))
    ids = cluster.run("submit", "--from", "-", input=lines, check=True).stdout.split()
    assert len(ids) == 1000

    cluster.kill("server")
    cluster.wait_for("server")
    gate.open()
    cluster.run("wait", busy, ids[0].partition(".")[0], check=True, timeout=100)

    counts = shown(cluster, "summary")["tasks"]
    assert (counts["succeeded"], counts["failed"], counts["queued"]) == (1001, 0, 0)
    history = shown(cluster, "history", "-n", "0")
    assert {one["id"] for one in history} == {busy, *ids}
    assert {one["attempt"] for one in history if one["id"] == busy} == {1}
    assert cluster.run("logs", ids[7], check=True).stdout == "7\n"
    assert cluster.run("doctor").returncode == 0


def test_u113_what_was_accepted_is_there_after_everything_was_killed_at_once(make_cluster):
    cluster = make_cluster()
    cluster.run("run", "--", "echo", "kept", check=True)
    held = submit(cluster, "--hold", "--meta", "a=b", "--", "echo", "later")

    for part in ("up", "server", "agent", "supervisor"):
        cluster.kill(part)
    cluster.start()

    assert cluster.run("logs", "1.1", check=True).stdout == "kept\n"
    assert shown(cluster, "task", "show", held)["meta"] == {"a": "b"}
    cluster.run("release", held, check=True)
    cluster.run("wait", held, check=True)


def spoil(cluster, statement, **parameters):
    """Change a record behind the back of the server, which is then killed before it looks at it again."""
    with contextlib.closing(sqlite3.connect(cluster.home / "geres.db", timeout=30)) as connection:
        assert connection.execute(statement, parameters).rowcount == 1
        connection.commit()
    cluster.kill("server")
    cluster.wait_for("server")


@pytest.mark.parametrize(
    ("kind", "statement"),
    [
        (
            "specification",
            "UPDATE spec SET body = '{garbage' WHERE id = (SELECT spec_id FROM task WHERE id = :id)",
        ),
        (
            "class",
            "UPDATE resource_class SET body = '' WHERE id ="
            " (SELECT class_id FROM lane JOIN task ON task.lane_id = lane.id WHERE task.id = :id)",
        ),
        ("task", "UPDATE task SET argv = '[\"echo\"' WHERE id = :id"),
        ("job", "UPDATE job SET meta = 'x' WHERE id = (SELECT job_id FROM task WHERE id = :id)"),
    ],
)
def test_u117_an_unreadable_record_is_set_aside_and_all_others_go_on(make_cluster, gate, kind, statement):
    cluster = make_cluster()
    busy = submit(cluster, "-c", "2", "--", *gate.words)
    wait_for_state(cluster, busy, "running")
    cluster.run("job", "create", "spoilt", check=True)
    bad = submit(cluster, "--job", "spoilt", "-c", "0.7", "-t", "77s", "--", "echo", "bad")
    good = submit(cluster, "--", "echo", "good")

    spoil(cluster, statement, id=key_of(bad))
    gate.open()
    cluster.run("wait", busy, good, check=True)

    assert cluster.run("logs", good, check=True).stdout == "good\n"
    doctor = cluster.run("doctor")
    assert doctor.returncode == 1
    [finding] = [line for line in doctor.stdout.splitlines() if line.startswith("quarantine")]
    assert kind in finding
    cluster.run("wait", bad)
    info = shown(cluster, "task", "show", bad)
    if kind == "job":  # the task does not need what was lost
        assert info["state"] == "succeeded"
    else:
        assert (info["state"], info["reason"]) == ("failed", "internal")
        assert "internal" in cluster.run("why", bad, check=True).stdout
    assert {bad, good, busy} <= set(cluster.run("tasks", "-q", check=True).stdout.split())
    assert cluster.run("run", "-c", "0.7", "-t", "77s", "--", "echo", "like it").stdout == "like it\n"
    assert shown(cluster, "summary")["quarantined"] == 1


def test_u117_an_unreadable_record_of_an_ended_task_does_not_hide_the_others(make_cluster):
    cluster = make_cluster()
    for word in ("one", "two"):
        cluster.run("run", "--", "echo", word, check=True)

    spoil(cluster, "UPDATE task SET argv = 'x' WHERE id = :id", id=key_of("1.1"))

    eventually(lambda: cluster.run("status").returncode, lambda status: status == 0)
    assert cluster.run("tasks", "-q", check=True).stdout.split() == ["1.2", "1.1"]
    assert cluster.run("task", "show", "1.1").returncode == 0


def test_u118_errors_of_the_system_come_back_as_the_end_of_the_task(cluster, tmp_path):
    agent = cluster.pid("agent")
    body = {"task": {"handler": "no_such_module:function", "params": {"n": 1}}}
    handled = cluster.client().transport.post("/v1/tasks", dict, body)["task"]["id"]
    cluster.run("wait", handled)
    (tmp_path / "here").mkdir()
    gone = submit(cluster, "--hold", "--", "true", cwd=tmp_path / "here")
    (tmp_path / "here").rmdir()
    cluster.run("release", gone, check=True)
    cases = {
        gone: "no_cwd",
        handled: "handler_load",
        submit(cluster, "--", "no-such-program"): "not_found",
        submit(cluster, "-o", "/no/such/folder/out", "--", "true"): "staging",
    }
    cluster.run("wait", *cases)

    for task, reason in cases.items():
        info = shown(cluster, "task", "show", task)
        assert (info["state"], info["reason"]) == ("failed", reason), info
        assert info["message"]
        assert info["message"] in cluster.run("why", task, check=True).stdout
    assert cluster.pid("agent") == agent
    assert cluster.run("run", "--", "echo", "alive").stdout == "alive\n"
