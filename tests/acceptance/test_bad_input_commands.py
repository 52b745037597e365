"""Bad command lines: each gets one sentence that names what is wrong, a status, and stores nothing."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.harm import assert_refused, unharmed
from tests.cluster import GERES, Cluster, clean_environment

NOT_TEXT = os.fsdecode(b"\xff")

BAD = {
    "unknown flag": (["submit", "--nosuch", "--", "true"], ["--nosuch", "geres submit --help"]),
    "flag of another system": (["submit", "--mem", "5", "--", "true"], ["--mem", "-m / --memory"]),
    "unknown command": (["frobnicate"], ["frobnicate", "geres --help"]),
    "command of another system": (["squeue"], ["squeue", "geres tasks"]),
    "command with an escape": (["\x1b[31m"], [r"\x1b[31m"]),
    "unknown unit": (["submit", "-m", "5X", "--", "true"], ["memory", "'5X'", "500M"]),
    "unknown unit of time": (["submit", "-t", "5parsecs", "--", "true"], ["--time-limit", "1h30m"]),
    "no command": (["submit"], ["command", "is missing"]),
    "no command to run": (["run", "-c", "2", "--"], ["command", "is missing"]),
    "empty program": (["submit", "--", ""], ["command", "empty word"]),
    "empty line for a shell": (["submit", "--shell", " "], ["shell", "is empty"]),
    "negative cpus": (["submit", "-c", "-1", "--", "true"], ["cpus", "-1"]),
    "cpus are no number": (["submit", "-c", "nan", "--", "true"], ["cpus", "nan"]),
    "endless memory": (["submit", "-m", "9" * 400, "--", "true"], ["memory", "4096P"]),
    "negative memory": (["submit", "-m", "-5", "--", "true"], ["memory", "-5"]),
    "negative gpus": (["submit", "-G", "-1", "--", "true"], ["gpus", "-1"]),
    "half a resource": (["submit", "-r", "a", "--", "true"], ["resource", "NAME=VALUE"]),
    "resource is no count": (["submit", "-r", "a=x", "--", "true"], ["--resource a", "whole number"]),
    "priority too high": (["submit", "--priority", "9999", "--", "true"], ["priority", "1000"]),
    "priority is no word": (
        ["submit", "--priority", "urgent", "--", "true"],
        ["priority", "low, normal, high"],
    ),
    "no time": (["submit", "--not-before", "soon", "--", "true"], ["--not-before", "2026-03-01T12:00"]),
    "a time before all years": (
        ["submit", "--not-before", "0001-01-01T00:00:00+23:00", "--", "true"],
        ["--not-before", "no time"],
    ),
    "umask": (["submit", "--umask", "9", "--", "true"], ["umask", "octal"]),
    "id like a number": (["submit", "--id", "5", "--", "true"], ["id", "not only digits"]),
    "id with an escape": (["submit", "--id", "\x1b[2J", "--", "true"], ["id", r"\x1b[2J"]),
    "match that cannot be read": (["submit", "--match", "node.cpus >", "--", "true"], ["match", "character"]),
    "match of an unknown name": (["submit", "--match", "node.x > 1", "--", "true"], ["match", "node.cpus"]),
    "argument that is no text": (["submit", "--", "echo", NOT_TEXT], ["command[1]", "Unicode"]),
    "name that is no text": (["submit", "--name", NOT_TEXT, "--", "true"], ["name", "Unicode"]),
    "variable that is no text": (["submit", "--env", f"A={NOT_TEXT}", "--", "true"], ["--env A", "Unicode"]),
    "metadata that are no text": (["submit", "--meta", f"a={NOT_TEXT}", "--", "true"], ["--meta a"]),
    "job that is no text": (["submit", "-J", NOT_TEXT, "--", "true"], ["Unicode", "ids, names"]),
    "id that is no text": (["logs", NOT_TEXT], ["Unicode"]),
    "filter that is no text": (["tasks", "--filter", f'name == "{NOT_TEXT}"'], ["Unicode"]),
    "variable that is not set": (
        ["submit", "--env", "NOT_SET_HERE", "--", "true"],
        ["env", "NOT_SET_HERE=VALUE"],
    ),
    "filter that cannot be read": (["tasks", "--filter", "state ==="], ["filter", "character"]),
    "filter that runs code": (["tasks", "--filter", "__import__('os')"], ["filter", "condition"]),
    "unknown state": (["tasks", "--state", "flying"], ["state", "flying", "queued"]),
    "unknown order": (["tasks", "--sort", "beauty"], ["sort", "beauty", "created_at"]),
    "negative number of lines": (["tasks", "--limit", "-1"], ["--limit", "-1"]),
    "file that is not there": (["submit", "--from", "/nonexistent"], ["from", "No such file"]),
    "folder that is not there": (["submit", "--cwd", "nonexistent", "--", "true"], ["cwd", "no folder"]),
    "parts that overlap": (["submit", "-a", "1-5,3-9", "--", "true"], ["array", "once"]),
    "range that counts down": (["submit", "-a", "9-1", "--", "true"], ["array", "FIRST-LAST"]),
    "range without an end": (["submit", "-a", "1-99999999999", "--", "true"], ["array", "1-10"]),
    "more tasks than an array has": (["submit", "-a", "1-4000000000", "--", "true"], ["array", "10,000,000"]),
    "one file for many tasks": (["submit", "-a", "1-3", "-o", "/tmp/x", "--", "true"], ["stdout", "{index}"]),
    "unknown signal": (["cancel", "1.1", "--signal", "NOPE"], ["signal", "USR1"]),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_command_line_gets_one_sentence_and_stores_nothing(cluster: Cluster, name: str) -> None:
    words, told = BAD[name]
    with unharmed(cluster, stores_nothing=True):
        assert_refused(cluster.run(*words), *told)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["wait", "999"], 125),
        (["wait", "999.1"], 125),
        (["attach", "999.1"], 125),
        (["run", "-J", "999", "--", "true"], 125),
        (["logs", "999.1"], 4),
        (["cancel", "999.1"], 4),
        (["hold", "999.1"], 4),
        (["release", "nosuch"], 4),
        (["rerun", "999.1"], 4),
        (["why", "999"], 4),
        (["result", "999.1"], 4),
        (["task", "show", "999.1"], 4),
        (["job", "show", "nosuch"], 4),
        (["job", "close", "9" * 5000], 4),
        (["job", "show", "a b/?#%"], 4),
        (["node", "show", "ü"], 4),
        (["submit", "-J", "nosuch", "--", "true"], 4),
        (["submit", "--after", "999.1", "--", "true"], 4),
        (["tasks", "--job", "nosuch"], 4),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_what_does_not_exist_is_named(cluster: Cluster, words: list[str], status: int) -> None:
    with unharmed(cluster, stores_nothing=True):
        done = cluster.run(*words)
        assert_refused(done, "there is no", status=status, code="not_found")


BAD_LINES = {
    "not json": ('{"command": ["true"', "no JSON"),
    "negative cpu": ('{"command": ["true"], "cpus": -1}', "cpus: -1"),
    "unknown option": ('{"command": ["true"], "bogus": 1}', "bogus"),
    "no command": ("{}", "command: is missing"),
    "a number": ("5", "neither an object"),
    "NUL": (r'["a\u0000"]', "NUL"),
    "half a character": (r'["\ud800"]', "no JSON"),
    "no number": ('{"command": ["true"], "gpus": 1e999}', "out of range"),
}


@pytest.fixture(scope="module")
def many_lines() -> list[str]:
    return [json.dumps(["true", str(number)]) for number in range(100_000)]


@pytest.mark.parametrize("name", ["negative cpu", "not json"])
def test_a_bad_line_among_100_000_is_named_and_none_is_stored(
    cluster: Cluster, many_lines: list[str], tmp_path: Path, name: str
) -> None:
    line, told = BAD_LINES[name]
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join([*many_lines[:54_320], line, *many_lines[54_321:]]) + "\n")
    with unharmed(cluster, stores_nothing=True):
        done = cluster.run("submit", "--from", str(path))
        assert_refused(done, "1 of 100000 lines", "line 54321", told, "nothing was stored")


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named(cluster: Cluster, tmp_path: Path, name: str) -> None:
    line, told = BAD_LINES[name]
    path = tmp_path / "few.jsonl"
    path.write_text(f'["true"]\n{line}\n["true"]\n')
    with unharmed(cluster, stores_nothing=True):
        assert_refused(cluster.run("submit", "--from", str(path)), "line 2", told)


def test_a_file_that_is_no_text_is_named(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'["true"]\n["\xff"]\n')
    with unharmed(cluster, stores_nothing=True):
        assert_refused(cluster.run("submit", "--from", str(path)), "UTF-8", str(path))


@pytest.mark.parametrize(
    ("settings", "status", "code", "told"),
    [
        ({"GERES_TOKEN": "wrong"}, 3, "unauthenticated", "token"),
        ({"GERES_TOKEN": "cut\nin two"}, 3, "unauthenticated", "spoilt"),
        ({"GERES_TOKEN": "x", "GERES_URL": "nonsense"}, 2, "invalid", "http://127.0.0.1:4470"),
        ({"GERES_TOKEN": "x", "GERES_URL": "http://127.0.0.1:99999"}, 2, "invalid", "no address"),
        ({"GERES_TOKEN": "x", "GERES_URL": "http://127.0.0.1:1"}, 7, "unreachable", "http://127.0.0.1:1"),
        ({"GERES_HOME": "/nonexistent"}, 7, "unreachable", "geres up"),
        ({"GERES_HOME": "/etc/passwd"}, 7, "unreachable", "/etc/passwd"),
    ],
)
def test_a_cluster_that_cannot_be_asked_is_named(
    cluster: Cluster, settings: dict[str, str], status: int, code: str, told: str
) -> None:
    assert_refused(cluster.run("tasks", env=settings), told, status=status, code=code)


def test_control_characters_are_shown_and_do_nothing(cluster: Cluster) -> None:
    evil = "\x1b]0;title\x07\x1b[31m\r\n"
    words = ("--name", f"a{evil}", "--meta", f"key={evil}", "--hold", "--", "echo", evil)
    task = cluster.run("submit", *words, check=True).stdout.strip()
    for asked in (
        ["tasks"],
        ["tasks", "--csv"],
        ["tasks", "--format", "{id} {name} {meta.key}"],
        ["task", "show", task],
        ["why", task],
        ["cancel", task, "--reason", evil],
        ["why", task],
        ["history"],
    ):
        done = cluster.run(*asked, check=True)
        shown = done.stdout + done.stderr
        assert not {"\x1b", "\x07", "\r"} & set(shown), f"geres {' '.join(asked)}: {shown!r}"


QUICK = (["version"], ["--help"], ["tasks"], ["tasks", "--json"], ["jobs", "--csv"], ["summary"], ["status"])


@pytest.mark.parametrize("words", QUICK, ids=" ".join)
def test_a_reader_that_has_gone_ends_it_quietly(cluster: Cluster, words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = _geres(cluster, words, stdout=pipe)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("words", QUICK, ids=" ".join)
def test_a_full_disk_behind_stdout_is_said_in_one_line(cluster: Cluster, words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = _geres(cluster, words, stdout=full)
    assert done.returncode == 1
    assert done.stderr == "geres: output: stdout cannot be written: No space left on device\n"


@pytest.mark.parametrize("closed", [0, 1, 2])
@pytest.mark.parametrize("words", [["tasks"], ["run", "--", "echo", "hello"], ["frobnicate"]], ids=" ".join)
def test_a_closed_stream_is_like_one_that_nobody_reads(
    cluster: Cluster, words: list[str], closed: int
) -> None:
    script = f'exec "$0" "$@" {closed}{"<" if closed == 0 else ">"}&-'
    done = subprocess.run(
        ["sh", "-c", script, str(GERES), *words], env=cluster.env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == (2 if words == ["frobnicate"] else 0)
    assert "Traceback" not in done.stderr
    if words[0] == "run":
        assert done.stdout == ("" if closed == 1 else "hello\n")


def test_run_cancels_what_it_cannot_write(cluster: Cluster) -> None:
    with open("/dev/full", "wb") as full:
        done = _geres(cluster, ["run", "--", "yes"], stdout=full)
    assert done.returncode == 125
    assert "cannot be written" in done.stderr
    task = done.stderr.split()[2]
    assert cluster.run("wait", task).returncode == 130


@pytest.mark.parametrize(
    "settings",
    [
        {"TERM": "nonsense"},
        {"TERM": "dumb"},
        {"COLUMNS": "0"},
        {"COLUMNS": "-5", "LINES": "x"},
        {"LC_ALL": "C"},
    ],
    ids=str,
)
def test_a_strange_terminal_does_no_harm(cluster: Cluster, settings: dict[str, str]) -> None:
    """On a terminal of its own, whose size is 0 x 0."""
    env = clean_environment(cluster.home, **settings)
    for words in (["tasks"], ["run", "--", "echo", "hello"], ["top", "--once"]):
        ours, theirs = pty.openpty()
        with os.fdopen(theirs, "wb") as terminal:
            started = subprocess.Popen(
                [str(GERES), *words], env=env, stdin=terminal, stdout=terminal, stderr=terminal
            )
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # how Linux says that the other side is closed
            pass
        os.close(ours)
        assert started.wait(30) == 0, shown
        assert b"Traceback" not in shown


def test_a_terminal_that_vanishes_leaves_the_task_running(cluster: Cluster) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "wb") as terminal:
        started = subprocess.Popen(
            [str(GERES), "run", "--", "sh", "-c", "echo here; exec sleep 60"],
            env=cluster.env,
            stdin=terminal,
            stdout=terminal,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
    assert os.read(ours, 100).startswith(b"here")
    os.close(ours)
    started.send_signal(1)
    _, told = started.communicate(timeout=30)
    assert "Traceback" not in told
    running = json.loads(cluster.run("tasks", "--state", "running", "--json", check=True).stdout)
    assert len(running) == 1
    cluster.run("cancel", running[0]["id"], check=True)


def _geres(cluster: Cluster, words: list[str], **streams: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(GERES), *words],
        env=cluster.env,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        **streams,  # type: ignore[call-overload]
    )
