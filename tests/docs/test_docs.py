"""The documentation is as the code has it, builds without a warning, and leaves nothing out."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from geres import config
from geres.cli.main import Commands, cli
from geres.model.states import Reason, TaskState

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def run(*words):
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=100)


def commands(group=cli, path=("geres",)):
    """Every command as its words."""
    with click.Context(group, info_name=path[-1]) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            yield (*path, name), command
            if isinstance(command, Commands):
                yield from commands(command, (*path, name))


def test_the_generated_parts_are_as_the_code_has_them():
    done = run("docs/generate.py", "--check")

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_pages_build_without_a_warning(tmp_path):
    done = run("-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path))

    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def test_every_command_has_help_and_is_in_the_reference():
    page = (ROOT / "docs" / "reference" / "cli.md").read_text()

    for words, command in commands():
        assert command.help, words
        assert f"## {' '.join(words)}\n" in page


def test_every_option_has_help():
    silent = [
        (" ".join(words), option.name)
        for words, command in commands()
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden and not option.help
    ]

    assert not silent


def test_every_setting_is_documented_with_words():
    page = (ROOT / "docs" / "reference" / "config.md").read_text()

    for key in config.KINDS:
        assert f"| `{key}` |" in page


def test_every_state_and_reason_is_documented():
    page = (ROOT / "docs" / "concepts" / "lifecycle.md").read_text()

    for one in (*TaskState, *Reason):
        assert f"| `{one.value}` |" in page


def test_every_variable_that_a_task_gets_is_documented():
    page = (ROOT / "docs" / "reference" / "environment.md").read_text()
    sources = [path.read_text() for path in (ROOT / "src" / "geres" / "agent").rglob("*.py")]

    given = set(re.findall(r'\[b?"(GERES_\w+)"\] = |"(GERES_\w+)": ', "\n".join(sources)))

    assert len(given) > 10
    for name in {one or other for one, other in given}:
        assert f"`{name}`" in page


def typed_commands():
    """Every `$ geres ...` line of the pages, with its page."""
    for page in PAGES:
        for line in re.findall(r"^\$ (?:\S+=\S+ |.*\| )?(geres .*)$", page.read_text(), re.MULTILINE):
            yield pytest.param(line.split("   ")[0], id=f"{page.name}: {line[:60]}")


@pytest.mark.parametrize("line", list(typed_commands()))
def test_every_command_line_in_the_pages_is_one_that_geres_takes(line):
    words = shlex.split(line.partition("&&")[0].partition(";")[0].partition(" #")[0])[1:]
    command: click.Command = cli
    name, context = "geres", click.Context(cli, info_name="geres")
    while isinstance(command, Commands) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"no command {words[0]}"
        name, command, words = words[0], found, words[1:]

    command.make_context(name, list(words), parent=context)  # raises for what it does not take
