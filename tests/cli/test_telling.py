"""What commands say of what they did, and of what they were asked for and is not there."""

from __future__ import annotations

import json

import pytest

from tests.acceptance.acts import Gate, eventually, shown, states, submit, wait_for_state
from tests.cluster import Cluster


@pytest.fixture
def gate(tmp_path):
    """Opened at the end of the test, so that no task outlives it."""
    made = Gate(tmp_path)
    yield made
    made.open()


def held_array(cluster: Cluster, count: int, *words: str) -> str:
    """A job of held tasks, of which the first has ended with success."""
    job = submit(cluster, "--array", f"1-{count}", "--hold", *(words or ("true",)))
    eventually(lambda: shown(cluster, "job", "show", job)["counts"]["held"], lambda held: held == count)
    cluster.run("release", f"{job}.1", check=True)
    cluster.run("wait", f"{job}.1", check=True)
    return job


def test_cancelling_an_array_says_how_many_and_cancels_its_job(cluster, gate):
    job = held_array(cluster, 6, "sh", "-c", f"[ {{index}} = 1 ] || {gate.words[-1]}")
    cluster.run("release", f"{job}.2", check=True)
    wait_for_state(cluster, f"{job}.2", "running")

    done = cluster.run("cancel", job, "--reason", "wrong input", check=True)

    assert (done.stdout, done.stderr) == (f"{job}: 1 cancelling, 4 cancelled\n", "")
    info = eventually(lambda: shown(cluster, "job", "show", job), lambda info: info["ended_at"])
    assert (info["state"], info["outcome"]) == ("cancelled", "some_failed")
    why = cluster.run("why", job, check=True).stdout
    assert f"{job}: cancelled (wrong input): 1 of 6 tasks succeeded" in why
    assert "5 cancelled: with the job" in why
    assert why.count("with the job") == 1  # of those that ran and those that waited


def test_cancelling_an_array_leaves_no_task_to_be_made_later(cluster):
    job = submit(cluster, "--array", "1-300000", "-m", "9T", "-q", "--", "true")

    done = cluster.run("cancel", job, check=True)

    info = eventually(lambda: shown(cluster, "job", "show", job), lambda info: info["ended_at"])
    assert info["state"] == "cancelled"
    assert info["counts"]["cancelled"] == info["task_count"] < 300_000
    assert f"{300_000 - info['task_count']:,} more tasks of job {job} had no record yet" in done.stderr
    assert done.stdout.startswith(f"{job}: ")


def test_a_cancelled_array_can_be_run_again(cluster):
    job = held_array(cluster, 2)
    cluster.run("cancel", job, check=True)

    assert cluster.run("rerun", job, check=True).stdout == f"{job}: 2 queued\n"

    cluster.run("wait", job, check=True)
    info = eventually(lambda: shown(cluster, "job", "show", job), lambda info: info["ended_at"])
    assert (info["state"], info["outcome"]) == ("completed", "ok")


def test_tasks_of_a_range_that_had_ended_are_counted_and_no_error(cluster):
    job = held_array(cluster, 4)

    done = cluster.run("cancel", f"{job}.1-3", check=True)
    assert done.stdout == f"{job}: 2 cancelled, 1 had ended\n"

    again = cluster.run("cancel", f"{job}.1-3")
    assert (again.returncode, again.stdout) == (5, "")
    assert "task_finished" in again.stderr

    told = json.loads(cluster.run("cancel", f"{job}.1-4", "--json", check=True).stdout)
    assert [one.get("state") for one in told] == [None, None, None, "cancelled"]
    unknown = cluster.run("cancel", job, "777.7")
    assert (unknown.returncode, "777.7" in unknown.stderr) == (4, True)


def test_a_job_that_takes_more_tasks_stays_open_when_its_tasks_are_cancelled(cluster):
    job = cluster.run("job", "create", check=True).stdout.strip()
    tasks = [submit(cluster, "--job", job, "--hold", "--", "true") for _ in range(2)]

    assert cluster.run("cancel", job, check=True).stdout == f"{job}: 2 cancelled\n"

    assert states(cluster, *tasks) == ["cancelled", "cancelled"]
    assert shown(cluster, "job", "show", job)["state"] == "active"


def test_a_running_task_is_said_to_be_cancelling_until_its_node_has_ended_it(cluster, gate):
    task = submit(cluster, "--", *gate.words)
    wait_for_state(cluster, task, "running")

    assert cluster.run("cancel", "--signal", "URG", task, check=True).stdout == f"{task} signalled\n"
    assert cluster.run("cancel", task, check=True).stdout == f"{task} cancelling\n"

    assert wait_for_state(cluster, task, "cancelled")


def test_the_doctor_warns_where_nothing_can_start(cluster):
    assert cluster.run("doctor", check=True).stdout == ""
    [node] = cluster.run("nodes", "-q", check=True).stdout.split()
    task = submit(cluster, "-q", "--pool", "nobody-is-in", "--", "true")

    cluster.run("node", "drain", node, check=True)
    try:
        doctor = cluster.run("doctor")
    finally:
        cluster.run("node", "undrain", node, check=True)
    waiting = cluster.run("doctor")
    cluster.run("cancel", task, check=True)

    assert doctor.returncode == waiting.returncode == 1
    drained = f"pool: every node of pool default is drained, so that nothing starts there: {node}\n"
    assert drained in doctor.stdout
    assert f"  next: geres node undrain {node}\n" in doctor.stdout
    assert waiting.stdout.splitlines() == [
        f"pool: tasks wait for a node of pool nobody-is-in (like {task}), and none is connected",
        f"  next: geres edit {task} pool=NAME, or geres agent --pool nobody-is-in",
    ]
    assert cluster.run("doctor", check=True).stdout == ""


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["tasks", "--job", "99999"], 4, "there is no job 99999"),
        (["tasks", "--node", "bogus"], 4, "there is no node 'bogus'"),
        (["tasks", "--pool", "defualt"], 4, "there is no pool 'defualt'; did you mean default?"),
        (["tasks", "--user", "nobodyx"], 4, "there is no user 'nobodyx'"),
        (["tasks", "--count", "--user", "nobodyx"], 4, "there is no user 'nobodyx'"),
        (["history", "--node", "bogus"], 4, "there is no node 'bogus'"),
        (["dead-letter", "--pool", "bogus"], 4, "there is no pool 'bogus'"),
        (["jobs", "--user", "nobodyx"], 4, "there is no user 'nobodyx'"),
        (["audit", "--user", "nobodyx"], 4, "there is no user 'nobodyx'"),
        (["audit", "--result", "denyed"], 2, "'denyed' is no result; did you mean denied?"),
        (["token", "list", "--user", "nobodyx"], 4, "there is no user 'nobodyx'"),
        (["quota", "show", "nobodyx"], 4, "there is no user 'nobodyx'"),
        (["quota", "set", "--user", "nobodyx", "--running", "3"], 4, "there is no user 'nobodyx'"),
        (["tasks", "--state", "faild"], 2, "'faild' is no state; did you mean failed?"),
        (["jobs", "--state", "done"], 2, "'done' is no state of a job; there are active, disabled, closing"),
        (["tasks", "--filter", 'state == "faild"'], 2, "state is never 'faild'; did you mean failed?"),
        (["tasks", "--filter", 'reason in ("exit", "timout")'], 2, "did you mean timeout?"),
        (["tasks", "--filter", "exitcode == 1"], 2, "'exitcode' is no known name; did you mean exit_code?"),
        (["tasks", "--sort", "createdat"], 2, "did you mean created_at?"),
    ],
)
def test_a_name_in_a_filter_that_is_not_there_is_said(cluster, words, status, said):
    done = cluster.run(*words)

    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_is_there_gives_an_empty_list(cluster):
    [node] = cluster.run("nodes", "-q", check=True).stdout.split()
    cluster.run("user", "create", "ann", check=True)

    for words in (["--node", node], ["--user", "ann"], ["--pool", "default"], ["--state", "suspended"]):
        done = cluster.run("tasks", "--name", "no-such", *words, "--json", check=True)
        assert json.loads(done.stdout) == []
    assert cluster.run("jobs", "--user", "ann", "--json", check=True).stdout.strip() == "[]"
    limits = cluster.run("quota", "set", "--user", "ann", "--running", "3", check=True)
    assert "0 of 3" in limits.stdout
    assert limits.stderr == ""


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ("1,2", "'1,2' is no id; give each on its own (--after 1 --after 2)"),
        ("a,b", "'a,b' is no id; give each on its own (--after a --after b)"),
        ("99999", "there is no job 99999"),
        ("99999.1-3", "there is no task 99999.1-3"),
        ("no-such", "there is no job and no task 'no-such'"),
    ],
)
def test_after_what_is_not_there_says_how_to_name_it(cluster, after, said):
    done = cluster.run("submit", "--after", after, "--", "true")

    assert done.returncode == 4
    assert f"after: {said}" in done.stderr
    assert "job create" not in done.stderr


def test_a_task_waits_for_a_range_and_for_an_id_of_ones_own(cluster):
    job = submit(cluster, "--array", "1-3", "--hold", "--", "true")
    eventually(lambda: shown(cluster, "job", "show", job)["counts"]["held"], lambda held: held == 3)
    own = submit(cluster, "--id", "prepare", "--hold", "--", "true")
    waits = submit(cluster, "--after", f"{job}.2-3", "--after", "prepare", "--", "true")

    cluster.run("release", own, f"{job}.2", check=True)
    cluster.run("wait", own, f"{job}.2", check=True)
    assert states(cluster, waits) == ["blocked"]
    cluster.run("release", f"{job}.3", check=True)

    assert cluster.run("wait", waits, check=True).returncode == 0
    cluster.run("cancel", job, check=True)


def test_a_node_is_said_to_be_draining_while_a_task_runs_there(cluster, gate):
    [node] = cluster.run("nodes", "-q", check=True).stdout.split()
    task = submit(cluster, "--", *gate.words)
    wait_for_state(cluster, task, "running")
    try:
        busy = cluster.run("node", "drain", node, check=True)
        gate.open()
        waited = cluster.run("node", "drain", "--wait", node, check=True)
        idle = cluster.run("node", "drain", node, check=True)
    finally:
        cluster.run("node", "undrain", node, check=True)

    assert busy.stdout == f"{node}: draining; 1 task runs there\n"
    assert waited.stdout.splitlines()[-1] == idle.stdout.strip() == f"{node}: drained"


def test_a_token_that_is_not_there_is_told_before_anybody_is_asked(cluster):
    made = json.loads(cluster.run("token", "create", "--name", "laptop", "--json", check=True).stdout)

    unknown = cluster.run("token", "revoke", "99999")
    asked = cluster.run("token", "revoke", "laptop")
    done = cluster.run("token", "revoke", "laptop", "--yes", check=True)

    assert (unknown.returncode, "there is no token '99999'" in unknown.stderr) == (4, True)
    assert asked.returncode == 2
    assert f"Revoke token {made['id']} of {made['user']}?" in asked.stderr
    assert f"token {made['id']} of {made['user']} is revoked" in done.stderr
