"""What tests of bad input share: the check that a refusal is one sentence, and that nothing was harmed."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.cluster import Cluster

_PARTS = ("server", "agent", "supervisor")


def assert_refused(
    done: subprocess.CompletedProcess[str], *words: str, status: int = 2, code: str = "invalid"
) -> None:
    """One line on stderr, with these words in it; nothing on stdout; the exit status."""
    told = done.stderr
    assert done.returncode == status, f"{done.args}: {done.returncode}\n{told}"
    assert told.startswith(f"geres: {code}: "), told
    assert told.count("\n") == 1, f"more than one line: {told}"
    assert done.stdout == ""
    for word in words:
        assert word in told, f"{word!r} is not in {told!r}"


@contextlib.contextmanager
def unharmed(cluster: Cluster, *, stores_nothing: bool = False) -> Iterator[None]:
    """Afterwards the same processes run and answer; with `stores_nothing`, no task and no job is new."""
    client = cluster.client()
    before = {part: cluster.pid(part) for part in _PARTS}
    counts = client.summary()
    yield
    assert {part: cluster.pid(part) for part in _PARTS} == before
    after = client.summary()
    if stores_nothing:
        assert (after.tasks, after.jobs) == (counts.tasks, counts.jobs)
    assert not list(cluster.died_unnoticed())


def resident_bytes(cluster: Cluster, part: str) -> int:
    pid = cluster.pid(part)
    assert pid is not None
    return int(psutil.Process(pid).memory_info().rss)


def peak_bytes(cluster: Cluster, part: str) -> int:
    """The most memory that the process of a part ever had."""
    status = Path(f"/proc/{cluster.pid(part)}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
