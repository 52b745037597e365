"""What acceptance tests do to a cluster again and again: keep it busy, wait for states, read what it says."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.cluster import GERES, Cluster, clean_environment

T = TypeVar("T")
PATIENCE_SECONDS = 60.0


def eventually(look: Callable[[], T], what: Callable[[T], object] = bool) -> T:
    """Look until it is as wanted; the last look.  Fails after a minute with what was seen."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not what(seen := look()):
        assert time.monotonic() < deadline, f"after {PATIENCE_SECONDS:.0f} s there is still {seen!r}"
        time.sleep(0.02)
    return seen


def shown(cluster: Cluster, *words: str) -> Any:
    """What `geres WORDS --json` prints."""
    return json.loads(cluster.run(*words, "--json", check=True).stdout)


def submit(cluster: Cluster, *words: str, **options: Any) -> str:
    """The id that `geres submit WORDS` prints."""
    return cluster.run("submit", *words, check=True, **options).stdout.strip()


def fresh_job(cluster: Cluster) -> str:
    """A new job.  Of its tasks none is sent ahead to a node behind others until one has ended: so far it is
    not known that they are short."""
    return cluster.run("job", "create", check=True).stdout.strip()


def states(cluster: Cluster, *ids: str) -> list[str]:
    """The states of tasks, in the order given."""
    client = cluster.client()
    return [client.task_info(one).state.value for one in ids]


def attempts(cluster: Cluster, *ids: str) -> list[int]:
    """The attempts of tasks, in the order given.  What runs need not be the first: a busy node may give one
    back before it starts."""
    client = cluster.client()
    return [client.task_info(one).attempt for one in ids]


def wait_for_state(cluster: Cluster, task_id: str, *wanted: str) -> str:
    """Wait until a task is in one of these states; which one it is."""
    return eventually(lambda: states(cluster, task_id)[0], lambda state: state in wanted)


def times(info: dict[str, Any]) -> tuple[str, str]:
    """When a task began and ended; RFC 3339 texts of one length compare like moments."""
    return info["started_at"], info["ended_at"]


def most_at_once(infos: list[dict[str, Any]]) -> int:
    """How many of these ended tasks ran at the same moment, at most."""
    changes = sorted(
        [(info["ended_at"], -1) for info in infos] + [(info["started_at"], 1) for info in infos],
    )
    running = most = 0
    for _, change in changes:
        running += change
        most = max(most, running)
    return most


class Gate:
    """A command that runs until the gate is opened, so that a test decides how long a node is busy."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"gate-{uuid.uuid4().hex}"

    @property
    def words(self) -> tuple[str, ...]:
        return ("sh", "-c", f"until [ -e {self._path} ]; do sleep 0.02; done")

    def open(self) -> None:
        self._path.touch()


@contextlib.contextmanager
def own_cluster(
    request: pytest.FixtureRequest,
    *,
    store: str = "sqlite",
    cpus: float = 2,
    flags: tuple[str, ...] = (),
    settings: str = "",
) -> Iterator[Cluster]:
    """A started cluster, for fixtures that a module shares and that need flags or settings of their own.

    `settings` is the text of a settings file, in the folder where the commands of the cluster are called.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="geres-test-")))
        (folder / "geres.toml").write_text(settings)
        url = None
        if store == "postgres":
            url = stack.enter_context(request.getfixturevalue("postgres_server").fresh())
        yield stack.enter_context(Cluster(folder, store=url, cpus=cpus, flags=flags))


@contextlib.contextmanager
def another_node(cluster: Cluster, name: str, *words: str) -> Iterator[str]:
    """A second node: an agent in a home of its own, with the first one's token; its name."""
    with tempfile.TemporaryDirectory(prefix="geres-test-") as folder:
        home = Path(folder) / "home"
        home.mkdir()
        shutil.copy2(cluster.home / "agent.token", home)
        log = (home / "log").open("w")
        agent = subprocess.Popen(
            [GERES, "agent", "--url", cluster.url, "--name", name, "--stop-tasks", *words],
            env=clean_environment(home),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            eventually(
                lambda: {node["name"]: node["state"] for node in shown(cluster, "nodes")},
                lambda nodes: nodes.get(name) == "idle",
            )
            yield name
        finally:
            agent.terminate()
            assert agent.wait(PATIENCE_SECONDS) == 0, (home / "log").read_text()
            log.close()
