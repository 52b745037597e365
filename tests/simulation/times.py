"""One clock for everything simulated: it moves when the simulation moves it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from geres.agent import node, process, running, supervisor
from geres.server import clock, desk, dispatcher, leases, loops, planner, waiters

SECOND = 1_000_000
#: Modules that ask `time`; all of them see the simulated one.
_MODULES = (clock, desk, dispatcher, leases, loops, planner, waiters, node, process)


class Time:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now_us = 1_000_000 * SECOND

    def monotonic(self) -> float:
        return self.now_us / SECOND

    def monotonic_ns(self) -> int:
        return self.now_us * 1000

    time, time_ns = monotonic, monotonic_ns
    perf_counter = monotonic


class _Folders:
    """Stands for the task folders of a machine; its tag is the supervisor's folder."""

    def __init__(self, path: str) -> None:
        self.tag = path.removesuffix("/tasks")

    def clear(self) -> None:
        pass


@contextlib.contextmanager
def simulated(time: Time, kill: Callable[..., None], kill_leftovers: Callable[[str], None]) -> Iterator[None]:
    """Let the product see this time, and end processes this way, within the block."""
    changes: list[tuple[Any, str, Any]] = [(module, "time", time) for module in _MODULES]
    changes += [
        (running, "kill", kill),
        (node, "_REPEAT_SECONDS", 0.1),  # ends come again and again, as if acknowledgements were slow
        (supervisor, "kill_leftovers", lambda tag, *_: kill_leftovers(tag)),
        (supervisor, "Folders", _Folders),
    ]
    saved = [(module, name, getattr(module, name)) for module, name, _ in changes]
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in saved:
            setattr(module, name, value)
