"""Arrays: one command over a range or a list of items."""

from __future__ import annotations

import json

import pytest

from tests.acceptance.acts import Gate, eventually, fresh_job, most_at_once, shown, states, submit


def outputs(cluster, job):
    """Stdout of a job's tasks, by task number."""
    ids = [row["id"] for row in shown(cluster, "tasks", "--job", job, "--sort", "id")]
    told = cluster.run("logs", job, check=True).stdout.splitlines()
    found = {one: [line.partition(": ")[2] for line in told if line.startswith(one + ": ")] for one in ids}
    return {int(one.partition(".")[2]): "\n".join(lines) for one, lines in found.items()}


def test_u006_a_range_gives_each_task_its_index(cluster):
    job = submit(cluster, "--array", "1-5", "--", "printenv", "GERES_ARRAY_INDEX")

    cluster.run("wait", job, check=True)

    assert job.isdigit()
    assert outputs(cluster, job) == {number: str(number) for number in range(1, 6)}
    info = shown(cluster, "job", "show", job)
    assert (info["counts"]["succeeded"], info["state"], info["name"]) == (5, "completed", "printenv")


def test_u006_a_range_has_steps_and_pieces_and_braces_are_replaced(cluster):
    job = submit(
        cluster, "--array", "1-3,10-20:5", "--", "echo", "{index}", "{}", "{task}", "x{index}y", "{no}"
    )

    cluster.run("wait", job, check=True)

    assert outputs(cluster, job) == {
        number: f"{number} {number} {job}.{number} x{number}y {{no}}" for number in (1, 2, 3, 10, 15, 20)
    }


def test_u006_never_more_run_at_once_than_the_range_allows(cluster):
    job = submit(cluster, "--array", "1-9%1", "--", "sleep", "0.02")

    cluster.run("wait", job, check=True)

    rows = shown(cluster, "tasks", "--job", job)
    assert len(rows) == 9
    assert most_at_once(rows) == 1
    assert shown(cluster, "job", "show", job)["max_parallel"] == 1


def test_u006_lines_of_stdin_are_items_and_outputs_come_whole(cluster):
    done = cluster.run("run", "--items", "-", "--", "echo", "{}", input="a b\nc\n", check=True)

    assert sorted(done.stdout.splitlines()) == ["a b", "c"]


def test_u006_the_output_of_one_task_is_not_torn_by_another(cluster):
    line = "for n in 1 2 3; do echo {} $n; sleep 0.02; done"

    done = cluster.run("run", "sh", "-c", line, ":::", "x", "y", "z", check=True)

    lines = done.stdout.splitlines()
    assert sorted(lines[::3]) == ["x 1", "y 1", "z 1"]
    for begin in (0, 3, 6):
        item = lines[begin][0]
        assert lines[begin : begin + 3] == [f"{item} {n}" for n in (1, 2, 3)]


def test_u006_run_exits_as_the_last_task_that_failed(cluster):
    done = cluster.run("run", "sh", "-c", "exit {}", ":::", "0", "3", "5", "0")

    assert done.returncode == 5
    assert "2 of the tasks failed" in done.stderr
    assert cluster.run("run", "sh", "-c", "exit {}", ":::", "0", "0").returncode == 0


def test_u006_parts_of_paths_and_odd_items_are_one_word(cluster, tmp_path):
    items = ["dir one/file.tar.gz", "it's", "$HOME", "", "*"]
    file = tmp_path / "items"
    file.write_bytes("\0".join(items).encode() + b"\0")

    job = submit(
        cluster, "--items", str(file), "-0", "--", "printf", "%s|%s|%s|%s", "{}", "{.}", "{/}", "-{}-"
    )
    cluster.run("wait", job, check=True)

    told = outputs(cluster, job)
    assert told[1] == "dir one/file.tar.gz|dir one/file.tar|file.tar.gz|-dir one/file.tar.gz-"
    assert told[2] == "it's|it's|it's|-it's-"
    assert told[3] == "$HOME|$HOME|$HOME|-$HOME-"
    assert told[4] == "|||--"
    assert told[5] == "*|*|*|-*-"
    assert [row["item"] for row in shown(cluster, "tasks", "--job", job, "--sort", "id")] == items


def test_u006_output_files_have_the_item_in_their_names(cluster, tmp_path):
    job = submit(cluster, "-o", f"{tmp_path}/{{}}.out", "--", "echo", "I am {}", ":::", "a", "b")

    cluster.run("wait", job, check=True)

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.out": "I am a\n",
        "b.out": "I am b\n",
    }


@pytest.mark.parametrize(
    "words",
    [
        ("--array", "5-1", "--", "true"),
        ("--array", "one", "--", "true"),
        ("--array", "1-3%0", "--", "true"),
        ("--array", "1-3", "--items", "-", "--", "true"),
        ("--array", "1-3", "-o", "same.out", "--", "true"),
        ("--array", "1-3", "--job", "default", "--", "true"),
        ("--", "true", ":::"),
    ],
)
def test_u006_an_array_that_cannot_be_meant_is_refused(cluster, words):
    before = cluster.run("jobs", "-q", check=True).stdout

    done = cluster.run("submit", *words, input="a\n")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert cluster.run("jobs", "-q", check=True).stdout == before


def test_u006_a_large_array_is_accepted_at_once_and_is_a_job_like_others(cluster, tmp_path):
    gate = Gate(tmp_path)
    job = submit(cluster, "--array", "1-20000", "--", *gate.words)

    info = eventually(lambda: shown(cluster, "job", "show", job), lambda info: info["counts"].get("running"))
    assert info["task_count"] == 20000
    cluster.run("job", "cancel", job, check=True)
    gate.open()

    ended = eventually(lambda: shown(cluster, "job", "show", job), lambda info: info["state"] == "cancelled")
    assert sum(ended["counts"].values()) == 20000
    assert ended["counts"]["cancelled"] >= 19990


def test_u006_an_array_waits_for_what_it_comes_after(cluster, tmp_path):
    gate = Gate(tmp_path)
    first = submit(cluster, *gate.words)
    array = submit(cluster, "--after", first, "echo", "{}", ":::", "x", "y")
    file = tmp_path / "tasks.jsonl"
    file.write_text('["echo", "1"]\n{"command": ["echo", "2"]}\n')
    rows = submit(cluster, "--after", f"{first}", "--after", array, "--from", str(file)).splitlines()

    assert [row["state"] for row in shown(cluster, "tasks", "--job", array)] == ["blocked"] * 2
    assert states(cluster, *rows) == ["blocked"] * 2
    gate.open()
    cluster.run("wait", *rows, check=True)

    assert outputs(cluster, array) == {1: "x", 2: "y"}
    ended = [row["ended_at"] for row in shown(cluster, "tasks", "--job", array)]
    started = [shown(cluster, "task", "show", row)["started_at"] for row in rows]
    assert max(ended) < min(started)


def test_u006_an_array_after_what_fails_is_skipped(cluster, tmp_path):
    gate = Gate(tmp_path)
    job = fresh_job(cluster)
    first = submit(cluster, "--job", job, "--shell", f"{gate.words[2]}; exit 3")
    client = cluster.client()
    array = client.submit_array(["true"], range="1-3", after=client.task(first))
    many = client.submit_many([["true"], ["true"]], after=[first])
    gate.open()

    client.wait(array)
    client.wait(many)

    assert [task.state.value for task in client.tasks(job=array.id)] == ["skipped"] * 3
    assert states(cluster, *many.ids()) == ["skipped"] * 2


def test_u006_a_dry_run_shows_the_array(cluster):
    done = cluster.run(
        "submit", "--dry-run", "--array", "2-20:2%3", "--", "echo", "{}", "{index}x", check=True
    )
    words = ("submit", "--dry-run", "--json", "--items", "-", "--", "echo", "{/}")
    items = json.loads(cluster.run(*words, input="a/b\nc/d\n", check=True).stdout)

    assert "the first runs echo 2 2x\n" in done.stderr
    assert "the last runs echo 20 20x\n" in done.stderr
    assert "with 10 tasks" in done.stderr
    assert "at most 3 of them at once" in done.stderr
    assert (items["count"], items["first_command"], items["last_command"]) == (
        2,
        ["echo", "b"],
        ["echo", "d"],
    )
