"""Seeing what goes on: lists, details, formats, history, accounting, counts and the service log."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import uuid

import pytest

from geres.model.tasks import TaskPage
from tests.acceptance.acts import Gate, eventually, shown, submit, wait_for_state
from tests.acceptance.configured import cluster_with


@pytest.fixture(scope="module")
def mixed(cluster):
    """Ids of tasks that ended in different ways, in two jobs, all with the metadata `set=mixed`."""
    cluster.run("job", "create", "left", check=True)
    cluster.run("job", "create", "right", check=True)

    def add(job, *words):
        return submit(cluster, "--job", job, "--meta", "set=mixed", *words)

    ids = {
        "ok": add("left", "--meta", "size=1", "--", "true"),
        "named": add("left", "--name", "nice name", "--", "echo", "found me"),
        "failed": add("right", "--meta", "size=2", "--", "sh", "-c", "echo bad >&2; exit 3"),
        "cancelled": add("right", "--hold", "--", "true"),
    }
    cluster.run("cancel", ids["cancelled"], check=True)
    cluster.run("wait", *ids.values())
    return ids


MIXED = ["ok", "named", "failed", "cancelled"]


def listed(cluster, *words):
    """The ids that `geres tasks WORDS` lists."""
    return cluster.run("tasks", "-q", *words, check=True).stdout.split()


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("--job", "left"), ["named", "ok"]),
        (("--job", "right", "--state", "failed"), ["failed"]),
        (("--state", "failed,cancelled", "--filter", 'meta.set=="mixed"'), ["cancelled", "failed"]),
        (("--filter", 'meta.set=="mixed" and exit_code!=0'), ["failed"]),
        (("--filter", 'meta.set=="mixed" and exit_code>0'), ["failed"]),
        (("--filter", 'meta.set=="mixed" and (name=="nice name" or reason=="requested")'), None),
        (("--filter", "meta.size in ('1', '2')"), ["failed", "ok"]),
        (("--filter", 'meta.set=="mixed"', "--sort", "id"), MIXED),
        (("--filter", 'meta.set=="mixed" and cpus == 1 and memory_bytes < "1K"', "--sort", "id"), MIXED),
        (("--grep", "found me"), ["named"]),
        (("--name", "nice name"), ["named"]),
        (("--job", "left", "--state", "suspended"), []),
    ],
)
def test_u120_filters_return_exactly_the_matching_ids(cluster, mixed, words, names):
    if names is None:
        names = ["cancelled", "named"]

    assert listed(cluster, *words) == [mixed[name] for name in names]


@pytest.mark.parametrize("words", [("--filter", "state=="), ("--filter", "colour==1"), ("--sort", "colour")])
def test_u120_a_bad_filter_is_refused_in_words(cluster, words):
    done = cluster.run("tasks", *words)

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert words[0][2:] in done.stderr


def test_u120_pages_of_100_over_250_have_no_repeats(cluster):
    job = submit(cluster, "--hold", "--array", "1-250", "--", "true")
    transport = cluster.client().transport
    sizes, seen, cursor = [], [], None
    while len(sizes) < 5:
        page = transport.get("/v1/tasks", TaskPage, job=job, limit=100, cursor=cursor)
        sizes.append(len(page.items))
        seen += [task.id for task in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break

    assert sizes == [100, 100, 50]
    assert len(set(seen)) == 250
    assert len(listed(cluster, "--job", job)) == 250
    cluster.run("job", "cancel", job, check=True)


def test_u121_task_show_has_all_that_is_known(cluster, mixed):
    text = cluster.run("task", "show", mixed["failed"], check=True).stdout
    info = shown(cluster, "task", "show", mixed["failed"])

    for word in ("failed (exit)", "default", "exit code:    3", "created", "started", "ended", "1:"):
        assert word in text, word
    fields = (
        *("state", "state_since", "previous_state", "previous_since", "pool", "node", "node_connected"),
        *("reason", "message", "location", "created_at", "assigned_at", "started_at", "ended_at", "attempts"),
        *("usage", "submitted_by", "spec", "meta"),
    )
    assert [name for name in fields if name not in info] == []
    assert info["created_at"] <= info["assigned_at"] <= info["started_at"] <= info["ended_at"]


def test_u121_of_a_running_task_it_says_where_and_since_when(cluster, gate):
    task = submit(cluster, "--cwd", "task", "--", *gate.words)
    wait_for_state(cluster, task, "running")

    info = shown(cluster, "task", "show", task)
    text = cluster.run("task", "show", task, check=True).stdout
    gate.open()
    cluster.run("wait", task, check=True)

    assert info["state"] == "running"
    assert info["node_connected"] is True
    assert (info["ended_at"], info["exit_code"]) == (None, None)
    assert info["node"] in text


def test_u121_an_unknown_task_is_named(cluster):
    done = cluster.run("task", "show", "1.424242")

    assert done.returncode == 4
    assert "1.424242" in done.stderr


def test_u122_own_formats_json_and_csv(cluster, mixed):
    words = ("tasks", "--filter", 'meta.set=="mixed"', "--sort", "id")

    own = cluster.run(*words, "--format", "{id:>8} {state}", check=True).stdout
    rows = list(csv.DictReader(io.StringIO(cluster.run(*words, "--csv", check=True).stdout)))
    objects = shown(cluster, *words)
    lines = cluster.run(*words, "--jsonl", check=True).stdout.splitlines()
    selected = cluster.run(*words, "--select", "id,exit_code", check=True).stdout.splitlines()

    ids = [mixed[name] for name in ("ok", "named", "failed", "cancelled")]
    states = ["succeeded", "succeeded", "failed", "cancelled"]
    assert own == "".join(f"{id:>8} {state}\n" for id, state in zip(ids, states, strict=True))
    assert [(row["id"], row["state"]) for row in rows] == list(zip(ids, states, strict=True))
    assert [one["id"] for one in objects] == ids
    assert [json.loads(line) for line in lines] == objects
    assert [line.split()[0] for line in selected[1:]] == ids


def test_u122_use_can_be_printed_and_unknown_fields_are_named(cluster):
    cluster.run("run", "--name", "big", "--", sys.executable, "-c", "x = b'1' * (100 << 20)", check=True)

    line = cluster.run("tasks", "--name", "big", "--format", "{id} {usage.max_rss_bytes}", check=True).stdout
    wrong = cluster.run("tasks", "--format", "{id} {colour}")

    _, size = line.split()
    assert int(size) > 100 << 20
    assert wrong.returncode == 2
    assert "colour" in wrong.stderr
    nested = cluster.run("tasks", "--name", "no such", "--format", "{usage.wall}")
    assert (nested.returncode, "usage.wall_seconds" in nested.stderr) == (2, True)


def test_u122_control_characters_in_names_are_shown_escaped(cluster):
    task = submit(cluster, "--meta", "k=a\x1b[31mred", "--", "printf", "\x1b[31m")
    cluster.run("wait", task, check=True)

    assert "\x1b" not in cluster.run("tasks", "-n", "1", check=True).stdout
    assert "\x1b" not in cluster.run("task", "show", task, check=True).stdout
    assert cluster.run("logs", task).stdout == "\x1b[31m"


def test_u123_a_finished_task_is_found_by_part_of_its_command(cluster):
    word = uuid.uuid4().hex
    first = cluster.run("run", "--", "echo", f"begin-{word}-end", check=True)
    assert word in first.stdout
    cluster.run("run", "--", "true", check=True)

    [found] = shown(cluster, "history", "-n", "10", "--grep", word[4:20])
    assert found["command"] == ["echo", f"begin-{word}-end"]
    assert shown(cluster, "history", "--grep", word, "--since", "1h") == [found]
    assert shown(cluster, "history", "--grep", word, "--until", "2001-01-01T00:00") == []
    assert shown(cluster, "history", "--grep", word, "--since", found["ended_at"]) == [found]


def test_u123_history_has_ended_tasks_the_latest_end_first(cluster, gate):
    running = submit(cluster, "--", *gate.words)
    ended = [cluster.run("run", "--", "true", check=True) and shown(cluster, "history", "-n", "1")[0]["id"]]
    ended += [cluster.run("run", "--", "true", check=True) and shown(cluster, "history", "-n", "1")[0]["id"]]

    assert [one["id"] for one in shown(cluster, "history", "-n", "2")] == ended[::-1]
    gate.open()
    cluster.run("wait", running, check=True)
    assert shown(cluster, "history", "-n", "1")[0]["id"] == running


def test_u124_use_is_recorded_for_each_task(cluster):
    program = "x = bytearray(2 * 10**8); sum(range(3_000_000)); open('f', 'wb').write(bytes(1 << 20))"
    cluster.run("run", "--cwd", "task", "--", sys.executable, "-c", program, check=True)

    [task] = shown(cluster, "history", "-n", "1")
    usage = task["usage"]
    assert usage["max_rss_bytes"] > 190 * 10**6
    assert 0.01 < usage["user_seconds"] + usage["system_seconds"] < 60
    assert usage["wall_seconds"] > 0.01
    assert usage["minor_faults"] > 1000
    assert {"voluntary_switches", "blocks_out"} <= usage.keys()
    assert task["wait_seconds"] >= 0


def test_u124_use_is_summed_for_a_job(cluster):
    job = submit(cluster, "--array", "1-3", "--", sys.executable, "-c", "sum(range(2_000_000))")
    cluster.run("wait", job, check=True)

    parts = [task["usage"] for task in shown(cluster, "tasks", "--job", job)]
    whole = shown(cluster, "job", "show", job)["usage"]
    text = cluster.run("job", "show", job, check=True).stdout

    for name in ("wall_seconds", "user_seconds"):
        assert whole[name] == pytest.approx(sum(part[name] for part in parts), abs=1e-3)
    assert "user, " in text


def test_u126_the_summary_equals_the_lists(cluster, mixed, gate):
    running = submit(cluster, "--", *gate.words)
    wait_for_state(cluster, running, "running")
    held = submit(cluster, "--hold", "--", "true")

    counts = shown(cluster, "summary")

    for state in ("running", "held", "queued", "succeeded", "failed", "cancelled"):
        assert counts["tasks"][state] == len(listed(cluster, "--all", "--state", state)), state
    jobs = shown(cluster, "jobs", "--all")
    for state in ("active", "cancelled"):
        assert counts["jobs"][state] == sum(job["state"] == state for job in jobs), state
    nodes = shown(cluster, "nodes")
    assert sum(counts["nodes"].values()) == len(nodes) == 1
    cluster.run("cancel", held, check=True)
    gate.open()
    cluster.run("wait", running, check=True)


def test_u126_lists_tell_how_many_of_how_many_are_shown(cluster, mixed):
    done = cluster.run("tasks", "--filter", 'meta.set=="mixed"', "-n", "3", check=True)

    assert len(done.stdout.splitlines()) == 1 + 3
    assert done.stderr == "3 of 4 tasks\n"
    assert cluster.run("tasks", "--filter", 'meta.set=="mixed"', "--count", check=True).stdout == "4\n"


def test_u126_the_state_of_a_node_follows_its_tasks(cluster, gate):
    task = submit(cluster, "--", *gate.words)
    wait_for_state(cluster, task, "running")
    eventually(lambda: shown(cluster, "nodes")[0]["state"], lambda state: state == "running")

    gate.open()
    cluster.run("wait", task, check=True)
    eventually(lambda: shown(cluster, "nodes")[0]["state"], lambda state: state == "idle")


def test_u139_each_end_of_a_task_is_one_line_of_the_service_log(cluster, mixed):
    logs = {
        name: [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        for name, text in cluster.logs()
        if name in ("server.log", "agent.log")
    }
    ends = [line for line in logs["server.log"] if line["event"] == "task_ended"]

    [failed] = [line for line in ends if line["task"] == mixed["failed"]]
    assert (failed["state"], failed["reason"], failed["exit_code"]) == ("failed", "exit", 3)
    assert len([line for line in ends if line["task"] == mixed["ok"]]) == 1
    for name, lines in logs.items():
        assert lines, name
        assert all({"at", "level", "area", "event"} <= line.keys() for line in lines), name


def test_u139_the_level_is_set_for_each_area():
    with cluster_with('[log]\nlevel = "warning"\nlevels = { server = "info" }\n') as cluster:
        cluster.run("run", "--", "true", check=True)
        [text] = [text for name, text in cluster.logs() if name == "server.log"]

    lines = [json.loads(line) for line in text.splitlines()]
    assert {line["area"] for line in lines if line["level"] == "info"} == {"server"}


def test_u139_a_stop_tells_what_it_waits_for(make_cluster, tmp_path):
    cluster, gate = make_cluster(), Gate(tmp_path)
    task = submit(cluster, "--name", "slow", "--", *gate.words)
    eventually(lambda: shown(cluster, "task", "show", task)["state"], lambda state: state == "running")

    down = cluster.popen("down")
    told = [down.stderr.readline(), down.stderr.readline()]
    gate.open()
    _, rest = down.communicate(timeout=60)

    assert told[0] == f"geres: stopping; 1 running: {task} slow; they get a while to end (Ctrl-C: stop now)\n"
    assert re.fullmatch(rf"geres: stopping for \S+; 1 running: {task} slow\n", told[1])
    assert (down.returncode, rest.splitlines()[-1]) == (0, "geres is down")
    cluster.start()
