"""The examples of the documentation, run as they stand against a cluster."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Lines that install, start or stop what a test has already, or watch a terminal.
_NOT_HERE = re.compile(
    r"uv tool|pipx|pip install|python3 -m venv|activate$|geres (up|down|demo|top)\b|^make "
)


def console(page):
    """The commands of a page's console blocks, each with the output that is shown below it."""
    examples = []
    for block in re.findall(r"```console\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            if not _NOT_HERE.search(command.split("  #")[0].strip()):
                examples.append((command, shown.strip()))
    return examples


@pytest.fixture
def shell(make_cluster, tmp_path):
    """Run a line of bash beside a cluster of its own, in a folder with a few files."""
    cluster = make_cluster()
    cluster.wait_until_ready()
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)

    def run(line):
        return subprocess.run(
            ["bash", "-c", line], env=cluster.env, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )

    return run


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_first_pages_work_line_by_line(shell, page):
    examples = console(page)

    assert len(examples) >= 4
    for command, shown in examples:
        done = shell(command)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        if shown:
            assert done.stdout.strip() == shown, command


def test_the_python_examples_run(make_cluster, tmp_path, monkeypatch):
    cluster = make_cluster(cpus=4, flags=("--memory", "64G"))  # declared, whatever is there
    cluster.wait_until_ready()
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bwa", "step"):
        (programs / name).write_text("#!/bin/sh\necho ran\n")
        (programs / name).chmod(0o755)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/how-to/python.md").read_text(), re.DOTALL)
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    paths = [tmp_path / f"file {number}" for number in range(3)]
    for path in paths:
        path.write_text("x")

    program = "import geres\nclient = geres.Client()\n"
    for block in blocks:
        text = block.replace('"bwa"', repr(str(programs / "bwa"))).replace(
            '"./step"', repr(str(programs / "step"))
        )
        exec(
            compile(program + text, "docs/how-to/python.md", "exec"), {"paths": [str(path) for path in paths]}
        )

    with cluster.client() as client:
        assert {task.state for task in client.tasks(state="final")} <= {"succeeded", "failed"}
