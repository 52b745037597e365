"""What tests of bad input share: the check that a refusal is one sentence, and that nothing was harmed."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakKeyDictionary

import psutil

import geres
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
    parts, client = _at_first(cluster)
    counts = client.summary()
    yield
    for part, process in parts.items():
        assert process.is_running(), f"the {part} has died"
        assert process.status() != psutil.STATUS_ZOMBIE, f"the {part} has died"
    after = client.summary()
    if stores_nothing:
        assert (after.tasks, after.jobs) == (counts.tasks, counts.jobs)
    assert not cluster.died_unnoticed()


_seen: WeakKeyDictionary[Cluster, tuple[dict[str, psutil.Process], geres.Client]] = WeakKeyDictionary()


def _at_first(cluster: Cluster) -> tuple[dict[str, psutil.Process], geres.Client]:
    """The parts as they were when the cluster was first looked at: nothing in these tests restarts one."""
    if cluster not in _seen:
        parts = {part: psutil.Process(cluster.pid(part)) for part in _PARTS}
        _seen[cluster] = (parts, cluster.client())
    return _seen[cluster]


def peak_bytes(cluster: Cluster, part: str) -> int:
    """The most memory that the process of a part ever had."""
    status = Path(f"/proc/{cluster.pid(part)}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
