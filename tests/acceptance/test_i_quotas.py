"""Quotas: shown to users, set by operators, and kept by whoever submits and whatever starts."""

from __future__ import annotations

import json

import pytest

from tests.acceptance.acts import Gate, eventually, shown, states, submit


@pytest.fixture
def cluster(any_cluster):
    yield any_cluster
    any_cluster.run("quota", "set", "--running", "none", "--cpus", "none", "--queued", "none", check=True)
    any_cluster.run("quota", "set", "--user", "*", "--running", "none", "--jobs", "none", check=True)


def me(cluster):
    return shown(cluster, "whoami")["subject"]


def of(cluster, user):
    return next(one for one in shown(cluster, "quota") if one["user"] == user)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--running", "1"), "1 of at most 1 tasks of tenant default (its quota) run already"),
        (("--cpus", "0.7"), "0.5 of at most 0.7 cpus of tenant default (its quota) run already"),
        (("--user", "*", "--running", "1"), "1 of at most 1 tasks of user"),
    ],
)
def test_u138_beyond_a_quota_of_what_runs_tasks_wait_and_why_says_so(cluster, tmp_path, words, told):
    cluster.run("quota", "set", *words, check=True)
    gate = Gate(tmp_path)
    job = cluster.run("job", "create", check=True).stdout.strip()
    first = submit(cluster, "--job", job, "-c", "0.5", "--", *gate.words)
    eventually(lambda: states(cluster, first), lambda found: found == ["running"])
    other = submit(cluster, "-c", "0.4", "--", "true")

    why = eventually(lambda: shown(cluster, "why", other), lambda why: "quota" in why["summary"])
    assert told in why["summary"]
    assert why["next_command"] == "geres quota"
    assert "quota" in shown(cluster, "why", other.partition(".")[0])["groups"][0]["text"]
    gate.open()
    cluster.run("wait", first, other, check=True)

    tasks = [shown(cluster, "task", "show", one) for one in (first, other)]
    assert tasks[0]["ended_at"] <= tasks[1]["started_at"]


def test_u138_beyond_a_quota_of_what_waits_a_submit_is_refused_with_the_reason(cluster):
    held = [submit(cluster, "--hold", "--", "true") for _ in range(2)]
    before = of(cluster, None)["used"]
    cluster.run("quota", "set", "--queued", str(before["queued"] + 1), check=True)
    cluster.run("quota", "set", "--user", "*", "--jobs", str(before["jobs"]), check=True)

    many = cluster.run("submit", "--hold", "--job", "default", "--from", "-", input='["true"]\n["true"]\n')
    array = cluster.run("submit", "--hold", "--array", "1-2", "--", "true")
    ran = cluster.run("run", "true", ":::", "a", "b")
    job = cluster.run("job", "create", "another")

    assert (many.returncode, array.returncode, job.returncode, ran.returncode) == (6, 6, 6, 125)
    assert "over_quota" in many.stderr
    assert "tasks waiting, there are" in many.stderr
    assert "open jobs, there are" in job.stderr
    assert of(cluster, None)["used"] == before
    one = submit(cluster, "--hold", "--", "true")
    assert cluster.run("submit", "--hold", "--", "true").returncode == 6
    cluster.run("cancel", *held, one, check=True)


def test_u138_quotas_are_shown_to_who_is_under_them(cluster):
    user = me(cluster)
    cluster.run("quota", "set", "--user", user, "--running", "10", "--cpus", "3.5", check=True)

    lines = cluster.run("quota", check=True).stdout.splitlines()
    told = cluster.run("whoami", check=True).stdout
    one = json.loads(cluster.run("quota", user, "--json", check=True).stdout)

    assert lines[0].split() == ["OF", "RUNNING", "CPUS", "QUEUED", "JOBS"]
    assert any(line.startswith(user) and "0 of 10" in line and "0 of 3.5" in line for line in lines)
    assert f"quota of {user}: 0 of 10 tasks running" in told
    assert [(quota["user"], quota["most"]["running"]) for quota in one if quota["user"]] == [(user, 10)]
    cluster.run("quota", "set", "--user", user, "--running", "none", "--cpus", "none", check=True)
    assert "quota of" not in cluster.run("whoami", check=True).stdout


@pytest.mark.parametrize(
    "words", [(), ("--running", "-1"), ("--cpus", "lots"), ("--user", "", "--jobs", "1"), ("--queued", "1.5")]
)
def test_u138_a_quota_that_cannot_be_meant_is_refused(cluster, words):
    before = shown(cluster, "quota")

    done = cluster.run("quota", "set", *words)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert shown(cluster, "quota") == before
