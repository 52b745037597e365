"""Submitting work: what a user types, and what comes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from tests.acceptance.acts import Gate, eventually, shown, submit, wait_for_state


def http(cluster, method, path, body=None, token=None, **headers):
    """Status and JSON of a plain request, by a client that is none of ours."""
    request = urllib.request.Request(
        cluster.url + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **headers},
    )
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=70) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_u001_a_command_is_run_from_the_shell(cluster):
    [node] = shown(cluster, "nodes")

    done = cluster.run("run", "--", "hostname", check=True)

    assert done.stdout.strip() == node["name"]
    assert done.stderr == ""


def test_u001_run_passes_stdin_and_both_streams_through(cluster):
    done = cluster.run("run", "sh", "-c", "cat; echo aside >&2", input="one\ntwo\n")

    assert (done.returncode, done.stdout, done.stderr) == (0, "one\ntwo\n", "aside\n")


def test_u001_submit_prints_an_id_that_wait_and_logs_take(cluster):
    task = submit(cluster, "--", "echo", "later")

    cluster.run("wait", task, check=True)

    assert cluster.run("logs", task, check=True).stdout == "later\n"
    assert shown(cluster, "task", "show", task)["id"] == task


def test_u002_python_has_a_client(cluster, tmp_path):
    program = "import geres; print(geres.Client().submit(['true']).wait().exit_code)"

    done = subprocess.run(
        [sys.executable, "-c", program],
        env=cluster.env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_u003_the_api_describes_itself(cluster):
    status, document = http(cluster, "GET", "/openapi.json")

    assert status == 200
    assert document["openapi"].startswith("3.")
    assert document["info"]["title"]
    assert "post" in document["paths"]["/v1/tasks"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["responses"], (method, path)
    assert not dangling(document)


def dangling(document):
    """References that lead nowhere."""
    names = set()

    def look(value):
        if isinstance(value, dict):
            names.add(value.get("$ref"))
            for one in value.values():
                look(one)
        elif isinstance(value, list):
            for one in value:
                look(one)

    look(document)
    schemas = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    return {name for name in names if isinstance(name, str)} - schemas


def test_u003_a_plain_http_client_submits_and_waits(cluster):
    status, answer = http(
        cluster, "POST", "/v1/tasks", {"task": {"command": ["sh", "-c", "exit 4"]}}, cluster.token
    )
    assert status == 201

    status, task = http(
        cluster, "GET", f"/v1/tasks/{answer['task']['id']}?wait_seconds=60", token=cluster.token
    )

    assert status == 200
    assert (task["state"], task["exit_code"]) == ("failed", 4)


def test_u003_bad_requests_are_told_what_is_wrong(cluster):
    status, answer = http(cluster, "POST", "/v1/tasks", {"task": {"command": ["true"]}})
    assert status == 401

    status, answer = http(cluster, "POST", "/v1/tasks", {"task": {"comand": ["true"]}}, cluster.token)
    assert status == 422
    assert "comand" in answer["error"]["message"]

    status, answer = http(cluster, "GET", "/v1/tasks/999.9", token=cluster.token)
    assert (status, answer["error"]["code"]) == (404, "not_found")


def test_u003_a_repeated_request_with_its_key_stores_nothing_again(cluster):
    body = {"task": {"command": ["true"]}}
    keyed = {"Idempotency-Key": "u003-once"}

    first = http(cluster, "POST", "/v1/tasks", body, cluster.token, **keyed)
    second = http(cluster, "POST", "/v1/tasks", body, cluster.token, **keyed)
    other = http(cluster, "POST", "/v1/tasks", {"task": {"command": ["false"]}}, cluster.token, **keyed)

    assert first[0] == second[0] == 201
    assert first[1]["task"]["id"] == second[1]["task"]["id"]
    assert other[0] == 409


def test_u004_many_tasks_come_from_a_file_in_its_order(cluster, tmp_path):
    rows = [{"command": ["echo", str(number)], "name": f"n{number}"} for number in range(1000)]
    file = tmp_path / "1000.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    done = cluster.run("submit", "--from", str(file), check=True)

    ids = done.stdout.split()
    assert len(ids) == len(set(ids)) == 1000
    job = ids[0].partition(".")[0]
    assert cluster.run("wait", job).returncode == 0
    names = {row["id"]: row["name"] for row in shown(cluster, "tasks", "--job", job)}
    assert [names[one] for one in ids] == [f"n{number}" for number in range(1000)]
    assert cluster.run("logs", ids[0], ids[999], check=True).stdout == f"{ids[0]}: 0\n{ids[999]}: 999\n"


def test_u004_bad_lines_are_named_and_nothing_is_stored(cluster, tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_text(
        '["true"]\n{"comand": ["true"]}\n["true"]\n{"command": ["true"], "memory": "2 Q"}\n[oops\n'
    )
    before = cluster.run("tasks", "--count", check=True).stdout

    done = cluster.run("submit", "--from", str(file))

    assert (done.returncode, done.stdout) == (2, "")
    assert "3 of 5 lines" in done.stderr
    for part in ("line 2: comand", "did you mean 'command'", "line 4: memory", "line 5: no JSON"):
        assert part in done.stderr
    assert cluster.run("tasks", "--count", check=True).stdout == before


def test_u004_a_request_takes_all_or_tells_of_each(cluster):
    tasks = [{"command": ["true"]}, {"command": []}, {"command": ["true"]}, {"cpus": -1, "command": ["x"]}]

    whole = http(cluster, "POST", "/v1/tasks:bulk", {"tasks": tasks}, cluster.token)
    each = http(cluster, "POST", "/v1/tasks:bulk", {"tasks": tasks, "atomic": False}, cluster.token)

    assert whole[0] == 422
    assert "tasks[1]" in whole[1]["error"]["message"]
    assert each[0] == 201
    assert each[1]["count"] == 2
    assert [(error["index"], error["code"]) for error in each[1]["errors"]] == [
        (1, "invalid"),
        (3, "invalid"),
    ]


@pytest.mark.parametrize("kind", ["toml", "json"])
def test_u005_options_come_from_a_file(cluster, tmp_path, kind):
    file = tmp_path / f"job.{kind}"
    if kind == "toml":
        file.write_text('command = ["sh", "-c", "echo $WHO $GERES_CPUS"]\ncpus = 2\nenv = { WHO = "file" }\n')
    else:
        file.write_text(
            json.dumps({"command": ["sh", "-c", "echo $WHO $GERES_CPUS"], "cpus": 2, "env": {"WHO": "file"}})
        )

    assert cluster.run("run", "-f", str(file), check=True).stdout == "file 2\n"
    assert cluster.run("run", "-f", str(file), "-c", "1", check=True).stdout == "file 1\n"
    both = cluster.run("run", "-f", str(file), "--", "ls")

    assert both.returncode == 2
    assert "command" in both.stderr
    assert str(file) in both.stderr


def test_u005_a_wrong_option_in_the_file_is_named(cluster, tmp_path):
    file = tmp_path / "job.toml"
    file.write_text('command = ["true"]\nmemroy = "2G"\n')

    done = cluster.run("run", "-f", str(file))

    assert done.returncode == 2
    assert "memroy" in done.stderr
    assert "did you mean 'memory'" in done.stderr


def test_u007_an_id_of_ones_own_is_taken_while_the_task_lives(cluster, gate):
    first = submit(cluster, "--id", "mine", "--", *gate.words)

    second = cluster.run("run", "--id", "mine", "--", "true")

    assert second.returncode == 125
    assert first in second.stderr
    assert "mine" in second.stderr

    gate.open()
    cluster.run("wait", "mine", check=True)
    again = submit(cluster, "--id", "mine", "--", "true")

    assert again != first
    cluster.run("wait", "mine", check=True)
    assert shown(cluster, "task", "show", "mine")["id"] == again


def test_u007_a_second_run_attaches_and_ends_as_the_first(cluster, tmp_path):
    gate = Gate(tmp_path)
    wait, line = gate.words[:2], gate.words[2]
    first = cluster.popen("run", "--id", "shared", "--", *wait, f"{line}; echo out; exit 7")
    wait_for_state(cluster, eventually(lambda: own(cluster, "shared")), "running")

    second = cluster.popen("run", "--id", "shared", "--if-exists", "attach", "--", "echo", "never")
    told = second.stderr.readline()
    gate.open()
    outs = [first.communicate(timeout=60), second.communicate(timeout=60)]

    assert (first.returncode, second.returncode) == (7, 7)
    assert [out for out, _ in outs] == ["out\n", "out\n"]
    assert "has that id already" in told


def own(cluster, name):
    found = cluster.run("task", "show", name, "--json")
    return json.loads(found.stdout)["id"] if found.returncode == 0 else None


def test_u008_names_and_data_are_shown_found_and_told_to_the_task(cluster):
    task = submit(
        *(cluster, "--meta", "proj=x", "--meta", "step=one two", "--name", "Say it", "--"),
        *("sh", "-c", "echo $GERES_META_PROJ/$GERES_META_STEP"),
    )
    other = submit(cluster, "--meta", "proj=y", "--", "true")
    cluster.run("wait", task, other, check=True)

    found = cluster.run("tasks", "--filter", 'meta.proj=="x"', "-q", check=True).stdout.split()

    assert found == [task]
    assert cluster.run("tasks", "--name", "Say it", "-q", check=True).stdout.split() == [task]
    assert cluster.run("logs", task, check=True).stdout == "x/one two\n"
    info = shown(cluster, "task", "show", task)
    assert (info["name"], info["meta"]) == ("Say it", {"proj": "x", "step": "one two"})
    bad = cluster.run("tasks", "--filter", "meta.proj = 'x'")
    assert bad.returncode == 2
    assert "filter" in bad.stderr


def test_u012_what_cannot_work_is_refused_before_anything_is_stored(cluster, tmp_path):
    before = cluster.run("tasks", "--count", "--all", check=True).stdout
    refused = {
        ("--shell", "--", "sleep 9 &"): "&",
        ("--cwd", str(tmp_path / "nowhere"), "--", "true"): "nowhere",
        ("-m", "2X", "--", "true"): "memory",
        ("-c", "-1", "--", "true"): "cpus",
        ("--priority", "urgent", "--", "true"): "priority",
        ("--time-limit", "soon", "--", "true"): "--time-limit",
        ("--after", "999.9", "--", "true"): "999.9",
        ("--job", "nosuch", "--", "true"): "nosuch",
        ("--match", "node.arch =", "--", "true"): "match",
        ("--", ""): "command",
        (): "command",
    }

    for words, part in refused.items():
        done = cluster.run("submit", *words)
        assert done.returncode in (2, 4), (words, done)
        assert (words, done.stdout) == (words, "")
        assert part in done.stderr, (words, done.stderr)
        assert done.stderr.count("\n") == 1, (words, done.stderr)

    assert cluster.run("submit", "--shell", "--", "sleep 9 &").returncode == 2
    assert cluster.run("tasks", "--count", "--all", check=True).stdout == before
    assert cluster.run("run", "--", "echo", "a &", check=True).stdout == "a &\n"
    assert cluster.run("run", "--shell", "--", "true && echo b", check=True).stdout == "b\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be refused")
def test_u012_root_is_refused_where_the_site_says_so(cluster):
    done = cluster.run("submit", "--", "true", env={"GERES_CLIENT__REFUSE_ROOT": "true"})

    assert (done.returncode, done.stdout) == (2, "")
    assert "root" in done.stderr


def test_u013_the_submitter_is_whom_the_token_names(cluster):
    status, me = http(cluster, "GET", "/v1/whoami", token=cluster.token)
    assert status == 200

    task = submit(
        cluster, "--env", "USER=somebody", "--", "true", env={"USER": "mallory", "LOGNAME": "mallory"}
    )
    status, answer = http(
        cluster,
        "POST",
        "/v1/tasks",
        {"task": {"command": ["true"]}, "submitted_by": "mallory"},
        cluster.token,
    )

    assert shown(cluster, "task", "show", task)["submitted_by"] == me["subject"]
    assert status == 422
    assert "submitted_by" in answer["error"]["message"]


def test_u014_only_the_variables_that_were_asked_for_are_carried(cluster):
    here = {"A": "1", "B": "2", "MY_TOKEN": "secret"}

    assert cluster.run("run", "--env", "A", "--", "printenv", "A", env=here, check=True).stdout == "1\n"
    assert cluster.run("run", "--env", "A=5", "--", "printenv", "A", env=here, check=True).stdout == "5\n"
    assert cluster.run("run", "--", "printenv", "A", env=here).returncode == 1
    everything = cluster.run("run", "--env", "*", "--", "env", env=here, check=True).stdout.splitlines()
    assert {"A=1", "B=2"} <= set(everything)
    assert not [line for line in everything if "secret" in line]
    unset = cluster.run("run", "--env", "NOT_SET_HERE", "--", "true")
    assert unset.returncode == 2
    assert "NOT_SET_HERE" in unset.stderr


def test_u014_a_job_has_variables_for_its_tasks(cluster, tmp_path):
    file = tmp_path / "tasks.toml"
    file.write_text('env = { FROM_JOB = "job", BOTH = "job" }\n')
    cluster.run("job", "create", "with-env", "-f", str(file), check=True)

    words = ("--job", "with-env", "--env", "BOTH=task", "--", "sh", "-c", "echo $FROM_JOB $BOTH")
    done = cluster.run("run", *words, check=True)
    dry = cluster.run("submit", "--dry-run", *words, check=True)

    assert done.stdout == "job task\n"
    assert json.loads(dry.stdout)["env"]["FROM_JOB"] == "job"


def test_u016_a_dry_run_shows_all_and_stores_nothing(cluster):
    [node] = shown(cluster, "nodes")
    before = cluster.run("tasks", "--count", check=True).stdout

    done = cluster.run("submit", "--dry-run", "-m", "2G", "--", "x", check=True)
    big = cluster.run("submit", "--dry-run", "-m", "9T", "--", "x", check=True)

    spec = json.loads(done.stdout)
    assert (spec["command"], spec["memory_bytes"]) == (["x"], 2 << 30)
    assert node["name"] in done.stderr
    assert "memory" in big.stderr
    assert cluster.run("tasks", "--count", check=True).stdout == before
    assert cluster.run("submit", "--dry-run", "-m", "2Q", "--", "x").returncode == 2


def test_u024_the_words_are_run_as_they_are(cluster):
    assert cluster.run("run", "--", "perl", "-e", "exit 3").returncode == 3
    assert cluster.run("run", "--", "echo", "$HOME", check=True).stdout == "$HOME\n"
    home = cluster.run("run", "--shell", "--", "echo $HOME", check=True).stdout.strip()
    assert home.startswith("/")
    odd = ["", " a  b ", "*", "it's", '"', "ü", "-c", "--", "{}", "\\n", "x\ny"]
    told = cluster.run(
        "run",
        "--",
        sys.executable,
        "-c",
        "import json, sys; print(json.dumps(sys.argv[1:]))",
        *odd,
        check=True,
    )
    assert json.loads(told.stdout) == odd


def test_u024_programs_that_are_not_there_or_not_to_be_run(cluster, tmp_path):
    (tmp_path / "data").write_text("no program")

    missing = cluster.run("run", "--", "no-such-program")
    plain = cluster.run("run", "--", str(tmp_path / "data"))
    killed = cluster.run("run", "--", "sh", "-c", "kill -9 $$")

    assert (missing.returncode, plain.returncode, killed.returncode) == (127, 126, 137)
    assert "no-such-program" in missing.stderr
    assert "execut" in plain.stderr
