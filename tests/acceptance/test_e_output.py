"""Output: live and separate, as much as there is, in files or kept, and what `logs` gives back."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import threading
import time

import psutil
import pytest

from tests.acceptance.acts import eventually, shown, submit, wait_for_state
from tests.cluster import GERES

MIB = 1 << 20
#: More than this above where it began is not flat.
MOST_GROWTH_BYTES = 64 * MIB


class Watch:
    """The largest memory of a process while the block runs."""

    def __init__(self, pid):
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.first = self.most = self._process.memory_info().rss

    def _look(self):
        while not self._over.wait(0.1):
            self.most = max(self.most, self._process.memory_info().rss)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        self._thread.join()

    @property
    def growth(self):
        return self.most - self.first


def newest(cluster):
    [task] = shown(cluster, "history", "-n", "1")
    return task


def piped(cluster, line, timeout=600):
    """What a shell line prints in which `geres` is ours."""
    env = cluster.env | {"PATH": f"{GERES.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", line], env=env, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def test_u074_output_comes_while_the_task_runs_and_the_streams_stay_apart(cluster, gate):
    script = f"echo a; {gate.words[2]}; echo b >&2"
    with cluster.popen("run", "--", "sh", "-c", script) as running:
        first = running.stdout.readline()
        still = running.poll()
        gate.open()
        stdout, stderr = running.communicate(timeout=60)

    assert (first, still) == ("a\n", None)
    assert (stdout, stderr) == ("", "b\n")
    assert running.returncode == 0


def test_u074_half_a_line_comes_too(cluster, gate):
    with cluster.popen("run", "--", "sh", "-c", f"printf '50%%'; {gate.words[2]}") as running:
        first = running.stdout.read(3)
        gate.open()
        running.communicate(timeout=60)

    assert first == "50%"


def test_u074_what_is_typed_reaches_the_task_while_it_runs(cluster):
    with cluster.popen("run", "--", "sh", "-c", 'while read line; do echo "got $line"; done') as running:
        for word in ("one", "two"):
            running.stdin.write(f"{word}\n")
            running.stdin.flush()
            assert running.stdout.readline() == f"got {word}\n"
        running.stdin.close()
        assert running.wait(60) == 0


def test_u074_binary_output_is_exact(cluster):
    line = "geres run -- sh -c 'head -c 3000000 /dev/urandom | tee /dev/stderr' 2>e | cksum; cksum <e"
    out, _ = piped(cluster, f"cd {cluster.home.parent}; {line}")

    one, two = out.splitlines()
    assert one == two
    assert one.split()[1] == "3000000"


@pytest.mark.parametrize(
    "mebibytes",
    [512, pytest.param(10240, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_u074_huge_output_and_input_are_exact_and_the_server_stays_flat(cluster, mebibytes):
    wanted = str(mebibytes * MIB)
    piped(cluster, "geres run -- true")
    with Watch(cluster.pid("server")) as server, Watch(cluster.pid("agent")) as agent:
        out, said = piped(cluster, f"geres run -- sh -c 'head -c {wanted} /dev/zero' | wc -c")
        back, said_too = piped(cluster, f"head -c {wanted} /dev/zero | geres run -- wc -c")

    assert (out, back) == (wanted, wanted), said + said_too
    assert server.growth < MOST_GROWTH_BYTES
    assert agent.growth < MOST_GROWTH_BYTES


def test_u074_a_reader_that_leaves_does_not_hang_anything(cluster):
    out, _ = piped(cluster, "geres run -- yes | head -n 2", timeout=60)

    assert out == "y\ny"
    eventually(lambda: newest(cluster)["state"], lambda state: state in ("cancelled", "failed", "succeeded"))


def test_u074_a_lost_terminal_leaves_the_task_running_and_attach_goes_on(cluster, gate):
    script = f"echo before; {gate.words[2]}; echo after; exit 5"
    with cluster.popen("run", "--name", "left", "--", "sh", "-c", script) as running:
        assert running.stdout.readline() == "before\n"
        running.send_signal(signal.SIGHUP)
        _, said = running.communicate(timeout=60)
    [task] = shown(cluster, "tasks", "--name", "left")
    assert task["state"] == "running"
    assert task["id"] in said

    gate.open()
    again = cluster.run("attach", task["id"])

    assert (again.returncode, again.stdout) == (5, "before\nafter\n")


def test_u075_output_goes_straight_to_files(cluster, tmp_path):
    def run(*words):
        cluster.run("run", "--no-io", *words, cwd=tmp_path, check=True)

    run("-o", "log", "--append", "--", "echo", "one")
    run("-o", "log", "--append", "--", "echo", "two")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"

    run("-o", "log", "--", "echo", "three")
    assert (tmp_path / "log").read_text() == "three\n"

    run("-o", "out", "-e", "err", "--", "sh", "-c", "echo o; echo e >&2")
    assert (tmp_path / "out").read_text() == "o\n"
    assert (tmp_path / "err").read_text() == "e\n"

    run("-o", "both", "-e", "both", "--", "sh", "-c", "echo o; echo e >&2; echo p")
    run("-o", "merged", "--merge", "--", "sh", "-c", "echo o; echo e >&2; echo p")
    assert (tmp_path / "both").read_text() == "o\ne\np\n"
    assert (tmp_path / "merged").read_text() == "o\ne\np\n"


def test_u075_logs_reads_the_file_and_a_file_that_cannot_be_is_named(cluster, tmp_path):
    task = submit(cluster, "-o", "log", "--", "echo", "there", cwd=tmp_path)
    cluster.run("wait", task, check=True)
    assert cluster.run("logs", task, check=True).stdout == "there\n"

    done = cluster.run("run", "-o", str(tmp_path / "no" / "such" / "log"), "--", "echo", "lost")

    assert done.returncode == 1
    assert str(tmp_path / "no" / "such" / "log") in done.stderr
    assert newest(cluster)["reason"] == "staging"


def test_u075_an_array_that_would_write_one_file_is_refused(cluster, tmp_path):
    before = cluster.run("tasks", "--count", check=True).stdout

    refused = cluster.run("submit", "-o", "log", "--array", "1-3", "--", "true", cwd=tmp_path)
    many = submit(cluster, "-o", "log-{index}", "--array", "1-3", "--", "echo", "{index}", cwd=tmp_path)
    cluster.run("wait", many, check=True)

    assert refused.returncode == 2
    assert "{index}" in refused.stderr
    assert int(cluster.run("tasks", "--count", check=True).stdout) == int(before) + 3
    assert [(tmp_path / f"log-{n}").read_text() for n in (1, 2, 3)] == ["1\n", "2\n", "3\n"]


def test_u076_submit_prints_the_id_alone_and_does_not_wait(cluster):
    begun = time.monotonic()
    done = cluster.run("submit", "--", "sleep", "600", check=True)

    assert time.monotonic() - begun < 30
    assert done.stderr == ""
    [task] = done.stdout.split()
    assert done.stdout == f"{task}\n"
    cluster.run("cancel", task, check=True)


def test_u076_run_without_io_is_silent_and_keeps_the_status(cluster):
    done = cluster.run("run", "--no-io", "--", "sh", "-c", "cat; echo out; echo err >&2; exit 4", input="in")

    assert (done.returncode, done.stdout) == (4, "")
    assert "err\n" not in done.stderr
    assert cluster.run("logs", newest(cluster)["id"], check=True).stdout == "out\n"


def test_u077_logs_equals_what_was_written_up_to_the_cap(cluster):
    line = "i=0; while [ $i -lt 40000 ]; do echo line $i of many; i=$((i+1)); done; echo aside >&2"
    task = submit(cluster, "--", "sh", "-c", line)
    cluster.run("wait", task, check=True)

    done = cluster.run("logs", task, check=True)

    wanted = "".join(f"line {i} of many\n" for i in range(40000))
    assert (len(done.stdout), done.stderr) == (len(wanted), "aside\n")
    assert done.stdout == wanted
    assert cluster.run("logs", "--stdout", "--tail", "2", task).stdout == "".join(
        wanted.splitlines(True)[-2:]
    )


def test_u077_beyond_the_cap_there_are_the_beginning_a_marker_and_the_end(cluster):
    task = submit(cluster, "--output-limit", "1M", "--", "sh", "-c", "seq -w 1000000; echo the end")
    cluster.run("wait", task, check=True)

    text = cluster.run("logs", task, check=True).stdout

    lines = text.splitlines()
    assert (lines[0], lines[-1]) == ("0000001", "the end")
    [marker] = [line for line in lines if "left out" in line]
    assert len(text) < 1.1 * MIB
    left_out = int(marker.split("geres: ")[1].split(" bytes")[0])
    assert left_out + len(text) - len(marker) == pytest.approx(8_000_008, abs=200)


def test_u077_a_large_output_is_kept_whole(cluster):
    """Larger than what web frameworks take by default, and below the cap."""
    size = 48 * MIB
    task = submit(cluster, "--", "sh", "-c", f"yes geres | head -c {size}")
    cluster.run("wait", task, check=True)

    kept = subprocess.run([str(GERES), "logs", task], env=cluster.env, capture_output=True, check=True).stdout

    wanted = (b"geres\n" * (size // 6 + 1))[:size]
    assert len(kept) == size
    assert hashlib.sha256(kept).digest() == hashlib.sha256(wanted).digest()


def test_u077_every_attempt_keeps_its_output(cluster):
    script = "echo try $GERES_ATTEMPT; test $GERES_ATTEMPT = 3"
    task = submit(cluster, "--retries", "2", "--retry-delay", "0", "--", "sh", "-c", script)
    cluster.run("wait", task, check=True)

    kept = [cluster.run("logs", "--attempt", str(n), task, check=True).stdout for n in (1, 2, 3)]
    assert kept == ["try 1\n", "try 2\n", "try 3\n"]
    assert cluster.run("logs", task).stdout == "try 3\n"
    missing = cluster.run("logs", "--attempt", "4", task)
    assert missing.returncode == 4
    assert "4" in missing.stderr


def test_u077_logs_of_a_running_task_and_follow(cluster, gate):
    task = submit(cluster, "--", "sh", "-c", f"echo so far; {gate.words[2]}; echo done; exit 6")
    wait_for_state(cluster, task, "running")

    eventually(lambda: cluster.run("logs", task, check=True).stdout, lambda text: text == "so far\n")
    with cluster.popen("logs", "-F", task) as following:
        assert following.stdout.readline() == "so far\n"
        gate.open()
        rest, _ = following.communicate(timeout=60)

    assert (rest, following.returncode) == ("done\n", 0)


def test_u077_logs_of_a_running_task_are_all_that_it_has_written(cluster, gate, tmp_path):
    mark = tmp_path / "written"
    line = f"seq 400000; echo error >&2; touch {mark}; {gate.words[2]}"
    task = submit(cluster, "--", "sh", "-c", line)
    eventually(mark.exists)
    numbers = "".join(f"{n}\n" for n in range(1, 400001))

    assert cluster.run("logs", "--stdout", task, check=True).stdout == numbers
    assert cluster.run("logs", "--stderr", task, check=True).stderr == "error\n"
    assert cluster.run("logs", "--stdout", "--tail", "2", task, check=True).stdout == "399999\n400000\n"


def test_u075_logs_reads_a_file_that_geres_itself_has_not_opened(cluster, gate, tmp_path):
    """With a folder on no ordinary disk in PATH the task is started as on a network file system."""
    mark = tmp_path / "mark"
    line = f"echo first; touch {mark}; {gate.words[2]}; echo last"
    task = submit(
        cluster, "--env", "PATH=/usr/bin:/bin:/dev/pts", "-o", "log", "--", "sh", "-c", line, cwd=tmp_path
    )
    eventually(mark.exists)
    assert cluster.run("logs", task, check=True).stdout == "first\n"
    gate.open()
    cluster.run("wait", task, check=True)

    assert cluster.run("logs", task, check=True).stdout == "first\nlast\n"
    assert (tmp_path / "log").read_text() == "first\nlast\n"


def test_u077_logs_of_a_job_name_the_task_on_each_line(cluster):
    job = submit(
        cluster, "--array", "1-3", "--", "sh", "-c", "echo one {index}; echo two; exit $(({index}==2))"
    )
    cluster.run("wait", job)

    everything = cluster.run("logs", job, check=True).stdout
    failed = cluster.run("logs", "--failed", job, check=True).stdout
    tail = cluster.run("logs", "--tail", "1", job, check=True).stdout

    assert everything == "".join(f"{job}.{n}: one {n}\n{job}.{n}: two\n" for n in (1, 2, 3))
    assert failed == f"{job}.2: one 2\n{job}.2: two\n"
    assert tail == "".join(f"{job}.{n}: two\n" for n in (1, 2, 3))


@pytest.mark.parametrize("given", ["yes\nno\n", ""])
def test_u074_attach_passes_a_pipe_on_and_ends_with_the_task(cluster, given):
    task = submit(cluster, "--stdin", "--", "sh", "-c", "cat; exit 3" if given else "read line; exit 4")

    done = cluster.popen("attach", task, stdin=subprocess.PIPE)
    done.stdin.write(given)
    done.stdin.close()
    done.stdin = None
    if not given:  # an empty stdin may be that of a script: nobody meant to end the task's
        wait_for_state(cluster, task, "running")
        assert cluster.run("attach", "--stdin", task, input="x\n").returncode == 4

    out, _ = done.communicate(timeout=60)
    assert (out, done.returncode) == (given, 3 if given else 4)


def test_u074_attach_leaves_stdin_alone_where_the_task_has_none(cluster):
    task = submit(cluster, "--", "sh", "-c", "cat; echo done")

    done = cluster.run("attach", task, input="lost\n", check=True)

    assert done.stdout == "done\n"


@pytest.mark.parametrize(
    ("words", "shown", "files"),
    [
        (("-o", "out"), ("", "err\n"), {"out": "out\n"}),
        (("-e", "err"), ("out\n", ""), {"err": "err\n"}),
        (("-o", "out", "--merge"), ("", ""), {"out": "out\nerr\n"}),
    ],
)
def test_u075_what_goes_to_a_file_goes_nowhere_else(cluster, tmp_path, words, shown, files):
    line = "echo out; echo err >&2"

    one = cluster.run("run", *words, "--cwd", str(tmp_path), "--shell", line, check=True)
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    many = cluster.run(
        "run", *words, "--append", "--cwd", str(tmp_path), "sh", "-c", line, ":::", "x", check=True
    )

    assert ((one.stdout, one.stderr), found) == (shown, files)
    assert (many.stdout, many.stderr) == shown
