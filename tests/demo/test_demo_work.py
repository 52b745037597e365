"""The demo's work: which files, which shell lines, and sums that two ways agree on."""

from __future__ import annotations

import subprocess
import sysconfig

import pytest

from geres.cli import demo_work
from geres.cli.demo_work import ByPrograms, ByPython, Work, choose_method, collect


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A small library of three files, one of them empty, one with a name that a shell would mind."""
    library = tmp_path / "lib"
    (library / "site-packages").mkdir(parents=True)
    (library / "a.py").write_text("print('a')\n" * 50)
    (library / "b c'$(d).py").write_text("x = 1\n")
    (library / "notes.txt").write_text("not for us")
    (library / "site-packages" / "empty.py").write_text("")
    paths = {"stdlib": library, "purelib": library / "site-packages", "platlib": library / "site-packages"}
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(paths[name]))
    return library


def run(line):
    return subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=True).stdout.split()[
        0
    ]


def test_few_files_come_again_with_a_salt_until_there_are_a_thousand(files):
    works = collect()

    assert len(works) == demo_work.LEAST_TASKS
    assert {work.label for work in works[:3]} == {"a.py", "b c'$(d).py", "empty.py"}
    assert not any(work.salt for work in works[:3])
    assert len({(work.path, work.salt) for work in works}) == len(works)


def test_no_more_files_are_taken_than_asked_for(files):
    assert len(collect(2)) == 2


def test_all_files_of_the_running_python_are_there_and_each_once():
    works = collect(100_000)

    paths = {work.path for work in works if not work.salt}
    assert pytest.__file__ in paths
    assert sysconfig.__file__ in paths
    assert any(work.size_bytes == 0 for work in works)
    assert len(paths) == len([work for work in works if not work.salt])


@pytest.mark.parametrize("method", [ByPrograms(), ByPython()], ids=["programs", "python"])
def test_a_task_prints_the_sum_that_is_computed_without_it(files, method):
    works = [*collect(3), Work(str(files / "a.py"), "a.py again", 1, "salt 1\n")]

    assert [run(method.line(work)) for work in works] == method.sums(works)


@pytest.mark.parametrize("method", [ByPrograms(), ByPython()], ids=["programs", "python"])
def test_another_content_or_another_salt_gives_another_sum(files, method):
    works = [*collect(3), *(Work(str(files / "a.py"), "a.py", 1, f"salt {turn}\n") for turn in (1, 2))]

    assert len(set(method.sums(works))) == 5


def test_programs_are_taken_where_they_are_and_python_where_they_are_not(monkeypatch, tmp_path):
    assert isinstance(choose_method(), ByPrograms)

    monkeypatch.setenv("PATH", str(tmp_path))
    method = choose_method()

    assert isinstance(method, ByPython)
    assert method.missing == ("gzip", "sha256sum")


def test_a_gzip_that_does_something_else_is_not_taken(monkeypatch, tmp_path):
    for name in ("gzip", "sha256sum"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\necho surprise\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    assert isinstance(choose_method(), ByPython)
