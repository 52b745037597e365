"""Which paths lie on file systems of this machine alone, so that touching them cannot hang."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

_LOCAL = frozenset(
    [
        "ext2",
        "ext3",
        "ext4",
        "xfs",
        "btrfs",
        "tmpfs",
        "ramfs",
        "overlay",
        "zfs",
        "f2fs",
        "bcachefs",
        "jfs",
        "reiserfs",
        "squashfs",
        "devtmpfs",
        "proc",
        "sysfs",
    ]
)
_FRESH_SECONDS = 60.0
_MOST_KNOWN = 10_000
_CHECKERS = 4
_MOST_ASKED = 100


def is_local(path: str, mounts: list[tuple[str, str]]) -> bool:
    """True where the path, links followed, lies on a local file system.  May hang where it does not."""
    real = os.path.realpath(path)
    best, kind = "", ""
    for point, its_kind in mounts:
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, its_kind
    return kind in _LOCAL


def read_mounts() -> list[tuple[str, str]]:
    """(mount point, kind of file system), in the order of mounting."""
    mounts = []
    try:
        with open("/proc/self/mountinfo") as file:
            for line in file:
                left, _, right = line.partition(" - ")
                point = left.split()[4].encode().decode("unicode_escape")  # a space is written \040
                mounts.append((point, right.split()[0]))
    except OSError:
        return [("/", "tmpfs")]  # no Linux: there is nothing to go by
    return mounts


class Localities:
    """Remembers which paths are local.  Asking does not wait: what is not known yet counts as not local."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, tuple[bool, float]] = {}
        self._asked: set[str] = set()
        self._checkers = ThreadPoolExecutor(_CHECKERS, thread_name_prefix="local")

    def learn(self, path: str) -> None:
        """Find out now.  May hang."""
        self._known[path] = (is_local(path, read_mounts()), self._clock())

    def is_local(self, path: str, patience_seconds: float = 0.0) -> bool:
        """What is known; a path asked for the first time is given so long to answer, once."""
        known = self._known.get(path)
        if known is not None and self._clock() - known[1] < _FRESH_SECONDS:
            return known[0]
        if path not in self._asked and len(self._asked) < _MOST_ASKED:
            self._asked.add(path)
            check = self._checkers.submit(self._check, path)
            if known is None and patience_seconds:
                wait([check], patience_seconds)
                known = self._known.get(path)
        return known[0] if known is not None else False

    def settle(self, paths: list[str], seconds: float) -> None:
        """Find out about these, as far as that is possible in the given time."""
        until = self._clock() + seconds
        for path in paths:
            self.is_local(path)
        while not all(path in self._known for path in paths) and self._clock() < until:
            time.sleep(0.001)

    def close(self) -> None:
        self._checkers.shutdown(wait=False, cancel_futures=True)

    def _check(self, path: str) -> None:
        try:
            if len(self._known) > _MOST_KNOWN:
                self._known.clear()
            self.learn(path)
        finally:
            self._asked.discard(path)
