"""The command line against a real cluster."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable

import pytest

from geres.model.states import TaskState
from tests.cluster import Cluster


def eventually(true: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_run_is_like_the_command_run_here(cluster, tmp_path):
    done = cluster.run("run", "--", "sh", "-c", "pwd; echo err >&2; exit 7", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (7, f"{tmp_path}\n", "err\n")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["true"], 0, ""),
        (["--", "sh", "-c", "kill -SEGV $$"], 139, "SIGSEGV"),
        (["no-such-program-here"], 127, "no program no-such-program-here"),
        (["/etc/passwd"], 126, "not executable"),
        (["-t", "0.2s", "sleep", "600"], 124, "longer than its limit"),
        (["--shell", "exit 5"], 5, ""),
        (["-J", "no-such-job", "true"], 125, "not_found"),
        (["--cpus", "x", "true"], 2, "cpus"),
    ],
)
def test_the_status_of_run_tells_how_it_ended(cluster, words, status, said):
    done = cluster.run("run", *words)
    assert done.returncode == status
    assert said in done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == (1 if said else 0)


def test_stdin_goes_through_byte_by_byte(cluster):
    data = "".join(f"line {number}\n" for number in range(50_000))
    assert cluster.run("run", "cat", input=data).stdout == data
    assert cluster.run("run", "wc", "-c", input="").stdout.strip() == "0"
    assert cluster.run("run", "--no-stdin", "wc", "-c", input="not passed on").stdout.strip() == "0"


def test_binary_output_is_not_touched(cluster):
    done = subprocess.run(
        ["geres", "run", "--", "printf", r"\000\377\n\r"],
        env=cluster.env,
        capture_output=True,
        timeout=30,
    )
    assert done.stdout == b"\0\xff\n\r"


def test_output_comes_as_it_is_written(cluster):
    with cluster.popen("run", "--", "sh", "-c", "echo a; read x; echo b >&2") as running:
        assert running.stdout.readline() == "a\n"
        running.stdin.write("go on\n")
        running.stdin.flush()
        assert running.stderr.readline() == "b\n"
        assert running.wait(20) == 0


def test_lines_come_whole_where_that_is_asked_for(cluster):
    words = ["--", "sh", "-c", "printf 'a '; sleep 0.3; printf 'b\\nc'; sleep 0.2; printf d >&2"]
    read, write = os.pipe()
    with cluster.popen("run", "--line-buffered", *words, stdout=write) as running:
        os.close(write)
        pieces = list(iter(lambda: os.read(read, 100), b""))
        assert running.stderr.read() == "d"
    os.close(read)
    assert pieces == [b"a b\n", b"c"]


def test_only_the_call_and_what_was_asked_for_is_in_the_environment(cluster):
    env = {"A": "1", "B": "2", "VIRTUAL_ENV": "/venv"}
    plain = cluster.run("run", "env", env=env).stdout.splitlines()
    assert "VIRTUAL_ENV=/venv" in plain
    assert not [line for line in plain if line.startswith(("A=", "B="))]
    assert "A=1" in cluster.run("run", "--env", "A", "env", env=env).stdout.splitlines()
    assert "B=2" in cluster.run("run", "--env", "*", "env", env=env).stdout.splitlines()


def test_ctrl_c_cancels_the_task(cluster, client):
    with cluster.popen("run", "--", "sh", "-c", "echo $GERES_TASK_ID; sleep 600") as running:
        task_id = running.stdout.readline().strip()
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 130
        assert f"cancelling {task_id}" in running.stderr.read()
    assert client.task(task_id).state is TaskState.CANCELLED


def test_a_second_ctrl_c_does_not_wait(cluster, client):
    with cluster.popen("run", "--", "sh", "-c", "trap '' TERM; echo $GERES_TASK_ID; sleep 600") as running:
        task_id = running.stdout.readline().strip()
        running.send_signal(signal.SIGINT)
        assert "once more leaves without waiting" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        assert running.wait(10) == 130
        assert f"`geres why {task_id}` tells how it ends" in running.stderr.read()
    assert client.task(task_id).wait(20).state is TaskState.CANCELLED


def test_a_lost_terminal_leaves_the_task_and_attach_goes_on(cluster):
    with cluster.popen("run", "--", "sh", "-c", "echo begun; sleep 1; echo done; exit 4") as running:
        assert running.stdout.readline() == "begun\n"
        running.send_signal(signal.SIGHUP)
        assert running.wait(10) == 129
        said = running.stderr.read()
    task_id = re.search(r"(\S+) goes on; `geres attach \1`", said)[1]
    done = cluster.run("attach", task_id)
    assert (done.returncode, done.stdout) == (4, "begun\ndone\n")


def test_a_run_survives_the_servers_death(make_cluster):
    cluster: Cluster = make_cluster()
    with cluster.popen("run", "--", "sh", "-c", "echo a; sleep 1.5; echo b; exit 6") as running:
        assert running.stdout.readline() == "a\n"
        cluster.kill("server")
        assert running.wait(30) == 6
        assert running.stdout.read() == "b\n"


def test_an_own_id_names_the_first_task_or_attaches_to_it(cluster, client, tmp_path):
    gate = tmp_path / "gate"
    first = client.submit(["sh", "-c", f"until [ -e {gate} ]; do sleep 0.02; done; exit 9"], id="mine")
    refused = cluster.run("run", "--id", "mine", "true")
    assert refused.returncode == 125
    assert first.id in refused.stderr
    with cluster.popen("run", "--id", "mine", "--if-exists", "attach", "true") as attached:
        assert first.id in attached.stderr.readline()
        gate.touch()
        assert attached.wait(30) == 9


def test_submit_prints_one_id_and_nothing_else(cluster, client):
    done = cluster.run("submit", "--meta", "proj=x", "--", "sleep", "0.1")
    assert re.fullmatch(r"\d+\.\d+\n", done.stdout)
    assert done.stderr == ""
    task_id = done.stdout.strip()
    assert cluster.run("wait", task_id).returncode == 0
    listed = cluster.run("tasks", "--filter", 'meta.proj=="x"', "--quiet").stdout.split()
    assert task_id in listed


def test_submit_warns_of_what_no_node_can_run(cluster, client):
    done = cluster.run("submit", "-m", "9T", "--", "true")
    assert "no node can ever run" in done.stderr
    assert "memory" in cluster.run("why", done.stdout.strip()).stdout
    client.cancel(done.stdout.strip())


def test_a_dry_run_stores_nothing(cluster):
    before = cluster.run("tasks", "--count").stdout
    done = cluster.run("submit", "--dry-run", "-m", "2G", "--", "x")
    assert json.loads(done.stdout)["memory_bytes"] == 2 << 30
    assert "would go to job default" in done.stderr
    assert cluster.run("tasks", "--count").stdout == before


def test_a_dry_run_of_an_array_says_that_it_gets_a_job_of_its_own(cluster):
    assert "would go to a job of its own" in cluster.run("submit", "--dry-run", "-a", "1-3", "true").stderr
    assert "would go to job default" in cluster.run("submit", "--dry-run", "true").stderr


def test_an_array_prints_its_job_and_its_logs_name_their_tasks(cluster):
    job = cluster.run("submit", "--array", "1-5", "--", "printenv", "GERES_ARRAY_INDEX").stdout.strip()
    assert cluster.run("wait", job).returncode == 0
    assert cluster.run("logs", job).stdout == "".join(f"{job}.{n}: {n}\n" for n in range(1, 6))
    assert cluster.run("logs", f"{job}.3").stdout == "3\n"
    assert cluster.run("logs", f"{job}.2-3").stdout == f"{job}.2: 2\n{job}.3: 3\n"


def test_run_of_items_prints_each_output_whole_and_ends_with_the_last_failure(cluster):
    done = cluster.run("run", "--items", "-", "--", "sh", "-c", "echo $0; echo $0", "{}", input="a b\nc\n")
    assert sorted(done.stdout.splitlines()) == ["a b", "a b", "c", "c"]
    assert done.returncode == 0
    failing = cluster.run("run", "--", "sh", "-c", "exit $0", "{}", ":::", "3", "0", "4", "0")
    assert failing.returncode == 4
    assert "2 of the tasks failed" in failing.stderr


def test_from_a_file_one_id_a_line_in_the_order_of_the_lines(cluster, tmp_path):
    lines = [json.dumps({"command": ["echo", str(number)]}) for number in range(1000)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    ids = cluster.run("submit", "--from", str(tmp_path / "rows.jsonl")).stdout.split()
    assert len(ids) == 1000
    assert [one.partition(".")[2] for one in ids] == [str(number) for number in range(1, 1001)]
    shown = json.loads(cluster.run("task", "show", ids[41], "--json").stdout)
    assert shown["command"] == ["echo", "41"]
    job = ids[0].partition(".")[0]
    assert cluster.run("wait", "-", input="\n".join(ids[:5])).returncode == 0
    cluster.run("job", "cancel", job)


def test_a_bad_line_among_many_stores_nothing(cluster, tmp_path):
    (tmp_path / "rows.jsonl").write_text('["true"]\n' * 500 + '{"command": ["x"], "cpus": "-1"}\n')
    before = cluster.run("jobs", "--json").stdout
    done = cluster.run("submit", "--from", str(tmp_path / "rows.jsonl"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "line 501: cpus" in done.stderr
    assert cluster.run("jobs", "--json").stdout == before


def test_wait_gives_the_last_failure_in_the_order_given(cluster, client):
    ids = [client.submit(["sh", "-c", f"exit {code}"]).id for code in (3, 0, 5)]
    assert cluster.run("wait", *ids).returncode == 5
    assert cluster.run("wait", ids[2], ids[0], ids[1]).returncode == 3
    assert cluster.run("wait", ids[1]).returncode == 0
    unknown = cluster.run("wait", ids[1], "1.999999")
    assert unknown.returncode == 125
    assert "1.999999" in unknown.stderr
    assert [one["id"] for one in json.loads(cluster.run("wait", *ids, "--json").stdout)] == ids


def test_wait_gives_up_after_its_time(cluster, blocker):
    done = cluster.run("wait", blocker.id, "--timeout", "0.2")
    assert done.returncode == 125
    assert "is still running after 0.2 s" in done.stderr


def test_lists_come_in_every_form_and_end_with_shown_of_matched(cluster, client):
    job = client.create_job("listed")
    job.disable()
    client.submit_many([["echo", str(number)] for number in range(60)], job=job)
    table = cluster.run("tasks", "--job", "listed")
    assert len(table.stdout.splitlines()) == 61, "a pipe gets them all"
    assert table.stderr == "60 of 60 tasks\n"
    assert cluster.run("tasks", "--job", "listed", "-n", "10").stderr == "10 of 60 tasks\n"
    rows = json.loads(cluster.run("tasks", "--job", "listed", "--json").stdout)
    assert [row["number"] for row in rows] == list(range(60, 0, -1))
    lines = cluster.run("tasks", "--job", "listed", "--jsonl").stdout.splitlines()
    assert [json.loads(line) for line in lines] == rows
    csv = cluster.run("tasks", "--job", "listed", "--csv", "--select", "id,state").stdout.splitlines()
    assert csv[:2] == ["id,state", f"{job.id}.60,queued"]
    own = cluster.run("tasks", "--job", "listed", "--format", "{id} {usage.max_rss_bytes}|", "-n", "1")
    assert own.stdout == f"{job.id}.60 -|\n"
    assert cluster.run("tasks", "--job", "listed", "--count").stdout == "60\n"
    job.cancel()


def test_a_format_with_an_unknown_field_names_those_there_are(cluster):
    done = cluster.run("nodes", "--format", "{nam}")
    assert done.returncode == 2
    assert "there is no field 'nam'; did you mean name?" in done.stderr


def test_a_column_that_is_not_there_is_refused_with_those_that_are(cluster):
    done = cluster.run("nodes", "--select", "name,nam")
    assert done.returncode == 2
    assert "select: there is no field 'nam'; did you mean name?" in done.stderr
    assert cluster.run("nodes", "--select", "name,arch").stdout.split()[:2] == ["NAME", "ARCH"]


def test_an_action_on_a_job_that_has_nothing_for_it_says_so(cluster, client):
    job = client.submit_array(["true"], range="1-2")
    job.wait()
    for words in (["rerun", job.id, "--failed"], ["cancel", job.id]):
        done = cluster.run(*words)
        assert (done.returncode, done.stdout) == (0, "")
        assert "nothing was changed" in done.stderr


def test_ctrl_c_in_attach_leaves_and_says_how_to_end_the_task(cluster, client):
    task = client.submit(["sh", "-c", "echo begun; sleep 600"])
    with cluster.popen("attach", task.id) as attached:
        assert attached.stdout.readline() == "begun\n"
        attached.send_signal(signal.SIGINT)
        assert attached.wait(20) == 130
        assert f"{task.id} goes on; `geres cancel {task.id}` ends it" in attached.stderr.read()
    assert client.task(task.id).state is TaskState.RUNNING
    client.cancel(task)


def test_actions_tell_of_each_id(cluster, client, blocker):
    one, two = (client.submit(["true"]).id for _ in range(2))
    assert cluster.run("hold", one, two).stdout == f"{one} held\n{two} held\n"
    assert cluster.run("release", "-", input=f"{one}\n").stdout == f"{one} queued\n"
    assert cluster.run("edit", one, "memory=2G", "cpus=2", "priority=900").returncode == 0
    assert client.task(one).info.memory_bytes == 2 << 30
    assert cluster.run("tasks", "--pending", "-q").stdout.split() == [one, two]
    done = cluster.run("cancel", one, "1.999999", two)
    assert done.returncode == 4
    assert "1.999999" in done.stderr
    assert client.task(two).wait(20).state is TaskState.CANCELLED
    assert cluster.run("rerun", one).returncode == 0
    client.cancel(one)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["edit", "1.1"], "nothing to change"),
        (["edit", "memory=2G"], "id: is missing"),
        (["edit", "1.1", "color=red"], "color: cannot be changed"),
        (["edit", "1.1", "memory=lots"], "memory: 'lots' is no size"),
        (["rerun"], "id: is missing"),
        (["cancel"], "ID"),
        (["logs", "1.1", "-n", "-3"], "-3"),
        (["job", "create", "1.2"], "name: '1.2' cannot be a name"),
        (["job", "edit", "default"], "nothing to change"),
        (["config", "show", "nothing.here"], "no setting nothing.here"),
        (["tasks", "--since", "yesterday"], "since: 'yesterday' is no time"),
        (["tasks", "--filter", "__import__('os')"], "filter"),
        (["tasks", "--sort", "colour"], "sort"),
        (["tasks", "--state", "done"], "state"),
    ],
)
def test_bad_words_are_one_sentence_with_status_2(cluster, words, problem):
    done = cluster.run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_job_commands(cluster, client):
    job = cluster.run("job", "create", "j1", "--priority", "high", "--max-parallel", "2").stdout.strip()
    cluster.run("submit", "--job", "j1", "--", "true", check=True)
    cluster.run("wait", "j1", check=True)
    assert re.search(r"succeeded: +1", cluster.run("job", "show", "j1").stdout)
    assert cluster.run("job", "disable", "j1").stdout == f"{job} disabled\n"
    assert cluster.run("job", "enable", "j1").stdout == f"{job} active\n"
    assert cluster.run("job", "edit", "j1", "--max-parallel", "5").returncode == 0
    assert client.job_info("j1").max_parallel == 5
    assert cluster.run("job", "close", "j1").returncode == 0
    assert cluster.run("submit", "--job", job, "--", "true").returncode == 5
    assert cluster.run("job", "cancel", "default").returncode == 5
    assert cluster.run("job", "show", "no-such").returncode == 4
    assert f"{job} " in cluster.run("jobs", "--format", "{id} ").stdout


def test_logs_of_a_task_that_has_not_run_say_so(cluster, client):
    task = client.submit(["true"], hold=True)
    done = cluster.run("logs", task.id)
    assert (done.returncode, done.stdout) == (0, "")
    assert f"{task.id} has not run yet; `geres why {task.id}` says why" in done.stderr
    client.release(task)
    task.wait(20)
    assert cluster.run("logs", task.id).stderr == ""


def test_logs_follow_until_the_end(cluster, client):
    task = client.submit(["sh", "-c", "echo 1; sleep 0.5; echo 2"])
    assert cluster.run("logs", "-F", task.id).stdout == "1\n2\n"
    long = client.submit(["seq", "100"]).wait(20)
    assert cluster.run("logs", "-n", "2", long.id).stdout == "99\n100\n"
    failed = client.submit(["sh", "-c", "echo out; echo err >&2; exit 1"]).wait(20)
    assert cluster.run("logs", failed.id, "--stderr").stdout == ""
    assert cluster.run("logs", failed.id, "--stderr").stderr == "err\n"


def test_why_result_history_and_dead_letters(cluster, client):
    task = client.submit(["sh", "-c", "echo bad >&2; exit 3"], name="searched-for").wait(20)
    said = cluster.run("why", task.id).stdout
    assert "exit 3" in said
    assert "bad" in said
    assert json.loads(cluster.run("why", task.id, "--json").stdout)["stderr_tail"] == ["bad"]
    assert cluster.run("result", task.id).stdout == "null\n"
    assert task.id in cluster.run("history", "-n", "10", "--grep", "searched-for", "-q").stdout.split()
    assert task.id in cluster.run("dead-letter", "-q").stdout.split()
    assert cluster.run("history", "--since", "1h", "--grep", "searched-for", "-q").stdout.split() == [task.id]


def test_the_cluster_is_shown(cluster):
    assert "is up at" in cluster.run("status").stdout
    eventually(lambda: "1 idle" in cluster.run("summary").stdout)
    node = cluster.run("nodes", "-q").stdout.strip()
    assert f"node:         {node}" in cluster.run("node", "show", node).stdout
    doctor = cluster.run("doctor")
    assert (doctor.returncode, doctor.stdout, doctor.stderr) == (0, "", "nothing is wrong\n")
    assert node in cluster.run("top").stdout
    shown = cluster.run(
        "config", "show", "--origin", "server.port", env={"GERES_SERVER__PORT": "4471"}
    ).stdout
    assert re.search(r"server.port +4471 +environment GERES_SERVER__PORT", shown)


def test_output_to_files_replaces_or_appends(cluster, tmp_path):
    for _ in range(2):
        cluster.run("run", "-o", "log", "--append", "echo", "x", cwd=tmp_path, check=True)
    assert (tmp_path / "log").read_text() == "x\nx\n"
    cluster.run(
        "run", "-o", "log", "-e", "err", "--", "sh", "-c", "echo y; echo z >&2", cwd=tmp_path, check=True
    )
    assert ((tmp_path / "log").read_text(), (tmp_path / "err").read_text()) == ("y\n", "z\n")


def test_a_list_into_a_closed_pipe_ends_quietly(cluster, client):
    client.submit_many([["true"]] * 3000, job=client.create_job("many"), hold=True)
    done = subprocess.run(
        "geres tasks --job many | head -n 1", shell=True, env=cluster.env, capture_output=True, text=True
    )
    assert done.stderr.replace("3,000 of 3,000 tasks\n", "") == ""
    client.job("many").cancel()


def test_no_task_is_left_by_a_run_that_was_interrupted_while_it_queued(cluster, client, blocker):
    with cluster.popen("run", "--name", "queued-run", "sleep", "600") as running:
        eventually(lambda: list(client.tasks(name="queued-run")))
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 130
    (task,) = client.tasks(name="queued-run")
    assert task.state is TaskState.CANCELLED


def test_many_runs_at_once(cluster):
    done: list[str] = []

    def work(number: int) -> None:
        done.append(cluster.run("run", "echo", str(number)).stdout.strip())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [str(number) for number in range(8)]


def test_a_hundred_thousand_arguments_are_run(cluster, tmp_path):
    (tmp_path / "job.json").write_text(json.dumps({"command": ["sh", "-c", "echo $#", *["x"] * 100_000]}))
    assert cluster.run("run", "-f", str(tmp_path / "job.json")).stdout == "99999\n"
    assert os.sysconf("SC_ARG_MAX") > 400_000


def test_a_directory_that_was_removed_under_the_caller_is_one_sentence(cluster, tmp_path):
    script = "mkdir gone && cd gone && rmdir ../gone && geres submit true; echo $?; geres submit --cwd / true"
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, env=cluster.env, capture_output=True, text=True, timeout=60
    )
    assert "geres: invalid: --cwd: this directory does not exist any more; give --cwd\n" in done.stderr
    assert re.fullmatch(r"2\n\d+\.\d+\n", done.stdout)
