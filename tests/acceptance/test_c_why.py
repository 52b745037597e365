"""`geres why` in every state, and what a submitter is warned about."""

from __future__ import annotations

import pytest

from tests.acceptance.acts import (
    eventually,
    fresh_job,
    own_cluster,
    shown,
    submit,
    wait_for_state,
)


def why(cluster, what):
    """The words and the facts, which must agree."""
    words = cluster.run("why", what, check=True).stdout
    facts = shown(cluster, "why", what)
    assert words.startswith(f"{what}: {facts['state']}")
    assert facts.get("next_command", "") in words
    return words, facts


def test_u057_what_no_node_fits_is_warned_about_and_explained(cluster):
    done = cluster.run("submit", "-m", "9T", "--", "true", check=True)
    task = done.stdout.strip()

    assert "no node can ever run this" in done.stderr
    assert "memory" in done.stderr
    words, facts = why(cluster, task)
    assert "memory" in words
    assert (facts["state"], facts["satisfiable"]) == ("queued", False)
    assert facts["nodes"][0]["ever"] is False

    edit = facts["next_command"].split()
    assert edit[:3] == ["geres", "edit", task]
    cluster.run(*edit[1:], check=True)
    cluster.run("wait", task, check=True)


def test_u057_the_advice_fits_whatever_the_node_has(make_cluster):
    """Sizes are shown rounded; the one that is advised must not be rounded up."""
    odd = make_cluster(cpus=1, flags=("--memory", "1055900000"))
    task = submit(odd, "-m", "9T", "--", "true")

    edit = shown(odd, "why", task)["next_command"].split()
    odd.run(*edit[1:], check=True)

    odd.run("wait", task, check=True)


def test_u057_a_failed_task_shows_its_exit_its_stderr_and_what_to_type(cluster):
    done = cluster.run("run", "--name", "bad-one", "--", "sh", "-c", "echo bad >&2; exit 3")
    assert done.returncode == 3
    [task] = cluster.run("tasks", "--name", "bad-one", "-q", check=True).stdout.split()
    [node] = shown(cluster, "nodes")

    words, facts = why(cluster, task)

    assert "exit 3" in words
    assert "bad" in facts["stderr_tail"]
    assert "bad" in words
    assert node["name"] in facts["summary"]
    assert "attempt 1" in facts["summary"]
    assert facts["next_command"] == f"geres logs {task}"


def test_u057_only_the_last_lines_of_stderr_are_shown(cluster):
    cluster.run("run", "--name", "chatty", "--", "sh", "-c", "seq 1 50 >&2; exit 1")
    [task] = cluster.run("tasks", "--name", "chatty", "-q", check=True).stdout.split()

    assert why(cluster, task)[1]["stderr_tail"] == [str(number) for number in range(31, 51)]


@pytest.mark.parametrize(
    ("words", "summary"),
    [
        (("--", "no-such-program"), "not_found"),
        (("-t", "0.2s", "--grace", "0.1s", "--", "sleep", "600"), "timeout"),
        (("--", "sh", "-c", "kill -9 $$"), "signal 9"),
        (("--retries", "2", "--", "false"), "after 2 retries"),
    ],
)
def test_u057_every_way_to_fail_has_its_words(cluster, words, summary):
    task = submit(cluster, *words)
    cluster.run("wait", task)

    facts = why(cluster, task)[1]

    assert facts["state"] == "failed"
    assert summary in facts["summary"]
    assert facts["next_command"].startswith("geres ")


def test_u057_every_state_is_explained(cluster, gate):
    running = submit(cluster, "-c", "2", "-t", "1h", "-m", "100M", "--", *gate.words)
    wait_for_state(cluster, running, "running")
    job = fresh_job(cluster)
    ids = {
        "queued": submit(cluster, "--job", job, "--", "true"),
        "held": submit(cluster, "--hold", "--", "true"),
        "blocked": submit(cluster, "--after", running, "--", "true"),
        "later": submit(cluster, "--not-before", "2099-01-01T00:00:00Z", "--", "true"),
        "cancelled": submit(cluster, "--job", job, "--", "true"),
    }
    cluster.run("cancel", ids["cancelled"], check=True)
    parent = submit(cluster, "--hold", "--", "true")
    skipped = submit(cluster, "--after", parent, "--", "true")
    cluster.run("cancel", parent, check=True)
    expected = {
        running: ("running", "1h"),
        ids["queued"]: ("queued", "cpus"),
        ids["held"]: ("held", "geres release"),
        ids["blocked"]: ("blocked", running),
        ids["later"]: ("blocked", "2099"),
        ids["cancelled"]: ("cancelled", "request"),
        skipped: ("skipped", parent),
    }

    for task, (state, part) in expected.items():
        words, facts = why(cluster, task)
        assert (task, facts["state"]) == (task, state)
        assert part in words, words

    assert "100" in why(cluster, running)[0]
    cluster.run("cancel", ids["held"], ids["later"], check=True)
    gate.open()
    cluster.run("wait", running, ids["blocked"], ids["queued"], check=True)
    words, facts = why(cluster, running)
    assert facts["state"] == "succeeded"
    assert "exit 0" in words


def test_u057_a_suspended_job_and_its_groups(cluster):
    job = fresh_job(cluster)
    for words in (("true",), ("false",), ("sh", "-c", "exit 4")):
        cluster.run("run", "--job", job, "--", *words)
    cluster.run("job", "disable", job, "--reason", "licence server down", check=True)
    waiting = [submit(cluster, "--job", job, "--", "true") for _ in range(2)]
    large = submit(cluster, "--job", job, "-m", "9T", "--", "true")

    words, facts = why(cluster, waiting[0])
    assert "licence server down" in words
    assert facts["next_command"] == f"geres job enable {job}"
    cluster.run("job", "enable", job, check=True)
    cluster.run("wait", *waiting, check=True)

    words, facts = why(cluster, job)
    groups = {group["text"]: group["count"] for group in facts["groups"]}
    assert groups["failed: exit 1"] == groups["failed: exit 4"] == 1
    assert "5 of 6 tasks have ended" in words
    [never] = [text for text in groups if "can never run" in text]
    assert "memory" in never
    cluster.run("cancel", large, check=True)


def test_u057_an_unknown_id_is_told(cluster):
    for what in ("999.9", "999", "nosuch"):
        done = cluster.run("why", what)
        assert (done.returncode, done.stdout) == (4, "")
        assert what in done.stderr


def test_u057_without_a_node_a_submitter_is_told(make_cluster):
    alone = make_cluster(flags=("--no-agent",))

    done = alone.run("submit", "--", "true", check=True)

    assert "no node of pool default is connected" in done.stderr
    assert "no node of pool default is connected" in alone.run("why", done.stdout.strip(), check=True).stdout


def test_u057_a_disk_that_is_nearly_full_is_warned_about(request, cluster):
    """The threshold comes down to the disk, for want of a disk that a test may fill."""
    with own_cluster(request, settings="[server]\ndisk_warn_percent = 0\n") as nagging:
        [node] = shown(nagging, "nodes")
        done = eventually(
            lambda: nagging.run("submit", "--", "true", check=True), lambda done: "disk" in done.stderr
        )
        quiet = nagging.run("submit", "-q", "--", "true", check=True)
        array = nagging.run("submit", "--", "true", ":::", "a", "b", check=True)
        run = nagging.run("run", "--", "echo", "hi", check=True)

    assert f"the disk of node {node['name']} is" in done.stderr
    assert "% full" in done.stderr
    assert quiet.stderr == ""
    assert "% full" in array.stderr
    assert (run.stdout, run.stderr.count("% full")) == ("hi\n", 1)
    with own_cluster(request, settings="[server]\ndisk_warn_percent = 100\n") as silent:
        assert silent.run("submit", "--", "true", check=True).stderr == ""
