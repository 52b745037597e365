"""Fixtures of the command line's tests: a home of their own, and commands run in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from geres import Client, Task
from geres.cli import main, task_options
from geres.model.states import TaskState
from tests.cluster import Cluster


@dataclass
class Done:
    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty GERES_HOME, and none of the caller's own settings."""
    for name in ("GERES_URL", "GERES_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    monkeypatch.setenv("GERES_HOME", str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(task_options, "_loaded", None)
    return folder


@pytest.fixture
def geres(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Call it with words for `geres WORDS`, run in this process."""

    def call(*words: str) -> Done:
        capfd.readouterr()
        status = main.run(list(words))
        said = capfd.readouterr()
        return Done(status, said.out, said.err)

    return call


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Client:
    return cluster.client()


@pytest.fixture
def blocker(client: Client) -> Iterator[Task]:
    """Takes the whole node, so that what comes behind it waits."""
    task = client.submit(["sleep", "600"], exclusive=True)
    while task.state is not TaskState.RUNNING:
        assert not task.done()
    yield task
    client.cancel(task)  # unless the test has
    task.wait(timeout=20)
