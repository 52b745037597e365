"""Jobs as groups of tasks; each on SQLite and on PostgreSQL."""

from __future__ import annotations

import pytest

from tests.acceptance.acts import eventually, shown, states, submit, wait_for_state


@pytest.fixture
def cluster(any_cluster):
    return any_cluster


@pytest.fixture
def job(cluster, request):
    """The name of a new job of this test's own."""
    name = "j" + str(abs(hash(request.node.nodeid)))
    cluster.run("job", "create", name, check=True)
    return name


def some(counts):
    """The states that there are tasks in, with how many."""
    return {state: count for state, count in counts.items() if count}


def counts(cluster, job):
    return some(shown(cluster, "job", "show", job)["counts"])


def state(cluster, job):
    return shown(cluster, "job", "show", job)["state"]


def test_u025_a_job_counts_its_tasks(cluster, job):
    good = submit(cluster, "--job", job, "--", "true")
    bad = submit(cluster, "--job", job, "--", "false")
    held = submit(cluster, "--job", job, "--hold", "--", "true")
    cluster.run("wait", good, bad)

    info = shown(cluster, "job", "show", job)
    listed = {row["name"]: row for row in shown(cluster, "jobs")}[job]

    assert some(info["counts"]) == {"succeeded": 1, "failed": 1, "held": 1}
    assert listed["counts"] == info["counts"]
    assert (info["task_count"], info["state"]) == (3, "active")
    assert {good, bad, held} == {row["id"] for row in shown(cluster, "tasks", "--job", job)}
    assert "succeeded" in cluster.run("job", "show", job, check=True).stdout
    cluster.run("release", held, check=True)


def test_u025_a_name_is_taken_while_the_job_lives(cluster, job):
    again = cluster.run("job", "create", job)
    assert again.returncode == 5
    assert job in again.stderr

    cluster.run("job", "close", job, check=True)
    eventually(lambda: state(cluster, job), lambda now: now == "completed")

    cluster.run("job", "create", job, check=True)


def test_u026_tasks_of_the_job_with_the_higher_priority_start_first(cluster, gate, request):
    blocker = submit(cluster, "-c", "2", "--", *gate.words)
    wait_for_state(cluster, blocker, "running")
    ids = {}
    for name, priority in (("low", "low"), ("plain", None), ("high", "high")):
        words = () if priority is None else ("--priority", priority)
        made = cluster.run("job", "create", f"{name}-first", *words, check=True).stdout.strip()
        ids[name] = [submit(cluster, "--job", made, "-c", "2", "--", "true") for _ in range(2)]
    own = submit(cluster, "--job", "low-first", "-c", "2", "--priority", "900", "--", "true")

    gate.open()
    every = [own, *ids["low"], *ids["plain"], *ids["high"]]
    cluster.run("wait", *every, check=True)

    began = {one: shown(cluster, "task", "show", one)["started_at"] for one in every}
    assert sorted(every, key=began.get) == [own, *ids["high"], *ids["plain"], *ids["low"]]


def test_u026_the_priority_of_a_job_is_changed_under_its_waiting_tasks(cluster, gate):
    blocker = submit(cluster, "-c", "2", "--", *gate.words)
    wait_for_state(cluster, blocker, "running")
    first = submit(cluster, "-c", "2", "--", "true")
    cluster.run("job", "create", "raised", check=True)
    second = submit(cluster, "--job", "raised", "-c", "2", "--", "true")

    cluster.run("job", "edit", "raised", "--priority", "high", check=True)
    gate.open()
    cluster.run("wait", first, second, check=True)

    began = [shown(cluster, "task", "show", one)["started_at"] for one in (second, first)]
    assert began == sorted(began)


def test_u027_the_default_job_is_always_there(cluster):
    task = submit(cluster, "--", "true")
    cluster.run("wait", task, check=True)
    default = shown(cluster, "job", "show", "default")

    assert task.startswith(default["id"] + ".")
    for words in (("cancel",), ("close",), ("create",)):
        refused = cluster.run("job", *words, "default")
        assert refused.returncode == 5, words
        assert "default" in refused.stderr
    assert cluster.run("job", "cancel", default["id"]).returncode == 5
    assert shown(cluster, "job", "show", "default")["state"] == "active"
    assert submit(cluster, "--job", "default", "--", "true").startswith(default["id"] + ".")


def test_u028_a_closed_job_takes_nothing_and_ends_when_it_is_empty(cluster, gate, job):
    blocker = submit(cluster, "-c", "2", "--", *gate.words)
    wait_for_state(cluster, blocker, "running")
    ids = [submit(cluster, "--job", job, "--", "true") for _ in range(3)]

    cluster.run("job", "close", job, check=True)

    assert state(cluster, job) == "closing"
    refused = cluster.run("submit", "--job", job, "--", "true")
    assert (refused.returncode, refused.stdout) == (5, "")
    assert "closing" in refused.stderr
    gate.open()
    cluster.run("wait", *ids, check=True)
    eventually(lambda: state(cluster, job), lambda now: now == "completed")
    info = shown(cluster, "job", "show", job)
    assert (info["outcome"], info["previous_state"]) == ("ok", "closing")
    assert counts(cluster, info["id"]) == {"succeeded": 3}
    assert cluster.run("submit", "--job", info["id"], "--", "true").returncode == 5


def test_u029_cancelling_a_job_ends_what_runs_and_what_waits(cluster, gate, job):
    running = [submit(cluster, "--job", job, "--grace", "1s", "--", *gate.words) for _ in range(2)]
    for one in running:
        wait_for_state(cluster, one, "running")
    queued = [submit(cluster, "--job", job, "--", "true") for _ in range(4)]
    blocked = submit(cluster, "--job", job, "--after", queued[0], "--", "true")

    cluster.run("job", "cancel", job, "--reason", "not needed", check=True)

    eventually(lambda: state(cluster, job), lambda now: now == "cancelled")
    rows = shown(cluster, "tasks", "--job", job)
    assert [row["state"] for row in rows] == ["cancelled"] * 7
    assert {row["id"] for row in rows} == {*running, *queued, blocked}
    assert {row["id"] for row in rows if row["started_at"]} == set(running)
    assert {row["reason"] for row in rows if not row["started_at"]} == {"job_cancelled"}
    assert {row["message"] for row in rows} == {"the job was cancelled: not needed"}
    assert counts(cluster, job) == {"cancelled": 7}
    assert cluster.run("submit", "--job", job, "--", "true").returncode in (4, 5)
    assert cluster.run("run", "-c", "2", "--", "echo", "room", check=True).stdout == "room\n"
    assert not [process for process in cluster.processes() if "gate-" in " ".join(process.cmdline())]


def test_u035_a_job_ends_by_itself_when_its_tasks_have(cluster):
    made = cluster.run("job", "create", "by-itself", "--end-when-done", check=True).stdout.strip()
    ids = [submit(cluster, "--job", made, "--hold", "--", *words) for words in (("true",), ("false",))]
    assert state(cluster, made) == "active"

    cluster.run("release", *ids, check=True)

    eventually(lambda: state(cluster, made), lambda now: now == "completed")
    assert counts(cluster, made) == {"succeeded": 1, "failed": 1}
    assert shown(cluster, "job", "show", made)["outcome"] == "some_failed"
    assert states(cluster, *ids) == ["succeeded", "failed"]


def test_u035_a_job_without_it_stays_open(cluster, job):
    cluster.run("wait", submit(cluster, "--job", job, "--", "true"), check=True)

    assert state(cluster, job) == "active"
    cluster.run("wait", submit(cluster, "--job", job, "--", "true"), check=True)
    assert counts(cluster, job) == {"succeeded": 2}
