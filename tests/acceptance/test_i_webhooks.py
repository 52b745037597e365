"""Webhooks: other programs hear of every end, and a dead one harms nothing."""

from __future__ import annotations

import json
import signal
import socket

import pytest

from tests.acceptance.acts import Gate, eventually, fresh_job, shown, states, submit
from tests.acceptance.harm import assert_refused
from tests.receiver import Receiver


@pytest.fixture
def cluster(any_cluster):
    yield any_cluster
    for one in shown(any_cluster, "webhook", "list"):
        any_cluster.run("webhook", "remove", one["id"], "--yes", check=True)


@pytest.fixture
def receiver():
    with Receiver() as made:
        yield made


def add(cluster, *words):
    return shown(cluster, "webhook", "add", *words)


def warnings(cluster):
    """What the server's log says of webhooks that fail."""
    lines = dict(cluster.logs())["server.log"].splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == "webhook_failing"]


def nowhere():
    """The URL of a port at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/dead"


def test_u116_a_dead_webhook_fails_no_task_and_warns_once(cluster):
    dead = add(cluster, nowhere())
    before = len(warnings(cluster))

    done = [cluster.run("run", "echo", str(n)) for n in range(3)]
    job = submit(cluster, "--array", "1-50", "--", "true")
    cluster.run("wait", job, check=True)

    assert [(one.returncode, one.stdout) for one in done] == [(0, f"{n}\n") for n in range(3)]
    found = eventually(lambda: shown(cluster, "webhook", "show", dead["id"]), lambda one: one["tries"] >= 2)
    assert (found["delivered"], found["waiting"], found["error"]) == (0, 54, "connection refused")
    warned = warnings(cluster)[before:]
    assert [(one["level"], one["area"]) for one in warned] == [("warning", "webhooks")]
    assert "connection refused" in warned[0]["text"]
    assert "connection refused" in cluster.run("webhook", check=True).stdout
    doctor = cluster.run("doctor")
    assert (doctor.returncode, "geres webhook test" in doctor.stdout) == (1, True)


def test_u116_a_webhook_that_is_back_gets_what_waited(cluster, receiver):
    receiver.answer = lambda got: 500
    one = add(cluster, receiver.url, "--event", "task.ended")
    tasks = [cluster.run("run", "true", check=True) for _ in range(3)]
    eventually(lambda: shown(cluster, "webhook", "show", one["id"])["tries"])
    receiver.got.clear()
    receiver.answer = lambda got: 204

    messages = receiver.wait_for(len(tasks))

    eventually(lambda: shown(cluster, "webhook", "show", one["id"])["waiting"], lambda count: count == 0)
    found = shown(cluster, "webhook", "show", one["id"])
    assert (found["delivered"], found["failing_since"], found["dropped"]) == (3, None, 0)
    assert {message["state"] for message in messages} == {"succeeded"}
    log = dict(cluster.logs())["server.log"]
    assert f"webhook {one['id']} ({receiver.url.removesuffix('/ends')}) works again" in log


def test_u128_a_webhook_receives_one_message_per_final_state(cluster, receiver, tmp_path):
    job = fresh_job(cluster)
    add(cluster, receiver.url, "--job", job)

    def task(*words):
        return submit(cluster, "--job", job, *words)

    gate = Gate(tmp_path)
    ends = {
        task("--name", "good", "--id", "mine", "--meta", "run=7", "--", "true"): ("succeeded", None, 0, None),
        task("--", "sh", "-c", "exit 3"): ("failed", "exit", 3, None),
        task("--", "sh", "-c", "kill -SEGV $$"): ("failed", "signal", None, signal.SIGSEGV),
        task("-t", "0.2s", "--", "sleep", "60"): ("failed", "timeout", None, None),
        task("--", "no-such-program-anywhere"): ("failed", "not_found", None, None),
    }
    held = task("--hold", "--", "true")
    ends[held] = ("cancelled", "requested", None, None)
    ends[task("--after", held, "--", "true")] = ("skipped", "parent_failed", None, None)
    running = task("--", *gate.words)
    ends[running] = ("cancelled", "requested", None, None)
    retried = task("--retries", "1", "--retry-delay", "0", "--", "false")
    ends[retried] = ("failed", "exit", 1, None)
    eventually(lambda: states(cluster, running), lambda found: found == ["running"])
    cluster.run("cancel", held, running, check=True)
    cluster.run("wait", *ends)
    cluster.run("job", "close", job, check=True)

    messages = receiver.wait_for(len(ends) + 1)

    told = {message["task_id"]: message for message in messages[:-1]}
    assert set(told) == set(ends)
    for one, (state, reason, exit_code, number) in ends.items():
        message = told[one]
        assert (message["state"], message["reason"]) == (state, reason), message
        assert exit_code is None or message["exit_code"] == exit_code
        assert number is None or message["signal"] == number
        same = shown(cluster, "task", "show", one)
        for name in ("state", "reason", "message", "exit_code", "signal", "attempt", "node", "name", "meta"):
            assert message[name] == same[name], (one, name)
        assert message["usage"] == (same["usage"] or message["usage"])
        assert (message["user"], message["finish_no"]) == (same["submitted_by"], same["finish_no"])
    good = told[next(iter(ends))]
    assert (good["name"], good["own_id"], good["meta"]) == ("good", "mine", {"run": "7"})
    assert told[retried]["attempt"] == 2
    last = messages[-1]
    assert (last["event"], last["job_id"], last["state"], last["outcome"]) == (
        *("job.ended", job, "completed", "some_failed"),
    )
    assert (last["counts"]["succeeded"], last["counts"]["failed"]) == (1, 5)
    assert len({message["id"] for message in messages}) == len(messages)
    assert sorted(message["finish_no"] for message in messages[:-1]) == list(range(1, len(ends) + 1))


def test_u128_a_webhook_is_filtered_tested_and_removed(cluster, receiver):
    one = add(cluster, receiver.url, "--event", "task.ended", "--state", "failed,cancelled")
    tested = cluster.run("webhook", "test", one["id"], check=True)
    assert tested.stdout.startswith("it answered 204 in ")
    assert receiver.messages[0]["event"] == "webhook.test"
    cluster.run("run", "true", check=True)
    cluster.run("run", "false")

    assert [message["state"] for message in receiver.wait_for(2)[1:]] == ["failed"]
    told = cluster.run("webhook", "list", check=True).stdout
    assert "task.ended (failed, cancelled)" in told
    assert one["secret"] not in told + cluster.run("webhook", "show", one["id"], "--json").stdout
    assert_refused(cluster.run("webhook", "remove", one["id"]), "say --yes")
    cluster.run("webhook", "remove", one["id"], "--yes", check=True)
    gone = cluster.run("webhook", "test", one["id"])
    assert_refused(gone, "there is no webhook", status=4, code="not_found")
    actions = [entry["action"] for entry in shown(cluster, "audit", "--action", "webhook.", "-n", "3")]
    assert actions == ["webhook.remove", "webhook.test", "webhook.create"]


def test_u128_the_secret_comes_from_a_file_where_one_is_given(cluster, receiver, tmp_path):
    file = tmp_path / "secret"
    file.write_text("one-that-both-sides-know\n")

    one = add(cluster, receiver.url, "--secret-from", str(file))

    assert one["secret"] == "one-that-both-sides-know"
    for words in ((str(tmp_path / "none"),), (str(tmp_path),)):
        assert_refused(cluster.run("webhook", "add", receiver.url, "--secret-from", *words), "cannot be read")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("ftp://host.example/",), "url: "),
        (("http://169.254.169.254/x",), "no webhook may go to 169.254.169.254"),
        (("https://host.example/", "--event", "task.started"), "--event: 'task.started' is none"),
        (
            ("https://host.example/", "--state", "canceled"),
            "--state: 'canceled' is none; did you mean cancelled",
        ),
        (("https://host.example/", "--state", ","), "--state: names nothing"),
    ],
)
def test_u128_a_webhook_that_cannot_be_is_refused(cluster, words, told):
    assert_refused(cluster.run("webhook", "add", *words), told)
    assert shown(cluster, "webhook", "list") == []
