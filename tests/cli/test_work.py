"""What a command line asks for, read and checked before anything is sent."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import click
import pytest

from geres.cli.run import run
from geres.cli.submit import submit
from geres.cli.task_options import carried_variables
from geres.cli.work import Work, read_work
from geres.config import host_id
from geres.errors import Invalid
from geres.model.jobs import ArraySpec
from geres.sdk.http import Address, Transport


class Local:
    """Stands where the cluster was found through the home of this host; nothing here sends a request."""

    class client:
        transport = Transport(Address("http://127.0.0.1:9", "t", "/home/address.json"))


def work_of(*words: str, command: click.Command = submit, stdin: bool = False) -> Work:
    context = command.make_context("geres submit", list(words))
    flags = dict(context.params)
    for own in ("stdin", "json", "quiet", "no_io"):
        flags.pop(own, None)
    return read_work(Local(), flags.pop("words"), flags, stdin=stdin)


def test_options_end_at_the_first_word_of_the_command():
    spec = work_of("-c", "2", "python", "x.py", "-c", "9", "--json").spec
    assert spec.command == ["python", "x.py", "-c", "9", "--json"]
    assert spec.cpus == 2


def test_two_dashes_are_optional_and_not_part_of_the_command():
    assert work_of("--", "ls", "--", "x").spec.command == ["ls", "--", "x"]


def test_the_letters_mean_what_they_say():
    work = work_of(
        *("-c", "0.5", "-m", "1.5G", "-G", "1", "-r", "disk_io=3", "-t", "2s", "-p", "big", "-w", "a,b*"),
        *(
            "-J",
            "12",
            "-o",
            "out",
            "-e",
            "err",
            "--retries",
            "2",
            "--priority",
            "high",
            "--after",
            "1.2",
            "x",
        ),
    )
    spec = work.spec
    assert (spec.cpus, spec.memory_bytes, spec.gpus, spec.resources) == (0.5, 1610612736, 1, {"disk_io": 3})
    assert (spec.time_limit_seconds, spec.pool, spec.nodelist) == (2, "big", ["a", "b*"])
    assert (spec.stdout, spec.stderr, spec.retry.most, spec.priority) == ("out", "err", 2, 500)
    assert (work.job, work.after) == ("12", ["1.2"])


def test_shell_makes_the_words_one_line():
    assert work_of("--shell", "echo", "$HOME", "|", "wc").spec.shell == "echo $HOME | wc"


def test_a_task_starts_in_the_directory_of_the_call_with_its_programs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setenv("PATH", "/a:/b")
    monkeypatch.setenv("CONDA_PREFIX", "/conda")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("SOMETHING", "else")
    spec = work_of("true").spec
    assert (spec.cwd, spec.see_path, spec.host) == (str(tmp_path), str(tmp_path), host_id())
    assert {"PATH": "/a:/b", "CONDA_PREFIX": "/conda", "LC_ALL": "C.UTF-8"}.items() <= spec.env.items()
    assert "SOMETHING" not in spec.env


def test_a_link_to_the_directory_keeps_its_name(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "link")
    monkeypatch.setenv("PWD", str(tmp_path / "link"))
    assert work_of("true").spec.cwd == str(tmp_path / "link")
    monkeypatch.setenv("PWD", "/somewhere/else")
    assert work_of("true").spec.cwd == str(tmp_path / "real")


def test_cwd_task_asks_for_a_folder_of_its_own():
    spec = work_of("--cwd", "task", "true").spec
    assert (spec.cwd, spec.see_path, spec.env) == (None, None, {})


def test_another_folder_is_taken_as_it_is_and_a_relative_one_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    assert work_of("--cwd", "/", "true").spec.cwd == "/"
    assert work_of("--cwd", "sub", "true").spec.cwd == str(tmp_path / "sub")


@pytest.mark.parametrize("folder", ["nowhere", "/no/such/folder"])
def test_an_unknown_folder_is_refused(folder):
    with pytest.raises(Invalid, match=r"cwd: there is no folder .*"):
        work_of("--cwd", folder, "true")


def test_env_carries_what_was_asked_for(monkeypatch):
    monkeypatch.setenv("A", "1")
    monkeypatch.setenv("B", "2")
    env = work_of("--cwd", "task", "--env", "A", "--env", "C=x=y", "true").spec.env
    assert env == {"A": "1", "C": "x=y"}


def test_env_star_leaves_secrets_out(monkeypatch):
    for name in ("MY_TOKEN", "AWS_SECRET_ACCESS_KEY", "GERES_URL", "SSH_AUTH_SOCK", "PLAIN"):
        monkeypatch.setenv(name, "x")
    carried = carried_variables(("*",))
    assert "PLAIN" in carried
    assert not carried.keys() & {"MY_TOKEN", "AWS_SECRET_ACCESS_KEY", "GERES_URL", "SSH_AUTH_SOCK"}
    assert carried_variables(("MY_TOKEN",)) == {"MY_TOKEN": "x"}, "by its name it is meant"


def test_a_variable_that_is_not_set_is_refused(monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(Invalid, match="env: NOT_SET is not set here"):
        work_of("--env", "NOT_SET", "true")


@pytest.mark.parametrize(
    ("words", "array", "most", "command"),
    [
        (["-a", "1-10:2%3", "--", "x", "{}"], ArraySpec(range="1-10:2"), 3, ["x", "{}"]),
        (["-a", "1-3,7", "x"], ArraySpec(range="1-3,7"), None, ["x"]),
        (["gzip", "{}", ":::", "a b", "c"], ArraySpec(items=["a b", "c"]), None, ["gzip", "{}"]),
        (["--max-parallel", "2", "x", ":::", "a"], ArraySpec(items=["a"]), 2, ["x"]),
    ],
)
def test_arrays_come_of_a_range_or_of_items(words, array, most, command):
    work = work_of(*words)
    assert (work.array, work.max_parallel, work.spec.command) == (array, most, command)


@pytest.mark.parametrize(
    ("text", "flags", "items"),
    [("a b\nc\n", [], ["a b", "c"]), ("a\n\nb", [], ["a", "", "b"]), ("a\r\nb\r\n", [], ["a", "b"])],
)
def test_items_are_lines_never_split_again(tmp_path, text, flags, items):
    (tmp_path / "items").write_bytes(text.encode())
    work = work_of("--items", str(tmp_path / "items"), *flags, "echo", "{}")
    assert work.array is not None
    assert work.array.items == items


def test_items_with_nul_may_hold_newlines(tmp_path):
    (tmp_path / "items").write_bytes(b"a\nb\0c\0")
    work = work_of("--items", str(tmp_path / "items"), "-0", "echo", "{}")
    assert work.array is not None
    assert work.array.items == ["a\nb", "c"]


def test_items_come_on_stdin(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x\ny\n")))
    work = work_of("--items", "-", "echo", "{}")
    assert work.array is not None
    assert work.array.items == ["x", "y"]


def test_a_file_gives_options_and_flags_win(tmp_path):
    (tmp_path / "job.toml").write_text(
        'command = ["make"]\ncpus = 4\nmemory = "8G"\njob = "j"\nafter = ["1.1"]\n[meta]\na = "1"\nb = "2"\n'
    )
    work = work_of("-f", str(tmp_path / "job.toml"), "-m", "1G", "--meta", "b=3")
    assert (work.spec.command, work.spec.cpus, work.spec.memory_bytes) == (["make"], 4, 1 << 30)
    assert (work.spec.meta, work.job, work.after) == ({"a": "1", "b": "3"}, "j", ["1.1"])


def test_a_json_file_may_make_an_array(tmp_path):
    (tmp_path / "job.json").write_text('{"command": ["x", "{}"], "items": ["a", "b"], "max_parallel": 1}')
    work = work_of("-f", str(tmp_path / "job.json"))
    assert (work.array, work.max_parallel) == (ArraySpec(items=["a", "b"]), 1)


def test_a_yaml_file_says_the_same(tmp_path):
    (tmp_path / "job.yaml").write_text("command: [x, '{}']\nitems: [a, b]\nmeta: {a: '1'}\nmemory: 2G\n")
    work = work_of("-f", str(tmp_path / "job.yaml"))
    assert work.array == ArraySpec(items=["a", "b"])
    assert (work.spec.meta, work.spec.memory_bytes) == ({"a": "1"}, 2 << 30)


def test_rows_come_of_a_file_of_objects_and_lists(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"command": ["a"], "memory": "1G"}\n\n["b", "c"]\n{"shell": "d | e"}\n'
    )
    rows = work_of("--from", str(tmp_path / "rows.jsonl"), "-c", "2").rows
    assert rows is not None
    assert [row.command for row in rows[:2]] == [["a"], ["b", "c"]]
    assert (rows[0].memory_bytes, rows[2].shell) == (1 << 30, "d | e")


def test_bad_rows_are_named_by_their_lines_and_nothing_is_kept(tmp_path):
    lines = ['["ok"]'] * 100
    lines[6], lines[41], lines[99] = "{nonsense", '{"command": ["x"], "cpus": -1}', '{"memory": "1G"}'
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    with pytest.raises(Invalid) as refused:
        work_of("--from", str(tmp_path / "rows.jsonl"))
    text = str(refused.value)
    assert "3 of 100 lines" in text
    assert all(part in text for part in ("line 7: no JSON", "line 42: cpus", "line 100: command: is missing"))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "command: is missing"),
        (["--shell", "--", "sleep 9 &"], "shell: ends with `&`"),
        (["-m", "2Q", "x"], "memory: '2Q' is no size"),
        (["-c", "-1", "x"], "cpus: '-1' is not between"),
        (["-r", "disk", "x"], "resource: 'disk' is no pair"),
        (["-a", "1-", "x"], "array"),
        (["-a", "1-3%0", "x"], "array: '1-3%0' lets none run"),
        (["-a", "5-1", "x"], "counts down"),
        (["-a", "1-3", "x", ":::", "a"], "do not go together"),
        (["x", ":::"], "items: there are none"),
        (["-a", "1-3", "-o", "log", "x"], "would be overwritten by every task"),
        (["-a", "1-3", "-J", "12", "x"], "makes a job of its own"),
        (["--max-parallel", "2", "x"], "--max-parallel: goes with --array"),
        (["--items", "/no/such", "x"], "items: /no/such cannot be read"),
        (["--from", "/no/such"], "from: /no/such cannot be read"),
        (["--from", "/dev/null", "x"], "leave the command out"),
        (["--from", "/dev/null"], "holds no task"),
        (["-f", "/no/such.toml", "x"], "file: /no/such.toml cannot be read"),
        (["--id", "1.2", "x"], "id: '1.2' cannot be a name"),
        (["--not-before", "noon", "x"], "--not-before: 'noon' is no time"),
        (["-N", "2", "x"], "nodes: tasks on several nodes"),
    ],
)
def test_bad_input_is_one_clear_sentence_and_status_2(geres, words, problem):
    # There is no cluster here: what is wrong with the words is told without one.
    for command in ("submit", "run"):
        done = geres(command, *words)
        assert (done.status, done.out) == (2, "")
        assert problem in done.err
        assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "name", "problem"),
    [
        ("cpus = ", "a.toml", "is no TOML"),
        ("{", "a.json", "is no JSON"),
        ("[]", "a.json", "holds no table"),
        ("a: [1", "a.yaml", "is no YAML: .*line 1"),
        ("cpus: -1", "a.yaml", "a.yaml: cpus"),
        ("- true", "a.yml", "holds no table"),
        ("command: [echo, 1.10]", "a.yml", r"command\[1\]: 1.1 is no text; write it in quotes"),
        ("meta: {version: 010}", "a.yml", "meta.version: 8 is no text"),
        ("command = ['echo', 7]", "a.toml", r"command\[1\]: 7 is no text"),
        ("!!python/object/apply:os.system [id]", "a.yml", "is no YAML"),
        ('mem = "2G"', "a.toml", "did you mean 'memory'"),
        ("cpus = -1", "a.toml", "cpus"),
        ('command = ["a"]', "a.toml", "says what to run"),
    ],
)
def test_a_bad_file_is_told_by_its_name(tmp_path: Path, text, name, problem):
    (tmp_path / name).write_text(text)
    with pytest.raises(Invalid, match=problem) as refused:
        work_of("-f", str(tmp_path / name), "ls")
    assert name in str(refused.value)


def test_the_settings_give_defaults_and_may_refuse_root(monkeypatch):
    monkeypatch.setenv("GERES_CLIENT__MEMORY_BYTES", "1G")
    monkeypatch.setenv("GERES_CLIENT__PRIORITY", "7")
    spec = work_of("true").spec
    assert (spec.memory_bytes, spec.priority) == (1 << 30, 7)
    assert work_of("-m", "2G", "true").spec.memory_bytes == 2 << 30


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused")
def test_root_is_refused_where_the_settings_say_so(monkeypatch):
    monkeypatch.setenv("GERES_CLIENT__REFUSE_ROOT", "true")
    with pytest.raises(Invalid, match="root may not submit"):
        work_of("true")


def test_run_passes_stdin_to_one_task_and_to_no_array():
    assert work_of("cat", command=run, stdin=True).spec.stdin
    assert not work_of("cat", ":::", "a", command=run, stdin=True).spec.stdin
